"""PatchNet on pairs cut from any video or folder of images: a network of 358 parameters that follows boxes."""

import math
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgcomp.video.frames import Frame, read_frames
from dgcomp.video.patchnet import PatchNet
from dgcomp.video.patchnet_pairs import Pairs, image_pair, join_pairs
from dgcomp.video.patchnet_train import pair_ious, patchnet_loss
from launch.options import Options, UsageError
from launch.tasks.base import Part, generator, seed_of
from launch.tasks.files import cache_folder, fetch_debian

__all__ = ["PatchNetTask", "load_frames"]

PAIRS_PER_EPOCH = 4096
TEST_PAIRS = 240
MAX_FRAMES = 200
"""Frames kept in memory: a pair needs one image, and neighbours in a video add little."""
DEBIAN_PACKAGE, DEBIAN_FOLDER, DEBIAN_VIDEO = "opencv-doc", "usr/share/doc/opencv-doc/examples/data", "vtest.avi"


def load_frames(options: Options) -> tuple[str, list[Frame]]:
    """The data's name and at most 200 frames of it, evenly spread.

    Raises UsageError where the data can't be found or read.
    """
    if options.data_name == "synthetic":
        return "synthetic images", [_texture(index, options.train.seed) for index in range(20)]
    path = options.data.data_folder or _default_video(options)
    try:
        count = sum(1 for _ in read_frames(path))
        frames = list(islice(read_frames(path), 0, None, math.ceil(count / MAX_FRAMES)))
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise UsageError(f"--data-folder: {error}") from None
    return path.name, frames


def _default_video(options: Options) -> Path:
    """OpenCV's sample video of pedestrians, from Debian's opencv-doc."""
    found = [folder / DEBIAN_VIDEO for folder in (Path("/") / DEBIAN_FOLDER, cache_folder() / DEBIAN_PACKAGE)]
    video = next((path for path in found if path.exists()), None)
    if video is None:
        if options.data.offline:
            raise UsageError("--data frames needs --data-folder, a video, a folder or a zip of images, with --offline")
        video = found[-1]
        fetch_debian(DEBIAN_PACKAGE, f"{DEBIAN_FOLDER}/{DEBIAN_VIDEO}", video)
    return video


def _texture(index: int, seed: int) -> Frame:
    """An image of smooth noise at three sizes of grain, 144 x 192."""
    random = generator(seed, 4, index)
    image = torch.zeros(3, 144, 192)
    for grain in (4, 12, 36):
        coarse = torch.rand(1, 3, 144 // grain, 192 // grain, generator=random)
        image += F.interpolate(coarse, (144, 192), mode="bicubic")[0] / 3
    return (255 * image.clamp(0, 1)).byte().permute(1, 2, 0).numpy()


class PatchNetTask:
    """PatchNet with AdamW, tested on the last tenth of the frames; see `launch.tasks.base.Task` for the members."""

    metric = "mean IoU of test pairs (%)"
    clip_norm: float | None = None

    def __init__(self, options: Options, device: torch.device) -> None:
        name, frames = load_frames(options)
        num_test = max(1, len(frames) // 10)
        self.train_frames, self.test_frames = frames[:-num_test], frames[-num_test:]
        if not self.train_frames:
            raise UsageError(f"--data-folder must hold at least 2 frames, got {len(frames)} in {name}")
        self.label = f"pairs cut from {name}"
        self.seed, self.device = options.train.seed, device
        self.batch_size = options.train.batch_size or 16
        self.steps_per_epoch = max(1, PAIRS_PER_EPOCH // self.batch_size)
        self.model: nn.Module = PatchNet().to(device)
        # Rate and decay as published for Adam; AdamW keeps the decay out of the gradients that are exchanged.
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.model.parameters(), options.train.learning_rate or 1e-3, weight_decay=5e-4
        )

    def batch(self, epoch: int, step: int, part: Part) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        samples = range(self.batch_size)[part.of(self.batch_size)]
        pairs = join_pairs([self._pair(self.train_frames, 1, epoch, step, sample) for sample in samples])
        tensors = pairs.search, pairs.template, pairs.cell, pairs.sides
        search, template, cell, sides = (tensor.to(self.device) for tensor in tensors)
        return search, template, cell, sides

    def _pair(self, frames: list[Frame], *numbers: int) -> Pairs:
        return image_pair(frames, np.random.default_rng(seed_of(self.seed, *numbers)))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        search, template, cell, sides = batch
        scores, offsets = model(search, template)
        return patchnet_loss(scores, offsets, cell, sides)

    def evaluate(self, part: Part) -> Tensor:
        total, count = 0.0, 0
        for sample in range(part.index, TEST_PAIRS, part.count):
            pairs = self._pair(self.test_frames, 2, sample)
            total, count = total + float(pair_ious(self.model, pairs).sum()), count + 1
        return torch.tensor([total, count], dtype=torch.float64)

    def score(self, mean: float) -> float:
        return 100 * mean

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass
