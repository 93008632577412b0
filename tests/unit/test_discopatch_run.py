"""DisCoPatch as a run: what it stores, seeds, checkpoints, cancellation, ablations, and what it shows on CIFAR-10."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from workbench.errors import CancelledError, InputError

from unit.recording_out import RecordedResult, RecordingOut, check_report, record
from workbench_detection import discopatch_training as training
from workbench_detection.discopatch import DisCoPatch
from workbench_detection.logit_scores import SCORES
from workbench_detection.metrics import auroc, detection_metrics
from workbench_detection.shifts import STRENGTHS, apply_shift

CIFAR = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10" / "original_subset.npz"
FAST = {
    "patch": 8,
    "patches_train": 4,
    "patches_test": 6,
    "patch_counts": (1, 3, 16),
    "widths": (4, 8),
    "latent": 3,
    "images_per_batch": 3,
    "steps": 4,
    "shifts": ("blur", "noise"),
    "severities": (5, 2),
    "test_images": 12,
    "bootstrap": 100,
}


def images(count=40, seed=0, side=12, channels=3, dtype=np.uint8):
    pictures = np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    values = pictures if dtype == np.uint8 else (pictures / 255).astype(dtype)
    return xr.Dataset({"image": (("sample", "channel", "y", "x"), values)})


def same(first, second, but=()):
    return all(np.array_equal(first.arrays[name], second.arrays[name], equal_nan=values.dtype.kind == "f")
               for name, values in first.arrays.items() if name not in but)  # fmt: skip


class Brightness(nn.Module):
    """A 'classifier' whose logits one can compute by hand."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([10 * mean, 5 - 10 * mean], dim=1)


@pytest.fixture(scope="module")
def run():
    inputs = {"data": images(), "test": images(16, 1), "ood": images(9, 2), "model": Brightness()}
    return (*record(DisCoPatch, inputs, **FAST), inputs)


def test_every_kind_of_image_is_scored_and_told_apart(run):
    out, result, _ = run
    names = ["control", "blur 0.75", "blur 2", "noise 0.05", "noise 0.2", "ood"]
    assert result["auroc"]["shift"].values.tolist() == names
    source = result["source"].values
    assert [int((source == name).sum()) for name in ("id", *names)] == [6] * 7
    assert np.array_equal(result["anomalous"].values, ~np.isin(source, ["id", "control"]))
    assert set(result["shift_kind"].values) == {"id", "control", "blur", "noise", "ood"}
    index = result["source_index"].values
    for row, name in enumerate(names):
        assert np.array_equal(result["score_by_shift"].values[row], result["score"].values[source == name])
    assert not set(index[source == "id"]) & set(index[source == "control"])
    for name in names[1:5]:
        assert np.array_equal(index[source == name], index[source == "control"])
    assert out.models["discriminator"].keys()


def test_scores_are_those_of_the_stored_discriminator_fed_one_image_at_a_time(run):
    out, result, inputs = run
    network = out.modules["discriminator"]
    picture_of = {
        name: inputs["ood" if name == "ood" else "test"]["image"].values for name in set(result["source"].values)
    }
    for row in range(0, result["score"].size, 5):
        source, index = str(result["source"].values[row]), int(result["source_index"].values[row])
        kind, _, strength = source.partition(" ")
        shift = kind if kind in STRENGTHS else None
        image = apply_shift(
            picture_of[source][index : index + 1], shift, float(strength or 0), indices=[index], seed=out.seed
        )
        patches = torch.stack(
            [torch.as_tensor(image[0, :, y : y + 8, x : x + 8] * 2 - 1) for x, y in result["patch_xy"].values[row]]
        )
        with torch.no_grad():
            probability = torch.sigmoid(network(patches))  # one image is the whole batch: plain batch norm
        assert result["patch_score"].values[row] == pytest.approx(1 - probability.numpy(), abs=1e-5)
        assert float(result["score"][row]) == pytest.approx(1 - float(probability.mean()), abs=1e-5)
        with torch.no_grad():
            first = network.convolutions[0](patches)
        assert result["bn_mean"].values[0, row, :4] == pytest.approx(first.mean((0, 2, 3)).numpy(), abs=1e-5)
        assert result["bn_var"].values[0, row, :4] == pytest.approx(
            first.var((0, 2, 3), correction=0).numpy(), rel=1e-4
        )
        assert np.isnan(result["bn_mean"].values[0, row, 4:]).all()


def test_metrics_are_those_of_the_stored_scores_against_the_reference(run):
    _, result, _ = run
    source, score = result["source"].values, result["score"].values
    for number, name in enumerate(result["auroc"]["shift"].values):
        chosen = (source == "id") | (source == name)
        expected = detection_metrics(score[chosen], source[chosen] == name)
        assert {metric: float(result[metric][number]) for metric in expected} == expected
        assert float(result["auroc_low"][number]) <= expected["auroc"] <= float(result["auroc_high"][number])
    assert result["patch_count"].values.tolist() == [1, 3, 6]
    assert np.array_equal(result["auroc_by_patches"].values[:, -1], result["auroc"].values)
    by_severity = result["auroc_by_severity"]
    assert by_severity["severity"].values.tolist() == [0, 2, 5]
    assert by_severity.values[:, 0].tolist() == [float(result["auroc"][0])] * 2
    assert float(by_severity.sel(kind="noise", severity=5)) == float(result["auroc"].sel(shift="noise 0.2"))


def test_the_classifiers_own_scores_are_shown_beside(run):
    _, result, inputs = run
    source = result["source"].values
    index = result["source_index"].values[source == "ood"]
    pictures = torch.as_tensor(inputs["ood"]["image"].values[index]).float() / 255
    expected = SCORES["energy"](Brightness()(pictures), 1.0)
    energies = result["baseline_score"].sel(detector="energy").values
    assert energies[source == "ood"] == pytest.approx(expected.numpy(), rel=1e-5)
    chosen = np.isin(source, ["id", "ood"])
    found = float(result["baseline_auroc"].sel(detector="energy").sel(shift="ood"))
    assert found == auroc(energies[chosen], source[chosen] == "ood")


def test_the_report_resolves_and_says_what_was_noticed(run):
    _, result, _ = run
    report = check_report(DisCoPatch, result)
    assert "control" in report.summary
    assert {view.kind for view in report.views} == {"bar", "line", "histogram", "scatter", "image_grid"}
    metrics = {metric.name: metric for metric in report.metrics}
    assert metrics["auroc_control"].direction == "neutral"
    assert metrics["fpr95_id_blur_2"].direction == "lower"
    weights = sum(value.size for value in (v.numpy() for v in run[0].models["discriminator"].values()))
    assert metrics["detector_size"].value == pytest.approx(4 * weights / 1e6)
    assert "auroc energy" in report.tables[0].columns


def test_the_summary_tells_noticed_from_missed_and_from_mistaken_shifts(run):
    out, result, inputs = run
    changed = copy.deepcopy(out)
    for name, values in {
        "auroc": [0.5, 0.6, 0.9, 0.2, 0.55, 0.8],
        "auroc_low": [0.4, 0.45, 0.8, 0.1, 0.4, 0.7],
        "auroc_high": [0.6, 0.7, 1.0, 0.3, 0.6, 0.9],
    }.items():
        changed.arrays[name] = np.array(values)
    for name in ("real_accuracy", "fake_accuracy"):
        changed.logged[name] = dict.fromkeys(changed.logged[name], 0.5)
    report = check_report(DisCoPatch, RecordedResult(changed, result.params, inputs))
    assert "blur 2 is noticed best: AUROC 0.90" in report.summary
    assert "Not noticed beyond chance: blur 0.75, noise 0.2." in report.summary
    assert "more normal than the reference (AUROC below 0.5): noise 0.05." in report.summary
    assert any("guessing" in note for note in report.notes)
    assert not any("leaves out 0.5" in note for note in report.notes)
    changed.arrays["auroc_low"][0] = 0.51
    report = check_report(DisCoPatch, RecordedResult(changed, result.params, inputs))
    assert any("leaves out 0.5" in note for note in report.notes)


def test_the_same_seed_gives_the_same_run_and_another_does_not():
    runs = [record(DisCoPatch, {"data": images()}, seed=seed, **FAST)[0] for seed in (3, 3, 4)]
    assert same(runs[0], runs[1])
    assert not np.array_equal(runs[0].arrays["score"], runs[2].arrays["score"])


def test_uint8_and_float_images_give_the_same_run():
    runs = [record(DisCoPatch, {"data": images(dtype=dtype)}, **FAST)[0] for dtype in (np.uint8, np.float32)]
    assert same(*runs)


def test_images_too_many_for_memory_are_read_step_by_step(monkeypatch):
    whole = record(DisCoPatch, {"data": images()}, **FAST)[0]
    monkeypatch.setattr(training, "IN_MEMORY", 0)
    assert same(whole, record(DisCoPatch, {"data": images()}, **FAST)[0])


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(monkeypatch):
    whole, _ = record(DisCoPatch, {"data": images()}, **FAST)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    killed = RecordingOut(DisCoPatch, cancel_after=2)  # the third step is never begun
    with pytest.raises(CancelledError):
        record(DisCoPatch, {"data": images()}, out=killed, **FAST)
    assert [state["step"] for state in killed.checkpoints] == [1, 2]
    assert "score" not in killed.arrays
    resumed = RecordingOut(DisCoPatch, restored=killed.checkpoints[-1])
    record(DisCoPatch, {"data": images()}, out=resumed, **FAST)
    assert sorted(resumed.logged["vae"]) == [3, 4]
    assert same(whole, resumed)


def test_a_checkpoint_survives_the_stores_format(monkeypatch):
    from workbench.execution.checkpoint import pack, unpack

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    whole, _ = record(DisCoPatch, {"data": images()}, **FAST)
    resumed = RecordingOut(DisCoPatch, restored=unpack(pack(whole.checkpoints[1]), "run"))
    record(DisCoPatch, {"data": images()}, out=resumed, **FAST)
    assert same(whole, resumed)


@pytest.mark.parametrize("after", [1, 5])
def test_cancelling_stops_training_and_scoring(after):
    with pytest.raises(CancelledError):
        record(DisCoPatch, {"data": images()}, out=RecordingOut(DisCoPatch, cancel_after=after), **FAST)


@pytest.mark.parametrize(
    "params",
    [
        {"norm": "group"},
        {"norm": "instance"},
        {"norm": "running"},
        {"negatives": "generations"},
        {"negatives": "reconstructions"},
        {"mixed_test_batches": True},
        {"reconstruction_loss": "ms_ssim"},
    ],
)
def test_every_ablation_runs_reports_and_changes_the_scores(params):
    plain, _ = record(DisCoPatch, {"data": images()}, **FAST)
    out, result = record(DisCoPatch, {"data": images()}, **FAST, **params)
    assert not np.array_equal(plain.arrays["score"], out.arrays["score"])
    report = check_report(DisCoPatch, result)
    grouped = params.get("norm", "batch") == "batch" and not params.get("mixed_test_batches")
    assert ("bn_mean" in result) == grouped
    assert any(note.startswith("Ablation") for note in report.notes) == ("reconstruction_loss" not in params)


def test_grey_and_many_channel_images_without_shifts():
    _, grey = record(DisCoPatch, {"data": images(channels=1)}, **FAST)
    check_report(DisCoPatch, grey)
    _, many = record(DisCoPatch, {"data": images(channels=5)}, **{**FAST, "shifts": ()})
    report = check_report(DisCoPatch, many)
    assert many["auroc"]["shift"].values.tolist() == ["control"]
    assert all(view.kind != "image_grid" for view in report.views)


@pytest.mark.parametrize(
    ("inputs", "params", "argument"),
    [
        ({"data": images(), "ood": images(8, side=16)}, {}, "ood['image']"),
        ({"data": images(), "test": images(8, channels=1)}, {}, "test['image']"),
        ({"data": images(), "test": images(3)}, {}, "test"),
        ({"data": images(channels=4)}, {"shifts": ("jpeg",)}, "shifts"),
        ({"data": images()}, {"severities": (1, 6)}, "severities"),
        ({"data": images()}, {"severities": (1, 1)}, "severities"),
        ({"data": images()}, {"patch_counts": (0,)}, "patch_counts"),
        ({"data": images()}, {"shifts": ("blur", "blur")}, "shifts"),
        ({"data": images()}, {"patch": 16}, "patch"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_training(inputs, params, argument):
    out = RecordingOut(DisCoPatch)
    with pytest.raises(InputError) as caught:
        record(DisCoPatch, inputs, out=out, **{**FAST, **params})
    assert caught.value.argument == argument
    assert not out.progressed


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.exists(), reason="needs CIFAR-10 in its original bits")
def test_cifar_blur_is_noticed_and_more_so_from_more_patches():
    """Measured claim: 250 steps, blur of 1 px, mean of 3 seeds: AUROC(16 patches) >= .6, at least .05 above 1 patch."""
    stored = np.load(CIFAR)
    train, test = (
        xr.Dataset({"image": (("sample", "channel", "y", "x"), stored[name])}) for name in ("x_train", "x_test")
    )
    rows = []
    for seed in range(3):
        params = {"steps": 250, "patch_counts": (1,), "shifts": ("blur",), "severities": (1, 3)}
        _, result = record(DisCoPatch, {"data": train, "test": test}, seed=seed, **params)
        aurocs = result["auroc_by_patches"]
        rows.append([*aurocs.sel(shift="blur 1").values, float(result["auroc"][1]), float(result["auroc"][0])])
    one, sixteen, milder, control = np.mean(rows, axis=0)
    assert sixteen >= 0.6
    assert sixteen - one >= 0.05
    assert sixteen > milder > control - 0.02
    assert 0.45 <= control <= 0.55
