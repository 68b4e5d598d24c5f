"""Accelerators by name, with settings, from TOML files, and of the user's own."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dgcomp import hwmodel
from dgcomp.hwmodel import registry
from dgcomp.hwmodel.eie import NM28


def test_lists_of_names() -> None:
    chips = hwmodel.parse_accelerators("eie,vsquant:4/4/4/6,network:100mbit,nodes=8,density=0.01,sparch:chain")
    assert chips == [
        hwmodel.EIE(),
        hwmodel.VSQuantPE("4/4/4/6"),
        hwmodel.Network(gbit_per_s=0.1, nodes=8, density=0.01),
        hwmodel.SpArch(order="chain"),
    ]


def test_settings() -> None:
    assert hwmodel.parse_accelerator("eie:256,fifo_depth=16") == hwmodel.EIE(num_pes=256, fifo_depth=16)
    assert hwmodel.parse_accelerator("eie:num_pes=256,process=28nm") == hwmodel.EIE(num_pes=256, process=NM28)
    assert hwmodel.parse_accelerator("winograd:dense") == hwmodel.WinogradEngine("dense")
    assert hwmodel.parse_accelerator("sparch:condense=false") == hwmodel.SpArch(condense=False)
    assert hwmodel.parse_accelerators("sparch,prefetch=false") == [hwmodel.SpArch(prefetch=False)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "chip.toml"
    path.write_text('model = "vsquant"\ndesign = "4/6/4/-"\nnum_pes = 4\n')
    assert hwmodel.parse_accelerator(str(path)) == hwmodel.VSQuantPE("4/6/4/-", num_pes=4)
    path.write_text("num_pes = 4\n")
    with pytest.raises(ValueError, match="must say model = one of eie, vsquant, sparch, winograd, network"):
        hwmodel.parse_accelerator(str(path))


@dataclass(frozen=True)
class Systolic:
    """A dense array for the test."""

    side: int = 16
    name: str = "systolic"

    def price(self, operation: hwmodel.Operation) -> hwmodel.Cost:
        return hwmodel.Cost(cycles=operation.macs / self.side**2)


def test_own_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    hwmodel.register("systolic", Systolic)
    assert hwmodel.parse_accelerator("systolic:side=8") == Systolic(8)
    assert isinstance(Systolic(), hwmodel.Accelerator)
    with pytest.raises(ValueError, match="name must be lower case"):
        hwmodel.register("My Chip", Systolic)


def test_bad_input_lists_what_is_known() -> None:
    with pytest.raises(
        ValueError, match="accelerator must be one of eie, vsquant, sparch, winograd, network or a .toml"
    ):
        hwmodel.parse_accelerator("tpu")
    with pytest.raises(ValueError, match="eie has no setting 'pes'; it has num_pes, fifo_depth"):
        hwmodel.parse_accelerator("eie:pes=4")
    with pytest.raises(ValueError, match=r"process must be one of 45, 28 \(nm\), got 7"):
        hwmodel.parse_accelerator("eie:process=7")
    with pytest.raises(ValueError, match='bandwidth must look like "1Gbps"'):
        hwmodel.parse_accelerator("network:fast")
