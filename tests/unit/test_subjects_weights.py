"""Weights of files and of published networks: loaded whatever wraps them, never run, and explained where they do not fit."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from workbench.errors import InputError, MissingDependencyError
from workbench.subjects import load_model, load_state, model_state, open_data
from workbench.subjects.builtin import DATASETS, FACTORIES
from workbench.subjects.model_digest import model_digest
from workbench.toolkit import predict_all

from unit.subject_cases import SHARED, Evil, needs_weights, network, pictures


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


def test_a_weights_file_that_holds_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    torch.save({"conv1.weight": Evil(os.system, "touch SHOULD_NOT_EXIST")}, path)
    with pytest.raises(InputError, match="never executed"):
        load_model(f"resnet20@{path}", factories=FACTORIES)
    path.write_bytes(pickle.dumps(Evil(os.system, "touch SHOULD_NOT_EXIST")))
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
