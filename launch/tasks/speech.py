"""Spoken words from Speech Commands as cepstra: SGD with Nesterov momentum and clipping, the paper's speech recipe."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from launch.options import Options, UsageError
from launch.tasks.base import Part, generator
from launch.tasks.speech_models import DSCNN, GRUClassifier

__all__ = ["SpeechData", "SpeechTask", "load_speech"]

SPEECH_FILE = "mfcc.npz"
FOLDS = 5
"""the speakers are dealt into five folds; the fold of the seed is the test set"""


@dataclass(frozen=True)
class SpeechData:
    """Cepstra float32 (N, T, features), of zero mean and unit deviation over the training part; classes int64 (N,)."""

    label: str
    train: torch.Tensor
    train_classes: torch.Tensor
    test: torch.Tensor
    test_classes: torch.Tensor
    num_classes: int


def load_speech(options: Options) -> SpeechData:
    """Speech Commands v0.02 from `mfcc.npz`, or synthetic cepstra, split 80/20 by speaker.

    The archive (--data-folder, or $DGCOMP_DATA/speech_commands) holds the cepstra of the data set's own test part:
    `x` (N, 49, 10), `y`, `speaker` and `labels`. No speaker is in both parts, and five seeds in a row test on every
    utterance once. Raises UsageError where the file is not there.
    """
    if options.data_name == "synthetic":
        label, (cepstra, classes, speakers) = "synthetic cepstra", _synthetic(options.train.seed)
    else:
        folder = options.data.data_folder or Path(os.environ.get("DGCOMP_DATA", ".")) / "speech_commands"
        path = folder / SPEECH_FILE
        if not path.exists():
            raise UsageError(f"no {SPEECH_FILE} in {folder}: give a --data-folder with cepstra of Speech Commands")
        archive = np.load(path)
        label = "Speech Commands v0.02"
        cepstra, classes, speakers = (torch.from_numpy(archive[key].astype(kind)) for key, kind in _COLUMNS)
    fold = options.train.seed % FOLDS
    fold_of_speaker = torch.randperm(int(speakers.max()) + 1, generator=generator(0, 19)) % FOLDS
    is_test = fold_of_speaker[speakers] == fold
    std, mean = torch.std_mean(cepstra[~is_test], dim=(0, 1))
    scaled = (cepstra - mean) / std
    return SpeechData(
        f"{label}, tested on fold {fold} of {FOLDS} by speaker",
        *(scaled[~is_test], classes[~is_test]),
        *(scaled[is_test], classes[is_test]),
        num_classes=int(classes.max()) + 1,
    )


_COLUMNS = (("x", np.float32), ("y", np.int64), ("speaker", np.int64))


class SpeechTask:
    """Which of twelve words was said; see `launch.tasks.base.Task` for the members."""

    metric = "test accuracy (%)"
    clip_norm: float | None = 1.0

    def __init__(self, options: Options, device: torch.device) -> None:
        self.data = load_speech(options)
        self.label = self.data.label
        self.seed, self.device = options.train.seed, device
        self.batch_size = options.train.batch_size or 32
        self.steps_per_epoch = len(self.data.train) // self.batch_size
        if self.steps_per_epoch == 0:
            raise UsageError(
                f"--batch-size {self.batch_size} is more than the {len(self.data.train)} utterances of {self.label}"
            )
        num_features, num_classes = self.data.train.shape[2], self.data.num_classes
        if options.model_name == "gru":
            model: nn.Module = GRUClassifier(num_features, num_classes, options.data.width or 96)
        else:
            model = DSCNN(num_classes)
        self.model = model.to(device)
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            self.model.parameters(), lr=options.train.learning_rate or 0.1, momentum=0.9, nesterov=True
        )
        self._order = lru_cache(maxsize=1)(self._epoch_order)

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        return torch.randperm(len(self.data.train), generator=generator(self.seed, 1, epoch))

    def batch(self, epoch: int, step: int, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size][part.of(self.batch_size)]
        return self.data.train[chosen].to(self.device), self.data.train_classes[chosen].to(self.device)

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        cepstra, classes = batch
        return F.cross_entropy(model(cepstra), classes)

    @torch.inference_mode()
    def evaluate(self, part: Part) -> torch.Tensor:
        cepstra, classes = (whole[part.index :: part.count] for whole in (self.data.test, self.data.test_classes))
        scores = self.model(cepstra.to(self.device))
        right = int((scores.argmax(1).cpu() == classes).sum())
        return torch.tensor([right, len(classes)], dtype=torch.float64)

    def score(self, mean: float) -> float:
        return 100 * mean

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        pass


def _synthetic(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """640 utterances of 40 speakers: one pattern per class under as much noise; for tests and try-outs."""
    random = generator(seed, 20)
    patterns = torch.randn(12, 49, 10, generator=random)
    classes = torch.randint(12, (640,), generator=random)
    cepstra = patterns[classes] + torch.randn(640, 49, 10, generator=random)
    return cepstra, classes, torch.arange(640) % 40
