"""The command line: one sentence for what is wrong, exit status 2, and defaults that fit the task."""

from pathlib import Path

import pytest

pytest.importorskip("tyro", reason="launch/train.py reads its options with tyro")

from launch.options import DataOptions, Options, RunOptions, TrainOptions, UsageError, parse_options


def test_defaults_by_task() -> None:
    image, words = parse_options([]), parse_options(["--task", "word-lm"])
    assert (image.model_name, image.data_name) == ("resnet8", "fashion-mnist")
    assert (words.model_name, words.data_name) == ("lstm", "king-james")


def test_options_reach_their_group() -> None:
    options = parse_options(
        ["--compress", "dgc", "--density", "0.01", "--max-steps", "7", "--offline", "--log-folder", "x"]
    )
    assert (options.compress.compress, options.compress.density) == ("dgc", 0.01)
    assert options.train.max_steps == 7
    assert options.data.offline
    assert options.run.log_folder == Path("x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--densty", "0.1"], "Unrecognized options: --densty"),
        (["--density", "1.5"], "--density must be in (0, 1], got 1.5"),
        (["--hardware", "eie,tpu"], "--hardware: accelerator must be one of eie, vsquant, sparch, winograd, network"),
        (["--hardware", "network:1gbit"], "--hardware needs at least one chip"),
        (["--density", "nan"], "--density must be in (0, 1], got nan"),
        (["--task", "images"], "invalid choice 'images'"),
        (["--model", "gpt"], "--model gpt does not fit --task image: choose from resnet8, resnet20"),
        (["--task", "char-lm", "--data", "cifar10"], "--data cifar10 does not fit --task char-lm"),
        (["--task", "char-lm", "--data", "text"], "--data text needs --data-folder"),
        (["--task", "char-lm", "--nesterov"], "--nesterov is for --task image"),
        (["--optimizer", "sgd"], "--optimizer is for --model gpt, not resnet8"),
        (["--local-adam"], "--local-adam takes the place of AdamW"),
        (["--size", "0"], "--size must be above 0, got 0"),
        (["--epochs", "0"], "--epochs must be above 0, got 0"),
        (["--lr-warmup-epochs", "-1"], "--lr-warmup-epochs must be 0 or more, got -1"),
        (["--quant", "4"], '--quant: notation must read W/A or W/A/ws/as with numbers or "-"'),
        (["--quant", "4/4,speed=11"], "names an unknown setting"),
        (["--resume"], "--resume needs --checkpoint-folder"),
    ],
)
def test_bad_options_end_with_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    # tyro draws a box and breaks lines in it
    text = " ".join((captured.out + captured.err).replace("│", " ").split())
    assert message in text


def test_quiet_ranks_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--densty", "0.1"], quiet=True)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "torchrun --nproc-per-node 2 launch/train.py --compress dgc" in text
    assert "fraction of the gradient sent per step" in text


def test_checks_hold_for_dataclasses_too() -> None:
    with pytest.raises(UsageError, match="--batch-size must be above 0"):
        Options(train=TrainOptions(batch_size=-1))
    with pytest.raises(UsageError, match="choose from lstm, gpt"):
        Options(data=DataOptions(task="word-lm", model="resnet8"))
    with pytest.raises(UsageError, match="--log-interval"):
        Options(run=RunOptions(log_interval=0))
