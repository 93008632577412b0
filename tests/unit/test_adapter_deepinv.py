"""Reconstructors of deepinv as methods: the library's numbers, a closed form of total variation, real gains on photos."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import workbench
import xarray as xr
from workbench.errors import InputError, RunFailedError
from workbench.host import Host

from workbench_adapters.deepinv import DeepinvReconstruction, TotalVariation, make_physics

pytest.importorskip("deepinv", reason="needs the extra deepinv")


class Tikhonov(DeepinvReconstruction):
    id = "restoration.deepinv_tikhonov"
    title = "Pictures restored with a quadratic penalty"

    def reconstructor(self, params, physics):
        from deepinv.optim import FISTA, L2
        from deepinv.optim.prior import Tikhonov as Penalty

        return FISTA(data_fidelity=L2(), prior=Penalty(), lambda_reg=0.3, stepsize=0.7, max_iter=200)


@pytest.fixture
def bench(tmp_path):
    return workbench.open(tmp_path / "store", host=Host(found=[]))


def pictures(image: np.ndarray) -> xr.Dataset:
    return xr.Dataset({"image": (("sample", "channel", "y", "x"), image.astype(np.float32))})


@pytest.fixture(scope="module")
def photos() -> xr.Dataset:
    from workbench.subjects.builtin import photos

    return photos(size=32, count=4, gray=True, shrink=8)


def test_total_variation_of_an_edge_moves_its_sides_together_by_weight_over_width(bench):
    """Min 1/2 |u - y|^2 + g TV(u) of an edge between columns, w columns on either side: each side moves by g / w."""
    image = np.concatenate([np.full((1, 1, 12, 6), 0.2), np.full((1, 1, 12, 6), 0.8)], axis=3)
    run = bench.run(
        TotalVariation,
        data=pictures(image),
        degradation="noise",
        noise=0.0,
        weight=0.3,
        iterations=1000,
        progress=False,
    )
    expected = np.concatenate([np.full((12, 6), 0.2 + 0.3 / 6), np.full((12, 6), 0.8 - 0.3 / 6)], axis=1)
    assert np.allclose(run["restored"].values[0, 0], expected, atol=1e-3)
    assert np.array_equal(run["degraded"], run["clean"])


def objective(x: torch.Tensor, y: torch.Tensor, physics, weight: float) -> float:
    """1/2 |A x - y|^2 + weight TV(x), forward differences with a zero at the last row and column."""
    steps = torch.stack(
        [torch.nn.functional.pad(x.diff(dim=2), (0, 0, 0, 1)), torch.nn.functional.pad(x.diff(dim=3), (0, 1))]
    )
    return float(0.5 * (physics.A(x) - y).square().sum() + weight * steps.square().sum(0).sqrt().sum())


def test_it_is_the_library_called_directly_and_no_neighbour_is_better(bench, photos):
    settings = {"blur_sigma": 1.0, "noise": 0.0, "weight": 0.004, "iterations": 400}
    run = bench.run(TotalVariation, data=photos, **settings, progress=False)
    image = torch.from_numpy(photos["image"].values).float() / 255
    params = TotalVariation.Params(**settings)
    physics = make_physics(params, (1, 32, 32), torch.device("cpu"))
    blurred = physics.A(image)
    with torch.no_grad():
        whole = TotalVariation().reconstructor(params, physics)(blurred, physics)
    direct = whole.clamp(0, 1)
    assert np.allclose(run["restored"], direct, atol=1e-5)
    assert np.allclose(run["degraded"], blurred.clamp(0, 1), atol=1e-6)
    error = ((direct - image) ** 2).flatten(1).mean(1)
    assert np.allclose(run["psnr"][1], 10 * np.log10(1 / error.numpy()), atol=1e-3)
    best = objective(whole, blurred, physics, 0.004)
    generator = torch.Generator().manual_seed(0)
    for size in (0.003, 0.01, 0.03):
        for other in (torch.randn(image.shape, generator=generator), image - whole, blurred - whole):
            assert objective(whole + size * other, blurred, physics, 0.004) > best - 1e-4 * best


def test_the_blur_is_the_circular_gaussian_it_says():
    from scipy import ndimage

    image = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    physics = make_physics(TotalVariation.Params(blur_sigma=1.2), (1, 40, 40), torch.device("cpu"))
    expected = ndimage.gaussian_filter(image[0, 0].numpy().astype(float), 1.2, mode="wrap", radius=5)
    assert np.allclose(physics.A(image)[0, 0], expected, atol=2e-3)


def test_restoring_photos_gains_decibels_and_noise_does_not_depend_on_batches(bench, photos):
    settings = {"blur_sigma": 1.0, "iterations": 100, "progress": False}
    run = bench.run(TotalVariation, data=photos, **settings)
    assert run.metrics["psnr_gain"] > 0.8
    assert (run["psnr"][1] > run["psnr"][0]).all()
    assert run["residual"].values == pytest.approx(0.02, rel=0.3)
    one = bench.run(TotalVariation, data=photos, **settings, batch_size=1)
    assert np.allclose(one["degraded"], run["degraded"], atol=1e-6)  # the same noise; the FFT rounds by batch


def test_another_reconstructor_in_a_few_lines_is_the_closed_form(bench, photos):
    """Min 1/2 |u - y|^2 + l/2 |u|^2 without blur: u = y / (1 + l)."""
    run = bench.run(Tikhonov, data=photos, degradation="noise", noise=0.0, progress=False)
    assert np.allclose(run["restored"], run["clean"].values / 1.3, atol=1e-4)


def test_a_kernel_larger_than_the_pictures_is_refused(bench):
    with pytest.raises(RunFailedError, match="blur_sigma") as caught:
        bench.run(TotalVariation, data=pictures(np.zeros((1, 1, 8, 8))), blur_sigma=3.0, progress=False)
    assert isinstance(caught.value.__cause__, InputError)
