"""Quantization after training on a real network: scales per vector keep what a maximum per channel loses."""

import pytest
import torch

from benchmarks.quant_tasks.pretrained import accuracy, cifar10_images
from benchmarks.quant_tasks.pretrained_models import ResNet, pretrained_resnet20
from dgcomp import quant
from tests.conftest import data_file


@pytest.mark.slow
@pytest.mark.data
def test_pretrained_resnet20_at_4_bits() -> None:
    """On 2000 test images; the whole set is in benchmarks/results/quant_accuracy.md."""
    data_file("models/resnet20-cifar10.npz")
    folder = data_file("cifar10/cifar10_jpeg.npz").parents[1]
    x, y = cifar10_images(folder, "test", 2000)
    calibration = cifar10_images(folder, "train", 500)[0].split(250)
    model = pretrained_resnet20(folder)
    exact = accuracy(model, quant.disabled(), x, y)

    def corrected(context: quant.autocast) -> float:
        return accuracy(quant.correct_statistics(model, calibration, context), context, x, y)

    vectors = corrected(quant.autocast("4/4/6/6", model=model))
    maximum = corrected(quant.autocast("4/4", method="max", model=model))
    assert exact - vectors < 1.0
    assert exact - maximum > 2 * (exact - vectors)
    assert vectors > accuracy(model, quant.autocast("4/4/6/6", model=model), x, y) + 2


def test_residual_network_trains_in_four_bits() -> None:
    """A ResNet-8 learns to tell noise with a bias from noise without one, in a few steps of 4-bit training."""
    model = ResNet(1, width=8)
    context = quant.autocast(4, 4, model=model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(25):
        y = torch.randint(2, (32,))
        x = torch.randn(32, 3, 8, 8) + y[:, None, None, None]
        with context:
            loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0]
