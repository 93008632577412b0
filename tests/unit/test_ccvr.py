"""CCVR: pooled statistics, virtual features, the federation, the method with and without images, the paper's claim."""

import copy

import numpy as np
import pytest
import torch
import workbench
import xarray as xr
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn
from workbench import CancelledError, InputError, Inputs
from workbench.toolkit import Recipe

from unit.recording_out import RecordingOut, check_report, record
from workbench_calibration import ccvr_experiment
from workbench_calibration.ccvr import CCVR
from workbench_calibration.ccvr_statistics import (
    Head,
    Statistics,
    cholesky,
    class_mean_head,
    class_statistics,
    client_statistics,
    diagonal,
    draw_virtual,
    linear_cka,
    normalised_head,
    pool,
    shrink,
    train_on_virtual,
    tukey,
)
from workbench_calibration.federated import (
    Federation,
    average,
    contrastive_loss,
    dirichlet_owner,
    serve,
    train_locally,
)

QUICK = {"clients": 3, "concentrations": (5.0, 0.5), "rounds": 2, "local_epochs": 1, "batch_size": 16, "draws": 20,
         "head_epochs": 1, "draw_curve": (5, 10)}  # fmt: skip


def features(samples=300, width=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=samples)
    scale = rng.standard_normal((width, width))
    return 2 * np.eye(classes, width)[label] + rng.standard_normal((samples, width)) @ scale, label


# --------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("concentration", [0.1, 10.0])
def test_pooled_statistics_are_those_of_all_samples_together(concentration):
    feature, label = features()
    owner = dirichlet_owner(label, 5, concentration, np.random.default_rng(1))
    pooled = pool(client_statistics(feature, label, owner, 5, 3))
    for k in range(3):
        assert pooled.mean[k] == pytest.approx(feature[label == k].mean(0), abs=1e-12)
        assert pooled.cov[k] == pytest.approx(np.cov(feature[label == k].T), abs=1e-11)
    assert np.array_equal(pooled.count, np.bincount(label))


def test_the_pooling_is_the_formula_of_the_paper():
    feature, label = features(seed=3)
    owner = np.arange(300) % 4
    parts = client_statistics(feature, label, owner, 4, 3)
    total = parts.count.sum(0)
    for k in range(3):
        mean = sum(parts.count[c, k] / total[k] * parts.mean[c, k] for c in range(4))
        cov = sum((parts.count[c, k] - 1) / (total[k] - 1) * parts.cov[c, k] for c in range(4))
        cov = cov + sum(parts.count[c, k] / (total[k] - 1) * np.outer(m := parts.mean[c, k], m) for c in range(4))
        cov = cov - total[k] / (total[k] - 1) * np.outer(mean, mean)
        assert pool(parts).cov[k] == pytest.approx(cov, abs=1e-10)


def test_averaging_covariances_alone_would_lose_what_lies_between_clients():
    feature = np.concatenate([np.random.default_rng(0).standard_normal((100, 2)) + 10 * s for s in (-1, 1)])
    parts = client_statistics(feature, np.zeros(200, dtype=int), np.repeat([0, 1], 100), 2, 1)
    assert parts.cov.mean(0)[0, 0, 0] < 2
    assert pool(parts).cov[0, 0, 0] == pytest.approx(np.var(feature[:, 0], ddof=1))
    assert pool(parts).cov[0, 0, 0] > 90


def test_clients_without_a_class_or_with_one_sample_of_it():
    feature, label = np.array([[1.0, 2.0], [3.0, 5.0], [7.0, 7.0]]), np.array([0, 0, 1])
    parts = client_statistics(feature, label, np.array([0, 1, 1]), 3, 3)
    assert not parts.cov.any()
    assert parts.count.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    pooled = pool(parts)
    assert pooled.mean[0].tolist() == [2.0, 3.5]
    assert pooled.cov[0] == pytest.approx(np.cov(feature[:2].T))
    assert not pooled.cov[1:].any()
    assert pooled.mean[1].tolist() == [7, 7]
    assert client_statistics(feature, label, np.array([0, 0, 1]), 2, 2, least=2).count.tolist() == [[2, 0], [0, 0]]


def test_virtual_features_have_the_statistics_they_are_drawn_from():
    pooled = class_statistics(*features(2000), 3)
    virtual, jitter = draw_virtual(pooled, 40_000, np.random.default_rng(0))
    for k in range(3):
        assert virtual[k].mean(0) == pytest.approx(pooled.mean[k], abs=0.06)
        assert np.cov(virtual[k].T) == pytest.approx(pooled.cov[k], abs=0.03 * np.trace(pooled.cov[k]))
        assert jitter[k] == pytest.approx(1e-6 * np.trace(pooled.cov[k]) / 6)


def test_singular_covariances_are_drawn_from_with_recorded_jitter():
    few = class_statistics(features(5, width=20, classes=1)[0], np.zeros(5, dtype=int), 1)
    factor, jitter = cholesky(few.cov[0])
    assert factor @ factor.T == pytest.approx(few.cov[0] + jitter * np.eye(20), abs=1e-9)
    assert np.isfinite(draw_virtual(few, 10, np.random.default_rng(0))[0]).all()
    assert jitter > 0
    factor, jitter = cholesky(np.diag([1.0, -1e-5]))  # rounding below zero: raised tenfold until it succeeds
    assert jitter == pytest.approx(5e-5, rel=0.01)
    lone = class_statistics(np.ones((1, 3)), np.zeros(1, dtype=int), 1)
    virtual, jitter = draw_virtual(lone, 4, np.random.default_rng(0))
    assert (virtual == 1).all()
    assert jitter[0] == 0


def test_shrinkage_keeps_the_trace_and_only_touches_rare_classes():
    feature, label = features(300)
    label = np.where(np.arange(300) < 8, 2, label % 2)
    pooled = class_statistics(feature, label, 3)
    shrunk = shrink(pooled, 0.3)
    assert np.array_equal(shrunk.cov[:2], pooled.cov[:2])
    assert np.trace(shrunk.cov[2]) == pytest.approx(np.trace(pooled.cov[2]))
    assert shrunk.cov[2, 0, 1] == pytest.approx(0.7 * pooled.cov[2, 0, 1])
    assert np.array_equal(diagonal(pooled).cov[0], np.diag(np.diag(pooled.cov[0])))


def test_tukey_and_comparators_by_hand():
    assert tukey(np.array([[-4.0, 0.0, 9.0]]), 0.5).tolist() == [[0, 0, 3]]
    head = normalised_head(Head(np.array([[3.0, 4.0], [0.0, 2.0]]), np.ones(2)), 1.0)
    assert head.weight.tolist() == [[0.6, 0.8], [0, 1]]
    assert head.bias.tolist() == [0, 0]
    assert normalised_head(Head(np.array([[3.0, 4.0]]), np.ones(1)), 0.0).weight.tolist() == [[3, 4]]
    feature, label = features()
    pooled = class_statistics(feature, label, 4)  # class 3 is never seen
    distance = ((feature[:, None] - pooled.mean[:3]) ** 2).sum(2)
    assert np.array_equal(class_mean_head(pooled)(feature).argmax(1), distance.argmin(1))


def test_a_head_trained_on_virtual_features_is_as_good_as_discriminant_analysis():
    """On Gaussian classes of one covariance the best linear head is scikit-learn's LDA."""
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=3000)
    scale = np.array([[1.0, 0.4, 0.0], [0.0, 1.0, 0.4], [0.0, 0.0, 1.0]])
    feature = 2 * np.eye(3)[label] + rng.standard_normal((3000, 3)) @ scale
    pooled = pool(client_statistics(feature, label, np.arange(3000) % 3, 3, 3))
    virtual, _ = draw_virtual(pooled, 500, np.random.default_rng(0))
    recipe = Recipe(epochs=8, batch_size=64, learning_rate=0.01, weight_decay=0.0, schedule="constant")
    start = Head(np.zeros((3, 3)), np.zeros(3))
    head = train_on_virtual(start, pooled, virtual, recipe, torch.Generator().manual_seed(0))
    best = LinearDiscriminantAnalysis().fit(feature, label).score(feature, label)
    assert (head(feature).argmax(1) == label).mean() > best - 0.015
    assert not start.weight.any()  # training leaves its start alone


def test_linear_cka_is_the_definition_and_ignores_rotation_and_scale():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 5))
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    table = linear_cka([torch.from_numpy(a) for a in (x, y, 3 * x @ rotation + 1)])
    a, b = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert table[0, 1] == pytest.approx(expected)
    assert table[0, 2] == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------------- federation


def test_the_partition_gives_every_sample_one_owner_and_is_more_skewed_for_small_concentrations():
    label = np.arange(2000) % 10
    held = {}
    for a in (100.0, 0.1):
        owner = dirichlet_owner(label, 8, a, np.random.default_rng(0))
        table = np.array([np.bincount(label[owner == c], minlength=10) for c in range(8)])
        assert table.sum() == 2000
        assert table.sum(1).min() >= 10
        held[a] = (table**2).sum() / 2000**2
    assert held[0.1] > 2 * held[100.0]
    with pytest.raises(InputError, match="concentrations"):
        dirichlet_owner(np.zeros(20, dtype=int), 5, 1.0, np.random.default_rng(0))


def test_averaging_and_server_momentum_by_hand():
    states = [{"w": torch.tensor([0.0]), "n": torch.tensor(3)}, {"w": torch.tensor([4.0]), "n": torch.tensor(5)}]
    merged = average(states, np.array([0.25, 0.75]))
    assert merged["w"].item() == 3.0
    assert merged["n"].item() == 3
    settings = Federation(Recipe(), base="fedavgm", server_momentum=0.5)
    state, velocity = serve({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}, {}, settings)
    assert (state["w"].item(), velocity["w"].item()) == (3.0, -2.0)
    state, velocity = serve(state, {"w": torch.tensor([3.0])}, velocity, settings)
    assert (state["w"].item(), velocity["w"].item()) == (4.0, -1.0)


def test_one_local_step_is_gradient_descent_and_penalties_hold_it_back():
    image, label = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    model = nn.Sequential(nn.Linear(4, 3))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.1, weight_decay=0.0, momentum=0.0, schedule="constant")
    after = train_locally(model, state, image, label, Federation(recipe), "0", torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(image), label).backward()
    assert torch.allclose(after["0.weight"], state["0.weight"] - 0.1 * model[0].weight.grad, atol=1e-6)
    moved = {}
    long = Recipe(epochs=50, batch_size=8, learning_rate=0.1, weight_decay=0.0, momentum=0.0, schedule="constant")
    for key, settings in {
        "free": Federation(long),
        "prox": Federation(long, base="fedprox", proximal=5.0),
        "head": Federation(long, head_penalty=5.0),
    }.items():
        after = train_locally(model, state, image, label, settings, "0", torch.Generator().manual_seed(0))
        moved[key] = float((after["0.weight"] - state["0.weight"]).norm())
    assert moved["prox"] < 0.3 * moved["free"]
    assert moved["head"] == pytest.approx(moved["prox"])  # the head is the whole network here


def test_the_contrastive_loss_is_its_formula_and_pulls_features_to_the_global_ones():
    local, now, before = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 0.0
    for a, b, c in zip(local.numpy(), now.numpy(), before.numpy(), strict=True):
        near, far = (np.exp(a @ o / np.linalg.norm(a) / np.linalg.norm(o) / 0.5) for o in (b, c))
        expected -= np.log(near / (near + far)) / 5
    assert float(contrastive_loss(local, now, before, 0.5)) == pytest.approx(expected)
    assert float(contrastive_loss(now, now, before, 0.5)) < float(contrastive_loss(before, now, before, 0.5))


def test_moon_trains_on_the_sum_of_both_losses_and_equals_plain_training_in_the_first_round():
    """One step of plain gradient descent on one batch: its slope is taken again by automatic differentiation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    image, label = torch.rand(12, 1, 2, 3), torch.arange(12) % 3
    state = {key: value.clone() for key, value in model.state_dict().items()}
    previous = {key: value + 0.3 * torch.randn(value.shape) for key, value in state.items()}
    recipe = Recipe(epochs=1, batch_size=12, learning_rate=0.1, weight_decay=0.0, momentum=0.0, schedule="constant")
    settings = Federation(recipe, base="moon", contrast=5.0, contrast_temperature=0.5)

    def after(settings, previous):
        return train_locally(model, state, image, label, settings, "3", torch.Generator().manual_seed(0), previous)

    plain = after(Federation(recipe), None)
    assert all(torch.equal(value, plain[key]) for key, value in after(settings, None).items())
    old = copy.deepcopy(model)
    old.load_state_dict(previous)
    local = copy.deepcopy(model)
    loss = nn.functional.cross_entropy(local(image), label) + 5.0 * contrastive_loss(
        local[:3](image), model[:3](image).detach(), old[:3](image).detach(), 0.5
    )
    loss.backward()
    found = after(settings, previous)
    for name, parameter in local.named_parameters():
        assert torch.allclose(found[name], state[name] - 0.1 * parameter.grad, atol=1e-6), name
    assert not torch.allclose(found["1.weight"], plain["1.weight"], atol=1e-4)
    assert not model._forward_pre_hooks


# ---------------------------------------------------------------------------------------------------------- the method


def digits():
    image, label = load_digits(return_X_y=True)
    image = (image / 16).reshape(-1, 1, 8, 8).astype(np.float32)
    data = xr.Dataset({"image": (("sample", "channel", "y", "x"), image), "label": ("sample", label.astype(np.int64))})
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)]
    return {"data": data, "model": nn.Sequential(nn.Flatten(), *layers)}


def few_digits():
    inputs = digits()
    return inputs | {"data": inputs["data"].isel(sample=slice(240))}


@pytest.mark.parametrize("base", ["fedavg", "fedprox", "fedavgm", "moon"])
def test_an_experiment_stores_heads_that_give_the_stored_logits(base):
    inputs = few_digits()
    out, result = record(CCVR, inputs, base=base, **QUICK)
    report = check_report(CCVR, result)
    federated, calibrated = out.modules["federated"], out.modules["ccvr"]
    image = torch.from_numpy(inputs["data"]["image"].values[out.arrays["sample_index"]])
    data = out.data
    for model, stage in ((federated, "before"), (calibrated, "ccvr")):
        assert model(image).detach().numpy() == pytest.approx(data["logit"].sel(stage=stage).values, abs=1e-4)
    for key, value in federated.state_dict().items():  # only the head changed
        assert torch.equal(value, calibrated.state_dict()[key]) == (not key.startswith("5."))
    hit = data["logit"].argmax("class") == data["label"]
    assert data["accuracy"].sel(concentration=0.5, seed=0).values == pytest.approx(hit.mean("sample").values)
    assert data["round_accuracy"].sel(concentration=0.5, seed=0).values[-1] == pytest.approx(
        float(data["accuracy"].sel(concentration=0.5, seed=0, stage="before"))
    )
    assert out.arrays["partition"].sum() == 180
    assert np.allclose(np.diagonal(out.arrays["cka"], axis1=1, axis2=2), 1)
    feature = federated[:5](torch.from_numpy(inputs["data"]["image"].values)).detach().double().numpy()
    train = np.setdiff1d(np.arange(240), out.arrays["sample_index"])
    label = inputs["data"]["label"].values
    for k in range(10):
        own = feature[train][label[train] == k]
        assert out.arrays["class_mean"][k] == pytest.approx(own.mean(0), abs=1e-5)
        assert out.arrays["class_cov"][k] == pytest.approx(np.cov(own.T), abs=1e-5)
    assert "accuracy_ccvr_0.5" in {metric.name for metric in report.metrics}


def test_statistics_alone_are_enough():
    feature, label = features(400)
    owner = np.where(label == 0, 0, 1)
    sent = client_statistics(feature, label, owner, 2, 3)
    rng = np.random.default_rng(0)
    out, result = record(CCVR, {"statistics": dataset(sent, rng.standard_normal((3, 6)))}, draws=200)
    check_report(CCVR, result)
    before, after = (float(out.data["virtual_accuracy"].sel(stage=s)) for s in ("before", "ccvr"))
    assert after > before + 0.1
    head = Head(*(out.data[name].sel(stage="ccvr").values for name in ("head_weight", "head_bias")))
    best = LinearDiscriminantAnalysis().fit(feature, label).score(feature, label)
    assert (head(feature).argmax(1) == label).mean() > best - 0.06
    assert "accuracy" not in out.arrays
    assert out.arrays["virtual_feature"].shape == (3, 200, 6)


def dataset(sent: Statistics, weight):
    return xr.Dataset({
        "count": (("client", "class"), sent.count),
        "mean": (("client", "class", "feature"), sent.mean),
        "covariance": (("client", "class", "feature", "feature_other"), sent.cov),
        "weight": (("class", "feature"), weight),
        "bias": (("class",), np.zeros(len(weight))),
    })


@pytest.mark.parametrize("base", ["fedavg", "moon"])
def test_a_stopped_run_goes_on_to_the_same_result(monkeypatch, base):
    monkeypatch.setattr(ccvr_experiment, "CHECKPOINT_SECONDS", 0.0)
    inputs, params = few_digits(), CCVR.Params(**QUICK, base=base)
    whole, _ = record(CCVR, inputs, **QUICK, base=base)
    stopped = RecordingOut(CCVR, cancel_after=10)  # in the second round of the second federation
    with pytest.raises(CancelledError):
        CCVR().run(Inputs(inputs), params, stopped)
    resumed = RecordingOut(CCVR, restored=stopped.checkpoints[-1])
    CCVR().run(Inputs(inputs), params, resumed)
    assert len(resumed.progressed) == 3 < len(whole.progressed)
    for name, values in whole.arrays.items():
        assert np.array_equal(values, resumed.arrays[name], equal_nan=values.dtype.kind == "f"), name


def test_bad_input_is_named():
    sent = client_statistics(*features(), np.arange(300) % 2, 2, 3)
    good = dataset(sent, np.ones((3, 6)))
    with pytest.raises(InputError, match="data: expected statistics, or data and model"):
        record(CCVR, {})
    with pytest.raises(InputError, match="no data and no model"):
        record(CCVR, {"statistics": good} | few_digits())
    with pytest.raises(InputError, match="count"):
        record(CCVR, {"statistics": good.assign(count=-good["count"])})
    with pytest.raises(InputError, match="symmetric"):
        record(CCVR, {"statistics": good.assign(covariance=good["covariance"] + np.arange(6))})
    inputs = few_digits()
    inputs["model"].append(nn.ReLU())
    with pytest.raises(InputError, match="last linear layer"):
        record(CCVR, inputs, **QUICK)


@pytest.mark.slow
def test_claim_ccvr_repairs_most_of_what_skew_costs_on_digits():
    """The reference runs: concentration 0.05, 0.839 -> 0.936 (oracle 0.941); 0.5: 0.956 -> 0.966. Three seeds."""
    out, result = record(CCVR, digits(), concentrations=(0.5, 0.05), seeds=3, test_fraction=497 / 1797)
    accuracy = out.data["accuracy"].mean("seed")
    skewed, mild = (accuracy.sel(concentration=a) for a in (0.05, 0.5))
    assert float(skewed.sel(stage="ccvr") - skewed.sel(stage="before")) >= 0.04
    assert float(skewed.sel(stage="ccvr")) >= float(skewed.sel(stage="oracle")) - 0.02
    assert -0.005 <= float(mild.sel(stage="ccvr") - mild.sel(stage="before")) <= 0.025
    # the paper's first finding: of all layers the clients' heads are the least alike
    likeness = out.data["cka"].values[:, ~np.eye(10, dtype=bool)].mean(axis=1)
    print("mean linear CKA by layer", likeness.round(3))
    assert likeness.argmin() == len(likeness) - 1
    check_report(CCVR, result)


@pytest.mark.slow
@pytest.mark.parametrize("base", [{"base": "fedprox"}, {"base": "moon"}, {"base": "fedavgm", "server_momentum": 0.5}])
def test_claim_ccvr_gains_on_top_of_other_federated_training(base):
    """The paper's second claim, at concentration 0.05 on digits, three seeds: as with plain averaging.

    FedAvgM itself mends what skew costs, the more the stronger its momentum: at 0.1, 0.5 and 0.9 the federated accuracy is
    0.844, 0.925 and 0.935, and CCVR gains 0.092, 0.030 and 0.015. At 0.9 the claim of two points does not hold here.
    """
    out, result = record(CCVR, digits(), **base, concentrations=(0.05,), seeds=3, test_fraction=497 / 1797)
    accuracy = out.data["accuracy"].sel(concentration=0.05)
    gain = accuracy.sel(stage="ccvr") - accuracy.sel(stage="before")
    assert float(gain.mean()) >= 0.02
    assert float(accuracy.sel(stage="ccvr").mean()) >= float(accuracy.sel(stage="oracle").mean()) - 0.02
    check_report(CCVR, result)


@pytest.mark.slow
def test_claim_ccvr_gains_on_cifar10(shared_data, tmp_path):
    """Three seeds at concentration 0.1: 5,085 images on 10 clients, 1,017 to judge by, 20 rounds of 2 epochs, batches of 32.

    The sizes and the learning rate were settled on another seed (32.1 % to 38.2 %). Group norm, since skewed clients break
    batch norm.
    """
    with np.load(shared_data / "cifar10" / "original_subset.npz") as stored:
        image, label = (np.concatenate([stored[f"{name}_train"], stored[f"{name}_test"]]) for name in "xy")
    data = xr.Dataset({"image": (("sample", "channel", "y", "x"), image), "label": ("sample", label.astype(np.int64))})
    layers = [nn.Conv2d(3, 32, 4, stride=4), nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1),
              nn.GroupNorm(4, 64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(),
              nn.Linear(64, 10)]  # fmt: skip
    run = workbench.open(tmp_path).run(
        "calibration.ccvr", data=data, model=nn.Sequential(*layers), seed=1, concentrations=(0.1,), seeds=3, rounds=20,
        local_epochs=2, batch_size=32, learning_rate=0.02, test_fraction=1017 / 6102,
    )  # fmt: skip
    accuracy = run["accuracy"].sel(concentration=0.1).load()
    print(accuracy.to_pandas().round(4), {name: value for name, value in run.metrics.items() if "gain" in name})
    before, calibrated, oracle = (accuracy.sel(stage=stage) for stage in ("before", "ccvr", "oracle"))
    assert float((calibrated - before).mean()) >= 0.02
    assert (calibrated > before).all()
    assert float(calibrated.mean()) >= float(oracle.mean()) - 0.05
