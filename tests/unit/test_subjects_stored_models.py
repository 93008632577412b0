"""Models survive storage, those of libraries too, and a stranger's record fetches neither weights nor code."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from workbench.errors import InputError
from workbench.subjects import hubs, load_model, load_state, model_state
from workbench.subjects.builtin import FACTORIES
from workbench.subjects.model_digest import model_digest

from unit.subject_cases import MEAN, STD, network, pictures

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
