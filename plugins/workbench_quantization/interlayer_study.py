"""What an inter-layer run works on: a model, three disjoint sets of images, and losses and accuracies at any widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import InputError, Inputs, Out

from workbench_quantization.bit_table import Subject
from workbench_quantization.hawq_curvature import Batch, BatchLoss, calibration_loss
from workbench_quantization.hawq_images import Images, Parts, calibration_batches, check_labels, split_roles
from workbench_quantization.hawq_solutions import Costs, latency_table
from workbench_quantization.interlayer_scores import roofline_cost
from workbench_quantization.layers import find_blocks, multiply_accumulates
from workbench_quantization.quantizer import FULL_PRECISION, InputQuantisers, weights_replaced

if TYPE_CHECKING:
    from workbench_quantization.interlayer import Params

UNTOUCHED = 16
"""From this width on a layer stays as it is; for costs it counts as 16 bits."""


@dataclass
class Study:
    """A subject, the images that judge it, and what has been computed already."""

    subject: Subject
    loss: BatchLoss
    batches: Sequence[Batch]
    others: Sequence[Batch]
    """As many search images as there are calibration images, at most: predictions of losses are judged on them."""
    search: Images
    held_out: Images
    cost: np.ndarray
    free: np.ndarray
    """(layer,) bool, which layers may be lowered."""
    params: Params
    out: Out
    rounded: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    accuracies: dict[bytes, float] = field(default_factory=dict)
    evaluations: int = 0

    @property
    def count(self) -> int:
        """Number of layers."""
        return len(self.subject.blocks)

    @property
    def lower(self) -> tuple[int, ...]:
        """All widths but the highest, descending."""
        return self.params.widths[1:]

    def all_at(self, width: int) -> np.ndarray:
        """One width for all layers."""
        return np.full(self.count, width, dtype=np.int64)

    def only(self, layers: Sequence[int] | np.ndarray, width: int) -> np.ndarray:
        """Widths with these layers at `width` and all others at the highest."""
        bits = self.all_at(self.params.widths[0])
        bits[layers] = width
        return bits

    def applied(self, bits: np.ndarray) -> np.ndarray:
        """The same with 32 for layers that stay as they are."""
        return np.where(bits >= UNTOUCHED, FULL_PRECISION, bits)

    def weights(self, bits: np.ndarray) -> dict[nn.Module, Tensor]:
        """Rounded weights of the layers that do not stay as they are."""
        chosen: dict[nn.Module, Tensor] = {}
        for place, width in enumerate(map(int, bits)):
            if width >= UNTOUCHED:
                continue
            layer = self.subject.blocks[place].layers[0]
            if (place, width) not in self.rounded:
                alone = self.all_at(FULL_PRECISION)
                alone[place] = width
                self.rounded[place, width] = self.subject.rounded(alone, self.params.granularity)[layer]
            chosen[layer] = self.rounded[place, width]
        return chosen

    def losses_at(self, bits: np.ndarray, batches: Sequence[Batch] | None = None) -> np.ndarray:
        """Loss of every calibration image (or of these batches) with these widths: (image,) float64.

        Ranges of inputs stay as they were observed.
        """
        self.subject.inputs.set_bits(self.subject.costs.input_bits(self.applied(bits)).tolist())
        try:
            with weights_replaced(self.weights(bits)), torch.no_grad():
                parts = [
                    F.cross_entropy(self.subject.model(image).double(), label, reduction="none")
                    for image, label in (self.batches if batches is None else batches)
                ]
        finally:
            self.subject.inputs.set_bits([FULL_PRECISION] * self.count)
        return torch.cat(parts).cpu().numpy()

    def loss_at(self, bits: np.ndarray) -> float:
        """Their mean, the calibration loss."""
        return float(self.losses_at(bits).mean())

    def search_accuracy(self, bits: np.ndarray) -> float:
        """Accuracy on the search images; every table of widths is measured once."""
        key = bits.astype(np.int8).tobytes()
        if key not in self.accuracies:
            logit = self.subject.quantised_logits(
                self.applied(bits), self.params.granularity, self.search.image, self.out
            )
            self.accuracies[key] = float((logit.argmax(1) == self.search.label).double().mean())
            self.evaluations += 1
        return self.accuracies[key]

    def full_search_accuracy(self) -> float:
        """Accuracy of the model as it came on the search images: neither weights nor inputs are rounded."""
        logit = self.subject.logits(self.search.image, self.out)
        return float((logit.argmax(1) == self.search.label).double().mean())

    def total_cost(self, bits: np.ndarray) -> float:
        """Cost over that of all layers at the highest width."""
        column = [self.params.widths.index(int(width)) for width in bits]
        return float(self.cost[np.arange(self.count), column].sum() / self.cost[:, 0].sum())


def prepare(inputs: Inputs, params: Params, out: Out) -> Study:
    """Split the images, look at the model, observe the ranges of the inputs."""
    model = inputs["model"]
    kept = 1.0 if inputs.get("test") is not None else 1 - params.report_fraction
    half_of_them = max(2, int(inputs["data"].sizes["sample"] * kept) // 2)
    parts = split_roles(
        inputs,
        out,
        report_fraction=params.report_fraction,
        calibration_samples=min(params.calibration_samples, half_of_them),
        training=True,
    )
    check_labels(model, parts, out.device)
    search = _search_images(parts, params.search_samples)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    batches = calibration_batches(parts.calibration, params.batch, out.device, dtype)
    alike = len(parts.calibration.label)
    others = Images(search.image[:alike], search.label[:alike], search.index[:alike])
    blocks, reasons = find_blocks(model, batches[0][0][:1])
    if len(blocks) < 2:
        out.skip("the model has fewer than two convolutions or linear layers; nothing can interact")
    free = np.ones(len(blocks), dtype=bool)
    if params.first_last == "highest":
        free[[0, -1]] = False
        if free.sum() < 2:
            out.skip("fewer than two layers lie between the first and the last; first_last='searched' lets these in")
    names = [block.name for block in blocks]
    sizes = np.array([block.size for block in blocks], dtype=np.int64)
    macs = multiply_accumulates(model, blocks, parts.calibration.image.shape[1:])
    cost = layer_costs(names, macs, sizes, params)
    costs = Costs(
        sizes,
        macs,
        np.array(sorted(params.widths)),
        np.zeros(len(blocks), dtype=np.int64),
        None if params.act_bits == "weight" else params.act_bits,
    )
    half = out.dtype if out.dtype in (torch.float16, torch.bfloat16) else None
    quantisers = InputQuantisers([block.layers[0] for block in blocks], params.activation_range)
    out.coordinate("layer", names)
    out.coordinate("layer_2", names)
    out.coordinate("bit", np.array(params.widths[1:]))
    out.coordinate("width", np.array(params.widths))
    out.write("parameter_count", sizes)
    out.write("macs", macs)
    if reasons:
        out.coordinate("parameter", list(reasons))
        out.write("unquantised_reason", list(reasons.values()))
    if params.act_bits != FULL_PRECISION:
        with torch.no_grad(), quantisers.observing():
            for image, _ in batches:
                model(image)
        out.write("input_range", quantisers.ranges)
    out.write("layer_cost", cost / cost[:, 0].sum())
    return Study(
        subject=Subject(model, blocks, quantisers, costs, 2, half),
        loss=calibration_loss(model),
        batches=batches,
        others=calibration_batches(others, params.batch, out.device, dtype),
        search=search,
        held_out=parts.held_out,
        cost=cost,
        free=free,
        params=params,
        out=out,
    )


def layer_costs(names: Sequence[str], macs: np.ndarray, sizes: np.ndarray, params: Params) -> np.ndarray:
    """(layer, width) of what is saved, in any unit: measured times, a roofline's, bit operations, or bits of weights.

    Raises:
        InputError: the table of times lacks a layer or a width, or all its times are 0.
    """
    if params.latency is not None:
        times = latency_table(params.latency, names, range(len(names)), params.widths)
        if not times[:, 0].sum() > 0:
            raise InputError("latency", expected="times above 0", got="0 for every layer")
        return times
    if params.cost == "latency":
        return roofline_cost(macs, sizes, params.widths, params.intensity)
    bits = np.array(params.widths, dtype=float)
    return np.asarray(sizes[:, None] * bits if params.cost == "size" else macs[:, None] * bits**2)


def _search_images(parts: Parts, count: int) -> Images:
    """Images to search with: neither calibrated on nor reported on."""
    whole = parts.training
    assert whole is not None
    rest = np.flatnonzero(~np.isin(whole.index, parts.calibration.index))[:count]
    if len(rest) < 10:
        raise InputError(
            "data",
            expected="at least 20 images: half to calibrate on, 10 or more to search with",
            got=f"{len(whole.index)}",
        )
    return Images(whole.image[torch.from_numpy(rest)], whole.label[torch.from_numpy(rest)], whole.index[rest])
