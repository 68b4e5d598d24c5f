"""Training pairs are labelled as `decode` reads them; the loss is least where it should be; training learns."""

from functools import partial

import numpy as np
import pytest
import torch

from dgcomp.video.frames import Frame
from dgcomp.video.patchnet import PatchNet
from dgcomp.video.patchnet_pairs import Pairs, TrackedBoxes, image_pair, join_pairs, track_pair
from dgcomp.video.patchnet_track import decode
from dgcomp.video.patchnet_train import pair_ious, patchnet_loss, train_patchnet
from tests.video.test_patchnet import textured


def frames() -> list[Frame]:
    return [textured(120, 160, seed) for seed in range(4)]


def tracked() -> TrackedBoxes:
    rows = [(frame, "a", 0, 30 + 2 * frame, 20, 60 + 2 * frame, 55) for frame in range(6)]
    return TrackedBoxes.from_rows(frames(), [*rows, (2, "tiny", 0, 5, 5, 8, 9)], max_distance=2)


def perfect_output(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with one peak at the right cell, and the right sides there."""
    n = torch.arange(len(pairs))
    scores, offsets = torch.zeros(len(pairs), 7, 7), torch.zeros(len(pairs), 4, 7, 7)
    scores[n, pairs.cell[:, 0], pairs.cell[:, 1]] = 5.0
    offsets[n, :, pairs.cell[:, 0], pairs.cell[:, 1]] = pairs.sides
    return scores, offsets


@pytest.mark.parametrize("source", ["images", "tracks"])
def test_labels_decode_to_the_target(source: str) -> None:
    rng = np.random.default_rng(0)
    pair = partial(image_pair, frames()) if source == "images" else partial(track_pair, tracked())
    pairs = join_pairs([pair(rng) for _ in range(20)])
    boxes, _ = decode(*perfect_output(pairs), pairs.previous)
    np.testing.assert_allclose(boxes, pairs.target, rtol=1e-4, atol=1e-4)
    assert patchnet_loss(*perfect_output(pairs), pairs.cell, pairs.sides) == 0
    assert len(torch.unique(pairs.cell, dim=0)) > 5


def test_pairs_depend_on_the_generator_alone() -> None:
    one, two = (image_pair(frames(), np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(one.search, two.search)
    assert np.array_equal(one.target, two.target)


def test_tracks() -> None:
    i, j, first, _ = tracked().pairs
    assert set(np.abs(i - j)) == {1, 2}
    assert max(i.max(), j.max()) == 3  # two of the six appearances are beyond the four frames
    assert (first[:, 2] - first[:, 0] == 30).all()  # and the tiny box is none to learn from
    with pytest.raises(ValueError, match="seen twice within 12 frames"):
        TrackedBoxes.from_rows(frames(), [(0, 1, 0, 10, 10, 40, 40)])


def test_small_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 40 pixels high and wide"):
        image_pair([textured(32, 96)], np.random.default_rng(0))


def test_margin_has_its_axes_right() -> None:
    """A rival on the right cell's row costs by its distance in columns, and the same mirrored: off the diagonal too."""
    pairs = join_pairs([image_pair(frames(), np.random.default_rng(1))])
    for row, column in ((0, 5), (5, 0)):
        pairs.cell[0] = torch.tensor([row, column])
        costs = []
        for away in ((0, 1), (0, 2)) if column == 0 else ((1, 0), (2, 0)):
            scores, offsets = perfect_output(pairs)
            scores[0, row + away[0] * (row == 0), column + away[1] * (column == 0)] = 5.0
            costs.append(float(patchnet_loss(scores, offsets, pairs.cell, pairs.sides)) * 49 / 4)
        assert costs == pytest.approx([1.0, 2.0])


def test_training_learns() -> None:
    """From weights that know nothing of parts, the loss falls and unseen pairs are found better."""
    network = PatchNet()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.2)
    rng = np.random.default_rng(100)
    unseen = join_pairs([image_pair(frames(), rng) for _ in range(30)])
    before = pair_ious(network, unseen).mean()
    losses = list(train_patchnet(network, partial(image_pair, frames()), steps=25, batch_size=4, learning_rate=0.02))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert pair_ious(network, unseen).mean() > before
