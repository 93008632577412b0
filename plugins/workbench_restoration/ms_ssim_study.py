"""Judging trained networks for `restoration.ms_ssim`: what is computed on held-out images and written, loss by loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from workbench import Model, Out
from workbench.toolkit import image_batches

from workbench_restoration import metrics
from workbench_restoration.comparison import (
    CRITERIA,
    METRICS,
    draw_pairs,
    excess_loss,
    image_metrics,
    linear_probe,
    probe_interval,
    ssim_image,
)
from workbench_restoration.networks import Autoencoder, ExpectedLossVAE
from workbench_restoration.reconstruction import Calibrated, ImageLoss, Trained, reconstruct
from workbench_restoration.subject import Subject

__all__ = ["Study", "codes", "restore", "textured_corner"]

BATCH = 64
PROBE_IMAGES = 10_000


@torch.no_grad()
def restore(network: nn.Module, picture: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a network makes of a batch: (restored, clean, code). Enlargements are clipped and rounded to 8 bits."""
    if isinstance(network, Autoencoder):
        restored, code = reconstruct(network, picture)
        return restored, picture, code
    return metrics.quantize(network(picture[:, :1])), picture[:, 1:], None


@torch.no_grad()
def codes(network: Autoencoder, image: Tensor, device: torch.device) -> np.ndarray:
    """(sample, latent) codes of images."""
    return torch.cat([network.encode(batch).cpu() for _, batch in image_batches(image, 256, device)]).double().numpy()


def textured_corner(image: Tensor, size: int) -> tuple[int, int]:
    """Upper left corner of the square of `size` pixels with the largest variance, on a grid of 4: (channel, y, x)."""
    grey = image.mean(0, keepdim=True).double()
    moments = functional.avg_pool2d(torch.stack([grey, grey.square()]), size, stride=4)[:, 0]
    variance = moments[1] - moments[0].square()
    row, column = divmod(int(variance.argmax()), variance.shape[1])
    return 4 * row, 4 * column


class Study:
    """The arrays of one run. `judge` takes one trained network at a time, `finish` writes what compares them.

    Args:
        params: of the method.
        settings: window, stabilisers and scales of the metrics.
        subject: the images.
        out: the run's `Out`.
    """

    def __init__(self, params: Any, settings: ImageLoss, subject: Subject, out: Out) -> None:
        self.params, self.settings, self.subject, self.out = params, settings, subject, out
        self.superres = params.task == "superres"
        self.border = params.factor if self.superres else 0
        self.clean = subject.test[:, 1:] if self.superres else subject.test
        count, channels, height, width = self.clean.shape
        self.losses, self.seeds = len(params.losses), params.repetitions
        self.values = np.zeros((self.losses, len(METRICS), count))
        self.means = np.zeros((self.losses, len(METRICS), self.seeds))
        self.shown = min(params.pictures, count)
        self.crops = self._crops(min(params.crop, height, width))
        self.gallery: dict[str, Tensor] = {"original": self._cut(self.clean[: self.shown])}
        self.pairs = draw_pairs(params.losses, count, params.pair_trials, out.rng("pairs"))
        self.paired: dict[str, Tensor] = {}
        label, test_label = subject.train_label, subject.test_label
        self.probing = label is not None and test_label is not None and len(np.unique(label)) > 1
        self.probe = np.full((self.losses, self.seeds), np.nan)
        self.rates = np.zeros((self.losses, self.seeds))
        self.calibration = np.full((2, self.losses, self.seeds), np.nan)
        self.search = np.full((self.losses, params.bisection_steps, 2), np.nan)
        self._declare(count, channels, height, width)

    def _declare(self, count: int, channels: int, height: int, width: int) -> None:
        params, out = self.params, self.out
        out.coordinate("loss", list(params.losses))
        out.coordinate("metric", list(METRICS))
        out.coordinate("seed", np.arange(self.seeds))
        out.coordinate("epoch", np.arange(1, params.epochs + 1))
        out.coordinate("rate", np.array(params.learning_rates))
        out.write("clean", self.clean)
        out.write("source_index", self.subject.test_index)
        shape = (self.losses, count, channels, height, width)
        self.restored = out.array("sr" if self.superres else "recon", shape)
        self.map = out.array("ssim_map", (self.losses, count, height, width))
        self.mean_error = out.array("mean_error", (self.losses, count, channels))
        self.train_loss = out.array("train_loss", (self.losses, params.epochs))
        self.validation_loss = out.array("validation_loss", (self.losses, params.epochs))
        self.candidate_loss = out.array("candidate_loss", (self.losses, len(params.learning_rates)))
        self.code = None if self.superres else out.array("code", (self.losses, count, params.code))
        self.generated = None
        if params.task == "vae":
            self.generated = out.array("generated", (self.losses, self.shown, channels, height, width))
        if self.superres:
            self._judge_bicubic(count)

    def judge(self, index: int, seed: int, trained: Trained, calibrated: Calibrated | None) -> None:
        """Measure the network of loss number `index`; of the first repetition keep pictures, codes and the network."""
        first, name, network = seed == 0, self.params.losses[index], trained.network
        value = np.zeros((len(METRICS), len(self.clean)))
        head, paired = [], []
        for region, picture in image_batches(self.subject.test, BATCH, self.out.device):
            restored, clean, code = restore(network, picture)
            value[:, region] = self._measure(restored, clean).cpu()
            if not first:
                continue
            self.restored[index, region] = restored.float()
            self.mean_error[index, region] = (restored - clean).mean((-2, -1)).float()
            maps = ssim_image(restored, clean, self.settings, border=self.border).float()
            self.map[index, region] = maps
            if self.code is not None and code is not None:
                self.code[index, region] = code.float()
            if region.start < self.shown:
                head.append((restored.cpu(), maps.cpu()))
            if self.pairs is not None:
                paired.append(restored.float().cpu())
        self.means[index, :, seed] = value.mean(1)
        self.rates[index, seed] = trained.rate
        if calibrated is not None:
            self.calibration[:, index, seed] = calibrated.weight, calibrated.divergence
        if self.probing and isinstance(network, Autoencoder):
            self._probe(index, seed, network)
        if not first:
            return
        self.values[index] = value
        self.train_loss[index] = np.array(trained.train_loss)
        self.validation_loss[index] = np.array(trained.validation_loss)
        self.candidate_loss[index] = np.array(trained.candidate_loss)
        self._keep_pictures(name, torch.cat([part[0] for part in head]), torch.cat([part[1] for part in head]))
        if self.pairs is not None and name in self.pairs.left + self.pairs.right:
            self.paired[name] = torch.cat(paired)[torch.from_numpy(self.pairs.sample)]
        if calibrated is not None:
            self.search[index, : len(calibrated.trace)] = calibrated.trace
        if self.generated is not None and isinstance(network, ExpectedLossVAE):
            # The same codes for every loss.
            latent = torch.randn(self.shown, self.params.code, generator=self.out.generator("generated"))
            with torch.no_grad():
                self.generated[index] = network.decode(latent.to(self.out.device, self.out.dtype)).float()
        self.out.model(self._model(network), name=f"network_{name}")

    def finish(self) -> None:
        """Write what needs all the networks."""
        out, losses = self.out, self.params.losses
        out.write("metric_value", self.values.astype(np.float32))
        out.write("metric_mean", self.means)
        out.coordinate("criterion", list(CRITERIA))
        out.write("excess_loss", excess_loss(self.values.mean(2)))
        out.write("learning_rate", self.rates)
        for name in ("psnr", "ssim"):
            out.write(name, self.values[:, METRICS.index(name)].ravel().astype(np.float32))
        out.write("trained_by", [name for name in losses for _ in range(len(self.clean))])
        out.coordinate("version", list(self.gallery))
        out.coordinate("picture", self.subject.test_index[: self.shown])
        out.write("gallery", torch.stack(list(self.gallery.values())).float())
        if self.params.task == "vae":
            out.coordinate("quantity", ["weight", "divergence"])
            out.write("weight", self.calibration[0])
            out.write("divergence", self.calibration[1])
            out.write("search", self.search)
        if self.probing and self.code is not None:
            out.write("probe_accuracy", self.probe)
            intervals = [probe_interval(row, len(self.clean)) for row in self.probe]
            out.write("probe_mean", np.array([interval.value for interval in intervals]))
            out.write("probe_error", np.array([(interval.upper - interval.lower) / 2 for interval in intervals]))
        if self.pairs is not None:
            self._write_pairs()

    def _model(self, network: nn.Module) -> Model:
        """The network with what builds it again from its stored state."""
        channels, height, width = self.clean.shape[1:]
        if self.superres:
            return Model(network, factory="srcnn")
        arguments = {
            "architecture": self.params.architecture,
            "channels": channels,
            "height": height,
            "width": width,
            "code": self.params.code,
            "variational": self.params.task == "vae",
        }
        shape = (channels, height, width)
        return Model(network, factory="autoencoder", factory_arguments=arguments, input_shape=shape)

    def _measure(self, restored: Tensor, clean: Tensor) -> Tensor:
        restored, clean = (metrics.crop_border(image, self.border) for image in (restored, clean))
        return image_metrics(restored, clean, self.settings)

    def _judge_bicubic(self, count: int) -> None:
        bicubic = metrics.quantize(self.subject.test[:, :1])
        self.out.write("bicubic", bicubic)
        value, maps = np.zeros((len(METRICS), count)), []
        for start in range(0, count, BATCH):
            region = slice(start, start + BATCH)
            value[:, region] = self._measure(bicubic[region], self.clean[region])
            if start < self.shown:
                maps.append(ssim_image(bicubic[region], self.clean[region], self.settings, border=self.border))
        self.out.write("bicubic_value", value.astype(np.float32))
        self._keep_pictures("bicubic", bicubic, torch.cat(maps))

    def _keep_pictures(self, name: str, restored: Tensor, maps: Tensor) -> None:
        self.gallery[name] = self._cut(restored[: self.shown])
        like = maps[: self.shown].unsqueeze(1).expand(-1, restored.shape[1], -1, -1)
        self.gallery[f"{name}: SSIM"] = self._cut(like).clamp(min=0).nan_to_num(0)

    def _crops(self, size: int) -> list[tuple[slice, slice]]:
        corners = [textured_corner(image, size) for image in self.clean[: self.shown]]
        return [(slice(top, top + size), slice(left, left + size)) for top, left in corners]

    def _cut(self, image: Tensor) -> Tensor:
        return torch.stack(
            [picture[:, rows, columns] for picture, (rows, columns) in zip(image.cpu(), self.crops, strict=True)]
        )

    def _probe(self, index: int, seed: int, network: Autoencoder) -> None:
        subject, device = self.subject, self.out.device
        assert subject.train_label is not None
        assert subject.test_label is not None
        # Evenly spread, not the first: data may be sorted by class.
        kept = np.linspace(0, len(subject.train) - 1, min(len(subject.train), PROBE_IMAGES)).astype(np.int64)
        code = codes(network, subject.train[torch.from_numpy(kept)], device)
        test_code = codes(network, subject.test, device)
        self.probe[index, seed] = linear_probe(code, subject.train_label[kept], test_code, subject.test_label)

    def _write_pairs(self) -> None:
        pairs, out = self.pairs, self.out
        assert pairs is not None
        trial = range(len(pairs.sample))
        sides = (
            self.clean[torch.from_numpy(pairs.sample)].float(),
            torch.stack([self.paired[pairs.left[position]][position] for position in trial]),
            torch.stack([self.paired[pairs.right[position]][position] for position in trial]),
        )
        out.coordinate("side", ["original", "left", "right"])
        out.coordinate("trial_sample", pairs.sample, dim="trial")
        out.write("pair_sheet", torch.stack(sides, 1))
        out.write("pair_left", list(pairs.left))
        out.write("pair_right", list(pairs.right))
