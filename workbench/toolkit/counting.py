"""Parameters, multiply-accumulates and floating-point operations of every layer of a model.

A thin reading of `torch.utils.flop_counter`, which counts matrix products, convolutions and attention as they are
executed: two operations per multiply-accumulate. Additions of biases, normalisation and activations are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

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
    modules = dict(module.named_modules())
    training = {name: child.training for name, child in modules.items()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    # The fused encoder kernels of torch bypass both the counter and the submodules.
    torch.backends.mha.set_fastpath_enabled(False)
    handles: list[RemovableHandle] = []
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            own = _watch(modules, counter, handles)
            module(sample)
    except RuntimeError as error:
        raise InputError(
            "input_shape", expected="a shape the model accepts", got=f"{tuple(input_shape)}: {error}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
        for name, child in modules.items():
            child.training = training[name]

    counts = []
    for name, child in modules.items():
        flops = own[name]
        parameters = sum(parameter.numel() for parameter in child.parameters(recurse=False))
        if parameters or flops > 0:
            counts.append(LayerCount(name, type(child).__name__, parameters, flops // 2, flops))
    return tuple(counts)


def _watch(
    modules: Mapping[str, nn.Module], counter: FlopCounterMode, handles: list[RemovableHandle]
) -> dict[str, int]:
    """Operations each module does itself, without those of the modules it calls, filled in as they run.

    The counter's own attribution goes by names that start at whatever module runs first, which a model that wraps
    another one without having it as a child (`workbench.Model`) leads astray; hooks know the module itself.
    """
    own = dict.fromkeys(modules, 0)
    running: list[list[int]] = []  # of every module being called: operations before it, operations of what it called

    def watch(name: str, child: nn.Module) -> None:
        def before(*_: object) -> None:
            running.append([counter.get_total_flops(), 0])

        def after(*_: object) -> None:
            start, called = running.pop()
            done = counter.get_total_flops() - start
            own[name] += done - called
            if running:
                running[-1][1] += done

        handles.append(child.register_forward_pre_hook(before))
        handles.append(child.register_forward_hook(after))

    for name, child in modules.items():
        watch(name, child)
    return own


def total_count(counts: Sequence[LayerCount]) -> LayerCount:
    """The sum of `counts`, under the name `""` and the kind `total`."""
    return LayerCount(
        "",
        "total",
        sum(count.parameters for count in counts),
        sum(count.macs for count in counts),
        sum(count.flops for count in counts),
    )
