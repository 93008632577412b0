"""Detectors of pytorch-ood as methods: the library's numbers, closed forms, and what is said when something is missing."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import workbench
import xarray as xr
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from torch import nn
from workbench.errors import InputError, RunFailedError, SkippedError
from workbench.host import Host

from workbench_adapters import library
from workbench_adapters.ood_report import paired_auroc
from workbench_adapters.pytorch_ood import HEAD, OodDetector, OodKNN, OodParams

pytest.importorskip("pytorch_ood", reason="needs the extra pytorch-ood")
FEATURES, CLASSES = 5, 3


class OodMahalanobis(OodDetector):
    id = "detection.ood_mahalanobis"
    title = "Foreign inputs lie outside the Gaussians of the training features"

    def detector(self, params, head):
        from pytorch_ood.detector import Mahalanobis

        return Mahalanobis(None)


class OodViM(OodDetector):
    id = "detection.ood_vim"
    title = "Foreign inputs leave the principal subspace of the training features"
    inputs = {**OodDetector.inputs, **HEAD}

    class Params(OodParams):
        pass

    def detector(self, params, head):
        from pytorch_ood.detector import ViM

        return ViM(None, d=2, w=head.weight, b=head.bias)


class OodEnergy(OodDetector):
    id = "detection.ood_energy"
    title = "The energy of the logits, as pytorch-ood computes it"

    def detector(self, params, head):
        from pytorch_ood.detector import EnergyBased

        return EnergyBased(None)


class OodODIN(OodDetector):
    id = "detection.ood_odin"
    title = "A detector that needs images"

    def detector(self, params, head):
        from pytorch_ood.detector import ODIN

        return ODIN(nn.Identity())


@pytest.fixture
def bench(tmp_path):
    return workbench.open(tmp_path / "store", host=Host(found=[]))


@pytest.fixture(scope="module")
def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES)


@pytest.fixture(scope="module")
def sets(head) -> dict[str, xr.Dataset]:
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((CLASSES, FEATURES))

    def outputs(feature: np.ndarray, label: np.ndarray | None = None) -> xr.Dataset:
        feature = feature.astype(np.float32)
        logit = head(torch.from_numpy(feature)).detach().numpy()
        made = {"feature": (("sample", "feature"), feature), "logit": (("sample", "class"), logit)}
        return xr.Dataset(made | ({} if label is None else {"label": ("sample", label)}))

    def inside(count: int) -> tuple[np.ndarray, np.ndarray]:
        label = np.arange(count) % CLASSES
        return centres[label] + rng.standard_normal((count, FEATURES)), label

    return {
        "fit": outputs(*inside(90)),
        "data": outputs(inside(40)[0]),
        "ood": outputs(4 * rng.standard_normal((30, FEATURES))),
    }


def both(sets, name: str) -> np.ndarray:
    return np.concatenate([sets[role][name].values for role in ("data", "ood")])


def own_score(run) -> np.ndarray:
    return run["score"].values[0]


def test_knn_is_the_librarys_and_the_distance_to_the_kth_neighbour(bench, sets):
    from pytorch_ood.detector import KNN

    run = bench.run(OodKNN, **sets, k=7, bootstrap=100, progress=False)
    direct = KNN(None, k=7)
    direct.fit_features(torch.from_numpy(sets["fit"]["feature"].values), torch.from_numpy(sets["fit"]["label"].values))
    assert np.array_equal(own_score(run), direct.predict_features(torch.from_numpy(both(sets, "feature"))).numpy())
    unit = [
        z / np.linalg.norm(z, axis=1, keepdims=True) for z in (both(sets, "feature"), sets["fit"]["feature"].values)
    ]
    assert np.allclose(own_score(run), np.sort(cdist(*unit), axis=1)[:, 6], atol=1e-6)
    assert run.metrics["auroc"] == pytest.approx(roc_auc_score(run["anomalous"].values, own_score(run)))


def test_another_detector_in_a_few_lines_is_the_closed_form(bench, sets):
    run = bench.run(OodMahalanobis, **sets, bootstrap=100, progress=False)
    z, label = sets["fit"]["feature"].values.astype(float), sets["fit"]["label"].values
    mean = np.stack([z[label == k].mean(0) for k in range(CLASSES)])
    scatter = sum((z[label == k] - mean[k]).T @ (z[label == k] - mean[k]) for k in range(CLASSES))
    away = both(sets, "feature").astype(float)[:, None] - mean
    distance = np.einsum("nkd,de,nke->nk", away, np.linalg.inv(scatter), away).min(1) / 2
    assert np.allclose(own_score(run), distance, rtol=1e-4, atol=1e-5)


def test_a_detector_that_needs_the_head_gets_it_from_the_model(bench, sets, head):
    from pytorch_ood.detector import ViM

    run = bench.run(OodViM, **sets, model=nn.Sequential(nn.Flatten(), head), bootstrap=100, progress=False)
    direct = ViM(None, d=2, w=head.weight, b=head.bias)
    direct.fit_features(torch.from_numpy(sets["fit"]["feature"].values), torch.zeros(90))
    assert np.allclose(own_score(run), direct.predict_features(torch.from_numpy(both(sets, "feature"))).numpy())


def test_a_detector_of_logits_agrees_with_the_baseline_of_the_same_formula(bench, sets):
    logits = {role: data[["logit", *(["label"] if role == "fit" else [])]].drop_vars("feature", errors="ignore")
              for role, data in sets.items()}  # fmt: skip
    run = bench.run(OodEnergy, **logits, bootstrap=100, progress=False)
    chosen = {"detector": "energy"}
    assert np.allclose(own_score(run), run["score"].sel(chosen), rtol=1e-5)
    assert [float(run[f"auroc_gain{end}"].sel(chosen)) for end in ("", "_low", "_high")] == pytest.approx([0, 0, 0])
    assert "not told apart" in run.record.report["summary"] or "worse" in run.record.report["summary"]


def test_paired_bootstrap_counts_as_a_loop_over_resampled_sets_does():
    rng = np.random.default_rng(3)
    anomalous = np.repeat([False, True], [12, 9])
    scores = np.round(rng.standard_normal((2, 21)) + anomalous, 1)  # with ties
    whole, drawn = paired_auroc(scores, anomalous, np.random.default_rng(5), 20)
    assert np.allclose(whole, [roc_auc_score(anomalous, score) for score in scores])
    same = np.random.default_rng(5)
    normal = same.multinomial(12, np.full(12, 1 / 12), size=20)
    foreign = same.multinomial(9, np.full(9, 1 / 9), size=20)
    for number, counts in enumerate(np.concatenate([normal, foreign], axis=1)):
        again = np.repeat(np.arange(21), counts)
        assert np.allclose(drawn[:, number], [roc_auc_score(anomalous[again], score[again]) for score in scores])


def refused(bench, method, **arguments) -> str:
    with pytest.raises(RunFailedError) as caught:
        bench.run(method, progress=False, bootstrap=100, **arguments)
    assert isinstance(caught.value.__cause__, InputError)
    return str(caught.value)


def test_what_does_not_fit_is_said(bench, sets):
    bare = {role: data.drop_vars("feature") for role, data in sets.items()}
    assert "features='penultimate'" in refused(bench, OodKNN, **bare)
    assert "k=91" in refused(bench, OodKNN, **sets, k=91)
    narrow = {**sets, "ood": sets["ood"].isel(feature=slice(2))}
    assert "entries along 'feature'" in refused(bench, OodKNN, **narrow)
    assert "got ODIN" in refused(bench, OodODIN, **sets)


def test_a_library_that_cannot_be_imported_makes_the_method_decline(bench, sets, monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(library, "importlib", SimpleNamespace(import_module=broken))
    with pytest.raises(SkippedError, match="same package index"):
        bench.run(OodKNN, **sets, progress=False)


def test_the_version_of_the_library_is_part_of_the_methods(bench, sets):
    version = importlib.metadata.version("pytorch-ood")
    assert OodKNN.version == f"2+pytorch-ood-{version}"
    assert type("Sub", (OodKNN,), {}).version == OodKNN.version  # not appended twice
    run = bench.run(OodKNN, **sets, k=7, bootstrap=100, progress=False)
    assert run.record.method_version == OodKNN.version  # and so of the key
