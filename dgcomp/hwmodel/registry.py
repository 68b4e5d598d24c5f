"""Accelerators by name and from TOML files.

A name is a model, and after a colon what sets it: "eie", "eie:num_pes=256,fifo_depth=16", "vsquant:4/4/4/6",
"sparch", "winograd:dense", "network:1gbit", "network:1gbit,nodes=8,density=0.001", "mychip.toml". A comma between two
names separates them, so lists read "eie,vsquant:4/4/4/6,network:1gbit".

A TOML file holds the model's name and its fields:

    model = "eie"
    num_pes = 256
    fifo_depth = 16
"""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from dgcomp.exchange.model import Link
from dgcomp.hwmodel.eie import EIE, NM28, NM45
from dgcomp.hwmodel.network import Network
from dgcomp.hwmodel.operation import Accelerator
from dgcomp.hwmodel.sparch import SpArch
from dgcomp.hwmodel.vsquant import VSQuantPE
from dgcomp.hwmodel.winograd import WinogradEngine

__all__ = ["load_accelerator", "parse_accelerator", "parse_accelerators", "register"]

Chip = Accelerator | Network

_MODELS: dict[str, type[Any]] = {
    "eie": EIE,
    "vsquant": VSQuantPE,
    "sparch": SpArch,
    "winograd": WinogradEngine,
    "network": Network,
}
# What an argument without a name means.
_FIRST_FIELD = {"eie": "num_pes", "vsquant": "design", "sparch": "order", "winograd": "mode"}
_PROCESSES = {"45": NM45, "28": NM28}


def register(name: str, model: type[Any]) -> None:
    """Make a dataclass with `name` and `price(operation)` known under a name; docs/hardware.md shows one."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise ValueError(f"name must be lower case letters, digits, - and _, got {name!r}")
    _MODELS[name] = model


def parse_accelerators(text: str) -> list[Chip]:
    """Accelerators of a list such as "eie,vsquant:4/4/4/6,network:1gbit,nodes=8".

    A part with "=" belongs to the name before it. Raises ValueError for unknown names and fields.
    """
    names: list[str] = []
    for part in text.split(","):
        if "=" in part and ":" not in part and names:
            names[-1] += ("," if ":" in names[-1] else ":") + part
        else:
            names.append(part.strip())
    return [parse_accelerator(name) for name in names]


def parse_accelerator(text: str) -> Chip:
    """One accelerator, by name or from a .toml file; raises ValueError for what is not known."""
    if text.endswith(".toml"):
        return load_accelerator(text)
    name, _, arguments = text.partition(":")
    settings: dict[str, Any] = {}
    for argument in filter(None, arguments.split(",")):
        key, is_named, value = argument.partition("=")
        if is_named:
            settings[key.strip()] = _value(value.strip())
        elif name == "network":
            settings["gbit_per_s"] = Link.parse(argument).bandwidth_gbit_per_s
        elif name in _FIRST_FIELD:
            settings[_FIRST_FIELD[name]] = _value(argument.strip())
        else:
            raise ValueError(f"settings of {name!r} must be name=value, got {argument!r}")
    return _build(name, settings)


def load_accelerator(path: str | Path) -> Chip:
    """Accelerator described by a TOML file: `model`, and fields of that model by their names."""
    try:
        import tomllib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("accelerators in TOML files need Python 3.11 or newer") from error
    settings = tomllib.loads(Path(path).read_text())
    if "model" not in settings:
        raise ValueError(f"{path} must say model = one of {', '.join(_MODELS)}")
    return _build(settings.pop("model"), settings)


def _build(name: str, settings: dict[str, Any]) -> Chip:
    if name not in _MODELS:
        raise ValueError(f"accelerator must be one of {', '.join(_MODELS)} or a .toml file, got {name!r}")
    model: Callable[..., Chip] = _MODELS[name]
    known = [field.name for field in fields(_MODELS[name])]
    for key in settings:
        if key not in known:
            raise ValueError(f"{name} has no setting {key!r}; it has {', '.join(known)}")
    if "process" in settings:
        node = str(settings["process"]).removesuffix("nm")
        if node not in _PROCESSES:
            raise ValueError(f"process must be one of {', '.join(_PROCESSES)} (nm), got {settings['process']!r}")
        settings["process"] = _PROCESSES[node]
    return model(**settings)


def _value(text: str) -> Any:
    """Number, truth value or text."""
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
