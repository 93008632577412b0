"""GPTQ is the greedy least-squares solution, column by column, and what a run stores computes what it says."""

import itertools

import numpy as np
import pytest
import torch
import workbench
from torch import nn
from workbench import InputError

import workbench_quantization.gptq_solver as gptq_solver
from workbench_quantization.affine_weights import affine_grid, affine_levels, restore_affine, round_affine
from workbench_quantization.gptq_solver import (
    Curvature,
    Settings,
    as_matrices,
    columns_of,
    from_matrices,
    gather,
    inverse_factor,
    output_error,
    solve,
    solve_in_turn,
    solve_layer,
)
from workbench_quantization.quantizer import affine_quantise
from workbench_quantization.stored_layers import stored_layers


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(columns, positions=64, seed=0):
    """Inputs (column, position) that share most of what they do."""
    return draw(columns, 3, seed=seed) @ draw(3, positions, seed=seed + 1) + 0.3 * draw(
        columns, positions, seed=seed + 2
    )


def restored(levels, scale, zero, size):
    index = torch.arange(levels.shape[2]) // size
    return (levels - zero[..., index]) * scale[..., index]


# ---------------------------------------------------------------------------------------------------------------- matrices

LAYERS = [
    (nn.Linear(6, 4), (3, 5, 6)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 8)),
    (nn.Conv2d(4, 4, (3, 2), dilation=(2, 1), groups=4), (2, 4, 9, 8)),
    (nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), (2, 2, 6, 7)),
    (nn.Conv3d(2, 4, (2, 3, 1), padding=(1, 0, 2), groups=2), (2, 2, 4, 5, 3)),
]


@pytest.mark.parametrize(
    ("layer", "shape"), LAYERS, ids=lambda value: str(value) if isinstance(value, nn.Module) else ""
)
def test_a_layer_is_its_matrices_times_its_columns(layer, shape):
    layer, inputs = layer.double(), draw(*shape)
    matrices = as_matrices(layer, layer.weight)
    product = torch.bmm(matrices, columns_of(layer, inputs)).flatten(0, 1)  # (channel, position)
    if isinstance(layer, nn.Linear):
        expected = (layer(inputs) - layer.bias).flatten(0, -2).t()
    else:
        expected = (layer(inputs) - layer.bias.view(-1, *[1] * (len(shape) - 2))).transpose(0, 1).flatten(1)
    torch.testing.assert_close(product, expected)
    assert torch.equal(from_matrices(layer, matrices), layer.weight)


def test_the_curvature_is_that_of_all_batches_together():
    layer, inputs = nn.Conv2d(2, 3, 3).double(), draw(6, 2, 5, 5)
    together, apart = Curvature(layer), Curvature(layer)
    together.add(inputs)
    for part in inputs.split(2):
        apart.add(part)
    columns = columns_of(layer, inputs.float()).double()
    torch.testing.assert_close(
        together.matrix, 2 * columns @ columns.transpose(1, 2) / columns.shape[2], rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(apart.matrix, together.matrix, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- algorithm 1


def test_a_singular_curvature_is_damped_until_it_can_be_inverted():
    """Inputs of rank 1 give an H whose rounding errors are larger than a tiny damping; one that suffices is left alone."""
    column = torch.linspace(1, 3, 40, dtype=torch.float64)[None, :, None]
    singular = 1e6 * (column @ column.transpose(1, 2)).float().double()
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(singular + 1e-16 * singular.diagonal(dim1=1, dim2=2).mean() * torch.eye(40))
    factor, used = inverse_factor(singular, 1e-16)
    assert factor.isfinite().all()
    assert used == pytest.approx(1e-16 * 10 ** round(np.log10(used / 1e-16)))
    assert used > 1e-16
    well = singular + 1e6 * torch.eye(40)
    damped = well + 0.01 * well.diagonal(dim1=1, dim2=2).mean() * torch.eye(40)
    upper, used = inverse_factor(well, 0.01)
    assert used == 0.01
    torch.testing.assert_close(upper.transpose(1, 2) @ upper, damped.inverse())
    weight = draw(1, 3, 40)
    levels, *_, raised = solve(weight, singular, 4, Settings(damping=1e-16))
    assert raised > 1e-16
    assert levels.min() >= 0
    assert levels.max() <= 15
    with pytest.raises(InputError, match="inputs of every layer are finite"):
        inverse_factor(singular * float("nan"), 0.01)


def brute_force(weight, hessian, bits, size, damping):
    """Round column after column; after each solve anew for all columns still to come, by least squares on what is fixed."""
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    rows, columns = weight.shape
    current, done = weight.clone(), torch.zeros(rows, 0, dtype=torch.float64)
    for column in range(columns):
        if column % size == 0:
            scale, zero = (part.double() for part in affine_grid(current[:, column : column + size].float(), bits))
        value = (affine_levels(current[:, column : column + 1], scale, zero, bits) - zero) * scale
        done = torch.cat([done, value], dim=1)
        rest = list(range(column + 1, columns))
        if rest:
            fixed = list(range(column + 1))
            gap = done - weight[:, fixed]
            step = torch.linalg.solve(damped[rest][:, rest], damped[rest][:, fixed] @ gap.t()).t()
            current[:, rest] = weight[:, rest] - step
    return done


@pytest.mark.parametrize(("columns", "size"), [(9, 9), (10, 4), (12, 3)])
@pytest.mark.parametrize("bits", [2, 4])
def test_it_is_optimal_brain_quantisation_in_order_of_the_columns(columns, size, bits):
    weight, inputs = draw(5, columns, seed=3), correlated(columns)
    hessian = 2 * inputs @ inputs.t() / inputs.shape[1]
    sharing = "channel" if size == columns else "group"
    levels, scale, zero, _ = solve(weight[None], hessian[None], bits, Settings(sharing, size, 0.01))
    found = restored(levels, scale, zero, size)[0]
    torch.testing.assert_close(found, brute_force(weight, hessian, bits, size, 0.01), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [50, 7])
@pytest.mark.parametrize("by_activation", [False, True])
def test_lazy_updates_change_nothing(monkeypatch, size, by_activation):
    inputs = correlated(50)
    weight, hessian = draw(4, 50)[None], (2 * inputs @ inputs.t() / 64)[None]
    settings = Settings("channel" if size == 50 else "group", size, by_activation=by_activation)
    found = [solve(weight, hessian, 3, settings)]
    monkeypatch.setattr(gptq_solver, "COLUMNS_AT_ONCE", 11)
    found.append(solve(weight, hessian, 3, settings))
    for first, second in zip(*found, strict=True):  # dampings too
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_it_lies_between_the_best_of_all_roundings_and_the_nearest_one():
    best, found, nearest = [], [], []
    every = torch.tensor(list(itertools.product(range(4), repeat=6)), dtype=torch.float64)
    for seed in range(40):
        weight, inputs = draw(1, 6, seed=10 + seed), correlated(6, seed=100 + seed)
        hessian = 2 * inputs @ inputs.t() / inputs.shape[1]
        levels, scale, zero, _ = solve(weight[None], hessian[None], 2, Settings("channel", damping=1e-6))
        gap = weight - (every - zero[0]) * scale[0]
        best.append(float(((gap @ hessian) * gap).sum(1).min() / 2))
        plain = (affine_levels(weight, scale[0], zero[0], 2) - zero[0]) * scale[0]
        found.append(output_error(weight[None], restored(levels, scale, zero, 6), hessian[None])[0])
        nearest.append(output_error(weight[None], plain[None], hessian[None])[0])
    assert all(b <= f * (1 + 1e-9) for b, f in zip(best, found, strict=True))
    assert np.mean(best) < np.mean(found) < np.mean(nearest)


def test_with_many_columns_it_loses_less_than_rounding_to_nearest():
    for seed in range(10):
        weight, inputs = draw(8, 64, seed=seed), correlated(64, 256, seed=100 + seed)
        hessian = (2 * inputs @ inputs.t() / 256)[None]
        levels, scale, zero, _ = solve(weight[None], hessian, 4, Settings())
        plain = (affine_levels(weight, scale[0], zero[0], 4) - zero[0]) * scale[0]
        lost = output_error(weight[None], restored(levels, scale, zero, 64), hessian)[0]
        assert lost < 0.7 * output_error(weight[None], plain[None], hessian)[0]


def test_groups_of_channels_are_problems_of_their_own():
    inputs = [correlated(6, seed=seed) for seed in (0, 50)]
    hessian = torch.stack([2 * x @ x.t() / 64 for x in inputs])
    weight = draw(2, 3, 6)
    together = solve(weight, hessian, 3, Settings())
    for group in range(2):
        alone = solve(weight[group : group + 1], hessian[group : group + 1], 3, Settings())
        for whole, part in zip(together[:3], alone[:3], strict=True):
            torch.testing.assert_close(whole[group : group + 1], part)


def test_order_of_activations_is_the_problem_with_its_columns_sorted():
    inputs = correlated(8) * torch.arange(1, 9)[:, None]
    weight, hessian = draw(3, 8)[None], (2 * inputs @ inputs.t() / 64)[None]
    levels, scale, *_ = solve(weight, hessian, 3, Settings(by_activation=True))
    order = hessian[0].diagonal().argsort(descending=True)
    sorted_levels, sorted_scale, *_ = solve(weight[..., order], hessian[:, order][:, :, order], 3, Settings())
    torch.testing.assert_close(levels[..., order], sorted_levels)
    torch.testing.assert_close(scale, sorted_scale)
    assert not torch.equal(levels, solve(weight, hessian, 3, Settings())[0])


def test_columns_that_are_never_fed_go_to_zero():
    inputs = correlated(6)
    inputs[2] = 0
    weight, hessian = draw(3, 6)[None], (2 * inputs @ inputs.t() / 64)[None]
    levels, scale, zero, _ = solve(weight, hessian, 4, Settings())
    assert torch.equal(restored(levels, scale, zero, 6)[0, :, 2], torch.zeros(3, dtype=torch.float64))


def test_uncorrelated_inputs_leave_rounding_to_nearest():
    layer = nn.Linear(12, 5)
    hessian = torch.diag(torch.rand(12, generator=torch.Generator().manual_seed(1)).double() + 0.1)[None]
    for sharing in ("channel", "group"):
        found, plain = solve_layer(layer, hessian, 3, Settings(sharing, 5))[0], round_affine(layer, 3, sharing, 5)
        assert torch.equal(found.levels, plain.levels)
        torch.testing.assert_close(found.scale, plain.scale)
        assert torch.equal(found.zero, plain.zero)


def test_the_grid_is_torchs_and_that_of_the_fake_quantiser():
    layer = nn.Linear(10, 6)
    stored = round_affine(layer, 4, "channel", 1)
    weight = restore_affine(stored, layer, "channel", 1)
    oracle = torch.fake_quantize_per_channel_affine(layer.weight.detach(), stored.scale, stored.zero.int(), 0, 0, 15)
    torch.testing.assert_close(weight, oracle, rtol=0, atol=1e-6)
    low, high = (f(layer.weight.detach(), 1, keepdim=True) for f in (torch.amin, torch.amax))
    fake = affine_quantise(layer.weight.detach(), low.clamp_max(0), high.clamp_min(0) - low.clamp_max(0), 4)
    torch.testing.assert_close(weight, fake, rtol=0, atol=1e-7)


def test_it_agrees_with_neural_compressor():
    library = pytest.importorskip("neural_compressor.torch.algorithms.weight_only.gptq", exc_type=ImportError)
    layer, inputs = nn.Linear(32, 8, bias=False), correlated(32, 256).t().float()
    theirs = library.GPTQ(layer, layer.weight.data.clone())
    theirs.quantizer.configure({"bits": 4, "sym": False, "mse": False, "perchannel": True, "dtype": "int"})
    theirs.add_batch(inputs[None], None)
    *_, weight = theirs.fasterquant(layer.weight.data.clone(), blocksize=16, percdamp=0.01)
    curvature = Curvature(layer)
    curvature.add(inputs)
    mine = restore_affine(solve_layer(layer, curvature.matrix, 4, Settings())[0], layer, "channel", 1)
    # theirs in float32: a weight half-way between two levels may go the other way
    assert (mine - weight).abs().gt(1e-4).float().mean() < 0.02


# ------------------------------------------------------------------------------------------------------------ whole models


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def test_layers_see_the_layers_before_them_as_they_are_quantised():
    net, images = small_net().eval(), torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    layers = [net[0], net[2], net[5]]
    seen = {}
    solve_in_turn(net, [[layer] for layer in layers], [[3], [32], [3]], list(images.split(7)), lambda m, x: m(x), Settings(),
                  lambda layer, curvature, *_: seen.setdefault(layer, curvature))  # fmt: skip
    assert set(seen) == {net[0], net[5]}
    with torch.no_grad():
        columns = net[:5](images)  # the first layer is quantised by now, the second was left alone
    torch.testing.assert_close(seen[net[5]][0], (2 * columns.t() @ columns / 20).double(), rtol=1e-4, atol=1e-6)


def test_a_pass_ends_where_the_layers_of_interest_were_called():
    net, calls = small_net().eval(), []
    net[5].register_forward_pre_hook(lambda *_: calls.append(1))
    gather(net, [net[0], net[2]], [torch.rand(2, 1, 8, 8)], lambda m, x: m(x))
    assert calls == []


INPUTS = {"data": "digits(split=train)[:500]", "test": "digits(split=test)[:200]"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return workbench.open(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def trained(bench):
    return bench.run("training.classifier", model="small-cnn(width=8)", data=INPUTS["data"], epochs=12)


@pytest.fixture(scope="module")
def run(bench, trained):
    return bench.run(
        "quantization.gptq",
        model=trained,
        **INPUTS,
        widths=(2, 4),
        store_width=2,
        calibration_samples=100,
    )


def test_a_run_stores_what_it_measured(run):
    model, logit = run.model(), run["logit"]
    layers = stored_layers(run, model)
    assert [layer.bits for layer in layers] == run["bits"].values.tolist()
    accuracy = float((logit.values.argmax(1) == run["label"].values).mean())
    assert accuracy == pytest.approx(float(run["accuracy"].sel(rounding="gptq", bit=2)))
    count = run["parameter_count"].values
    channels = [layer.scale.numel() for layer in layers]
    size = sum(n * b + c * (32 + b) for n, b, c in zip(count, run["bits"].values.tolist(), channels, strict=True))
    assert float(run["size_mb_stored"]) == pytest.approx(size / 8e6)


def test_it_loses_less_of_every_layers_output_than_rounding(run):
    error = run["output_error"].sel(bit=2)
    inner = error.isel(layer=slice(1, -1))
    assert (inner.sel(rounding="gptq") < inner.sel(rounding="nearest")).all()
    agreement = run["agreement"].sel(bit=2)
    assert float(agreement.sel(rounding="gptq")) > float(agreement.sel(rounding="nearest"))


def test_a_damping_that_was_raised_is_said(bench, trained, run):
    """Two images have 2 * 36 positions at most in the second layer, fewer than it has columns: H is singular."""
    assert not any("damped" in note for note in run.report().report.notes)
    few = bench.run(
        "quantization.gptq",
        model=trained,
        **INPUTS,
        widths=(4,),
        damping=1e-18,
        calibration_samples=2,
        first_last_bits=None,
    )
    used = few["damping_used"].sel(bit=4).to_series()
    raised = used[used > 1e-18]
    assert len(raised)
    assert few["damping_stored"].values.tolist() == used.tolist()
    (note,) = [note for note in few.report().report.notes if "damped" in note]
    assert note.startswith(f"GPTQ damped {len(raised)} of {len(used)} layers by more than the 1e-18 asked for")
    assert all(f"{name} ({share:.2g})" in note for name, share in raised.items())


def test_tables_of_widths_go_from_method_to_method(bench, trained, run):
    inputs = {"model": trained, **INPUTS}
    again = bench.run("quantization.gptq", **inputs, widths=(4,), bits=run["bits"], calibration_samples=100)
    assert again["bits"].values.tolist() == run["bits"].values.tolist()
    assert float(again["accuracy_given"].sel(rounding="gptq")) == float(run["accuracy"].sel(rounding="gptq", bit=2))
    plain = bench.run("quantization.uniform", **inputs, widths=(4,), bits=run["bits"])
    assert plain["bits"].values.tolist() == run["bits"].values.tolist()
