"""The networks of Sparse-Winograd with any of the three convolutions that the paper compares.

The ResNet-18 variant follows the released ImageNet model. VGG-nagadomi and ConvPool-CNN-C are reconstructions from
their published layer lists; the paper's own CIFAR code was not released. The first convolution of each stays ordinary.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from dgcomp.sparse.winograd import WinogradReLUConv2d

__all__ = ["Convolution", "ResNet", "conv_unit", "convpool_cnn_c", "resnet18", "vgg", "vgg_nagadomi"]

Convolution = Literal["spatial", "winograd", "winograd-relu"]


def conv_unit(kind: Convolution, in_channels: int, out_channels: int) -> nn.Sequential:
    """Batch norm, ReLU and a 3x3 convolution; the ReLU moves into the convolution for "winograd-relu".

    "spatial" is pruned as in Han et al. 2015, "winograd" has Winograd-domain weights behind a spatial ReLU.
    """
    norm = nn.BatchNorm2d(in_channels)
    if kind == "spatial":
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        return nn.Sequential(norm, nn.ReLU(), conv)
    if kind == "winograd":
        return nn.Sequential(norm, nn.ReLU(), WinogradReLUConv2d(in_channels, out_channels, relu=False))
    if kind == "winograd-relu":
        return nn.Sequential(norm, WinogradReLUConv2d(in_channels, out_channels))
    raise ValueError(f"kind must be 'spatial', 'winograd' or 'winograd-relu', got {kind!r}")


def vgg(
    kind: Convolution, stages: tuple[tuple[int, ...], ...], *, in_channels: int = 3, num_classes: int = 10
) -> nn.Sequential:
    """A VGG-style network: stages of convolutions of the given widths, a pool after each, global pool, classifier."""
    first, *_ = widths = [width for stage in stages for width in stage]
    layers: list[nn.Module] = [nn.Conv2d(in_channels, first, 3, padding=1)]
    before, position = first, 0
    for stage in stages:
        for width in stage:
            if position > 0:
                layers.append(conv_unit(kind, before, width))
            before, position = width, position + 1
        layers.append(nn.MaxPool2d(2))
    head = [nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(widths[-1], num_classes))


def vgg_nagadomi(kind: Convolution = "winograd-relu", *, num_classes: int = 10) -> nn.Sequential:
    """VGG-nagadomi for 32x32 images: 64-64, 128-128, four times 256, two hidden layers of 1024 with dropout."""
    body = list(vgg(kind, ((64, 64), (128, 128), (256, 256, 256, 256))))[:-3]
    hidden = [nn.Flatten(), nn.Linear(256 * 4 * 4, 1024), nn.ReLU(), nn.Dropout(), nn.Linear(1024, 1024), nn.ReLU()]
    return nn.Sequential(*body, *hidden, nn.Dropout(), nn.Linear(1024, num_classes))


def convpool_cnn_c(kind: Convolution = "winograd-relu", *, num_classes: int = 100) -> nn.Sequential:
    """ConvPool-CNN-C (Springenberg et al. 2015) for 32x32 images: three of 96, three of 192, then 3x3 and two 1x1."""
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 3, padding=1), conv_unit(kind, 96, 96), conv_unit(kind, 96, 96)]
    layers += [nn.MaxPool2d(3, 2, padding=1), conv_unit(kind, 96, 192), conv_unit(kind, 192, 192)]
    layers += [conv_unit(kind, 192, 192), nn.MaxPool2d(3, 2, padding=1), conv_unit(kind, 192, 192)]
    for width in (192, num_classes):
        layers += [nn.BatchNorm2d(192), nn.ReLU(), nn.Conv2d(192, width, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _Block(nn.Module):
    """Two convolutions and a shortcut that has its own ReLU, as the ReLU of the main path lies in the convolution."""

    def __init__(self, kind: Convolution, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_unit(kind, in_channels, out_channels), conv_unit(kind, out_channels, out_channels)
        )
        self.shortcut = nn.Sequential(nn.ReLU())
        if in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.body(x), self.shortcut(x))


class ResNet(nn.Module):
    """A residual network of stride-1 convolutions: a stage has two blocks, and `pools` names the stages after which
    a 3x3 max-pool of stride 2 stands in for the strided convolutions that Winograd cannot do."""

    def __init__(
        self, kind: Convolution, widths: tuple[int, ...], pools: tuple[int, ...], stem: nn.Module, num_classes: int
    ) -> None:
        super().__init__()
        self.stem = stem
        layers: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            layers += [_Block(kind, before, width), _Block(kind, width, width)]
            if stage in pools:
                layers.append(nn.MaxPool2d(3, 2, padding=1))
            before = width
        self.stages = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Sequential(nn.Dropout(0.15), nn.Linear(before, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.head(self.stages(self.stem(x))))
        return logits


def resnet18(kind: Convolution = "winograd-relu", *, num_classes: int = 1000) -> ResNet:
    """The released ImageNet variant: 16 Winograd layers at 56, 28, 14 and 14 pixels for 224-pixel images."""
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.MaxPool2d(3, 2, padding=1))
    return ResNet(kind, (64, 128, 256, 512), (0, 1), stem, num_classes)
