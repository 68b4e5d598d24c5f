"""A convolutional network on regions of a video's frames, with the rest of the picture remembered.

A region that is cut out of a frame has borders of zeros where the picture went on, in every layer; a network with a
large receptive field then sees something else than in the whole frame. Here every layer computes its part of the
region only, but reads around it what was last computed there, in the last whole frame or in another region since. With
a camera that stands still this is what the whole frame would have given, to the extent that the rest stood still too.
Means over the whole picture, as in squeeze-and-excitation, stay those of the last whole frame.

A layer of stride s computes the positions from floor(x1 / s) to ceil(x2 / s): multiply-adds are counted layer by layer.
"""

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dgcomp.video.tfjs import OPERATORS, GraphModel, Node, convolution, convolve, padding_of, steps_of, upsample

__all__ = ["RegionNetwork"]

Window = tuple[int, int, int, int]
"""x1, y1, x2, y2 in positions of a layer."""


class RegionNetwork:
    """A `GraphModel` of one image at a time; `whole` first, then `update` for regions of the next images.

    Sides of the images must be multiples of the network's largest stride. Of each layer that another one reads around
    a position, the last values stay in memory.
    """

    def __init__(self, model: GraphModel) -> None:
        self._model = model
        self._strides = _strides(model)
        self._macs_per_position = _macs_per_position(model, self._strides)
        self._nodes = [node for node in model.nodes if node.name in self._strides]
        read_around = {node.inputs[0] for node in self._nodes if self._reads_around(node)}
        self._kept = read_around | set(model.outputs)
        self._maps: dict[str, Tensor] = {}
        """Last values of the layers in `_kept`, and of everything that has no place in the picture."""
        self._shape: tuple[int, ...] | None = None

    def whole(self, image: Tensor) -> tuple[Tensor, ...]:
        """Outputs for an image [1, C, H, W]."""
        values = self._model.values(image)
        self._shape = tuple(image.shape)
        self._maps = {
            name: value.clone() if name in self._strides else value
            for name, value in values.items()
            if name in self._kept or name not in self._strides
        }
        return self._outputs()

    def update(self, image: Tensor, rectangles: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Outputs [1, C, h, w] for an image [1, C, H, W], computed in the rectangles [N, 4] and old elsewhere.

        Raises RuntimeError where there was no whole image of this size before.
        """
        if self._shape != tuple(image.shape):
            raise RuntimeError(f"whole must come first with an image of the shape {tuple(image.shape)}")
        pieces: dict[str, list[Tensor]] = {}
        for node in self._nodes:
            name = node.name
            windows = _windows(rectangles, self._strides[name], *image.shape[2:])
            if node.operator == "Placeholder":
                self._maps[name] = image
                pieces[name] = [_cut(image, window) for window in windows]
                continue
            pieces[name] = [self._piece(node, i, window, pieces) for i, window in enumerate(windows)]
            if name in self._kept:
                for (x1, y1, x2, y2), piece in zip(windows, pieces[name], strict=True):
                    self._maps[name][:, :, y1:y2, x1:x2] = piece
        return self._outputs()

    def macs(self, rectangles: NDArray[np.int64], height: int, width: int) -> int:
        """Multiply-adds of the convolutions of an `update`."""
        total = 0
        for stride, macs in self._macs_per_position.items():
            windows = _windows(rectangles, stride, height, width)
            total += macs * sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in windows)
        return total

    def _outputs(self) -> tuple[Tensor, ...]:
        return tuple(self._maps[name] for name in self._model.outputs)

    def _reads_around(self, node: Node) -> bool:
        if OPERATORS.get(node.operator) is convolution:
            return self._model.constant(node.inputs[1]).shape[2:] != (1, 1) or steps_of(node)[0] != [1, 1]
        return node.operator == "ResizeBilinear"

    def _piece(self, node: Node, i: int, window: Window, pieces: dict[str, list[Tensor]]) -> Tensor:
        """A node's values in its window, the i-th."""
        if not self._reads_around(node):
            inputs = [pieces[name][i] if name in pieces else self._maps[name] for name in node.inputs]
            return OPERATORS[node.operator](node, *inputs)
        source, *others = (self._maps[name] for name in node.inputs)
        if node.operator == "ResizeBilinear":
            return _upsampled(node, source, window)
        return _convolved(node, source, window, *others)


def _strides(model: GraphModel) -> dict[str, int]:
    """Pixels from one position to the next of every node that has a place for each part of the picture."""
    strides: dict[str, int] = {}
    for node in model.nodes:
        sources = [strides[name] for name in node.inputs if name in strides]
        if node.operator == "Placeholder":
            strides[node.name] = 1
        elif not sources or node.operator == "Mean":
            continue
        elif OPERATORS[node.operator] is convolution:
            strides[node.name] = sources[0] * steps_of(node)[0][0]
        elif node.operator == "ResizeBilinear":
            strides[node.name] = sources[0] // 2
        else:
            strides[node.name] = sources[0]
    return strides


def _windows(rectangles: NDArray[np.int64], stride: int, height: int, width: int) -> list[Window]:
    """What a layer of this stride computes for rectangles in an image of this size."""
    low, high = rectangles[:, :2] // stride, -(-rectangles[:, 2:] // stride)
    high = np.minimum(high, np.array([width, height]) // stride)
    return [(x1, y1, x2, y2) for (x1, y1), (x2, y2) in zip(low.tolist(), high.tolist(), strict=True)]


def _macs_per_position(model: GraphModel, strides: dict[str, int]) -> dict[int, int]:
    """Multiply-adds of the convolutions of each stride for one of its positions."""
    macs: dict[int, int] = {}
    for node in model.nodes:
        if node.name in strides and OPERATORS.get(node.operator) is convolution:
            stride = strides[node.name]
            macs[stride] = macs.get(stride, 0) + model.constant(node.inputs[1]).numel()
    return macs


def _cut(x: Tensor, window: Window) -> Tensor:
    x1, y1, x2, y2 = window
    return x[:, :, y1:y2, x1:x2]


def _convolved(node: Node, x: Tensor, window: Window, filters: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution's outputs in the window; zeros are only where the picture ends."""
    x1, y1, x2, y2 = window
    left, _, top, _ = padding_of(node, x.shape[2:], filters.shape[2:])
    stride, dilation = steps_of(node)
    first_row, first_column = y1 * stride[0] - top, x1 * stride[1] - left
    end_row = (y2 - 1) * stride[0] - top + (filters.shape[2] - 1) * dilation[0] + 1
    end_column = (x2 - 1) * stride[1] - left + (filters.shape[3] - 1) * dilation[1] + 1
    height, width = x.shape[2:]
    inside = x[:, :, max(first_row, 0) : end_row, max(first_column, 0) : end_column]
    missing = (max(-first_column, 0), max(end_column - width, 0), max(-first_row, 0), max(end_row - height, 0))
    return convolve(node, F.pad(inside, missing) if any(missing) else inside, filters, bias)


def _upsampled(node: Node, x: Tensor, window: Window) -> Tensor:
    """Values of the twice as large picture in the window."""
    x1, y1, x2, y2 = window
    larger = upsample(node, x[:, :, y1 // 2 : (y2 - 1) // 2 + 2, x1 // 2 : (x2 - 1) // 2 + 2])
    return larger[:, :, y1 % 2 : y1 % 2 + y2 - y1, x1 % 2 : x1 % 2 + x2 - x1]
