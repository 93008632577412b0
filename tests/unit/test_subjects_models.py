"""A Model computes what its network computes on normalised pictures, under the network's own names."""

import copy
import random

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from workbench.errors import InputError
from workbench.subjects import Model, as_model, load_model, load_state, model_state, open_data
from workbench.subjects.builtin import DATASETS, FACTORIES
from workbench.subjects.model_digest import model_digest
from workbench.subjects.networks import resnet20
from workbench.toolkit import layer_names, predict_all

from unit.subject_cases import MEAN, STD, network, pictures

# --------------------------------------------------------------------------------------------------------------- Model


def test_forward_is_the_network_on_normalised_pictures():
    net, x = network(), pictures()
    shift, scale = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(Model(net, mean=MEAN, std=STD)(x), net((x - shift) / scale), rtol=0, atol=0)
    assert torch.equal(Model(net)(x), net(x))
    torch.testing.assert_close(Model(net, mean=0.5, std=0.25)(x), net((x - 0.5) / 0.25), rtol=0, atol=0)


def test_layers_and_state_keys_are_called_as_in_the_network_and_resolve():
    net = resnet20()
    model = Model(net, mean=MEAN, std=STD)
    assert list(model.state_dict()) == list(net.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert layer_names(model) == layer_names(net)
    for name, module in net.named_modules():
        assert not name or model.get_submodule(name) is module
    assert sum(1 for _ in model.parameters()) == sum(1 for _ in net.parameters())


@pytest.mark.parametrize("path", ["head", "block2.conv"])
def test_replacing_a_layer_of_the_model_changes_what_it_computes(path):
    model, x = Model(network(), mean=MEAN, std=STD), pictures()
    before = model(x)
    parent, _, name = path.rpartition(".")
    old = model.get_submodule(path)
    new = copy.deepcopy(old)
    nn.init.zeros_(new.weight)
    setattr(model.get_submodule(parent), name, new)
    assert model.network.get_submodule(path) is new
    assert not torch.equal(model(x), before)


def test_the_mode_is_that_of_the_network():
    class Mode(nn.Module):
        def forward(self, x):
            return x * float(self.training)

    model = Model(nn.Sequential(Mode(), nn.BatchNorm1d(2)))
    root = Model(Mode())
    for training in (False, True):
        for each in (model, root):
            each.train(training)
            assert each.training is training
            assert all(part.training is training for part in each.network.modules())
    root.training = False  # as toolkit.evaluating puts modes back
    assert float(root(torch.ones(1))) == 0


def test_a_copy_is_independent_and_complete():
    model, x = Model(network(), mean=MEAN, std=STD, classes=list("abcd"), input_shape=(3, 8, 8)), pictures()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    assert twin._modules is twin.network._modules
    with torch.no_grad():
        twin.head.weight.zero_()
    assert not torch.equal(twin(x), model(x))
    assert (twin.classes, twin.input_shape, twin.mean, twin.label) == (tuple("abcd"), (3, 8, 8), MEAN, "SmallCNN")


def test_conversions_reach_every_parameter_and_do_not_round_the_normalisation():
    model, x = Model(network(), mean=(1 / 3,) * 3, std=STD), pictures()
    wide = copy.deepcopy(model).double()
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float64}
    torch.testing.assert_close(wide(x.double()).float(), model(x), rtol=1e-4, atol=1e-5)
    back = copy.deepcopy(model).half().float()
    assert torch.equal(back._constants, model._constants)
    assert copy.deepcopy(model).to("meta")._constants.is_meta


def test_gradients_reach_pictures_and_parameters_also_after_inference_mode():
    model, x = Model(network(), mean=MEAN, std=STD), pictures().requires_grad_()
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    values = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    assert not torch.func.functional_call(model, values, (x,)).any()


def test_uint8_pictures_are_refused_where_they_would_be_normalised():
    with pytest.raises(InputError, match="Divide by 255"):
        Model(network(), mean=MEAN, std=STD)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_network_with_parts_named_like_attributes_goes_one_level_down():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.label = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.label(self.mean(x))

    net = Heads()
    model = Model(net)
    assert layer_names(model) == ("inner.mean", "inner.label")
    assert model.get_submodule("inner.mean") is net.mean
    assert model.mean == ()
    assert torch.equal(model(torch.ones(1, 2)), net(torch.ones(1, 2)))
    arrays, metadata = model_state(model)
    fresh = load_state(arrays, metadata, factories={}, into=Heads())
    assert torch.equal(fresh(torch.ones(1, 2)), net(torch.ones(1, 2)))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"mean": MEAN}, "as many numbers"),
        ({"mean": 0.5, "std": 0}, "positive"),
        ({"mean": float("nan"), "std": 1}, "finite"),
        ({"mean": MEAN, "std": STD, "input_shape": (1, 8, 8)}, "per channel"),
        ({"input_shape": (8, 8)}, "channel, y, x"),
        ({"factory_arguments": {"act": nn.ReLU}}, "JSON"),
    ],
)
def test_metadata_that_cannot_be_right_are_refused(metadata, message):
    with pytest.raises(InputError, match=message):
        Model(network(), **metadata)


def test_as_model_leaves_models_alone_and_shares_the_layers_of_modules():
    net, data = network(), xr.Dataset({"image": (("sample", "channel", "y", "x"), np.zeros((2, 3, 8, 8), np.float32))})
    model = as_model(net, example=data, label="mine")
    assert (model.network, model.input_shape, model.label, model.mean) == (net, (3, 8, 8), "mine", ())
    assert as_model(model) is model


def test_predict_gives_the_same_logits_for_uint8_and_float_pictures():
    model = Model(network(), mean=MEAN, std=STD)
    eight_bit = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)
    from_bytes, activation = predict_all(model, eight_bit, batch_size=4, layers=["block1.relu"])
    from_floats, _ = predict_all(model, (eight_bit / 255).astype(np.float32), batch_size=10)
    torch.testing.assert_close(from_bytes, from_floats, rtol=1e-5, atol=1e-5)
    expected = model(torch.from_numpy(eight_bit).float() / 255)
    torch.testing.assert_close(from_bytes, expected.detach(), rtol=1e-5, atol=1e-5)
    assert activation["block1.relu"].shape == (10, 4, 8, 8)


# ---------------------------------------------------------------------------------------------------------- from a name


@pytest.fixture
def digits():
    return open_data("digits[:100]", datasets=DATASETS)


def test_an_architecture_takes_classes_and_channels_from_the_data(digits):
    model = load_model("small-cnn(width=8)", factories=FACTORIES, example=digits)
    assert (model.factory, model.factory_arguments) == ("small-cnn", {"n_classes": 10, "channels": 1, "width": 8})
    assert model.classes == tuple("0123456789")
    assert model.input_shape == (1, 8, 8)
    assert model.label == "small-cnn(width=8)"
    assert not model.training
    explicit = load_model("small-cnn(n_classes=3, channels=2)", factories=FACTORIES, example=digits)
    assert explicit(torch.rand(1, 2, 8, 8)).shape == (1, 3)
    assert explicit.classes == ()
    unnamed = digits.drop_vars("class").isel(sample=digits["label"].values < 4)
    assert load_model("small-cnn", factories=FACTORIES, example=unnamed)(torch.rand(1, 1, 8, 8)).shape == (1, 4)


def test_initial_weights_are_the_same_every_time_and_leave_the_global_generators_alone():
    def draws():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()  # noqa: NPY002

    def seed():
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)

    seed()
    expected = draws()
    seed()
    first = load_model("small-cnn(n_classes=3)", factories=FACTORIES)
    assert draws() == expected
    second = load_model("small-cnn(n_classes=3)", factories=FACTORIES)
    other = load_model("small-cnn(n_classes=3, seed=1)", factories=FACTORIES)
    assert model_digest(first) == model_digest(second)
    assert model_digest(first) != model_digest(other)
    assert other.factory_arguments == {"n_classes": 3}
