"""Small inputs made from a method's roles: pictures a network can learn, logits that know something of the labels, a model.

Everything is drawn from fixed seeds, so that a finding can be seen again.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.method import DataRole, Method, ModelRole
from workbench.schema import VARIABLES

if TYPE_CHECKING:
    import xarray as xr

    from workbench.subjects.models import Model

__all__ = ["CLASSES", "SAMPLES", "sample_dataset", "sample_inputs", "sample_language_model", "sample_model"]

SAMPLES, CLASSES, SIZE = 48, 4, 16
SIZES: Mapping[str, int] = {
    "sample": SAMPLES,
    "class": CLASSES,
    "channel": 1,
    "y": SIZE,
    "x": SIZE,
    "feature": 8,
    "token": 12,
    "step": 10,
}
OTHER = 5
"""Size of a dim that is not in `SIZES`."""
VOCABULARY = 16


def sample_inputs(method: type[Method], *, optional: bool = True) -> dict[str, Any]:
    """An input for every role of a method.

    Args:
        method: the class.
        optional: fill optional roles and optional variables as well.

    Raises:
        InputError: a model role with a task other than "classifier" or "language"; pass `inputs` for such a method.
    """
    made: dict[str, Any] = {}
    for name, role in method.inputs.items():
        if isinstance(role, DataRole) and (optional or not role.optional):
            variables = {**role.variables, **(role.optional_variables if optional else {})}
            made[name] = sample_dataset(variables, seed=zlib.crc32(name.encode()))
    for name, role in method.inputs.items():
        if isinstance(role, ModelRole) and (optional or not role.optional):
            if role.task == "language":
                made[name] = sample_language_model()
                continue
            if role.task != "classifier":
                raise InputError(name, expected="a model given by the author", got=f"a role of task {role.task!r}")
            data = made.get(role.data) if role.data is not None else None
            if data is None or "image" not in data:
                data = sample_dataset({"image": VARIABLES["image"].dims}, seed=0)
            made[name] = sample_model(data)
    return {name: made[name] for name in method.inputs if name in made}


def sample_dataset(variables: Mapping[str, tuple[str, ...]], *, seed: int = 0, samples: int = SAMPLES) -> xr.Dataset:
    """A Dataset with variables of the given dims that belong together: labels decide pictures, logits and features.

    Args:
        variables: name -> dims; a dim of "..." becomes y and x (for pictures) or nothing.
        seed: of the noise and of the order of the labels.
        samples: size of the dim `sample`.
    """
    import xarray as xr

    random = np.random.default_rng(seed)
    label = random.permutation(np.arange(samples) % CLASSES).astype(np.int64)
    made = {}
    for name, dims in variables.items():
        spelled = _spelled(name, dims)
        shape = tuple(samples if dim == "sample" else SIZES.get(dim, OTHER) for dim in spelled)
        made[name] = (spelled, _values(name, shape, spelled, label, random))
    dataset = xr.Dataset(made)
    if "label" in made or "class" in dataset.dims:
        dataset = dataset.assign_coords({"class": [f"class {index}" for index in range(CLASSES)]})
    return dataset


def _spelled(name: str, dims: tuple[str, ...]) -> tuple[str, ...]:
    if "..." not in dims:
        return dims
    known = VARIABLES[name].dims if name in VARIABLES else dims
    at = dims.index("...")
    rest = tuple(dim for dim in known[at:] if dim not in dims)
    return dims[:at] + (rest if "..." not in rest else ()) + dims[at + 1 :]


def _values(
    name: str, shape: tuple[int, ...], dims: tuple[str, ...], label: np.ndarray, random: np.random.Generator
) -> Any:
    of_sample = label if dims[:1] == ("sample",) else np.arange(shape[0] if shape else 1) % CLASSES
    if name in ("label", "prediction"):
        wrong = random.random(len(of_sample)) < (0.2 if name == "prediction" else 0.0)
        return np.where(wrong, (of_sample + 1) % CLASSES, of_sample).astype(np.int64)
    if name == "anomalous":
        return of_sample == 0
    if name in ("logit", "probability") and len(shape) == 2:
        logit = 3.0 * np.eye(shape[1])[of_sample % shape[1]] + 1.5 * random.standard_normal(shape)
        if name == "logit":
            return logit.astype(np.float32)
        raised = np.exp(logit - logit.max(axis=1, keepdims=True))
        return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    if dims[-2:] == ("y", "x") and dims[:1] == ("sample",):
        return _pictures(shape, of_sample, random)
    if name == "token_id":  # each token tells something of the next one
        steps = random.choice([1, 2, 3], size=shape, p=[0.7, 0.2, 0.1])
        return (random.integers(VOCABULARY, size=(shape[0], 1)) + steps.cumsum(1)).astype(np.int64) % VOCABULARY
    if name == "bits":
        return random.choice([2, 4, 8], size=shape).astype(np.int8)
    noise = random.standard_normal(shape)
    shift = of_sample.reshape(-1, *[1] * (len(shape) - 1)) if dims[:1] == ("sample",) else 0.0
    return (noise + shift).astype(np.float32)


def _pictures(shape: tuple[int, ...], label: np.ndarray, random: np.random.Generator) -> Any:
    """Gratings whose direction and pitch tell the class, with random phase and noise, in 0..1."""
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    angle = np.pi * label / CLASSES
    pitch = 2 * np.pi / (4.0 + label)
    phase = random.uniform(0, 2 * np.pi, len(label))
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    wave = 0.5 + 0.35 * np.sin(pitch[:, None, None] * along + phase[:, None, None])
    wave = wave.reshape(len(label), *[1] * (len(shape) - 3), *shape[-2:])
    return np.clip(wave + 0.08 * random.standard_normal(shape), 0, 1).astype(np.float32)


def sample_model(data: xr.Dataset, *, steps: int = 40) -> Model:
    """A small classifier of `data`'s pictures, trained for a moment if they have labels; the same each time."""
    import torch

    from workbench.subjects import load_model
    from workbench.subjects.builtin import FACTORIES

    channels = int(data.sizes.get("channel", 1))
    model = load_model(
        f"small-cnn(n_classes={CLASSES}, channels={channels}, width=4)", factories=FACTORIES, example=data
    )
    if "label" in data and "image" in data:
        image, label = torch.as_tensor(data["image"].values), torch.as_tensor(data["label"].values)
        image = image.float() / 255 if image.dtype == torch.uint8 else image
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(image), label).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


def sample_language_model() -> Model:
    """A small causal language model over the tokens of `sample_dataset`, with initial weights; the same each time."""
    from workbench.subjects import load_model
    from workbench.subjects.builtin import FACTORIES

    spec = f"small-gpt(vocabulary={VOCABULARY}, blocks=3, width=8, heads=2, context={SIZES['token']})"
    return load_model(spec, factories=FACTORIES)
