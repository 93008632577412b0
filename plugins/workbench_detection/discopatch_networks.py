"""The two networks of DisCoPatch, their losses, and batch normalisation over the patches of one image.

Caetano et al., DisCoPatch, sections 3 and 4. Everything works on patches in -1..1, (patch, channel, y, x).
The discriminator returns logits where the paper's ends in a sigmoid; the losses use `binary_cross_entropy_with_logits`,
which is the same number without the loss of precision when D saturates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

Norm = Literal["batch", "group", "instance", "running"]
Negatives = Literal["both", "reconstructions", "generations"]
ReconstructionLoss = Literal["mse", "ms_ssim"]

EPSILON = 1e-5
GROUPS = 32

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales of MS-SSIM, Wang et al. (2003)."""
WINDOW, SIGMA = 7, 1.5
"""Gaussian window of MS-SSIM, as in the official code."""


def grouped_batch_norm(
    activation: torch.Tensor, group_size: int, weight: torch.Tensor, bias: torch.Tensor, epsilon: float = EPSILON
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batch normalisation in which every `group_size` consecutive patches have statistics of their own.

    It gives what `nn.BatchNorm2d(track_running_stats=False)` gives when each group is fed alone: mean
    and biased variance over (patch, y, x) of the group, then the learnt scale and shift.

    Args:
        activation: (group * group_size, channel, y, x).
        group_size: patches per group (patches of one image).
        weight: learnt scale, (channel,).
        bias: learnt shift, (channel,).
        epsilon: added to the variance.

    Returns:
        The normalised activation, and per group the mean and the variance, (group, channel) each.
    """
    count, channels, height, width = activation.shape
    grouped = activation.reshape(count // group_size, group_size, channels, height, width)
    variance, mean = torch.var_mean(grouped, dim=(1, 3, 4), correction=0)
    scale = weight * torch.rsqrt(variance + epsilon)
    shift = bias - mean * scale
    normalised = grouped * scale[:, None, :, None, None] + shift[:, None, :, None, None]
    return normalised.reshape(activation.shape), mean, variance


class Encoder(nn.Sequential):
    """Blocks of 3x3 convolution with stride 2, batch normalisation and leaky ReLU (slope 0.01)."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        blocks: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths, strict=False):
            blocks += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU()]
        super().__init__(*blocks)


class VariationalAutoencoder(nn.Module):
    """The generator: a convolutional VAE on patches.

    Args:
        channels: image channels.
        patch: side of a patch in pixels, a multiple of 2 ** len(widths).
        widths: channels of the encoder's blocks; the decoder mirrors them.
        latent: length of the latent code.
    """

    def __init__(self, channels: int, patch: int, widths: Sequence[int], latent: int) -> None:
        super().__init__()
        side = patch // 2 ** len(widths)
        self.latent = latent
        self.bottom = (widths[-1], side, side)
        self.encoder = Encoder(channels, widths)
        self.mean = nn.Linear(widths[-1] * side * side, latent)
        self.log_variance = nn.Linear(widths[-1] * side * side, latent)
        self.expand = nn.Linear(latent, widths[-1] * side * side)
        upwards = [*reversed(widths), widths[0]]
        blocks: list[nn.Module] = []
        for before, after in pairwise(upwards):
            blocks += [
                nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(),
            ]
        self.decoder = nn.Sequential(*blocks, nn.Conv2d(widths[0], channels, 3, padding=1), nn.Tanh())

    def encode(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of the code, (patch, latent) each."""
        code = self.encoder(patches).flatten(1)
        return self.mean(code), self.log_variance(code)

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Patches in -1..1 from codes (patch, latent)."""
        return self.decoder(self.expand(code).unflatten(1, self.bottom))

    def forward(self, patches: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruction, mean and log-variance; `noise` (patch, latent) is standard normal."""
        mean, log_variance = self.encode(patches)
        return self.decode(mean + noise * torch.exp(0.5 * log_variance)), mean, log_variance


class Discriminator(nn.Module):
    """Real patch or not, from the statistics of a batch.

    Args:
        channels: image channels.
        patch: side of a patch in pixels, a multiple of 2 ** len(widths).
        widths: channels of the blocks.
        norm: `batch` is the paper's; the others are its ablations. `group` uses 32 groups, `instance` one group per
            channel, `running` is a usual batch norm that scores with running statistics.
    """

    def __init__(self, channels: int, patch: int, widths: Sequence[int], norm: Norm = "batch") -> None:
        super().__init__()
        side = patch // 2 ** len(widths)
        self.norm, self.patch = norm, patch
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in zip((channels, *widths), widths, strict=False)
        )
        self.norms = nn.ModuleList(self._norm(width) for width in widths)
        self.head = nn.Linear(widths[-1] * side * side, 1)

    def _norm(self, width: int) -> nn.Module:
        if self.norm == "group":
            return nn.GroupNorm(min(GROUPS, width), width, eps=EPSILON)
        if self.norm == "instance":
            return nn.GroupNorm(width, width, eps=EPSILON)
        return nn.BatchNorm2d(width, eps=EPSILON, track_running_stats=self.norm == "running")

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Logit of "real", (patch,). With norm `batch` the whole batch is one group, in training and in scoring."""
        return self.score(patches)[0]

    def score(
        self, patches: torch.Tensor, group_size: int | None = None
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Logits (patch,) with each `group_size` consecutive patches normalised by themselves.

        Also returns, with norm `batch` and a group size, per layer the groups' means and variances, (group, channel).
        """
        statistics: list[tuple[torch.Tensor, torch.Tensor]] = []
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            patches = convolution(patches)
            if self.norm == "batch" and group_size is not None:
                patches, mean, variance = grouped_batch_norm(patches, group_size, norm.weight, norm.bias, norm.eps)
                statistics.append((mean, variance))
            else:
                patches = norm(patches)
            patches = functional.leaky_relu(patches)
        return self.head(patches.flatten(1)).squeeze(1), statistics


def real_loss(logit: torch.Tensor) -> torch.Tensor:
    """BCE(D, 1): mean over patches of -log D."""
    return functional.binary_cross_entropy_with_logits(logit, torch.ones_like(logit))


def fake_loss(logit: torch.Tensor) -> torch.Tensor:
    """BCE(D, 0): mean over patches of -log(1 - D)."""
    return functional.binary_cross_entropy_with_logits(logit, torch.zeros_like(logit))


def kullback_leibler(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, variance) | N(0, 1)) in nats: sum over the latent code, mean over the batch."""
    return -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()


def ms_ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Multi-scale structural similarity of pictures in 0..1, (patch, channel, y, x) twice to (patch,).

    Wang et al. (2003) with a 7 px Gaussian window and no padding, mean over channels. As many of the five scales are
    used as the pictures have room for, their exponents scaled to the usual sum: 2 for patches of 16 px, 4 for 64 px.
    """
    side = min(first.shape[-2:])
    levels = max(1, min(len(SCALE_WEIGHTS), int(math.log2(max(side, WINDOW) / WINDOW)) + 1))
    exponents = [weight * sum(SCALE_WEIGHTS) / sum(SCALE_WEIGHTS[:levels]) for weight in SCALE_WEIGHTS[:levels]]
    product = torch.ones(first.shape[:2], dtype=first.dtype, device=first.device)
    for level, exponent in enumerate(exponents):
        if level:
            first, second = functional.avg_pool2d(first, 2), functional.avg_pool2d(second, 2)
        similarity, contrast = _similarity(first, second)
        # A power of a number near 0 has no usable gradient; below, the product counts as (almost) dissimilar.
        product = product * (similarity if level == levels - 1 else contrast).clamp_min(1e-4) ** exponent
    return product.mean(1)


def _similarity(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM and its contrast-structure factor, each averaged over the positions of the window: (patch, channel)."""
    channels = first.shape[1]
    offset = torch.arange(WINDOW, dtype=first.dtype, device=first.device) - WINDOW // 2
    gaussian = torch.exp(-(offset**2) / (2 * SIGMA**2))
    gaussian = gaussian / gaussian.sum()
    window = torch.outer(gaussian, gaussian).expand(channels, 1, WINDOW, WINDOW)

    def average(values: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(values, window, groups=channels)

    mean_1, mean_2 = average(first), average(second)
    variance_1, variance_2 = average(first**2) - mean_1**2, average(second**2) - mean_2**2
    covariance = average(first * second) - mean_1 * mean_2
    contrast = (2 * covariance + 0.03**2) / (variance_1 + variance_2 + 0.03**2)
    luminance = (2 * mean_1 * mean_2 + 0.01**2) / (mean_1**2 + mean_2**2 + 0.01**2)
    return (luminance * contrast).mean((2, 3)), contrast.mean((2, 3))


def reconstruction_error(patches: torch.Tensor, reconstruction: torch.Tensor, loss: ReconstructionLoss) -> torch.Tensor:
    """MSE of patches in -1..1 (mean over all entries), or 1 - MS-SSIM of the same in 0..1."""
    if loss == "mse":
        return functional.mse_loss(reconstruction, patches)
    return 1 - ms_ssim(reconstruction * 0.5 + 0.5, patches * 0.5 + 0.5).mean()


def generator_loss(
    patches: torch.Tensor,
    reconstruction: torch.Tensor,
    mean: torch.Tensor,
    log_variance: torch.Tensor,
    logit_reconstruction: torch.Tensor,
    logit_generation: torch.Tensor,
    *,
    kl_weight: float,
    reconstruction_weight: float,
    generation_weight: float,
    loss: ReconstructionLoss = "mse",
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of the VAE step and its parts: MSE + k_w KL + w_r BCE(D(x^), 1) + w_g BCE(D(G(z)), 1)."""
    error = reconstruction_error(patches, reconstruction, loss)
    vae = error + kl_weight * kullback_leibler(mean, log_variance)
    reconstruction_adversarial = real_loss(logit_reconstruction)
    generation_adversarial = real_loss(logit_generation)
    total = vae + reconstruction_weight * reconstruction_adversarial + generation_weight * generation_adversarial
    return total, {"vae": vae, "recon_adv": reconstruction_adversarial, "gen_adv": generation_adversarial}


def discriminator_loss(
    logit_real: torch.Tensor, logit_generation: torch.Tensor, logit_reconstruction: torch.Tensor, negatives: Negatives
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of the D step and its parts: 1/2 [BCE(D(x), 1) + 1/2 BCE(D(G(z)), 0) + 1/2 BCE(D(x^), 0)].

    The ablations with one kind of negatives give that kind the weight of both.
    """
    real, generation, reconstruction = (
        real_loss(logit_real),
        fake_loss(logit_generation),
        fake_loss(logit_reconstruction),
    )
    share = {"both": (0.5, 0.5), "generations": (1.0, 0.0), "reconstructions": (0.0, 1.0)}[negatives]
    total = 0.5 * (real + share[0] * generation + share[1] * reconstruction)
    return total, {"d_real": real, "d_gen": generation, "d_recon": reconstruction}
