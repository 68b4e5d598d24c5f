"""Two small keyword spotters for (T, 10) cepstra: a recurrent one, and one of separable convolutions."""

import torch
from torch import nn

__all__ = ["DSCNN", "GRUClassifier"]


class GRUClassifier(nn.Module):
    """A GRU over pairs of frames, whose mean output is classified.

    `forward(cepstra)` takes (B, T, features) and returns scores (B, classes); an odd last frame is left out.
    """

    def __init__(self, num_features: int, num_classes: int, width: int = 96) -> None:
        super().__init__()
        # two frames at once: half the sequential steps, as the strided first layer of DeepSpeech does it
        self.gru = nn.GRU(2 * num_features, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, cepstra: torch.Tensor) -> torch.Tensor:
        batch, frames, num_features = cepstra.shape
        pairs = cepstra[:, : frames // 2 * 2].reshape(batch, -1, 2 * num_features)
        output, _ = self.gru(pairs.transpose(0, 1))
        scores: torch.Tensor = self.head(output.mean(0))
        return scores


class DSCNN(nn.Module):
    """The smallest DS-CNN of Zhang et al. 2017 ("Hello Edge"): one convolution, four depthwise separable ones, 64 wide.

    `forward(cepstra)` takes (B, T, features) and returns scores (B, classes).
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, width, (10, 4), stride=2, padding=(5, 1), bias=False),
            *_norm_relu(width),
        ]
        for _ in range(4):
            layers += [nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), *_norm_relu(width)]
            layers += [nn.Conv2d(width, width, 1, bias=False), *_norm_relu(width)]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

    def forward(self, cepstra: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(cepstra[:, None])
        return scores


def _norm_relu(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
