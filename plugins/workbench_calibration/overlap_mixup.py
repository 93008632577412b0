"""Is a temperature enough where classes overlap, or must calibration be trained in? ERM against Mixup, before and after.

Chidambaram and Ge (2023), On the Limitations of Temperature Scaling for Distributions with Overlaps, arXiv 2306.00740,
ICLR 2024. For labels that are noisy or ambiguous. A network that interpolates its training labels is as certain inside an
overlap as outside; one temperature then has to serve both, and what it takes away goes to all classes instead of to the
two that overlap. Mixup averages neighbouring labels during training instead.

Without inputs a synthetic problem with known class probabilities is drawn and a small network trained on it; with `data`
and `model` the model's architecture is trained from new weights on images whose training labels are made noisy, each
class being mistaken for one fixed other class. Every training is scored raw and after temperature scaling.

Faithful: the d-Mixup objective, Adam, the calibration share taken from the (noisy) training set, the data sets. Different:
the temperature is fitted to convergence; what the authors' code does (20 small steps from T = 1, far from the optimum) is
stage `ts_paper_code`. Networks are scored in eval mode, where the authors' code leaves batch norm in train mode. The
default sizes can be waited for; the paper's are 200 epochs, batches of 500, all images, 500 directions and 5 seeds.
With `erm` and `mixup`, logits of the same samples by two classifiers that were trained elsewhere, nothing is trained: both are
scored raw and after a temperature fitted on a share of the samples.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from scipy import special
from torch import nn
from workbench import (
    DataRole,
    InputError,
    Inputs,
    Method,
    ModelRole,
    Out,
    Output,
    Paper,
    Report,
    Result,
)
from workbench import Params as BaseParams
from workbench.toolkit import (
    Recipe,
    accuracy,
    average_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    negative_log_likelihood,
    predict_all,
    reinitialise,
    reliability_diagram,
    split_indices,
    to_tensor,
)

from workbench_calibration.overlap_problems import (
    Float,
    PairDisks,
    PairGaussians,
    Problem,
    TwoGaussians,
    add_label_noise,
    draw_noise_map,
    local_average,
    mean_divergence,
    nearest_divergence,
    nearest_label_logits,
    noisy_posterior,
)
from workbench_calibration.overlap_report import report
from workbench_calibration.overlap_training import (
    Split,
    logit_gap,
    multilayer_perceptron,
    paper_code_temperature,
    train_every_mode,
)
from workbench_calibration.samples import Samples, read_samples
from workbench_calibration.temperature import fit_temperature

STAGES = ("raw", "ts", "ts_paper_code")
METRICS = ("error", "negative_log_likelihood", "ece_width_l1", "ace_unweighted", "mce", "kl_to_posterior")
PREDICTORS = ("nearest label + temperature", "local average", "nearest label, limit", "0.5 log k")
REFERENCE_PER_CLASS = 100
REFERENCE_DRAWS = 3
GAP_RADII = np.linspace(0.0, 10.0, 10)
GIVEN = {"logit": ("sample", "class"), "probability": ("sample", "class")}


class Params(BaseParams):
    """Parameters."""

    problem: Literal["pairs_gaussian", "pairs_disks", "gaussians"] = Field(
        "pairs_gaussian", description="Synthetic problem, used without `data`; `gaussians` is the paper's"
    )
    classes: int = Field(20, ge=2, le=100, description="Classes of `pairs_*`, even")
    overlap: float = Field(0.5, ge=0, le=1, description="Share of the samples of `pairs_*` that lie in a shared region")
    separation: float = Field(0.1, gt=0, le=1, description="mu of `gaussians`, per coordinate (paper 0.25, 0.1, 0.05)")
    samples_per_class: int | None = Field(
        None, ge=10, le=100_000, description="Synthetic training samples (pairs 60, gaussians 2000 as in the paper)"
    )
    width: int = Field(256, ge=4, le=4096, description="Hidden units of both layers of the synthetic problems' network")
    label_noise: float = Field(0.25, ge=0, le=0.6, description="Share of labels of `data` that turn into another class")
    mix_sizes: tuple[int, ...] = Field(
        (2, 5), min_length=1, max_length=5, description="Points mixed, d + 1; 2 is Mixup (paper 2; also 3 and 5)"
    )
    alpha: float = Field(1.0, gt=0, le=10, description="Dirichlet concentration of the weights (paper 1)")
    epochs: int = Field(200, ge=1, le=10_000, description="Epochs of Adam (paper 200)")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Of Adam, constant (paper 1e-3)")
    batch_size: int = Field(200, ge=2, le=65_536, description="Batch size (paper 500)")
    seeds: int = Field(3, ge=1, le=100, description="Trainings of each mode from other weights (paper 5 on Gaussians)")
    calibration_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the training set (or of given logits) to fit T on (paper 0.1)"
    )
    test_fraction: float = Field(0.5, gt=0, lt=1, description="Share of `data` to judge by, with its clean labels")
    train_samples: int | None = Field(
        1000, ge=20, description="At most so many images of `data` to train on (paper all)"
    )
    n_bins: int = Field(15, ge=2, le=200, description="Bins of equal width (paper 15)")
    gap_points: int = Field(40, ge=1, le=100_000, description="Training points of the logit gap analysis (paper all)")
    gap_directions: int = Field(50, ge=1, le=10_000, description="Points on each sphere around them (paper 500)")
    class_counts: tuple[int, ...] = Field(
        (2, 4, 10, 20, 50),
        min_length=1,
        max_length=20,
        description="Numbers of classes of the untrained comparison, even",
    )


class OverlapMixup(Method):
    """Train plainly and by d-Mixup, scale by temperature, compare with the truth."""

    id = "calibration.overlap_mixup"
    title = "Where classes overlap: is temperature scaling enough, or must the training mix samples?"
    paper = Paper(
        title="On the Limitations of Temperature Scaling for Distributions with Overlaps",
        authors="Chidambaram and Ge",
        year=2023,
        arxiv="2306.00740",
        venue="ICLR 2024",
        code="2014mchidamb/temp-scaling-limitations (MIT)",
    )
    Params = Params
    inputs = {
        "data": DataRole(
            "images with clean labels; the training labels are made noisy",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
            optional=True,
        ),
        "model": ModelRole("classifier whose architecture is trained; its weights do not matter", optional=True),
        "erm": DataRole("labels with logits (or probabilities) of a plainly trained classifier, to judge it without training",
                        variables={"label": ("sample",)}, optional_variables=GIVEN, optional=True),
        "mixup": DataRole("the same samples by a classifier trained with mixed ones", variables={"label": ("sample",)},
                          optional_variables=GIVEN, optional=True),
    }  # fmt: skip
    outputs = (
        Output("logit", ("mode", "seed", "sample", "class"), "float32", "logits of the test samples"),
        Output("probability", ("mode", "seed", "sample", "class"), "float32", "after converged temperature scaling"),
        Output("label", ("sample",), "int64", "true label of the test samples"),
        Output("label_noisy", ("sample",), "int64", "the same with fresh noise of the training's kind", optional=True),
        Output("noise_map", ("class",), "int64", "class that each class is mistaken for", optional=True),
        Output("sample_index", ("sample",), "int64", "row of the test samples in `data` (or `erm`)", optional=True),
        Output("posterior", ("sample", "class"), "float64", "true class probabilities (with noise, for `data`)", optional=True),
        Output("temperature", ("mode", "seed"), "float64", "fitted to convergence"),
        Output("temperature_paper_code", ("mode", "seed"), "float64", "as the paper's repository fits it"),
        Output("train_accuracy", ("mode", "seed"), "float64", "on the (noisy) training labels", optional=True),
        Output("value", ("target", "mode", "stage", "seed", "metric"), "float64", "scores on the test samples"),
        Output("best_likelihood", ("target",), "float64", "NLL of the true probabilities", "nats", optional=True),
        Output("logit_gap", ("mode", "radius"), "float64", "own logit less the largest other, around training points, seed 0",
               optional=True),
        Output("reliability_confidence", ("stage", "mode", "bin"), "float64", "mean confidence, all seeds together"),
        Output("reliability_accuracy", ("stage", "mode", "bin"), "float64", "accuracy in the bin; NaN: empty"),
        Output("reliability_count", ("stage", "mode", "bin"), "int64", "samples in the bin"),
        Output("reference_kl", ("predictor", "class_count"), "float64", "KL of untrained predictors on `pairs_disks`", "nats"),
    )  # fmt: skip

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Draw or split the data, train every mode, scale, score."""
        _check(inputs, params)
        if inputs.get("erm") is not None:
            judge_given(inputs, params, out)
            return
        network, split, extra = (_synthetic if inputs.get("data") is None else _images)(inputs, params, out)
        sizes = {"erm": 1} | {f"mixup_{size}": size for size in sorted(set(params.mix_sizes))}
        out.coordinate("mode", list(sizes))
        out.coordinate("stage", list(STAGES))
        out.coordinate("metric", list(METRICS))
        targets = extra.pop("targets")
        for name, values in extra.items():
            out.write(name, values)
        label = split.test[1].cpu().numpy()
        out.write("label", label)
        out.write("posterior", targets[-1][2])
        write_references(params, out)
        recipe = Recipe(epochs=params.epochs, batch_size=params.batch_size, optimizer="adam", weight_decay=0.0,
                        learning_rate=params.learning_rate, schedule="constant")  # fmt: skip
        classes = targets[-1][2].shape[1]
        trained = train_every_mode(
            network, split, sizes, params.seeds, recipe, alpha=params.alpha, classes=classes, out=out
        )
        write_scores(trained, list(sizes), split, targets, params, out)
        write_gaps(network, trained, list(sizes), split, params, out)
        if inputs.get("model") is not None:
            for mode in sizes:
                out.model(_restored(network, trained[f"{mode}_0"]["state"]), name=mode)

    def report(self, result: Result) -> Report:
        """Scores by training and stage, reliability, logit gap, and what theory says."""
        return report(result)


def judge_given(inputs: Inputs, params: Params, out: Out) -> None:
    """Score logits that were trained elsewhere; of their samples the labels are known and the true probabilities are not."""
    parts = {name: read_samples(name, inputs[name], out.device) for name in ("erm", "mixup")}
    label, classes = parts["erm"][1], parts["erm"][0].classes
    if parts["mixup"][0].classes != classes or not torch.equal(parts["mixup"][1], label):
        raise InputError("mixup", expected="the samples and classes of erm, in the same order", got="other labels or classes")
    shares = {"calibration": params.calibration_fraction, "test": 1 - params.calibration_fraction}
    rows = split_indices(label.cpu().numpy(), shares, seed=out.seed, argument="erm")
    none = label[:0]
    split = Split((none, none), *((none, label[rows[name]]) for name in ("calibration", "test")))
    trained = {
        f"{name}_0": {"logit": given.read(rows["test"]).cpu().numpy(),
                      "calibration_logit": given.read(rows["calibration"]).cpu().numpy()}
        for name, (given, _, _) in parts.items()
    }  # fmt: skip
    out.coordinate("mode", list(parts))
    out.coordinate("stage", list(STAGES))
    out.coordinate("metric", list(METRICS))
    test_label = split.test[1].cpu().numpy()
    out.write("label", test_label)
    out.write("sample_index", rows["test"])
    write_references(params, out)
    one = params.model_copy(update={"seeds": 1})
    write_scores(trained, list(parts), split, [("given", test_label, np.eye(classes)[test_label])], one, out)


def write_references(params: Params, out: Out) -> None:
    """KL of the predictors without training on `pairs_disks` against the number of classes, mean of 3 draws."""
    counts = params.class_counts
    out.coordinate("predictor", list(PREDICTORS))
    out.coordinate("class_count", list(counts))
    table = np.zeros((len(PREDICTORS), len(counts)))
    rng = out.rng("references")
    for column, k in enumerate(counts):
        problem = PairDisks(k, params.overlap)
        for _ in range(REFERENCE_DRAWS):
            train, held, test = (problem.draw(REFERENCE_PER_CLASS, rng) for _ in range(3))
            logit = torch.from_numpy(nearest_label_logits(train, held.point, k))
            temperature = fit_temperature(Samples.of(logit, torch.from_numpy(held.label))).temperature
            nearest = special.softmax(nearest_label_logits(train, test.point, k) / temperature, axis=1)
            table[0, column] += mean_divergence(test.posterior, nearest) / REFERENCE_DRAWS
            average = local_average(train, test.point, k)
            table[1, column] += mean_divergence(test.posterior, average) / REFERENCE_DRAWS
        table[2:, column] = nearest_divergence(k, params.overlap), np.log(k) / 2
    out.write("reference_kl", table)


def write_scores(
    trained: dict[str, dict[str, Any]], modes: list[str], split: Split, targets: list[Any], params: Params, out: Out
) -> None:
    """Temperatures, scores of every stage against every target, reliability diagrams.

    `targets` holds (name, label, true probabilities); the last one is what the training labels follow.
    """
    calibration, train = (part[1].cpu() for part in (split.calibration, split.train))
    seeds = range(params.seeds)
    logit = np.array([[trained[f"{mode}_{seed}"]["logit"] for seed in seeds] for mode in modes])
    temperature = np.ones((len(STAGES), len(modes), len(seeds)))
    train_accuracy = np.empty(temperature.shape[1:])
    for m, mode in enumerate(modes):
        for seed in seeds:
            fit_logit = torch.as_tensor(trained[f"{mode}_{seed}"]["calibration_logit"]).double()
            temperature[1, m, seed] = fit_temperature(Samples.of(fit_logit, calibration)).temperature
            temperature[2, m, seed] = paper_code_temperature(fit_logit, calibration)
            if len(train):
                hits = torch.as_tensor(trained[f"{mode}_{seed}"]["train_logit"]).argmax(1) == train
                train_accuracy[m, seed] = float(hits.double().mean())
    probability = special.softmax(logit[None].astype(np.float64) / temperature[..., None, None], axis=-1)
    value = [
        np.moveaxis(
            [[[scores(p, label, truth, params.n_bins) for p in row] for row in stage] for stage in probability], 0, 1
        )
        for _, label, truth in targets
    ]
    out.coordinate("target", [name for name, _, _ in targets])
    out.coordinate("seed", list(seeds))
    out.write("logit", logit)
    out.write("probability", probability[1])
    out.write("temperature", temperature[1])
    out.write("temperature_paper_code", temperature[2])
    out.write("value", np.array(value))
    if len(train):  # given logits have no training, and of their labels the true probabilities are not known
        out.write("train_accuracy", train_accuracy)
        out.write("best_likelihood", np.array([negative_log_likelihood(truth, label) for _, label, truth in targets]))
    label = np.tile(targets[-1][1], len(seeds))
    bins = [[reliability_diagram(p.reshape(-1, p.shape[-1]), label, n_bins=params.n_bins) for p in stage]
            for stage in probability]  # fmt: skip
    for name in ("confidence", "accuracy", "count"):
        out.write(f"reliability_{name}", np.array([[getattr(one, name) for one in row] for row in bins]))


def scores(probability: Float, label: np.ndarray, truth: Float, n_bins: int) -> list[float]:
    """The `METRICS`. `ace_unweighted` is the plain mean of the gaps of non-empty bins, not the adaptive ECE."""
    return [
        1 - accuracy(probability, label),
        negative_log_likelihood(probability, label),
        expected_calibration_error(probability, label, n_bins=n_bins),
        average_calibration_error(probability, label, n_bins=n_bins),
        maximum_calibration_error(probability, label, n_bins=n_bins),
        mean_divergence(truth, probability),
    ]


def write_gaps(
    network: nn.Module, trained: dict[str, dict[str, Any]], modes: list[str], split: Split, params: Params, out: Out
) -> None:
    """How fast each mode's certainty falls with the distance from its training points."""
    point, label = (part[: params.gap_points] for part in split.train)
    gaps = [
        logit_gap(_restored(network, trained[f"{mode}_0"]["state"]).to(out.device), point, label, GAP_RADII,
                  params.gap_directions, out.generator("directions"))
        for mode in modes
    ]  # fmt: skip
    out.coordinate("radius", GAP_RADII)
    out.write("logit_gap", np.array(gaps))


def _restored(network: nn.Module, state: dict[str, Any]) -> nn.Module:
    model = copy.deepcopy(network).eval()
    model.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
    return model


def _check(inputs: Inputs, params: Params) -> None:
    given = [name for name in ("erm", "mixup") if inputs.get(name) is not None]
    if len(given) == 1:
        raise InputError("mixup" if given == ["erm"] else "erm", expected="logits of both trainings", got=f"only {given[0]}")
    if given and (inputs.get("data") is not None or inputs.get("model") is not None):
        raise InputError("erm", expected="no data and no model beside given logits", got="both")
    if (inputs.get("data") is None) != (inputs.get("model") is None):
        missing = "model" if inputs.get("model") is None else "data"
        raise InputError(missing, expected="both data and model, or neither (a synthetic problem)", got="one of them")
    if min(params.mix_sizes) < 2 or max(params.mix_sizes) > 20:
        raise InputError("mix_sizes", expected="numbers of points from 2 to 20", got=str(params.mix_sizes))
    counts = {"class_counts": params.class_counts}
    if not given and inputs.get("data") is None and params.problem != "gaussians":
        counts["classes"] = (params.classes,)
    for name, values in counts.items():
        if any(k < 2 or k % 2 for k in values):
            raise InputError(name, expected="even numbers from 2: classes come in pairs", got=str(values))


def _synthetic(inputs: Inputs, params: Params, out: Out) -> tuple[nn.Module, Split, dict[str, Any]]:
    rng = out.rng("problem")
    problem: Problem
    if params.problem == "gaussians":
        problem, train_size, test_size = TwoGaussians(params.separation), 2000, 500
    else:
        kind = PairDisks(params.classes, params.overlap)
        problem = kind if params.problem == "pairs_disks" else PairGaussians(params.classes, params.overlap, rng)
        train_size, test_size = 60, 50
    train, test = (problem.draw(n, rng) for n in (params.samples_per_class or train_size, test_size))
    point, label = torch.from_numpy(train.point).float(), torch.from_numpy(train.label)
    test_pair = torch.from_numpy(test.point).float(), torch.from_numpy(test.label)
    network = multilayer_perceptron(point.shape[1], problem.classes, params.width)
    split = _calibration_split(point, label, test_pair, params, out)
    return network, split, {"targets": [("drawn", test.label, test.posterior)]}


def _images(inputs: Inputs, params: Params, out: Out) -> tuple[nn.Module, Split, dict[str, Any]]:
    data, model = inputs["data"], inputs["model"]
    label = data["label"].to_numpy().astype(np.int64)
    present = np.unique(label)
    if len(present) < 2:
        raise InputError("data['label']", expected="at least two classes", got=f"only class {present.tolist()}")
    reinitialise(copy.deepcopy(model), 0)  # now, not after the first training, if the weights cannot be drawn anew
    image = to_tensor(data["image"])
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    logit, _ = predict_all(model, image[:2])
    if logit.ndim != 2 or logit.shape[1] <= present.max():
        raise InputError(
            "model", expected=f"a logit for each of {present.max() + 1} classes", got=f"{tuple(logit.shape)}"
        )
    classes = int(logit.shape[1])
    shares = {"train": 1 - params.test_fraction, "test": params.test_fraction}
    parts = split_indices(label, shares, seed=out.seed, argument="data")
    rng = out.rng("label noise")
    chosen = np.sort(out.rng("train samples").permutation(parts["train"])[: params.train_samples])
    noise_map = np.arange(classes)
    noise_map[present] = present[draw_noise_map(len(present), rng)]
    noisy = torch.from_numpy(add_label_noise(label[chosen], noise_map, params.label_noise, rng))
    test_label = label[parts["test"]]
    fresh = add_label_noise(test_label, noise_map, params.label_noise, rng)
    split = _calibration_split(image[chosen], noisy, (image[parts["test"]], torch.from_numpy(test_label)), params, out)
    truth = noisy_posterior(test_label, noise_map, params.label_noise, classes)
    return model, split, {
        "label_noisy": fresh, "noise_map": noise_map, "sample_index": parts["test"],
        "targets": [("clean", test_label, np.eye(classes)[test_label]), ("noisy", fresh, truth)],
    }  # fmt: skip


def _calibration_split(point: Any, label: Any, test: tuple[Any, Any], params: Params, out: Out) -> Split:
    """Split the calibration share off the training set, at random as the paper, and move everything to the device."""
    fractions = {"calibration": params.calibration_fraction, "train": 1 - params.calibration_fraction}
    parts = split_indices(len(label), fractions, seed=out.seed, argument="data")
    train, calibration = ((point[parts[name]], label[parts[name]]) for name in ("train", "calibration"))
    return Split(*((x.to(out.device), y.to(out.device)) for x, y in (train, calibration, test)))
