"""Traces of the diagonal blocks of a Hessian with little noise: the Gauss-Newton part by itself, probes for the rest.

For cross-entropy over logits f the Hessian is H = G + R (Schraudolph 2002; Martens 2020, arXiv:1412.1193, section 8) with

    G = mean_n J_n' S_n J_n,    S_n = diag(p_n) - p_n p_n' = L_n L_n',    L_n = diag(sqrt(p_n)) - p_n sqrt(p_n)',

where J_n is the Jacobian of sample n's logits and p_n its softmax. The trace of a block of G is a sum of squared gradients,

    Tr(G_ii) = mean_n sum_c ||J_n,i' L_n[:, c]||^2,

which takes one backward pass per class and has no probing noise. R holds the second derivatives of the logits. Logits are
piecewise linear in the weights of a single layer where all that follows it is (ReLU, max pooling, batch norm in eval mode):
there R_ii = 0. In general it is not, and every probe z = +-1 of the layer adds z'(H_ii - G_ii) z, of expectation Tr(R_ii):

    Tr(H_ii) = E[Tr(G_ii) + z'(H_ii - G_ii) z].

The estimate is unbiased for every network (G is a control variate); its spread over probes says how much R matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from workbench_quantization.gptq_solver import as_matrices, columns_of, solvable
from workbench_quantization.hawq_curvature import Batch
from workbench_quantization.layers import Block

MOST_CLASSES = 128
"""Number of classes up to which G's trace is exact. That takes one backward pass per class, once."""

DIRECTIONS = 8
"""Random directions that every probe takes beyond. They are drawn for every image, over which their noise averages out: 20
probes, which their spread asks for, cost less than 1,000 classes and leave next to no error."""

IMAGES_PER_PROBE = 8
"""Images that one probe is made on: R is often zero, which few show as well as many."""

CHUNK = 16_000_000
"""Numbers that gradients of some samples along some directions may hold at a time, one sample along one in any case: 64 MB in
float32."""

OnImages = Callable[[int, int], None]
"""Is told how many images of how many were dealt with; what it raises ends the work."""


def gauss_newton_probes(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    probes: int,
    generator: torch.Generator,
    *,
    images_per_probe: int = IMAGES_PER_PROBE,
    on_images: OnImages = lambda done, total: None,
) -> Iterator[Tensor]:
    """Estimates of Tr(H_ii) for every block, float64 (block,) per probe, of the mean cross-entropy over all samples.

    Args:
        model: in eval mode, from a batch of images (first dim: samples) to logits (sample, class).
        blocks: their weights require gradients.
        batches: images and labels.
        probes: at most; stop taking when the spread is small enough.
        generator: CPU generator of the probes.
        images_per_probe: drawn anew for every probe. What is probed is a mean over images, often of zeros.
        on_images: called while gradients are squared, which for many classes takes longer than a probe.
    """
    known: GaussNewtonTraces | None = None
    for _ in range(probes):
        if known is None or not known.exact:
            known = gauss_newton_traces(model, blocks, batches, generator, on_images)
        value = known.trace
        vectors = [[_signs(weight, generator) for weight in block.weights] for block in blocks]
        graph = _Graph.of(model, blocks, _drawn(batches, images_per_probe, generator))
        yield value + graph.remainders(vectors, known.told)


def _drawn(batches: Sequence[Batch], count: int, generator: torch.Generator) -> Batch:
    """So many images of all batches, without replacement, with their labels."""
    sizes = [len(label) for _, label in batches]
    chosen = torch.randperm(sum(sizes), generator=generator)[:count].sort().values
    parts, start = [], 0
    for (image, label), size in zip(batches, sizes, strict=True):
        mine = chosen[(chosen >= start) & (chosen < start + size)] - start
        parts.append((image[mine.to(image.device)], label[mine.to(label.device)]))
        start += size
    return torch.cat([image for image, _ in parts]), torch.cat([label for _, label in parts])


@dataclass(frozen=True)
class _Graph:
    """First derivatives of a batch's loss, and of its logits along `along`, with the graphs to differentiate them again."""

    weights: list[list[Tensor]]
    gradient: list[list[Tensor]]
    logit_gradient: list[list[Tensor]]
    along: Tensor
    probability: Tensor

    @classmethod
    def of(cls, model: nn.Module, blocks: Sequence[Block], batch: Batch) -> _Graph:
        image, label = batch
        weights = [block.weights for block in blocks]
        flat = [weight for block in weights for weight in block]
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():  # fused attention has no second derivative
            logit = model(image)
            along = torch.zeros_like(logit, requires_grad=True)
            first = torch.autograd.grad(F.cross_entropy(logit, label), flat, create_graph=True, materialize_grads=True)
            linear = torch.autograd.grad(logit, flat, along, create_graph=True, materialize_grads=True)

        def grouped(values: Iterable[Tensor]) -> list[list[Tensor]]:
            rest = iter(values)
            return [[next(rest) for _ in block] for block in weights]

        return cls(weights, grouped(first), grouped(linear), along, logit.detach().softmax(1))

    def remainders(self, vectors: Sequence[Sequence[Tensor]], usable: Sequence[bool]) -> Tensor:
        """z'(H_ii - G_ii) z of every block, float64 (block,); z'H_ii z where G was not `usable`."""
        found = torch.zeros(len(self.weights), dtype=torch.float64)
        for place, z in enumerate(vectors):
            product = _grad(self.gradient[place], self.weights[place], z)
            found[place] = sum(float((v.double() * p.double()).sum()) for v, p in zip(z, product, strict=True))
            if usable[place]:
                # The derivative of J'u by u, applied to z, is J z: the change of the logits along z.
                (change,) = _grad(self.logit_gradient[place], [self.along], z)
                change, p = change.double(), self.probability.double()
                found[place] -= float(((p * change.square()).sum(1) - (p * change).sum(1).square()).mean())
        return found


def _grad(outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Product of the vectors with the Jacobian of the outputs that depend on anything; zeros where none does."""
    pairs = [(output, vector) for output, vector in zip(outputs, vectors, strict=True) if output.requires_grad]
    if not pairs:
        return [torch.zeros_like(tensor) for tensor in inputs]
    return torch.autograd.grad(
        [output for output, _ in pairs],
        inputs,
        [vector for _, vector in pairs],
        retain_graph=True,
        materialize_grads=True,
    )


@dataclass(frozen=True)
class GaussNewtonTraces:
    """Tr(G_ii), float64 (block,), 0 where it is not `told`; `exact` unless random directions stood in for the classes."""

    trace: Tensor
    told: list[bool]
    exact: bool


def gauss_newton_traces(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    generator: torch.Generator,
    on_images: OnImages = lambda done, total: None,
) -> GaussNewtonTraces:
    """Squared gradients of all classes, sample by sample: Tr(G_ii) of every block.

    Beyond `MOST_CLASSES` classes random combinations of the columns of L_n, drawn for each sample, stand in for them.

    Args:
        model: in eval mode.
        blocks: one with a layer that is neither linear nor a convolution, whose tensors do not count samples first, or whose
            weight acts otherwise than by its calls alone (`_agrees`), is not told.
        batches: images and labels.
        generator: CPU generator of the random directions.
        on_images: called after every chunk of images.
    """
    rows = {layer: row for row, block in enumerate(blocks) for layer in block.layers}
    told = [all(map(solvable, block.layers)) for block in blocks]
    trace = torch.zeros(len(blocks), dtype=torch.float64)
    total, exact, size = sum(len(label) for _, label in batches), True, 1
    largest = max(block.size for block in blocks)
    done = 0
    for image, _ in batches:
        rest = image
        while len(rest):
            part, rest = rest[:size], rest[size:]
            with _Watch([layer for layer, row in rows.items() if told[row]]) as watch, torch.enable_grad():
                logit = model(part)
            outputs = [output for calls in watch.calls.values() for _, output in calls]
            if not outputs:
                return GaussNewtonTraces(torch.zeros_like(trace), [False] * len(blocks), True)
            for layer, row in rows.items():  # a weight that is used without a call of its layer
                told[row] = told[row] and layer in watch.calls
            directions = _directions(logit.detach(), generator)
            exact = exact and logit.shape[1] <= MOST_CLASSES
            weights = [layer.get_parameter("weight") for layer in watch.calls]
            whole = torch.autograd.grad(logit, weights, directions[0], retain_graph=True, materialize_grads=True)
            expected = dict(zip(watch.calls, whole, strict=True))
            each = sum(output.numel() for output in outputs) // len(part) + largest
            at_once = max(1, CHUNK // (each * len(part)))
            for first in range(0, len(directions), at_once):
                some = directions[first : first + at_once]
                found = [
                    torch.autograd.grad(logit, outputs, d, retain_graph=True, materialize_grads=True) for d in some
                ]
                back = iter(zip(*found, strict=True))
                for layer, calls in watch.calls.items():
                    pairs = [(inputs, output, next(back)) for inputs, output in calls]
                    if any(len(inputs) != len(part) or len(output) != len(part) for inputs, output, _ in pairs):
                        told[rows[layer]] = False
                        continue
                    gradient = sum(_sample_gradients(layer, inputs, gradients) for inputs, _, gradients in pairs)
                    assert isinstance(gradient, Tensor)
                    if not first and not _agrees(layer, gradient, len(some), expected[layer]):
                        told[rows[layer]] = False
                    trace[rows[layer]] += float(gradient.double().square().sum()) / total
            done += len(part)
            on_images(done, total)
            # The next chunk takes twice as many, as long as their gradients fit.
            size = max(1, min(2 * len(part), CHUNK // (each * len(directions))))
    return GaussNewtonTraces(torch.where(torch.tensor(told), trace, 0.0), told, exact)


def _directions(logit: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Columns of L_n, each (sample, class), longest first; random combinations of them where there are too many."""
    p = logit.softmax(1)
    classes = logit.shape[1]
    if classes <= MOST_CLASSES:
        mixed = [F.one_hot(torch.full((len(p),), c, device=p.device), classes).to(p) for c in range(classes)]
    else:
        # Signs s give E[(L s)(L s)'] = L L'; the mean over the draws keeps its size.
        mixed = [_signs(p, generator) / DIRECTIONS**0.5 for _ in range(DIRECTIONS)]
    roots = p.sqrt()
    columns = [roots * s - p * (roots * s).sum(1, keepdim=True) for s in mixed]
    return sorted(columns, key=lambda column: -float(column.norm()))


def _sample_gradients(layer: nn.Module, inputs: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Gradients of the weight for every sample and direction, (sample, group, direction * row, column).

    Args:
        layer: linear or a convolution.
        inputs: (sample, ...).
        gradients: of the layer's output, one per direction.
    """
    samples, groups = len(inputs), getattr(layer, "groups", 1)
    columns = columns_of(layer, inputs).unflatten(2, (samples, -1)).permute(2, 0, 3, 1)
    back = torch.stack([g.movedim(-1, 1) if _features_last(layer) else g for g in gradients], 1)
    # (sample, direction, channel, place...) -> (sample, group, direction * row, place)
    back = back.flatten(3) if back.ndim > 3 else back[..., None]
    back = back.unflatten(2, (groups, -1)).transpose(1, 2).flatten(2, 3)
    return back @ columns


def _agrees(layer: nn.Module, gradient: Tensor, directions: int, expected: Tensor) -> bool:
    """Whether the gradients of the weight along the first direction add up to autograd's.

    They do not where a hook changes what the layer returns, or where the weight is used beside the calls of its layer.
    """
    own = gradient.unflatten(2, (directions, -1))[:, :, 0].double()
    gap = float((own.sum(0) - as_matrices(layer, expected).double()).norm())
    return gap <= torch.finfo(expected.dtype).eps ** 0.5 * float(own.flatten(1).norm(dim=1).sum())


def _features_last(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent entries +-1 in the shape, dtype and place of `like`, drawn on the CPU."""
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (drawn * 2 - 1).to(device=like.device, dtype=like.dtype)


class _Watch:
    """Inside the block, what layers receive and return is kept in `calls`, layers and calls in order of execution."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        self._handles = [layer.register_forward_hook(self._note) for layer in layers]

    def _note(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        self.calls.setdefault(layer, []).append((inputs[0].detach(), output))
        return output.clone()  # an in-place activation that follows must not overwrite what was kept

    def __enter__(self) -> _Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
