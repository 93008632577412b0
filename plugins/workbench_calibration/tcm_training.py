"""Training embeddings with and without the threshold-consistent margin: balanced batches, proxies, every mode and seed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from workbench import InputError, Out
from workbench.toolkit import Recipe, Stages, Transform, find_layer, fit, last_linear, predict_all, reinitialise

from workbench_calibration.overlap_training import CHECKPOINT_SECONDS
from workbench_calibration.tcm_losses import bases, tcm_loss

if TYPE_CHECKING:
    from workbench_calibration.tcm import Params

TERMS = ("base", "tcm")


@dataclass(frozen=True)
class Mode:
    """One way to train."""

    name: str
    loss: str
    with_tcm: bool
    strength: float


def training_modes(params: Params) -> list[Mode]:
    """For each base loss: alone, with TCM, and alone at other strengths."""
    modes = []
    for loss in dict.fromkeys(params.losses):
        modes += [Mode(loss, loss, False, 1.0), Mode(f"{loss}_tcm", loss, True, 1.0)]
        modes += [Mode(f"{loss}_x{s:g}", loss, False, s) for s in dict.fromkeys(params.sweep) if s != 1]
    return modes


def balanced_batches(image: Tensor, label: Tensor, batch_size: int, samples_per_class: int) -> Transform:
    """A transform that puts a balanced batch in place of the one it is given, so that every batch holds positive pairs.

    Of `batch_size // samples_per_class` classes drawn without replacement (all, if there are not so many) equally many samples
    each; of a class with fewer samples all it has. The generator alone decides.

    Args:
        image: (sample, ...), the whole training set.
        label: (sample,) int64, classes 0 to their number - 1.
        batch_size: samples of a batch.
        samples_per_class: at least so many of each class.
    """
    members = [torch.nonzero(label == k)[:, 0] for k in range(int(label.max()) + 1)]
    chosen_classes = min(len(members), max(batch_size // samples_per_class, 2))
    each = batch_size // chosen_classes

    def transform(_: Tensor, __: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        classes = torch.randperm(len(members), generator=generator)[:chosen_classes].tolist()
        drawn = torch.cat(
            [members[k][torch.randperm(len(members[k]), generator=generator)[:each].to(label.device)] for k in classes]
        )
        picture = image[drawn.to(image.device)].to(label.device)
        return (picture.float() / 255 if picture.dtype == torch.uint8 else picture), label[drawn]

    return transform


class MetricModel(nn.Module):
    """A backbone that returns embeddings, with the proxies of its loss.

    Proxies learn `proxy_rate` times as fast as the backbone: what the optimiser sees is the proxy over that rate, which under
    Adam, whose steps do not depend on the scale of gradients, is the same as a learning rate of its own.

    `history` (term, epoch) collects the mean of each term; it is a buffer, so that a checkpoint keeps it.
    """

    def __init__(self, backbone: nn.Module, proxy: Tensor, proxy_rate: float, epochs: int, batches: int) -> None:
        super().__init__()
        self.backbone, self.proxy_rate, self.batches = backbone, proxy_rate, batches
        self.scaled_proxy = nn.Parameter(proxy / proxy_rate)
        self.register_buffer("history", torch.zeros((len(TERMS), epochs)))
        self.register_buffer("batch", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor) -> Tensor:
        """Embeddings (sample, feature)."""
        embedding: Tensor = self.backbone(image)
        return embedding

    @property
    def proxy(self) -> Tensor:
        """(class, feature)."""
        return self.scaled_proxy * self.proxy_rate

    def note(self, terms: list[Tensor]) -> None:
        """Add the terms of a batch to the history."""
        self.history[:, int(self.batch) // self.batches] += torch.stack(terms).detach().float()
        self.batch += 1


def multilayer_perceptron(inputs: int, width: int, features: int) -> nn.Module:
    """The small backbone for vectors and small pictures: one hidden layer of ReLU units."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, features))


def embedding_network(model: nn.Module, features: int) -> nn.Module:
    """A copy of a classifier in single precision that ends in an embedding: a new last linear layer of so many outputs.

    Raises:
        InputError: the model has no linear layer, or its last one does not make its output.
    """
    copied = copy.deepcopy(model).float()
    name = last_linear(copied)
    head = find_layer(copied, name)
    parent_name, _, leaf = name.rpartition(".")
    parent = find_layer(copied, parent_name) if parent_name else copied
    setattr(parent, leaf, nn.Linear(head.in_features, features, device=head.weight.device))
    return copied


def embed(network: nn.Module, image: Tensor) -> Tensor:
    """Outputs for all images, (sample, feature) on the CPU.

    Raises:
        InputError: the output is not one vector per image.
    """
    embedding, _ = predict_all(network, image, keep_on="cpu")
    if embedding.ndim != 2:
        raise InputError(
            "model", expected="one embedding (feature,) per image", got=f"shape {tuple(embedding.shape[1:])}"
        )
    return embedding


def train_every_mode(
    network: nn.Module, train: tuple[Tensor, Tensor], test_image: Tensor, params: Params, fresh: bool, out: Out
) -> dict[str, dict[str, Any]]:
    """Train a copy of the network in every mode with every seed; one seed has the same initial weights and batches in all.

    Args:
        network: the backbone, on the device.
        train: images (sample, ...) and labels (sample,) 0 to their number - 1, on the device.
        test_image: what to embed, of other classes or samples.
        params: of the run.
        fresh: draw new weights for every layer, not only for the embedding.
        out: of the run; keeps checkpoints from which a stopped run goes on.

    Returns:
        By `<mode>_<seed>`: `embedding` (sample, feature) of the test images, `history` (term, epoch), and for seed 0 `state`.
    """
    classes = int(train[1].max()) + 1
    known = bases(classes)
    modes = training_modes(params)
    recipe = Recipe(epochs=params.epochs, batch_size=params.batch_size, optimizer="adam", weight_decay=0.0,
                    learning_rate=params.learning_rate, schedule="constant")  # fmt: skip
    batches = len(range(0, len(train[0]), params.batch_size))
    batches -= (
        batches > 1 and len(train[0]) % params.batch_size == 1
    )  # `fit` joins a last batch of one to the one before
    stages = Stages(out, len(modes) * params.seeds, checkpoint_seconds=CHECKPOINT_SECONDS)
    for seed, mode in ((s, m) for s in range(params.seeds) for m in modes):
        name = f"{mode.name}_{seed}"
        if stages.result(name) is not None:
            continue
        base, generator = known[mode.loss], out.generator(f"initial weights {seed}")
        backbone = copy.deepcopy(network)
        reinitialise(backbone if fresh else find_layer(backbone, last_linear(backbone)), _draw(generator))
        drawn = torch.randn((classes if base.proxy_std else 1, params.embedding_size), generator=generator)
        model = MetricModel(backbone, base.proxy_std * drawn, params.proxy_rate, params.epochs, batches).to(out.device)

        def objective(embedding: Tensor, label: Tensor, model: MetricModel = model, mode: Mode = mode) -> Tensor:
            terms = [known[mode.loss].loss(embedding, label, model.proxy, mode.strength)]
            terms += [_tcm(embedding, label, params) if mode.with_tcm else torch.zeros_like(terms[0])]
            model.note(terms)
            return terms[0] + terms[1]

        fit(
            model,
            *train,
            recipe,
            generator=out.generator(f"training {seed}"),
            transform=balanced_batches(*train, params.batch_size, params.samples_per_class),
            loss=objective,
            out=stages.begin(name, series=("loss",)),
            amp=out.dtype == torch.bfloat16,
            name=name,
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )
        result: dict[str, Any] = {
            "embedding": embed(backbone, test_image).numpy(),
            "history": (model.history / batches).cpu().numpy(),
        }
        if seed == 0:
            result["state"] = {key: value.detach().cpu() for key, value in backbone.state_dict().items()}
        stages.finish(name, result)
    return dict(stages.results)


def _draw(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


def _tcm(embedding: Tensor, label: Tensor, params: Params) -> Tensor:
    margins = {"m_plus": params.m_plus, "m_minus": params.m_minus}
    return tcm_loss(embedding, label, **margins, lam_plus=params.lam_plus, lam_minus=params.lam_minus)


def open_world_clusters(classes: int, samples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes on a plane of 8 dims in 64, whose spreads differ by up to a factor of 6.

    Means are N(0, I_8) times one random 8 x 64 matrix, the spread of a class is 1.5 exp(U(-0.9, 0.9)) in all 64 dims.

    Returns:
        Points (classes * samples, 64) float32, class after class, and their labels.
    """
    mean = rng.standard_normal((classes, 8)) @ rng.standard_normal((8, 64))
    spread = 1.5 * np.exp(rng.uniform(-0.9, 0.9, classes))
    point = mean[:, None] + spread[:, None, None] * rng.standard_normal((classes, samples, 64))
    return point.reshape(-1, 64).astype(np.float32), np.repeat(np.arange(classes), samples)


def states(trained: Mapping[str, Mapping[str, Any]], mode: str) -> dict[str, Tensor]:
    """Weights of a mode's first training."""
    return {key: torch.as_tensor(value) for key, value in trained[f"{mode}_0"]["state"].items()}
