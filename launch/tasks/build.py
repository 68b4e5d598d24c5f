"""From the options to a task."""

import torch

from launch.options import Options
from launch.tasks.base import Task, seed_of
from launch.tasks.image import ImageTask
from launch.tasks.language import GPTTask, LSTMTask
from launch.tasks.patchnet import PatchNetTask
from launch.tasks.speech import SpeechTask

__all__ = ["build_task"]


def build_task(options: Options, device: torch.device) -> Task:
    """Data, model and optimizer of the task that the options name; the model's first values come from the seed.

    Raises UsageError where the data can't be found or the batch does not fit them.
    """
    torch.manual_seed(seed_of(options.train.seed))
    if options.data.task == "image":
        return ImageTask(options, device)
    if options.data.task == "speech":
        return SpeechTask(options, device)
    if options.data.task == "patchnet":
        return PatchNetTask(options, device)
    if options.model_name == "gpt":
        return GPTTask(options, device)
    return LSTMTask(options, device)
