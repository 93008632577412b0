"""What a classifier says about a data set: logits as the model gives them, figures as foreign libraries compute them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from sklearn.metrics import confusion_matrix
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
from workbench import InputError, Model

from unit.recording_out import RecordingOut, check_report, record
from workbench_training.assessment import most_confident_mistakes
from workbench_training.evaluation import ClassifierEvaluation

CLASSES = ("cat", "dog", "owl", "elk")


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


def network(classes=4, scale=30.0):
    torch.manual_seed(0)
    net = Net(classes)
    with torch.no_grad():
        net.head.weight.mul_(scale)
    return net.eval()


def pictures(count=60, classes=4, noisy=0.4, seed=0, labels=True):
    """Random pictures, labelled by the network itself except for a noisy share."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (count, 3, 6, 6), dtype=np.uint8)
    data = xr.Dataset({"image": (("sample", "channel", "y", "x"), image)})
    if labels:
        with torch.no_grad():
            label = network(classes)(torch.from_numpy(image).float() / 255).argmax(1).numpy()
        wrong = generator.random(count) < noisy
        data["label"] = "sample", np.where(wrong, generator.integers(0, classes, count), label)
    return data


def by_hand(data, classes=4):
    with torch.no_grad():
        return network(classes)(torch.from_numpy(data["image"].values).float() / 255)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_stored_logits_are_the_models_whatever_the_batch_size(batch_size):
    data = pictures()
    out, _ = record(ClassifierEvaluation, {"model": network(), "data": data}, batch_size=batch_size)
    logit = by_hand(data)
    np.testing.assert_allclose(out.arrays["logit"], logit, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out.arrays["prediction"], logit.argmax(1))
    np.testing.assert_allclose(out.arrays["confidence"], logit.double().softmax(1).amax(1), rtol=1e-5)
    loss = F.cross_entropy(logit.double(), torch.from_numpy(data["label"].values), reduction="none")
    np.testing.assert_allclose(out.arrays["sample_loss"], loss, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(out.arrays["label"], data["label"])


def test_metrics_are_those_of_foreign_libraries():
    data = pictures(300)
    out, result = record(ClassifierEvaluation, {"model": network(), "data": data})
    report = check_report(ClassifierEvaluation, result)
    logit, label = torch.from_numpy(out.arrays["logit"]), torch.from_numpy(data["label"].values)
    metrics = {metric.name: metric for metric in report.metrics}
    accuracy = float(multiclass_accuracy(logit, label, 4, average="micro"))
    assert 0.4 < accuracy < 0.9
    assert metrics["accuracy"].value == pytest.approx(accuracy)
    assert metrics["negative_log_likelihood"].value == pytest.approx(float(F.cross_entropy(logit, label)), rel=1e-6)
    assert metrics["expected_calibration_error"].value == pytest.approx(
        float(multiclass_calibration_error(logit.softmax(1), label, 4, n_bins=15)), abs=1e-6
    )
    per_class = multiclass_accuracy(logit, label, 4, average="none").numpy()
    np.testing.assert_allclose(out.arrays["class_accuracy"], per_class, rtol=1e-6)
    assert metrics["worst_class_accuracy"].value == pytest.approx(per_class.min())
    np.testing.assert_array_equal(out.arrays["confusion"], confusion_matrix(label, logit.argmax(1)))
    assert f"{accuracy:.2%} of 300 samples" in report.summary
    low, high = metrics["accuracy"].interval
    assert low < accuracy < high


def test_features_are_what_the_head_receives():
    data = pictures(20)
    out, _ = record(ClassifierEvaluation, {"model": network(), "data": data}, features="penultimate", batch_size=8)
    with torch.no_grad():
        conv = network().conv(torch.from_numpy(data["image"].values).float() / 255)
    np.testing.assert_allclose(out.arrays["feature"], conv.relu().mean((2, 3)), rtol=1e-5, atol=1e-6)
    weight, bias = network().head.weight.detach().numpy(), network().head.bias.detach().numpy()
    np.testing.assert_allclose(out.arrays["feature"] @ weight.T + bias, out.arrays["logit"], rtol=1e-4, atol=1e-4)


def test_mistakes_are_the_most_confident_wrong_samples_with_their_pictures():
    data = pictures(200, noisy=0.6)
    out, result = record(ClassifierEvaluation, {"model": Model(network(), classes=CLASSES), "data": data})
    wrong = [i for i in range(200) if out.arrays["prediction"][i] != data["label"].values[i]]
    expected = sorted(wrong, key=lambda i: -out.arrays["confidence"][i])[:24]
    assert len(wrong) > 24
    np.testing.assert_array_equal(out.arrays["mistake_sample"], expected)
    np.testing.assert_array_equal(out.arrays["mistake_image"], data["image"].values[expected].astype(np.float32) / 255)
    first = expected[0]
    names = CLASSES[data["label"].values[first]], CLASSES[out.arrays["prediction"][first]]
    assert out.arrays["mistake_caption"][0].startswith(f"{names[0]} → {names[1]} (")
    assert any(view.title == "Most confident mistakes" for view in check_report(ClassifierEvaluation, result).views)
    assert most_confident_mistakes(np.array([True, True]), np.ones(2)).size == 0


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_mistakes_of_any_number_of_channels_can_be_shown(channels):
    image = np.random.default_rng(0).random((30, channels, 4, 4), dtype=np.float32)
    data = xr.Dataset({"image": (("sample", "channel", "y", "x"), image), "label": ("sample", np.arange(30) % 2)})
    torch.manual_seed(0)
    _, result = record(ClassifierEvaluation, {"model": nn.Sequential(nn.Flatten(), nn.Linear(16 * channels, 2)), "data": data})
    assert any(view.title == "Most confident mistakes" for view in check_report(ClassifierEvaluation, result).views)


def test_a_perfect_classifier_has_a_report_without_mistakes():
    out, result = record(ClassifierEvaluation, {"model": network(), "data": pictures(noisy=0.0)})
    report = check_report(ClassifierEvaluation, result)
    assert "mistake_image" not in out.arrays
    assert report.summary.startswith("100.00% of 60 samples")
    assert "Hardest" not in report.summary


def test_a_single_sample_and_a_class_without_samples_have_a_report():
    out, result = record(ClassifierEvaluation, {"model": network(), "data": pictures(1)})
    report = check_report(ClassifierEvaluation, result)
    assert np.isnan(out.arrays["class_accuracy"]).sum() == 3
    assert len(report.tables[0].rows) == 1


def test_without_labels_only_what_needs_none_is_stored_and_said():
    out, result = record(ClassifierEvaluation, {"model": network(), "data": pictures(labels=False)})
    assert set(out.arrays) == {"logit", "prediction", "confidence", "predicted_count"}
    report = check_report(ClassifierEvaluation, result)
    assert {metric.name for metric in report.metrics} == {"mean_confidence"}
    assert "without labels" in report.summary


def test_names_of_classes_come_from_the_model_then_the_data_then_their_numbers():
    data = pictures(10)
    for model, given, expected in (
        (Model(network(), classes=CLASSES), data, list(CLASSES)),
        (network(), data.assign_coords({"class": list("wxyz")}), list("wxyz")),
        (network(), data, list("0123")),
    ):
        out, _ = record(ClassifierEvaluation, {"model": model, "data": given})
        assert out.coordinates["class"][1].tolist() == expected
        assert out.coordinates["true_class"][1].tolist() == expected


def test_many_classes_leave_the_confusion_matrix_out():
    data = pictures(5, classes=2001)
    out, result = record(ClassifierEvaluation, {"model": network(2001), "data": data})
    assert "confusion" not in out.arrays
    check_report(ClassifierEvaluation, result)


def test_a_data_set_in_a_store_is_read_slice_by_slice(tmp_path):
    data = pictures(40)
    data.chunk({"sample": 8}).to_zarr(tmp_path / "a.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "a.zarr", consolidated=False, chunks=None)
    out, _ = record(ClassifierEvaluation, {"model": network(), "data": stored}, batch_size=8)
    whole, _ = record(ClassifierEvaluation, {"model": network(), "data": data}, batch_size=8)
    np.testing.assert_array_equal(out.arrays["logit"], whole.arrays["logit"])
    assert not stored["image"].variable._in_memory


def test_logits_are_written_batch_by_batch():
    regions = []

    class Watching(RecordingOut):
        def array(self, name, shape, **kwargs):
            array = super().array(name, shape, **kwargs)
            return Watched(array) if name == "logit" else array

    class Watched:
        def __init__(self, array):
            self.array = array

        def __setitem__(self, region, values):
            regions.append((region.start, region.stop))
            self.array[region] = values

    out = Watching(ClassifierEvaluation)
    record(ClassifierEvaluation, {"model": network(), "data": pictures(20)}, out=out, batch_size=8)
    assert regions == [(0, 8), (8, 16), (16, 20)]


def test_a_policy_of_half_precision_computes_under_autocast():
    out = RecordingOut(ClassifierEvaluation)
    out.dtype = torch.bfloat16
    record(ClassifierEvaluation, {"model": network(), "data": pictures()}, out=out)
    logit = by_hand(pictures()).numpy()
    assert not np.array_equal(out.arrays["logit"], logit)
    np.testing.assert_allclose(out.arrays["logit"], logit, rtol=0.05, atol=0.3)


class Broken(Net):
    def forward(self, x):
        logit = super().forward(x)
        logit[3:] = float("nan")
        return logit


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        (Broken(), {}, "NaN or infinity at sample 3"),
        (network(2), {}, "label"),
        (network(), {"feature_layer": "head"}, "features='penultimate'"),
        (network(), {"features": "penultimate", "feature_layer": "haed"}, "Nearest: head"),
        (network(), {"features": "penultimate", "feature_layer": "conv"}, r"receives \(sample, feature\)"),
        (nn.Conv2d(3, 4, 6), {}, r"logits \(sample, class\)"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), {"features": "penultimate"}, "linear layer"),
    ],
)
def test_what_does_not_fit_is_said(model, params, message):
    with pytest.raises(InputError, match=message):
        record(ClassifierEvaluation, {"model": model, "data": pictures(20)}, **params)


def test_the_run_is_data_for_a_detector_of_logits():
    from workbench_detection.logit_scores import LogitScores

    out, _ = record(ClassifierEvaluation, {"model": network(), "data": pictures(40)})
    foreign, _ = record(ClassifierEvaluation, {"model": network(), "data": pictures(30, seed=1, labels=False)})
    inputs = {"data": out.data[["logit", "label"]], "ood": foreign.data[["logit"]]}
    scored, _ = record(LogitScores, inputs, methods=("msp",), bootstrap=100)
    assert scored.arrays["score"].shape == (1, 70)
    np.testing.assert_allclose(-scored.arrays["score"][0, :40], out.arrays["confidence"], rtol=1e-6)


def test_the_plugin_lists_its_methods_by_their_own_names():
    import workbench_training

    for reference in workbench_training.workbench_methods():
        cls = reference.load()
        assert (cls.id, cls.title) == (reference.id, reference.title)


@pytest.mark.slow
def test_a_published_network_reaches_its_known_accuracy():
    """ResNet-20 (akamaster's checkpoint) on the 1,017 original test images at hand: 932 right, 91.64 %."""
    from safetensors.torch import load_file
    from workbench.subjects.networks import resnet20

    shared = Path(__file__).parents[2].parent / "shared" / "data"
    weights, images = shared / "weights" / "cifar10_resnet20.safetensors", shared / "cifar10" / "original_subset.npz"
    if not (weights.exists() and images.exists()):
        pytest.skip("the CIFAR-10 subset and the published weights are not beside the repository")
    network = resnet20()
    network.load_state_dict(load_file(weights))
    model = Model(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    with np.load(images) as content:
        image, label = content["x_test"], content["y_test"].astype(np.int64)
    data = xr.Dataset({"image": (("sample", "channel", "y", "x"), image), "label": ("sample", label)})
    out, result = record(ClassifierEvaluation, {"model": model, "data": data}, features="penultimate")
    assert int(out.arrays["correct"].sum()) == 932
    assert out.arrays["feature"].shape == (1017, 64)
    assert "91.64% of 1017" in check_report(ClassifierEvaluation, result).summary
