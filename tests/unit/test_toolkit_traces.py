"""Randomised traces against dense Hessians, and Fisher traces against their definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import InputError
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import (
    Hessian,
    activation_trace_probes,
    block_trace_probes,
    empirical_fisher_samples,
    trace_estimate,
    trace_probes,
)

NAMES = ["0.weight", "2.weight"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def mlp() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()
    image = torch.randn(20, 6, dtype=torch.float64, generator=generator())
    return model, image, torch.randint(0, 4, (20,), generator=generator(1))


def loss_of(model: nn.Module):
    return lambda batch: F.cross_entropy(model(batch[0]), batch[1])


def dense_block(model: nn.Module, image: Tensor, label: Tensor, name: str) -> Tensor:
    state = {key: parameter.detach() for key, parameter in model.named_parameters()}

    def loss(flat: Tensor) -> Tensor:
        full = {**state, name: flat.view_as(state[name])}
        return F.cross_entropy(torch.func.functional_call(model, full, (image,)), label)

    return torch.func.hessian(loss)(state[name].flatten())


@pytest.mark.parametrize("mode", ["joint", "per_layer"])
def test_traces_of_blocks_are_within_three_standard_errors_of_the_dense_ones(
    mlp: tuple[nn.Sequential, Tensor, Tensor], mode: str
) -> None:
    """In every mode of probing."""
    model, image, label = mlp
    exact = torch.stack([dense_block(model, image, label, name).trace() for name in NAMES])
    blocks = [[model.get_parameter(name)] for name in NAMES]
    probes = block_trace_probes(
        loss_of(model), blocks, [(image[:8], label[:8]), (image[8:], label[8:])], 300, generator(), mode=mode
    )
    estimate = trace_estimate(probes)
    assert estimate.probes.shape == (2, 300)
    assert ((estimate.mean - exact).abs() <= 3 * estimate.standard_error).all()
    assert (estimate.standard_error < 0.35 * exact).all()


def test_probes_of_single_layers_have_the_variance_of_hutchinsons_estimator(
    mlp: tuple[nn.Sequential, Tensor, Tensor],
) -> None:
    """With entries +-1 it is 2 * sum of the squared off-diagonal entries; joint probes have more."""
    model, image, label = mlp
    blocks = [[model.get_parameter(name)] for name in NAMES]
    variance = {}
    for mode in ("per_layer", "joint"):
        probes = block_trace_probes(
            loss_of(model), blocks, [(image, label)], 1000, generator(3), mode=mode, reuse_graph=True
        )
        variance[mode] = trace_estimate(probes).probes.var(1)
    for index, name in enumerate(NAMES):
        matrix = dense_block(model, image, label, name)
        exact = 2 * (matrix.square().sum() - matrix.diagonal().square().sum())
        assert float(variance["per_layer"][index]) == pytest.approx(float(exact), rel=0.2)
    assert (variance["joint"] > 1.02 * variance["per_layer"]).all()


def test_groups_add_up(mlp: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    model, image, label = mlp
    hessian = Hessian(loss_of(model), [model.get_parameter(name) for name in NAMES], [(image, label)])
    split = next(trace_probes(hessian, 1, generator()))
    joined = next(trace_probes(hessian, 1, generator(), groups=[[0, 1]]))
    assert float(split.sum()) == pytest.approx(float(joined))


def test_trace_on_a_convolutional_network_is_that_of_curvlinops() -> None:
    """Not another random estimate: the exact trace of the smallest block, from curvlinops' operator on unit vectors."""
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = SmallCNN(10, width=4).double().eval()
    image = torch.rand(16, 1, 8, 8, generator=generator(), dtype=torch.float64)
    label = torch.randint(0, 10, (16,), generator=generator(1))
    name = "block1.conv.weight"
    weight = model.get_parameter(name)
    oracle = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), [weight], [(image, label)])
    exact = float((oracle @ torch.eye(weight.numel(), dtype=torch.float64)).trace())
    estimate = trace_estimate(block_trace_probes(loss_of(model), [[weight]], [(image, label)], 200, generator()))
    assert abs(float(estimate.mean) - exact) <= 3 * float(estimate.standard_error)
    assert float(estimate.standard_error) < 0.2 * abs(exact)


def test_fisher_samples_are_squared_gradient_norms_of_single_samples(mlp: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    model, image, label = mlp
    blocks = [[model.get_parameter(name)] for name in NAMES]
    got = torch.stack(
        list(empirical_fisher_samples(loss_of(model), blocks, [(image[:5], label[:5]), (image[5:], label[5:])]))
    )
    state = {key: parameter.detach() for key, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (one[None],)), target[None])

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(state, image, label)
    expected = torch.stack([gradients[name].flatten(1).square().sum(1) for name in NAMES], dim=1)
    torch.testing.assert_close(got, expected)


def test_activation_traces_are_means_of_the_samples_dense_traces(mlp: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    model, image, label = mlp
    hidden = model[0](image).detach()
    exact = []
    for head, activation in ((nn.Sequential(model[1], model[2]), hidden), (nn.Identity(), model(image).detach())):
        traces = [
            torch.func.hessian(lambda a, t=target, h=head: F.cross_entropy(h(a)[None], t[None]))(one).trace()
            for one, target in zip(activation, label, strict=True)
        ]
        exact.append(torch.stack(traces).mean())
    batches = [(image[:6], label[:6]), (image[6:], label[6:])]
    estimate = trace_estimate(activation_trace_probes(loss_of(model), [model[0], model[2]], batches, 400, generator()))
    assert ((estimate.mean - torch.stack(exact)).abs() <= 3 * estimate.standard_error).all()
    assert (estimate.standard_error < 0.1 * torch.stack(exact)).all()
    assert not model[0]._forward_hooks


def test_one_probe_has_no_standard_error() -> None:
    with pytest.raises(InputError, match="probes"):
        trace_estimate([torch.zeros(2)])


def test_standard_error_is_that_of_the_mean() -> None:
    values = torch.randn(50, 3, generator=generator(), dtype=torch.float64)
    estimate = trace_estimate(values)
    torch.testing.assert_close(estimate.mean, values.mean(0))
    torch.testing.assert_close(estimate.standard_error, values.std(0) / 50**0.5)
