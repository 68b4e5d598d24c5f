"""Texts cut into tokens: order kept, vocabulary of the training part, unknown words marked."""

from pathlib import Path

import pytest

from launch.options import DataOptions, Options, UsageError
from launch.tasks.text_data import load_text, tokenize


def test_words_and_signs() -> None:
    text = "In the beginning, [it was] God's.\n" * 40
    data = tokenize(text, "t", by_word=True)
    # In the beginning , [ it was ] God ' s . newline
    assert len(data.train) == 13 * 40 * 90 // 100
    assert data.vocabulary == 13 + 1
    assert data.train[:13].unique().numel() == 13
    assert data.train[:13].tolist() == data.train[13:26].tolist()


def test_rare_and_unseen_symbols_become_the_last_token() -> None:
    data = tokenize("ab" * 450 + "ba" * 30 + "z" * 40, "t", by_word=False)
    assert data.vocabulary == 3
    assert data.train.unique().tolist() == [0, 1]
    assert data.test.tolist()[-40:] == [2] * 40


def test_parts_do_not_overlap() -> None:
    data = tokenize("a" * 900 + "b" * 50 + "c" * 50, "t", by_word=False)
    assert (len(data.train), len(data.test)) == (900, 50)
    assert data.test.unique().tolist() == [data.vocabulary - 1]


def test_own_text_file(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("hello world " * 100)
    options = Options(data=DataOptions(task="char-lm", data="text", data_folder=tmp_path))
    data = load_text(options)
    assert data.label == "mine.txt, characters"
    assert len(data.train) == 1080
    (tmp_path / "second.txt").write_text("x")
    with pytest.raises(UsageError, match=r"hold exactly one \.txt file, found 2"):
        load_text(options)


def test_king_james_is_read_without_running_the_file(tmp_path: Path) -> None:
    verse = "In the beginning God created the heaven and the earth. "
    (tmp_path / "plain_text_readers_bible.py").write_text(
        f"import not_there\nbible = not_there.Bible('x', {verse * 20!r})\n"
    )
    data = load_text(Options(data=DataOptions(task="word-lm", data_folder=tmp_path)))
    assert data.label == "King James Bible, words"
    assert len(data.train) == 11 * 20 * 90 // 100


def test_missing_texts_name_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="does not hold plain_text_readers_bible.py"):
        load_text(Options(data=DataOptions(task="word-lm", data_folder=tmp_path)))
    monkeypatch.setenv("DGCOMP_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="leave out --offline"):
        load_text(Options(data=DataOptions(task="word-lm", offline=True)))
    with pytest.raises(UsageError, match="too short to train on: 3 tokens"):
        tokenize("abc", "t", by_word=False)
