"""Parameters, multiply-accumulates and floating-point operations of every layer of a model.

A thin reading of `torch.utils.flop_counter`, which counts matrix products, convolutions and attention as they are
executed: two operations per multiply-accumulate. Additions of biases, normalisation and activations are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from workbench.errors import InputError

__all__ = ["LayerCount", "count_operations", "total_count"]


@dataclass(frozen=True)
class LayerCount:
    """Cost of one module for one sample, what its submodules do not account for themselves.

    name: qualified name (`""` is the model itself); kind: class name; parameters: scalars held by the module itself;
    flops: operations for one sample; macs: half of them.
    """

    name: str
    kind: str
    parameters: int
    macs: int
    flops: int


def count_operations(module: nn.Module, input_shape: Sequence[int]) -> tuple[LayerCount, ...]:
    """Count every module that holds parameters or does counted work itself, in the order of `named_modules`.

    Args:
        module: any model that takes one float tensor; it is run once in eval mode, on zeros, on its own device.
        input_shape: shape of one sample without the sample dim, such as `(3, 32, 32)`.

    Raises:
        InputError: the model does not accept an input of this shape.
    """
    reference = next(iter([*module.parameters(), *module.buffers()]), torch.zeros(()))
    dtype = reference.dtype if reference.is_floating_point() else torch.float32
    sample = torch.zeros((1, *input_shape), dtype=dtype, device=reference.device)
    training = {name: child.training for name, child in module.named_modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    # The fused encoder kernels of torch bypass both the counter and the submodules.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            module(sample)
    except RuntimeError as error:
        raise InputError(
            "input_shape", expected="a shape the model accepts", got=f"{tuple(input_shape)}: {error}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for name, child in module.named_modules():
            child.training = training[name]
    root = type(module).__name__
    inclusive = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}

    def flops_of(name: str) -> int:
        return int(inclusive.get(f"{root}.{name}" if name else root, 0))

    counts = []
    for name, child in module.named_modules():
        children = [f"{name}.{key}" if name else key for key, _ in child.named_children()]
        flops = flops_of(name) - sum(flops_of(key) for key in children)
        parameters = sum(parameter.numel() for parameter in child.parameters(recurse=False))
        if parameters or flops > 0:
            counts.append(LayerCount(name, type(child).__name__, parameters, max(flops, 0) // 2, max(flops, 0)))
    return tuple(counts)


def total_count(counts: Sequence[LayerCount]) -> LayerCount:
    """The sum of `counts`, under the name `""` and the kind `total`."""
    return LayerCount(
        "",
        "total",
        sum(count.parameters for count in counts),
        sum(count.macs for count in counts),
        sum(count.flops for count in counts),
    )
