"""New weights for a network whose architecture alone matters: trainings that are compared start from the same draw."""

from __future__ import annotations

import torch
from torch import nn

from workbench.errors import InputError
from workbench.toolkit.inference import model_device

__all__ = ["reinitialise"]


def reinitialise(model: nn.Module, seed: int) -> None:
    """Draw new weights, in place, with each layer's own `reset_parameters`; torch's global generator is put back.

    Raises:
        InputError: a parameter belongs to a module that cannot reset itself: it would keep what it has learnt.
    """
    layers = [module for module in model.modules() if hasattr(module, "reset_parameters")]
    covered = {id(parameter) for module in layers for parameter in module.parameters()}
    kept = [name for name, parameter in model.named_parameters() if id(parameter) not in covered]
    if kept:
        raise InputError(
            "model",
            expected="layers that can draw new weights (`reset_parameters`)",
            got=f"none for {', '.join(kept[:3])}{' and others' if len(kept) > 3 else ''}",
            hint="The training starts from new weights, so the module that owns a parameter must be able to reset it.",
        )
    device = model_device(model)
    model.cpu()  # every device draws alike
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in layers:
            module.reset_parameters()  # type: ignore[operator]
    model.to(device).requires_grad_(True)
