"""What a classifier says about samples, written while it is computed, and the report of it; shared by this family.

Everything per sample depends on that sample alone and is written batch by batch, so that data larger than memory pass
through. Metrics are sums over the samples: accuracy with Wilson's interval, mean negative log likelihood in nats with
Student's t interval, and the expected calibration error over 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from workbench import (
    Bar,
    HeatMap,
    Histogram,
    ImageGrid,
    InputError,
    Metric,
    Out,
    OutArray,
    Output,
    ReliabilityDiagram,
    Report,
    Result,
    Table,
)
from workbench.toolkit import (
    binned_calibration_error,
    mean_interval,
    predict,
    reliability_bins,
    to_tensor,
    wilson_interval,
)

BINS = 15
MISTAKES, SHOWN_MISTAKES = 24, 12
CONFUSION_CLASSES = 2000
"""Above this many classes the confusion matrix is left out."""
LISTED_CLASSES = 30
"""Rows of the table of classes; the hardest ones come first."""

OUTPUTS = (
    Output("logit", ("sample", "class"), "float32", "scores before softmax"),
    Output("prediction", ("sample",), "int64", "class of the largest logit"),
    Output("confidence", ("sample",), "float64", "largest softmax probability"),
    Output("predicted_count", ("class",), "int64", "samples predicted as this class"),
    Output("feature", ("sample", "feature"), "float32", "what the classifier's head receives", optional=True),
    Output("label", ("sample",), "int64", "true class", optional=True),
    Output("correct", ("sample",), "bool", "whether the prediction is the label", optional=True),
    Output("sample_loss", ("sample",), "float64", "-log softmax probability of the label", unit="nat", optional=True),
    Output("class_count", ("class",), "int64", "samples of this class", optional=True),
    Output("class_accuracy", ("class",), "float64", "share of them predicted right; NaN for none", optional=True),
    Output("class_accuracy_lower", ("class",), "float64", "lower end of its 95 % Wilson interval", optional=True),
    Output("class_accuracy_upper", ("class",), "float64", "upper end of its 95 % Wilson interval", optional=True),
    Output("confusion", ("true_class", "predicted_class"), "int64", "number of samples", optional=True),
    Output("bin_count", ("bin",), "int64", "samples in this bin of confidence", optional=True),
    Output("bin_confidence", ("bin",), "float64", "their mean confidence", optional=True),
    Output("bin_accuracy", ("bin",), "float64", "share of them predicted right", optional=True),
    Output("bin_accuracy_lower", ("bin",), "float64", "lower end of its 95 % Wilson interval", optional=True),
    Output("bin_accuracy_upper", ("bin",), "float64", "upper end of its 95 % Wilson interval", optional=True),
    Output("mistake_image", ("mistake", "channel", "y", "x"), "float32", "pictures most surely wrong", optional=True),
    Output("mistake_sample", ("mistake",), "int64", "their position along `sample`", optional=True),
    Output("mistake_caption", ("mistake",), "str", "true class, prediction and confidence", optional=True),
)


def score_logits(logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction (sample,), confidence (sample,) and log probabilities (sample, class) of logits, in float64."""
    exact = (logit.cpu() if logit.device.type == "mps" else logit).double()  # mps has no float64
    log_probability = exact.log_softmax(dim=1)
    best, prediction = log_probability.max(dim=1)
    return prediction, best.exp(), log_probability


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Number of samples of each true class (rows) predicted as each class (columns): (class, class) int64."""
    return np.bincount(label * classes + prediction, minlength=classes**2).reshape(classes, classes)


def most_confident_mistakes(correct: np.ndarray, confidence: np.ndarray, count: int = MISTAKES) -> np.ndarray:
    """Positions of at most `count` wrong samples, the most confident first; ties in order of appearance."""
    wrong = np.flatnonzero(~correct)
    return wrong[np.argsort(-confidence[wrong], kind="stable")[:count]]


def class_names(model: nn.Module, data: Any, classes: int) -> list[str]:
    """Names of the classes: the model's, else those of the data's coordinate `class`, else the numbers."""
    for names in (getattr(model, "classes", ()), data.coords["class"].values if "class" in data.coords else ()):
        if len(names) == classes and len(set(names)) == classes:
            return [str(name) for name in names]
    return [str(index) for index in range(classes)]


def class_count(model: nn.Module, image: Any) -> int:
    """How many logits the model gives, found out on the first picture."""
    _, logit, _ = next(predict(model, image[:1]))
    if logit.ndim != 2:
        raise InputError("model", expected="logits (sample, class)", got=f"shape {tuple(logit.shape)}")
    return int(logit.shape[1])


def assess(model: nn.Module, image: Any, label: Any, out: Out, *, batch_size: int, names: Sequence[str]) -> None:
    """Run the model over all samples and write `OUTPUTS` but features; without labels, only what needs none.

    Args:
        model: maps pictures in 0..1 to logits, on the run's device.
        image: (sample, channel, y, x), read lazily slice by slice.
        label: (sample,) or None.
        out: where to write.
        batch_size: samples per forward pass.
        names: one per class.

    Raises:
        InputError: the model returns another number of classes, or a label is none of them.
    """
    logit = declare(model, image, label, out, names=names)[0]
    whole = slice(0, len(image))
    part = assess_block(
        model, image, label, whole, {"logit": logit},
        classes=len(names), batch_size=batch_size, dtype=out.dtype, progress=out.progress,
    )  # fmt: skip
    finish([part], image, label, out, names=names)


def declare(
    model: nn.Module, image: Any, label: Any, out: Out, *, names: Sequence[str], feature_layer: str | None = None
) -> tuple[OutArray, ...]:
    """Check the labels and declare what `assess_block` writes: logits, and features of a layer where one is named.

    Raises:
        InputError: a label is no class, or features are not vectors.
    """
    count, classes = len(image), len(names)
    truth = _truth(label)
    if truth is not None and truth.size and not 0 <= truth.min() <= truth.max() < classes:
        raise InputError("label", expected=f"classes 0..{classes - 1}", got=f"{truth.min()}..{truth.max()}")
    out.coordinate("class", list(names))
    logit = out.array("logit", (count, classes))
    if feature_layer is None:
        return (logit,)
    _, _, activation = next(predict(model, image[:1], layers=(feature_layer,), inputs=True))
    shape = tuple(activation[feature_layer].shape)
    if len(shape) != 2:
        raise InputError(
            "feature_layer", expected="a layer that receives (sample, feature)", got=f"{feature_layer!r}, "
            f"which receives shape {shape}",
        )  # fmt: skip
    return logit, out.array("feature", (count, shape[1]))


def assess_block(
    model: nn.Module,
    image: Any,
    label: Any,
    block: slice,
    arrays: Mapping[str, OutArray],
    *,
    classes: int,
    batch_size: int,
    dtype: torch.dtype,
    progress: Callable[[float, float, str], None],
    feature_layer: str | None = None,
) -> dict[str, np.ndarray]:
    """Run the model over the samples of one block, write logits and features, and return what is small per sample.

    Args:
        model: maps pictures in 0..1 to logits.
        image: (sample, channel, y, x), of all blocks.
        label: (sample,) or None, of all blocks.
        block: which samples.
        arrays: `logit` and, with a layer, `feature`.
        classes: number of logits.
        batch_size: samples per forward pass, counted from the start of the block.
        dtype: precision policy of the run.
        progress: called with samples done, samples in all and a word, after every batch.
        feature_layer: the layer whose input is stored as `feature`.

    Returns:
        prediction, confidence and, with labels, sample_loss: (sample,) each.

    Raises:
        InputError: the model returns another number of classes, or NaN.
    """
    size = block.stop - block.start
    truth = None if label is None else _truth(label[block])
    found = {"prediction": np.empty(size, dtype=np.int64), "confidence": np.empty(size)}
    if truth is not None:
        found["sample_loss"] = np.empty(size)
    half = dtype if dtype in (torch.float16, torch.bfloat16) else None
    layers = () if feature_layer is None else (feature_layer,)
    batches = predict(model, image[block], batch_size=batch_size, dtype=half, layers=layers, inputs=True)
    for here, logit, activation in batches:
        region = slice(block.start + here.start, block.start + here.stop)
        _check_logit(logit, region, classes)
        logit = logit.float()
        arrays["logit"][region] = logit
        for feature in activation.values():
            arrays["feature"][region] = feature.float()
        predicted, sure, log_probability = score_logits(logit)
        found["prediction"][here], found["confidence"][here] = predicted.cpu().numpy(), sure.cpu().numpy()
        if truth is not None:
            chosen = torch.from_numpy(truth[here]).to(log_probability.device)[:, None]
            found["sample_loss"][here] = -log_probability.gather(1, chosen)[:, 0].cpu().numpy()
        progress(region.stop, len(image), "predicting")
    return found


def finish(
    parts: Sequence[Mapping[str, np.ndarray]], image: Any, label: Any, out: Out, *, names: Sequence[str]
) -> None:
    """Join what the blocks found, in their order, and write the rest of `OUTPUTS`.

    Every figure is made here from all samples at once, so it does not depend on how they were split.
    """
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    prediction, confidence = found["prediction"], found["confidence"]
    out.write("prediction", prediction)
    out.write("confidence", confidence)
    out.write("predicted_count", np.bincount(prediction, minlength=len(names)))
    truth = _truth(label)
    if truth is not None:
        out.write("label", truth)
        out.write("sample_loss", found["sample_loss"])
        _write_judgement(truth, prediction, confidence, names, out)
        _write_mistakes(image, truth, prediction, confidence, names, out)


def _truth(label: Any) -> np.ndarray | None:
    return None if label is None else to_tensor(label, dtype=torch.int64).numpy()


def _check_logit(logit: Tensor, region: slice, classes: int) -> None:
    if logit.ndim != 2 or logit.shape[1] != classes:
        raise InputError("model", expected=f"logits (sample, {classes})", got=f"shape {tuple(logit.shape)}")
    if not bool(torch.isfinite(logit).all()):
        bad = int((~torch.isfinite(logit)).any(1).nonzero()[0]) + region.start
        raise InputError("model", expected="finite logits", got=f"NaN or infinity at sample {bad}")


def _write_judgement(
    truth: np.ndarray, prediction: np.ndarray, confidence: np.ndarray, names: Sequence[str], out: Out
) -> None:
    """What was right: per sample, per class, per bin of confidence, and what was taken for what."""
    classes, correct = len(names), prediction == truth
    hits, counts = np.bincount(truth[correct], minlength=classes), np.bincount(truth, minlength=classes)
    low, high = wilson_interval(hits, counts)
    out.write("correct", correct)
    out.write("class_count", counts)
    with np.errstate(invalid="ignore"):
        out.write("class_accuracy", hits / counts)
    out.write("class_accuracy_lower", low)
    out.write("class_accuracy_upper", high)
    if classes <= CONFUSION_CLASSES:
        out.coordinate("true_class", list(names))
        out.coordinate("predicted_class", list(names))
        out.write("confusion", confusion_matrix(truth, prediction, classes))
    bins = reliability_bins(confidence, correct, n_bins=BINS)
    out.write("bin_count", bins.count)
    out.write("bin_confidence", bins.confidence)
    out.write("bin_accuracy", bins.accuracy)
    out.write("bin_accuracy_lower", bins.accuracy_lower)
    out.write("bin_accuracy_upper", bins.accuracy_upper)


def _write_mistakes(
    image: Any, truth: np.ndarray, prediction: np.ndarray, confidence: np.ndarray, names: Sequence[str], out: Out
) -> None:
    worst = most_confident_mistakes(prediction == truth, confidence)
    if not len(worst):
        return
    pictures = torch.cat([to_tensor(image[index : index + 1]).float().cpu() for index in worst.tolist()])
    out.write("mistake_image", pictures)
    out.write("mistake_sample", worst)
    captions = [f"{names[truth[i]]} → {names[prediction[i]]} ({confidence[i]:.2f})" for i in worst]
    out.write("mistake_caption", captions)


def assessment_report(result: Result, *, what: str = "samples") -> Report:
    """Summary, metrics, tables and views of what `assess` wrote.

    Args:
        result: the stored run.
        what: how the summary calls the samples.
    """
    if "label" not in result:
        return _report_without_labels(result, what)
    correct, confidence = result["correct"].values, result["confidence"].values
    loss = mean_interval(result["sample_loss"].values)
    hits, count = int(correct.sum()), int(correct.size)
    low, high = (float(bound) for bound in wilson_interval(hits, count))
    calibration = binned_calibration_error(confidence, correct, n_bins=BINS)
    names = [str(name) for name in result["logit"]["class"].values]
    accuracy = result["class_accuracy"].values
    hardest = int(np.nanargmin(accuracy))
    summary = f"{hits / count:.2%} of {count} {what} are classified correctly (95 % interval {low:.1%} to {high:.1%})"
    summary += f"; NLL {loss.value:.4g} nats, ECE {calibration:.4f}."
    if hits < count and np.nanmax(accuracy) > accuracy[hardest]:
        summary += f" Hardest class: {names[hardest]} ({accuracy[hardest]:.1%} of {int(result['class_count'][hardest])})"
        summary += f"{_worst_confusion(result, names)}."
    metrics = [
        Metric(name="accuracy", value=hits / count, direction="higher", interval=(low, high),
               description="share of samples whose largest logit is the label's"),
        Metric(name="negative_log_likelihood", value=loss.value, unit="nat", direction="lower",
               interval=loss.bounds if count > 1 else None, description="mean of -log softmax probability of the label"),
        Metric(name="expected_calibration_error", value=calibration, direction="lower",
               description=f"mean gap between confidence and accuracy over {BINS} bins of equal width"),
        Metric(name="overconfidence", value=float(confidence.mean() - correct.mean()), direction="neutral",
               description="mean confidence less accuracy; positive: surer than right"),
        Metric(name="worst_class_accuracy", value=float(accuracy[hardest]), direction="higher",
               interval=(float(result["class_accuracy_lower"][hardest]), float(result["class_accuracy_upper"][hardest])),
               description=f"of class {names[hardest]}; its interval does not account for picking the worst"),
    ]
    return Report(
        summary=summary,
        metrics=metrics,
        tables=(_class_table(result, names),),
        views=_views(result, len(names)),
        notes=(
            f"The ECE of {count} samples is biased upwards, the more so the fewer there are; calibration methods report "
            "debiased errors.",
        ),
    )


def _worst_confusion(result: Result, names: Sequence[str]) -> str:
    if "confusion" not in result:
        return ""
    confused = result["confusion"].values.copy()
    np.fill_diagonal(confused, 0)
    true, predicted = np.unravel_index(confused.argmax(), confused.shape)
    times = int(confused[true, predicted])
    return f"; most frequent confusion: {names[true]} taken for {names[predicted]} ({times} of {confused.sum()} errors)"


def _class_table(result: Result, names: Sequence[str]) -> Table:
    accuracy, count = result["class_accuracy"].values, result["class_count"].values
    low, high = result["class_accuracy_lower"].values, result["class_accuracy_upper"].values
    predicted = result["predicted_count"].values
    order = [index for index in np.argsort(accuracy, kind="stable") if count[index]][:LISTED_CLASSES]
    rows = tuple(
        (names[i], int(count[i]), int(predicted[i]), *(round(float(v[i]), 4) for v in (accuracy, low, high)))
        for i in order
    )
    present = int((count > 0).sum())
    caption = "" if len(order) == present else f"The {len(order)} hardest of {present} classes."
    columns = ("class", "samples", "predicted", "accuracy", "95 % from", "to")
    return Table(title="Classes, the hardest first", columns=columns, rows=rows, caption=caption)


def _views(result: Result, classes: int) -> tuple[Any, ...]:
    views: list[Any] = []
    if "confusion" in result:
        views.append(HeatMap(title="Confusion", z="confusion", x="predicted_class", y="true_class",
                             annotate=classes <= 20, z_label="samples"))
    views += [
        ReliabilityDiagram(
            title="Reliability",
            confidence="bin_confidence",
            accuracy="bin_accuracy",
            count="bin_count",
            accuracy_lower="bin_accuracy_lower",
            accuracy_upper="bin_accuracy_upper",
        ),
        Histogram(title="Confidence of right and wrong predictions", values=("confidence",), by="correct",
                  x_label="confidence", log_y=True),
    ]
    if "mistake_image" in result:
        views.append(_mistake_grid(result["mistake_image"].sizes["channel"]))
    return tuple(views)


def _mistake_grid(channels: int) -> ImageGrid:
    """Grey and RGB as they are; of other numbers of channels, those that a picture can show."""
    shown: dict[int, Any] = {1: {}, 3: {}, 2: {"channel": 0}}
    part = "" if channels in (1, 3) else (" Shown: channel 0." if channels == 2 else " Shown: channels 0, 1 and 2.")
    return ImageGrid(
        title="Most confident mistakes",
        images=("mistake_image",),
        column="mistake",
        labels="mistake_caption",
        limit=SHOWN_MISTAKES,
        select=shown.get(channels, {"channel": [0, 1, 2]}),
        caption=f"True class → prediction (confidence), the most confident first.{part}",
    )


def _report_without_labels(result: Result, what: str) -> Report:
    confidence, count = result["confidence"].values, result["predicted_count"].values
    names = [str(name) for name in result["logit"]["class"].values]
    usual = int(count.argmax())
    mean = mean_interval(confidence)
    return Report(
        summary=f"{len(confidence)} {what} without labels: mean confidence {mean.value:.3f}; most often predicted is "
        f"{names[usual]} ({count[usual] / count.sum():.1%}).",
        metrics=(
            Metric(name="mean_confidence", value=mean.value, interval=mean.bounds if len(confidence) > 1 else None,
                   description="mean largest softmax probability"),
        ),
        views=(
            Bar(title="Predictions", y=("predicted_count",), x="class", y_label="samples"),
            Histogram(title="Confidence", values=("confidence",), x_label="confidence"),
        ),
        notes=("Without labels nothing can be said about accuracy or calibration.",),
    )
