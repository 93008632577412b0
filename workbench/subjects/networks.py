"""Networks that ship with the workbench, as pure `nn.Module`s: no weights, no normalisation (see `models.Model`).

Every activation is a module of its own and none works in place, so that hooks, attribution and quantization see each
place separately.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

__all__ = ["CifarResNet", "SmallCNN", "resnet20", "resnet32", "resnet44", "resnet56"]


class ConvBlock(nn.Module):
    """3x3 convolution, batch normalisation, ReLU: (n, c_in, h, w) -> (n, c_out, h / stride, w / stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three in turn."""
        y: Tensor = self.relu(self.bn(self.conv(x)))
        return y


class SmallCNN(nn.Module):
    """A small classifier for pictures from 8x8 upwards: (n, channels, h, w) -> logits (n, n_classes).

    Four conv-BN-ReLU blocks (widths w, 2w, 2w, 4w; the second and the fourth halve the resolution), global average
    pooling and the linear `head`. With `width=16` and 10 classes it has about 33,000 parameters.
    """

    def __init__(self, n_classes: int, channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.block1 = ConvBlock(channels, width)
        self.block2 = ConvBlock(width, 2 * width, stride=2)
        self.block3 = ConvBlock(2 * width, 2 * width)
        self.block4 = ConvBlock(2 * width, 4 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(4 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        x = self.block4(self.block3(self.block2(self.block1(x))))
        y: Tensor = self.head(self.flatten(self.pool(x)))
        return y


class PaddedShortcut(nn.Module):
    """Option A of He et al.: keep every second pixel, pad the new channels with zeros on both sides. No parameters."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.before = (channels_out - channels_in) // 2
        self.after = channels_out - channels_in - self.before

    def extra_repr(self) -> str:
        """Channels added before and after."""
        return f"before={self.before}, after={self.after}"

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c + before + after, ceil(h / 2), ceil(w / 2))."""
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: (n, c_in, h, w) -> (n, c_out, h / stride, w / stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        same = stride == 1 and channels_in == channels_out
        self.shortcut: nn.Module = nn.Identity() if same else PaddedShortcut(channels_in, channels_out)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The residual branch added to the shortcut."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class CifarResNet(nn.Module):
    """The 6n+2-layer residual network for CIFAR of He et al. (2015), arXiv:1512.03385, section 4.2, shortcut option A.

    Maps (n, 3, h, w) to logits (n, n_classes). State keys: `conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear`,
    those of the commonly published checkpoints.
    """

    def __init__(self, blocks: int, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        y: Tensor = self.linear(self.flatten(self.pool(x)))
        return y


def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    stage = OrderedDict[str, nn.Module]()
    for i in range(blocks):
        stage[str(i)] = BasicBlock(channels_in if i == 0 else channels_out, channels_out, stride if i == 0 else 1)
    return nn.Sequential(stage)


def resnet20(n_classes: int = 10) -> CifarResNet:
    """0.27 M parameters."""
    return CifarResNet(3, n_classes)


def resnet32(n_classes: int = 10) -> CifarResNet:
    """0.46 M parameters."""
    return CifarResNet(5, n_classes)


def resnet44(n_classes: int = 10) -> CifarResNet:
    """0.66 M parameters."""
    return CifarResNet(7, n_classes)


def resnet56(n_classes: int = 10) -> CifarResNet:
    """0.85 M parameters."""
    return CifarResNet(9, n_classes)
