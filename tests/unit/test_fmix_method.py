"""The method: what it stores with and without data and model, that trainings are fair and repeatable, and what they show."""

import random

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from workbench.errors import CancelledError, InputError
from workbench.method import Inputs
from workbench.toolkit import Recipe

from unit.recording_out import RecordingOut, check_report, record
from workbench_augmentation import fmix, masks, mixing_study
from workbench_augmentation.fmix import FMix
from workbench_augmentation.mixing_study import StudySettings, add_noise, grad_cam, reinitialise, scores

QUICK = {"masks": 3, "analysed_masks": 5, "decays": (1.0, 3.0), "shares": (0.2, 0.7), "pairs": 4}
TRAINING = QUICK | {"epochs": 3, "batch_size": 16, "train_images": 40, "test_images": 50, "curve_points": 2}
TRAINING |= {"modes": ("none", "fmix")}


def data(count=200, shape=(8, 8), channels=1, labelled=True, seed=0):
    """Two classes of noise, the second brighter; float32."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    image = 0.6 * rng.random((count, channels, *shape)) + 0.4 * label.reshape(-1, 1, *[1] * len(shape))
    dims = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}[len(shape)]
    dataset = xr.Dataset({"image": (("sample", "channel", *dims), image.astype(np.float32))})
    return dataset.assign(label=("sample", label.astype(np.int64))) if labelled else dataset


def network(classes=2, channels=1):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, classes),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(24,), (16, 15), (6, 8, 7)])
@pytest.mark.parametrize("spectrum", ["isotropic", "official_code"])
def test_masks_without_any_input(shape, spectrum):
    out, result = record(FMix, {}, shape=shape, spectrum=spectrum, **QUICK)
    pixels = np.prod(shape)
    assert out.arrays["mask"].shape == (3, *shape)
    assert np.abs(out.arrays["mask_mean"] - out.arrays["lam"]).max() <= 1 / pixels
    assert np.allclose(out.arrays["mask"].reshape(3, -1).mean(1), out.arrays["mask_mean"])
    shown = out.arrays["grid_mask"].reshape(2, 2, -1).mean(2)
    assert np.abs(shown - [0.2, 0.7]).max() <= 1 / pixels
    report = check_report(FMix, result)
    assert {metric.name for metric in report.metrics} >= {"component_count", "boundary_length"}
    assert "accuracy" not in out.arrays


def test_a_run_stores_the_masks_of_a_repository_seeded_with_its_seed():
    out, _ = record(FMix, {}, seed=7, shape=(12, 11), spectrum="official_code", **QUICK)
    numpy_random, coin = np.random.RandomState(7), random.Random(7)
    for index in range(3):
        draw = masks.official_mask((12, 11), numpy_random, coin)
        assert out.arrays["lam"][index] == draw.lam
        assert np.array_equal(out.arrays["mask"][index], draw.mask)


def test_the_analysis_tells_both_spectra_apart():
    out, result = record(FMix, {}, shape=(32, 32), **(QUICK | {"analysed_masks": 150}))
    table = next(table for table in check_report(FMix, result).tables if table.title == "Masks by delta")
    assert [row[1] for row in table.rows] == [-2, -6]
    for row in table.rows:
        assert row[2] == pytest.approx(row[1], abs=0.3)
        assert abs(row[3] - row[1]) > 0.5  # the official code is steeper in its one direction
    notes = " ".join(check_report(FMix, result).notes)
    assert "(100.0% of the power here; isotropic 9" in notes
    law, power = out.arrays["radial_power_law"], out.arrays["radial_power_isotropic"]
    assert np.abs(np.log(law / power)[2:11]).max() < 0.5  # over almost 5 decades of power


@pytest.mark.parametrize(("shape", "channels"), [((20,), 2), ((9, 8), 3), ((5, 6, 7), 1)])
def test_pairs_are_mixed_in_every_mode(shape, channels):
    dataset = data(30, shape, channels, labelled=False)
    modes = ("none", "mixup", "cutmix", "fmix", "mixup+fmix", "cutout")
    out, result = record(FMix, {"data": dataset}, modes=modes, **QUICK)
    image, first = dataset["image"].to_numpy(), out.arrays["first"]
    mixed = dict(zip(modes, out.arrays["mixed"], strict=True))
    partner = dict(zip(modes, out.arrays["partner"], strict=True))
    share = dict(zip(modes, out.arrays["image_share"], strict=True))
    assert np.array_equal(mixed["none"], image[first])
    weight = share["mixup"].reshape(-1, 1, *[1] * len(shape))
    assert np.allclose(mixed["mixup"], weight * image[first] + (1 - weight) * image[partner["mixup"]], atol=1e-6)
    for mode in ("fmix", "cutmix"):
        own = (mixed[mode] == image[first]).all(1)
        assert (own | (mixed[mode] == image[partner[mode]]).all(1)).all()
        assert np.allclose(own.reshape(len(first), -1).mean(1), share[mode], atol=1e-6)
        assert (partner[mode] != first).all()
    assert len(set(share["fmix"])) == len(first)
    assert out.arrays["grid_mixed"].shape == (2, 2, channels, *shape)
    check_report(FMix, result)


def test_bare_arrays_are_pictures_and_named_ones_may_be_anything():
    from workbench.subjects import as_dataset, check_dataset

    role = FMix.inputs["data"]
    pictures = as_dataset((np.zeros((3, 1, 8, 8), np.float32), np.arange(3)), variables=role.variables)
    assert (pictures["image"].dims, pictures["label"].dims) == (("sample", "channel", "y", "x"), ("sample",))
    for dataset in (pictures, data(5, (9,)), data(5, (4, 5, 6))):
        check_dataset("data", role, dataset)


def test_8_bit_pictures_signals_and_volumes_are_scaled():
    for shape in ((12,), (6, 6), (4, 4, 5)):
        dataset = data(10, shape, labelled=False)
        eight_bit = dataset.assign(image=(dataset["image"] * 255).round().astype(np.uint8))
        out, _ = record(FMix, {"data": eight_bit}, modes=("none", "fmix"), **QUICK)
        expected = eight_bit["image"].to_numpy()[out.arrays["first"]] / 255
        assert np.allclose(out.arrays["mixed"][0], expected, atol=1e-6)


def test_a_training_compares_modes_on_unseen_images():
    modes = ("none", "mixup", "cutmix", "fmix", "mixup+fmix", "cutout", "random_erase")
    dataset = data()
    params = TRAINING | {"modes": modes, "cutout_length": 3, "seeds": 1}
    out, result = record(FMix, {"data": dataset, "model": network()}, **params)
    assert out.arrays["accuracy"].shape == (7, 1, 2)
    assert out.coordinates["epoch"][1].tolist() == [2, 3]
    logit, label = out.arrays["logit"], out.arrays["label"]
    assert np.array_equal(label, dataset["label"].to_numpy()[out.arrays["sample_index"]])
    assert np.allclose((logit.argmax(-1) == label).mean(-1), out.arrays["accuracy"][..., -1])
    shifted = logit.astype(np.float64) - logit.max(-1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_probability, np.broadcast_to(label[:, None], (7, 1, 50, 1)), -1).mean((-1, -2))
    assert np.allclose(nll, out.arrays["nll"])
    report = check_report(FMix, result)
    gain = next(metric for metric in report.metrics if metric.name == "gain_fmix")
    final = out.arrays["accuracy"][..., -1].mean(1)
    assert gain.value == pytest.approx(final[3] - final[0])
    assert set(out.models) == set(modes)
    with torch.no_grad():
        image = torch.from_numpy(dataset["image"].to_numpy()[out.arrays["sample_index"]])
        assert np.allclose(out.modules["fmix"](image).numpy(), logit[3, 0], atol=1e-5)


def test_no_training_sees_the_images_it_is_judged_on():
    dataset = data()
    train, test, index, *_ = fmix._study(
        Inputs({"data": dataset}), FMix.Params(train_images=60, test_images=70), (8, 8), 0
    )
    rows = [{part.tobytes() for part in samples.image.numpy()} for samples in (train, test)]
    assert (len(rows[0]), len(rows[1]), len(rows[0] & rows[1])) == (60, 70, 0)
    assert np.array_equal(dataset["image"].to_numpy()[index], test.image.numpy())
    assert np.bincount(train.label.numpy()).tolist() == [30, 30]
    train, test, *_ = fmix._study(Inputs({"data": dataset, "test": data(90, seed=1)}), FMix.Params(), (8, 8), 0)
    assert (len(train), len(test)) == (200, 90)


def test_what_the_model_had_learnt_does_not_matter_and_a_seed_fixes_everything():
    first, second = network(), network()
    assert not torch.equal(first[0].weight, second[0].weight)
    runs = [record(FMix, {"data": data(), "model": model}, **TRAINING)[0].arrays for model in (first, second)]
    assert runs[0].keys() == runs[1].keys()
    for name in runs[0]:
        assert np.array_equal(runs[0][name], runs[1][name], equal_nan=runs[0][name].dtype.kind == "f"), name
    assert not np.array_equal(runs[0]["logit"][0, 0], runs[0]["logit"][0, 1])  # seeds differ
    assert not np.array_equal(runs[0]["logit"][0, 0], runs[0]["logit"][1, 0])  # modes differ


def test_new_weights_are_drawn_from_the_seed_alone():
    models = [network(), network(), network()]
    state = torch.random.get_rng_state()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        model[1].running_mean += 3
        model.requires_grad_(False)
        reinitialise(model, seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert not torch.equal(models[0][0].weight, models[2][0].weight)
    assert (models[0][1].running_mean == 0).all()
    assert all(parameter.requires_grad for parameter in models[0].parameters())


def test_an_interrupted_study_goes_on_where_it_was(monkeypatch):
    monkeypatch.setattr(mixing_study, "CHECKPOINT_SECONDS", 0.0)
    inputs = {"data": data(), "model": network()}
    whole = RecordingOut(FMix)
    record(FMix, inputs, out=whole, **TRAINING)
    for cancel_after in (22, 45):  # in the first and in a later training
        stopped = RecordingOut(FMix, cancel_after=cancel_after)
        with pytest.raises(CancelledError):
            record(FMix, inputs, out=stopped, **TRAINING)
        assert stopped.checkpoints
        resumed = RecordingOut(FMix, restored=stopped.checkpoints[-1])
        record(FMix, inputs, out=resumed, **TRAINING)
        assert len(resumed.progressed) < len(whole.progressed)
        for name in ("accuracy", "train_accuracy", "logit", "nll", "noise_accuracy", "grad_cam"):
            assert np.array_equal(resumed.arrays[name], whole.arrays[name]), name


def test_the_alternation_keeps_its_place_over_an_interruption(monkeypatch):
    monkeypatch.setattr(mixing_study, "CHECKPOINT_SECONDS", 0.0)
    inputs, params = {"data": data(), "model": network()}, TRAINING | {"modes": ("mixup+fmix",), "seeds": 1}
    whole = RecordingOut(FMix)
    record(FMix, inputs, out=whole, **params)
    assert -(-40 // 16) % 2 == 1  # an odd number of batches an epoch: the place changes from epoch to epoch
    first = next(
        point for point in whole.checkpoints if point["current"] and point["current"]["training"]["epoch"] == 1
    )
    assert first["current"]["batches"] == 3
    resumed, _ = record(FMix, inputs, out=RecordingOut(FMix, restored=first), **params)
    assert np.array_equal(resumed.arrays["logit"], whole.arrays["logit"])


def test_multi_hot_labels_are_trained_with_binary_cross_entropy():
    dataset = data()
    hot = np.stack([dataset["label"], 1 - dataset["label"], np.arange(200) // 2 % 2], axis=1).astype(np.int64)
    dataset = dataset.drop_vars("label").assign(label=(("sample", "class"), hot))
    out, result = record(FMix, {"data": dataset, "model": network(3)}, **(TRAINING | {"epochs": 2}))
    probability = 1 / (1 + np.exp(-out.arrays["logit"].astype(np.float64)))
    label = out.arrays["label"]
    expected = -np.where(label == 1, np.log(probability), np.log(1 - probability)).mean((-1, -2))
    assert np.allclose(out.arrays["nll"], expected)
    assert np.allclose(((probability > 0.5) == label).mean((-1, -2)), out.arrays["accuracy"][..., -1])
    check_report(FMix, result)


def test_scores_by_hand():
    logit = torch.log(torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.7, 0.3]]))
    accuracy, nll, ece = scores(logit, torch.tensor([0, 1, 1, 0]))
    assert accuracy == 0.75
    assert nll == pytest.approx(-np.log([0.8, 0.4, 0.9, 0.7]).mean(), rel=1e-6)
    # Each confidence has a bin of its own: mean |hit - confidence|.
    assert ece == pytest.approx((0.2 + 0.6 + 0.1 + 0.3) / 4, rel=1e-6)


def test_grad_cam_of_a_network_with_known_gradients():
    """1x1 convolution to two channels a, b = x, 1 - x; mean; score of class 0 = 2 mean(a) - mean(b): map = relu(2 a - b)."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, 1.0]))
        model[3].weight.copy_(torch.tensor([[2.0, -1.0], [-1.0, 0.5]]))
    image = torch.rand(3, 1, 6, 5)
    expected = (3 * image[:, 0] - 1).relu()
    expected = expected / expected.amax(dim=(1, 2), keepdim=True)
    label = torch.zeros(3, dtype=torch.int64)
    assert torch.allclose(grad_cam(model.eval(), image, label), expected, atol=1e-5)
    assert not model[0]._forward_hooks


def test_noise_is_uniform_and_clipped():
    image = torch.full((4, 1, 60, 60), 0.5)
    noisy = add_noise(image, 0.2, torch.Generator().manual_seed(0))
    assert (float(noisy.min()), float(noisy.max())) == (pytest.approx(0.3, abs=1e-3), pytest.approx(0.7, abs=1e-3))
    assert float(noisy.std()) == pytest.approx(0.4 / 12**0.5, rel=0.02)
    assert float(add_noise(image, 3.0, torch.Generator()).max()) == 1


@pytest.mark.parametrize(("epochs", "points", "expected"), [(10, 4, (2, 5, 8, 10)), (3, 8, (1, 2, 3)), (7, 1, (7,))])
def test_curves_end_with_the_training(epochs, points, expected):
    settings = StudySettings(("none",), 1, Recipe(epochs=epochs), None, curve_points=points)
    assert settings.epochs_measured == expected


def test_the_paper_s_recipe_is_one_parameter_away():
    chosen = fmix.resolve(FMix.Params(budget="paper", epochs=10))
    assert (chosen["epochs"], chosen["learning_rate"], chosen["milestones"]) == (10, 0.1, (100, 150))
    assert fmix.resolve(FMix.Params())["schedule"] == "cosine"
    assert fmix.resolve(FMix.Params(schedule="step"))["milestones"] == (100, 150)
    recipe = FMix.Params(budget="paper")
    train, *_, found, padding, flip = fmix._study(Inputs({"data": data()}), recipe, (8, 8), 0)
    assert (found.weight_decay, found.batch_size, padding, flip, len(train)) == (1e-4, 128, 4, True, 100)


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))
        self.body = network()

    def forward(self, image):
        return self.body(image + self.token)


@pytest.mark.parametrize(
    ("inputs", "params", "argument"),
    [
        ({"model": network()}, {}, "data"),
        ({"data": data(labelled=False), "model": network()}, {}, "data['label']"),
        ({"data": data()}, {"shape": (9, 9)}, "shape"),
        ({"data": data(1)}, {}, "data"),
        ({"data": data(shape=(8,))}, {"modes": ("random_erase",)}, "modes"),
        ({"data": data(), "model": OwnParameter()}, {}, "model"),
        ({"data": data(), "model": network(1)}, {}, "model"),
        (
            {"data": data(), "model": network()},
            {"schedule": "step", "epochs": 20, "milestones": ()},
            "recipe.milestones",
        ),
        ({}, {"shape": (2, 2)}, "shape"),
    ],
)
def test_bad_inputs_are_named_before_any_work(inputs, params, argument):
    out = RecordingOut(FMix)
    with pytest.raises(InputError) as failure:
        record(FMix, inputs, out=out, **(QUICK | params))
    assert failure.value.argument == argument
    assert not out.arrays


@pytest.mark.parametrize(
    "params", [{"alpha": 0}, {"max_soft": 0.5}, {"modes": ()}, {"modes": ("fmx",)}, {"decays": ()}]
)
def test_parameters_out_of_range_are_refused(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        FMix.Params(**params)


@pytest.mark.slow
def test_masks_train_better_digits():
    """200 digits of 16 x 16: FMix gains at least 2 points over no mixing and is no worse than Mixup (3 seeds)."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    image = torch.from_numpy(digits.images / 16).float()[:, None]
    image = nn.functional.interpolate(image, size=(16, 16), mode="bilinear")
    dataset = xr.Dataset(
        {"image": (("sample", "channel", "y", "x"), image.numpy()), "label": ("sample", digits.target.astype(np.int64))}
    )
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    params = {"modes": ("none", "mixup", "fmix"), "seeds": 3, "epochs": 150, "train_images": 200, "curve_points": 1}
    out, result = record(FMix, {"data": dataset, "model": model}, **(QUICK | params))
    none, mixup, mixed = out.arrays["accuracy"][..., -1].mean(1)
    assert mixed >= none + 0.02
    assert mixed >= mixup - 0.005
    check_report(FMix, result)
