"""The steps of a layer-wise run: score the blocks, walk down every order, cut blocks out, judge and store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from workbench import Inputs, Out

from workbench_quantization.affine_weights import narrow_widths, write_affine
from workbench_quantization.allocator import allocate_walk
from workbench_quantization.bit_table import table_of_widths
from workbench_quantization.hawq_solutions import MEGABYTE
from workbench_quantization.language_models import (
    Prediction,
    Text,
    log_probabilities,
    mean_divergence,
    residual_cosines,
    skipped,
)
from workbench_quantization.layerwise_scores import (
    layer_input_modification,
    rank,
    standard_scores,
    steps_along,
    z_score_distribution,
)
from workbench_quantization.layerwise_study import Study, prepare
from workbench_quantization.quantizer import FULL_PRECISION

if TYPE_CHECKING:
    from workbench_quantization.layerwise import Params

COSINE_EDGES = np.linspace(-1, 1, 41)
Z_EDGES = np.linspace(-4, 4, 33)


def run(inputs: Inputs, params: Params, out: Out) -> None:
    """Do everything and write every output."""
    study = prepare(inputs, params, out)
    names = [layer.name for layer in study.layers]
    given = narrow_widths(table_of_widths(inputs["bits"], names)) if inputs.get("bits") is not None else None
    full = study.predict(study.held_out)
    write_full_precision(study, full)
    reference = divergence_text(study)
    known = log_probabilities(study.model, reference, params.batch, study.autocast) if reference else None
    importance = score_blocks(study)
    orders = make_orders(study, importance)
    walk(study, orders, reference, known)
    cut_out(study, orders[params.score])
    widths = study.spread(chosen_widths(study, orders[params.score])) if given is None else given
    store(study, widths)


def write_full_precision(study: Study, full: Prediction) -> None:
    """What the model is worth as it came, and the size of what is never quantised."""
    out = study.out
    matrices = {id(module.get_parameter("weight")) for module in study.originals}
    rest = {id(p): p.numel() * p.element_size() for p in study.model.parameters() if id(p) not in matrices}
    out.write("loss_full_precision", full.loss)
    out.write("perplexity_full_precision", np.float64(full.perplexity))
    out.write("accuracy_full_precision", np.float64(full.correct.mean()))
    out.write("kept_mb", np.float64(sum(rest.values()) / MEGABYTE))


def divergence_text(study: Study) -> Text | None:
    """The first windows of the report text, as many as `divergence_tokens` allow; None where it allows none."""
    windows = study.params.divergence_tokens // study.held_out.token_id.shape[1]
    text = study.held_out
    return Text(text.token_id[:windows], text.index[:windows]) if windows else None


# --------------------------------------------------------------------------------------------------------------- scores


def score_blocks(study: Study) -> dict[str, np.ndarray]:
    """Importance of every block by every score, (block,) each, high = important; everything found is written."""
    lim, zd = measure_lim(study), measure_zd(study)
    damage = measure_damage(study)
    return {"lim": lim, "zd": -zd, "measured": damage}


def measure_lim(study: Study) -> np.ndarray:
    """LIM of every block on the calibration text: (block,)."""
    out, params = study.out, study.params
    parts = []
    histogram = np.zeros((study.count, len(COSINE_EDGES) - 1), dtype=np.int64)
    batches = residual_cosines(study.model, study.residual, study.shown, params.batch, study.autocast)
    for cosine in out.track(batches, "residual stream", total=len(study.shown.batches(params.batch))):
        parts.append(layer_input_modification(cosine, skip_first_token=params.skip_first_token))
        for place, values in enumerate(cosine):
            # Rounding may leave a cosine a hair above 1.
            histogram[place] += np.histogram(values.clamp(-1, 1).numpy(), COSINE_EDGES)[0]
    windows = torch.cat(parts, dim=1).numpy()
    spread = windows.std(1, ddof=1) if windows.shape[1] > 1 else np.full(study.count, np.nan)
    out.coordinate("bin", (COSINE_EDGES[1:] + COSINE_EDGES[:-1]) / 2)
    out.write("lim", windows.mean(1))
    out.write("lim_standard_error", spread / np.sqrt(windows.shape[1]))
    out.write("lim_token", histogram)
    return np.asarray(windows.mean(1))


def measure_zd(study: Study) -> np.ndarray:
    """ZD of every block: (block,)."""
    out, params = study.out, study.params
    two = params.zd_sided == "two"
    short = [layer.name.removeprefix(f"{study.residual[place].name}.")
             for layer, place in zip(study.layers, study.owner, strict=True)]  # fmt: skip
    matrices = list(dict.fromkeys(short))
    pooled, table = np.zeros(study.count), np.full((study.count, len(matrices)), np.nan)
    histogram = np.zeros((study.count, len(Z_EDGES) - 1))
    for place in range(study.count):
        mine = np.flatnonzero(study.owner == place)
        weights = [study.layers[layer].weights[0].detach().flatten() for layer in mine]
        for layer, weight in zip(mine, weights, strict=True):
            share = z_score_distribution(standard_scores(weight), params.zd_threshold, two_sided=two)
            table[place, matrices.index(short[layer])] = share
        z = standard_scores(torch.cat(weights))
        pooled[place] = z_score_distribution(z, params.zd_threshold, two_sided=two)
        inside = z.clamp(Z_EDGES[0], Z_EDGES[-1]).cpu().numpy()
        histogram[place] = np.histogram(inside, Z_EDGES)[0] / len(inside)
    out.coordinate("matrix", matrices)
    out.coordinate("z_bin", (Z_EDGES[1:] + Z_EDGES[:-1]) / 2)
    out.write("zd", pooled)
    out.write("zd_matrix", table)
    out.write("zd_mean_of_matrices", np.nanmean(table, axis=1))
    out.write("weight_z_hist", histogram)
    return pooled


def measure_damage(study: Study) -> np.ndarray:
    """Rise of the calibration loss with one block at the lowest width, the others at the highest: (block,)."""
    high, low = study.params.widths[0], study.params.widths[-1]
    base = np.full(study.count, high)
    study.install(study.spread(base))
    start = study.predict(study.shown).loss.mean()
    damage = np.zeros(study.count)
    for place in study.out.track(list(range(study.count)), "single blocks"):
        bits = base.copy()
        bits[place] = low
        study.install(study.spread(bits))
        damage[place] = study.predict(study.shown).loss.mean() - start
    study.out.write("damage", damage)
    return damage


def make_orders(study: Study, importance: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Positions from least to most important by name of the order; written as `order`."""
    ranked = {name: rank(values) for name, values in importance.items()}
    known = ranked | {f"reversed {name}": order[::-1] for name, order in ranked.items()}
    known |= {"first to last": np.arange(study.count), "last to first": np.arange(study.count)[::-1]}
    orders = {str(name): known[name] for name in study.params.orders}
    rng = study.out.rng("random orders")
    for draw in range(study.params.random_orders):
        orders[f"random {draw + 1}"] = rng.permutation(study.count)
    study.out.coordinate("order_name", list(orders))
    study.out.write("order", np.stack(list(orders.values())).astype(np.int16))
    return orders


# ----------------------------------------------------------------------------------------------------------------- walks


def walk(study: Study, orders: dict[str, np.ndarray], reference: Text | None, known: Tensor | None) -> None:
    """Measure every point of every order (equal tables once) and write all of it."""
    out, params = study.out, study.params
    steps = study.count * (len(params.widths) - 1)
    points = sorted({0, steps, *(range(steps + 1) if params.points is None else params.points)})
    tables = np.stack([steps_along(order, params.widths)[points] for order in orders.values()])
    loss = np.zeros((*tables.shape[:2], len(study.held_out.index)))
    correct, divergence = np.zeros(tables.shape[:2]), np.zeros(tables.shape[:2])
    first: dict[bytes, tuple[int, int]] = {}
    for place in out.track(list(np.ndindex(*tables.shape[:2])), "walking down the orders"):
        key = tables[place].tobytes()
        if key in first:
            same = first[key]
            loss[place], correct[place], divergence[place] = loss[same], correct[same], divergence[same]
            continue
        first[key] = place
        study.install(study.spread(tables[place]))
        found = study.predict(study.held_out)
        loss[place], correct[place] = found.loss, found.correct.mean()
        if reference is not None and known is not None:
            other = log_probabilities(study.model, reference, params.batch, study.autocast)
            divergence[place] = mean_divergence(known, other)
    size = np.array([[study.sizes(study.spread(bits)).sum() for bits in row] for row in tables])
    perplexity = np.exp(np.minimum(loss.mean(2), 700.0))
    out.coordinate("point", np.array(points))
    out.write("block_bits", tables.astype(np.int8))
    out.write("average_bits_blocks", tables.mean(2))
    out.write("average_bits", size / study.weights.sum())
    out.write("size_mb", size / 8 / MEGABYTE)
    out.write("loss", loss)
    out.write("perplexity", perplexity)
    out.write("accuracy", correct)
    if reference is not None:
        out.write("logit_kl", divergence)
    named = [place for place, name in enumerate(orders) if not name.startswith("random ")]
    random = perplexity[len(named) :]
    out.coordinate("curve", [*(list(orders)[place] for place in named), *RANDOM_CURVES])
    out.write("perplexity_curve", np.concatenate([perplexity[named], np.quantile(random, [0.0, 0.5, 1.0], axis=0)]))
    out.coordinate("width", np.array(params.widths))
    out.write("perplexity_uniform", uniform(study, perplexity))


RANDOM_CURVES = ("best random", "median random", "worst random")
"""Point by point over the random orders."""


def uniform(study: Study, perplexity: np.ndarray) -> np.ndarray:
    """Perplexity with one width everywhere, (width,); the ends are those of every order."""
    found = np.zeros(len(study.params.widths))
    found[0], found[-1] = perplexity[0, 0], perplexity[0, -1]
    for place, width in list(enumerate(study.params.widths))[1:-1]:
        study.install(study.spread(np.full(study.count, width)))
        found[place] = study.predict(study.held_out).perplexity
    return found


def cut_out(study: Study, order: np.ndarray) -> None:
    """Perplexity with the least important blocks cut out instead of lowered, from none to all but one."""
    out = study.out
    high = study.spread(np.full(study.count, study.params.widths[0]))
    study.install(high)
    size = study.sizes(high)
    perplexity, left = np.zeros(study.count), np.zeros(study.count)
    for number in out.track(list(range(study.count)), "cutting blocks out"):
        gone = order[:number]
        with skipped([study.residual[place] for place in gone]):
            perplexity[number] = study.predict(study.held_out).perplexity
        left[number] = size[~np.isin(study.owner, gone)].sum() / 8 / MEGABYTE
    out.coordinate("cut", np.arange(study.count))
    out.write("perplexity_pruned", perplexity)
    out.write("size_mb_pruned", left)


# -------------------------------------------------------------------------------------------------------------- the model


def chosen_widths(study: Study, order: np.ndarray) -> np.ndarray:
    """(block,) widths along an order, as far down as the average width asks: parameter-weighted, scales apart."""
    ascending = np.array(study.params.widths[::-1])
    count = np.bincount(study.owner, weights=study.weights)
    target = study.params.average_bits
    target = float(ascending[[0, -1]].mean()) if target is None else target
    cost = count[:, None] * ascending[None]
    return ascending[allocate_walk(order.tolist(), cost, target * float(count.sum()))]


def store(study: Study, bits: np.ndarray) -> None:
    """Integers, scales and zero-points of one table of widths, the model that computes with them, and what it is worth."""
    out = study.out
    study.install(np.full(len(study.layers), FULL_PRECISION))
    parts = study.install(bits)
    if study.damping:
        modules = [layer.layers[0] for layer in study.layers]
        out.write("damping_stored", np.array([study.damping.get(module, np.nan) for module in modules]))
    found = study.predict(study.held_out)
    out.write("bits", bits.astype(np.int8))
    out.write("input_bits", np.full(len(bits), FULL_PRECISION, dtype=np.int8))
    write_affine([parts.get(layer.layers[0]) for layer in study.layers], out)
    size = study.sizes(bits).sum()
    out.write("loss_stored", found.loss)
    out.write("perplexity_stored", np.float64(found.perplexity))
    out.write("accuracy_stored", np.float64(found.correct.mean()))
    out.write("average_bits_stored", np.float64(size / study.weights.sum()))
    out.write("size_mb_stored", np.float64(size / 8 / MEGABYTE))
    out.model(study.model)
