"""Averaging pretrained and fine-tuned models: trainings, figures against the stored logits, and what small data must show."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from scipy import special
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error
from workbench import CancelledError, InputError, Inputs
from workbench.subjects.array_files import read_idx
from workbench.subjects.builtin import digits, small_cnn
from workbench.toolkit import Recipe, fit, predict_all, soft_cross_entropy

from unit.recording_out import RecordingOut, check_report, record
from workbench_calibration.bang import BalancedAveraging
from workbench_calibration.bang_report import _summary, gain
from workbench_calibration.bang_training import finetuning, fresh_colours
from workbench_calibration.multicolor import draw_frame, prepare_digits
from workbench_calibration.wise import interpolate

THEORY = {"theory_draws": 200, "theory_spurious": 4, "theory_invariant": 2}
QUICK = {
    **THEORY,
    "epochs": 1,
    "seeds": 2,
    "batch_size": 32,
    "alphas": (0.25,),
    "taus": (1.0, 3.0),
    "losses": ("ce", "mixup_ls"),
}


def part(start, stop):
    return digits().isel(sample=slice(start, stop))


def shifted():
    data = part(300, 400)
    data["image"] = (1 - data["image"]).astype(np.float32)
    return data.assign_coords(domain=("sample", ["night"] * 60 + ["fog"] * 40))


@pytest.fixture(scope="module")
def pretrained():
    """A network that knows a little of digits."""
    torch.manual_seed(0)
    model = small_cnn(10, width=4)
    data = part(400, 700)
    recipe = Recipe(epochs=6, batch_size=30, optimizer="adam", learning_rate=1e-2, weight_decay=0.0)
    image, label = torch.from_numpy(data["image"].values), torch.from_numpy(data["label"].values)
    fit(model, image, label, recipe, generator=torch.Generator().manual_seed(0))
    return model.eval()


# ----------------------------------------------------------------------------------------------------------- trainings


def test_fine_tuning_losses_are_what_their_names_say():
    recipe = Recipe(epochs=1)
    image, label = torch.rand((8, 1, 4, 4)), torch.arange(8) % 3
    logit = torch.randn((8, 3), generator=torch.Generator().manual_seed(1))
    log_p = logit.log_softmax(1)
    hard = -log_p[range(8), label]
    for loss in ("ce", "ls", "mixup", "mixup_ls"):
        own, transform = finetuning(loss, recipe, smoothing=0.1, alpha=1.0, classes=3)
        mixed, target = (
            (image, label) if transform is None else transform(image, label, torch.Generator().manual_seed(2))
        )
        value = float(soft_cross_entropy(logit, target, label_smoothing=own.label_smoothing))
        if loss == "ce":
            assert value == pytest.approx(float(F.cross_entropy(logit, label)))
        elif loss == "ls":  # eps / K on every class, by way of the mean log-probability
            assert value == pytest.approx(float((0.9 * hard - 0.1 * log_p.mean(1)).mean()))
        else:
            assert target.shape == (8, 3)
            assert target.sum(1).numpy() == pytest.approx(np.ones(8))
            share = float(target.max(1).values[target.max(1).values < 1][0])
            assert not torch.equal(mixed, image)
            base = float(-(target * log_p).sum(1).mean())
            expected = base if loss == "mixup" else 0.9 * base - 0.1 * float(log_p.mean(1).mean())
            assert value == pytest.approx(expected, rel=1e-5)
            both = target > 0  # one lambda for the whole batch
            assert all({round(float(w), 5) for w in row[on]} <= {round(share, 5), round(1 - share, 5), 1.0}
                       for row, on in zip(target, both, strict=True))  # fmt: skip


def test_fresh_colours_are_new_in_every_batch_and_leave_the_digit():
    digit, frame = prepare_digits(torch.rand((5, 1, 8, 8))), draw_frame(np.random.default_rng(0))
    transform, generator = fresh_colours(frame), torch.Generator().manual_seed(0)
    first, second = (transform(digit.float() / 255, torch.arange(5), generator)[0] for _ in range(2))
    assert first.shape == (5, 3, 18, 18)
    assert not torch.equal(first, second)
    assert torch.equal(first[..., 2:-2, 2:-2], second[..., 2:-2, 2:-2])
    assert first[:, 0, 2:-2, 2:-2].numpy() == pytest.approx(digit.numpy() / 255)


# ---------------------------------------------------------------------------------------------------------- the method


def test_without_inputs_there_is_the_theory():
    out, result = record(BalancedAveraging, {}, **THEORY)
    report = check_report(BalancedAveraging, result)
    table = out.arrays["theory_accuracy"]
    assert table.shape == (3, 3, 5)
    assert np.ptp(table[0]) == 0  # a single model shares nothing
    assert out.arrays["theory_gain"] == pytest.approx(table[2] - table[1])
    assert out.arrays["theory_gain"][0, 0] == 0
    assert "voting model" in report.summary


def consistent(out):
    """Every figure of a run against its stored logits, by other code."""
    d = out.data
    label, domain = d["label"].values, d["domain"].values
    p = special.softmax(d["logit"].values.astype(np.float64), axis=-1)
    for name in d["dataset"].values:
        own = domain == name
        for k, predictor in enumerate(d["predictor"].values):
            at = {"predictor": predictor, "dataset": name, "seed": 0}
            assert float(d["accuracy"].sel(at)) == pytest.approx((p[k, own].argmax(1) == label[own]).mean())
            assert float(d["confidence_mean"].sel(at)) == pytest.approx(p[k, own].max(1).mean(), abs=1e-5)
            ece = multiclass_calibration_error(torch.from_numpy(p[k, own]), torch.from_numpy(label[own]), 10, n_bins=15)
            assert float(d["ece"].sel(at)) == pytest.approx(float(ece), abs=1e-5)
    right = {predictor: p[k].argmax(1) == label for k, predictor in enumerate(d["predictor"].values)}
    for loss in d["loss"].values:
        ft, wise = right[f"ft_{loss}"], right[f"wise_{loss}"]
        assert d["outcome"].sel(loss=loss).values.tolist() == (4 * right["pre"] + 2 * ft + 1 * wise).tolist()
        for name in d["dataset"].values:
            own = domain == name
            share = d["outcome_share"].sel(loss=loss, dataset=name, seed=0)
            assert float(share.sel(outcome_kind="FFT")) == pytest.approx((~right["pre"] & ~ft & wise)[own].mean())
            assert float(share.sum()) == pytest.approx(1)
            curve = d["curve_accuracy"].sel(loss=loss, dataset=name, seed=0)
            for alpha, predictor in ((0.0, "pre"), (0.5, f"wise_{loss}"), (1.0, f"ft_{loss}")):
                assert float(curve.sel(alpha=alpha)) == pytest.approx(right[predictor][own].mean())
            cooled = d["cooled_accuracy"].sel(loss=loss, dataset=name, seed=0, tau=1.0)
            assert float(cooled.sel(space="weights")) == pytest.approx(wise[own].mean())
            assert float(cooled.sel(space="probabilities")) == pytest.approx(right[f"ose_prob_{loss}"][own].mean())
    if "curve_ood_accuracy" in d:
        kept = np.isin(domain, d["dataset"].values[d["is_shifted"].values])
        assert d["shifted_confidence"].values == pytest.approx(p[:, kept].max(-1), abs=1e-5)
        mean = d["curve_accuracy"].isel(dataset=np.flatnonzero(d["is_shifted"].values)).mean(("dataset", "seed"))
        assert d["curve_ood_accuracy"].values == pytest.approx(mean.values)
        assert d["point_ood"].values == pytest.approx(mean.values.ravel())


def test_given_models_are_judged_as_they_are(pretrained):
    tuned = copy.deepcopy(pretrained)
    with torch.no_grad():
        for value in tuned.state_dict().values():
            if value.is_floating_point():
                value.mul_(1.1)
    out, result = record(
        BalancedAveraging,
        {"data": part(0, 200), "shifted": shifted(), "model": pretrained, "finetuned": tuned},
        **QUICK,
    )
    report = check_report(BalancedAveraging, result)
    assert out.coordinates["dataset"][1].tolist() == ["id", "night", "fog"]
    assert out.arrays["is_shifted"].tolist() == [False, True, True]
    assert out.coordinates["alpha"][1].tolist() == [0.0, 0.25, 0.5, 1.0]
    consistent(out)
    # rows: those of `data` that did not choose alpha, then `shifted` in its order
    index, domain = out.arrays["sample_index"], out.arrays["domain"]
    image = np.concatenate([part(0, 200)["image"].values[index[domain == "id"]], shifted()["image"].values])
    assert len(index) == 140 + 100
    merged = copy.deepcopy(pretrained)
    for k, alpha in ((0, 0.0), (1, 1.0), (2, 0.5)):
        merged.load_state_dict(interpolate(pretrained.state_dict(), tuned.state_dict(), alpha))
        expected, _ = predict_all(merged, torch.from_numpy(image))
        assert out.arrays["logit"][k] == pytest.approx(expected.numpy(), abs=1e-4)
    metrics = {metric.name: metric for metric in report.metrics}
    assert metrics["wise_gain_given"].interval is not None


def test_the_gain_of_one_training_has_an_interval_over_samples(pretrained):
    out, result = record(
        BalancedAveraging, {"data": part(0, 200), "shifted": shifted(), "model": pretrained}, **{**QUICK, "seeds": 1}
    )
    d = out.data
    right = d["logit"].values.argmax(-1) == d["label"].values
    names = d["predictor"].values.tolist()
    found = gain(result, "ce")
    means = {n: np.mean([right[names.index(n)][d["domain"].values == s].mean() for s in ("night", "fog")]) for n in
             ("pre", "ft_ce", "wise_ce")}  # fmt: skip
    assert found.value == pytest.approx(means["wise_ce"] - max(means["pre"], means["ft_ce"]))
    assert found.lower <= found.value <= found.upper
    assert found.upper - found.lower < 0.6


def test_own_model_is_fine_tuned_with_every_loss(pretrained):
    before = copy.deepcopy(pretrained.state_dict())
    out, result = record(BalancedAveraging, {"data": part(0, 200), "shifted": shifted(), "model": pretrained}, **QUICK)
    check_report(BalancedAveraging, result)
    consistent(out)
    assert all(torch.equal(value, pretrained.state_dict()[key]) for key, value in before.items())
    assert set(out.models) == {"ft_ce", "wise_ce", "ft_mixup_ls", "wise_mixup_ls"}
    for loss in ("ce", "mixup_ls"):
        for key, value in out.models[f"wise_{loss}"].items():
            if value.is_floating_point():
                assert torch.allclose(value, (before[key] + out.models[f"ft_{loss}"][key]) / 2, atol=1e-6)
        assert not torch.allclose(before["head.weight"], out.models[f"ft_{loss}"]["head.weight"])
    accuracy = out.data["accuracy"]
    assert np.array_equal(accuracy.sel(predictor="pre", seed=0), accuracy.sel(predictor="pre", seed=1))


def test_measured_statistics_leave_the_ends_alone(pretrained):
    inputs = {"data": part(0, 200), "shifted": shifted(), "model": pretrained}
    settings = {**QUICK, "losses": ("ce",), "seeds": 1}
    curves = {
        bn: record(BalancedAveraging, inputs, bn=bn, **settings)[0].arrays["logit"]
        for bn in ("interpolate", "re-estimate", "keep")
    }
    for bn in ("re-estimate", "keep"):
        assert np.array_equal(curves[bn][:2], curves["interpolate"][:2])
        assert not np.allclose(curves[bn][2], curves["interpolate"][2])


def test_what_is_said_of_bang_follows_the_figures_and_no_choice_on_shifted_data(pretrained):
    inputs = {"data": part(0, 200), "shifted": shifted(), "model": pretrained}
    settings = {**QUICK, "losses": ("ce", "ls", "mixup_ls"), "seeds": 1}
    out, result = record(BalancedAveraging, inputs, **settings)
    d = out.data

    def mean(array, name):
        return float(d[array].sel(predictor=name).isel(dataset=[1, 2]).mean())

    def text():
        return check_report(BalancedAveraging, result).summary

    moves = "lowers" if mean("confidence_mean", "ft_mixup_ls") < mean("confidence_mean", "ft_ce") else "does not lower"
    assert f"Fine-tuning with Mixup and label smoothing {moves} the" in text()
    assert f"to the average ({mean('accuracy', 'wise_mixup_ls'):.1%})" in text()
    # Whatever the training gave: a confidence that rises is not called lowered.
    arrays = {name: d[name] for name in ("accuracy", "confidence_mean", "curve_accuracy", "is_shifted", "outcome", "logit",
                                         "label", "domain")}  # fmt: skip
    for value, words in ((0.0, "smoothing lowers the"), (1.0, "smoothing does not lower the")):
        arrays["confidence_mean"] = d["confidence_mean"].copy()
        arrays["confidence_mean"].loc[{"predictor": "ft_mixup_ls"}] = value
        assert words in _summary(arrays, ["ce", "ls", "mixup_ls"])


def test_a_model_without_a_linear_head_is_refused_before_it_is_trained():
    network = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.raises(InputError, match="linear layer as head"):
        record(BalancedAveraging, {"data": part(0, 100), "model": network}, **{**QUICK, "epochs": 10_000})


def test_digits_of_fewer_classes_have_no_example_of_the_others():
    data = part(0, 600)
    data = data.isel(sample=np.flatnonzero(data["label"].values < 2))
    settings = {**QUICK, "pre_epochs": 1, "pre_samples": 20, "p": (0.9,), "losses": ("ce",), "seeds": 1}
    out, _ = record(BalancedAveraging, {"data": data}, **settings)
    lit = out.data["example_image"].values.max(axis=(2, 3, 4)) > 0
    assert lit[:, :2].all()
    assert not lit[:, 2:].any()


def test_digits_alone_become_multicolor_mnist():
    out, result = record(
        BalancedAveraging, {"data": part(0, 300)}, **{**QUICK, "pre_epochs": 2, "pre_samples": 50, "p": (0.5, 0.9)}
    )
    check_report(BalancedAveraging, result)
    consistent(out)
    d = out.data
    assert d["dataset"].values.tolist() == ["id", "p=0.5", "p=0.9", "p=1"]
    assert d["is_shifted"].values.tolist() == [
        False,
        True,
        True,
        False,
    ]  # the digit alone is not a shift of the same kind
    assert d["image"].shape[1:] == (3, 18, 18)
    own = d["permutation"].values[np.arange(32)[None], d["label"].values[:, None]]
    kept = (d["patch_color"].values == own).mean(1)
    for name, p in zip(d["dataset"].values, d["randomisation"].values, strict=True):
        assert kept[d["domain"].values == name].mean() == pytest.approx(1 - p + p / 10, abs=0.03)
    sets = [set(d["sample_index"].values[d["domain"].values == name]) for name in d["dataset"].values]
    assert all(one == sets[0] for one in sets)  # the same digits in other colours
    assert d["pair_accuracy"].shape == (4, 2, 3)
    assert d["pair_mean"].values == pytest.approx(d["pair_accuracy"].mean("pair").values)


def test_a_stopped_run_goes_on_to_the_same_result(monkeypatch):
    monkeypatch.setattr("workbench_calibration.bang_training.CHECKPOINT_SECONDS", 0.0)
    settings = {**QUICK, "pre_epochs": 2, "pre_samples": 50, "p": (0.9,), "seeds": 1, "epochs": 2}
    inputs = {"data": part(0, 300)}
    whole, _ = record(BalancedAveraging, inputs, **settings)
    stopped = RecordingOut(BalancedAveraging, cancel_after=26)
    with pytest.raises(CancelledError):
        BalancedAveraging().run(Inputs(inputs), BalancedAveraging.Params(**settings), stopped)
    assert len(stopped.checkpoints) > 1
    resumed = RecordingOut(BalancedAveraging, restored=stopped.checkpoints[-1])
    BalancedAveraging().run(Inputs(inputs), BalancedAveraging.Params(**settings), resumed)
    assert len(resumed.progressed) < len(whole.progressed)
    for name, values in whole.arrays.items():
        assert np.array_equal(values, resumed.arrays[name]), name


def colour_pictures():
    return xr.Dataset({"image": (("sample", "channel", "y", "x"), np.zeros((40, 3, 8, 8), np.float32)),
                       "label": ("sample", np.arange(40) % 10)})  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"model": small_cnn(10)}, "beside the other inputs"),
        ({"data": part(0, 60), "shifted": shifted()}, "pretrained"),
        ({"data": part(0, 60), "model": small_cnn(10, width=4), "finetuned": small_cnn(10, width=8)}, "same weights"),
        ({"data": part(0, 60), "model": small_cnn(3)}, "logit for each of 10 classes"),
        ({"data": part(0, 60), "model": small_cnn(10), "shifted": colour_pictures()}, r"shape \(1, 8, 8\)"),
        ({"data": colour_pictures()}, "square grey"),
    ],
)
def test_bad_input_is_named(inputs, message):
    with pytest.raises(InputError, match=message):
        BalancedAveraging().run(Inputs(inputs), BalancedAveraging.Params(**THEORY), RecordingOut(BalancedAveraging))


@pytest.mark.parametrize("params", [{"alphas": (1.2,)}, {"p": (-0.1,)}, {"taus": (0.0,)}])
def test_bad_parameters_are_refused(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        BalancedAveraging.Params(**params)


# -------------------------------------------------------------------------------------------------------------- claims


@pytest.fixture(scope="module")
def multicolor_digits():
    """1,300 digits to train on, 497 for judging and for choosing alpha, 3 seeds, all losses."""
    return record(BalancedAveraging, {"data": digits()}, test_fraction=497 / 1797, selection_fraction=0.1)


@pytest.mark.slow
def test_claim_the_mean_of_two_networks_beats_both_where_colours_mislead(multicolor_digits):
    d = multicolor_digits[0].data
    for name in ("p=0.8", "p=0.85", "p=0.9"):
        pairs = d["pair_accuracy"].sel(dataset=name)
        better = np.maximum(pairs.sel(member="model 1"), pairs.sel(member="model 2"))
        assert float((pairs.sel(member="ensemble") - better).mean()) > 0.015
        assert float(d["pair_fft"].sel(dataset=name).mean()) > 0.004
    assert float(d["pair_mean"].sel(dataset="id").min()) > 0.995
    assert float(d["pair_mean"].sel(dataset="p=1").max()) < float(d["pair_mean"].sel(dataset="p=0.7").min())


@pytest.mark.slow
def test_claim_averaged_weights_are_at_least_as_good_as_the_ends(multicolor_digits):
    """WiSE-FT after plain fine-tuning, at p = 0.85, mean of 3 seeds; in distribution fine-tuning pays."""
    curve = multicolor_digits[0].data["curve_accuracy"].sel(loss="ce").mean("seed")
    shift = curve.sel(dataset="p=0.85").values
    assert shift[1:-1].max() >= max(shift[0], shift[-1])
    inside = curve.sel(dataset="id")
    assert float(inside.sel(alpha=1.0)) > float(inside.sel(alpha=0.0)) + 0.02


@pytest.mark.slow
def test_claim_bang_makes_the_fine_tuned_network_less_sure_of_itself(multicolor_digits):
    """Confidence falls by a quarter and more; accuracy of the average need not rise, and the report says when it falls."""
    out, result = multicolor_digits
    confidence = out.data["confidence_mean"].sel(dataset="p=0.85").mean("seed")
    plain = float(confidence.sel(predictor="ft_ce"))
    assert plain > 0.93
    for loss in ("ls", "mixup"):
        assert float(confidence.sel(predictor=f"ft_{loss}")) < plain - 0.2
    assert float(confidence.sel(predictor="ft_mixup_ls")) < plain - 0.3
    summary = check_report(BalancedAveraging, result).summary
    assert "lowers the fine-tuned model's confidence" in summary


@pytest.mark.slow
def test_claim_on_mnist(shared_data):
    """3,000 images of MNIST's test set (36 x 36 with their frame), 2 pairs of networks: the ensemble is worth points."""
    folder = shared_data / "mnist"
    data = xr.Dataset(
        {
            "image": (
                ("sample", "channel", "y", "x"),
                read_idx(folder / "t10k-images-idx3-ubyte.gz", "data")[:3000, None],
            ),
            "label": ("sample", read_idx(folder / "t10k-labels-idx1-ubyte.gz", "data")[:3000].astype(np.int64)),
        }
    )
    out, _ = record(BalancedAveraging, {"data": data}, seeds=2, losses=("ce", "mixup_ls"), p=(0.8, 0.9), alphas=(0.5,),
                    pre_epochs=20)  # fmt: skip
    d = out.data
    assert d["image"].shape[1:] == (3, 36, 36)
    for name in ("p=0.8", "p=0.9"):
        members = d["pair_mean"].sel(dataset=name)
        assert float(members.sel(member="ensemble")) > float(members[:2].max()) + 0.01
        assert float(d["pair_fft"].sel(dataset=name).mean()) > 0.002
    confidence = d["confidence_mean"].sel(dataset="p=0.9").mean("seed")
    assert float(confidence.sel(predictor="ft_mixup_ls")) < float(confidence.sel(predictor="ft_ce")) - 0.2


@pytest.mark.slow
def test_claim_a_network_with_batch_norm_keeps_what_it_knew_of_shifted_digits():
    """Pretrained on inverted and noisy digits too, fine-tuned on clean ones: the average is near the better one on both sides."""
    data = digits()
    rng, image = np.random.default_rng(0), data["image"].values
    noisy = np.clip(1 - image + 0.3 * rng.standard_normal(image.shape), 0, 1).astype(np.float32)
    model = small_cnn(10, width=8)
    torch.manual_seed(0)
    recipe = Recipe(epochs=10, batch_size=50, optimizer="adam", learning_rate=5e-3, weight_decay=0.0)
    label = torch.from_numpy(data["label"].values)
    old = torch.from_numpy(np.concatenate([noisy[:600], image[:150]]))
    fit(model, old, torch.cat([label[:600], label[:150]]), recipe, generator=torch.Generator().manual_seed(0))
    rest = data.isel(sample=slice(600, None))
    shift = rest.copy()
    shift["image"] = (rest["image"].dims, noisy[600:])
    out, _ = record(BalancedAveraging, {"data": rest, "shifted": shift, "model": nn.Sequential(model)}, losses=("ce",), seeds=3,
                    batch_size=64)  # fmt: skip
    curve = out.data["curve_accuracy"].sel(loss="ce").mean("seed")
    inside, outside = curve.sel(dataset="id"), curve.sel(dataset="shifted")
    assert float(inside.sel(alpha=1.0)) > float(inside.sel(alpha=0.0)) + 0.02  # fine-tuning helps where it trains
    assert float(outside.sel(alpha=1.0)) < float(outside.sel(alpha=0.0)) - 0.02  # and costs elsewhere
    trade = [float(inside.sel(alpha=a) + outside.sel(alpha=a)) for a in (0.0, 0.5, 1.0)]
    assert trade[1] > max(trade[0], trade[2])
