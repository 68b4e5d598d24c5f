"""Each task in one process: the same batches for any number of ranks, and a loss that falls."""

import pytest
import torch

from launch.options import DataOptions, Options, TrainOptions, UsageError
from launch.tasks import Part, build_task
from launch.tasks.resnet import resnet
from launch.tasks.speech import load_speech
from launch.tasks.speech_models import DSCNN, GRUClassifier
from launch.tasks.vgg import vgg
from launch.train import learning_rate_factor
from tests.conftest import data_file

CPU = torch.device("cpu")
TASKS = [
    *(("image", model) for model in ("resnet8", "vgg")),
    *(("word-lm", "lstm"), ("char-lm", "lstm"), ("char-lm", "gpt")),
    *(("speech", model) for model in ("gru", "ds-cnn")),
]


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


def test_vgg_sizes() -> None:
    assert sum(p.numel() for p in vgg(28, in_channels=1).parameters()) == 98_554
    assert vgg(12)(torch.zeros(2, 3, 12, 12)).shape == (2, 10)
    with pytest.raises(ValueError, match="image_size must be at least 8"):
        vgg(7)


def test_speech_models() -> None:
    cepstra = torch.randn(2, 49, 10)
    assert GRUClassifier(10, 12)(cepstra).shape == DSCNN(12)(cepstra).shape == (2, 12)
    convolutions, norms, head = 10 * 4 * 64 + 4 * (9 * 64 + 64 * 64), 9 * 2 * 64, 65 * 12
    assert sum(p.numel() for p in DSCNN(12).parameters()) == convolutions + norms + head


def test_speech_folds_share_no_utterance_and_cover_all() -> None:
    folds = [load_speech(_options_with_seed(seed)) for seed in range(5)]
    again = load_speech(_options_with_seed(5))
    assert sum(len(fold.test) for fold in folds) == 640
    assert all(len(fold.test) + len(fold.train) == 640 for fold in folds)
    assert again.label == folds[0].label
    for fold in folds:
        assert torch.allclose(fold.train.mean((0, 1)), torch.zeros(10), atol=1e-4)
        assert torch.allclose(fold.train.std((0, 1)), torch.ones(10), atol=1e-2)


def _options_with_seed(seed: int) -> Options:
    return Options(data=DataOptions(task="speech", data="synthetic"), train=TrainOptions(seed=seed))


@pytest.mark.data
def test_speech_commands() -> None:
    path = data_file("speech_commands/mfcc.npz")
    where = DataOptions(task="speech", data_folder=path.parent)
    folds = [load_speech(Options(data=where, train=TrainOptions(seed=seed))) for seed in range(5)]
    assert [len(fold.train) + len(fold.test) for fold in folds] == [4890] * 5
    assert sum(len(fold.test) for fold in folds) == 4890  # each utterance is tested once
    data = folds[0]
    assert data.num_classes == 12


def test_fewer_samples_and_smaller_models() -> None:
    small = DataOptions(task="image", model="vgg", data="synthetic", size=100)
    task = build_task(Options(data=small, train=TrainOptions(batch_size=8)), CPU)
    assert task.steps_per_epoch == 12
    assert "the first 100 training images" in task.label
    words = DataOptions(task="word-lm", data="synthetic", size=2000, vocabulary=20, width=16, layers=1, context=7)
    task = build_task(Options(data=words, train=TrainOptions(batch_size=4)), CPU)
    assert task.model.embedding.weight.shape == (20, 16)
    assert task.batch(0, 0, Part(0, 1))[0].shape == (7, 4)
    with pytest.raises(UsageError, match="--width 18 must be a multiple of the 4 attention heads"):
        build_task(Options(data=DataOptions(task="char-lm", model="gpt", data="synthetic", width=18)), CPU)


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
