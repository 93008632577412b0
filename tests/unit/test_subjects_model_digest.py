"""A model's digest changes with what it computes and with nothing else; what cannot be told has none."""

import copy
import importlib
import importlib.metadata
import os
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
import torch
from torch import nn
from workbench.subjects import Model, code_digest
from workbench.subjects.model_digest import model_digest
from workbench.subjects.networks import SmallCNN

HEADER = "import functools, math, torch\nfrom torch import nn\n"


def cell(source, name="Net"):
    """A class as a notebook cell defines it: in a module without a file."""
    module = types.ModuleType("notebook_cells")
    exec(compile(HEADER + textwrap.dedent(source), "<cell>", "exec"), module.__dict__)
    module.__dict__[name].__module__ = "notebook_cells"
    return module.__dict__[name]


def built(source, *arguments):
    torch.manual_seed(0)
    return cell(source)(*arguments)


NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
    def forward(self, x):
        return {body}
"""


def network(seed=0):
    torch.manual_seed(seed)
    return SmallCNN(3)


# --------------------------------------------------------------------------------------------------- what does not count


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda m: m.eval(),
        lambda m: m.requires_grad_(False),
        lambda m: m.load_state_dict(copy.deepcopy(m.state_dict())) and m,
        lambda m: m.to(memory_format=torch.channels_last),
        lambda m: m(torch.rand(2, 1, 8, 8)).sum().backward() or m.eval(),
    ],
    ids=["copy", "mode", "requires_grad", "reloaded", "memory format", "gradients"],
)
def test_things_that_change_no_output_do_not_count(change):
    expected = model_digest(network())
    model = network().eval()
    assert expected is not None
    assert model_digest(change(model)) == expected


def test_the_label_does_not_count_but_everything_else_of_a_model_does():
    net = network()
    expected = model_digest(Model(net, label="a", mean=0.5, std=0.25))
    assert model_digest(Model(net, label="b", mean=0.5, std=0.25)) == expected
    assert model_digest(copy.deepcopy(Model(net, mean=0.5, std=0.25))) == expected
    others = [
        Model(net),
        Model(net, mean=0.4, std=0.25),
        Model(net, mean=0.5, std=0.2),
        Model(network(1), mean=0.5, std=0.25),
        Model(net, mean=0.5, std=0.25, factory="small-cnn"),
        net,
    ]
    digests = {expected, *map(model_digest, others)}
    assert len(digests) == 1 + len(others)
    assert None not in digests


def test_comments_names_of_locals_apart_the_same_cell_has_the_same_digest():
    assert model_digest(built(NET.format(body="self.a(x)"))) == model_digest(
        built("# a comment\n" + NET.format(body="self.a(x)  # another"))
    )


def test_the_digest_is_the_same_in_another_process():
    program = (
        "import torch\nfrom workbench.subjects import Model\nfrom workbench.subjects.model_digest import model_digest\n"
        "from workbench.subjects.networks import SmallCNN\ntorch.manual_seed(0)\n"
        "print(model_digest(Model(SmallCNN(3), mean=0.5, std=0.25)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == model_digest(Model(network(), mean=0.5, std=0.25))


# ---------------------------------------------------------------------------------------------------------- what counts


def test_equal_weights_and_another_computation():
    bodies = [
        "self.a(x)",
        "self.a(x) * 2",
        "self.a(x) * 2.0",
        "self.a(self.a(x))",
        "self.a(x).relu()",
        "self.a(x).tanh()",
    ]
    digests = [model_digest(built(NET.format(body=body))) for body in bodies]
    assert None not in digests
    assert len(set(digests)) == len(bodies)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def act(x):\n    return x + 1\n", "def act(x):\n    return x + 2\n"),
        ("SCALE = 2\ndef act(x):\n    return x * SCALE\n", "SCALE = 3\ndef act(x):\n    return x * SCALE\n"),
        ("def act(x, scale=2):\n    return x * scale\n", "def act(x, scale=3):\n    return x * scale\n"),
        (
            "def inner(x):\n    return -x\ndef act(x):\n    return inner(x)\n",
            "def inner(x):\n    return +x\ndef act(x):\n    return inner(x)\n",
        ),
        (
            "def make(k):\n    return lambda x: x * k\nact = make(2)\n",
            "def make(k):\n    return lambda x: x * k\nact = make(3)\n",
        ),
        ("act = functools.partial(torch.clamp, min=0)\n", "act = functools.partial(torch.clamp, min=1)\n"),
        ("act = torch.relu\n", "act = torch.sigmoid\n"),
        ("act = torch.tensor([1.0]).mul\n", "act = torch.relu\n"),
    ],
    ids=["function", "global", "default", "called", "closure", "partial", "builtin", "bound"],
)
def test_what_a_forward_calls_counts(before, after):
    net = NET.format(body="act(self.a(x))")
    first, again, second = (model_digest(built(source + net)) for source in (before, before, after))
    assert first == again
    assert first != second


@pytest.fixture
def imported_digest(tmp_path, monkeypatch):
    """Digest of a network in a file beside others, all of them freshly imported; only the file `changed` differs."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "pk").mkdir()

    def digest(preamble, body, changed, text):
        net = "        return " if "\n" not in body else "        "
        source = f"{HEADER}{preamble}\nclass Net(nn.Module):\n    def forward(self, x):\n{net}{body}\n"
        files = {"pk/__init__.py": "", "pk/losses.py": "", "hlp.py": "", "net_of_user.py": source} | {changed: text}
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        for name in ("pk", "pk.losses", "hlp", "net_of_user"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        model = importlib.import_module("net_of_user").Net()
        before = model_digest(model)
        model(torch.ones(2))  # what a call imports must not change the digest
        assert None is not before == model_digest(model)
        return before

    yield digest
    for name in ("pk", "pk.losses", "hlp", "net_of_user"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("preamble", "body", "file"),
    [
        ("", "from hlp import g\n        return g(x)", "hlp.py"),
        ("", "import pk.losses as losses\n        return losses.g(x)", "pk/losses.py"),
        ("", "from pk import losses\n        return [losses.g(y) for y in x]", "pk/losses.py"),
        ("import pk.losses", "pk.losses.g(x)", "pk/losses.py"),
        ("import pk.losses", "torch.stack([pk.losses.g(y) for y in x])", "pk/losses.py"),
    ],
    ids=["from import", "import as", "from package", "nested module", "nested in a comprehension"],
)
def test_code_of_other_files_counts_however_it_is_reached(preamble, body, file, imported_digest):
    text = "def g(x):\n    return x * {}\n"
    first, again, second = (imported_digest(preamble, body, file, text.format(factor)) for factor in (2, 2, 3))
    assert first == again
    assert first != second


def module(name, source, monkeypatch):
    """A module of a user without a file, known to the interpreter."""
    made = types.ModuleType(name)
    exec(source, made.__dict__)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def test_each_function_counts_what_it_uses_of_a_nested_module_itself(monkeypatch):
    net = NET.format(body="first(x) + second(x)")
    header = "def first(x):\n    return outer.inner.f(x)\ndef second(x):\n    return outer.inner.g(x)\n"

    def digest(factor):
        outer = module("outer_of_user", "", monkeypatch)
        outer.inner = module(
            "outer_of_user.inner", f"def f(x):\n    return x\ndef g(x):\n    return x * {factor}", monkeypatch
        )
        outer.inner.outer = outer  # as a module that imports its own package
        net_class = cell(header + net)
        net_class.forward.__globals__["outer"] = outer
        torch.manual_seed(0)
        return model_digest(net_class())

    assert digest(2) == digest(2) != digest(3)


def test_an_optional_import_that_is_missing_leaves_a_digest():
    body = "self.a(x)\n        import no_such_module_anywhere"
    assert model_digest(built(NET.format(body=body))) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.head.bias.data.add_(1e-6),
        lambda m: m.block1.bn.running_mean.add_(1e-6),
        lambda m: m.double(),
        lambda m: setattr(m, "head", nn.Sequential(m.head)),
        lambda m: setattr(m.block1, "relu", nn.GELU()),
        lambda m: setattr(m.block1.bn, "eps", 1e-4),
        lambda m: setattr(m, "scale", 2),
        lambda m: setattr(m, "table", {"a": [1, 2.0, torch.float32]}),
        lambda m: m.register_buffer("mask", torch.ones(2), persistent=False),
        lambda m: setattr(m.block2.conv, "padding", (0, 0)),
    ],
    ids=["bias", "statistic", "dtype", "nested", "activation", "eps", "number", "container", "buffer", "padding"],
)
def test_every_change_of_state_or_structure_counts(change):
    model = network()
    change(model)
    assert model_digest(model) not in (None, model_digest(network()))


def test_training_counts():
    model = network()
    before = model_digest(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    optimizer.step()
    assert model_digest(model) != before


def test_the_order_of_layers_and_tied_weights_count():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    assert model_digest(nn.Sequential(a, b)) != model_digest(nn.Sequential(b, a))
    twin = copy.deepcopy(a)
    assert model_digest(nn.Sequential(a, twin)) != model_digest(nn.Sequential(a, a))
    tied = copy.deepcopy(twin)
    tied.weight = a.weight
    assert model_digest(nn.Sequential(a, twin)) != model_digest(nn.Sequential(a, tied))


def test_values_of_one_repr_are_told_apart():
    def holder(value):
        model = nn.Identity()
        model.value = value
        return model

    values = [1, 1.0, True, "1", (1,), [1], {1}, {"1": 1}, None, torch.tensor(1), torch.tensor(1.0), b"1"]
    digests = [model_digest(holder(value)) for value in values]
    assert None not in digests
    assert len(set(digests)) == len(values)


# ------------------------------------------------------------------------------------------------------- what has none


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m.block1.conv.register_forward_pre_hook(lambda *_: None),
        lambda m: m.head.register_full_backward_hook(lambda *_: None),
        lambda m: m.head.weight.register_hook(lambda g: g),
        lambda m: setattr(m, "forward", lambda x: x),
        lambda m: setattr(m.block1.relu, "forward", lambda x: x),
        lambda m: setattr(m, "anything", object()),
        lambda m: setattr(m, "generator", torch.Generator()),
        lambda m: m.register_buffer("sparse", torch.eye(2).to_sparse()),
    ],
    ids=["hook", "pre-hook", "backward", "tensor", "forward", "layer", "object", "generator", "sparse"],
)
def test_what_cannot_be_told_has_no_digest(spoil):
    for wrapped in (False, True):
        model = network()
        spoil(model)
        assert model_digest(Model(model) if wrapped else model) is None


def test_a_removed_hook_is_forgotten():
    model = network()
    model.register_forward_hook(lambda *_: None).remove()
    assert model_digest(model) == model_digest(network())


def test_hooks_of_a_model_and_of_all_modules():
    model = Model(network())
    model.register_forward_hook(lambda *_: None)
    assert model_digest(model) is None
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert model_digest(network()) is None
    finally:
        handle.remove()
    assert model_digest(network()) is not None


def test_traced_modules_and_replaced_forwards_of_torch_have_none(monkeypatch):
    assert model_digest(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))) is None
    expected = model_digest(network())
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x)
    assert model_digest(network()) is None
    monkeypatch.undo()
    assert model_digest(network()) == expected


def test_a_method_replaced_on_a_class_of_ours_counts(monkeypatch):
    model = network()
    before = model_digest(model)
    monkeypatch.setattr(SmallCNN, "forward", lambda self, x: self.head(self.flatten(self.pool(self.block1(x)))))
    assert model_digest(model) != before


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_floats_that_numpy_lacks_are_told_apart_by_value_and_dtype(name):
    def digest(value, dtype=name):
        model = nn.Linear(2, 2, bias=False)
        model.weight.data.zero_()
        model.register_buffer("scale", torch.tensor([value]).to(getattr(torch, dtype)))
        return model_digest(model)

    assert None is not digest(1.5) == digest(1.5)
    assert len({digest(1.5), digest(1.75), digest(1.5, "float32")}) == 3


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_a_tensor_of_a_dtype_that_cannot_be_read_has_no_digest():
    model = nn.Linear(2, 2)
    model.register_buffer("odd", torch.zeros(2).to(torch.complex32))
    assert model_digest(model) is None


def test_cycles_end():
    model = nn.Sequential(nn.Linear(2, 2))
    model.owner = [model]
    assert model_digest(model) is not None
    assert model_digest(model) == model_digest(copy.deepcopy(model))


def test_the_release_of_a_package_is_looked_up_once(monkeypatch):
    """The look goes through the files of every distribution: a second or two for each of a library's modules would be felt."""
    looks, look = [], importlib.metadata.packages_distributions
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: looks.append(1) or look())
    code_digest._package_release.cache_clear()
    releases = {code_digest._release(name) for name in ("numpy", "numpy.linalg", "numpy.fft")}
    assert (releases, len(looks)) == ({f"numpy {np.__version__}"}, 1)
