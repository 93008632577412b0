"""Training and scoring of DisCoPatch: patches, the two optimiser steps, scores per image.

Pure functions of tensors and networks; the method around them is in `discopatch.py`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from workbench import InputError, Out
from workbench.toolkit import evaluating

from workbench_detection.discopatch_networks import (
    Discriminator,
    Negatives,
    Norm,
    ReconstructionLoss,
    VariationalAutoencoder,
    discriminator_loss,
    generator_loss,
)
from workbench_detection.shifts import eight_bit

if TYPE_CHECKING:
    import xarray as xr

PATCHES_PER_FORWARD = 4096
IN_MEMORY = 2 << 30
"""Bytes of training images that are read once and kept; beyond, each step reads its own."""
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    """Everything that fixes the networks and their training; see `discopatch.Parameters` for the words."""

    patch: int
    patches_train: int
    patches_test: int
    widths: tuple[int, ...]
    latent: int
    images_per_batch: int
    steps: int
    learning_rate: float
    kl_weight: float = 1e-4
    reconstruction_weight: float = 1e-3
    generation_weight: float = 1e-3
    norm: Norm = "batch"
    negatives: Negatives = "both"
    reconstruction_loss: ReconstructionLoss = "mse"


def patch_positions(
    shape: tuple[int, ...], height: int, width: int, patch: int, rng: np.random.Generator
) -> np.ndarray:
    """Upper left corners (x, y), uniform over all positions where a patch fits; (*shape, 2) int16."""
    across = rng.integers(0, width - patch + 1, size=shape)
    down = rng.integers(0, height - patch + 1, size=shape)
    return np.stack([across, down], axis=-1).astype(np.int16)


def crop_patches(images: torch.Tensor, positions: np.ndarray, patch: int) -> torch.Tensor:
    """Patches (image * patch, channel, patch, patch) of images (image, channel, y, x) at positions (image, patch, 2)."""
    windows = images.unfold(2, patch, 1).unfold(3, patch, 1)
    corners = torch.as_tensor(positions.astype(np.int64), device=images.device)
    image = torch.arange(len(images), device=images.device)[:, None]
    return windows[image, :, corners[..., 1], corners[..., 0]].flatten(0, 1)


class Trainer:
    """The two networks with their two Adams.

    Args:
        channels: image channels.
        settings: networks, losses and learning rate.
        device: where to compute.
        dtype: in which precision.
    """

    def __init__(
        self, channels: int, settings: Settings, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.settings, self.device, self.dtype = settings, device, dtype
        self.vae = VariationalAutoencoder(channels, settings.patch, settings.widths, settings.latent)
        self.discriminator = Discriminator(channels, settings.patch, settings.widths, settings.norm)
        self.vae.to(device, dtype)
        self.discriminator.to(device, dtype)
        self.vae_optimizer = torch.optim.Adam(self.vae.parameters(), lr=settings.learning_rate)
        self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=settings.learning_rate)

    def step(self, patches: torch.Tensor, noise: torch.Tensor, code: torch.Tensor) -> dict[str, float]:
        """One VAE step, then one D step on the same (detached) reconstructions and generations.

        Args:
            patches: real patches in -1..1, (patch, channel, y, x), of several images.
            noise: standard normal (patch, latent), for the codes of the reconstructions.
            code: standard normal (patch, latent), decoded to generations.

        Returns:
            The parts of both losses and how often D is right about real and about the made-up patches
            that it is trained on.
        """
        reconstruction, generation, values = self.vae_step(patches, noise, code)
        values |= self.discriminator_step(patches, reconstruction, generation)
        return {name: float(value) for name, value in values.items()}

    def vae_step(
        self, patches: torch.Tensor, noise: torch.Tensor, code: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Update the VAE; returns its (detached) reconstructions and generations and the parts of its loss."""
        settings = self.settings
        # D's own gradient is not wanted here; without this it would be computed and thrown away.
        self.discriminator.requires_grad_(False)
        reconstruction, mean, log_variance = self.vae(patches, noise)
        generation = self.vae.decode(code)
        loss, parts = generator_loss(
            patches,
            reconstruction,
            mean,
            log_variance,
            self.discriminator(reconstruction),
            self.discriminator(generation),
            kl_weight=settings.kl_weight,
            reconstruction_weight=settings.reconstruction_weight,
            generation_weight=settings.generation_weight,
            loss=settings.reconstruction_loss,
        )
        self.vae_optimizer.zero_grad()
        loss.backward()
        self.vae_optimizer.step()
        self.discriminator.requires_grad_(True)
        return reconstruction.detach(), generation.detach(), {name: part.detach() for name, part in parts.items()}

    def discriminator_step(
        self, patches: torch.Tensor, reconstruction: torch.Tensor, generation: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Update D on real patches and negatives, each in a batch of its own, so that none shares statistics."""
        real = self.discriminator(patches)
        generated, reconstructed = self.discriminator(generation.detach()), self.discriminator(reconstruction.detach())
        loss, parts = discriminator_loss(real, generated, reconstructed, self.settings.negatives)
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        self.discriminator_optimizer.step()
        values = {name: part.detach() for name, part in parts.items()}
        values["real_accuracy"] = (real.detach() > 0).float().mean()
        # Negatives that an ablation leaves out of the loss say nothing about how well D does what it is trained for.
        fakes = {"both": [generated, reconstructed], "generations": [generated], "reconstructions": [reconstructed]}
        values["fake_accuracy"] = (torch.cat(fakes[self.settings.negatives]).detach() <= 0).float().mean()
        return values

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs: nested dicts of tensors and numbers, keys are strings."""
        return {
            "vae": dict(self.vae.state_dict()),
            "discriminator": dict(self.discriminator.state_dict()),
            "vae_optimizer": _optimizer_state(self.vae_optimizer),
            "discriminator_optimizer": _optimizer_state(self.discriminator_optimizer),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.vae.load_state_dict(_tensors(state["vae"]))
        self.discriminator.load_state_dict(_tensors(state["discriminator"]))
        _load_optimizer(self.vae_optimizer, state["vae_optimizer"])
        _load_optimizer(self.discriminator_optimizer, state["discriminator_optimizer"])


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {str(index): dict(entry) for index, entry in optimizer.state_dict()["state"].items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    complete = optimizer.state_dict()
    complete["state"] = {int(index): _tensors(entry) for index, entry in state.items()}
    optimizer.load_state_dict(complete)


def _tensors(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value) for name, value in values.items()}


def patch_probabilities(
    discriminator: Discriminator, images: torch.Tensor, positions: np.ndarray, *, group: bool = True
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """D of every patch, sigmoid applied, (image, patch), and the batch-norm statistics of each image.

    Args:
        discriminator: trained; batch norm always takes the statistics of what it is given.
        images: in -1..1, (image, channel, y, x).
        positions: corners (x, y) of the patches, (image, patch, 2).
        group: normalise the patches of each image by themselves; False pools all of `images`.

    Returns:
        D per patch, and per layer the images' means and variances (image, channel); none unless grouped batch norm.
    """
    count = positions.shape[1]
    block = max(1, PATCHES_PER_FORWARD // count) if group else len(images)
    probabilities, statistics = [], []
    with evaluating(discriminator):
        for start in range(0, len(images), block):
            part = slice(start, start + block)
            patches = crop_patches(images[part], positions[part], discriminator.patch)
            logit, layers = discriminator.score(patches, count if group else None)
            probabilities.append(torch.sigmoid(logit).unflatten(0, (-1, count)))
            statistics.append(layers)
    joined = [
        (torch.cat([mean for mean, _ in layer]), torch.cat([variance for _, variance in layer]))
        for layer in zip(*statistics, strict=True)
    ]
    return torch.cat(probabilities), joined


def image_score(probability: torch.Tensor) -> torch.Tensor:
    """1 - mean over patches of D: (image, patch) to (image,); larger = more likely out-of-distribution."""
    return 1 - probability.mean(1)


def heat_map(patch_score: np.ndarray, positions: np.ndarray, patch: int, height: int, width: int) -> np.ndarray:
    """Mean score of the patches that cover each pixel, (y, x); the mean over all patches where none does."""
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for score, (left, top) in zip(patch_score, positions, strict=True):
        total[top : top + patch, left : left + patch] += score
        count[top : top + patch, left : left + patch] += 1
    return np.divide(total, count, out=np.full((height, width), float(np.mean(patch_score))), where=count > 0)


def network_input(images: np.ndarray, trainer: Trainer) -> torch.Tensor:
    """Images in 0..1 as the networks take them: -1..1, on their device, in their precision."""
    return torch.as_tensor(images).to(trainer.device, trainer.dtype) * 2 - 1


def fit(trainer: Trainer, images: xr.DataArray, out: Out) -> None:
    """Train for `settings.steps` steps, or what is left of them after the newest checkpoint of an interrupted run.

    The images, crops and noise of a step are drawn from streams named after the step, so that a run that was
    interrupted ends as one that was not.

    Args:
        trainer: the networks; changed.
        images: in-distribution, (sample, channel, y, x), uint8 or float in 0..1; read step by step where they are many.
        out: the run.

    Raises:
        InputError: the training diverged.
    """
    settings = trainer.settings
    if images.nbytes <= IN_MEMORY:
        images = images.compute()
    restored = out.restore()
    done = 0
    if restored is not None:
        trainer.load(restored["trainer"])
        done = int(restored["step"])
    height, width = images.sizes["y"], images.sizes["x"]
    count, wanted = images.sizes["sample"], settings.images_per_batch
    saved = time.monotonic()
    for step in range(done, settings.steps):
        out.progress(step, settings.steps, "training")
        rng, generator = out.rng(f"step {step}"), out.generator(f"step {step}")
        chosen = np.sort(rng.choice(count, wanted, replace=count < wanted))
        batch = network_input(eight_bit(images.isel(sample=chosen).to_numpy()), trainer)
        positions = patch_positions((wanted, settings.patches_train), height, width, settings.patch, rng)
        patches = crop_patches(batch, positions, settings.patch)
        noise, code = torch.randn(2, len(patches), settings.latent, generator=generator).to(patches)
        values = trainer.step(patches, noise, code)
        if not all(math.isfinite(value) for value in values.values()):
            raise InputError(
                "learning_rate",
                expected="a training that stays finite",
                got=f"losses of {values} at step {step + 1} with {settings.learning_rate:g}",
                hint="Try a smaller learning rate.",
            )
        out.log(step + 1, **values)
        if time.monotonic() - saved >= CHECKPOINT_SECONDS:
            out.checkpoint({"step": step + 1, "trainer": trainer.state()})
            saved = time.monotonic()
    out.progress(settings.steps, settings.steps, "trained")
