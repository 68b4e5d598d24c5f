"""Two trained networks under the names of their checkpoints: a CIFAR ResNet and the MiniLM sentence encoder."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MiniLM", "ResNet", "pretrained_resnet20"]


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and the parameter-free shortcut of option A."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)
            )
        return F.relu(x + y)


class ResNet(nn.Module):
    """CIFAR ResNet of 6 n + 2 layers (He et al. 2016, section 4.2): n = 1 is ResNet-8, n = 3 is ResNet-20."""

    def __init__(self, n: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        sizes = (width, width, 2 * width, 4 * width)
        for i in range(3):
            blocks = [
                Block(sizes[i] if j == 0 else sizes[i + 1], sizes[i + 1], 2 if i and j == 0 else 1) for j in range(n)
            ]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def pretrained_resnet20(folder: Path) -> ResNet:
    model = ResNet(3)
    with np.load(folder / "models" / "resnet20-cifar10.npz") as file:
        model.load_state_dict({k: torch.from_numpy(file[k]) for k in file.files}, strict=False)
    return model.eval()


class MiniLM(nn.Module):
    """The six-layer BERT encoder of all-MiniLM-L6-v2 with mean pooling; names as in its checkpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from safetensors.torch import load_file

        self.words = {word: i for i, word in enumerate((folder / "vocab.txt").read_text().splitlines())}
        tensors = load_file(folder / "model.safetensors")
        self.tables = [tensors[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type")]
        self.layers = nn.ModuleDict()
        for name in sorted({n.rpartition(".")[0] for n in tensors if n.startswith("encoder.")}):
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            norm = nn.LayerNorm(weight.shape[0], eps=1e-12)
            layer = norm if weight.ndim == 1 else nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": bias})
            self.layers[name.removeprefix("encoder.layer.").replace(".", "_")] = layer
        self.first_norm = tensors["embeddings.LayerNorm.weight"], tensors["embeddings.LayerNorm.bias"]

    def forward(self, tokens: Tensor) -> Tensor:
        words, positions, types = self.tables
        x = F.layer_norm(words[tokens] + positions[: tokens.shape[1]] + types[0], (384,), *self.first_norm, eps=1e-12)
        for i in range(6):
            layer = {name.removeprefix(f"{i}_"): m for name, m in self.layers.items() if name.startswith(f"{i}_")}
            q, k, v = (
                layer[f"attention_self_{n}"](x).unflatten(-1, (12, 32)).transpose(1, 2)
                for n in ("query", "key", "value")
            )
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = layer["attention_output_LayerNorm"](x + layer["attention_output_dense"](mixed))
            hidden = layer["output_dense"](F.gelu(layer["intermediate_dense"](x)))
            x = layer["output_LayerNorm"](x + hidden)
        return F.normalize(x.mean(1), dim=-1)

    def tokenize(self, text: str) -> list[int]:
        """Lower case, accents stripped, punctuation split off, then the longest known piece first."""
        plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        tokens = [self.words["[CLS]"]]
        for word in re.findall(r"\w+|[^\w\s]", plain.replace("_", " _ ")):
            tokens += self._pieces(word)
        return [*tokens[:255], self.words["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in self.words), None)
            if end is None:
                return [self.words["[UNK]"]]
            pieces.append(self.words[prefix + word[start:end]])
            start = end
        return pieces
