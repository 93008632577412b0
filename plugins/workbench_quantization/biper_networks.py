"""Networks that binarise well, as in the BiPer code: Hardtanh instead of ReLU, shortcuts that keep real values flowing.

They are plain full-precision networks; `quantization.biper` makes their inner convolutions binary. Shortcuts have no weights:
where the resolution falls they average 2x2 pixels and pad new channels with zeros on both sides.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class AveragedShortcut(nn.Module):
    """(n, c, h, w) -> (n, c + 2 * padding, h / 2, w / 2): mean over 2x2 pixels, zeros for the new channels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.padding = (channels_out - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """The reduced input."""
        return F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, self.padding, self.padding))


class BinaryBlock(nn.Module):
    """Two 3x3 convolutions; a shortcut around each of them (`dense`, ResNet-20) or one around both (ResNet-18)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, dense: bool) -> None:
        super().__init__()
        self.dense = dense
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.activation1 = nn.Hardtanh()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.activation2 = nn.Hardtanh()
        same = stride == 1 and channels_in == channels_out
        self.shortcut: nn.Module = nn.Identity() if same else AveragedShortcut(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, h / stride, w / stride)."""
        shortcut = self.shortcut(x)
        y = self.bn1(self.conv1(x))
        y = self.activation1(y + shortcut if self.dense else y)
        out: Tensor = self.activation2(self.bn2(self.conv2(y)) + (y if self.dense else shortcut))
        return out


class BinaryResNet(nn.Module):
    """Residual network whose first convolution and classifier are meant to stay real; batch norm before the classifier."""

    def __init__(self, widths: tuple[int, ...], blocks: int, n_classes: int, channels: int, dense: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.activation: nn.Module = nn.Hardtanh() if dense else nn.Identity()
        stages = []
        for stage, width in enumerate(widths):
            before = widths[max(stage - 1, 0)]
            stride = 1 if stage == 0 else 2
            first = BinaryBlock(before, width, stride, dense)
            stages.append(nn.Sequential(first, *(BinaryBlock(width, width, 1, dense) for _ in range(blocks - 1))))
        self.stages = nn.Sequential(*stages)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.bn2 = nn.BatchNorm1d(widths[-1])
        self.linear = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        x = self.stages(self.activation(self.bn1(self.conv1(x))))
        logit: Tensor = self.linear(self.bn2(self.flatten(self.pool(x))))
        return logit


class BinaryVgg(nn.Module):
    """A stem convolution and a chain of 3x3 convolutions, those named in `pooled` followed by a 2x2 maximum before batch norm."""

    def __init__(
        self, stem: int, widths: tuple[int, ...], pooled: tuple[int, ...], n_classes: int, channels: int, side: int
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = [
            nn.Conv2d(channels, stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.Hardtanh(),
        ]
        before = stem
        for place, width in enumerate(widths):
            parts.append(nn.Conv2d(before, width, 3, padding=1, bias=False))
            parts += [nn.MaxPool2d(2)] if place in pooled else []
            parts += [nn.BatchNorm2d(width), nn.Hardtanh()]
            before = width
        self.features = nn.Sequential(*parts)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(before * (side // 2 ** len(pooled)) ** 2, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        logit: Tensor = self.classifier(self.flatten(self.features(x)))
        return logit


def binary_resnet20(n_classes: int = 10, channels: int = 3) -> nn.Module:
    """18 inner convolutions of 16, 32 and 64 channels with a shortcut around each; 0.27 M parameters."""
    return BinaryResNet((16, 32, 64), 3, n_classes, channels, dense=True)


def binary_resnet18(n_classes: int = 10, channels: int = 3) -> nn.Module:
    """16 inner convolutions of 64 to 512 channels; 11.0 M parameters."""
    return BinaryResNet((64, 128, 256, 512), 2, n_classes, channels, dense=False)


def binary_vgg_small(n_classes: int = 10, channels: int = 3) -> nn.Module:
    """Five inner convolutions of 128 to 512 channels, for 32x32 pictures; 4.7 M parameters."""
    return BinaryVgg(128, (128, 256, 256, 512, 512), (0, 2, 4), n_classes, channels, side=32)


def binary_digits(n_classes: int = 10, channels: int = 1) -> nn.Module:
    """A stem of 16 channels and two inner convolutions of 32, for 8x8 pictures."""
    return BinaryVgg(16, (32, 32), (0, 1), n_classes, channels, side=8)
