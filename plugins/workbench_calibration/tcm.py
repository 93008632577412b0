"""For which classes does one match threshold fail, and does a margin in the training make classes agree on it? OPIS and TCM.

Zhang, Xu et al. (2023), Threshold-Consistent Margin Loss for Open-World Deep Metric Learning, arXiv 2307.04047, ICLR 2024. For
builders of retrieval and verification systems, who must ship one threshold for classes nobody has seen yet.

- With `feature` in `data`: measures the embedding as it is (of any model, or of a `training.evaluation` run). With a `model` and
  `image`, and `task="measure"`: measures what the model's last linear layer receives.
- With `image` in `data`: trains the architecture of `model` (or a small perceptron) to embed, on one part of the classes, with
  every base loss alone, with the TCM regulariser added, and with the base loss at other strengths (`sweep`, what tuning alone
  can do); judges on the other classes.
- Without inputs: the same on a generated open world of Gaussian classes of unequal spread.

Faithful: the TCM term and its margins, OPIS as the variance between classes of an F-type utility over a range of thresholds
fixed by pooled false accept rates. Known from memory only: the utility's exact form, eps-OPIS; not known: the paper's ends of
the range (ours 1e-2 and 1e-1). Thresholds are cosine similarities on a uniform grid; a grid uniform in Euclidean distance, as
in the paper's plots, gives other values (`spacing="distance"`). The default training can be waited for; the paper trains
ResNet-50 and ViT on CUB, Cars, SOP and iNaturalist. Not included: the recall@k surrogate as base loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from workbench import DataRole, InputError, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import last_linear, predict_all, split_indices, to_tensor

from workbench_calibration.opis import (
    Float,
    Spacing,
    hardest_pairs,
    normalised,
    opis_by_class,
    quantiles,
    utility,
    with_partners,
)
from workbench_calibration.tcm_losses import BaseLoss
from workbench_calibration.tcm_measure import QUANTILES, SCORES, WIDE, Measurement, bootstrap_opis, density, measure
from workbench_calibration.tcm_report import report
from workbench_calibration.tcm_training import (
    TERMS,
    embed,
    embedding_network,
    multilayer_perceptron,
    open_world_clusters,
    states,
    train_every_mode,
    training_modes,
)

SHOWN_PAIRS = 8


class Params(BaseParams):
    """Parameters."""

    task: Literal["auto", "measure", "train"] = Field(
        "auto", description="auto: measure if `data` has `feature`, else train"
    )
    c: float = Field(1.0, ge=0.1, le=10, description="Weight of the two rates in the utility (paper 1)")
    far_range: tuple[float, float] = Field(
        (1e-2, 1e-1), description="Pooled false accept rates at the ends of the range (paper's not known)"
    )
    operating_far: float = Field(1e-2, gt=0, lt=1, description="Pooled false accept rate of the one threshold to ship")
    n_grid: int = Field(200, ge=2, le=10_000, description="Thresholds in the range (ours)")
    spacing: Spacing = Field("cosine", description="What the grid of thresholds is uniform in")
    tail: float = Field(0.1, gt=0, le=0.5, description="Share of classes in each group of eps-OPIS (paper 0.1)")
    losses: tuple[BaseLoss, ...] = Field(("normalised_softmax",), min_length=1, description="Base losses to train with")
    m_plus: float = Field(0.9, ge=-1, le=1, description="Margin of positives on cosine similarity (paper 0.9)")
    m_minus: float = Field(0.5, ge=-1, le=1, description="Margin of negatives (paper 0.5)")
    lam_plus: float = Field(1.0, ge=0, le=100, description="Weight of the positives' term (paper 1)")
    lam_minus: float = Field(1.0, ge=0, le=100, description="Weight of the negatives' term (paper 1)")
    sweep: tuple[float, ...] = Field(
        (0.5, 2.0), max_length=10, description="Also train base losses with temperature or margin times these"
    )
    epochs: int = Field(40, ge=1, le=10_000, description="Passes; batches are drawn, so a pass is a number of them")
    batch_size: int = Field(150, ge=4, le=65_536, description="Samples of a batch (paper 100 to 400)")
    samples_per_class: int = Field(5, ge=2, le=1000, description="At least so many of each class in a batch")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Of Adam, constant")
    proxy_rate: float = Field(10.0, gt=0, le=1e4, description="Proxies learn so many times as fast")
    embedding_size: int = Field(32, ge=2, le=4096, description="Dims of the embedding")
    width: int = Field(128, ge=2, le=8192, description="Hidden units of the perceptron that is trained without `model`")
    initialization: Literal["fresh", "given"] = Field(
        "fresh", description="given: keep the model's weights, new embedding"
    )
    split: Literal["open", "closed"] = Field("open", description="open: judge by other classes; closed: other samples")
    test_fraction: float = Field(0.5, gt=0, lt=1, description="Share of the classes (closed: samples) to judge by")
    seeds: int = Field(3, ge=1, le=100, description="Trainings of each mode")
    synthetic_classes: int = Field(60, ge=4, le=2000, description="Classes of the generated problem")
    synthetic_samples: int = Field(30, ge=4, le=1000, description="Samples of each of them")

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        low, high = self.far_range
        if not 0 < low < high < 1:
            raise ValueError("far_range holds two rates in (0, 1), the smaller one first")
        if any(not 0 < s <= 100 for s in self.sweep):
            raise ValueError("sweep holds factors in (0, 100]")
        return self


class ThresholdConsistency(Method):
    """Measure how consistent one threshold is over classes; train embeddings with and without TCM."""

    id = "calibration.tcm"
    title = "One match threshold for all classes: for which does it fail, and does a margin in training help?"
    paper = Paper(
        title="Threshold-Consistent Margin Loss for Open-World Deep Metric Learning",
        authors="Zhang, Xu et al.",
        year=2023,
        arxiv="2307.04047",
        venue="ICLR 2024",
    )
    Params = Params
    inputs = {
        "data": DataRole(
            "labels with embeddings to measure (`feature`) or images to train on; images beside embeddings illustrate",
            variables={"label": ("sample",)},
            optional_variables={"feature": ("sample", "feature"), "image": ("sample", "channel", "y", "x")},
            optional=True,
        ),
        "model": ModelRole("classifier whose features are measured, or whose architecture is trained", optional=True),
    }
    outputs = (
        Output("feature", ("mode", "sample", "feature"), "float32", "embeddings that are judged (seed 0)"),
        Output("label", ("sample",), "int64", "their classes"),
        Output("sample_index", ("sample",), "int64", "their row in `data` (or in the generated set)"),
        Output("threshold", ("mode", "t"), "float64", "grid over the calibration range", "cosine"),
        Output("far", ("mode", "class", "t"), "float64", "false accept rate of the class"),
        Output("frr", ("mode", "class", "t"), "float64", "false reject rate of the class"),
        Output("utility", ("mode", "class", "t"), "float64", "utility of the threshold for the class"),
        Output("utility_mean", ("mode", "t"), "float64", "mean over classes"),
        Output("curve_utility", ("mode", "class", "similarity"), "float64", "utility over all thresholds"),
        Output("curve_utility_mean", ("mode", "similarity"), "float64", "mean over classes"),
        Output("in_range", ("mode", "similarity"), "bool", "thresholds inside the calibration range"),
        Output("opis_class", ("mode", "class"), "float64", "the class's part of OPIS, which is their mean"),
        Output("far_class", ("mode", "class"), "float64", "false accept rate at the one threshold"),
        Output("frr_class", ("mode", "class"), "float64", "false reject rate at the one threshold"),
        Output("pair_hist_pos", ("mode", "bin"), "float64", "density of the positives' similarities"),
        Output("pair_hist_neg", ("mode", "bin"), "float64", "density of the negatives' similarities"),
        Output("positive_quantile", ("mode", "class", "q"), "float64", "of the positives' similarities"),
        Output("negative_quantile", ("mode", "class", "q"), "float64", "of the negatives' similarities"),
        Output("value", ("mode", "seed", "score"), "float64", "scores of every training"),
        Output("opis_interval", ("mode", "bound"), "float64", "bootstrap over classes, 95 % (seed 0)"),
        Output("dropped_classes", (), "int64", "classes of a single sample, left out"),
        Output("loss_history", ("mode", "seed", "term", "epoch"), "float64", "mean of the terms in training", optional=True),
        Output("point_opis", ("point",), "float64", "OPIS of every training", optional=True),
        Output("point_recall", ("point",), "float64", "its recall@1", optional=True),
        Output("point_mode", ("point",), "str", "how it was trained", optional=True),
        Output("hard_positive", ("member", "pair", "channel", "y", "x"), "float32", "least similar pairs of the worst class",
               optional=True),
        Output("hard_negative", ("member", "pair", "channel", "y", "x"), "float32", "its most similar negative pairs",
               optional=True),
        Output("hard_positive_similarity", ("pair",), "float64", "cosine similarity", optional=True),
        Output("hard_negative_similarity", ("pair",), "float64", "cosine similarity", optional=True),
    )  # fmt: skip

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Find or train embeddings, measure each, write."""
        judged = _measured(inputs, params, out) if _measures(inputs, params) else _trained(inputs, params, out)
        write(judged, params, out)

    def report(self, result: Result) -> Report:
        """How far classes disagree, which are the worst, what TCM changes."""
        return report(result)


@dataclass(frozen=True)
class Judged:
    """What is measured: embeddings by mode and seed, of the same samples."""

    embedding: dict[str, list[Tensor]]
    label: Tensor
    index: np.ndarray
    dropped: int
    image: Any = None
    history: Float | None = None


def write(judged: Judged, params: Params, out: Out) -> None:
    """Measure every embedding; store the first seed's in detail and everybody's scores."""
    modes, seeds = list(judged.embedding), len(next(iter(judged.embedding.values())))
    value, first = np.empty((len(modes), seeds, len(SCORES))), []
    for number, (m, seed) in enumerate((m, seed) for m in range(len(modes)) for seed in range(seeds)):
        out.progress(number, len(modes) * seeds, "measuring")
        measured = measure(judged.embedding[modes[m]][seed], judged.label, params)
        value[m, seed] = measured.scores
        if seed == 0:
            first.append(measured)
    wide = [one.wide for one in first]
    curve = np.stack([utility(one.far, one.frr, params.c) for one in wide])
    low, high = (value[:, 0, SCORES.index(name)] for name in ("range_low", "range_high"))
    for name, labels in {
        "mode": modes, "seed": range(seeds), "score": SCORES, "similarity": WIDE, "q": QUANTILES, "bound": ("lower", "upper"),
        "class": [str(name) for name in wide[0].names], "bin": (WIDE[1:] + WIDE[:-1]) / 2,
    }.items():  # fmt: skip
        out.coordinate(name, list(labels))
    arrays = {
        "feature": np.stack([judged.embedding[mode][0].numpy() for mode in modes]),
        "label": judged.label.numpy(),
        "sample_index": judged.index,
        "threshold": np.stack([one.in_range.threshold for one in first]),
        "far": np.stack([one.in_range.far for one in first]),
        "frr": np.stack([one.in_range.frr for one in first]),
        "utility": np.stack([one.utility for one in first]),
        "utility_mean": np.stack([one.utility.mean(0) for one in first]),
        "curve_utility": curve,
        "curve_utility_mean": curve.mean(1),
        "in_range": (low[:, None] <= WIDE) & (high[:, None] >= WIDE),
        "opis_class": np.stack([opis_by_class(one.utility) for one in first]),
        "far_class": np.stack([one.at_threshold.far[:, 0] for one in first]),
        "frr_class": np.stack([one.at_threshold.frr[:, 0] for one in first]),
        "pair_hist_pos": np.stack([density(one.accepted_positive.sum(0)) for one in wide]),
        "pair_hist_neg": np.stack([density(one.accepted_negative.sum(0)) for one in wide]),
        "positive_quantile": np.stack(
            [quantiles(one.accepted_positive, one.positive, WIDE, QUANTILES) for one in wide]
        ),
        "negative_quantile": np.stack(
            [quantiles(one.accepted_negative, one.negative, WIDE, QUANTILES) for one in wide]
        ),
        "value": value,
        "opis_interval": np.array([bootstrap_opis(one.utility, out.rng("bootstrap")) for one in first]),
        "dropped_classes": judged.dropped,
    }
    if judged.history is not None:
        out.coordinate("term", list(TERMS))
        arrays |= {
            "loss_history": judged.history,
            "point_opis": value[..., 0].ravel(),
            "point_recall": value[..., SCORES.index("recall_1")].ravel(),
            "point_mode": np.repeat(modes, seeds).tolist(),
        }
    for name, values in arrays.items():
        out.write(name, values)
    if judged.image is not None:
        _write_pairs(judged, first[min(1, len(first) - 1)], out)


def _write_pairs(judged: Judged, measured: Measurement, out: Out) -> None:
    """Pictures of the pairs that the worst class of an embedding fails on."""
    worst = int(measured.in_range.names[np.argmax(opis_by_class(measured.utility))])
    found = hardest_pairs(measured.unit, judged.label, worst, SHOWN_PAIRS)
    count = min(map(len, found))
    out.coordinate("member", ["first", "second"])
    for name, pair in zip(("hard_positive", "hard_negative"), (one[:count] for one in found), strict=True):
        rows = judged.index[pair]  # (pair, member)
        shown = torch.stack([_picture(judged.image, rows[:, member]) for member in (0, 1)])
        out.write(name, shown)
        out.write(f"{name}_similarity", (measured.unit[pair[:, 0]] * measured.unit[pair[:, 1]]).sum(1))


def _picture(image: Any, rows: np.ndarray) -> Tensor:
    taken = torch.stack([to_tensor(image[int(row)]) for row in rows])
    return taken.float() / 255 if taken.dtype == torch.uint8 else taken.float()


def _measures(inputs: Inputs, params: Params) -> bool:
    """Whether embeddings are given or made, instead of trained; everything is checked before any work."""
    data, model = inputs.get("data"), inputs.get("model")
    if data is None:
        if model is not None:
            raise InputError("data", expected="data beside a model, or neither (a generated problem)", got="none")
        if params.task == "measure":
            raise InputError("data", expected="embeddings (`feature`) or images to measure", got="none")
        return False
    measures = params.task == "measure" or (params.task == "auto" and "feature" in data)
    if measures and "feature" not in data and (model is None or "image" not in data):
        raise InputError("data", expected="`feature`, or `image` and a model", got="neither")
    if not measures and "image" not in data:
        raise InputError("data", expected="`image` to train on", got=f"{', '.join(map(str, data.data_vars))}")
    return measures


def _measured(inputs: Inputs, params: Params, out: Out) -> Judged:
    """The embedding that is given, or what the model's head receives."""
    data, model = inputs["data"], inputs.get("model")
    label = data["label"].to_numpy().astype(np.int64)
    index, dropped = with_partners(label)
    if "feature" in data:
        embedding = to_tensor(data["feature"])[index].float()
    else:
        head = last_linear(model)
        _, kept = predict_all(model, data["image"], layers=(head,), inputs=True, keep_on="cpu", out=out)
        if kept[head].ndim != 2:
            got = f"shape {tuple(kept[head].shape[1:])} at {head!r}"
            raise InputError("model", expected="one vector per image at its last linear layer", got=got)
        embedding = kept[head][index].float()
    normalised(embedding)
    return Judged({"given": [embedding]}, torch.from_numpy(label[index]), index, dropped, data.get("image"))


def _trained(inputs: Inputs, params: Params, out: Out) -> Judged:
    """Embeddings of the samples not trained on, of every mode and seed."""
    data, model = inputs.get("data"), inputs.get("model")
    if data is None:
        point, label = open_world_clusters(params.synthetic_classes, params.synthetic_samples, out.rng("problem"))
        image = torch.from_numpy(point)
    else:
        image, label = to_tensor(data["image"]), data["label"].to_numpy().astype(np.int64)
        image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    train_index, test_index = _split(label, params, out.seed)
    kept, dropped = with_partners(label[test_index])
    test_index = test_index[kept]
    names, own = np.unique(label[train_index], return_inverse=True)
    if len(names) < 2 or np.bincount(own).max() < 2:
        raise InputError("data['label']", expected="two classes or more to train on, with pairs", got=f"{len(names)}")
    network, fresh = _network(model, image, params)
    train = image[train_index].to(out.device), torch.from_numpy(own.astype(np.int64)).to(out.device)
    trained = train_every_mode(network.to(out.device), train, image[test_index], params, fresh, out)
    modes = [mode.name for mode in training_modes(params)]
    seeds = range(params.seeds)
    embedding = {mode: [torch.as_tensor(trained[f"{mode}_{s}"]["embedding"]) for s in seeds] for mode in modes}
    history = np.array([[trained[f"{mode}_{s}"]["history"] for s in seeds] for mode in modes])
    if data is not None:
        for mode in modes:
            network.load_state_dict(states(trained, mode))
            out.model(network, name=mode)
    return Judged(embedding, torch.from_numpy(label[test_index]), test_index, dropped,
                  None if data is None else data["image"], history)  # fmt: skip


def _network(model: nn.Module | None, image: Tensor, params: Params) -> tuple[nn.Module, bool]:
    """The backbone, and whether all its weights are drawn anew."""
    if model is None:
        return multilayer_perceptron(int(image[0].numel()), params.width, params.embedding_size), True
    network = embedding_network(model, params.embedding_size)
    width = embed(network, image[:2]).shape[1]  # now, not after the first training
    if width != params.embedding_size:
        got = f"{width} outputs after its last linear layer was given {params.embedding_size}"
        raise InputError("model", expected="a classifier whose last linear layer makes its output", got=got)
    return network, params.initialization == "fresh"


def _split(label: np.ndarray, params: Params, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to judge by. Open: the first classes in order of their labels, as is the custom of CUB and Cars."""
    if params.split == "closed":
        fractions = {"train": 1 - params.test_fraction, "test": params.test_fraction}
        parts = split_indices(label, fractions, seed=seed, argument="data")
        return parts["train"], parts["test"]
    names = np.unique(label)
    count = round(len(names) * (1 - params.test_fraction))
    if min(count, len(names) - count) < 2:
        raise InputError(
            "data['label']", expected="at least two classes to train on and two others to judge by",
            got=f"{len(names)} classes at test_fraction={params.test_fraction:g}", hint="split='closed' judges by other samples.",
        )  # fmt: skip
    train = label < names[count]
    return np.flatnonzero(train), np.flatnonzero(~train)
