"""Training for several widths at once against algorithm 1 written out; the roulette, and the program that picks widths."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from workbench.toolkit import Recipe

from unit.recording_out import RecordingOut
from unit.switchable_cases import WIDTHS, residual, switchable
from workbench_quantization.double_rounding_search import program_objective
from workbench_quantization.double_rounding_training import (
    Lesson,
    Variant,
    draw_widths,
    train,
    variant_of,
    width_probability,
)
from workbench_quantization.nested_rounding import scale_rate, width_factor


def lesson(count: int = 24, epochs: int = 1, batch: int = 8, rate: float = 1e-3) -> Lesson:
    image, label = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 10
    recipe = Recipe(
        epochs=epochs, batch_size=batch, optimizer="adam", learning_rate=rate, weight_decay=0.01, schedule="constant"
    )
    return Lesson(image, label, image, label, recipe, 0, False, None, 0.0, 1.0)


@pytest.mark.parametrize(("update", "taught"), [("each", False), ("accumulated", False), ("each", True)])
def test_training_is_algorithm_1_written_out(update: Any, taught: bool) -> None:
    """Two Adam optimisers, one for weights with decay and one for scales without, stepped per width or once per batch.

    Taught: 30 % of the loss of 4 and 2 bits is the divergence from the logits that 8 bits gave for the batch.
    """
    variant = Variant("double", update, "multiplicative" if update == "each" else "off")
    mine, theirs = switchable(residual(), (8, 4, 2)), switchable(residual(), (8, 4, 2))
    task = replace(lesson(), self_taught=taught, distillation=0.3)
    out = RecordingOut()
    recorded = train(mine, task, variant, out, "x", torch.Generator().manual_seed(5))

    generator = torch.Generator().manual_seed(5)
    torch.randint(2**62, (), generator=generator)
    order = torch.randperm(24, generator=generator)
    scales = [scale.factor for layer in theirs.scales for scale in layer]
    weights = [p for p in theirs.parameters() if all(p is not scale for scale in scales)]
    for parameter in weights:
        parameter.requires_grad_(True)
    of_weights = torch.optim.Adam(weights, lr=1e-3, weight_decay=0.01)
    of_scales = torch.optim.Adam(scales, lr=1e-3)
    theirs.train()
    for number, batch in enumerate(order.split(8)):
        for column, bits in enumerate((8, 4, 2)):
            theirs.switch(bits)
            before = [layer.weight_scale(8).gradient.clone() for layer in theirs.layers.values()]
            logit = theirs(task.image[batch])
            loss = F.cross_entropy(logit, task.label[batch])
            if taught and bits == 8:
                known = logit.detach().softmax(1)
            elif taught:
                loss = 0.7 * loss + 0.3 * (known * (known.log() - logit.log_softmax(1))).sum(1).mean()
            loss.backward()
            gradients = torch.stack([layer.weight_scale(8).gradient for layer in theirs.layers.values()])
            gradients = gradients - torch.stack(before)
            torch.testing.assert_close(recorded.gradient[number, :, column], gradients.abs(), rtol=1e-4, atol=1e-5)
            if update == "each":
                pace = scale_rate("multiplicative", 1e-3, gradients, width_factor(8, bits))
                assert float(recorded.rate[number, column]) == pytest.approx(pace, rel=1e-5)
                of_scales.param_groups[0]["lr"] = pace
            if update == "each" or bits == 2:
                for optimizer in (of_weights, of_scales):
                    optimizer.step()
                    optimizer.zero_grad()
    for (name, one), two in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, msg=name, rtol=1e-4, atol=1e-6)


def test_a_sample_left_over_counts_as_the_training_loop_counts_it() -> None:
    for count, batch, steps in ((24, 8, 3), (25, 8, 3), (26, 8, 4), (1, 8, 1), (5, 8, 1)):
        assert lesson(count, batch=batch).steps == steps


def test_the_roulette_favours_high_widths_for_sensitive_layers() -> None:
    assert width_probability(WIDTHS, True) == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert width_probability(WIDTHS, False) == pytest.approx([0.25] * 4)
    net = switchable(residual())
    roulette = torch.tensor(np.stack([width_probability(WIDTHS, high) for high in (True, False, False)]))
    torch.manual_seed(0)
    assert all(draw_widths(net, 6, 0.0, roulette) == dict.fromkeys(net.layers, 6) for _ in range(20))
    drawn = [draw_widths(net, 6, 0.5, roulette) for _ in range(4000)]
    for row, place in enumerate(net.layers):
        shares = np.array([np.mean([table[place] == bits for table in drawn]) for bits in WIDTHS])
        expected = 0.5 * roulette[row].numpy() + 0.5 * (np.array(WIDTHS) == 6)
        assert np.abs(shares - expected).max() < 0.03  # 4 standard errors


def test_the_program_gives_bits_to_sensitive_layers_and_the_printed_objective_would_not() -> None:
    """Against all 64 tables of a network of three quantised layers."""
    from workbench_quantization.allocator import allocate_program

    net = switchable(residual())
    trace, widths = np.array([5.0, 0.01, 0.2]), np.array([2, 4, 6, 8])
    sizes = np.array([layer.weight.numel() for layer in net.layers.values()])
    cost = sizes[:, None] * widths / sizes.sum()
    objective = program_objective(net, trace, widths, "perturbation")
    for row, layer in enumerate(net.layers.values()):
        for column, bits in enumerate(widths):
            error = float((layer.weight_at(int(bits)) - layer.weight).detach().double().square().sum())
            assert objective[row, column] == pytest.approx(trace[row] * error, rel=1e-6)
    rows = np.arange(3)
    best = min(
        (c for c in itertools.product(range(4), repeat=3) if cost[rows, c].sum() <= 5 + 1e-9),
        key=lambda c: objective[rows, c].sum(),
    )
    assert allocate_program(objective, cost, 5.0).tolist() == list(best)
    # One width each of 8, 2 and 2, or of what else adds up to 12 bits: the paper's objective, greatest and as printed.
    weighted = -program_objective(net, trace, widths, "paper_max")
    assert weighted == pytest.approx(trace[:, None] * widths)
    same = np.tile(widths / 3, (3, 1))
    exact = [c for c in itertools.product(range(4), repeat=3) if same[rows, c].sum() == pytest.approx(4)]
    assert widths[allocate_program(-weighted, same, 4.0)].tolist() == [8, 2, 2]
    assert widths[list(min(exact, key=lambda c: weighted[rows, c].sum()))][0] == 2


def test_variants_differ_in_one_thing() -> None:
    main = variant_of("double rounding", "multiplicative")
    assert variant_of("floor", "multiplicative") == Variant("floor", main.update, main.alrs)
    assert variant_of("constant rate", "paper") == Variant("double", "each", "off")
    assert variant_of("accumulated", "paper") == Variant("double", "accumulated", "off")
