"""WiSE-FT: two models that share their beginnings, averaged weight by weight; and the two ways to average outputs instead.

Wortsman et al. (2022), arXiv 2109.01903 (mlfoundations/wise-ft, MIT): theta(alpha) = (1 - alpha) pre + alpha fine-tuned, head
included.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from workbench import InputError
from workbench.toolkit import evaluating, layer_names, model_device, predict_all, to_tensor

BatchNorm = Literal["keep", "interpolate", "re-estimate"]
State = Mapping[str, Tensor]
OUTCOMES = ("FFF", "FFT", "FTF", "FTT", "TFF", "TFT", "TTF", "TTT")
"""Pretrained right, fine-tuned right, average right: in this order, as bits of weight 4, 2 and 1."""


def check_states(pre: State, tuned: State) -> None:
    """Refuse to average what does not belong together.

    Raises:
        InputError: keys or shapes differ.
    """
    odd = sorted(set(pre) ^ set(tuned))
    unlike = [key for key in pre if key in tuned and pre[key].shape != tuned[key].shape]
    if odd or unlike:
        shown = [f"{key} in one only" for key in odd[:2]] + [
            f"{key} {tuple(pre[key].shape)} and {tuple(tuned[key].shape)}" for key in unlike[:2]
        ]
        raise InputError(
            "finetuned", expected="the same weights as the pretrained model has, head included", got="; ".join(shown),
            hint="Fine-tuning has to start from the pretrained model; other models can only be averaged in their outputs.",
        )  # fmt: skip


def interpolate(pre: State, tuned: State, alpha: float, *, keep: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """(1 - alpha) pre + alpha tuned for every floating entry, computed in at least float32; others are the tuned model's.

    Args:
        pre: state of the pretrained model.
        tuned: state of the fine-tuned model, same keys and shapes.
        alpha: share of the fine-tuned model.
        keep: floating entries that are not averaged either, but the tuned model's (running statistics, say).
    """
    mixed = {}
    for key, one in tuned.items():
        if not one.is_floating_point() or key in keep:
            mixed[key] = one.clone()
            continue
        wide = torch.promote_types(one.dtype, torch.float32)
        mixed[key] = ((1 - alpha) * pre[key].to(one.device, wide) + alpha * one.to(wide)).to(one.dtype)
    return mixed


def running_statistics(model: nn.Module) -> frozenset[str]:
    """State keys of batch norms' running means and variances."""
    names = layer_names(model, "batch_norm")
    return frozenset(f"{name}.{kind}" for name in names for kind in ("running_mean", "running_var"))


def estimate_statistics(model: nn.Module, image: Tensor, batch_size: int = 256) -> None:
    """Give batch norms the statistics of these images, in place: plain means over batches; nothing else changes.

    Every n-th image makes a batch, so that the batches of images sorted by class are alike (the variance inside batches of
    one class each is far below that of all images), and of nearly equal size.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative mean
            norm.train()
        count = -(-len(image) // batch_size)
        for first in range(count):
            model(to_tensor(image[first::count], device=model_device(model)))
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before


def average(
    model: nn.Module, pre: State, tuned: State, alpha: float, bn: BatchNorm = "interpolate", image: Tensor | None = None
) -> nn.Module:
    """A copy of `model` with the interpolated weights, in eval mode.

    Args:
        model: the architecture.
        pre: state of the pretrained model.
        tuned: state of the fine-tuned model.
        alpha: share of the fine-tuned model.
        bn: running statistics: the fine-tuned model's, interpolated, or measured anew on `image`.
        image: unlabelled images in distribution, for `re-estimate`.
    """
    merged = copy.deepcopy(model).eval()
    keep = running_statistics(model) if bn == "keep" else frozenset[str]()
    merged.load_state_dict(interpolate(pre, tuned, alpha, keep=keep))
    if bn == "re-estimate" and image is not None:
        estimate_statistics(merged, image)
    return merged


def logit_layer(model: nn.Module, image: Any) -> str:
    """Name of the linear layer whose outputs are the logits: halving it halves them. The one registered last, by convention.

    Args:
        model: a classifier in eval mode.
        image: (sample, ...), a few of its inputs.

    Raises:
        InputError: no linear layer is of this kind.
    """
    # Up to what softmax does not see: models that end in log-probabilities count as well.
    expected = (predict_all(model, image, keep_on="cpu")[0] / 2).log_softmax(1)
    for name in reversed(layer_names(model, "linear")):
        halved = copy.deepcopy(model)
        halved.load_state_dict(cooled_head(name, halved.state_dict(), 2.0))
        found = predict_all(halved, image, keep_on="cpu")[0].log_softmax(1)
        if torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            return name
    raise InputError(
        "model",
        expected="a linear layer as head, whose outputs are the logits",
        got=f"a {type(model).__name__} in which dividing a linear layer by 2 halves the logits nowhere",
    )


def cooled_head(head: str, state: State, tau: float) -> dict[str, Tensor]:
    """The state with the linear layer `head` divided by tau: the same classifier, less sure of itself."""
    return {key: value / tau if key in (f"{head}.weight", f"{head}.bias") else value for key, value in state.items()}


def mean_of_probabilities(one: Tensor, other: Tensor) -> Tensor:
    """Logits (sample, class) whose softmax is the mean of the two softmaxes."""
    pair = torch.stack([one.double().log_softmax(1), other.double().log_softmax(1)])
    return (pair.logsumexp(0) - np.log(2)).to(one.dtype)


def mean_of_logits(one: Tensor, other: Tensor) -> Tensor:
    """Mean of logits (sample, class)."""
    return (one + other) / 2


def outcomes(pre: NDArray[np.bool_], tuned: NDArray[np.bool_], average_: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Which of the three are right on each sample, (sample,) indices into `OUTCOMES`."""
    return (4 * pre.astype(np.uint8) + 2 * tuned.astype(np.uint8) + average_.astype(np.uint8)).astype(np.uint8)


def outcome_shares(outcome: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares of the eight outcomes, (8,); they add up to 1."""
    return np.bincount(outcome, minlength=8) / len(outcome)
