"""Image classification: ResNet-8, ResNet-20 or a small VGG with SGD, momentum and batch norm."""

from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from launch.options import Options, UsageError
from launch.tasks.base import Part, generator
from launch.tasks.image_data import (
    ImageData,
    augment,
    load_cifar10,
    load_fashion_mnist,
    normalize,
    synthetic_images,
)
from launch.tasks.resnet import resnet
from launch.tasks.vgg import vgg

__all__ = ["ImageTask", "load_images"]

TEST_BATCH = 500


def load_images(options: Options) -> ImageData:
    """The data set that the options name, or the first --size of its training images."""
    data = _all_images(options)
    size = options.data.size
    if size is None or size >= len(data.train_labels):
        return data
    return replace(
        data,
        label=f"{data.label}, the first {size} training images",
        train_images=data.train_images[:size],
        train_labels=data.train_labels[:size],
    )


def _all_images(options: Options) -> ImageData:
    if options.data_name == "synthetic":
        return synthetic_images(options.train.seed)
    if options.data_name == "cifar10":
        return load_cifar10(options.data.data_folder)
    return load_fashion_mnist(options.data.data_folder, offline=options.data.offline)


class ImageTask:
    """A convolutional network on one of the image sets; see `launch.tasks.base.Task` for the members."""

    metric = "test accuracy (%)"
    clip_norm: float | None = None

    def __init__(self, options: Options, device: torch.device) -> None:
        self.data = load_images(options)
        self.label = self.data.label
        self.seed, self.device = options.train.seed, device
        self.batch_size = options.train.batch_size or 128
        # a last batch that is not full would have other gradient noise and other message sizes: it is left out
        self.steps_per_epoch = len(self.data.train_images) // self.batch_size
        if self.steps_per_epoch == 0:
            available = f"the {len(self.data.train_images)} training images of {self.label}"
            raise UsageError(f"--batch-size {self.batch_size} is more than {available}")
        channels, image_size = self.data.train_images.shape[1:3]
        if options.model_name == "vgg":
            model = vgg(image_size, in_channels=channels)
        else:
            model = resnet(int(options.model_name.removeprefix("resnet")), in_channels=channels)
        if options.train.winograd:
            from dgcomp.sparse.options import convert_to_winograd  # compiles kernels: only for those who ask

            convert_to_winograd(model)
        self.model: nn.Module = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _optimizer(self.model, options)
        self._order = lru_cache(maxsize=1)(self._epoch_order)

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        return torch.randperm(len(self.data.train_images), generator=generator(self.seed, 1, epoch))

    def batch(self, epoch: int, step: int, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size][part.of(self.batch_size)]
        images = self.data.train_images[chosen]
        if self.data.padding:
            images = augment(images, self.data.padding, (self.seed, 2, epoch, step), part)
        return normalize(images, self.data).to(self.device), self.data.train_labels[chosen].to(self.device)

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    @torch.inference_mode()
    def evaluate(self, part: Part) -> torch.Tensor:
        images = self.data.test_images[part.index :: part.count]
        labels = self.data.test_labels[part.index :: part.count]
        right = 0
        for some_images, some_labels in zip(
            torch.split(images, TEST_BATCH), torch.split(labels, TEST_BATCH), strict=True
        ):
            scores = self.model(normalize(some_images, self.data).to(self.device))
            right += int((scores.argmax(1).cpu() == some_labels).sum())
        return torch.tensor([right, len(labels)], dtype=torch.float64)

    def score(self, mean: float) -> float:
        return 100 * mean

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        pass


def _optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """SGD with momentum 0.9; weight decay 1e-4 on everything but biases and batch norm."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": weights, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}],
        lr=options.train.learning_rate or 0.1,
        momentum=0.9,
        nesterov=options.train.nesterov,
    )
