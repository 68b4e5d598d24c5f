"""A small network in the manner of VGG (Simonyan & Zisserman 2015): convolutions, pooling, wide linear layers."""

from torch import nn

__all__ = ["vgg"]


def vgg(image_size: int, in_channels: int = 3, num_classes: int = 10) -> nn.Module:
    """Three stages of one 3 x 3 convolution with batch norm and a halving max pool, then two linear layers.

    Takes images of `image_size` x `image_size`, at least 8. At 28 x 28 and one channel it has 98 thousand parameters,
    three quarters of them in the first linear layer: as in VGG, most of the bytes are in layers that compute little.
    """
    if image_size < 8:
        raise ValueError(f"image_size must be at least 8, which three poolings leave one pixel of, got {image_size}")
    layers: list[nn.Module] = []
    channels = in_channels
    for stage_channels in (16, 32, 64):
        layers += [
            nn.Conv2d(channels, stage_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(stage_channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
        channels = stage_channels
    pixels = (image_size // 8) ** 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(channels * pixels, 128), nn.ReLU(inplace=True), nn.Linear(128, num_classes)
    )
