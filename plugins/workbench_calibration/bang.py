"""Does averaging a pretrained and a fine-tuned model pay on shifted data, at which share, and with which fine-tuning loss?

WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903) interpolates the two models' weights; BANG (Lin et al. 2023, Spurious Feature
Diversification Improves Out-of-distribution Generalization, arXiv 2309.17230, ICLR 2024) fine-tunes with label smoothing, Mixup
or both, so that the fine-tuned model, less sure of itself, does not outvote the other. What averaging gains are often samples
that BOTH models get wrong (FalseFalseTrue): their mistakes come from different spurious features and do not add up.

- `model` and `finetuned`: both are given; `data` (in distribution) and `shifted` are judged on.
- `model` and `data`: a part of `data` fine-tunes the model with every loss; the rest and `shifted` are judged on.
- `data` alone, grey digits: MultiColorMNIST is made of them (`multicolor`). Pairs of networks from different weights are averaged
  in their outputs; and a network that saw colours without meaning is fine-tuned on colours that tell the class.
- Nothing: the theory alone (`bang_theory`), which every run includes.

Faithful: the interpolation, every floating entry and the head; output ensembles; the outcome cells; recipe of wise-ft for
fine-tuning. Different: learning rates change by epoch, so the 500 warm-up steps are `warmup` epochs. Not known for the paper: the
strengths of label smoothing and Mixup and MultiColorMNIST's geometry (ours). Alpha = 0.5 is what is reported, and the alpha that
is best in distribution on a part of its own; never the best on shifted data. CLIP models: give the module that
`zero_shot.zero_shot_classifier` builds as `model`.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from workbench import DataRole, InputError, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import Recipe, predict_all, split_indices, to_tensor

from workbench_calibration.bang_evaluation import Domains, judge_pair, write_judged
from workbench_calibration.bang_multicolor import MultiColor
from workbench_calibration.bang_report import report
from workbench_calibration.bang_theory import KINDS, certain_votes, spurious_votes, voting_accuracy
from workbench_calibration.bang_training import FinetuningLoss, Trainings, finetuning
from workbench_calibration.wise import BatchNorm, check_states, logit_layer


class Params(BaseParams):
    """Parameters."""

    alphas: tuple[float, ...] = Field(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        min_length=1,
        max_length=101,
        description="Shares of the fine-tuned model; 0, 0.5 and 1 are always there",
    )
    losses: tuple[FinetuningLoss, ...] = Field(
        ("ce", "ls", "mixup", "mixup_ls"),
        min_length=1,
        description="Fine-tuning losses: ce is WiSE-FT, mixup_ls is BANG",
    )
    ls_eps: float = Field(0.1, gt=0, lt=1, description="Label smoothing (paper's not known)")
    mixup_a: float = Field(1.0, gt=0, le=100, description="Mixup's Beta(a, a) (paper's not known)")
    bn: BatchNorm = Field(
        "interpolate", description="Batch norms' running statistics; re-estimate uses images of `data`"
    )
    taus: tuple[float, ...] = Field(
        (1.0, 2.0, 3.0, 5.0),
        min_length=1,
        max_length=20,
        description="Temperatures of the fine-tuned head, for diagnosis",
    )
    epochs: int = Field(10, ge=1, le=10_000, description="Epochs of fine-tuning (wise-ft 10)")
    learning_rate: float = Field(
        1e-3, gt=0, le=10, description="AdamW's peak (wise-ft 1e-3; 3e-5 for CLIP on ImageNet)"
    )
    batch_size: int = Field(128, ge=2, le=65_536, description="Batch size (wise-ft 128; 512 for CLIP on ImageNet)")
    weight_decay: float = Field(0.1, ge=0, le=10, description="Of AdamW (wise-ft 0.1)")
    warmup: int = Field(1, ge=0, le=100, description="Epochs of warm-up, at most epochs - 1 (wise-ft 500 steps)")
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of the gradient (wise-ft 1)")
    seeds: int = Field(3, ge=1, le=100, description="Fine-tunings of each loss; pairs of networks on MultiColorMNIST")
    test_fraction: float = Field(0.3, gt=0, lt=1, description="Share of `data` to judge by")
    selection_fraction: float = Field(
        0.3, gt=0, lt=1, description="Share of that to choose alpha by, and for nothing else"
    )
    p: tuple[float, ...] = Field(
        (0.70, 0.75, 0.80, 0.85, 0.90),
        min_length=1,
        max_length=20,
        description="MultiColorMNIST: chance that a patch is random",
    )
    pre_samples: int = Field(300, ge=10, description="MultiColorMNIST: digits that the pretrained network has seen")
    pre_epochs: int = Field(60, ge=1, le=10_000, description="MultiColorMNIST: its epochs")
    n_bins: int = Field(15, ge=2, le=200, description="Bins of the calibration error")
    theory_p: float = Field(0.9, ge=0, le=1, description="Theory: chance that a spurious feature is random")
    theory_classes: int = Field(10, ge=2, le=1000, description="Theory: classes")
    theory_invariant: int = Field(5, ge=1, le=50, description="Theory: invariant features of each model")
    theory_spurious: int = Field(20, ge=1, le=200, description="Theory: spurious features of each model")
    theory_draws: int = Field(20_000, ge=100, le=10_000_000, description="Theory: samples drawn")

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if any(not 0 <= alpha <= 1 for alpha in self.alphas):
            raise ValueError("alphas are shares in [0, 1]")
        if any(not 0 <= p <= 1 for p in self.p):
            raise ValueError("p holds chances in [0, 1]")
        if any(not 0.1 <= tau <= 100 for tau in self.taus):
            raise ValueError("taus are temperatures in [0.1, 100]")
        return self

    @property
    def grid(self) -> list[float]:
        """All alphas, ascending."""
        return sorted({0.0, 0.5, 1.0, *self.alphas})


class BalancedAveraging(Method):
    """Average a pretrained and a fine-tuned model in weights and outputs; fine-tune so that they are balanced."""

    id = "calibration.bang"
    title = (
        "Averaging a pretrained and a fine-tuned model: what it gains on shifted data, at which share, after which loss"
    )
    paper = Paper(
        title="Spurious Feature Diversification Improves Out-of-distribution Generalization",
        authors="Lin et al.",
        year=2023,
        arxiv="2309.17230",
        venue="ICLR 2024",
        code="none; WiSE-FT: mlfoundations/wise-ft (MIT)",
    )
    Params = Params
    inputs = {
        "data": DataRole(
            "images in distribution, to fine-tune on and to judge by; grey digits to make MultiColorMNIST of",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
            optional=True,
        ),
        "shifted": DataRole(
            "shifted images to judge by; a coordinate `domain` over `sample` names the data set of each",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
            optional=True,
        ),
        "model": ModelRole("the pretrained classifier, head included", optional=True),
        "finetuned": ModelRole("the same after fine-tuning: equal names and shapes of all weights", optional=True),
    }
    outputs = (
        Output("theory_accuracy", ("theory", "shared_invariant", "shared_spurious"), "float64", "accuracy in the voting model"),
        Output("theory_gain", ("shared_invariant", "shared_spurious"), "float64", "weight-space less output-space average"),
        Output("logit", ("predictor", "sample", "class"), "float32", "logits (seed 0); wise: alpha 0.5", optional=True),
        Output("label", ("sample",), "int64", "true class", optional=True),
        Output("domain", ("sample",), "str", "data set of the sample", optional=True),
        Output("sample_index", ("sample",), "int64", "row in `data` or `shifted`", optional=True),
        Output("is_shifted", ("dataset",), "bool", "whether it counts in the mean over shifted sets", optional=True),
        Output("confidence", ("predictor", "sample"), "float32", "largest probability (seed 0)", optional=True),
        Output("shifted_confidence", ("predictor", "shifted_sample"), "float32", "the same on shifted sets", optional=True),
        Output("accuracy", ("predictor", "dataset", "seed"), "float64", "accuracy", optional=True),
        Output("confidence_mean", ("predictor", "dataset", "seed"), "float64", "mean largest probability", optional=True),
        Output("ece", ("predictor", "dataset", "seed"), "float64", "calibration error, equal widths", optional=True),
        Output("negative_log_likelihood", ("predictor", "dataset", "seed"), "float64", "NLL", "nats", optional=True),
        Output("curve_accuracy", ("loss", "alpha", "dataset", "seed"), "float64", "accuracy along alpha", optional=True),
        Output("curve_confidence", ("loss", "alpha", "dataset", "seed"), "float64", "confidence along alpha", optional=True),
        Output("curve_ood_accuracy", ("loss", "alpha"), "float64", "mean over shifted sets and seeds", optional=True),
        Output("best_alpha", ("loss", "seed"), "float64", "best in distribution, on the selection part", optional=True),
        Output("cooled_accuracy", ("space", "loss", "tau", "dataset", "seed"), "float64",
               "accuracy of the average with the fine-tuned head divided by tau", optional=True),
        Output("outcome", ("loss", "sample"), "uint8", "bits 4, 2, 1: pretrained, fine-tuned, alpha 0.5 right", optional=True),
        Output("outcome_share", ("loss", "dataset", "seed", "outcome_kind"), "float64", "their shares", optional=True),
        Output("outcome_mean", ("loss", "dataset", "outcome_kind"), "float64", "means over seeds", optional=True),
        Output("point_id", ("point",), "float64", "accuracy in distribution, by loss and alpha", optional=True),
        Output("point_ood", ("point",), "float64", "mean accuracy over shifted sets", optional=True),
        Output("point_loss", ("point",), "str", "fine-tuning loss", optional=True),
        Output("point_alpha", ("point",), "float64", "alpha", optional=True),
        Output("image", ("sample", "channel", "y", "x"), "uint8", "MultiColorMNIST test images", optional=True),
        Output("patch_color", ("sample", "patch"), "uint8", "colour of each patch", optional=True),
        Output("permutation", ("patch", "class"), "uint8", "colour that a patch gives to a class", optional=True),
        Output("randomisation", ("dataset",), "float64", "p of each data set", optional=True),
        Output("example_image", ("split", "class", "channel", "y", "x"), "uint8", "one a class; black: none", optional=True),
        Output("pair_accuracy", ("dataset", "pair", "member"), "float64", "two networks and their mean logits", optional=True),
        Output("pair_mean", ("dataset", "member"), "float64", "means over pairs", optional=True),
        Output("pair_fft", ("dataset", "pair"), "float64", "both wrong, their mean right", optional=True),
    )  # fmt: skip

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """The theory, then whichever experiment the inputs allow."""
        _check(inputs)
        write_theory(params, out)
        if inputs.get("data") is None:
            return
        if inputs.get("model") is None:
            MultiColor(inputs["data"], params, out).run()
        else:
            _own_models(inputs, params, out)

    def report(self, result: Result) -> Report:
        """What averaging gains and why, along alpha and by fine-tuning loss."""
        return report(result)


def write_theory(params: Params, out: Out) -> None:
    """Accuracy of one model, of averaged outputs and of averaged weights, by how many features the two models share."""
    invariant, spurious = params.theory_invariant, params.theory_spurious
    shared_invariant = np.arange(invariant + 1)
    shared_spurious = np.unique(np.linspace(0, spurious, min(spurious, 10) + 1).round().astype(np.int64))
    table = np.zeros((len(KINDS), len(shared_invariant), len(shared_spurious)))
    for k, kind in enumerate(KINDS):
        for j, nso in enumerate(shared_spurious):
            rng = out.rng("theory")  # the same for all, so that differences are not of the draw
            drawn = spurious_votes(
                kind, params.theory_p, params.theory_classes, spurious, int(nso), params.theory_draws, rng
            )
            for i, nvo in enumerate(shared_invariant):
                votes = drawn.copy()
                votes[:, 0] += certain_votes(kind, invariant, int(nvo))
                table[k, i, j] = voting_accuracy(votes)
        out.progress(k + 1, len(KINDS), "theory")
    out.coordinate("theory", list(KINDS))
    out.coordinate("shared_invariant", shared_invariant)
    out.coordinate("shared_spurious", shared_spurious)
    out.write("theory_accuracy", table)
    out.write("theory_gain", table[2] - table[1])


def finetuning_recipe(params: Params) -> Recipe:
    """That of wise-ft, with the warm-up in epochs."""
    return Recipe(
        epochs=params.epochs,
        batch_size=params.batch_size,
        optimizer="adamw",
        learning_rate=params.learning_rate,
        weight_decay=params.weight_decay,
        schedule="cosine",
        warmup_epochs=min(params.warmup, params.epochs - 1),
        gradient_clip=params.gradient_clip,
    )


def _check(inputs: Inputs) -> None:
    has = {role for role in ("data", "shifted", "model", "finetuned") if inputs.get(role) is not None}
    if has and "data" not in has:
        raise InputError("data", expected="images in distribution beside the other inputs", got="none")
    if "model" not in has and has & {"shifted", "finetuned"}:
        raise InputError("model", expected="the pretrained model", got=f"none, but {', '.join(sorted(has))}")
    if "finetuned" in has:
        check_states(inputs["model"].state_dict(), inputs["finetuned"].state_dict())


def _own_models(inputs: Inputs, params: Params, out: Out) -> None:
    """Judge given models, or fine-tune the given one with every loss first."""
    data, model, given = inputs["data"], inputs["model"], inputs.get("finetuned")
    label = data["label"].to_numpy().astype(np.int64)
    logit, _ = predict_all(model, to_tensor(data["image"][:2]))
    largest = max(int(label.max()), int(inputs["shifted"]["label"].max()) if inputs.get("shifted") is not None else 0)
    if logit.ndim != 2 or logit.shape[1] <= largest:
        got = f"shape {tuple(logit.shape)}"
        raise InputError("model", expected=f"a logit for each of {largest + 1} classes", got=got)
    logit_layer(model, to_tensor(data["image"][:2]))  # the head that is cooled: without one nothing is trained in vain
    test = 1.0 if given is not None else params.test_fraction
    shares = {"selection": test * params.selection_fraction, "id": test * (1 - params.selection_fraction)}
    shares |= {} if given is not None else {"train": 1 - test}
    parts = split_indices(label, shares, seed=out.seed, argument="data")
    domains = _domains(data, label, parts, inputs.get("shifted"))
    pre = {key: value.detach().clone() for key, value in model.state_dict().items()}
    train_index = parts.get("train", parts["selection"])
    train = to_tensor(data["image"][train_index])
    if given is not None:
        judged = [{"given": judge_pair(model, pre, given.state_dict(), domains, params.grid, params, train)}]
        write_judged(judged, domains, params.grid, params, out)
        return
    seeds, losses = range(params.seeds), list(dict.fromkeys(params.losses))
    work, everything = Trainings(out, params.seeds * len(losses)), []
    target = torch.from_numpy(label[train_index]).to(out.device)
    for seed in seeds:
        found: dict[str, Any] = {}
        for loss in losses:
            recipe, transform = finetuning(loss, finetuning_recipe(params), smoothing=params.ls_eps, alpha=params.mixup_a,
                                           classes=int(logit.shape[1]))  # fmt: skip
            tuned = copy.deepcopy(model).requires_grad_(True)
            work.train(f"{loss}_{seed}", tuned, train.to(out.device), target, recipe, transform, f"fine-tuning {seed}")
            found[loss] = judge_pair(model, pre, tuned.state_dict(), domains, params.grid, params, train)
            if seed == 0:
                out.model(tuned, name=f"ft_{loss}")
                tuned.load_state_dict(_halfway(model, pre, tuned, params, train).state_dict())
                out.model(tuned, name=f"wise_{loss}")
        everything.append(found)
    write_judged(everything, domains, params.grid, params, out)


def _halfway(model: nn.Module, pre: dict[str, Tensor], tuned: nn.Module, params: Params, image: Tensor) -> nn.Module:
    from workbench_calibration.wise import average

    return average(model, pre, tuned.state_dict(), 0.5, params.bn, image)


def _domains(data: Any, label: np.ndarray, parts: dict[str, np.ndarray], shifted: Any) -> Domains:
    """The held-out part of `data`, and the data sets in `shifted`."""
    names, image, labels, index = ["id"], [to_tensor(data["image"][parts["id"]])], [label[parts["id"]]], [parts["id"]]
    owner = [np.zeros(len(parts["id"]), dtype=np.int64)]
    if shifted is not None:
        own = (
            shifted["domain"].to_numpy().astype(str)
            if "domain" in shifted
            else np.full(shifted.sizes["sample"], "shifted")
        )
        for name in dict.fromkeys(own.tolist()):
            rows = np.flatnonzero(own == name)
            names.append(name if name != "id" else "id (shifted)")
            image.append(to_tensor(shifted["image"][rows]).to(image[0].dtype))
            labels.append(shifted["label"].to_numpy()[rows].astype(np.int64))
            index.append(rows)
            owner.append(np.full(len(rows), len(names) - 1))
    if len({tuple(one.shape[1:]) for one in image}) > 1 or (
        shifted is not None and shifted["image"].dtype != data["image"].dtype
    ):
        raise InputError(
            "shifted", expected=f"{data['image'].dtype} images of shape {tuple(image[0].shape[1:])}, as in `data`",
            got=f"{shifted['image'].dtype}, {tuple(shifted['image'].shape[1:])}",
        )  # fmt: skip
    selection = to_tensor(data["image"][parts["selection"]]), label[parts["selection"]]
    return Domains(names, np.array([False] + [True] * (len(names) - 1)), torch.cat(image), np.concatenate(labels),
                   np.concatenate(owner), np.concatenate(index), selection)  # fmt: skip
