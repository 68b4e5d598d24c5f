"""One command-line flag for the whole of quantized training: `--quant 4/4`, `--quant 4/8/6/10,rounding=paper`."""

import contextlib
from typing import Any

from torch import nn

from dgcomp.quant.autocast import autocast
from dgcomp.quant.recipe import parse_notation

__all__ = ["context_from_flag"]

_BOOLEANS = {"true": True, "false": False}
_SWITCHES = ("embedding", "matmul", "pack", "cache")
_NUMBERS = ("vector", "first_last")


def context_from_flag(flag: str | None, model: nn.Module | None) -> contextlib.AbstractContextManager[Any]:
    """The context that a flag asks for, to be entered around every forward pass; None or "" asks for none.

    The flag is a notation W/A or W/A/ws/as, then ",name=value" for arguments of `autocast` and fields of `Recipe`:
    method, grid, rounding, weight_estimator, activation_estimator, vector, first_last (a number or none), pack, matmul,
    embedding; and ",pattern:notation" for exceptions by layer name, such as "head:8/8" or "blocks.0.*:-/-".
    Without a model it is only checked, as far as that goes without layer names.
    Backward runs outside of the context as well as inside. Raises ValueError for anything else.
    """
    if not flag:
        return contextlib.nullcontext()
    notation, *settings = flag.split(",")
    options: dict[str, Any] = {}
    rules: dict[str, str] = {}
    for setting in settings:
        pattern, colon, rule = (part.strip() for part in setting.partition(":"))
        name, equals, value = (part.strip() for part in setting.partition("="))
        if colon:
            parse_notation(rule)
            rules[pattern] = rule
        elif equals:
            options[name] = _value(name, value)
        else:
            raise ValueError(f"settings must read name=value or layer:notation, got {setting!r} in {flag!r}")
    try:
        return autocast(notation, model=model, rules=rules if model is not None else None, **options)
    except TypeError as error:
        raise ValueError(f"{flag!r} names an unknown setting: {error}") from None


def _value(name: str, text: str) -> object:
    if name in _SWITCHES:
        if text.lower() not in _BOOLEANS:
            raise ValueError(f"setting {name} must be true or false, got {text!r}")
        return _BOOLEANS[text.lower()]
    if name in _NUMBERS:
        if text.lower() == "none":
            return None
        if not text.isdigit():
            raise ValueError(f"setting {name} must be a number, got {text!r}")
        return int(text)
    return text
