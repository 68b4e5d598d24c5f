"""Each task in one process: the same batches for any number of ranks, and a loss that falls."""

import pytest
import torch

from launch.options import DataOptions, Options, TrainOptions
from launch.tasks import Part, build_task
from launch.tasks.resnet import resnet
from launch.train import learning_rate_factor

CPU = torch.device("cpu")
TASKS = [("image", "resnet8"), ("word-lm", "lstm"), ("char-lm", "lstm"), ("char-lm", "gpt")]


def _options(task: str, model: str) -> Options:
    data = DataOptions(task=task, model=model, data="synthetic")  # type: ignore[arg-type]
    return Options(data=data, train=TrainOptions(batch_size=4))


def _tensors(batch: object) -> list[torch.Tensor]:
    parts = batch if isinstance(batch, tuple) else (batch,)
    return [part for part in parts if isinstance(part, torch.Tensor)]


@pytest.mark.parametrize(("name", "model"), TASKS)
def test_the_global_batch_is_the_same_for_any_number_of_parts(name: str, model: str) -> None:
    task = build_task(_options(name, model), CPU)
    batch_dim = 1 if model == "lstm" else 0
    whole = _tensors(task.batch(1, 3, Part(0, 1)))
    halves = [_tensors(task.batch(1, 3, Part(n, 2))) for n in range(2)]
    for index, tensor in enumerate(whole):
        assert torch.equal(torch.cat([half[index] for half in halves], batch_dim), tensor)
    again = build_task(_options(name, model), CPU)
    assert all(map(torch.equal, _tensors(again.batch(1, 3, Part(0, 1))), whole))
    assert not torch.equal(_tensors(again.batch(1, 4, Part(0, 1)))[0], whole[0])


@pytest.mark.parametrize(("name", "model"), TASKS)
def test_loss_falls_and_evaluation_adds_up(name: str, model: str) -> None:
    task = build_task(_options(name, model), CPU)
    losses = []
    for step in range(10):
        loss = task.loss(task.model, task.batch(0, 0 if model != "lstm" else step, Part(0, 1)))
        task.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), task.clip_norm or float("inf"))
        task.optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0]
    task.model.eval()
    whole = task.evaluate(Part(0, 1))
    thirds = sum(task.evaluate(Part(n, 3)) for n in range(3))
    assert torch.allclose(whole, thirds, rtol=1e-6)
    assert whole[1] > 0


def test_hidden_state_survives_a_restart() -> None:
    task, other = (build_task(_options("char-lm", "lstm"), CPU) for _ in range(2))
    task.model.eval()
    other.model.eval()
    task.loss(task.model, task.batch(0, 0, Part(0, 1)))
    other.load_state_dict(task.state_dict())
    batch = task.batch(0, 1, Part(0, 1))
    assert torch.equal(task.loss(task.model, batch), other.loss(other.model, batch))


def test_resnet_sizes() -> None:
    # 0.27 million: He et al. 2016, table 6
    assert sum(p.numel() for p in resnet(20).parameters()) == 269_722
    assert resnet(8, in_channels=1)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(ValueError, match="depth must be 6n"):
        resnet(18)


def test_learning_rate_schedules() -> None:
    def factors(schedule: str) -> list[float]:
        return [
            learning_rate_factor(step, num_steps=100, warmup_steps=10, schedule=schedule) for step in range(0, 100, 5)
        ]

    assert factors("constant") == [0.1, 0.6] + [1.0] * 18
    assert factors("step") == pytest.approx([0.1, 0.6] + [1.0] * 8 + [0.1] * 5 + [0.01] * 5)
    cosine = factors("cosine")
    assert cosine[2] == 1.0
    assert cosine[11] == pytest.approx(0.5)
    assert sorted(cosine[2:], reverse=True) == cosine[2:]
