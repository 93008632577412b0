"""Widths per layer: the supernet (HASB), the program that picks widths for a mean width, and how picked networks do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from workbench.toolkit import Recipe, TraceEstimate, block_trace_probes

from workbench_quantization.allocator import allocate_program, pareto_front
from workbench_quantization.double_rounding_training import MAIN, train_mixed, variant_of, width_probability
from workbench_quantization.hawq_curvature import calibration_loss, trace_until
from workbench_quantization.hawq_images import calibration_batches
from workbench_quantization.switchable import Switchable, table_of

if TYPE_CHECKING:
    from workbench_quantization.double_rounding_run import Study

HASB, UNIFORM = "HASB", "uniform roulette"


def search(study: Study, net: Switchable, given: Mapping[int, int] | None) -> tuple[Switchable, dict[int, int]]:
    """Train the supernet(s), choose networks, judge them; returns the supernet and the widths to store."""
    params, out = study.params, study.out
    traces = measure_traces(study)
    places = list(net.layers)
    average = traces.mean.numpy() / study.sizes
    quantised = average[places]
    sensitive = quantised >= quantised.mean()
    out.write("trace", average)
    out.write("trace_standard_error", traces.standard_error.numpy() / study.sizes)
    probability = np.full((len(study.names), len(params.widths)), np.nan)
    probability[places] = [width_probability(params.widths, bool(high)) for high in sensitive]
    out.write("width_probability", probability)

    roulettes = {HASB: sensitive}
    if UNIFORM in params.compare:
        roulettes[UNIFORM] = np.zeros_like(sensitive)
    nets = {name: train_supernet(study, net, name, high) for name, high in roulettes.items()}
    out.coordinate("roulette", list(nets))
    tables = choose(study, nets[HASB], quantised)
    if given is not None:
        tables["given"] = dict(given)
    write_subnets(study, nets, tables)
    return nets[HASB], next(iter(tables.values()))


def measure_traces(study: Study) -> TraceEstimate:
    """Hutchinson traces of every layer of the model as it came."""
    params, out, model = study.params, study.out, copy.deepcopy(study.pristine).eval()
    weights = [model.get_submodule(name).get_parameter("weight") for name in study.names]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    batches = calibration_batches(study.parts.calibration, params.hess_batch, out.device, weights[0].dtype)
    probes = block_trace_probes(
        calibration_loss(model), [[weight] for weight in weights], batches, params.probes, out.generator("trace")
    )
    return trace_until(probes, 0.0)


def train_supernet(study: Study, net: Switchable, name: str, sensitive: np.ndarray) -> Switchable:
    """From the multi-precision network to a supernet with transitional norms."""
    params, stages = study.params, study.stages
    assert study.lesson is not None
    supernet = copy.deepcopy(net)
    supernet.to_transitional()
    stage = f"mixed {name}"
    if stages.result(stage) is None:
        recipe: Recipe = replace(study.lesson.recipe, epochs=params.mixed_epochs)
        recorded = train_mixed(
            supernet,
            replace(study.lesson, recipe=recipe),
            variant_of(MAIN, params.alrs),
            sensitive.tolist(),
            params.sigma,
            stages.begin(stage),
            stage.replace(" ", "_"),
            study.out.generator("mixed training"),
        )
        state = {key: value.detach().cpu().clone() for key, value in supernet.state_dict().items()}
        stages.finish(stage, {"state": state, "loss": recorded.loss.cpu()})
    found = stages.result(stage)
    assert found is not None
    supernet.load_state_dict({key: torch.as_tensor(value) for key, value in found["state"].items()})
    supernet.eval()
    if name == HASB:
        study.out.coordinate("mixed_epoch", np.arange(1, params.mixed_epochs + 1))
        study.out.coordinate("pass_name", ["highest", "random", "lowest"])
        study.out.write("mixed_loss", torch.as_tensor(found["loss"]))
    return supernet


def choose(study: Study, net: Switchable, trace: np.ndarray) -> dict[str, dict[int, int]]:
    """Networks to judge by name; the first is the program's at `average_bits`.

    Args:
        study: what is shared.
        net: whose weights are rounded.
        trace: (quantised layer,) mean trace per weight.
    """
    params, places = study.params, list(net.layers)
    widths = np.array(params.widths[::-1])
    sizes = study.sizes[places]
    cost = sizes[:, None] * widths[None] / sizes.sum()
    objective = program_objective(net, trace, widths, params.search)
    ends = float(widths[0]), float(widths[-1])
    inner = np.linspace(*ends, params.search_points + 2)[1:-1]
    tables: dict[str, dict[int, int]] = {}
    for mean in [params.average_bits, *inner]:
        choice = allocate_program(objective, cost, float(mean))
        table = dict(zip(places, widths[choice].tolist(), strict=True))
        if table not in tables.values():
            tables[f"program at {mean:.2f}"] = table
    for width in params.widths:
        tables[f"uniform {width}"] = dict.fromkeys(places, width)
    rng = study.out.rng("random networks")
    for number in range(params.random_subnets):
        tables[f"random {number + 1}"] = dict(zip(places, rng.choice(widths, len(places)).tolist(), strict=True))
    return tables


def program_objective(net: Switchable, trace: np.ndarray, widths: np.ndarray, kind: str) -> np.ndarray:
    """(layer, width), to be small: trace x ||Q_b(W) - W||^2, or the negative of trace x width (what the paper means)."""
    curvature = np.maximum(trace, 0)[:, None]
    if kind == "paper_max":
        return np.asarray(-curvature * widths[None])
    errors = np.zeros((len(net.layers), len(widths)))
    with torch.no_grad():
        for row, layer in enumerate(net.layers.values()):
            for column, bits in enumerate(widths):
                gap = layer.weight_at(int(bits)).double() - layer.weight.double()
                errors[row, column] = float(gap.square().sum())
    # A wider weight that is clipped as much as a narrow one may tie with it, but never costs more.
    return np.asarray(curvature * np.minimum.accumulate(errors, axis=1))


def write_subnets(study: Study, nets: Mapping[str, Switchable], tables: Mapping[str, Mapping[int, int]]) -> None:
    """Widths, mean widths and accuracies of all networks under every supernet, without further training."""
    out, first = study.out, nets[HASB]
    places = list(first.layers)
    sizes = study.sizes[places]
    accuracy = np.zeros((len(nets), len(tables)))
    for row, column in out.track(list(np.ndindex(accuracy.shape)), "judging networks"):
        net, table = list(nets.values())[row], list(tables.values())[column]
        accuracy[row, column] = study.judge(net, table)["accuracy"]
    average = np.array([sum(sizes * [table[p] for p in places]) / sizes.sum() for table in tables.values()])
    out.coordinate("subnet", list(tables))
    out.write("subnet_kind", [name.split(" ")[0] for name in tables])
    out.write("subnet_bits", np.array([table_of(first, table) for table in tables.values()], dtype=np.int8))
    out.write("subnet_average_bits", average)
    out.write("subnet_accuracy", accuracy)
    out.write("subnet_pareto", pareto_front(average, -accuracy[0]))
