"""Any detector of pytorch-ood that works on features or logits, as a method: `OodDetector`; the example is its kNN.

Kirchheim, Filax, Ortmeier (2022), PyTorch-OOD: A Library for Out-of-Distribution Detection based on PyTorch, CVPR
Workshops. Scores are the library's own, to the last bit; larger means more anomalous there as here. Around it the
adapter puts what a detector must be shown beside: MSP, max-logit and energy of the same samples, with intervals and
paired differences. The detector is fitted on the role `fit` alone, which should hold the classifier's training data.

Wrapping another detector takes a few lines:

    class OodMahalanobis(OodDetector):
        id = "detection.ood_mahalanobis"
        title = "Foreign inputs lie outside the Gaussians of the training features"

        def detector(self, params, head):
            from pytorch_ood.detector import Mahalanobis
            return Mahalanobis(None)

Detectors that need the images or the whole network (ODIN, ASH, Gram, ...) are not covered.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from workbench import DataRole, InputError, Inputs, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import find_layer, last_linear, to_tensor

from workbench_adapters.library import LibraryMethod, import_library, refusals
from workbench_adapters.ood_report import ood_report, paired_auroc
from workbench_detection.logit_scores import SCORES, LogitScores, judge

BASELINES = ("msp", "max_logit", "energy")
"""Scores of the logits alone that stand beside every detector."""

BATCH = 4096
"""Samples scored at once; between two batches a run can be cancelled."""

HEAD = {"model": ModelRole("the classifier, for the weights of its last linear layer", data=None)}
"""A further role for detectors that need the classifier's head: `inputs = {**OodDetector.inputs, **HEAD}`."""

_ROLE = {"logit": ("sample", "class"), "feature": ("sample", "feature")}


class OodParams(BaseParams):
    """Parameters that every detector has; derive from it to add those of yours."""

    bootstrap: int = Field(1000, ge=100, le=100_000, description="Resamples for the confidence intervals")


class OodDetector(LibraryMethod):
    """A detector of pytorch-ood on stored features or logits. Subclasses set id and title and make the detector."""

    library = "pytorch-ood"
    requires = {"pytorch_ood": "pytorch-ood"}
    paper: ClassVar[Paper | None] = Paper(
        title="PyTorch-OOD: A Library for Out-of-Distribution Detection based on PyTorch",
        authors="Kirchheim, Filax, Ortmeier",
        year=2022,
        venue="CVPR Workshops 2022",
        code="kkirchheim/pytorch-ood (Apache-2.0)",
    )
    Params = OodParams
    inputs = {
        "fit": DataRole(
            "outputs on the classifier's training data, to fit the detector on",
            variables={"label": ("sample",)},
            optional_variables=_ROLE,
        ),
        "data": DataRole(
            "outputs on in-distribution samples the classifier was not trained on",
            variables={"logit": ("sample", "class")},
            optional_variables={"feature": ("sample", "feature")},
        ),
        "ood": DataRole(
            "outputs of the same classifier on out-of-distribution samples",
            variables={"logit": ("sample", "class")},
            optional_variables={"feature": ("sample", "feature")},
        ),
    }
    outputs = (
        *(output for output in LogitScores.outputs if output.name not in ("accuracy", "error_auroc")),
        Output("auroc_gain", ("detector",), "float64", "AUROC of the detector less that of each score; 0 for itself"),
        Output("auroc_gain_low", ("detector",), "float64", "lower end of its paired 95 % bootstrap interval"),
        Output("auroc_gain_high", ("detector",), "float64", "upper end of it"),
    )

    @abc.abstractmethod
    def detector(self, params: Any, head: nn.Linear | None) -> Any:
        """The library's detector, not yet fitted, with None in place of its model or encoder.

        Args:
            params: of the run.
            head: the classifier's last linear layer, where the class has the role of `HEAD`.
        """

    def run(self, inputs: Inputs, params: Any, out: Out) -> None:
        """Fit on `fit`, score both sets, and judge the detector beside the baselines."""
        import_library("pytorch_ood.detector", out)
        head = find_layer(inputs["model"], last_linear(inputs["model"])) if "model" in inputs else None
        detector = self.detector(params, head)  # type: ignore[arg-type]
        kind = representation(detector)
        check_roles(inputs, kind)
        out.progress(0, 1, "fitting")

        def read(role: str, variable: str) -> Tensor:
            return to_tensor(inputs[role][variable], device=out.device).float()

        with refusals("fit", self.library):
            if detector.requires_fit:
                label = to_tensor(inputs["fit"]["label"], device=out.device).long()
                getattr(detector, f"fit_{kind}s")(read("fit", kind), label)
            rows = torch.cat([read(role, kind) for role in ("data", "ood")]).split(BATCH)
            with torch.no_grad():
                parts = [getattr(detector, f"predict_{kind}s")(batch) for batch in out.track(rows, "scoring")]
        names = [self.id.partition(".")[2], *BASELINES]
        logit = torch.cat([read(role, "logit").double() for role in ("data", "ood")])
        own = torch.cat(parts).double().reshape(-1)
        scores = torch.stack([own, *(SCORES[name](logit, 1.0) for name in BASELINES)]).cpu().numpy()
        if not np.isfinite(scores[0]).all():
            raise InputError(
                "fit", expected="data that give finite scores", got="NaN or infinite scores of the detector"
            )
        sizes = [inputs[role].sizes["sample"] for role in ("data", "ood")]
        anomalous = np.repeat([False, True], sizes)
        out.coordinate("detector", names)
        out.write("score", scores)
        out.write("anomalous", anomalous)
        judge(scores, anomalous, names, params.bootstrap, out)
        write_gains(scores, anomalous, params.bootstrap, out)

    def report(self, result: Result) -> Report:
        """How well the detector separates, and what it gains over each baseline."""
        return ood_report(result)


def representation(detector: Any) -> str:
    """`feature` or `logit`: what a detector is applied to.

    Raises:
        InputError: it needs images, feature maps or several layers.
    """
    from pytorch_ood.api import FeaturesDetector, LogitsDetector

    if isinstance(detector, FeaturesDetector):
        return "feature"
    if isinstance(detector, LogitsDetector):
        return "logit"
    raise InputError(
        "detector",
        expected="a detector of pytorch-ood that works on logits or on one vector of features",
        got=type(detector).__name__,
    )


def check_roles(inputs: Inputs, kind: str) -> None:
    """Raise InputError unless every role has what the detector is applied to, and of one classifier."""
    for role in ("fit", "data", "ood"):
        if kind not in inputs[role]:
            raise InputError(
                f"{role}[{kind!r}]",
                expected=f"the {kind}s this detector works on",
                got=f"only {', '.join(map(str, inputs[role].data_vars))}",
                hint="training.evaluation stores them: features='penultimate'." if kind == "feature" else "",
            )
    dim = "feature" if kind == "feature" else "class"
    for role, name in (("fit", dim), ("ood", dim), ("ood", "class")):
        size = inputs[role].sizes.get(name)
        if size != inputs["data"].sizes[name]:
            raise InputError(
                role, expected=f"{inputs['data'].sizes[name]} entries along {name!r} as in data", got=str(size)
            )


def write_gains(scores: np.ndarray, anomalous: np.ndarray, resamples: int, out: Out) -> None:
    """Write AUROC of the first score less that of every score (detector, sample), with paired bootstrap intervals."""
    whole, drawn = paired_auroc(scores, anomalous, out.rng("paired"), resamples)
    gain = drawn[0] - drawn
    low, high = np.quantile(gain, (0.025, 0.975), axis=1)
    out.write("auroc_gain", whole[0] - whole)
    out.write("auroc_gain_low", low)
    out.write("auroc_gain_high", high)


class OodKNN(OodDetector):
    """Distance of the normalised feature to its k-th nearest training feature (Sun et al. 2022)."""

    id = "detection.ood_knn"
    title = "Foreign inputs lie far from all training features: pytorch-ood's kNN distance beside MSP and energy"
    version = "2"
    paper = Paper(
        title="Out-of-Distribution Detection with Deep Nearest Neighbors",
        authors="Sun, Ming, Zhu, Li",
        year=2022,
        arxiv="2204.06507",
        venue="ICML 2022",
        code="deeplearning-wisc/knn-ood (MIT)",
    )

    class Params(OodParams):
        """Parameters."""

        k: int = Field(50, ge=1, le=100_000, description="Which neighbour (paper: 50 for CIFAR-10, 200 for CIFAR-100)")

    def detector(self, params: Params, head: nn.Linear | None) -> Any:
        """The library's kNN detector."""
        from pytorch_ood.detector import KNN

        return KNN(None, k=params.k)


__all__: Sequence[str] = ("HEAD", "OodDetector", "OodKNN", "OodParams")
