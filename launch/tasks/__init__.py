"""The tasks that launch/train.py can train: image classification, language models, and spoken words."""

from launch.tasks.base import Part, Task, seed_of
from launch.tasks.build import build_task

__all__ = ["Part", "Task", "build_task", "seed_of"]
