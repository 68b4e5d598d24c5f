"""ATen operators of a training step as `Operation`s: which operand is the weight, what is summed over, what is sampled.

One function for each operator that holds multiplications; `HANDLERS` says which. Everything else that a step calls
(elementwise functions, normalization, the optimizer) is no matrix product and is only counted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dgcomp.hwmodel.operation import Kind, Operation, Phase, Precision
from dgcomp.hwmodel.profile.sampling import EXACT_BELOW, ConvGeometry, Sampler, patches

__all__ = ["HANDLERS", "WINOGRAD_MODULE", "Site"]

aten = torch.ops.aten

# dgcomp.sparse's layer; named, not imported, because down here only its products are seen.
WINOGRAD_MODULE = "WinogradReLUConv2d"


@dataclass(slots=True)
class Site:
    """Where an operator was called: its layer, direction, and what is known of the layer's weights."""

    layer: str
    phase: Phase
    """"forward", "recompute" or, for all of the backward pass, "backward"."""
    precision: Precision | None
    """What quant.autocast says; None: the operands' own types."""
    weight_storages: set[int]
    """Storages of parameters; in the backward pass those of the weight that the forward call used."""
    weight_shapes: set[tuple[int, ...]]
    """Shapes of the layer's own parameters and their transposes: a quantized weight is a new tensor of its shape."""
    sampler: Sampler
    module: str = ""
    """Class of the innermost module."""

    @property
    def is_backward(self) -> bool:
        """Whether a gradient is computed."""
        return self.phase == "backward"

    def holds_weight(self, tensor: Tensor) -> bool:
        """Whether an operand is (a view of, or a quantized copy of) a weight of this layer."""
        if tensor.untyped_storage().data_ptr() in self.weight_storages:
            return True
        return not self.is_backward and tuple(tensor.shape) in self.weight_shapes


def _precision(site: Site, phase: Phase, a_bits: int, x_bits: int) -> Precision:
    """Bits of both operands: quant.autocast quantizes weights and activations, gradients keep their own type."""
    if site.precision is None:
        return Precision(a_bits, x_bits)
    if phase == "input_grad":
        return replace(site.precision, activation_bits=x_bits, activation_scale_bits=None)
    if phase == "weight_grad":
        return replace(site.precision, weight_bits=a_bits, weight_scale_bits=None)
    return site.precision


def _operation(site: Site, kind: Kind, phase: Phase, a: Tensor, x: Tensor, **fields: Any) -> Operation:
    """Product of a [rows, inner] and x [columns, inner] transposed, with their samples."""
    inner = a.shape[1]
    a_density, _ = site.sampler.density(a, exact_below=EXACT_BELOW)
    x_density, x_error = site.sampler.density(x)
    x = site.sampler.rows(x)
    if phase == "weight_grad" and inner > site.sampler.inner:
        kept = site.sampler.indices(inner, site.sampler.inner).to(a.device)
        a, x = a[:, kept], x[:, kept]
    # Fields given by the caller win: a convolution's columns, for example, are patches that x does not hold.
    known: dict[str, Any] = {
        "rows": a.shape[0],
        "inner": inner,
        "a": a.detach() != 0,
        "x": x.detach() != 0,
        "a_density": a_density,
        "x_density": x_density,
        "x_density_error": x_error,
        "precision": _precision(site, phase, 8 * a.element_size(), 8 * x.element_size()),
    }
    return Operation(site.layer, kind, phase, **{**known, **fields})


def _product(site: Site, left: Tensor, right: Tensor, copies: int = 1) -> Operation:
    """left [n, m] @ right [m, p]: the weight becomes `a`, or in the gradient of a weight, the left factor."""
    if site.holds_weight(right):
        phase: Phase = "input_grad" if site.is_backward else site.phase
        a, x, is_weight = right.t(), left, True
    elif site.holds_weight(left):
        phase = "input_grad" if site.is_backward else site.phase
        a, x, is_weight = left, right.t(), True
    else:
        phase = site.phase
        if site.is_backward:
            phase = "weight_grad" if site.weight_storages else "input_grad"
        a, x, is_weight = left, right.t(), False
    kind: Kind = "linear" if is_weight or phase == "weight_grad" else "matmul"
    return _operation(site, kind, phase, a, x, columns=x.shape[0], copies=copies, a_is_weight=is_weight)


def _mm(site: Site, args: Sequence[Any], out: Any) -> list[Operation]:
    if site.module == WINOGRAD_MODULE:
        return []  # its transforms: constants of 0 and 1, additions in hardware, which the engine's model includes
    return [_product(site, args[0], args[1])]


def _addmm(site: Site, args: Sequence[Any], out: Any) -> list[Operation]:
    return [_product(site, args[1], args[2])]


def _bmm(site: Site, args: Sequence[Any], out: Any) -> list[Operation]:
    """A batch of products; one of them, drawn at random, is sampled for all."""
    left, right = args[-2:]
    copies = left.shape[0]
    if copies == 0:
        return []
    one = int(site.sampler.indices(copies, 1)[0]) if copies > 1 else 0
    # A batched weight has the whole batch's shape, so ask before a copy is cut out.
    shapes = {tuple(batch.shape[1:]) for batch in (left, right) if site.holds_weight(batch)}
    inner_site = replace(site, weight_shapes=shapes)
    operation = _product(inner_site, left[one], right[one], copies)
    if site.module == WINOGRAD_MODULE and copies == 16 and operation.a_is_weight:
        # [16, inner, rows] and [16, tiles, inner], whichever side the weight is on.
        weights, tiles = (right, left) if site.holds_weight(right) else (left.mT, right.mT)
        kept = site.sampler.indices(tiles.shape[1], site.sampler.inner).to(tiles.device)
        operation = replace(operation, winograd=(weights.detach() != 0, tiles.detach()[:, kept] != 0))
    return [operation]


def _mv(site: Site, args: Sequence[Any], out: Any) -> list[Operation]:
    return [_product(site, args[0], args[1][:, None])]


def _convolution(site: Site, args: Sequence[Any], out: Any) -> list[Operation]:
    images, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
    if transposed:
        return [_per_pixel(site, site.phase, images, weight, groups)]
    conv = ConvGeometry(stride, padding, dilation, groups, weight.ndim - 2)
    operation = _per_patch(site, site.phase, images, weight, conv, [out.shape[0], *out.shape[2:]])
    if conv.is_plain_3x3(list(weight.shape[2:])):
        image = _one_image(site, images, conv.padding)
        operation = replace(operation, filters=weight.detach().clone(), images=image)
    return [operation]


def _per_patch(
    site: Site, phase: Phase, images: Tensor, weight: Tensor, conv: ConvGeometry, counts: list[int]
) -> Operation:
    """The gathering form: the weight [outputs, channels * kernel] times the patch of every position of `counts`."""
    rows = weight.shape[0] // conv.groups
    positions = site.sampler.positions(counts, site.sampler.vectors)
    density, error = site.sampler.density(images)
    return _operation(
        site,
        "conv",
        phase,
        weight[:rows].reshape(rows, -1),
        patches(images, positions, list(weight.shape[2:]), conv),
        columns=math.prod(counts),
        copies=conv.groups,
        channels=weight.shape[1],
        a_is_weight=True,
        x_density=density,
        x_density_error=error,
    )


def _per_pixel(site: Site, phase: Phase, pixels: Tensor, weight: Tensor, groups: int) -> Operation:
    """The scattering form: every pixel [inputs] times the weight [inputs, outputs * kernel], added up where it lands.

    A transposed convolution is this, and so is the gradient of an input, with exactly the forward pass's products
    for every stride.
    """
    inputs = weight.shape[0] // groups
    a = weight[:inputs].reshape(inputs, -1).t()
    first_group = pixels[:, :inputs].movedim(1, -1)  # [N, *spatial, inputs]
    counts = first_group.shape[:-1]
    positions = site.sampler.positions(list(counts), site.sampler.vectors)
    x = first_group[tuple(position.to(pixels.device) for position in positions)]
    density, error = site.sampler.density(pixels)
    return _operation(
        site,
        "conv",
        phase,
        a,
        x,
        columns=math.prod(counts),
        copies=groups,
        a_is_weight=True,
        x_density=density,
        x_density_error=error,
    )


def _one_image(site: Site, images: Tensor, padding: Sequence[int]) -> Tensor:
    image = int(site.sampler.indices(images.shape[0], 1)[0])
    width = [side for pad in reversed(padding) for side in (pad, pad)]
    return torch.nn.functional.pad(images[image : image + 1].detach(), width)


def _convolution_backward(site: Site, args: Sequence[Any], out: Any) -> list[Operation]:
    grad, images, weight, _, stride, padding, dilation, transposed, _, groups, mask = args[:11]
    operations = []
    conv = ConvGeometry(stride, padding, dilation, groups, weight.ndim - 2)
    if mask[0] and transposed:
        operations.append(_per_patch(site, "input_grad", grad, weight, conv, [images.shape[0], *images.shape[2:]]))
    elif mask[0]:
        operation = _per_pixel(site, "input_grad", grad, weight, groups)
        if conv.is_plain_3x3(list(weight.shape[2:])):
            flipped = weight.detach().flip(2, 3).transpose(0, 1).contiguous()
            image = _one_image(site, grad, [2 - pad for pad in conv.padding])
            operation = replace(operation, filters=flipped, images=image)
        operations.append(operation)
    if mask[1]:
        operations.append(_conv_weight_grad(site, images, grad, weight, conv, bool(transposed)))
    return operations


def _conv_weight_grad(
    site: Site, images: Tensor, grad: Tensor, weight: Tensor, conv: ConvGeometry, transposed: bool
) -> Operation:
    """Sum over all output positions of an output gradient times a patch; the positions are a sample."""
    pixels, source = (images, grad) if transposed else (grad, images)
    rows = weight.shape[0] // conv.groups
    counts = [pixels.shape[0], *pixels.shape[2:]]
    positions = site.sampler.positions(counts, min(site.sampler.inner, math.prod(counts)))
    at = tuple(position.to(pixels.device) for position in positions)
    a = pixels.detach()[:, :rows].movedim(1, -1)[at].t()
    x = patches(source, positions, list(weight.shape[2:]), conv).t()
    a_density, _ = site.sampler.density(pixels)
    x_density, x_error = site.sampler.density(source)
    return _operation(
        site,
        "conv",
        "weight_grad",
        a,
        x,
        inner=math.prod(counts),
        columns=weight.numel() // weight.shape[0],
        copies=conv.groups,
        a_density=a_density,
        x_density=x_density,
        x_density_error=x_error,
    )


def _shape_only(
    site: Site, kind: Kind, phase: Phase, like: Tensor, rows: int, inner: int, columns: int, copies: int = 1
) -> Operation:
    """A product whose operands are not seen here; `like` has their type."""
    precision = _precision(site, phase, 8 * like.element_size(), 8 * like.element_size())
    return Operation(site.layer, kind, phase, rows, inner, columns, copies, precision=precision)


def _attention(site: Site, args: Sequence[Any], out: Any) -> list[Operation]:
    """Scores = Q K^T and values = P V; the probabilities P are not seen, and dense."""
    query, key, value = args[:3]
    copies = math.prod(query.shape[:-2])
    length, width = query.shape[-2:]
    sources, value_width = value.shape[-2:]
    q, k = (tensor.reshape(-1, *tensor.shape[-2:])[0] for tensor in (query, key))
    scores = _operation(site, "attention", site.phase, k, q, columns=length, copies=copies)
    return [scores, _shape_only(site, "attention", site.phase, value, value_width, sources, length, copies)]


def _attention_backward(site: Site, args: Sequence[Any], out: Any) -> list[Operation]:
    """Scores again, then the gradients of values, probabilities, queries and keys: five products."""
    query, key, value = args[1:4]
    copies = math.prod(query.shape[:-2])
    length, width = query.shape[-2:]
    sources, value_width = value.shape[-2:]
    shapes = (
        ("recompute", sources, width, length),
        ("input_grad", value_width, length, sources),
        ("input_grad", sources, value_width, length),
        ("input_grad", width, sources, length),
        ("input_grad", width, length, sources),
    )
    return [
        _shape_only(site, "attention", phase, query, rows, inner, columns, copies)  # type: ignore[arg-type]
        for phase, rows, inner, columns in shapes
    ]


def _rnn_layer(site: Site, args: Sequence[Any], out: Any) -> list[Operation]:
    """oneDNN's fused LSTM layer: inputs times input weights, and hidden states times hidden weights."""
    steps, input_weight, hidden_weight = args[:3]
    columns = steps.shape[0] * steps.shape[1]
    hidden = out[0].reshape(columns, -1)
    return [
        _operation(
            site, "linear", site.phase, input_weight, steps.reshape(columns, -1), columns=columns, a_is_weight=True
        ),
        _operation(site, "linear", site.phase, hidden_weight, hidden, columns=columns, a_is_weight=True),
    ]


def _rnn_layer_backward(site: Site, args: Sequence[Any], out: Any) -> list[Operation]:
    steps, input_weight, hidden_weight = args[:3]
    columns = steps.shape[0] * steps.shape[1]
    operations = []
    for weight in (input_weight, hidden_weight):
        rows, inner = weight.shape
        operations.append(_shape_only(site, "linear", "input_grad", weight, inner, rows, columns))
        operations.append(_shape_only(site, "linear", "weight_grad", weight, rows, columns, inner))
    return operations


Handler = Callable[[Site, Sequence[Any], Any], list[Operation]]

HANDLERS: dict[Any, Handler] = {
    aten.mm: _mm,
    aten.addmm: _addmm,
    aten.bmm: _bmm,
    aten.baddbmm: _bmm,
    aten.mv: _mv,
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten.mkldnn_rnn_layer: _rnn_layer,
    aten.mkldnn_rnn_layer_backward: _rnn_layer_backward,
}
for _name in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"):
    if hasattr(aten, f"_scaled_dot_product_{_name}"):
        HANDLERS[getattr(aten, f"_scaled_dot_product_{_name}")] = _attention
        HANDLERS[getattr(aten, f"_scaled_dot_product_{_name}_backward")] = _attention_backward
