"""python -m dgcomp.advise: its models, its numbers, its answer."""

import pytest

from benchmarks import shapes
from dgcomp.advise import MODELS, Model, advise, exposed_s, main
from dgcomp.exchange.model import Link


def test_the_same_models_are_known() -> None:
    assert list(MODELS) == list(shapes.MODELS)


@pytest.mark.parametrize("name", list(MODELS))
def test_counts_are_those_of_the_shapes(name: str) -> None:
    sizes = shapes.MODELS[name]()
    assert MODELS[name] == Model(*shapes.split(sizes), len(sizes))


def test_the_command_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--model", "resnet50", "--link", "1Gbps", "--rtt", "0.2ms", "--nodes", "8"])
    printed = capsys.readouterr().out
    assert "25,557,032 parameters" in printed
    for method in ("dense_fp32", "dense_bf16", "all_gather", "owner"):
        assert method in printed
    assert "Compress with" in printed


def test_it_says_no_where_compression_does_not_pay(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--parameters", "1M", "--link", "400Gbps", "--rtt", "0.01ms", "--nodes", "2", "--compute", "300ms"])
    assert "Do not compress" in capsys.readouterr().out


def test_backward_hides_all_but_the_last_bucket() -> None:
    assert exposed_s(0.4, 0.0, 4) == 0.4
    assert exposed_s(0.4, 10.0, 4) == pytest.approx(0.1)
    assert exposed_s(0.4, 10.0, 1) == 0.4
    quick = advise(MODELS["resnet50"], Link(10.0), 4, compute_s=1.0, backward_s=0.9)
    plain = advise(MODELS["resnet50"], Link(10.0), 4, compute_s=1.0)
    assert quick.step_s["dense_fp32"] < plain.step_s["dense_fp32"]
    with pytest.raises(ValueError, match="backward_s must lie between"):
        advise(MODELS["resnet50"], Link(10.0), 4, backward_s=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parameters", "many", "--link", "1Gbps"], "--parameters must look like"),
        (["--model", "resnet50", "--link", "fast"], "bandwidth must look like"),
        (["--model", "resnet50", "--link", "1Gbps", "--compute", "1h"], "a time must look like"),
        (["--model", "resnet50", "--link", "1Gbps", "--backward", "1ms"], "backward_s must lie between"),
    ],
)
def test_mistakes_end_with_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--nodes", "4"])
