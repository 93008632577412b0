"""Probabilities that are right for every class, not only the top one, at unchanged accuracy: h-calibration of stored logits.

Huang et al. (2025), h-Calibration: Rethinking Classifier Recalibration with Probabilistic Error-Bounded Objective, TPAMI,
arXiv 2506.17968. An order-preserving map of log-probabilities is trained with a loss that bounds the gap between predicted
probability and event frequency in every neighbourhood of the probability axis, over all classes (`h_loss`). Twelve maps
(`h_maps`) are fitted (`h_training`); the one with the best selector on the fit samples is used.

Faithful in loss, maps, optimiser, schedule, stopping and selection, with these differences: the piecewise-linear map is
built from cumulated slopes (the official one is not monotone after training and changes accuracy); the monotone network is
integrated exactly, not by quadrature; k-means starts from an exact solution instead of random centres, so a run is
deterministic; everything is float64; a map or an epoch that changes any prediction is not eligible, and that no prediction
changed is checked at the end. For attribution the selected map is also trained with cross-entropy under the same schedule and
selector: what differs between `h_calibration` and `cross_entropy` is the objective alone, except that the map was chosen by the
h-calibration fits. The standard recalibrators named in `baselines` are fitted on the same samples and judged beside it.

The official code halves the learning rate and stops by the top-label calibration error of the fit samples, not by its own loss
(`watch="top_error"`, the default). Where that error rests while the loss still falls the map stays unfinished and can be worse
than a temperature; the report says so. `watch="loss"` lets it finish.

It takes thousands of fit samples. Where one temperature suffices it is then about as good, where not it can be better. On some
hundreds it can be clearly worse (508 samples of a ResNet-56 for CIFAR-10): the report compares both on the same resamples.

Needs the fit samples in memory, in double precision, since training goes over them hundreds of times; the report samples are
read in blocks. The loss sorts all pairs of sample and class once a step and goes over them once for every class left out: the
paper's twelve maps take some six minutes of one core on 5,000 samples of 10 classes. With 100 classes a step without leaving any
out takes 0.15 s, with it a hundred times the passes: choose few maps, or `leave_one_class_out=False`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from workbench import InputError, Inputs, Method, Out, Output, Paper, Report, Result

from workbench_calibration.baselines import recalibrators
from workbench_calibration.evaluation import (
    OUTPUTS,
    UNCALIBRATED,
    Calibrator,
    EvaluationParams,
    evaluate,
)
from workbench_calibration.h_errors import FURTHER, further_errors
from workbench_calibration.h_loss import Weighting, event_gap, h_calibration_loss, sorted_events
from workbench_calibration.h_maps import CANDIDATES, make_map
from workbench_calibration.h_report import BASELINE, MAIN, TEMPERATURE, h_report
from workbench_calibration.h_training import FitTrace, Goal, LossFunction, Watched, fit_map
from workbench_calibration.ranking import RANKED, differences
from workbench_calibration.samples import INPUTS, Samples, read_parts
from workbench_calibration.temperature import fit_temperature

CLASSES_TO_LEAVE_OUT = 200
"""Up to this many classes the paper leaves each class out in turn."""
LOG_ODDS = np.linspace(-15.0, 15.0, 121)


class HCalibration(Method):
    """The best of several order-preserving maps trained with the h-calibration loss."""

    id = "calibration.h_calibration"
    title = "Calibrates every class's probability, at unchanged accuracy, with an error-bounded objective"
    version = "6"
    paper = Paper(
        title="h-Calibration: Rethinking Classifier Recalibration with Probabilistic Error-Bounded Objective",
        authors="Huang et al.",
        year=2025,
        arxiv="2506.17968",
        venue="TPAMI",
        code="WenjianHuang93/h-Calibration (MIT)",
    )
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("method_probability", ("recalibrator", "sample", "class"), "float32", "probabilities of every compared method"),
        Output("loss_history", ("candidate", "epoch"), "float64", "training loss; NaN after the stop"),
        Output("error_history", ("candidate", "epoch"), "float64", "top-label calibration error of the fit samples"),
        Output("selector_history", ("candidate", "epoch"), "float64", "selector on the fit samples; NaN: not eligible"),
        Output("selected_epoch", ("candidate",), "int64", "epoch whose parameters are kept"),
        Output("selector", ("candidate",), "float64", "selector at that epoch; infinite: no eligible epoch"),
        Output("changed_by_candidate", ("candidate",), "int64", "report samples whose prediction the candidate changes"),
        Output("selected_map", (), "str", "the candidate used"),
        Output("difference", ("recalibrator", "ranked_metric"), "float64", "metric of h_calibration less that of another method"),
        Output("difference_lower", ("recalibrator", "ranked_metric"), "float64", "lower end of its paired 95 % interval"),
        Output("difference_upper", ("recalibrator", "ranked_metric"), "float64", "upper end of it"),
        Output("further_error", ("recalibrator", "further_metric"), "float64", "errors of other norms and of distributions"),
        Output("log_odds_curve", ("recalibrator", "log_odds"), "float64", "log-odds of two classes after, by log-odds before; "
               "NaN: a map of these very classes"),
        Output("map_curve", ("log_probability",), "float64", "the selected map, if it is one curve", optional=True),
        Output("map_state", ("parameter",), "float64", "parameters of the selected map; coordinate: their names"),
        Output("fit_h_loss", ("recalibrator",), "float64", "h-calibration loss of every method on the fit samples"),
        Output("event_probability", ("event",), "float32", "calibrated p of all (fit sample, class) pairs, ascending"),
        Output("event_gap", ("event",), "float32", "windowed gap of each event after calibration"),
        Output("event_probability_before", ("event",), "float32", "uncalibrated p of all pairs, ascending"),
        Output("event_gap_before", ("event",), "float32", "windowed gap of each event before calibration"),
    )

    class Params(EvaluationParams):
        """Parameters."""

        maps: tuple[str, ...] = Field(
            CANDIDATES, min_length=1, description="Candidates, family-size: linear, pwlinear, nonlinear"
        )
        baselines: tuple[str, ...] = Field(
            ("vector_scaling", "dirichlet", "isotonic_one_vs_rest", "histogram_binning", "spline"),
            description="Standard recalibrators to compare with, beside temperature; dirichlet takes minutes for many classes",
        )
        goal: Goal = Field("top", description="What to select by: top label, classwise, or proper score (NLL)")
        window: int = Field(200, ge=2, le=100_000, multiple_of=2, description="M; a neighbourhood holds M + 1 events")
        epsilon: float = Field(1e-20, ge=0, le=0.1, description="Tolerated gap (sane: up to 0.02)")
        n_clusters: int = Field(15, ge=2, le=100, description="k-means clusters of probability (sane: 10-30)")
        weighting: Weighting = Field("cluster", description="cluster: the paper's; unweighted: an ablation")
        leave_one_class_out: bool | None = Field(
            None, description=f"Mean loss over sets without one class; None: up to {CLASSES_TO_LEAVE_OUT} classes"
        )
        epochs: int = Field(2000, ge=1, le=100_000, description="At most this many per map")
        lr: float = Field(5e-3, gt=0, le=1, description="Adam's learning rate")
        batch: int = Field(5000, ge=2, description="Samples a step (paper: 25000 for ImageNet)")
        lr_patience: int | None = Field(
            None, ge=1, description="Epochs without a better watched value before lr is halved; None: 20 (nonlinear 40)"
        )
        stop_patience: int = Field(160, ge=1, description="Epochs without a better watched value before fitting stops")
        watch: Watched = Field(
            "top_error",
            description="What both patiences follow on the fit samples: the ECE (official code), or the training loss",
        )

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit all candidates and temperature on the fit rows, select there, and judge on the report rows."""
        if len(set(params.maps)) != len(params.maps):
            raise InputError("maps", expected="distinct names", got=str(params.maps))
        known = {name: fit for name, fit in recalibrators(out.seed).items() if name != TEMPERATURE}
        if set(params.baselines) - set(known) or len(set(params.baselines)) != len(params.baselines):
            raise InputError("baselines", expected=f"distinct names out of {tuple(known)}", got=str(params.baselines))
        parts = read_parts(inputs, fit_fraction=params.fit_fraction, seed=out.seed, device=out.device)
        leave_out = leaves_classes_out(params.leave_one_class_out, parts.fit.logit.shape[1])
        if leave_out:
            check_classes("data" if inputs.get("fit") is None else "fit", parts.fit.label)
        check_window(params.window, parts.fit.label, parts.fit.logit.shape[1], leave_out)

        def h_loss(log_probability: Tensor, label: Tensor) -> Tensor:
            return h_calibration_loss(
                log_probability.exp(),
                label,
                window=params.window,
                epsilon=params.epsilon,
                n_clusters=params.n_clusters,
                leave_one_class_out=leave_out,
                weighting=params.weighting,
            )

        traces = fit_candidates(parts.fit, h_loss, params, out)
        changed = {name: _changes(trace, parts.report) for name, trace in traces.items()}
        eligible = [name for name in traces if not changed[name] and math.isfinite(traces[name].selector)]
        if not eligible:
            raise InputError(
                "maps", expected="at least one map that keeps every prediction", got=str(params.maps),
                hint="Add `linear-16` or `pwlinear-100`, which keep the order of classes by construction.",
            )
        best = min(eligible, key=lambda name: traces[name].selector)
        start = (len(params.maps) * params.epochs, (len(params.maps) + 1) * params.epochs)
        reference = fit_one(best, parts.fit, torch.nn.functional.nll_loss, params, out, *start)
        order_preserving: dict[str, Calibrator] = {
            TEMPERATURE: fit_temperature(parts.fit),
            BASELINE: reference,
            MAIN: traces[best],
            **_best_of_other_families(traces, eligible, best),
        }
        others = {name: known[name](parts.fit) for name in out.track(params.baselines, "fitting baselines")}
        calibrators = order_preserving | others
        evaluated = evaluate(out, parts, calibrators, main=MAIN, params=params, keep_all=True)
        evaluated.require_kept_predictions(MAIN)
        out.coordinate("ranked_metric", list(RANKED))
        for end, table in differences(evaluated.metrics, evaluated.resampled, MAIN).items():
            out.write("difference" if end == "value" else f"difference_{end}", table)
        out.write("selected_map", best)
        _write_traces(out, {**traces, f"{best} ({BASELINE})": reference}, [*changed.values(),
                      _changes(reference, parts.report)])
        _write_map(out, traces[best].map, order_preserving, len(others))
        fitted = {UNCALIBRATED: lambda logit: torch.softmax(logit, 1), **calibrators}
        out.coordinate("further_metric", list(FURTHER))
        out.write("further_error", further_errors(parts.report, fitted, params.n_bins))
        out.write("fit_h_loss", np.array([
            float(h_loss(calibrate(parts.fit.logit).log(), parts.fit.label)) for calibrate in fitted.values()
        ]))
        for suffix, calibrate in (("", traces[best]), ("_before", lambda logit: torch.softmax(logit, 1))):
            _, value, excess = sorted_events(calibrate(parts.fit.logit), parts.fit.label)
            out.write(f"event_probability{suffix}", value.float())
            out.write(f"event_gap{suffix}", event_gap(excess, window=params.window, epsilon=params.epsilon).float())

    def report(self, result: Result) -> Report:
        """What the objective changes beyond temperature and beyond cross-entropy."""
        return h_report(result)


def leaves_classes_out(choice: bool | None, classes: int) -> bool:
    """Step 5 of the loss: as chosen, by default for up to 200 classes."""
    return classes <= CLASSES_TO_LEAVE_OUT if choice is None else choice


def check_classes(role: str, label: Tensor) -> None:
    """Raise InputError if all samples to fit on, of a role, are of one class: without that class nothing is left."""
    present = torch.unique(label).tolist()
    if len(present) == 1:
        raise InputError(
            role,
            expected="samples of at least two classes to fit on, since the loss leaves out each class in turn",
            got=f"{len(label)} samples, all of class {present[0]}",
            hint="Give samples of every class that the classifier is used for.",
        )


def check_window(window: int, label: Tensor, classes: int, leave_out: bool) -> None:
    """Raise InputError unless the smallest set of events that the loss sees is larger than a window."""
    largest = int(torch.bincount(label).max()) if leave_out else 0
    events = (len(label) - largest) * classes
    if events <= window:
        raise InputError(
            "window",
            expected=f"fewer than the {events} events of the fit samples"
            + (" without the most frequent class" if leave_out else ""),
            got=str(window),
            hint="A fifth of the events or less is sensible.",
        )


def fit_one(
    name: str, samples: Samples, loss: LossFunction, params: HCalibration.Params, out: Out, done: int, total: int
) -> FitTrace:
    """Fit one candidate from its own seeded start; `done` of `total` epochs lie behind."""
    epochs = iter(range(done + 1, total + 1))
    patience = params.lr_patience or (40 if name.startswith("nonlinear") else 20)
    return fit_map(
        make_map(name, out.generator(name), torch.log_softmax(samples.logit, dim=1)),
        samples.logit,
        samples.label,
        loss,
        goal=params.goal,
        epochs=params.epochs,
        lr=params.lr,
        batch=params.batch,
        lr_patience=patience,
        stop_patience=params.stop_patience,
        watch=params.watch,
        generator=out.generator(f"{name} order"),
        on_epoch=lambda: out.progress(next(epochs), total, name),
    )


def fit_candidates(
    samples: Samples, loss: LossFunction, params: HCalibration.Params, out: Out
) -> dict[str, FitTrace]:
    """Fit every map; those finished before an interruption come from the checkpoint."""
    log_probability = torch.log_softmax(samples.logit, dim=1)
    kept: dict[str, Any] = dict(out.restore() or {})
    traces: dict[str, FitTrace] = {}
    for position, name in enumerate(params.maps):
        if name in kept:
            state = dict(kept[name])
            map_ = make_map(name, out.generator(name), log_probability)
            map_.load_state_dict(state.pop("map"))
            traces[name] = FitTrace(map_, **state)
            continue
        total = (len(params.maps) + 1) * params.epochs
        traces[name] = fit_one(name, samples, loss, params, out, position * params.epochs, total)
        kept[name] = {**vars(traces[name]), "map": traces[name].map.state_dict()}
        out.checkpoint(kept)
    return traces


def _changes(trace: FitTrace, samples: Samples) -> int:
    """How many predictions a fitted map changes. No label is used, so this is no selection by the report samples."""
    return sum(int((trace(logit).argmax(1) != logit.argmax(1)).sum()) for _, logit in samples.blocks())


def _best_of_other_families(traces: Mapping[str, FitTrace], eligible: list[str], best: str) -> dict[str, Calibrator]:
    others: dict[str, Calibrator] = {}
    for family in ("linear", "pwlinear", "nonlinear"):
        members = [name for name in eligible if name.startswith(f"{family}-")]
        if members and not best.startswith(f"{family}-"):
            others[f"h_{family}"] = traces[min(members, key=lambda name: traces[name].selector)]
    return others


def _write_traces(out: Out, traces: Mapping[str, FitTrace], changed: list[int]) -> None:
    epochs = max(len(trace.loss) for trace in traces.values())
    out.coordinate("candidate", list(traces))
    out.coordinate("epoch", np.arange(epochs))
    for name, field in (("loss_history", "loss"), ("error_history", "error"), ("selector_history", "selectors")):
        table = np.full((len(traces), epochs), np.nan)
        for row, trace in zip(table, traces.values(), strict=True):
            row[: len(trace.loss)] = getattr(trace, field)
        out.write(name, table)
    out.write("selected_epoch", np.array([trace.selected_epoch for trace in traces.values()]))
    out.write("selector", np.array([trace.selector for trace in traces.values()]))
    out.write("changed_by_candidate", np.array(changed))


def _write_map(out: Out, map_: nn.Module, calibrators: Mapping[str, Calibrator], others: int) -> None:
    """Curves of maps that take any number of classes, and NaN for as many `others` after them."""
    odds = torch.as_tensor(LOG_ODDS, device=out.device)
    pair = torch.nn.functional.logsigmoid(torch.stack([-odds, odds], dim=1))
    curves = [LOG_ODDS]
    for calibrate in calibrators.values():
        p = calibrate(pair).cpu().numpy()
        curves.append(np.log(np.maximum(p[:, 1], 1e-300)) - np.log(np.maximum(p[:, 0], 1e-300)))
    curves += [np.full(len(LOG_ODDS), np.nan)] * others
    out.coordinate("log_odds", LOG_ODDS)
    out.write("log_odds_curve", np.stack(curves))
    if hasattr(map_, "curve"):
        grid = np.linspace(-100.0, 0.0, 401)
        out.coordinate("log_probability", grid)
        with torch.no_grad():
            out.write("map_curve", map_.curve(torch.as_tensor(grid, device=out.device)))
    state = {name: value.detach().cpu().reshape(-1) for name, value in map_.state_dict().items()}
    out.coordinate("parameter", [f"{name}[{index}]" for name, value in state.items() for index in range(len(value))])
    out.write("map_state", torch.cat(list(state.values())))
