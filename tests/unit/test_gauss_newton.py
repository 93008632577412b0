"""Traces of Hessian blocks by Gauss-Newton and probes, against dense Hessians and dense Jacobians."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from workbench_quantization import gauss_newton
from workbench_quantization.gauss_newton import MOST_CLASSES, gauss_newton_probes, gauss_newton_traces
from workbench_quantization.hawq_curvature import Batch
from workbench_quantization.layers import Block


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Tokens(nn.Module):
    """A linear layer over tokens that is called twice, and a smooth one: neither is piecewise linear."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.head = nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.twice(F.silu(self.twice(values))).mean(1))


class Direct(nn.Module):
    """A layer whose weight is used without a call of the layer, in front of one that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.direct, self.called = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, values: Tensor) -> Tensor:
        return self.called(torch.relu(F.linear(values, self.direct.weight)))


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...], int]]:
    """Name -> network, shape of a sample, classes."""
    torch.manual_seed(3)
    piecewise_linear = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, (1, 2), dilation=(1, 2)), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 5),
    )  # fmt: skip
    smooth = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    transposed = nn.Sequential(
        nn.ConvTranspose2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(2, 3)
    )
    return {
        "piecewise linear": (piecewise_linear, (2, 6, 8), 5),
        "smooth": (smooth, (3,), 3),
        "tokens": (Tokens(), (5, 3), 4),
        "transposed": (transposed, (1, 2, 2), 3),
        "direct": (Direct(), (3,), 3),
    }


def prepared(name: str) -> tuple[nn.Module, list[Block], list[Batch]]:
    model, shape, classes = networks()[name]
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.linspace(-0.2, 0.3, 4).double()
            module.running_var = torch.linspace(0.5, 2, 4).double()
    blocks = [
        Block(key, (key,), (layer,))
        for key, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    image = torch.randn(7, *shape, generator=generator(1)).double()
    label = torch.randint(classes, (7,), generator=generator(2))
    return model, blocks, list(zip(image.split(4), label.split(4), strict=True))


def whole(batches: list[Batch]) -> Batch:
    return torch.cat([image for image, _ in batches]), torch.cat([label for _, label in batches])


def dense_trace(model: nn.Module, block: Block, batches: list[Batch]) -> float:
    image, label = whole(batches)
    name = f"{block.name}.weight"

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, {name: weight}, (image,)), label)

    weight = block.weights[0].detach()
    return float(torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), -1).trace())  # type: ignore[no-untyped-call]


def dense_gauss_newton_trace(model: nn.Module, block: Block, batches: list[Batch]) -> float:
    image, _ = whole(batches)
    name, total = f"{block.name}.weight", 0.0
    for sample in image:

        def logit(weight: Tensor, sample: Tensor = sample) -> Tensor:
            return functional_call(model, {name: weight}, (sample[None],))[0]

        jacobian = torch.autograd.functional.jacobian(logit, block.weights[0].detach()).flatten(1)  # type: ignore[no-untyped-call]
        p = logit(block.weights[0].detach()).detach().softmax(0)
        total += float((jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian).trace())
    return total / len(image)


@pytest.mark.parametrize("name", ["piecewise linear", "smooth", "tokens"])
def test_the_gauss_newton_trace_is_that_of_the_dense_matrix(name: str) -> None:
    model, blocks, batches = prepared(name)
    found = gauss_newton_traces(model, blocks, batches, generator())
    assert found.exact
    assert all(found.told)
    expected = [dense_gauss_newton_trace(model, block, batches) for block in blocks]
    np.testing.assert_allclose(found.trace.numpy(), expected, rtol=1e-9)


def test_little_memory_and_a_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """One direction of one image at a time gives the same traces; what is raised between images ends the work."""
    model, blocks, batches = prepared("piecewise linear")
    expected = gauss_newton_traces(model, blocks, batches, generator()).trace
    monkeypatch.setattr(gauss_newton, "CHUNK", 1)
    seen: list[tuple[int, int]] = []
    found = gauss_newton_traces(model, blocks, batches, generator(), lambda *told: seen.append(told))
    np.testing.assert_allclose(found.trace.numpy(), expected.numpy(), rtol=1e-12)
    assert seen == [(done, 7) for done in range(1, 8)]

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(gauss_newton_probes(model, blocks, batches, 2, generator(), on_images=cancel))


def test_one_probe_gives_the_hessian_of_a_piecewise_linear_network() -> None:
    model, blocks, batches = prepared("piecewise linear")
    probes = torch.stack(list(gauss_newton_probes(model, blocks, batches, 2, generator())))
    expected = np.array([dense_trace(model, block, batches) for block in blocks])
    assert (expected > 0).all()
    for probe in probes:
        np.testing.assert_allclose(probe.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["smooth", "tokens", "transposed", "direct"])
def test_the_mean_over_probes_is_the_trace_of_any_network(name: str) -> None:
    """Also where Gauss and Newton leave something out, and of layers for which their part is not told."""
    model, blocks, batches = prepared(name)
    count = 200
    probes = torch.stack(list(gauss_newton_probes(model, blocks, batches, count, generator(), images_per_probe=3)))
    expected = np.array([dense_trace(model, block, batches) for block in blocks])
    error = probes.std(0).numpy() / np.sqrt(count)
    assert (np.abs(probes.mean(0).numpy() - expected) < 4 * error + 1e-9).all()
    told = gauss_newton_traces(model, blocks, batches, generator()).told
    assert told == [name not in ("transposed", "direct"), True, True][: len(blocks)]
    if name in ("smooth", "tokens"):
        assert (np.abs(error[:-1]) > 1e-6).all()  # the rest is there, so the mean was of something


class Beside(nn.Module):
    """A weight that is used in a call of its layer and once more without one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(torch.relu(F.linear(torch.relu(self.first(values)), self.first.weight)))


class Doubled(nn.Module):
    """A layer whose output a hook changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 3), nn.Linear(3, 4)
        self.first.register_forward_hook(lambda _module, _inputs, output: 2 * output)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(values)))


@pytest.mark.parametrize("network", [Beside, Doubled])
def test_a_weight_that_acts_otherwise_than_by_its_calls_is_left_to_the_probes(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = network().double().eval()
    blocks = [Block(name, (name,), (model.get_submodule(name),)) for name in ("first", "head")]
    batches = [(torch.randn(7, 3, generator=generator(1)).double(), torch.randint(4, (7,), generator=generator(2)))]
    found = gauss_newton_traces(model, blocks, batches, generator())
    assert found.told == [False, True]
    assert float(found.trace[1]) == pytest.approx(dense_gauss_newton_trace(model, blocks[1], batches), rel=1e-9)
    # Now the probes are those of the Hessian itself, on images drawn anew; here on all of them.
    probes = torch.stack(list(gauss_newton_probes(model, blocks, batches, 100, generator(), images_per_probe=7)))
    error = float(probes[:, 0].std()) / np.sqrt(len(probes))
    assert float(probes[:, 0].mean()) == pytest.approx(dense_trace(model, blocks[0], batches), abs=4 * error)


def test_without_a_layer_that_can_be_told_probes_do_all() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(1, 3, 2), nn.Flatten(), nn.Softplus()).double().eval()
    blocks = [Block("0", ("0",), (model[0],))]
    batches = [(torch.randn(6, 1, 1, 1).double(), torch.randint(12, (6,)))]
    assert gauss_newton_traces(model, blocks, batches, generator()).told == [False]
    probes = torch.stack(list(gauss_newton_probes(model, blocks, batches, 300, generator())))
    error = float(probes.std()) / np.sqrt(len(probes))
    assert float(probes.mean()) == pytest.approx(dense_trace(model, blocks[0], batches), abs=4 * error)


def test_many_classes_are_drawn_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, MOST_CLASSES + 30)).double().eval()
    blocks = [Block(key, (key,), (model[int(key)],)) for key in ("0", "2")]
    batches = [(torch.randn(20, 6).double(), torch.randint(MOST_CLASSES + 30, (20,)))]
    probes = torch.stack(list(gauss_newton_probes(model, blocks, batches, 30, generator())))
    expected = np.array([dense_gauss_newton_trace(model, block, batches) for block in blocks])
    error = probes.std(0).numpy() / np.sqrt(len(probes))
    assert not gauss_newton_traces(model, blocks, batches, generator()).exact
    assert (np.abs(probes.mean(0).numpy() - expected) < 4 * error).all()
    assert (error < 0.1 * expected).all()
