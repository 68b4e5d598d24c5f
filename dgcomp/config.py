"""What the user chooses: one validated, frozen dataclass."""

from dataclasses import asdict, dataclass
from typing import Any

MODES = ("auto", "momentum_correction", "error_feedback")
WARMUPS = ("exponential", "paper", "dense")
EXCHANGES = ("auto", "all_gather", "owner", "dense", "dense_bf16")
VALUE_FORMATS = ("auto", "paper", "fp32", "bf16", "int8", "int4", "sign")
LEFTOVER_CODECS = ("fp32", "bf16", "int8", "int4")


@dataclass(frozen=True, kw_only=True)
class DGCConfig:
    """Settings of Deep Gradient Compression (arXiv 1712.01887); every field has a default that works.

    Raises ValueError or TypeError, naming the field, for a value that is not allowed.
    """

    density: float = 0.001
    """Share of each tensor of two or more dimensions that is sent per step, in (0, 1]; 1 is plain dense training."""

    mode: str = "auto"
    """"momentum_correction" (SGD; paper, section 3.2), "error_feedback" (any optimizer), or "auto" by optimizer."""

    momentum: float | None = None
    """Momentum that the hook applies; None takes the optimizer's (attach), or 0 without an optimizer."""

    nesterov: bool | None = None
    """Nesterov form of the momentum; None takes the optimizer's."""

    weight_decay: float | None = None
    """L2 penalty added to the local gradient before the momentum; None takes the optimizer's."""

    clip_norm: float | None = None
    """Global gradient norm above which gradients are scaled down; None switches clipping off."""

    momentum_masking: bool = True
    """Forget the momentum of an entry that has just been sent (paper, section 3.3)."""

    warmup_steps: int = 0
    """Optimizer steps until `density` is reached; 0 starts there at once."""

    warmup: str = "exponential"
    """Form of the warm-up: "exponential" per step from 25 %, the "paper"'s stages, or "dense" (bf16 all-reduce)."""

    codec: str = "int4"
    """Wire format of sent entries (docs/wire.md): "int4", "int8", "bf16", "fp32", "sign" or the "paper"'s 48 bits."""

    leftover_codec: str = "int4"
    """Wire format of the tensors of fewer than two dimensions (biases, norms), which are always sent whole."""

    exchange: str = "all_gather"
    """How entries travel: "all_gather", "owner" (O(k) bytes for any number of ranks), "dense", "dense_bf16", "auto"."""

    ranks_per_node: int = 1
    """Ranks that share a node: their gradients are averaged densely first, and only nodes exchange entries."""

    check_every: int = 0
    """Compare the parameters of all ranks bit by bit every so many steps; 0 never."""

    seed: int = 0
    """Seed of the sampling and of the choice among ties."""

    def __post_init__(self) -> None:
        _check_number("density", self.density, 0.0, 1.0, exclude_low=True)
        _check_choice("mode", self.mode, MODES)
        _check_choice("warmup", self.warmup, WARMUPS)
        _check_choice("exchange", self.exchange, EXCHANGES)
        _check_choice("codec", self.codec.split("+")[0] if isinstance(self.codec, str) else self.codec, VALUE_FORMATS)
        _check_choice("leftover_codec", self.leftover_codec, LEFTOVER_CODECS)
        if self.momentum is not None:
            _check_number("momentum", self.momentum, 0.0, 1.0, exclude_high=True)
        if self.weight_decay is not None:
            _check_number("weight_decay", self.weight_decay, 0.0, float("inf"), exclude_high=True)
        if self.clip_norm is not None:
            _check_number("clip_norm", self.clip_norm, 0.0, float("inf"), exclude_low=True, exclude_high=True)
        _check_count("warmup_steps", self.warmup_steps, 0)
        _check_count("ranks_per_node", self.ranks_per_node, 1)
        _check_count("check_every", self.check_every, 0)
        _check_count("seed", self.seed, 0)
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov=True needs a momentum above 0; set momentum or leave nesterov out")
        if self.mode == "error_feedback" and (self.momentum or self.nesterov or self.weight_decay):
            raise ValueError(
                'mode="error_feedback" leaves momentum and weight decay to the optimizer; '
                "set them there and not in DGCConfig"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary of all fields, as checkpoints hold it."""
        return asdict(self)


def _check_number(
    name: str, value: Any, low: float, high: float, *, exclude_low: bool = False, exclude_high: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    above = value > low if exclude_low else value >= low
    below = value < high if exclude_high else value <= high
    if not (above and below):  # also false for NaN
        interval = f"{'(' if exclude_low else '['}{low:g}, {high:g}{')' if exclude_high else ']'}"
        raise ValueError(f"{name} must lie in {interval}, got {value!r}")


def _check_count(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value!r}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
