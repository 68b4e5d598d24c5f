"""The small residual networks for 32 x 32 images of He et al. 2016, section 4.2: 6n + 2 layers."""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["resnet"]


def resnet(depth: int, in_channels: int = 3, num_classes: int = 10) -> nn.Module:
    """ResNet of `depth` = 6n + 2 layers: stages of 16, 32 and 64 channels with n blocks each, batch norm.

    Shortcuts have no parameters (the paper's option A). ResNet-8 has 75 thousand parameters, ResNet-20 270 thousand.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
    blocks: list[nn.Module] = []
    channels = 16
    for stage_channels in (16, 32, 64):
        for index in range(depth // 6):
            stride = 2 if stage_channels > 16 and index == 0 else 1
            blocks.append(_Block(channels, stage_channels, stride))
            channels = stage_channels
    model = nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        if self.stride > 1 or self.new_channels:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(y + x, inplace=True)
