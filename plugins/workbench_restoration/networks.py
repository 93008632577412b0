"""The networks of the reconstruction-loss study: autoencoders, an expected-loss VAE and SRCNN.

Every autoencoder has `encode(image) -> code` and `decode(code) -> image`; images are float32 (sample, channel, y, x)
in 0..1, codes (sample, latent). Decoders end in a sigmoid, so that the luminance term of SSIM keeps its meaning.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

from torch import Tensor, nn
from workbench import InputError

__all__ = ["SRCNN", "Architecture", "Autoencoder", "ExpectedLossVAE", "build_autoencoder", "gaussian_divergence"]

Architecture = Literal["conv", "conv5_narrow", "conv5", "fully_connected"]
"""`conv`: 4x4 stride-2 convolutions 32-64-128 (for 32x32 images). `conv5`: 5x5 stride-2 convolutions 128-256-512, the
paper's network for 96x96 images as a public re-implementation of its section 3.2 has it; `conv5_narrow` the same with
32-64-128. `fully_connected`: pixels-512-code-512-pixels with tanh, for 32x32 grey (the paper's sizes are not known)."""

_FILTERS = {"conv": (32, 64, 128), "conv5_narrow": (32, 64, 128), "conv5": (128, 256, 512)}
_HIDDEN = 512


class Autoencoder(nn.Module):
    """An encoder and a decoder: image (sample, channel, y, x) in 0..1 to code (sample, latent) and back."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, image: Tensor) -> Tensor:
        """The code of an image, (sample, latent), without bound."""
        return self.encoder(image)

    def decode(self, code: Tensor) -> Tensor:
        """The image of a code, in 0..1."""
        return self.decoder(code)

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction."""
        return self.decode(self.encode(image))


class ExpectedLossVAE(Autoencoder):
    """An autoencoder whose encoder gives a Gaussian, q(z | x) = N(mean, diag exp(log_variance)).

    Trained on KL(q(z | x) || N(0, I)) + C E_q[loss(x, decode(z))] with any image loss: the Gibbs view
    p(x | z) ~ exp(-C loss) without its normaliser. `encode` gives the mean.
    """

    def distribution(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | x), each (sample, latent)."""
        mean, log_variance = self.encoder(image).chunk(2, dim=1)
        # exp of an untrained network's outlier would overflow and take the whole run with it.
        return mean, log_variance.clamp(-20, 20)

    def encode(self, image: Tensor) -> Tensor:
        """The mean of q(z | x), (sample, latent)."""
        return self.distribution(image)[0]


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_variance)) || N(0, I)) per sample in nats: (sample, latent) twice to (sample,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def build_autoencoder(
    architecture: Architecture, *, channels: int, height: int, width: int, code: int, variational: bool = False
) -> Autoencoder:
    """An untrained autoencoder (initialised from torch's global generator) for images of one size.

    Args:
        architecture: see `Architecture`.
        channels: of the images.
        height: of the images; a multiple of 8 for the convolutional networks.
        width: of the images, likewise.
        code: entries of the code.
        variational: build an `ExpectedLossVAE`, whose encoder gives a mean and a log variance.

    Raises:
        InputError: the sides are not multiples of 8.
    """
    width_of_head = 2 * code if variational else code
    if architecture == "fully_connected":
        pixels = channels * height * width
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, _HIDDEN), nn.Tanh(), nn.Linear(_HIDDEN, width_of_head))
        decoder = nn.Sequential(
            nn.Linear(code, _HIDDEN),
            nn.Tanh(),
            nn.Linear(_HIDDEN, pixels),
            nn.Sigmoid(),
            nn.Unflatten(1, (channels, height, width)),
        )
    else:
        encoder, decoder = _convolutional(architecture, channels, height, width, width_of_head, code)
    return (ExpectedLossVAE if variational else Autoencoder)(encoder, decoder)


def _convolutional(
    architecture: Architecture, channels: int, height: int, width: int, head: int, code: int
) -> tuple[nn.Module, nn.Module]:
    filters = _FILTERS[architecture]
    stride = 2 ** len(filters)
    if height % stride or width % stride:
        raise InputError(
            "data['image']",
            expected=f"sides that are multiples of {stride} for the {architecture!r} network",
            got=f"{height}x{width}",
            hint="Crop or resize the images.",
        )
    kernel = 4 if architecture == "conv" else 5
    down, up = {"kernel_size": kernel, "stride": 2}, {"kernel_size": kernel, "stride": 2}
    down["padding"] = up["padding"] = kernel // 2 if kernel % 2 else kernel // 2 - 1
    up["output_padding"] = kernel % 2
    grid = (filters[-1], height // stride, width // stride)
    widths = (channels, *filters)
    encoder = nn.Sequential()
    for before, after in itertools.pairwise(widths):
        encoder.extend([nn.Conv2d(before, after, **down), nn.ReLU()])
    encoder.extend([nn.Flatten(), nn.Linear(math.prod(grid), head)])
    decoder = nn.Sequential(nn.Linear(code, math.prod(grid)), nn.ReLU(), nn.Unflatten(1, grid))
    for before, after in itertools.pairwise(reversed(widths)):
        decoder.extend([nn.ConvTranspose2d(before, after, **up), nn.ReLU()])
    decoder[-1] = nn.Sigmoid()
    return encoder, decoder


class SRCNN(nn.Sequential):
    """SRCNN 9-1-5 (Dong et al. 2014): a bicubically enlarged Y image (sample, 1, y, x) to a sharper one, same size.

    64 and 32 channels, 8,129 parameters. Borders are replicated, so that the output has the input's size.
    """

    reach = 6
    """Pixels on each side that an output pixel looks at: 4 by the 9x9 and 2 by the 5x5 kernel."""

    def __init__(self, channels: int = 1) -> None:
        replicate = {"padding": "same", "padding_mode": "replicate"}
        super().__init__(
            nn.Conv2d(channels, 64, 9, **replicate),
            nn.ReLU(),
            nn.Conv2d(64, 32, 1),
            nn.ReLU(),
            nn.Conv2d(32, channels, 5, **replicate),
        )
