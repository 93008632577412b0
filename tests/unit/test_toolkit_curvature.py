"""Curvature without the Hessian against the Hessian itself (torch.func.hessian) and against curvlinops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import InputError
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Hessian, lanczos, spectral_density, top_eigenpairs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def mlp() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A smooth network of 2 layers, 171 weights, in double precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4, bias=False)).double()
    image = torch.randn(30, 8, dtype=torch.float64, generator=generator())
    label = torch.randint(0, 4, (30,), generator=generator(1))
    return model, image, label


def loss_of(model: nn.Module):
    return lambda batch: F.cross_entropy(model(batch[0]), batch[1])


def dense(model: nn.Module, image: Tensor, label: Tensor, names: list[str]) -> Tensor:
    """The Hessian with respect to the named parameters by torch.func, (n, n)."""
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes = [state[name].numel() for name in names]

    def loss(flat: Tensor) -> Tensor:
        parts = {n: p.view_as(state[n]) for n, p in zip(names, flat.split(sizes), strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, {**state, **parts}, (image,)), label)

    return torch.func.hessian(loss)(torch.cat([state[name].flatten() for name in names]))


def test_products_equal_the_dense_hessians(mlp: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    model, image, label = mlp
    names = ["0.weight", "0.bias", "2.weight"]
    matrix = dense(model, image, label, names)
    parameters = [model.get_parameter(name) for name in names]
    vectors = [torch.randn(p.shape, dtype=p.dtype, generator=generator()) for p in parameters]
    expected = matrix @ torch.cat([v.flatten() for v in vectors])
    # Batches of unequal size: the mean is over samples, not over batches.
    batches = [(image[:7], label[:7]), (image[7:], label[7:])]
    for reuse in (False, True):
        hessian = Hessian(loss_of(model), parameters, batches, reuse_graph=reuse)
        for _ in range(2):
            got = torch.cat([part.flatten() for part in hessian.product(vectors)])
            torch.testing.assert_close(got, expected)
        assert hessian.products == 2


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_top_eigenvalues_of_a_block_equal_those_of_the_dense_block(
    mlp: tuple[nn.Sequential, Tensor, Tensor], name: str
) -> None:
    """Relative error below 1e-3 at tolerance 1e-6."""
    model, image, label = mlp
    values = torch.linalg.eigvalsh(dense(model, image, label, [name]))
    expected = values[values.abs().argsort(descending=True)]
    hessian = Hessian(loss_of(model), [model.get_parameter(name)], [(image, label)])
    pairs = top_eigenpairs(hessian, 2, iterations=3000, tolerance=1e-6, generator=generator())
    torch.testing.assert_close(pairs.values, expected[:2], rtol=1e-3, atol=0)
    assert pairs.converged.all()
    assert (pairs.residuals < 0.05).all()
    steps = torch.isfinite(pairs.history).sum(1)
    assert pairs.history[0, steps[0] - 1] == pairs.values[0]
    for value, vector in zip(pairs.values, pairs.vectors, strict=True):
        assert sum(float(part.square().sum()) for part in vector) == pytest.approx(1.0)
        rayleigh = sum(float((a * b).sum()) for a, b in zip(vector, hessian.product(vector), strict=True))
        assert rayleigh == pytest.approx(float(value), rel=1e-6)


def test_a_negative_top_eigenvalue_keeps_its_sign() -> None:
    point = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    scales = torch.tensor([1.0, -5.0, 2.0], dtype=torch.float64)
    hessian = Hessian(lambda _: 0.5 * (scales * point.square()).sum(), [point], [torch.zeros(1)])
    pairs = top_eigenpairs(hessian, 3, iterations=500, tolerance=1e-12, generator=generator())
    assert pairs.values.tolist() == pytest.approx([-5.0, 2.0, 1.0], rel=1e-6)


def test_a_loss_without_curvature_has_eigenvalue_zero() -> None:
    point = torch.ones(4, requires_grad=True)
    pairs = top_eigenpairs(Hessian(lambda _: point.sum(), [point], [torch.zeros(1)]), generator=generator())
    assert pairs.values.item() == 0.0
    assert pairs.residuals.item() == 0.0


def test_products_on_a_convolutional_network_equal_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = SmallCNN(10, width=4).eval()
    image = torch.rand(16, 1, 8, 8, generator=generator())
    label = torch.randint(0, 10, (16,), generator=generator(1))
    names = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    # The operator is over the parameters it is given; the others stay fixed.
    oracle = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), [model.get_parameter(n) for n in names], [(image, label)]
    )
    parameters = [model.get_parameter(name) for name in names]
    vectors = [torch.randn(p.shape, generator=generator(2)) for p in parameters]
    expected = oracle @ torch.cat([v.flatten() for v in vectors])
    got = torch.cat([part.flatten() for part in Hessian(loss_of(model), parameters, [(image, label)]).product(vectors)])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_lanczos_reproduces_the_moments_of_the_dense_block(mlp: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    """The tridiagonal matrix T of m steps matches v'H^k v for k < 2m (Golub and Meurant 2010, theorem 6.6)."""
    model, image, label = mlp
    matrix = dense(model, image, label, ["2.weight"])
    hessian = Hessian(loss_of(model), [model.get_parameter("2.weight")], [(image, label)])
    diagonal, off_diagonal = lanczos(hessian, 5, generator())
    tridiagonal = np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
    start = (torch.randint(0, 2, (4, 12), generator=generator(), dtype=torch.float64) * 2 - 1).flatten()
    start = start / start.norm()
    for power in range(10):
        expected = float(start @ torch.linalg.matrix_power(matrix, power) @ start)
        assert np.linalg.matrix_power(tridiagonal, power)[0, 0] == pytest.approx(expected, rel=1e-8)


def test_lanczos_stops_when_the_space_is_exhausted() -> None:
    point = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    scales = torch.tensor([1.0, 1.0, 1.0, 4.0, 4.0, 4.0], dtype=torch.float64)
    hessian = Hessian(lambda _: 0.5 * (scales * point.square()).sum(), [point], [torch.zeros(1)])
    diagonal, off_diagonal = lanczos(hessian, 6, generator())
    values = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
    assert values.tolist() == pytest.approx([1.0, 4.0])


def test_spectral_density_integrates_to_one_and_has_the_mean_of_the_spectrum(
    mlp: tuple[nn.Sequential, Tensor, Tensor],
) -> None:
    model, image, label = mlp
    values = torch.linalg.eigvalsh(dense(model, image, label, ["2.weight"])).numpy()
    hessian = Hessian(loss_of(model), [model.get_parameter("2.weight")], [(image, label)])
    spectrum = spectral_density(hessian, steps=48, starts=20, grid_points=4000, generator=generator())
    assert np.trapezoid(spectrum.density, spectrum.grid) == pytest.approx(1.0, abs=1e-3)
    mean = np.trapezoid(spectrum.density * spectrum.grid, spectrum.grid)
    assert mean == pytest.approx(values.mean(), rel=0.1)
    # With all 48 steps the quadrature's nodes are the eigenvalues themselves.
    heaviest = spectrum.nodes[spectrum.weights > 1e-6]
    assert heaviest.max() == pytest.approx(values.max(), rel=1e-6)
    # The share of eigenvalues above a gap, from the density and by counting.
    gap = (values[-4] + values[-3]) / 2
    share = np.trapezoid(np.where(spectrum.grid > gap, spectrum.density, 0), spectrum.grid)
    assert share == pytest.approx(3 / 48, rel=0.5)


def test_same_generator_same_numbers(mlp: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    model, image, label = mlp
    hessian = Hessian(loss_of(model), [model.get_parameter("2.weight")], [(image, label)])
    first, second = (top_eigenpairs(hessian, iterations=3, generator=generator(7)) for _ in range(2))
    assert torch.equal(first.values, second.values)


def test_bad_arguments_say_what_is_wrong(mlp: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    model, image, label = mlp
    weight = model.get_parameter("0.weight")
    with pytest.raises(InputError, match="parameters"):
        Hessian(loss_of(model), [], [(image, label)])
    with pytest.raises(InputError, match=r"parameters\[0\].*requires_grad=False"):
        Hessian(loss_of(model), [weight.detach()], [(image, label)])
    with pytest.raises(InputError, match="batches"):
        Hessian(loss_of(model), [weight], [])
    with pytest.raises(InputError, match="sizes"):
        Hessian(loss_of(model), [weight], [(image, label)], sizes=[3, 4])
    with pytest.raises(InputError, match="k: expected 1 to 96"):
        top_eigenpairs(Hessian(loss_of(model), [weight], [(image, label)]), 97, generator=generator())


def test_a_layer_that_is_not_used_has_no_curvature(mlp: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    model, image, label = mlp
    unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    hessian = Hessian(loss_of(model), [unused, model.get_parameter("2.weight")], [(image, label)])
    product = hessian.product([torch.ones_like(p) for p in hessian.parameters])
    assert product[0].abs().max() == 0.0
    assert math.isfinite(float(product[1].sum()))
