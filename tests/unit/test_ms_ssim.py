"""Claims of `restoration.ms_ssim`: a loss wins its own metric, comparisons are fair, runs repeat, resume and cancel."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
import xarray as xr
from PIL import Image
from workbench import InputError
from workbench.errors import CancelledError, SkippedError

import workbench_restoration
from unit.recording_out import RecordingOut, check_report, record
from workbench_restoration import metrics, reconstruction
from workbench_restoration.comparison import METRICS
from workbench_restoration.ms_ssim import MSSSIM, Params, image_loss, initial_network, recipe
from workbench_restoration.ms_ssim_study import restore, textured_corner
from workbench_restoration.networks import SRCNN
from workbench_restoration.reconstruction import (
    ImageLoss,
    Trainings,
    enlarged_pair,
    random_patches,
    train_at_best_rate,
    turn_and_flip,
)
from workbench_restoration.resize import upscale

torch.set_num_threads(1)
SHARED = Path(os.environ.get("WORKBENCH_SHARED", Path(__file__).resolve().parents[3] / "shared"))
PHOTOS = ("astronaut", "camera", "coffee", "chelsea")


def crops(count: int, size: int, *, color: bool = False, seed: int = 0) -> xr.Dataset:
    """Random crops of bundled photographs with the photograph's number as label; uint8, grey or RGB."""
    rng, pictures = np.random.default_rng(seed), []
    for index in range(count):
        photo = np.atleast_3d(getattr(skimage.data, PHOTOS[index % len(PHOTOS)])())
        top, left = (rng.integers(side - size + 1) for side in photo.shape[:2])
        crop = photo[top : top + size, left : left + size]
        crop = np.broadcast_to(crop, (size, size, 3)) if color else crop.mean(2, keepdims=True).round()
        pictures.append(crop.astype(np.uint8).transpose(2, 0, 1))
    label = np.arange(count, dtype=np.int64) % len(PHOTOS)
    return xr.Dataset({"image": (("sample", "channel", "y", "x"), np.stack(pictures)), "label": ("sample", label)})


TINY = {"epochs": 2, "code": 8, "batch_size": 16, "architecture": "fully_connected"}


LOSSES = ("mse", "mae", "ssim", "mix")


@pytest.fixture(scope="module")
def trained():
    """A small comparison of four losses on 16x16 crops."""
    return record(
        MSSSIM,
        {"data": crops(160, 16)},
        **(TINY | {"epochs": 8, "code": 32, "losses": LOSSES, "batch_size": 16}),
    )


def test_every_network_learns_by_its_loss_and_the_report_says_what_is_stored(trained) -> None:
    out, result = trained
    assert (out.arrays["train_loss"][:, -1] < out.arrays["train_loss"][:, 0]).all()
    assert (out.arrays["validation_loss"][:, -1] < out.arrays["validation_loss"][:, 0]).all()
    report = check_report(MSSSIM, result)
    found = {metric.name: metric for metric in report.metrics}
    gain = out.arrays["metric_value"][2, 3].astype(np.float64) - out.arrays["metric_value"][0, 3]
    assert found["ssim_gain"].value == pytest.approx(gain.mean())
    assert found["ssim_gain"].interval[0] < gain.mean() < found["ssim_gain"].interval[1]
    assert "instead of MSE" in report.summary
    assert [table.title for table in report.tables] == [
        "Training loss by metric",
        "Does each loss win its own metric?",
        "Trainings",
        "What the codes know",
    ]
    # The stars of the table are where the excess loss is 0.
    by_metric = report.tables[0].rows
    for name, column in (("mse", 1), ("mae", 2), ("ssim", 4), ("ms_ssim", 5)):
        best = [row[column].endswith("*") for row in by_metric]
        excess = out.arrays["excess_loss"][:, ("mse", "mae", "ssim", "ms_ssim").index(name)]
        assert best == (excess == 0).tolist()


def test_stored_values_are_those_of_the_stored_pictures(trained) -> None:
    out, _ = trained
    clean = torch.from_numpy(out.arrays["clean"])
    for row in range(4):
        restored = torch.from_numpy(out.arrays["recon"][row])
        for name in ("mse", "psnr", "ssim", "ms_ssim"):
            metric = {"mse": metrics.mean_squared_error}.get(name) or getattr(metrics, name)
            stored = torch.from_numpy(out.arrays["metric_value"][row, METRICS.index(name)])
            torch.testing.assert_close(metric(restored, clean), stored, atol=1e-5, rtol=1e-4)
        drift = (restored - clean).mean((-2, -1)).numpy()
        np.testing.assert_allclose(out.arrays["mean_error"][row], drift, atol=1e-6)
        maps = out.arrays["ssim_map"][row]
        np.testing.assert_allclose(np.nanmean(maps, axis=(1, 2)), out.arrays["metric_value"][row, 3], atol=1e-5)
        assert np.isnan(maps[:, :5]).all()
        assert np.isfinite(maps[:, 5:-5, 5:-5]).all()
        state = out.modules[f"network_{LOSSES[row]}"]
        torch.testing.assert_close(state(clean).detach(), restored, atol=1e-5, rtol=1e-4)


def test_the_held_out_images_are_those_of_the_data_and_none_was_trained_on(trained) -> None:
    out, _ = trained
    data = crops(160, 16)["image"].to_numpy()
    np.testing.assert_allclose(out.arrays["clean"], data[out.arrays["source_index"]] / 255, atol=1e-6)
    assert len(out.arrays["clean"]) == 32
    # A part of its own: what is judged can be anything, the trained networks stay what they are.
    two = record(MSSSIM, {"data": crops(40, 16), "test": crops(12, 16, seed=5)}, **TINY, losses=("mse",))[0]
    other = record(MSSSIM, {"data": crops(40, 16), "test": crops(12, 16, seed=6)}, **TINY, losses=("mse",))[0]
    for key, value in two.models["network_mse"].items():
        assert torch.equal(value, other.models["network_mse"][key])


def test_the_pair_sheet_shows_what_its_key_says(trained) -> None:
    out, _ = trained
    losses = out.coordinates["loss"][1].tolist()
    sample = out.coordinates["trial_sample"][1]
    left, right = out.arrays["pair_left"].tolist(), out.arrays["pair_right"].tolist()
    for trial in range(24):
        shown = out.arrays["pair_sheet"][trial]
        np.testing.assert_array_equal(shown[0], out.arrays["clean"][sample[trial]])
        np.testing.assert_array_equal(shown[1], out.arrays["recon"][losses.index(left[trial]), sample[trial]])
        np.testing.assert_array_equal(shown[2], out.arrays["recon"][losses.index(right[trial]), sample[trial]])
    assert {frozenset(pair) for pair in zip(left, right, strict=True)} == {
        frozenset(("ssim", "mse")),
        frozenset(("ssim", "mae")),
    }


def test_every_loss_starts_from_the_same_weights_and_sees_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    starts, batches = [], []
    original = reconstruction.Objective.forward

    def watched(self, image):
        if self.training:
            batches.append(image.clone())
            starts.append(copy.deepcopy(self.network.state_dict()))
        return original(self, image)

    monkeypatch.setattr(reconstruction.Objective, "forward", watched)
    record(MSSSIM, {"data": crops(40, 16)}, **(TINY | {"epochs": 1}), losses=("mse", "ssim"), repetitions=2)
    quarter = len(batches) // 4
    for first in (0, 2 * quarter):
        for step in range(quarter):
            assert torch.equal(batches[first + step], batches[first + quarter + step])
        for key, value in starts[first].items():
            assert torch.equal(value, starts[first + quarter][key])
    assert not torch.equal(batches[0], batches[2 * quarter])
    assert not torch.equal(starts[0]["encoder.1.weight"], starts[2 * quarter]["encoder.1.weight"])


def test_equal_seeds_give_equal_runs_and_other_seeds_other_ones() -> None:
    runs = [
        record(MSSSIM, {"data": crops(40, 16)}, **TINY, losses=("mse", "ssim"), seed=seed, repetitions=2)[0]
        for seed in (3, 3, 4)
    ]
    for name, values in runs[0].arrays.items():
        np.testing.assert_array_equal(values, runs[1].arrays[name])
    assert not np.array_equal(runs[0].arrays["metric_value"], runs[2].arrays["metric_value"])
    assert runs[0].arrays["metric_mean"][0, 0, 0] != runs[0].arrays["metric_mean"][0, 0, 1]
    np.testing.assert_allclose(runs[0].arrays["metric_mean"][..., 0], runs[0].arrays["metric_value"].mean(2), rtol=1e-5)


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "CHECKPOINT_SECONDS", 0.0)
    inputs, options = {"data": crops(40, 16)}, TINY | {"losses": ("mse", "ssim", "mae"), "epochs": 3}
    whole = record(MSSSIM, inputs, **options)[0]
    # 2 batches an epoch and 1 report at the end of a training: the cut comes in the second epoch of the second loss.
    cut = RecordingOut(cancel_after=len(whole.progressed) // 3 + 4)
    with pytest.raises(CancelledError):
        record(MSSSIM, inputs, out=cut, **options)
    steps = []
    original = reconstruction.Objective.forward
    monkeypatch.setattr(
        reconstruction.Objective, "forward", lambda self, image: steps.append(self.training) or original(self, image)
    )
    resumed = record(MSSSIM, inputs, out=RecordingOut(restored=cut.checkpoints[-1]), **options)[0]
    for name, values in whole.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[name], values)
    assert 0 < sum(steps) < 2 * 3 * 2  # less than two of the three trainings were done again


def test_progress_never_falls_and_a_cancelled_run_stops() -> None:
    out = record(MSSSIM, {"data": crops(40, 16)}, **TINY, losses=("mse", "ssim"))[0]
    shares = [done / total for done, total, _ in out.progressed]
    assert shares == sorted(shares)
    assert 0.6 < shares[-1] <= 1
    with pytest.raises(CancelledError):
        record(MSSSIM, {"data": crops(40, 16)}, out=RecordingOut(cancel_after=3), **TINY)


def test_the_best_learning_rate_is_chosen_on_validation_images_per_loss() -> None:
    out, _ = record(
        MSSSIM, {"data": crops(80, 16)}, **(TINY | {"epochs": 4}), losses=("mse", "ssim"), learning_rates=(1e-5, 3e-3)
    )
    candidates = out.arrays["candidate_loss"]
    assert out.arrays["learning_rate"][:, 0].tolist() == [[1e-5, 3e-3][index] for index in candidates.argmin(1)]
    np.testing.assert_allclose(out.arrays["validation_loss"][:, -1], candidates.min(1))
    assert candidates.argmin(1)[0] == 1  # at 1e-5 squared error learns next to nothing in 4 epochs


def test_expected_loss_vaes_reach_one_divergence_whatever_their_loss() -> None:
    out, result = record(
        MSSSIM,
        {"data": crops(120, 16)},
        **(TINY | {"epochs": 12, "code": 16}),
        task="vae",
        losses=("mse", "ssim"),
        target_divergence=8.0,
        bisection_steps=8,
        divergence_tolerance=0.15,
    )
    np.testing.assert_allclose(out.arrays["divergence"][:, 0], 8.0, rtol=0.15)
    weight = out.arrays["weight"][:, 0]
    assert weight[0] > 3 * weight[1]  # a unit of squared error is much more than a unit of SSIM
    for row in range(2):
        tried = out.arrays["search"][row]
        tried = tried[np.isfinite(tried[:, 0])]
        order = np.argsort(tried[:, 0])
        assert (np.diff(tried[order, 1]) > 0).all()  # divergence grows with C, so that bisection is right
        assert np.abs(tried[:, 1] / 8 - 1).argmin() == len(tried) - 1
    assert out.arrays["generated"].shape == (2, 8, 1, 16, 16)
    report = check_report(MSSSIM, result)
    assert not any("not within" in note for note in report.notes)
    far = record(
        MSSSIM, {"data": crops(40, 16)}, **TINY, task="vae", losses=("mse",), target_divergence=900.0, bisection_steps=1
    )[1]
    assert any(
        "The divergence of MSE is not within 10 % of the target of 900 nats" in n for n in MSSSIM().report(far).notes
    )


def test_super_resolution_is_measured_without_border_against_bicubic() -> None:
    out, result = record(
        MSSSIM,
        {"data": crops(20, 70, color=True)},
        task="superres",
        losses=("mse", "ssim"),
        epochs=1,
        patches_per_image=2,
        patch=40,
        batch_size=8,
    )
    assert out.arrays["sr"].shape == (2, 4, 1, 69, 69)
    clean = torch.from_numpy(out.arrays["clean"])
    data = torch.from_numpy(crops(20, 70, color=True)["image"].to_numpy()[out.arrays["source_index"]] / 255.0)
    torch.testing.assert_close(clean.double(), metrics.luma(data[..., :69, :69]), atol=1e-6, rtol=0)
    for row in range(2):
        inner = [image[..., 3:-3, 3:-3] for image in (torch.from_numpy(out.arrays["sr"][row]), clean)]
        np.testing.assert_allclose(out.arrays["metric_value"][row, 2], metrics.psnr(*inner), rtol=1e-5)
    inner = [image[..., 3:-3, 3:-3] for image in (torch.from_numpy(out.arrays["bicubic"]), clean)]
    np.testing.assert_allclose(out.arrays["bicubic_value"][3], metrics.ssim(*inner), rtol=1e-5)
    steps = out.arrays["sr"] * 255
    np.testing.assert_allclose(steps, steps.round(), atol=1e-4)  # judged as 8-bit pictures
    report = check_report(MSSSIM, result)
    assert report.tables[0].rows[0][0] == "bicubic, not trained"
    assert "code" not in out.arrays
    assert "probe_accuracy" not in out.arrays


SMALL_SUPERRES = {"task": "superres", "epochs": 1, "patches_per_image": 2, "patch": 40, "batch_size": 8}


def test_images_restored_exactly_leave_a_report() -> None:
    """Bicubic enlargement of black images is exact, and its PSNR infinite."""
    data = crops(30, 60)
    data["image"][::3] = 0
    out, result = record(MSSSIM, {"data": data}, losses=("mse", "ssim"), **SMALL_SUPERRES)
    exact = (out.arrays["clean"] == out.arrays["bicubic"]).all((1, 2, 3))
    assert exact.any()
    assert (out.arrays["bicubic_value"][METRICS.index("psnr")] == 100).tolist() == exact.tolist()
    report = check_report(MSSSIM, result)
    assert all(np.isfinite(metric.value) for metric in report.metrics)
    cut = int((out.arrays["metric_value"][:, METRICS.index("psnr")] == 100).sum()) + int(exact.sum())
    assert any("PSNR counts as 100 dB at most" in note and f": {cut} of the values" in note for note in report.notes)


def test_super_resolution_is_judged_by_the_scales_it_was_trained_with() -> None:
    """Patches of 40 less 6 pixels a side have room for 2 scales, the images of 66 less 3 a side for 3."""
    params = Params(**SMALL_SUPERRES)
    assert image_loss(params, "ms_ssim").scales == metrics.scales_that_fit(28, 28) == 2
    assert image_loss(Params(**SMALL_SUPERRES, scales=1), "ms_ssim").scales == 1
    assert image_loss(Params(), "ms_ssim").scales is None  # whole images are compared in training, too
    out, result = record(MSSSIM, {"data": crops(20, 66)}, losses=("mse", "ms_ssim"), **SMALL_SUPERRES)
    clean, row = torch.from_numpy(out.arrays["clean"])[..., 3:-3, 3:-3], METRICS.index("ms_ssim")
    assert metrics.scales_that_fit(*clean.shape[-2:]) == 3
    for restored, judged in [
        *zip(out.arrays["sr"], out.arrays["metric_value"], strict=True),
        (out.arrays["bicubic"], out.arrays["bicubic_value"]),
    ]:
        inner = torch.from_numpy(restored)[..., 3:-3, 3:-3]
        np.testing.assert_allclose(judged[row], metrics.ms_ssim(inner, clean, scales=2), rtol=1e-5)
        assert np.abs(judged[row] - metrics.ms_ssim(inner, clean).numpy()).max() > 1e-3
    assert any("MS-SSIM has 2 scales" in note for note in check_report(MSSSIM, result).notes)


def test_colour_pictures_go_through_and_can_be_turned_grey() -> None:
    data = crops(40, 16, color=True)
    colored = record(MSSSIM, {"data": data}, **TINY, losses=("ssim",))
    assert colored[0].arrays["recon"].shape == (1, 8, 3, 16, 16)
    assert "pair_sheet" not in colored[0].arrays  # one loss leaves nothing to choose between
    assert "diagonal_wins" not in {metric.name for metric in check_report(MSSSIM, colored[1]).metrics}
    grey = record(MSSSIM, {"data": data}, **TINY, losses=("ssim",), grey=True)[0]
    picture = data["image"].to_numpy()[grey.arrays["source_index"]].transpose(0, 2, 3, 1) / 255
    expected = np.asarray(
        [np.asarray(Image.fromarray((p * 255).round().astype(np.uint8)).convert("L")) for p in picture]
    )
    np.testing.assert_allclose(grey.arrays["clean"][:, 0] * 255, expected, atol=0.51)


def test_the_textured_place_is_found() -> None:
    image = torch.zeros(1, 64, 64)
    image[:, 40:56, 8:24] = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    assert textured_corner(image, 16) == (40, 8)
    assert textured_corner(image, 64) == (0, 0)


def test_wrong_input_is_named_before_anything_is_trained() -> None:
    data = crops(40, 16)
    out_of_range = xr.Dataset({"image": data["image"].astype(np.float32)})
    cases = [
        (data, {"architecture": "conv", "scales": 2}, "scales: expected at most 1 for images of 16 pixels, got 2"),
        (out_of_range, {}, "values in 0..1"),
        (crops(40, 8), {}, "window: expected at most 8, the side of the images, got 11"),
        (crops(40, 20), {"architecture": "conv"}, "sides that are multiples of 8"),
        (crops(40, 32), {"task": "superres", "patch": 40}, "patch: expected at most 30"),
        (data, {"validation_fraction": 0.4, "test_fraction": 0.7}, "something left to train on"),
    ]
    for subject, options, message in cases:
        out = RecordingOut()
        with pytest.raises(InputError, match=message):
            record(MSSSIM, {"data": subject}, out=out, **(TINY | {"losses": ("mse",)} | options))
        assert not out.progressed
    with pytest.raises(InputError, match=r"test\['image'\]: expected images like those of data"):
        record(MSSSIM, {"data": data, "test": crops(8, 24)}, **TINY, losses=("mse",))
    half = RecordingOut()
    half.dtype = torch.bfloat16
    with pytest.raises(SkippedError, match="needs float32"):
        record(MSSSIM, {"data": data}, out=half, **TINY)
    for wrong in (
        {"losses": ("mse", "mse")},
        {"window": 10},
        {"weight_bracket": (5.0, 1.0)},
        {"learning_rates": (2.0,)},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Params(**wrong)


def test_stored_networks_are_rebuilt_by_their_registered_factories(trained) -> None:
    out, _ = trained
    model, clean = out.modules["network_ssim"], torch.from_numpy(out.arrays["clean"])
    built = workbench_restoration.workbench_models()[model.factory](**model.factory_arguments)
    built.load_state_dict(out.models["network_ssim"])
    torch.testing.assert_close(built(clean).detach(), torch.from_numpy(out.arrays["recon"][2]), atol=1e-5, rtol=1e-4)
    small = {"channels": 1, "height": 16, "width": 16, "code": 4}
    vae = workbench_restoration.workbench_models()["autoencoder"]("fully_connected", variational=True, **small)
    assert vae.distribution(torch.rand(2, 1, 16, 16))[1].shape == (2, 4)
    assert isinstance(workbench_restoration.workbench_models()["srcnn"](), SRCNN)


def test_without_labels_the_codes_are_kept_but_not_probed() -> None:
    out, result = record(MSSSIM, {"data": crops(40, 16).drop_vars("label")}, **TINY, losses=("mse", "ssim"))
    assert out.arrays["code"].shape == (2, 8, 8)
    assert "probe_accuracy" not in out.arrays
    assert any("not probed" in note for note in check_report(MSSSIM, result).notes)


# ------------------------------------------------------------------------------------------------------- slow claims


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "data/cifar10/original_subset.npz").is_file(), reason="CIFAR-10 is not beside the project"
)
def test_cifar10_ssim_training_beats_squared_error_by_a_tenth_of_ssim_in_each_of_three_trainings() -> None:
    """4500 grey training images, 585 for validation, 500 test images, 5 epochs; repetitions 0 to 2 of seed 0."""
    stored = np.load(SHARED / "data/cifar10/original_subset.npz")
    data, test = (
        xr.Dataset(
            {
                "image": (("sample", "channel", "y", "x"), stored[f"x_{part}"][:count]),
                "label": ("sample", stored[f"y_{part}"][:count].astype(np.int64)),
            }
        )
        for part, count in (("train", 5085), ("test", 500))
    )
    out, _ = record(
        MSSSIM,
        {"data": data, "test": test},
        losses=("mse", "ssim"),
        grey=True,
        code=64,
        epochs=5,
        batch_size=64,
        repetitions=3,
        validation_fraction=585 / 5085,
    )
    mean = out.arrays["metric_mean"]
    print({name: mean[:, column].round(4).tolist() for column, name in enumerate(METRICS)})
    print("probe", out.arrays["probe_accuracy"].round(3).tolist())
    assert (mean[1, METRICS.index("ssim")] - mean[0, METRICS.index("ssim")] >= 0.10).all()
    assert (mean[0, METRICS.index("psnr")] - mean[1, METRICS.index("psnr")] >= 0.8).all()


def folder(path: Path, most: int | None = None) -> list[torch.Tensor]:
    """Pictures of a folder, each (1, channel, y, x) float32 in 0..1."""
    pictures = [np.atleast_3d(np.asarray(Image.open(file))) for file in sorted(path.iterdir())[:most]]
    return [torch.from_numpy(picture / np.float32(255)).permute(2, 0, 1)[None] for picture in pictures]


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "data/restoration/train400").is_dir(), reason="BSD400 and Set5 are not beside the project"
)
def test_srcnn_x3_by_ssim_scores_better_in_ssim_and_by_mse_in_psnr() -> None:
    """100 BSD images, 14 patches of 48 px each, batch 16, 3 epochs (264 steps); Set5, Y, border 3, 8 bits.

    Scores of bicubic enlargement are printed to compare with. So few steps do not beat it in PSNR.
    """
    images = torch.cat(folder(SHARED / "data/restoration/train400", 110))
    params = Params(task="superres", losses=("mse", "ssim"), epochs=3, batch_size=16, patches_per_image=14)
    pairs = torch.cat(enlarged_pair(images, 3), 1)
    generator = torch.Generator().manual_seed(0)
    patches = random_patches(pairs, params.patch, params.patches_per_image, generator)
    out = RecordingOut()
    start = initial_network(params, (2, 48, 48), generator)
    trainings = Trainings(out, 2)
    score = {}
    networks = {
        name: train_at_best_rate(
            start, image_loss(params, name), patches[: 100 * 14], patches[100 * 14 :], lambda rate: recipe(params, rate),
            (1e-3,), trainings, name=name, transform=turn_and_flip,
        ).network
        for name in params.losses
    }  # fmt: skip
    for name in ("bicubic", *params.losses):
        scores = []
        for image in folder(SHARED / "data/restoration/set5"):
            enlarged, clean = enlarged_pair(image, 3)
            if name == "bicubic":
                restored = metrics.quantize(enlarged)
            else:
                restored = restore(networks[name], torch.cat([enlarged, clean], 1))[0]
            inner = [metrics.crop_border(picture, 3) for picture in (restored, clean)]
            scores.append([metrics.psnr(*inner).item(), metrics.ssim(*inner).item()])
        score[name] = np.mean(scores, 0)
    print({name: value.round(4).tolist() for name, value in score.items()})
    assert score["ssim"][1] > score["mse"][1]
    assert score["mse"][0] > score["ssim"][0]


def test_srcnn_compares_only_pixels_that_saw_no_border() -> None:
    network = SRCNN()
    assert sum(parameter.numel() for parameter in network.parameters()) == 8129
    image = torch.rand((1, 1, 40, 40), generator=torch.Generator().manual_seed(0))
    assert network(image).shape == image.shape
    padded = torch.nn.functional.pad(image, (8,) * 4, mode="reflect")  # another border must not matter inside
    inside = network(padded)[..., 8:-8, 8:-8]
    reach = SRCNN.reach
    torch.testing.assert_close(
        metrics.crop_border(network(image), reach), metrics.crop_border(inside, reach), atol=1e-6, rtol=1e-5
    )
    assert not torch.allclose(network(image)[..., :1, :], inside[..., :1, :], atol=1e-4)
    pair = torch.cat([image, upscale(image[..., :20, :20], 2)], 1)
    objective = reconstruction.Objective(network, ImageLoss("mse"))
    changed = pair.clone()
    changed[:, 1, :reach] = 0
    torch.testing.assert_close(objective(pair), objective(changed))
