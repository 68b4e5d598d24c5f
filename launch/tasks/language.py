"""Language models over words or characters: an LSTM with plain SGD and clipping, or a GPT with AdamW."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from launch.options import Options, UsageError
from launch.tasks.base import Part, generator
from launch.tasks.language_models import GPT, LSTM, Hidden
from launch.tasks.text_data import load_text

__all__ = ["GPTTask", "LSTMTask"]

TEST_STREAMS = 16
"""the test text is read in this many parallel streams, whatever the number of ranks"""


class LSTMTask:
    """Truncated backpropagation through time over parallel streams; the hidden state goes on from step to step.

    The paper's Penn Treebank recipe (Lin et al., ICLR 2018, section 4.1) scaled down: no momentum, clipping of the
    gradient's norm. See `launch.tasks.base.Task` for the members.
    """

    metric = "test perplexity"
    clip_norm: float | None = 0.25

    def __init__(self, options: Options, device: torch.device) -> None:
        self.data = load_text(options)
        self.label = self.data.label
        self.device = device
        self.batch_size = options.train.batch_size or 32
        by_word = options.data.task == "word-lm"
        self.steps = options.data.context or (35 if by_word else 64)  # tokens per stream and optimizer step
        self.streams = _streams(self.data.train, self.batch_size, self.steps)
        self.steps_per_epoch = (len(self.streams) - 1) // self.steps
        width = options.data.width or (200 if by_word else 256)
        self.lstm = LSTM(self.data.vocabulary, width, options.data.layers or 2).to(device)
        self.model: nn.Module = self.lstm
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            self.model.parameters(), lr=options.train.learning_rate or 10.0
        )
        self.hidden: dict[Part, Hidden] = {}

    def batch(self, epoch: int, step: int, part: Part) -> tuple[torch.Tensor, torch.Tensor, Part, bool]:
        rows = self.streams[step * self.steps : (step + 1) * self.steps + 1, part.of(self.batch_size)].to(self.device)
        return rows[:-1], rows[1:], part, step == 0

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor, Part, bool]) -> torch.Tensor:
        tokens, targets, part, is_start = batch
        if is_start or part not in self.hidden:
            self.hidden[part] = self.lstm.empty_hidden(tokens.shape[1])
        scores, (h, c) = model(tokens, self.hidden[part])
        self.hidden[part] = h.detach().float(), c.detach().float()
        return F.cross_entropy(scores.flatten(0, 1), targets.flatten())

    @torch.inference_mode()
    def evaluate(self, part: Part) -> torch.Tensor:
        streams = _streams(self.data.test, TEST_STREAMS, 1)[:, part.index :: part.count].to(self.device)
        total = torch.zeros(2, dtype=torch.float64)
        if streams.shape[1] == 0:
            return total
        hidden = self.lstm.empty_hidden(streams.shape[1])
        for start in range(0, len(streams) - 1, 100):
            rows = streams[start : start + 101]
            scores, hidden = self.lstm(rows[:-1], hidden)
            total += _loss_and_count(scores, rows[1:])
        return total

    def score(self, mean: float) -> float:
        return math.exp(mean)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {f"{part.index} {part.count}": torch.stack(hidden) for part, hidden in self.hidden.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, hidden in state.items():
            index, count = name.split()
            h, c = hidden.to(self.device)
            self.hidden[Part(int(index), int(count))] = (h, c)


class GPTTask:
    """Windows of text in random order; see `launch.tasks.base.Task` for the members."""

    metric = "test perplexity"
    clip_norm: float | None = 1.0

    def __init__(self, options: Options, device: torch.device) -> None:
        self.data = load_text(options)
        self.label = self.data.label
        self.seed, self.device = options.train.seed, device
        self.batch_size = options.train.batch_size or 32
        self.context = options.data.context or 128
        self.windows = _windows(self.data.train, self.context)
        self.steps_per_epoch = len(self.windows) // self.batch_size
        if self.steps_per_epoch == 0:
            raise UsageError(
                f"--batch-size {self.batch_size} is more than the {len(self.windows)} windows of {self.label}"
            )
        width, num_layers = options.data.width or 128, options.data.layers or 4
        if width % GPT.num_heads:
            raise UsageError(f"--width {width} must be a multiple of the {GPT.num_heads} attention heads of gpt")
        self.model: nn.Module = GPT(self.data.vocabulary, self.context, width, num_layers).to(device)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        learning_rate = options.train.learning_rate or 2e-3
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
        if options.train.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=learning_rate)
        self._order = lru_cache(maxsize=1)(self._epoch_order)

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        return torch.randperm(len(self.windows), generator=generator(self.seed, 1, epoch))

    def batch(self, epoch: int, step: int, part: Part) -> torch.Tensor:
        chosen = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        return self.windows[chosen[part.of(self.batch_size)]].to(self.device)

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    @torch.inference_mode()
    def evaluate(self, part: Part) -> torch.Tensor:
        total = torch.zeros(2, dtype=torch.float64)
        own = _windows(self.data.test, self.context)[part.index :: part.count].to(self.device)
        for windows in torch.split(own, 16):
            total += _loss_and_count(self.model(windows[:, :-1]), windows[:, 1:])
        return total

    def score(self, mean: float) -> float:
        return math.exp(mean)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        pass


def _streams(tokens: torch.Tensor, count: int, steps: int) -> torch.Tensor:
    """Tokens as `count` columns, each a stretch of the text in order; needs more than `steps` rows."""
    rows = len(tokens) // count
    if rows <= steps:
        raise UsageError(
            f"{len(tokens)} tokens are too few for {count} streams of more than {steps}: "
            "take a longer text or a smaller --batch-size"
        )
    return tokens[: rows * count].view(count, rows).t().contiguous()


def _windows(tokens: torch.Tensor, context: int) -> torch.Tensor:
    """Tokens as rows of `context` + 1 that overlap by one."""
    if len(tokens) <= context:
        raise UsageError(f"{len(tokens)} tokens are too few for one window of {context + 1}: a longer text")
    return tokens.unfold(0, context + 1, context)


def _loss_and_count(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    loss = F.cross_entropy(scores.flatten(0, 1).float(), targets.flatten(), reduction="sum")
    return torch.tensor([loss.item(), targets.numel()], dtype=torch.float64)
