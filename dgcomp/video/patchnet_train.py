"""Training of PatchNet: its loss, and a loop for one process (launch/train.py --task patchnet is the one for many)."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dgcomp.video.boxes import paired_iou
from dgcomp.video.patchnet import RESPONSE
from dgcomp.video.patchnet_pairs import Pairs, join_pairs
from dgcomp.video.patchnet_track import decode

__all__ = ["pair_ious", "patchnet_loss", "train_patchnet"]

MARGIN = 2.0  # what a wrong cell's score must at least stay below the right one's, from this many cells away
SCORE_SHARE = 4 / RESPONSE**2
SIDE_SCALE = 10.0


def patchnet_loss(scores: Tensor, offsets: Tensor, cell: Tensor, sides: Tensor) -> Tensor:
    """Mean over N pairs of a hinge on every cell's score and a smooth L1 on the sides at the right cell.

    `scores` [N, A, A] and `offsets` [N, 4, A, A] are PatchNet's, `cell` [N, 2] and `sides` [N, 4] those of `Pairs`.
    A cell's margin grows with its distance to the right cell, up to 2. The authors' code mixes up the axes of that
    distance where the right cell is not on the diagonal; here they are right.
    """
    n = torch.arange(len(cell))
    row, column = cell.unbind(1)
    places = torch.arange(RESPONSE, device=cell.device)
    distance = (places[:, None] - row[:, None, None]).abs() + (places - column[:, None, None]).abs()
    right = scores[n, row, column][:, None, None]
    hinge = (scores + distance.clamp(max=MARGIN) - right).relu().sum((1, 2)).mean()
    return F.smooth_l1_loss(SIDE_SCALE * offsets[n, :, row, column], SIDE_SCALE * sides) + SCORE_SHARE * hinge


@torch.inference_mode()
def pair_ious(network: nn.Module, pairs: Pairs) -> NDArray[np.float64]:
    """Overlap [N] of the boxes that the network finds with the true ones."""
    scores, offsets = network.eval()(pairs.search, pairs.template)
    found, _ = decode(scores, offsets, pairs.previous)
    return paired_iou(found, pairs.target)


def train_patchnet(
    network: nn.Module,
    pair: Callable[[np.random.Generator], Pairs],
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    weight_decay: float = 5e-4,
    seed: int = 0,
) -> Iterator[float]:
    """Train in place with Adam and yield the loss of each step; the learning rate falls to zero along a cosine.

    Parameters
    ----------
    network : a PatchNet; `DensePatchNet` would grow weights where the structure has none.
    pair : makes one training pair, such as `partial(image_pair, frames)`.
    learning_rate, weight_decay : as published, there with batches of 1.
    """
    optimizer = torch.optim.Adam(network.parameters(), learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        pairs = join_pairs([pair(rng) for _ in range(batch_size)])
        network.train()
        scores, offsets = network(pairs.search, pairs.template)
        loss = patchnet_loss(scores, offsets, pairs.cell, pairs.sides)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        yield loss.item()
