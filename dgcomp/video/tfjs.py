"""Run a TensorFlow.js graph model in torch: what `CenterNet.from_tfjs` needs and no more.

A graph model is a JSON file (`modelTopology`: nodes in topological order; `weightsManifest`: names, shapes, types) and
binary shards with the weights, float16 or float32. Inference graphs that TensorFlow has folded and fused use a dozen
operators; a node of any other kind is an error that names it. Data run as [N, C, H, W] inside.

Format: the interface `ModelJSON` of TensorFlow.js; operators: TensorFlow's `NodeDef` as JSON.
"""

import base64
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GraphModel"]


@dataclass(frozen=True)
class Node:
    name: str
    operator: str
    inputs: tuple[str, ...]
    attributes: dict[str, Any]


class GraphModel(nn.Module):
    """The part of a graph model that leads from its input to the nodes `outputs`; weights are buffers.

    Parameters
    ----------
    path : the model's JSON file; the weight shards lie beside it.
    outputs : names of the nodes whose values `forward` returns.

    Raises ValueError for a file that is no graph model and for an operator outside of the list in this module.
    """

    def __init__(self, path: str | Path, outputs: tuple[str, ...]) -> None:
        super().__init__()
        nodes, weights = _read(Path(path))
        self.outputs = outputs
        self.nodes = [nodes[name] for name in _needed(nodes, outputs)]
        unknown = sorted({node.operator for node in self.nodes} - set(OPERATORS) - {"Const", "Placeholder"})
        if unknown:
            known = ", ".join(sorted(OPERATORS))
            raise ValueError(f"path {path} has operators {', '.join(unknown)} that this reader lacks; it has {known}")
        self._buffer_of = {node.name: f"w{i}" for i, node in enumerate(self.nodes) if node.operator == "Const"}
        filters = {node.inputs[1]: node for node in self.nodes if OPERATORS.get(node.operator) is convolution}
        for name, buffer in self._buffer_of.items():
            value = weights[name]
            self.register_buffer(buffer, _as_filters(filters[name], value) if name in filters else value)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Values of the outputs for `images` [N, C, H, W]."""
        values = self.values(images)
        return tuple(values[name] for name in self.outputs)

    def values(self, images: Tensor) -> dict[str, Tensor]:
        """Values of all nodes for `images` [N, C, H, W], constants too."""
        values: dict[str, Tensor] = {}
        for node in self.nodes:
            if node.operator == "Placeholder":
                values[node.name] = images
            elif node.operator == "Const":
                values[node.name] = self.constant(node.name)
            else:
                values[node.name] = OPERATORS[node.operator](node, *(values[name] for name in node.inputs))
        return values

    def constant(self, name: str) -> Tensor:
        """Weight, bias or number of a node of kind Const; filters are in torch's order."""
        return self.get_buffer(self._buffer_of[name])

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds of all convolutions for one image of `height` x `width`, by running on the meta device."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            _on_meta(self)(torch.empty(1, 3, height, width, device="meta"))
        return int(counter.get_total_flops()) // 2


def _on_meta(model: GraphModel) -> GraphModel:
    """A copy without values: only shapes are computed with it."""
    import copy

    return copy.deepcopy(model).to("meta")


def _needed(nodes: dict[str, Node], outputs: tuple[str, ...]) -> list[str]:
    """Names of all nodes that `outputs` depend on, each after its inputs."""
    missing = [name for name in outputs if name not in nodes]
    if missing:
        raise ValueError(f"outputs {', '.join(missing)} are no nodes of the model")
    order: dict[str, None] = {}
    stack = [(name, False) for name in outputs]
    while stack:
        name, is_ready = stack.pop()
        if is_ready:
            order[name] = None
        elif name not in order:
            stack.append((name, True))
            stack.extend((source, False) for source in nodes[name].inputs)
    return list(order)


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Node], dict[str, Tensor]]:
    document = json.loads(path.read_text())
    if document.get("format") != "graph-model":
        raise ValueError(f"path {path} must be a TensorFlow.js graph model, got format {document.get('format')!r}")
    nodes = {}
    for entry in document["modelTopology"]["node"]:
        inputs = tuple(name.split(":")[0] for name in entry.get("input", ()) if not name.startswith("^"))
        attributes = {key: _attribute(value) for key, value in entry.get("attr", {}).items()}
        nodes[entry["name"]] = Node(entry["name"], entry["op"], inputs, attributes)
    weights: dict[str, Tensor] = {}
    for group in document["weightsManifest"]:
        data = b"".join((path.parent / shard).read_bytes() for shard in group["paths"])
        weights |= _weights(group["weights"], data)
    return nodes, weights


def _attribute(value: dict[str, Any]) -> Any:
    """One `AttrValue`: a number, flag, text, type name, or list of them."""
    if "list" in value:
        return [_attribute({kind: item}) for kind, items in value["list"].items() for item in items]
    if "s" in value:
        return base64.b64decode(value["s"]).decode()
    if "i" in value:
        return int(value["i"])
    return next(iter(value.values()), None)


def _weights(entries: list[dict[str, Any]], data: bytes) -> dict[str, Tensor]:
    weights, offset = {}, 0
    for entry in entries:
        stored = np.dtype(entry.get("quantization", entry)["dtype"])
        count = math.prod(entry["shape"])
        values = np.frombuffer(data, stored, count, offset).astype(entry["dtype"]).reshape(entry["shape"])
        weights[entry["name"]] = torch.from_numpy(values.copy())
        offset += count * stored.itemsize
    return weights


# --- operators --------------------------------------------------------------------------------------------------------


def _as_filters(node: Node, weight: Tensor) -> Tensor:
    """A convolution's weight [height, width, inputs, outputs] in torch's order [outputs, inputs / groups, ...]."""
    if _is_depthwise(node):
        return weight.permute(2, 3, 0, 1).flatten(0, 1)[:, None].contiguous()
    return weight.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def _is_depthwise(node: Node) -> bool:
    return "Depthwise" in node.operator


def convolution(node: Node, x: Tensor, filters: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv2D, DepthwiseConv2dNative and their fused forms."""
    left, right, top, bottom = padding_of(node, x.shape[2:], filters.shape[2:])
    if (left, top) == (right, bottom):
        return convolve(node, x, filters, bias, (top, left))
    return convolve(node, F.pad(x, (left, right, top, bottom)), filters, bias)


def convolve(
    node: Node, x: Tensor, filters: Tensor, bias: Tensor | None = None, padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """A node's convolution with the padding [vertical, horizontal] given, and its activations."""
    stride, dilation = steps_of(node)
    groups = x.shape[1] if _is_depthwise(node) else 1
    y = F.conv2d(x, filters, bias, stride, padding, dilation, groups)
    for fused in node.attributes.get("fused_ops") or ():
        if fused != "BiasAdd":
            y = _ACTIVATIONS[fused](y)
    return y


def steps_of(node: Node) -> tuple[list[int], list[int]]:
    """Strides and dilations of a convolution, vertical and horizontal."""
    return node.attributes["strides"][1:3], node.attributes["dilations"][1:3]


def padding_of(node: Node, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Zeros to the left, right, top and bottom of a convolution's input of `size` [height, width].

    TensorFlow's "SAME": ceil(size / stride) outputs, an odd pixel of padding goes to the end.
    """
    if node.attributes["padding"] != "SAME":
        return [0, 0, 0, 0]
    padding: list[int] = []
    stride, dilation = steps_of(node)
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        padding = [total // 2, total - total // 2, *padding]
    return padding


def upsample(node: Node, x: Tensor, size: Tensor | None = None) -> Tensor:
    """Bilinear, twice as large, output pixel i at i / 2 of the input (no half-pixel centres), as TensorFlow 1 does.

    The target size in the graph is a constant for the size it was exported at; twice the input holds for every size.
    """
    for dim in (2, 3):
        last = x.narrow(dim, x.shape[dim] - 1, 1)
        between = (x + torch.cat((x.narrow(dim, 1, x.shape[dim] - 1), last), dim)) / 2
        x = torch.stack((x, between), dim + 1).flatten(dim, dim + 1)
    return x


def _activation(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda node, x: function(x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"Relu": F.relu, "Relu6": F.relu6, "Sigmoid": torch.sigmoid}

OPERATORS: dict[str, Callable[..., Tensor]] = {
    **{name: _activation(function) for name, function in _ACTIVATIONS.items()},
    "Identity": _activation(lambda x: x),
    "Add": lambda node, x, y: x + y,
    "Mul": lambda node, x, y: x * y,
    "Mean": lambda node, x, axes: x.mean((2, 3), keepdim=True),
    "ConcatV2": lambda node, *tensors: torch.cat(tensors[:-1], 1),
    "ResizeBilinear": upsample,
    "Conv2D": convolution,
    "_FusedConv2D": convolution,
    "DepthwiseConv2dNative": convolution,
    "FusedDepthwiseConv2dNative": convolution,
}
