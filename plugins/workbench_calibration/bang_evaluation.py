"""Judging a pretrained and a fine-tuned model, everything between them, and their averaged outputs, on several data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from workbench import Out
from workbench.toolkit import accuracy, expected_calibration_error, negative_log_likelihood, predict_all

from workbench_calibration.wise import (
    OUTCOMES,
    State,
    average,
    cooled_head,
    logit_layer,
    mean_of_logits,
    mean_of_probabilities,
    outcome_shares,
    outcomes,
)

if TYPE_CHECKING:
    from workbench_calibration.bang import Params

Float = NDArray[np.float64]
METRICS = ("accuracy", "confidence_mean", "ece", "negative_log_likelihood")
KINDS = ("ft", "wise", "ose_prob", "ose_logit")


@dataclass(frozen=True)
class Domains:
    """Data sets to judge on, one after the other in the order of samples.

    Attributes:
        names: of the data sets.
        shifted: (dataset,) whether the data set counts in the mean over shifted ones.
        image: (sample, channel, y, x), of all.
        label: (sample,).
        owner: (sample,) index of the data set.
        index: (sample,) row in what it was taken from.
        selection: images and labels in distribution to choose alpha by; in none of the data sets.
    """

    names: list[str]
    shifted: NDArray[np.bool_]
    image: Tensor
    label: NDArray[np.int64]
    owner: NDArray[np.int64]
    index: NDArray[np.int64]
    selection: tuple[Tensor, NDArray[np.int64]]


def scores(logit: Tensor, domains: Domains, n_bins: int) -> Float:
    """(dataset, metric): the `METRICS` of logits (sample, class)."""
    probability = logit.double().softmax(1).cpu().numpy()
    rows = []
    for number in range(len(domains.names)):
        p, y = probability[domains.owner == number], domains.label[domains.owner == number]
        rows.append([accuracy(p, y), float(p.max(1).mean()), expected_calibration_error(p, y, n_bins=n_bins),
                     negative_log_likelihood(p, y)])  # fmt: skip
    return np.array(rows)


def judge_pair(
    model: nn.Module,
    pre: State,
    tuned: State,
    domains: Domains,
    alphas: list[float],
    params: Params,
    train_image: Tensor,
) -> dict[str, Any]:
    """Everything about one pretrained and one fine-tuned model.

    Returns:
        `logit` by predictor (`pre` and the `KINDS`, WiSE at one half), `score` (predictor, dataset, metric), `curve` (alpha,
        dataset, metric), `best_alpha` by accuracy on the selection part (the nearest to one half of equals), `cooled` (kind,
        tau, dataset) accuracy of averages in weights and in outputs, and `outcome` (sample,).
    """

    def merged(alpha: float, state: State = tuned) -> nn.Module:
        return average(model, pre, state, alpha, params.bn, train_image)

    def logit(alpha: float, state: State = tuned) -> Tensor:
        return predict_all(merged(alpha, state), domains.image, keep_on="cpu")[0]

    # The ends are the two models themselves, whatever is done to the statistics in between.
    ends = {alpha: average(model, state, state, alpha) for alpha, state in ((0.0, pre), (1.0, tuned))}
    at, chosen = {}, []
    for alpha in alphas:
        network = ends[alpha] if alpha in ends else merged(alpha)
        at[alpha] = predict_all(network, domains.image, keep_on="cpu")[0]
        found = predict_all(network, domains.selection[0], keep_on="cpu")[0].argmax(1).numpy()
        chosen.append((-float((found == domains.selection[1]).mean()), abs(alpha - 0.5), alpha))
    one, other, wise = at[0.0], at[1.0], at[0.5]
    logits = {"pre": one, "ft": other, "wise": wise, "ose_prob": mean_of_probabilities(one, other),
              "ose_logit": mean_of_logits(one, other)}  # fmt: skip
    head = logit_layer(ends[0.0], domains.image[:2])
    cooled = [[logit(0.5, cooled_head(head, tuned, tau)) for tau in params.taus],
              [mean_of_probabilities(one, other / tau) for tau in params.taus]]  # fmt: skip
    right = [np.asarray(x.argmax(1)) == domains.label for x in (one, other, wise)]
    return {
        "logit": {name: value.float().numpy() for name, value in logits.items()},
        "score": np.stack([scores(value, domains, params.n_bins) for value in logits.values()]),
        "curve": np.stack([scores(at[alpha], domains, params.n_bins) for alpha in alphas]),
        "best_alpha": min(chosen)[2],
        "cooled": np.array([[scores(x, domains, params.n_bins)[:, 0] for x in row] for row in cooled]),
        "outcome": outcomes(*right),
    }


def write_judged(
    judged: list[dict[str, dict[str, Any]]], domains: Domains, alphas: list[float], params: Params, out: Out
) -> None:
    """Store what `judge_pair` found, by seed and loss; predictions in detail for the first seed."""
    losses, seeds = list(judged[0]), range(len(judged))
    predictors = ["pre", *(f"{kind}_{loss}" for loss in losses for kind in KINDS)]
    first = judged[0]
    score = np.array([
        [judged[s][losses[0]]["score"][0], *(judged[s][loss]["score"][1 + k] for loss in losses for k in range(len(KINDS)))]
        for s in seeds
    ])  # (seed, predictor, dataset, metric)  # fmt: skip
    logit = np.stack(
        [first[losses[0]]["logit"]["pre"], *(first[loss]["logit"][kind] for loss in losses for kind in KINDS)]
    )
    curve = np.array(
        [[judged[s][loss]["curve"] for s in seeds] for loss in losses]
    )  # (loss, seed, alpha, dataset, metric)
    for name, labels in {
        "predictor": predictors, "dataset": domains.names, "seed": seeds, "loss": losses, "alpha": alphas, "tau": params.taus,
        "outcome_kind": OUTCOMES, "space": ("weights", "probabilities"),
    }.items():  # fmt: skip
        out.coordinate(name, list(labels))
    share = np.array([[[outcome_shares(judged[s][loss]["outcome"][domains.owner == d]) for d in range(len(domains.names))]
                       for s in seeds] for loss in losses])  # fmt: skip
    for number, metric in enumerate(METRICS):
        out.write(metric, score[..., number].transpose(1, 2, 0))
    arrays = {
        "logit": logit,
        "label": domains.label,
        "domain": [domains.names[number] for number in domains.owner],
        "sample_index": domains.index,
        "is_shifted": domains.shifted,
        "confidence": _confidence(logit),
        "curve_accuracy": curve[..., 0].transpose(0, 2, 3, 1),
        "curve_confidence": curve[..., 1].transpose(0, 2, 3, 1),
        "best_alpha": np.array([[judged[s][loss]["best_alpha"] for s in seeds] for loss in losses]),
        "cooled_accuracy": np.array([[judged[s][loss]["cooled"] for s in seeds] for loss in losses]).transpose(
            2, 0, 3, 4, 1
        ),
        "outcome": np.stack([first[loss]["outcome"] for loss in losses]),
        "outcome_share": share.transpose(0, 2, 1, 3),
        "outcome_mean": share.mean(1),
    }
    if domains.shifted.any():
        arrays["shifted_confidence"] = arrays["confidence"][:, domains.shifted[domains.owner]]
        means = [
            curve[..., kept, 0].mean(-1).mean(1)
            for kept in (~domains.shifted & _in_distribution(domains), domains.shifted)
        ]
        arrays |= {
            "point_id": means[0].ravel(),
            "point_ood": means[1].ravel(),
            "point_loss": np.repeat(losses, len(alphas)).tolist(),
            "point_alpha": np.tile(alphas, len(losses)),
            "curve_ood_accuracy": means[1],
        }
    for name, values in arrays.items():
        out.write(name, values)


def _in_distribution(domains: Domains) -> NDArray[np.bool_]:
    return np.array([name == "id" for name in domains.names])


def _confidence(logit: NDArray[np.float32]) -> NDArray[np.float32]:
    return torch.from_numpy(logit).double().softmax(-1).amax(-1).float().numpy()
