"""The command line: its numbers are the models', and wrong input ends with one sentence."""

import json
from pathlib import Path

import pytest

from dgcomp import hwmodel
from dgcomp.hwmodel.__main__ import main
from dgcomp.hwmodel.sweeps import layer_operation

SMALL = ["--rows", "64", "--inner", "48"]


def test_layer_compares_accelerators(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    main(["layer", *SMALL, "--on", "eie,vsquant:4/4/4/6,winograd", "--json", str(path)])
    printed = capsys.readouterr().out
    assert "vsquant-4/4/4/6" in printed
    rows = {row["accelerator"]: row for row in json.loads(path.read_text())}
    expected = hwmodel.EIE().price(layer_operation(64, 48, 0.1, 0.35))
    assert expected is not None
    assert rows["eie-64pe"]["cycles"] == expected.cycles
    assert rows["winograd-sparse"] == {"accelerator": "winograd-sparse", "priced": False}


def test_sweep_over_one_setting(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    main(["sweep", "eie:num_pes=16", "fifo_depth", "2", "9", "33", *SMALL, "--json", str(path), "--y", "cycles"])
    cycles = [row["cycles"] for row in json.loads(path.read_text())]
    assert cycles == sorted(cycles, reverse=True)
    assert "fifo_depth" in capsys.readouterr().out


@pytest.mark.optional
def test_sweep_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    main(["sweep", "vsquant", "design", "4/4/4/6", "8/8/-/-", *SMALL, "--plot", str(tmp_path / "x.png")])
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_spgemm_reads_matrix_market(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "small.mtx"
    path.write_text("%%MatrixMarket matrix coordinate pattern symmetric\n% a comment\n3 3 3\n1 1\n2 1\n3 2\n")
    main(["spgemm", str(path)])
    printed = capsys.readouterr().out
    assert "outerspace" in printed
    # Rows of the completed matrix: {0, 1}, {0, 2}, {1}: 2 + 2 + 2 + 1 + 2 products.
    assert printed.splitlines()[1].split()[-1] == "9"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["layer", "--on", "tpu"], "accelerator must be one of eie"),
        (["layer", "--weight-density", "2"], "--weight-density must lie in [0, 1], got 2.0"),
        (["sweep", "eie", "depth", "2"], "setting must be one of num_pes, fifo_depth"),
        (["sweep", "eie", "fifo_depth", "2", *SMALL, "--y", "weight"], "--y must be one of cycles, seconds"),
        (["spgemm", "not-there.mtx"], "No such file or directory: 'not-there.mtx'"),
    ],
)
def test_wrong_input_ends_with_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
