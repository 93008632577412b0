"""A quantised model as it will run: stored weights, and inputs of its layers on their stored grids.

`run.model()` has quantised weights only, since a state of plain arrays fits any network. Here the inputs are quantised too,
by modules of their own, so that the result can be the `model` of any other run: `training.evaluation`, a calibration.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workbench_quantization.export_binary import is_binary
from workbench_quantization.stored_layers import InputGrid, QuantisedRun, model_at, stored_layers


class QuantisedInput(nn.Module):
    """A layer behind the grid of its input: (clamp(round(x / s) + z, lowest, highest) - z) * s."""

    def __init__(self, layer: nn.Module, grid: InputGrid) -> None:
        super().__init__()
        self.layer = layer
        self.scale, self.zero, self.lowest, self.highest = grid.scale, grid.zero, grid.lowest, grid.highest

    def extra_repr(self) -> str:
        """The grid."""
        return f"scale={self.scale:.6g}, zero={self.zero}, levels {self.lowest} to {self.highest}"

    def forward(self, image: Tensor, *others: object) -> Tensor:
        """What the layer returns for the quantised input."""
        scale = torch.tensor(self.scale, dtype=image.dtype, device=image.device)
        whole = (torch.round(image / scale) + self.zero).clamp(self.lowest, self.highest)
        result: Tensor = self.layer((whole - self.zero) * scale, *others)
        return result


def deployed_model(run: QuantisedRun, width: int | None = None) -> nn.Module:
    """The model of a run that stored integers, with quantised inputs, on the CPU in eval mode.

        four = deployed_model(run, 4)
        bench.run("training.evaluation", model=four, data="digits")

    Args:
        run: of any method of this family that stored integers, or a binary network.
        width: of a model that switches; default: the widths in `bits`.

    Raises:
        InputError: the run stored no integers, or its model does not switch to this width.
    """
    model = model_at(run, width)
    if is_binary(run):  # whose layers make bits of their inputs themselves
        return model
    for layer in stored_layers(run, model, width):
        if layer.input is None:
            continue
        module = model.get_submodule(layer.name)
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):
                if child is module:
                    setattr(parent, name, QuantisedInput(module, layer.input))
    return model.eval()
