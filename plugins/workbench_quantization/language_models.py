"""Language models as a quantisation method sees them: residual blocks, the stream between them, and how well text is predicted.

A model maps token ids (sample, token) to logits (sample, token, vocabulary), or to an object with `.logits` as models of
transformers do. Text comes in windows of equal length that are read one by one, without memory of the window before.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn
from workbench import InputError, Inputs, Out
from workbench.toolkit import evaluating, split_indices

LISTS = ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers", "blocks")
"""Where decoders keep their blocks (Llama and relatives, GPT-2, GPT-NeoX, OPT, and most others)."""


@dataclass(frozen=True)
class ResidualBlock:
    """One block of the residual stream: a module that takes hidden states (sample, token, feature) and returns new ones."""

    name: str
    module: nn.Module


def find_residual_blocks(model: nn.Module, names: Sequence[str] = ()) -> list[ResidualBlock]:
    """The blocks in order: those named, those in the list that is named, or those where decoders have them.

    Raises:
        InputError: no such module, or no list of blocks is known in this model.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise InputError("blocks", expected="names of modules of the model", got=repr(name))
    lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList | nn.Sequential)]
    if len(names) == 1 and names[0] in lists:
        chosen = names[0]
    elif names:
        return [ResidualBlock(name, modules[name]) for name in names]
    else:
        known = [name for name in lists if any(f".{name}".endswith(f".{end}") for end in LISTS)]
        if not known:
            longest = sorted(lists, key=lambda name: -len(modules[name]))[:3]  # type: ignore[arg-type]
            raise InputError(
                "blocks",
                expected=f"a model with its blocks at {', '.join(LISTS)}, or the name of the list that holds them",
                got="a model without one" if not names else repr(names),
                hint=f"For example blocks=({longest[0]!r},)." if longest else "",
            )
        chosen = known[0]
    return [ResidualBlock(f"{chosen}.{key}", module) for key, module in modules[chosen].named_children()]


# ----------------------------------------------------------------------------------------------------------------- text


@dataclass(frozen=True)
class Text:
    """Windows (sample, token) int64 on the run's device, and their positions in the data set."""

    token_id: Tensor
    index: np.ndarray

    def batches(self, size: int) -> tuple[Tensor, ...]:
        """The windows, so many at a time."""
        return self.token_id.split(size)


def split_text(inputs: Inputs, out: Out, *, calibration_tokens: int, report_fraction: float) -> tuple[Text, Text]:
    """Text to calibrate on and text to report on: role `test`, or a share of `data`.

    Without `test` the end of `data` is kept for the report, so that no passage is cut in two by the split.

    Raises:
        InputError: windows shorter than 2 tokens, of different lengths, or that occur in both parts.
    """
    data, test = inputs["data"]["token_id"], inputs.get("test")
    for role, array in (("data", data), *((("test", test["token_id"]),) if test is not None else ())):
        if array.sizes["token"] < 2:
            raise InputError(f"{role}['token_id']", expected="windows of at least 2 tokens", got=str(array.shape))
    if test is None:
        count = data.sizes["sample"]
        kept = min(max(1, round(report_fraction * count)), count - 1)
        if not kept:
            raise InputError("data", expected="at least 2 windows of text", got=str(count))
        rest, held = np.arange(count - kept), _text(data, np.arange(count - kept, count), out.device)
    else:
        rest = np.arange(data.sizes["sample"])
        held = _text(test["token_id"], np.arange(test.sizes["sample"]), out.device)
    number = min(len(rest), max(1, calibration_tokens // data.sizes["token"]))
    shares = {"drawn": number / len(rest), "left": 1 - number / len(rest)}
    drawn = rest if number == len(rest) else split_indices(len(rest), shares, out.seed)["drawn"]
    shown = _text(data, drawn, out.device)
    if data.sizes["token"] == held.token_id.shape[1]:
        seen = {row.tobytes() for row in shown.token_id.cpu().numpy()}
        again = sum(row.tobytes() in seen for row in held.token_id.cpu().numpy())
        # A few equal windows (blank text, a licence) are no leak; a repeated file is.
        if again > 0.01 * len(held.index):
            raise InputError(
                "test" if test is not None else "data",
                expected="text that is not calibrated on",
                got=f"{again} of {len(held.index)} windows that are",
            )
    return shown, held


def _text(array: xr.DataArray, index: np.ndarray, device: torch.device) -> Text:
    return Text(torch.from_numpy(np.array(array.isel(sample=index), dtype=np.int64)).to(device), index)


# ---------------------------------------------------------------------------------------------------------------- model


def next_token_logits(model: nn.Module, token_id: Tensor) -> Tensor:
    """Logits (sample, token, vocabulary) of a model that returns them, or an object that has them."""
    answer = model(token_id)
    logits: Tensor = answer if isinstance(answer, Tensor) else answer.logits
    return logits


def forget_between_calls(model: nn.Module) -> None:
    """Switch the cache of keys and values off where a model of transformers has one: every window starts anew."""
    for module in (model, getattr(model, "network", None)):
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # type: ignore[union-attr]


def check_language_model(model: nn.Module, shown: Text, held_out: Text) -> None:
    """Raise InputError unless the model gives finite logits over a vocabulary that has all tokens."""
    highest = max(int(text.token_id.max()) for text in (shown, held_out))
    vocabulary = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    # A table of positions may be the larger one: only a model whose every table is too small is refused here.
    if vocabulary and highest >= max(vocabulary):
        raise InputError(
            "data['token_id']",
            expected=f"ids below {max(vocabulary)}, the model's vocabulary",
            got=f"an id of {highest}",
        )
    for role, text in (("data", shown), ("test", held_out)):
        few = text.token_id[:1]
        try:
            with evaluating(model):
                logits = next_token_logits(model, few)
        except Exception as error:  # whatever a foreign forward raises: the two do not fit
            reason = (str(error).strip().splitlines() or [""])[0]
            raise InputError(
                "model",
                expected=f"a language model that accepts token ids of shape {tuple(few.shape)} (role {role!r})",
                got=f"{type(error).__name__}: {reason}",
            ) from error
        if logits.ndim != 3 or logits.shape[:2] != few.shape or not torch.isfinite(logits).all():
            raise InputError(
                "model", expected="finite logits (sample, token, vocabulary)", got=f"shape {tuple(logits.shape)}"
            )
        if highest >= logits.shape[2]:
            raise InputError(
                "data['token_id']", expected=f"ids below {logits.shape[2]}, the model's vocabulary", got=str(highest)
            )


@dataclass(frozen=True)
class Prediction:
    """How a model predicts the next tokens of windows.

    Attributes:
        loss: (sample,) float64, mean negative log-likelihood of a window's tokens after the first, in nats.
        correct: (sample,) float64, share of them that are the most probable token.
    """

    loss: np.ndarray
    correct: np.ndarray

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss over all predicted tokens (windows have equal length)."""
        return float(np.exp(min(self.loss.mean(), 700.0)))


def predict_text(model: nn.Module, text: Text, batch: int, autocast: torch.dtype | None) -> Prediction:
    """Predict every token of every window but its first."""
    loss, correct = [], []
    for ids in text.batches(batch):
        logits = _logits(model, ids, autocast)[:, :-1]
        target = ids[:, 1:]
        each = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none").reshape(target.shape)
        loss.append(each.double().mean(1).cpu())
        correct.append((logits.argmax(2) == target).double().mean(1).cpu())
    return Prediction(torch.cat(loss).numpy(), torch.cat(correct).numpy())


def log_probabilities(model: nn.Module, text: Text, batch: int, autocast: torch.dtype | None) -> Tensor:
    """(token, vocabulary) float32 on the CPU, window after window."""
    parts = [_logits(model, ids, autocast).float().log_softmax(2).flatten(0, 1).cpu() for ids in text.batches(batch)]
    return torch.cat(parts)


def _logits(model: nn.Module, ids: Tensor, autocast: torch.dtype | None) -> Tensor:
    half = torch.autocast(ids.device.type, autocast) if autocast is not None else contextlib.nullcontext()
    with evaluating(model), half:
        return next_token_logits(model, ids)


# -------------------------------------------------------------------------------------------------------------- the stream


def _stream(value: Any) -> Tensor:
    """Hidden states out of what a block is given or returns: itself, or the first of a tuple."""
    hidden: Tensor = value[0] if isinstance(value, tuple | list) else value
    return hidden


def _entering(inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    return _stream(inputs[0] if inputs else named["hidden_states"])


def residual_cosines(
    model: nn.Module, blocks: Sequence[ResidualBlock], text: Text, batch: int, autocast: torch.dtype | None
) -> Iterator[Tensor]:
    """Per batch the cosine between the stream that enters a block and the one that leaves it: (block, sample, token) float64.

    Reduced in float64: near 1 the differences between blocks lie in the fourth digit.

    Raises:
        InputError: a module that does not return a stream of the shape of what it takes.
    """
    found: list[Tensor | None] = [None] * len(blocks)

    def hook(place: int) -> Callable[..., None]:
        def note(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            before, after = _entering(inputs, named), _stream(output)
            if before.shape != after.shape or before.ndim != 3:
                raise InputError(
                    "blocks",
                    expected="residual blocks, which return hidden states of the shape they take",
                    got=f"{blocks[place].name}: {tuple(before.shape)} in, {tuple(after.shape)} out",
                )
            found[place] = F.cosine_similarity(before.double(), after.double(), dim=2).cpu()

        return note

    handles = [block.module.register_forward_hook(hook(place), with_kwargs=True) for place, block in enumerate(blocks)]
    try:
        for ids in text.batches(batch):
            _logits(model, ids, autocast)
            missing = [block.name for block, cosine in zip(blocks, found, strict=True) if cosine is None]
            if missing:
                raise InputError("blocks", expected="blocks that the model calls", got=", ".join(missing))
            yield torch.stack([cosine for cosine in found if cosine is not None])
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def skipped(blocks: Sequence[ResidualBlock]) -> Iterator[None]:
    """Inside the block the given residual blocks hand the stream on as it came, as if they had been cut out."""

    def hand_on(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        hidden = _entering(inputs, named)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handles = [block.module.register_forward_hook(hand_on, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mean_divergence(full: Tensor, other: Tensor) -> float:
    """Mean over tokens of KL(full || other) in nats, from log-probabilities (token, vocabulary)."""
    gap = (full.double().exp() * (full.double() - other.double())).sum(1)
    return max(0.0, float(gap.mean())) if math.isfinite(float(gap.mean())) else float("inf")
