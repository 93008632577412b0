"""How good is a heat map: deletion and insertion curves, controls, and networks made fit for hooks.

Petsiuk, Das, Saenko (2018), RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC, arXiv 1806.07421
(deletion and insertion). Pixels are ordered by the map, most important first. Deletion turns them black one row's worth at
a time and watches the probability of the explained class fall; insertion starts from a blurred picture and puts them
back. A good map has a small area under the first curve and a large one under the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, fx, nn
from torch.nn import functional

Probability = Callable[[Tensor], Tensor]
"""Pictures (sample, channel, y, x) to class probabilities (sample, class)."""

_RELU_FUNCTIONS = (torch.relu, torch.relu_, functional.relu, functional.relu_)


def with_relu_modules(model: nn.Module) -> nn.Module | None:
    """The same function with every ReLU as a module of its own that does not work in place; None if torch.fx cannot trace it.

    Methods that hook ReLU modules (guided backpropagation, deconvolution, DeepLIFT) see neither `F.relu` nor the second
    use of one module: guided backpropagation of a network with functional ReLUs is silently the plain gradient.
    """
    try:
        traced = fx.symbolic_trace(model)
    except Exception:  # whatever control flow or type check the model has
        return None
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        called = modules.get(node.target) if node.op == "call_module" else None
        by_method = node.op == "call_method" and node.target in ("relu", "relu_")
        by_function = node.op == "call_function" and node.target in _RELU_FUNCTIONS
        if type(called) is nn.ReLU or by_method or by_function:
            name = f"relu_of_{node.name}"
            traced.add_submodule(name, nn.ReLU())
            with traced.graph.inserting_before(node):
                fresh = traced.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
            node.replace_all_uses_with(fresh)
            traced.graph.erase_node(node)
    traced.graph.lint()
    traced.recompile()
    return traced.train(model.training)


def pixel_order(heat: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels from the most to the least important, ties by lot: (sample, y, x) to (sample, y * x) positions."""
    flat = heat.flatten(1)
    lot = torch.rand(flat.shape, generator=generator).argsort(1).to(flat.device)
    return lot.gather(1, flat.gather(1, lot).argsort(dim=1, descending=True, stable=True))


def replacement_curve(
    probability: Probability, start: Tensor, end: Tensor, order: Tensor, target: Tensor, steps: int
) -> Tensor:
    """Probability of the target class while pixels of `start` are replaced by those of `end`: (sample, steps + 1).

    Args:
        probability: of the classifier.
        start: pictures (sample, channel, y, x).
        end: the same shape.
        order: (sample, y * x) positions in the order of replacement.
        target: (sample,) the class watched.
        steps: in how many equal portions.
    """
    pixels = order.shape[1]
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(pixels, device=order.device).expand_as(order))
    rank = rank.reshape(len(order), 1, *start.shape[-2:])
    curve = []
    for step in range(steps + 1):
        mixed = torch.where(rank < round(step * pixels / steps), end, start)
        curve.append(probability(mixed).gather(1, target[:, None])[:, 0])
    return torch.stack(curve, dim=1)


def area_under(curve: Tensor) -> Tensor:
    """Area under a curve over 0..1 by trapezoids: (..., step) to (...)."""
    return (curve.sum(-1) - (curve[..., 0] + curve[..., -1]) / 2) / (curve.shape[-1] - 1)


def blurred(image: Tensor) -> Tensor:
    """A Gaussian blur that leaves hardly any evidence: sigma 1/16 of the width (2 px at 32), reflecting borders."""
    sigma = image.shape[-1] / 16
    return torch.as_tensor(
        ndimage.gaussian_filter(image.cpu().numpy(), sigma=(0, 0, sigma, sigma), mode="reflect"), device=image.device
    )


def edges(image: Tensor) -> Tensor:
    """Sobel magnitude of the mean channel, a map that knows nothing of the classifier: (sample, y, x)."""
    grey = image.mean(1).cpu().numpy()
    magnitude = np.hypot(ndimage.sobel(grey, axis=1), ndimage.sobel(grey, axis=2))
    return torch.as_tensor(magnitude, device=image.device)


def for_display(heat: np.ndarray) -> np.ndarray:
    """Each map divided by the 99.5th percentile of its absolute values and cut off at -1 and 1: (sample, y, x)."""
    scale = np.quantile(np.abs(heat), 0.995, axis=(1, 2), keepdims=True)
    return np.clip(np.divide(heat, scale, out=np.zeros_like(heat), where=scale > 0), -1, 1)


def softmax_of(model: nn.Module) -> Probability:
    """Class probabilities of a classifier, without gradients."""

    def probability(image: Tensor) -> Tensor:
        with torch.no_grad():
            value: Any = torch.softmax(model(image), dim=1)
        return value

    return probability
