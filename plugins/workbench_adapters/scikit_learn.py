"""Any calibrator of scikit-learn, on stored logits, as a method: `SklearnCalibrator`; the example is Platt scaling.

Pedregosa et al. (2011), Scikit-learn: Machine Learning in Python, JMLR 12. The classifier is not at hand, only its
logits; so they are handed to scikit-learn as a fitted classifier whose decision function returns what it is given, and
`CalibratedClassifierCV` around a `FrozenEstimator` calibrates it. The probabilities are the library's own, to the last
bit. Around it the adapter puts the family's evaluation: disjoint fit and report rows, temperature scaling beside it,
metrics with intervals, reliability diagrams.

Wrapping another one takes a few lines:

    class SklearnIsotonic(SklearnCalibrator):
        id = "calibration.sklearn_isotonic"
        title = "Isotonic calibration one class against the rest, as scikit-learn does it"

        def estimator(self, params, classifier, rows):
            return CalibratedClassifierCV(classifier, method="isotonic", ensemble=False, cv=rows)

Any estimator with `fit(logit, label)` and `predict_proba(logit)` will do, for example a `LogisticRegression` on the logits.

scikit-learn fits from arrays in memory, so the logits of the fit samples must fit there, in double precision; more of them than
`most_fit_logits` are refused before anything is fitted. The samples to judge by are read in blocks, however many they are.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from torch import Tensor
from workbench import InputError, Inputs, Out, Output, Paper, Report, Result, Scatter

from workbench_adapters.library import LibraryMethod, refusals
from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS, Samples


class GivenLogits(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose inputs are its logits (sample, class); for two classes the decision is their difference."""

    def __init__(self, n_classes: int = 2) -> None:
        self.n_classes = n_classes

    @property
    def classes_(self) -> np.ndarray:
        """0 to n_classes - 1."""
        return np.arange(self.n_classes)

    def __sklearn_is_fitted__(self) -> bool:
        """Always: there is nothing to learn."""
        return True

    def fit(self, logit: np.ndarray, label: np.ndarray | None = None) -> GivenLogits:
        """Nothing to do."""
        return self

    def decision_function(self, logit: np.ndarray) -> np.ndarray:
        """(sample, class), or (sample,) for two classes."""
        return logit if self.n_classes > 2 else logit[:, 1] - logit[:, 0]

    def predict(self, logit: np.ndarray) -> np.ndarray:
        """The class of the largest logit."""
        return np.asarray(logit).argmax(axis=1)


class AllRows:
    """A cross-validator with one fold that is trained and calibrated on all rows: right for a frozen classifier only."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows twice."""
        yield np.arange(len(X)), np.arange(len(X))

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """1."""
        return 1


class SklearnCalibrator(LibraryMethod):
    """A calibrator of scikit-learn on stored logits. Subclasses set id and title and make the estimator."""

    library = "scikit-learn"
    most_fit_logits: ClassVar[int] = 250_000_000
    """Samples x classes that may be fitted on (2 GB in double precision, of which scikit-learn makes copies)."""
    paper: ClassVar[Paper | None] = Paper(
        title="Scikit-learn: Machine Learning in Python",
        authors="Pedregosa et al.",
        year=2011,
        venue="JMLR 12",
        code="scikit-learn/scikit-learn (BSD-3-Clause)",
    )
    Params = EvaluationParams
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("confidence_before", ("sample",), "float64", "largest uncalibrated probability of each report sample"),
        Output("confidence_after", ("sample",), "float64", "calibrated probability of the same class"),
    )

    @abc.abstractmethod
    def estimator(self, params: Any, classifier: FrozenEstimator, rows: AllRows) -> Any:
        """A scikit-learn estimator, not yet fitted, that turns logits (sample, class) into probabilities.

        Args:
            params: of the run.
            classifier: the frozen classifier whose inputs are its logits.
            rows: for `CalibratedClassifierCV(..., cv=rows)`: every fit row calibrates, and none is split off.
        """

    def run(self, inputs: Inputs, params: Any, out: Out) -> None:
        """Fit on the fit rows and judge on the others, beside temperature scaling."""

        def fit(samples: Samples) -> Any:
            entries = len(samples.label) * samples.classes
            if entries > self.most_fit_logits:
                raise InputError(
                    "fit_fraction" if inputs.get("fit") is None else "fit",
                    expected=f"fit samples with at most {self.most_fit_logits:,} logits, which {self.library} holds in memory",
                    got=f"{len(samples.label):,} samples of {samples.classes:,} classes ({entries:,} logits)",
                    hint="Fit on fewer samples, or set `most_fit_logits` in a subclass if there is memory for more.",
                )
            return fit_estimator(self, params, samples.logit, samples.label)

        name = self.id.partition(".")[2]
        parts, calibrate = recalibrate(inputs, params, out, name=name, fit=fit)
        before, after = [], []
        for _, logit in parts.report.blocks():
            confidence, top = torch.softmax(logit, dim=1).max(dim=1)
            before.append(confidence)
            after.append(calibrate(logit).gather(1, top[:, None])[:, 0])
        out.write("confidence_before", torch.cat(before))
        out.write("confidence_after", torch.cat(after))

    def report(self, result: Result) -> Report:
        """What the calibrator changes."""
        return evaluation_report(
            result,
            main=self.id.partition(".")[2],
            summary=f"{self.title}.",
            views=(
                Scatter(
                    title="Confidence before and after",
                    x="confidence_before",
                    y="confidence_after",
                    x_label="probability of the predicted class before",
                    y_label="of the same class after",
                    identity=True,
                    caption="Points below the line: confidence taken back. One point for each report sample.",
                ),
            ),
        )


def fit_estimator(method: SklearnCalibrator, params: Any, logit: Tensor, label: Tensor) -> Any:
    """The method's estimator fitted on logits float64 (sample, class): a map from logits to probabilities.

    Raises:
        InputError: a class has no fit sample, or scikit-learn refuses.
    """
    classes = logit.shape[1]
    absent = sorted(set(range(classes)) - set(label.tolist()))
    if absent:
        raise InputError(
            "fit",
            expected="fit samples of every class, because scikit-learn calibrates the classes it sees only",
            got=f"none of {', '.join(map(str, absent[:10]))}",
        )
    with refusals("fit", method.library):
        estimator = method.estimator(params, FrozenEstimator(GivenLogits(classes)), AllRows())
        estimator.fit(logit.cpu().numpy(), label.cpu().numpy())

    def calibrate(rows: Tensor) -> Tensor:
        return torch.as_tensor(estimator.predict_proba(rows.cpu().numpy()), dtype=rows.dtype, device=rows.device)

    return calibrate


class SklearnSigmoid(SklearnCalibrator):
    """A sigmoid of each class's logit, fitted one against the rest, and renormalised (Platt 1999; Zadrozny, Elkan 2002)."""

    id = "calibration.sklearn_sigmoid"
    title = "Platt scaling one class against the rest, as scikit-learn does it, beside temperature scaling"
    version = "2"
    paper = Paper(
        title="Probabilistic Outputs for Support Vector Machines and Comparisons to Regularized Likelihood Methods",
        authors="Platt",
        year=1999,
        venue="Advances in Large Margin Classifiers",
        code="scikit-learn/scikit-learn (BSD-3-Clause)",
    )

    def estimator(self, params: EvaluationParams, classifier: FrozenEstimator, rows: AllRows) -> CalibratedClassifierCV:
        """scikit-learn's calibrated classifier."""
        return CalibratedClassifierCV(classifier, method="sigmoid", ensemble=False, cv=rows)
