"""Models from names and from stored states. Nothing is unpickled, and nothing draws from the global random generators."""

from __future__ import annotations

import difflib
import inspect
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from workbench.errors import InputError
from workbench.subjects.grammar import check_call, split_arguments
from workbench.subjects.hubs import HUBS, build_hub, stored_arguments
from workbench.subjects.models import Model, as_model, data_facts
from workbench.subjects.weights import SUFFIXES, fit_weights, read_weights

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["load_model", "load_state"]

Factories = Mapping[str, Callable[..., nn.Module]]


def load_model(
    spec: str | nn.Module, *, factories: Factories, example: xr.Dataset | None = None, argument: str = "model"
) -> Model:
    """Build a model from its name: `NAME`, `NAME(key=value)`, `NAME@FILE`, or `timm:`, `torchvision:`, `transformers:NAME`.

    `NAME` is a key of `factories`. A factory may take `n_classes` and `channels`, which come from `example` unless the
    name gives them, and `weights`, a path it loads itself. It returns a network or a Model. These arguments work
    for every factory: `mean` and `std` (normalisation) and `seed` (of the initial weights, 0 unless given).

        load_model("small-cnn(width=8)", factories=FACTORIES, example=digits)
        load_model("resnet20(n_classes=100, mean=0.5, std=0.25)@mine.safetensors", factories=FACTORIES)

    Args:
        spec: the name; a module comes back as `as_model` gives it.
        factories: factories by name.
        example: data the model will see.
        argument: what the model is called, for messages.

    Raises:
        InputError: an unknown name or argument, a file that is missing, damaged or does not fit.
        MissingDependencyError: the package behind `timm:` and the like is not installed.
    """
    if isinstance(spec, nn.Module):
        return as_model(spec, example=example)
    if not isinstance(spec, str):
        raise InputError(argument, expected="a name such as 'small-cnn' or an nn.Module", got=type(spec).__name__)
    head, at, file = spec.partition("@")
    name, arguments = split_arguments(head.strip(), argument)
    path = Path(os.path.expanduser(file.strip())) if at else None
    own = {key: arguments.pop(key) for key in ("mean", "std") if key in arguments}
    shape, classes, n_classes = data_facts(example)
    with _initial_weights(arguments.pop("seed", 0)):
        if name.partition(":")[0] in HUBS:
            built: nn.Module = build_hub(name, arguments, pretrained=path is None, n_classes=n_classes)
        else:
            factory = _factory(name, factories, spec, argument)
            arguments = _complete(factory, arguments, shape, n_classes, path)
            built = _call(factory, name, arguments, argument)
    takes_weights = "weights" in arguments
    arguments.pop("weights", None)
    known = built if isinstance(built, Model) else None
    network: nn.Module = known.network if known is not None else built
    if path is not None and not takes_weights:
        fit_weights(network, read_weights(path, argument), source=str(path), argument=argument)
    outputs = arguments.get("n_classes", n_classes)
    return Model(
        network,
        mean=own.get("mean", known.mean if known else ()),
        std=own.get("std", known.std if known else ()),
        input_shape=known.input_shape if known and known.input_shape else shape,
        classes=known.classes if known and known.classes else (classes if len(classes) == outputs else ()),
        factory=known.factory if known and known.factory else name,
        factory_arguments=known.factory_arguments if known and known.factory else arguments,
        label=spec,
    ).eval()


def _factory(name: str, factories: Factories, spec: str, argument: str) -> Callable[..., nn.Module]:
    if name in factories:
        return factories[name]
    if spec.endswith(SUFFIXES) and "@" not in spec:
        raise InputError(
            argument,
            expected="the architecture as well, written NAME@FILE",
            got=f"the file {spec!r} alone",
            hint=f"For example 'resnet20@{spec}'. Known: {', '.join(sorted(factories))}.",
        )
    near = difflib.get_close_matches(name, factories, n=1, cutoff=0.5)
    known = ", ".join(sorted(factories)) or "none"
    raise InputError(
        argument,
        expected=f"a registered model ({known}), or {', '.join(f'{hub}:NAME' for hub in HUBS)}",
        got=repr(name),
        hint=f"Did you mean {near[0]!r}?" if near else "A module can be passed as it is.",
    )


def _complete(
    factory: Callable[..., Any],
    arguments: Mapping[str, Any],
    shape: tuple[int, ...] | None,
    n_classes: int | None,
    path: Path | None,
) -> dict[str, Any]:
    """Arguments as given, and what the example or the file adds to them where the factory takes it."""
    accepted = inspect.signature(factory).parameters
    offered = {"n_classes": n_classes, "channels": shape[0] if shape else None, "weights": str(path) if path else None}
    return {key: value for key, value in offered.items() if value is not None and key in accepted} | dict(arguments)


def _call(factory: Callable[..., Any], name: str, arguments: Mapping[str, Any], argument: str) -> nn.Module:
    check_call(factory, name, arguments, argument)
    built = factory(**arguments)
    if not isinstance(built, nn.Module):
        raise InputError(argument, expected=f"an nn.Module from factory {name!r}", got=type(built).__name__)
    return built


@contextmanager
def _initial_weights(seed: Any) -> Iterator[None]:
    """Everything drawn inside follows from the seed, on the CPU, and the global generators are as they were afterwards."""
    if not isinstance(seed, int) or seed < 0:
        raise InputError("seed", expected="an integer from 0", got=repr(seed))
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def load_state(
    arrays: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    factories: Factories,
    into: nn.Module | None = None,
    argument: str = "model",
) -> Model:
    """Put a stored model together again: the inverse of `model_state`, in eval mode.

    A state may come from a stranger, so its metadata can only name an architecture: nothing is downloaded, no other file
    is read and no code is run but that of the registered factories and the installed libraries.

    Args:
        arrays: arrays by name (numpy or anything numpy can read).
        metadata: what `model_state` gave.
        factories: factories by name.
        into: the network to load the state into, in place, for models that no factory builds.
        argument: what the model is called, for messages.

    Raises:
        InputError: the factory is unknown and `into` was not given, its arguments ask for more than an architecture, or
            the state does not fit.
    """
    factory, arguments = str(metadata.get("factory") or ""), dict(metadata.get("factory_arguments") or {})
    what = f"the stored {metadata.get('class') or 'model'}"
    hint = "Pass the network to load it into: into=my_network."
    if into is None and not factory:
        raise InputError("into", expected=f"a network for {what}, which no registered factory built", got="none", hint=hint)
    if into is None:
        with _initial_weights(0):
            into = _stored_architecture(factory, arguments, factories, argument, what)
        what += f" (built by {factory!r} and perhaps changed afterwards: then pass into=)"
    network: nn.Module = into.network if isinstance(into, Model) else into
    dtypes = metadata.get("dtypes") or {}
    state = {key: torch.from_numpy(np.array(values)) for key, values in arrays.items()}
    state |= {key: state[key].to(getattr(torch, name)) for key, name in dtypes.items() if key in state}
    model = Model(
        network,
        mean=metadata.get("mean") or (),
        std=metadata.get("std") or (),
        input_shape=metadata.get("input_shape"),
        classes=metadata.get("classes") or (),
        factory=factory,
        factory_arguments=arguments,
        label=str(metadata.get("label") or ""),
    )
    fit_weights(model, state, source=what, argument=argument)
    return model.eval()


def _stored_architecture(
    factory: str, arguments: Mapping[str, Any], factories: Factories, argument: str, what: str
) -> nn.Module:
    """The network that the metadata of a stored model name, as yet without its state.

    A factory that changes another one's network takes it as `network`; the metadata then name that one in its place:
    `{"network": {"factory": "resnet20", "arguments": {"n_classes": 10}}, ...}`.
    """
    if factory.partition(":")[0] in HUBS:
        return build_hub(factory, stored_arguments(factory, arguments, argument), pretrained=False)
    if factory not in factories:
        known = ", ".join(sorted(factories)) or "none"
        raise InputError(
            argument,
            expected=f"a registered factory ({known})",
            got=f"{factory!r} for {what}",
            hint="Pass the network to load it into: into=my_network.",
        )
    if "weights" in arguments:  # load_model never stores it: the state has the weights
        raise InputError(argument, expected="a stored architecture without a file of weights", got="weights")
    inner = arguments.get("network")
    if isinstance(inner, Mapping) and set(inner) == {"factory", "arguments"}:
        built = _stored_architecture(str(inner["factory"]), dict(inner["arguments"]), factories, argument, what)
        arguments = {**arguments, "network": built}
    return _call(factories[factory], factory, arguments, argument)
