"""A Model computes what its network computes on normalised pictures, under the network's own names, and survives storage."""

import copy
import json
import os
import pickle
import random
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file
from torch import nn
from workbench.errors import InputError, MissingDependencyError
from workbench.subjects import Model, as_model, hubs, load_model, load_state, model_state, open_data
from workbench.subjects.builtin import DATASETS, FACTORIES
from workbench.subjects.model_digest import model_digest
from workbench.subjects.networks import SmallCNN, resnet20
from workbench.toolkit import layer_names, predict_all

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_weights = pytest.mark.skipif(
    not (SHARED / "weights").is_dir() or not (SHARED / "cifar10").is_dir(), reason="the published weights are not here"
)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def network(seed=0, channels=3):
    torch.manual_seed(seed)
    return SmallCNN(4, channels, 4).eval()


def pictures(n=3, channels=3, side=8, seed=1):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested", "module."])
def test_weights_of_a_file_are_loaded_whatever_wraps_them(form, tmp_path):
    net = network(seed=7)
    state, path = net.state_dict(), tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "module.":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if form == "nested" else state, path)
    name = f"small-cnn(n_classes=4, channels=3, width=4, mean=0.5, std=0.25)@{path}"
    model = load_model(name, factories=FACTORIES)
    x = pictures()
    torch.testing.assert_close(model(x), net((x - 0.5) / 0.25), rtol=0, atol=0)


class Evil:
    def __reduce__(self):
        return os.system, ("touch SHOULD_NOT_EXIST",)


def test_a_weights_file_that_holds_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    torch.save({"conv1.weight": Evil()}, path)
    with pytest.raises(InputError, match="never executed"):
        load_model(f"resnet20@{path}", factories=FACTORIES)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"w\.pth"):
        load_model(f"resnet20@{path}", factories=FACTORIES)
    assert not (tmp_path / "SHOULD_NOT_EXIST").exists()


def test_weights_that_do_not_fit_are_one_error_that_names_some(tmp_path):
    state = network().state_dict()
    state["extra"] = state.pop("head.bias")
    state["head.weight"] = torch.zeros(5, 16)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_model(f"small-cnn(n_classes=4, channels=3, width=4)@{tmp_path}/w.safetensors", factories=FACTORIES)
    text = str(caught.value)
    assert "1 missing: head.bias" in text
    assert "1 unknown: extra" in text
    assert "head.weight (5, 16) instead of (4, 16)" in text


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", ["cut", "noise", "missing"])
def test_damaged_and_missing_weights_are_named(suffix, damage, tmp_path):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(network().state_dict(), path)
    else:
        save_file(network().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"noise" * 100)
    if damage == "missing":
        path.unlink()
    with pytest.raises(InputError, match=rf"w\{suffix}"):
        load_model(f"small-cnn(n_classes=4, channels=3, width=4)@{path}", factories=FACTORIES)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("smal-cnn", "Did you mean 'small-cnn'"),
        ("mine.safetensors", "NAME@FILE"),
        ("small-cnn", "'n_classes'"),
        ("small-cnn(n_classes=3, depth=4)", "depth"),
        ("resnet20(seed=-1)", "seed"),
        ("resnet20(10)", "registered model"),
        (3, "nn.Module"),
    ],
)
def test_names_that_mean_nothing_are_explained(spec, message):
    with pytest.raises(InputError, match=message):
        load_model(spec, factories=FACTORIES)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"vision-workbench\[timm\]"):
        load_model("timm:resnet18", factories=FACTORIES)


def test_missing_published_weights_say_where_to_put_them(monkeypatch, tmp_path):
    monkeypatch.delenv("WORKBENCH_DATA", raising=False)
    with pytest.raises(InputError, match="WORKBENCH_DATA is not set"):
        load_model("cifar10-resnet20", factories=FACTORIES)
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"cifar10_resnet20\.safetensors"):
        load_model("cifar10-resnet20", factories=FACTORIES)


@needs_weights
@pytest.mark.parametrize(
    ("depth", "accuracy"),
    [(20, 91.64), *(pytest.param(d, a, marks=pytest.mark.slow) for d, a in ((32, 92.82), (44, 93.41), (56, 92.72)))],
)
def test_published_networks_reach_their_accuracy_on_cifar10(depth, accuracy, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(SHARED))
    data = open_data("cifar10", datasets=DATASETS)
    model = load_model(f"cifar10-resnet{depth}", factories=FACTORIES, example=data)
    assert data.sizes["sample"] == 1017
    logit, _ = predict_all(model, data["image"])
    assert round(100 * float((logit.argmax(1).numpy() == data["label"].values).mean()), 2) == accuracy
    assert model.classes == tuple(data["class"].values)
    by_path = load_model(
        f"cifar10-resnet{depth}@{SHARED}/weights/cifar10_resnet{depth}.safetensors", factories=FACTORIES
    )
    assert model_digest(by_path) == model_digest(model)
    assert model_digest(load_state(*model_state(model), factories=FACTORIES)) == model_digest(model)


# -------------------------------------------------------------------------------------------------------------- storage


def test_a_stored_model_comes_back_as_it_was():
    model = load_model("small-cnn(n_classes=4, channels=3, mean=0.5, std=0.25)", factories=FACTORIES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    arrays, metadata = model_state(model)
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    back = load_state(arrays, json.loads(json.dumps(metadata)), factories=FACTORIES)
    assert model_digest(back) == model_digest(model)
    assert (back.label, back.classes, back.factory) == (model.label, model.classes, "small-cnn")
    assert torch.equal(back(pictures()), model(pictures()))
    with torch.no_grad():
        model.head.bias.fill_(9)
    assert not (arrays["head.bias"] == 9).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_come_back_exactly(dtype):
    model = load_model("small-cnn(n_classes=4)", factories=FACTORIES).to(dtype)
    arrays, metadata = model_state(model)
    back = load_state(arrays, metadata, factories=FACTORIES)
    assert bool(metadata["dtypes"]) is (dtype is torch.bfloat16)
    for (key, mine), theirs in zip(back.state_dict().items(), model.state_dict().values(), strict=True):
        assert mine.dtype == theirs.dtype, key
        assert torch.equal(mine, theirs), key


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight


def test_tied_weights_stay_tied():
    arrays, metadata = model_state(Tied().double())
    back = load_state(arrays, metadata, factories={}, into=Tied())
    assert back.a.weight is back.b.weight
    assert back.a.weight.dtype is torch.float64


def test_a_network_without_factory_needs_a_network_to_go_into():
    net = nn.Sequential(nn.Linear(2, 3))
    arrays, metadata = model_state(net)
    assert metadata["class"] == "torch.nn.modules.container.Sequential"
    with pytest.raises(InputError, match="into=my_network"):
        load_state(arrays, metadata, factories=FACTORIES)
    into = nn.Sequential(nn.Linear(2, 3))
    back = load_state(arrays, metadata, factories=FACTORIES, into=into)
    assert torch.equal(back.network[0].weight, net[0].weight)
    with pytest.raises(InputError, match=r"stored torch\.nn\.modules\.container\.Sequential"):
        load_state(arrays, metadata, factories=FACTORIES, into=nn.Linear(5, 5))


def test_unknown_factories_and_changed_networks_are_explained():
    model = load_model("small-cnn(n_classes=4)", factories=FACTORIES)
    arrays, metadata = model_state(model)
    with pytest.raises(InputError, match=r"'small-cnn'.*into="):
        load_state(arrays, metadata, factories={})
    model.head = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 4))
    with pytest.raises(InputError, match="perhaps changed afterwards"):
        load_state(*model_state(model), factories=FACTORIES)


def test_states_that_are_no_plain_tensors_are_refused():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"anything": 1}

    with pytest.raises(InputError, match="_extra_state"):
        model_state(Extra(1, 1))
    sparse = nn.Linear(2, 2)
    sparse.register_buffer("index", torch.eye(2).to_sparse())
    with pytest.raises(InputError, match="index"):
        model_state(sparse)


@pytest.mark.parametrize(
    "chain", [("GatedRepoError", 403), ("RepositoryNotFoundError", None), ("HTTPStatusError", 401)]
)
def test_who_is_refused_by_a_hub_learns_how_to_log_in(chain):
    """Transformers raises an OSError whose cause is the hub's own error."""
    name, status = chain

    def refuse():
        cause = type(name, (Exception,), {"response": types.SimpleNamespace(status_code=status)})("401 Client Error")
        raise OSError("You are trying to access a gated repo.\nMore lines.") from cause

    with pytest.raises(InputError, match=r"gated repo\b.*hf auth login.*HF_TOKEN") as caught:
        hubs._built(refuse, "transformers:owner/name", "model")
    assert "More lines" not in str(caught.value)

    def unreachable():
        raise OSError("no route to host")

    with pytest.raises(InputError, match="Without a connection"):
        hubs._built(unreachable, "transformers:owner/name", "model")


def test_torchvision_models_are_built_stored_and_built_again():
    pytest.importorskip("torchvision.models", exc_type=Exception)
    model = load_model("torchvision:squeezenet1_1(pretrained=False, num_classes=3)", factories=FACTORIES)
    assert (model.mean, model.input_shape) == ((0.485, 0.456, 0.406), (3, 224, 224))
    assert model(pictures(1, side=64)).shape == (1, 3)
    assert model_digest(load_state(*model_state(model), factories={})) == model_digest(model)
    with pytest.raises(InputError, match="squeezenet1_1"):
        load_model("torchvision:squeezenet1_11", factories=FACTORIES)


def test_timm_models_normalise_as_they_were_trained_and_come_back():
    pytest.importorskip("timm", exc_type=ImportError)
    model = load_model("timm:resnet10t(pretrained=False, num_classes=5)", factories=FACTORIES)
    assert (model.mean, model.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert model(pictures(1, side=64)).shape == (1, 5)
    assert model_digest(model) is not None
    assert model_digest(load_state(*model_state(model), factories={})) == model_digest(model)
    grey = load_model("timm:resnet10t(pretrained=False, in_chans=1)", factories=FACTORIES)
    assert grey.mean == (pytest.approx(0.449),)
    assert grey(pictures(1, channels=1, side=64)).shape == (1, 1000)


def test_transformers_classifiers_give_logits_of_normalised_pictures_and_come_back(tmp_path):
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    classifier = transformers.ResNetForImageClassification(config).eval()
    classifier.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        load_model(f"transformers:{tmp_path}", factories=FACTORIES)
    processing = {"do_normalize": True, "image_mean": MEAN, "image_std": STD, "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processing))
    model, x = load_model(f"transformers:{tmp_path}", factories=FACTORIES), pictures(side=32)
    shift, scale = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(model(x), classifier((x - shift) / scale).logits)
    assert (model.input_shape, model.classes) == ((3, 32, 32), tuple(f"LABEL_{i}" for i in range(4)))
    arrays, metadata = model_state(model)
    assert torch.equal(load_state(arrays, json.loads(json.dumps(metadata)), factories={})(x), model(x))


class FakeLibrary(types.ModuleType):
    """Stands in for a library of models: whatever is asked of it is an error."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"{self.__name__}.{name} was reached")


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        ("transformers:evil/repo", {"pretrained": True, "trust_remote_code": True}, "a stored configuration alone"),
        ("transformers:evil/repo", {}, "a stored configuration alone"),
        (
            "transformers:evil/repo",
            {"config": {"model_type": "resnet"}, "pretrained": True},
            "a stored configuration alone",
        ),
        (
            "transformers:x",
            {"config": {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/repo"}},
            "architecture",
        ),
        ("timm:resnet18", {"pretrained": True}, "got pretrained"),
        ("timm:resnet18", {"checkpoint_path": "/etc/passwd"}, "got checkpoint_path"),
        ("timm:resnet18", {"pretrained_cfg": {"hf_hub_id": "evil/repo"}}, "got pretrained_cfg"),
        ("timm:hf-hub:evil/repo", {}, "a model of timm itself"),
        ("timm:local-dir:/tmp", {}, "a model of timm itself"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "got weights"),
        ("small-cnn", {"n_classes": 4, "weights": "/etc/passwd"}, "without a file of weights"),
    ],
)
def test_a_strangers_record_cannot_fetch_weights_or_code(factory, arguments, message, monkeypatch):
    for library in ("transformers", "timm", "torchvision"):
        monkeypatch.setitem(sys.modules, library, FakeLibrary(library))
    arrays, metadata = model_state(network())
    stored = metadata | {"factory": factory, "factory_arguments": arguments}
    with pytest.raises(InputError, match=message):
        load_state(arrays, stored, factories=FACTORIES)
    assert load_state(arrays, stored, factories=FACTORIES, into=network(1)).factory == factory


def test_a_stored_configuration_loses_what_names_code_at_every_depth(monkeypatch):
    seen = []

    class Classifier(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.inner, self.config = network(), config

    class Config:
        id2label = {0: "a"}

        def to_dict(self):
            return {"model_type": "resnet"}

    library = types.ModuleType("transformers")
    library.AutoConfig = types.SimpleNamespace(for_model=lambda **stored: seen.append(stored) or Config())
    library.AutoModelForImageClassification = types.SimpleNamespace(from_config=Classifier)
    monkeypatch.setitem(sys.modules, "transformers", library)
    bad = {
        "auto_map": {"AutoConfig": "evil/repo--code.Config"},
        "trust_remote_code": True,
        "quantization_config": {"quant_method": "x"},
        "_attn_implementation": "evil/kernels",
        "attn_implementation": "evil/kernels",
        "experts_implementation": "evil/kernels",
        "use_pretrained_backbone": True,
        "model_args": {"checkpoint_path": "/etc/passwd", "depth": 3},
    }
    config = {"model_type": "resnet", "depths": [1, 2], "sizes": [{"auto_map": {}, "side": 8}]} | bad
    arrays = {f"classifier.inner.{key}": values for key, values in model_state(network())[0].items()}
    load_state(arrays, {"factory": "transformers:x", "factory_arguments": {"config": config}}, factories={})
    assert seen == [{"model_type": "resnet", "depths": [1, 2], "sizes": [{"side": 8}], "model_args": {"depth": 3}}]
