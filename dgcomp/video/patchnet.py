"""PatchNet: where did this box go, answered by 358 parameters and 40 million multiply-adds.

The object's image is cut into 8 x 8 patches, each patch is looked for in a window around the last position, and what
the patches found is put together as a pyramid of parts: 64 patches, 16 parts of 2 x 2 patches, 4, 1. Every part may
shift a little against its whole, which becomes the change of the box's sides.

Mao et al., "PatchNet: short-range template matching for efficient video processing", arXiv 2103.07371; behaviour as in
the authors' code, whose released weights `PatchNet.from_weights` reads. A part joins only its own four children, so
the published 5 x 5 convolutions are zero almost everywhere; here they are grouped 1 x 1 convolutions of the shifted
children, and `DensePatchNet` is the published form with the same outputs.

Shapes: N = boxes; A = 7, the search range in cells of 8 pixels of the 64 x 64 template.
"""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "CELL",
    "PATCHES",
    "RESPONSE",
    "SEARCH_SIZE",
    "TEMPLATE_SIZE",
    "DensePatchNet",
    "Normalization",
    "PatchNet",
    "operation_count",
]

PATCHES = 8
"""Patches on each side of the template."""
CELL = 8
"""Pixels on each side of a patch; the step of the score map in template pixels."""
RESPONSE = 7
"""Cells on each side of the score map: shifts of -3 to 3 cells."""
TEMPLATE_SIZE = PATCHES * CELL
SEARCH_SIZE = TEMPLATE_SIZE - 1 + RESPONSE * CELL
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
SHIFT = 4  # pixels between two children of a part, in the map of their level

Normalization = Literal["box", "batch"]


class PatchNet(nn.Module):
    """Scores and box changes from a template and a search window; see the module's docstring.

    Parameters
    ----------
    normalization : "box" takes the contrast floor from each search window alone, so that a box's result does not
        depend on the others; "batch" takes it over the whole batch, as the authors' code does. Equal for one box.
    """

    def __init__(self, normalization: Normalization = "box") -> None:
        super().__init__()
        if normalization not in ("box", "batch"):
            raise ValueError(f'normalization must be "box" or "batch", got {normalization!r}')
        self.correlation = PatchCorrelation(normalization)
        self.conv2 = nn.Conv2d(64, 16, 1, groups=16, bias=False)
        self.conv3 = nn.Conv2d(16, 4, 1, groups=4, bias=False)
        self.conv4 = nn.Conv2d(4, 1, 1, bias=False)
        self.conv3reg = nn.Conv2d(64, 16, 1, groups=8, bias=False)
        self.conv4reg = nn.Conv2d(16, 4, 1, groups=2, bias=False)
        self.pool2, self.pool3 = OffsetPool(), OffsetPool()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights before training: a part is the mean of its children, its sides follow theirs by least squares."""
        for conv in (self.conv2, self.conv3, self.conv4):
            conv.weight.fill_(1 / 4)
        # The sides (min, max) of a part with children at 0 and 1, from the sides of the children, whose middle ones
        # are the same point: least squares over (min, middle, middle, max).
        design = torch.tensor([[1, 0], [0.5, 0.5], [0.5, 0.5], [0, 1]])
        solution = torch.linalg.solve(design.T @ design, design.T).view(2, 2, 2) / 4  # [side, child, child's side]
        for conv in (self.conv3reg, self.conv4reg):
            weight = conv.weight.view(-1, 2, 2, 2, 2, 2)  # [part, axis, side, child's y, child's x, child's side]
            for y, x in CORNERS:
                weight[:, 0, :, y, x] = solution[:, y]
                weight[:, 1, :, y, x] = solution[:, x]

    @classmethod
    def from_weights(cls, path: str | Path, normalization: Normalization = "box") -> "PatchNet":
        """Read weights from an .npz file under the names and shapes of the authors' code.

        Raises ValueError where a name is missing, a shape differs, or a weight is not zero where no part joins a child.
        """
        with np.load(path) as file:
            arrays = {name: torch.from_numpy(file[name].astype(np.float32)) for name in file.files}
        dense = DensePatchNet(normalization)
        expected = {name: tuple(value.shape) for name, value in dense.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in arrays.items()}
        if found != expected:
            wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise ValueError(f"path {path} must hold PatchNet's weights; wrong or missing: {', '.join(wrong)}")
        dense.load_state_dict(arrays)
        return dense.to_sparse()

    def save_weights(self, path: str | Path) -> None:
        """Write weights so that `from_weights`, or the authors' code, reads them."""
        np.savez(path, **{name: value.numpy() for name, value in self.to_dense().state_dict().items()})

    def to_dense(self) -> "DensePatchNet":
        """The published form: 5 x 5 convolutions with zeros, same outputs."""
        dense = DensePatchNet(self.correlation.normalization)
        state = self.state_dict()
        for name, value in dense.state_dict().items():
            if name.startswith("conv"):
                value[_support(name)] = state[name].flatten()
            else:
                value.copy_(state[_sparse_name(name)])
        return dense

    def forward(self, search: Tensor, template: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, A, A] and offsets [N, 4, A, A] in cells, sides in the order y1, y2, x1, x2.

        Parameters
        ----------
        search, template : float images less the mean colour, [N, 3, 119, 119] and [N, 3, 64, 64].
        """
        responses = self.correlation(search, template)
        return _aggregate(
            responses,
            (
                lambda x: self.conv2(_children(x)),
                lambda x: self.conv3(_children(x)),
                lambda x: self.conv4(_children(x)),
            ),
            (lambda x: self.conv3reg(_child_sides(x)), lambda x: self.conv4reg(_child_sides(x))),
            (self.pool2, self.pool3),
        )


class DensePatchNet(nn.Module):
    """PatchNet as published, under the authors' parameter names: for exchange of weights, and as a reference."""

    def __init__(self, normalization: Normalization = "box") -> None:
        super().__init__()
        self.feature_layer = PatchCorrelation(normalization)
        self.conv2 = nn.Conv2d(64, 16, 5, bias=False)
        self.conv3 = nn.Conv2d(16, 4, 5, bias=False)
        self.conv4 = nn.Conv2d(4, 1, 5, bias=False)
        self.conv3reg = nn.Conv2d(64, 16, 5, bias=False)
        self.conv4reg = nn.Conv2d(16, 4, 5, bias=False)
        self.pool2, self.pool3 = OffsetPool(), OffsetPool()
        for conv in (self.conv2, self.conv3, self.conv4, self.conv3reg, self.conv4reg):
            nn.init.zeros_(conv.weight)

    def to_sparse(self) -> PatchNet:
        """The same network without its zeros; ValueError where a weight lies outside of the structure."""
        sparse = PatchNet(self.feature_layer.normalization)
        state = sparse.state_dict()
        for name, value in self.state_dict().items():
            if name.startswith("conv"):
                support = _support(name)
                outside = value.clone()
                outside[support] = 0
                if outside.any():
                    raise ValueError(f"{name} must be zero except where a part joins its children")
                state[name].copy_(value[support].view_as(state[name]))
            else:
                state[_sparse_name(name)].copy_(value)
        return sparse

    def forward(self, search: Tensor, template: Tensor) -> tuple[Tensor, Tensor]:
        """As `PatchNet.forward`."""
        return _aggregate(
            self.feature_layer(search, template),
            (self.conv2, self.conv3, self.conv4),
            (self.conv3reg, self.conv4reg),
            (self.pool2, self.pool3),
        )


class PatchCorrelation(nn.Module):
    """Every patch of the template, filtered in the Fourier domain, correlated with the search window."""

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.normalization = normalization
        self.freq_coeff = nn.Parameter(torch.ones(CELL, CELL // 2 + 1, 2))

    def forward(self, search: Tensor, template: Tensor) -> Tensor:
        """Responses [N, 64, 56, 56] of the patches in row order, at every second pixel."""
        n, channels = search.shape[:2]
        kernels = self._kernels(template)
        flat = search.reshape(1, n * channels, *search.shape[2:])
        responses = F.conv2d(flat, kernels.reshape(-1, channels, CELL, CELL), stride=2, groups=n)
        normalized: Tensor = responses.unflatten(1, (n, -1))[0] * self._gain(search)
        return normalized

    def _kernels(self, template: Tensor) -> Tensor:
        """Filtered patches [N, 64, 3, 8, 8]: real and imaginary parts scaled separately, no complex product."""
        grid = (PATCHES, CELL)
        patches = template.unflatten(3, grid).unflatten(2, grid)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        spectrum = torch.view_as_real(torch.fft.rfft2(patches, norm="ortho")) * self.freq_coeff
        kernels: Tensor = torch.fft.irfft2(torch.view_as_complex(spectrum), s=(CELL, CELL), norm="ortho")
        return kernels

    @torch.no_grad()
    def _gain(self, search: Tensor) -> Tensor:
        """0.01 over the local contrast [N, 1, 56, 56]; a tenth of the contrast's spread keeps flat regions quiet."""
        energy = F.avg_pool2d((search * search).sum(1, keepdim=True), CELL, 2) * CELL**2
        over = (0, 2, 3) if self.normalization == "batch" else (2, 3)
        # The authors' code takes the unbiased deviation over a map that it keeps once for each of the 64 patches.
        count = PATCHES**2 * math.prod(energy.shape[dim] for dim in over)
        floor = energy.std(over, correction=0, keepdim=True) * math.sqrt(count / (count - 1)) / 10
        return 1e-2 * (energy + floor + 1e-9).rsqrt()


class OffsetPool(nn.Module):
    """2 x 2 maximum of the scores; the offsets of the four are mixed by a softmax of their scores."""

    def __init__(self) -> None:
        super().__init__()
        side = torch.tensor([-0.5, 0.5])
        rows, columns = side.repeat_interleave(2), side.repeat(2)
        self.offset_addi = nn.Parameter(torch.stack((rows, rows, columns, columns))[..., None, None])
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, score: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores [N, C, h, w] and offsets [N, 4 C, h, w] of maps twice as large; `offset` None means zeros."""
        score_fold = _fold(score)
        share = F.softmax(score_fold.detach() * self.alpha, dim=2)[:, :, None]
        moved = self.offset_addi if offset is None else _fold(offset).unflatten(1, (-1, 4)) + self.offset_addi
        return score_fold.amax(2), (share * moved).sum(3).flatten(1, 2)


def _fold(x: Tensor) -> Tensor:
    """[N, C, 2 h, 2 w] to [N, C, 4, h, w], the four of a square in row order; an odd last row or column is left out."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    return torch.stack([x[:, :, y:height:2, c:width:2] for y, c in CORNERS], 2)


def _aggregate(responses: Tensor, scorers: tuple, movers: tuple, pools: tuple) -> tuple[Tensor, Tensor]:  # type: ignore[type-arg]
    score, offset = pools[0](scorers[0](responses), None)
    score, offset = pools[1](scorers[1](score), movers[0](offset))
    return scorers[2](score)[:, 0], movers[1](offset)


def _children(x: Tensor) -> Tensor:
    """[N, (2 p)^2, H, W] to [N, p^2 * 4, H - 4, W - 4]: the four children of each part, shifted to where they join."""
    parts = math.isqrt(x.shape[1]) // 2
    x = x.unflatten(1, (parts, 2, parts, 2))
    return torch.stack([_shifted(x[:, :, y, :, c], y, c) for y, c in CORNERS], 3).flatten(1, 3)


def _child_sides(x: Tensor) -> Tensor:
    """[N, (2 p)^2 * 4, H, W] to [N, p^2 * 2 * 4 * 2, ...]: for each part and axis, both sides of the four children."""
    parts = math.isqrt(x.shape[1] // 4) // 2
    x = x.unflatten(1, (parts, 2, parts, 2, 2, 2))
    return torch.stack([_shifted(x[:, :, y, :, c], y, c) for y, c in CORNERS], 4).flatten(1, 5)


def _shifted(x: Tensor, row: int, column: int) -> Tensor:
    height, width = x.shape[-2] - SHIFT, x.shape[-1] - SHIFT
    return x[..., SHIFT * row : SHIFT * row + height, SHIFT * column : SHIFT * column + width]


def _sparse_name(name: str) -> str:
    return name.replace("feature_layer", "correlation")


def _support(name: str) -> tuple[Tensor, ...]:
    """Indices into a published 5 x 5 weight, in the order in which the grouped 1 x 1 weight holds its values."""
    parts = {"conv2": 4, "conv3": 2, "conv4": 1, "conv3reg": 2, "conv4reg": 1}[name.removesuffix(".weight")]
    if "reg" not in name:
        i, j, y, x = torch.meshgrid(*(torch.arange(k) for k in (parts, parts, 2, 2)), indexing="ij")
        output, source = i * parts + j, (2 * i + y) * 2 * parts + 2 * j + x
    else:
        sizes = (parts, parts, 2, 2, 2, 2, 2)  # part, axis, side, child, child's side
        i, j, axis, side, y, x, child_side = torch.meshgrid(*(torch.arange(k) for k in sizes), indexing="ij")
        output = (i * parts + j) * 4 + 2 * axis + side
        source = ((2 * i + y) * 2 * parts + 2 * j + x) * 4 + 2 * axis + child_side
    return tuple(index.flatten() for index in (output, source, SHIFT * y, SHIFT * x))


def operation_count(*, is_sparse: bool = True) -> dict[str, int]:
    """Multiply-adds for one box and frame, by layer, counted as in the authors' scripts.

    Without sparsity the first pyramid level still runs in 16 groups, which is the published 58 million; the crops and
    the contrast normalization (a box filter, 0.1 million) are not counted there either.
    """
    patches, map2, map3 = PATCHES**2, 52**2, 22**2
    taps, side_taps = (4, 8) if is_sparse else (5 * 5, 5 * 5)
    return {
        "correlation": patches * 56**2 * 3 * CELL**2,
        "fourier": 2 * 3 * TEMPLATE_SIZE**2 * int(math.log2(TEMPLATE_SIZE)) ** 2,
        "conv2": 16 * map2 * (taps if is_sparse else 4 * taps),
        "pool2": 5 * 16 * map2 * 3,
        "conv3": 4 * map3 * (taps if is_sparse else 16 * taps),
        "conv3reg": 16 * map3 * (side_taps if is_sparse else 64 * side_taps),
        "pool3": 5 * 4 * map3 * 3,
        "conv4": RESPONSE**2 * (taps if is_sparse else 4 * taps),
        "conv4reg": 4 * RESPONSE**2 * (side_taps if is_sparse else 16 * side_taps),
    }
