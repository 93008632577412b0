"""Activations of named layers, by forward hooks that are always removed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from workbench.errors import InputError

__all__ = ["Pool", "capture", "find_layer", "last_linear", "layer_names"]

Pool = Literal["mean"] | None

_KINDS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "convolution": (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    "linear": (nn.Linear,),
    "weight": (
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.Linear,
    ),
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
}


def layer_names(
    model: nn.Module, kind: str | type[nn.Module] | tuple[type[nn.Module], ...] | None = None
) -> tuple[str, ...]:
    """Qualified names of a model's layers, in the order in which the modules were registered.

    Args:
        model: any module; the model itself (name `""`) is never listed.
        kind: None for all leaves (modules without children), `"convolution"`, `"linear"`, `"weight"` (both of them),
            `"batch_norm"`, or module classes.

    Raises:
        InputError: `kind` is an unknown word.
    """
    if isinstance(kind, str):
        if kind not in _KINDS:
            raise InputError("kind", expected=f"one of {', '.join(_KINDS)}, or module classes", got=repr(kind))
        kind = _KINDS[kind]
    return tuple(
        name
        for name, module in model.named_modules()
        if name and (not any(module.children()) if kind is None else isinstance(module, kind))
    )


def find_layer(model: nn.Module, name: str, *, argument: str = "layers") -> nn.Module:
    """The module of this qualified name.

    Raises:
        InputError: there is none; the hint names the nearest.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    modules.pop("", None)
    if name in modules:
        return modules[name]
    nearest = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
    raise InputError(
        argument,
        expected="the name of a layer of the model",
        got=repr(name),
        hint=f"Nearest: {', '.join(nearest)}." if nearest else f"Layers: {', '.join(list(modules)[:20])}.",
    )


def last_linear(model: nn.Module) -> str:
    """Name of the `nn.Linear` registered last: by convention the classifier's head, whose input are the features.

    Raises:
        InputError: the model has no linear layer.
    """
    names = layer_names(model, "linear")
    if not names:
        raise InputError("model", expected="a linear layer as head", got=f"a {type(model).__name__} without nn.Linear")
    return names[-1]


@contextmanager
def capture(
    model: nn.Module,
    layers: Sequence[str],
    *,
    detach: bool = True,
    pool: Pool = None,
    inputs: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Collect what named layers return (or, with `inputs`, receive) during forward passes inside the `with` block.

        with capture(model, ["body.0"]) as activation:
            logit = model(image)
        activation["body.0"]  # (sample, channel, y, x)

    Every entry is a copy made when the layer ran, so that a later in-place operation (`ReLU(inplace=True)`, `x += y`)
    does not change it. Each forward pass replaces the entries of the one before; a layer that runs several times in
    one pass leaves its last activation. The hooks are removed when the block ends, also by an exception.

    Args:
        model: the module that is called inside the block.
        layers: qualified names, as listed by `layer_names`.
        detach: cut the copies from the graph; False keeps gradients flowing through them.
        pool: `"mean"` averages over all dims after the second: (sample, channel, y, x) -> (sample, channel).
        inputs: keep the layer's first positional input instead of its output.

    Raises:
        InputError: a layer does not exist, or what it returns (receives) is not a tensor.
    """
    if isinstance(layers, str):
        layers = (layers,)
    if pool not in (None, "mean"):
        raise InputError("pool", expected="None or 'mean'", got=repr(pool))
    found = {name: find_layer(model, name) for name in layers}
    collected: dict[str, Tensor] = {}

    def keep(name: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            side = "input" if inputs else "output"
            came = f"{name!r} with {type(value).__name__}"
            raise InputError("layers", expected=f"layers whose {side} is a tensor", got=came)
        value = value.detach() if detach else value
        pooled = pool == "mean" and value.ndim > 2
        collected[name] = value.mean(dim=tuple(range(2, value.ndim))) if pooled else value.clone()

    def hook(name: str, module: nn.Module) -> Any:
        if inputs:
            return module.register_forward_pre_hook(lambda _, given: keep(name, given[0] if given else None))
        return module.register_forward_hook(lambda _, __, value: keep(name, value))

    handles: list[Any] = []
    try:
        for name, module in found.items():
            handles.append(hook(name, module))  # one by one, so that a failure leaves none behind
        yield collected
    finally:
        for handle in handles:
            handle.remove()
