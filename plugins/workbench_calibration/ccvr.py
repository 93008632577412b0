"""How much accuracy does a skewed federation lose in its classifier head, and can statistics alone repair it? CCVR.

Luo et al. (2021), No Fear of Heterogeneity: Classifier Calibration for Federated Learning with Non-IID Data, arXiv
2106.05001, NeurIPS 2021. After federated training every client sends, per class, count, mean and covariance of the final
model's features. The server pools them exactly, draws equally many virtual features of every class from a Gaussian and
goes on training the linear head on these; the extractor does not change. "Calibration" is of the classifier's bias here.

Two ways to use it. With `statistics` alone: the calibrated head, from what clients sent; no image is needed. With `data`
and `model`: the whole experiment, for each concentration of the Dirichlet partition: federated training, CCVR on plain
features and after ReLU and Tukey's power (the paper's), and comparators: a head trained on all real features (`oracle`),
diagonal covariances, class means, tau-normalisation.

The published settings (100 rounds, learning rate 0.01, power 0.5) are known from memory only; how the head is trained and
the number of draws are our choice. The defaults can be waited for. MOON (Li, He, Song 2021, arXiv 2103.16257) contrasts
the features that the head receives; its authors put a projection of two layers in between, which the model may bring along.
FedAvgM's server momentum of 0.9 (Hsu, Qi, Brown 2019, arXiv 1909.06335) mends most of what skew costs by itself on small
problems such as digits: less than the published gain of two points is left for CCVR there.
Features are what the last linear layer receives. Batch norm statistics are averaged like weights, which skewed clients break:
prefer group norm. Means and covariances of few samples reveal these: see `least_count`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field
from workbench import DataRole, InputError, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams

from workbench_calibration.ccvr_experiment import Experiment, calibrated_heads, write_heads
from workbench_calibration.ccvr_report import report
from workbench_calibration.ccvr_statistics import Head, Statistics
from workbench_calibration.federated import Base


class Params(BaseParams):
    """Parameters."""

    clients: int = Field(10, ge=2, le=100, description="Clients (paper 10)")
    concentrations: tuple[float, ...] = Field(
        (0.5, 0.1, 0.05),
        min_length=1,
        max_length=8,
        description="Dirichlet parameters; small: skewed (paper 0.5, 0.1, 0.05)",
    )
    seeds: int = Field(1, ge=1, le=100, description="Partitions and trainings for each concentration")
    base: Base = Field("fedavg", description="How the server averages")
    proximal: float = Field(0.01, gt=0, le=10, description="Weight of fedprox (0.001 to 0.1 is usual)")
    server_momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of fedavgm")
    contrast: float = Field(1.0, gt=0, le=100, description="Weight mu of moon (0.1, 1, 5 and 10 were tried by its authors)")
    contrast_temperature: float = Field(0.5, gt=0, le=10, description="Temperature of moon (its authors 0.5)")
    head_penalty: float = Field(
        0.0, ge=0, le=10, description="Holds each client's head near the global one (paper off)"
    )
    rounds: int = Field(10, ge=1, le=10_000, description="Rounds (paper 100)")
    local_epochs: int = Field(10, ge=1, le=1000, description="Epochs of each client in a round (paper 10)")
    batch_size: int = Field(64, ge=2, le=65_536, description="Batch size, clients and head (paper 64)")
    learning_rate: float = Field(0.05, gt=0, le=10, description="Clients' SGD with momentum 0.9 (paper 0.01)")
    weight_decay: float = Field(1e-5, ge=0, le=1, description="Of the clients' SGD (paper 1e-5)")
    new_weights: bool = Field(True, description="Start from new weights; otherwise from the model's own")
    test_fraction: float = Field(0.25, gt=0, lt=1, description="Share of `data` kept for testing")
    draws: int = Field(500, ge=2, le=100_000, description="Virtual features of each class (not known for the paper)")
    draw_curve: tuple[int, ...] = Field((10, 50, 200, 500), max_length=10, description="Numbers of draws to compare")
    power: float = Field(0.5, gt=0, le=1, description="Tukey's power of `ccvr_tukey` (paper 0.5)")
    tau: float = Field(1.0, ge=0, le=2, description="Of the tau-normalised comparator")
    shrinkage: float = Field(0.0, ge=0, le=0.5, description="Towards spheres, for classes of fewer than 2 d samples")
    least_count: int = Field(1, ge=1, description="A client withholds classes of fewer samples (privacy)")
    head_learning_rate: float = Field(0.01, gt=0, le=10, description="SGD with momentum 0.9 on the head (ours)")
    head_epochs: int = Field(10, ge=1, le=1000, description="Epochs on the virtual features (ours)")


class CCVR(Method):
    """Calibrate the head of a federated classifier with virtual features."""

    id = "calibration.ccvr"
    title = "Repairs the head of a classifier trained on skewed clients from class statistics, without their data"
    paper = Paper(
        title="No Fear of Heterogeneity: Classifier Calibration for Federated Learning with Non-IID Data",
        authors="Luo et al.",
        year=2021,
        arxiv="2106.05001",
        venue="NeurIPS 2021",
    )
    Params = Params
    inputs = {
        "statistics": DataRole(
            "what clients sent: per client and class the number of samples, mean and covariance (divisor N - 1) of their "
            "features, and the head to calibrate",
            variables={
                "count": ("client", "class"),
                "mean": ("client", "class", "feature"),
                "covariance": ("client", "class", "feature", "feature_other"),
                "weight": ("class", "feature"),
                "bias": ("class",),
            },
            optional=True,
        ),
        "data": DataRole(
            "images to split over simulated clients",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
            optional=True,
        ),
        "model": ModelRole("classifier whose last linear layer is its head", optional=True),
    }
    outputs = (
        Output("partition", ("client", "class"), "int64", "samples of each client and class"),
        Output("class_mean", ("class", "feature"), "float64", "pooled mean"),
        Output("class_cov", ("class", "feature", "feature_other"), "float64", "pooled covariance"),
        Output("between_share", ("class",), "float64", "part of its trace that lies between clients' means"),
        Output("jitter", ("class",), "float64", "added to its diagonal before drawing"),
        Output("virtual_feature", ("class", "draw", "feature"), "float32", "drawn features"),
        Output("head_weight", ("stage", "class", "feature"), "float64", "of `ccvr_tukey`: for transformed features"),
        Output("head_bias", ("stage", "class"), "float64", "bias of the heads"),
        Output("virtual_accuracy", ("stage",), "float64", "on fresh virtual features, classes balanced; NaN: other features"),
        Output("logit", ("stage", "sample", "class"), "float32", "logits of the test samples", optional=True),
        Output("label", ("sample",), "int64", "their labels", optional=True),
        Output("sample_index", ("sample",), "int64", "their row in `data`", optional=True),
        Output("accuracy", ("stage", "concentration", "seed"), "float64", "test accuracy", optional=True),
        Output("class_accuracy", ("stage", "class"), "float64", "test accuracy by class; NaN: none", optional=True),
        Output("round_accuracy", ("concentration", "seed", "round"), "float64", "test accuracy in training", optional=True),
        Output("draw_accuracy", ("draw_count",), "float64", "test accuracy of CCVR by number of draws", optional=True),
        Output("cka", ("layer", "client", "client_other"), "float64", "linear CKA of the last local models", optional=True),
        Output("head_norm", ("client", "class"), "float64", "norms of the rows of their heads", optional=True),
        Output("projection_x", ("point",), "float64", "first principal component of features", optional=True),
        Output("projection_y", ("point",), "float64", "second one", optional=True),
        Output("projection_group", ("point",), "str", "class, and real or virtual", optional=True),
    )  # fmt: skip

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Calibrate from statistics, or train a federation and calibrate it."""
        if inputs.get("statistics") is not None:
            if inputs.get("data") is not None or inputs.get("model") is not None:
                raise InputError("statistics", expected="no data and no model beside them", got="both")
            clients, head = read_statistics(inputs["statistics"])
            write_heads(clients, calibrated_heads(clients, head, params, out, "statistics"), params, out)
            return
        for role in ("data", "model"):
            if inputs.get(role) is None:
                raise InputError(role, expected="statistics, or data and model", got="none")
        Experiment(inputs, params, out).run()

    def report(self, result: Result) -> Report:
        """Accuracy before and after, what the clients' heads and features look like, how Gaussian features are."""
        return report(result)


def read_statistics(data: Any) -> tuple[Statistics, Head]:
    """The role `statistics`, checked."""
    count, mean, cov = (data[name].to_numpy() for name in ("count", "mean", "covariance"))
    if (count < 0).any() or (count != np.round(count)).any() or not count.any():
        raise InputError(
            "statistics['count']", expected="numbers of samples, some above 0", got=f"{count.min()} at least"
        )
    if not np.allclose(cov, np.swapaxes(cov, -1, -2), atol=1e-6 * max(float(np.abs(cov).max()), 1e-300)):
        raise InputError("statistics['covariance']", expected="symmetric matrices", got="one that is not")
    clients = Statistics(count.astype(np.int64), mean.astype(np.float64), cov.astype(np.float64))
    return clients, Head(data["weight"].to_numpy().astype(np.float64), data["bias"].to_numpy().astype(np.float64))
