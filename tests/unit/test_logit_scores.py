"""Scores from logits: closed forms, autograd, pytorch-ood where it is installed, and the method around them."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from workbench.errors import InputError

from unit.recording_out import check_report, record
from workbench_detection import logit_scores
from workbench_detection.logit_scores import LogitScores
from workbench_detection.metrics import detection_metrics

CIFAR = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10" / "original_subset.npz"


def logits(count=50, classes=7, seed=0, scale=3.0):
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dataset(logit, **others):
    variables = {"logit": (("sample", "class"), np.asarray(logit))}
    variables |= {
        name: (("sample", "feature") if name == "feature" else ("sample",), np.asarray(values))
        for name, values in others.items()
    }
    return xr.Dataset(variables)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_scores_equal_their_formulas_written_out(temperature):
    logit = logits()
    for row, values in enumerate(logit.tolist()):
        exponentials = [np.exp(value / temperature) for value in values]
        probabilities = [value / sum(exponentials) for value in exponentials]
        expected = {
            "msp": -max(probabilities),
            "max_logit": -max(values),
            "energy": -temperature * np.log(sum(exponentials)),
            "entropy": -sum(p * np.log(p) for p in probabilities),
        }
        for name, value in expected.items():
            score = logit_scores.SCORES[name](logit[row : row + 1], temperature)
            assert float(score[0]) == pytest.approx(value, rel=1e-12), name


def test_energy_lies_between_max_logit_and_its_bound():
    logit = logits(200, 11)
    energy, largest = logit_scores.energy(logit), logit_scores.maximum_logit(logit)
    assert bool((energy <= largest).all())
    assert bool((energy >= largest - np.log(11)).all())
    assert logit_scores.energy(torch.zeros(1, 11)).item() == pytest.approx(-np.log(11))
    assert logit_scores.energy(logit, 1e-6) == pytest.approx(largest, abs=1e-6)  # the limit of a low temperature


def test_scores_stay_finite_for_huge_logits():
    logit = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert logit_scores.maximum_softmax_probability(logit).tolist() == pytest.approx([-1, -1 / 3])
    assert logit_scores.energy(logit).tolist() == pytest.approx([-1e4, -np.log(3)])
    assert logit_scores.entropy(logit).tolist() == pytest.approx([0, np.log(3)])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_grad_norm_is_the_norm_of_the_gradient_that_autograd_finds(temperature):
    generator = torch.Generator().manual_seed(3)
    feature = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    score = logit_scores.grad_norm((feature @ weight.T + bias).detach(), feature, temperature)
    for row in range(6):
        output = (feature[row] @ weight.T + bias) / temperature
        loss = -torch.log_softmax(output, dim=0).mean()  # cross entropy with the uniform distribution
        (gradient,) = torch.autograd.grad(loss, weight)
        assert -score[row].item() == pytest.approx(gradient.abs().sum().item(), rel=1e-12)


def test_scores_equal_pytorch_oods():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detectors = pytest.importorskip(
            "pytorch_ood.detector", reason="pytorch-ood is not installed", exc_type=ImportError
        )
    logit = logits(scale=5)
    assert torch.allclose(logit_scores.energy(logit, 2.0), detectors.EnergyBased.score(logit, 2.0))
    assert torch.allclose(logit_scores.maximum_softmax_probability(logit, 2.0), detectors.MaxSoftmax.score(logit, 2.0))
    assert torch.allclose(logit_scores.maximum_logit(logit), detectors.MaxLogit.score(logit))
    # theirs adds a small number inside the logarithm
    assert torch.allclose(logit_scores.entropy(logit), detectors.Entropy.score(logit), atol=1e-5)


def test_the_method_stores_scores_metrics_and_curves():
    generator = torch.Generator().manual_seed(1)
    normal, foreign = logits(120, 5, 1, 4.0), logits(80, 5, 2, 1.5)
    label = normal.argmax(1)
    label[:30] = torch.randint(0, 5, (30,), generator=generator)
    data = dataset(normal.float(), label=label)
    out, result = record(LogitScores, {"data": data, "ood": dataset(foreign.float())}, bootstrap=200)
    names = ["msp", "max_logit", "energy", "entropy"]
    assert result["score"]["detector"].values.tolist() == names
    assert result["score"].shape == (4, 200)
    assert result["anomalous"].values.tolist() == [False] * 120 + [True] * 80
    for name in names:
        score = logit_scores.SCORES[name](torch.cat([normal, foreign]).float().double(), 1.0).numpy()
        assert np.array_equal(result["score"].sel(detector=name).values, score)
        for metric, value in detection_metrics(score, np.repeat([False, True], [120, 80])).items():
            assert float(result[metric].sel(detector=name)) == value
            low, high = (float(result[f"{metric}_{bound}"].sel(detector=name)) for bound in ("low", "high"))
            assert low <= value <= high
        wrong = np.asarray(normal.argmax(1) != label)
        found = float(result["error_auroc"].sel(detector=name))
        assert found == pytest.approx(detection_metrics(score[:120], wrong)["auroc"])
    assert float(result["accuracy"]) == pytest.approx(float((normal.argmax(1) == label).double().mean()))
    assert out.arrays["true_positive_rate"][:, [0, -1]].max() == 1
    report = check_report(LogitScores, result)
    assert "own errors" in report.summary
    assert {metric.name: metric.direction for metric in report.metrics}["fpr95_id_energy"] == "lower"
    assert len(report.tables[0].rows) == 4


@pytest.mark.parametrize(
    ("foreign_scale", "said"),
    [(3.0, "(no better than chance)"), (9.0, "(below 0.5: they look more normal than the in-distribution ones)")],
)
def test_the_summary_claims_no_separation_where_there_is_none(foreign_scale, said):
    """Foreign logits drawn like the normal ones cannot be told from them; larger ones look surer, so more normal."""
    inputs = {"data": dataset(logits(300)), "ood": dataset(logits(200, seed=5, scale=foreign_scale))}
    _, result = record(LogitScores, inputs, bootstrap=200)
    assert float(result["auroc"].max()) < (0.6 if foreign_scale == 3.0 else 0.4)
    summary = check_report(LogitScores, result).summary
    assert summary.startswith("No score finds the 200 out-of-distribution samples: the best, ")
    assert said in summary
    assert "separates" not in summary


def test_features_bring_grad_norm_and_no_labels_leave_errors_out():
    generator = torch.Generator().manual_seed(1)
    feature = torch.rand(30, 6, generator=generator)
    data, ood = dataset(logits(30), feature=feature), dataset(logits(30, seed=4), feature=2 * feature)
    _, result = record(LogitScores, {"data": data, "ood": ood}, bootstrap=100, temperature=3.0)
    assert result["score"]["detector"].values[-1] == "grad_norm"
    expected = logit_scores.grad_norm(logits(30), feature.double(), 3.0)
    assert result["score"].sel(detector="grad_norm").values[:30] == pytest.approx(expected.numpy())
    assert "error_auroc" not in result
    check_report(LogitScores, result)


def test_results_depend_on_the_seed_in_the_intervals_only():
    inputs = {"data": dataset(logits(60)), "ood": dataset(logits(60, seed=9, scale=2))}
    runs = [record(LogitScores, inputs, seed=seed, bootstrap=100)[0] for seed in (0, 0, 1)]
    for name, values in runs[0].arrays.items():
        assert np.array_equal(values, runs[1].arrays[name]), name
        assert np.array_equal(values, runs[2].arrays[name]) != name.endswith(("_low", "_high")), name


@pytest.mark.parametrize(
    ("ood", "params", "argument"),
    [
        (logits(10, 6), {}, "ood"),
        (logits(10), {"methods": ("energy", "energy")}, "methods"),
        (logits(10), {"methods": ("grad_norm",)}, "methods"),
    ],
)
def test_what_does_not_fit_is_refused(ood, params, argument):
    with pytest.raises(InputError) as caught:
        record(LogitScores, {"data": dataset(logits(10)), "ood": dataset(ood)}, **params)
    assert caught.value.argument == argument


def test_an_unknown_score_is_refused_by_the_parameters():
    with pytest.raises(ValueError, match="mahalanobis"):
        LogitScores.Params(methods=("mahalanobis",))


WEIGHTS = CIFAR.parents[1] / "weights" / "cifar10_resnet20.safetensors"


@pytest.mark.slow
@pytest.mark.skipif(not (CIFAR.exists() and WEIGHTS.exists()), reason="needs CIFAR-10 images and ResNet-20 weights")
def test_cifar_resnet20_reproduces_the_measured_table():
    """Noisy ID images (standard deviation 0.2): measured MSP .897, max-logit .881, energy .879; errors .921, .894, .891."""
    from safetensors.torch import load_file
    from workbench.subjects.networks import resnet20

    network = resnet20()
    network.load_state_dict(load_file(WEIGHTS))
    images = np.load(CIFAR)
    clean = torch.as_tensor(images["x_test"]).float() / 255
    noise = 0.2 * torch.randn(600, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def outputs(pictures):
        network.eval()
        with torch.no_grad():
            scaled = (pictures - mean[:, None, None]) / deviation[:, None, None]
            return torch.cat([network(part) for part in scaled.split(100)])

    data = dataset(outputs(clean), label=images["y_test"].astype(np.int64))
    _, result = record(LogitScores, {"data": data, "ood": dataset(outputs((clean[:600] + noise).clamp(0, 1)))})
    assert float(result["accuracy"]) == pytest.approx(0.9164, abs=5e-4)
    found = {name: float(result["auroc"].sel(detector=name)) for name in ("msp", "max_logit", "energy")}
    errors = {name: float(result["error_auroc"].sel(detector=name)) for name in found}
    assert found == pytest.approx({"msp": 0.897, "max_logit": 0.881, "energy": 0.879}, abs=0.03)
    assert errors == pytest.approx({"msp": 0.921, "max_logit": 0.894, "energy": 0.891}, abs=0.005)
    assert max(errors, key=errors.get) == "msp"
