"""The command line: answers, exit status, proof, trace, bad input, Ctrl-C."""

import os
import signal
import threading
from pathlib import Path

import pytest

from dgcomp.hwmodel.satin import as_formula, check_proof, read_dimacs, write_dimacs
from dgcomp.hwmodel.satin.__main__ import main
from dgcomp.hwmodel.satin.families import pigeonhole, random_ksat


def _file(folder: Path, clauses: list[list[int]]) -> str:
    write_dimacs(as_formula(clauses), folder / "f.cnf")
    return str(folder / "f.cnf")


def test_satisfiable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, random_ksat(50, 180, seed=1))
    assert main([path, "--contexts", "2"]) == 10
    lines = capsys.readouterr().out.splitlines()
    assert "s SATISFIABLE" in lines
    model = [int(x) for line in lines if line.startswith("v ") for x in line.split()[1:]]
    assert model[-1] == 0
    assert read_dimacs(path).satisfied_by(model[:-1])


def test_unsatisfiable_with_proof_and_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, pigeonhole(4))
    assert main([path, "--proof", str(tmp_path / "out.drat"), "--trace", "--restarts", "luby"]) == 20
    check_proof(read_dimacs(path), tmp_path / "out.drat")
    out = capsys.readouterr().out
    assert "s UNSATISFIABLE" in out
    assert " CONFLICT " in out
    assert not list(tmp_path.glob("*.context*"))


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.cnf").write_text("p cnf 1 1\n1 x 0\n")
    assert main([str(tmp_path / "bad.cnf")]) == 2
    assert "line 2" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.cnf")]) == 2


def test_time_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([_file(tmp_path, pigeonhole(11)), "--time-limit", "0.01"]) == 0
    assert "s UNKNOWN" in capsys.readouterr().out


def test_interrupt_ends_with_partial_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, pigeonhole(11))
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    # the limit only ends the test should the signal be lost
    assert main([path, "--time-limit", "60"]) == 0
    timer.join()
    out = capsys.readouterr().out
    assert "c stopped by Ctrl-C" in out
    assert "s UNKNOWN" in out
    assert "c conflicts" in out
