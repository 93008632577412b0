"""Inference in batches equals one call, reads lazily, leaves the model as it was, and never leaves a hook behind."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import nn
from workbench.errors import CancelledError, InputError
from workbench.toolkit import (
    capture,
    evaluating,
    find_layer,
    last_linear,
    layer_names,
    model_device,
    predict,
    predict_all,
)

from unit.recording_out import RecordingOut


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.head = nn.Linear(4, 2)

    def forward(self, image):
        return self.head(self.body(image).mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = Net()
    net(torch.rand(8, 3, 6, 6))  # batch-norm statistics other than the initial ones
    return net


def pictures(count=11):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 6, 6), dtype=np.uint8)


def by_hand(model, image):
    """The forward pass written out, in eval mode."""
    conv, norm = model.body[0], model.body[1]
    hidden = F.conv2d(image, conv.weight, conv.bias)
    hidden = F.batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    feature = hidden.relu().mean((2, 3))
    return feature @ model.head.weight.T + model.head.bias, feature, hidden


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "tensor", "labelled"])
def test_batches_equal_one_call(model, batch_size, kind):
    values = pictures()
    image = {
        "uint8": values,
        "float32": values.astype(np.float32) / 255,
        "float64": values / 255,
        "tensor": torch.from_numpy(values),
        "labelled": xr.DataArray(values, dims=("sample", "channel", "y", "x"), name="image"),
    }[kind]
    expected, feature, _ = by_hand(model, torch.from_numpy(values).float() / 255)
    logit, activation = predict_all(model, image, batch_size=batch_size, layers=["head"], inputs=True)
    torch.testing.assert_close(logit, expected.detach())
    torch.testing.assert_close(activation["head"], feature.detach())
    assert not logit.requires_grad
    regions = [region for region, _, _ in predict(model, image, batch_size=batch_size)]
    assert [regions[0].start, regions[-1].stop] == [0, 11]


def test_what_a_layer_returned_is_kept_although_the_next_one_works_in_place(model):
    image = torch.from_numpy(pictures()).float() / 255
    _, _, hidden = by_hand(model, image)
    assert (hidden < 0).any()
    _, activation = predict_all(model, image, batch_size=4, layers=["body.1"])
    torch.testing.assert_close(activation["body.1"], hidden.detach())
    _, pooled = predict_all(model, image, layers=["body.1"], pool="mean")
    torch.testing.assert_close(pooled["body.1"], hidden.detach().mean((2, 3)))


def test_a_stored_array_is_read_slice_by_slice(model, tmp_path):
    values = pictures(20)
    array = xr.DataArray(values, dims=("sample", "channel", "y", "x"), name="image")
    array.to_dataset().chunk({"sample": 5}).to_zarr(tmp_path / "a.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "a.zarr", consolidated=False, chunks=None)["image"]
    logit, _ = predict_all(model, stored, batch_size=5)
    torch.testing.assert_close(logit, predict_all(model, values)[0])
    assert not stored.variable._in_memory


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_put_back_and_hooks_are_gone_between_batches(model, training):
    model.train(training)
    model.body[3].train(not training)
    before = [module.training for module in model.modules()]
    for _ in predict(model, pictures(), batch_size=4, layers=["body.0"]):
        assert [module.training for module in model.modules()] == before
        assert hooks(model) == 0
        assert torch.is_grad_enabled()


def test_nothing_is_left_behind_after_an_exception(model):
    model.train()
    statistics = model.body[1].running_mean.clone()
    with pytest.raises(RuntimeError):
        list(predict(model, np.zeros((3, 2, 6, 6), np.float32), layers=["head", "body.0"]))
    assert hooks(model) == 0
    assert model.body[3].training
    assert torch.equal(statistics, model.body[1].running_mean)
    with pytest.raises(ZeroDivisionError), capture(model, ["head"]):
        raise ZeroDivisionError
    assert hooks(model) == 0
    with evaluating(model):
        assert not model.training
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert model.training
    assert torch.is_grad_enabled()


def test_progress_is_told_and_a_stop_is_honoured(model):
    out = RecordingOut()
    predict_all(model, pictures(), batch_size=4, out=out)
    assert [(done, total) for done, total, _ in out.progressed] == [(4, 11), (8, 11), (11, 11)]
    with pytest.raises(CancelledError):
        predict_all(model, pictures(), batch_size=4, out=RecordingOut(cancel_after=1))


def test_half_precision_computes_under_autocast_and_gives_float32(model):
    exact, _ = predict_all(model, pictures())
    half, activation = predict_all(model, pictures(), dtype=torch.bfloat16, layers=["head"])
    assert half.dtype == activation["head"].dtype == torch.float32
    assert not torch.equal(exact, half)
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.02)
    double, _ = predict_all(model.double(), pictures())
    assert double.dtype == torch.float64


def test_gradients_flow_through_what_is_captured_if_asked(model):
    model.eval()
    with capture(model, "body.0", detach=False) as activation:
        model(torch.from_numpy(pictures()).float()).sum().backward()
    assert activation["body.0"].requires_grad
    with capture(model, ["body.0"]) as activation:
        model(torch.from_numpy(pictures()).float())
    assert not activation["body.0"].requires_grad


def test_layers_are_found_by_name_and_kind(model):
    assert layer_names(model) == ("body.0", "body.1", "body.2", "body.3", "head")
    assert layer_names(model, "weight") == ("body.0", "head")
    assert layer_names(model, "convolution") == ("body.0",)
    assert layer_names(model, "batch_norm") == ("body.1",)
    assert layer_names(model, nn.Dropout) == ("body.3",)
    assert last_linear(model) == "head"
    assert find_layer(model, "body.1") is model.body[1]
    assert model_device(model) == model_device(nn.Identity()) == torch.device("cpu")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: predict(m, pictures(), layers=["haed"]), "Nearest: head"),
        (lambda m: predict(m, pictures(), batch_size=0), "batch_size"),
        (lambda m: predict(m, pictures(), dtype=torch.float64), "dtype"),
        (lambda m: predict_all(m, pictures(0)), "at least one sample"),
        (lambda m: layer_names(m, "attention"), "kind"),
        (lambda m: last_linear(m.body), "without nn.Linear"),
        (lambda m: capture(m, ["head"], pool="max").__enter__(), "pool"),
    ],
)
def test_bad_input_is_named_before_any_work(model, call, message):
    with pytest.raises(InputError, match=message):
        call(model)
    assert hooks(model) == 0


def test_a_layer_that_gives_no_tensor_is_named():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0]

    model = Outer()
    with pytest.raises(InputError, match="'pair' with tuple"):
        predict_all(model, torch.zeros(2, 3), layers=["pair"])
    assert hooks(model) == 0
