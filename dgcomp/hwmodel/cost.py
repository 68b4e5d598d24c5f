"""What a piece of work costs on a piece of hardware: cycles, seconds, joules, and where they go.

A `Cost` is what every accelerator of this package returns. Costs add (`a + b` is a, then b, on the same chip) and
scale (`3 * a` is a three times), so layers add up to steps and steps to epochs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BREAKDOWN_UNITS", "Cost"]

BREAKDOWN_UNITS = ("cycles", "seconds", "joules", "bytes", "count")


@dataclass(frozen=True, slots=True)
class Cost:
    """Cycles, seconds and joules of some work on one chip of `area_mm2`, with a breakdown.

    Keys of `breakdown` say what and end in their unit: "spmat_read_joules", "stall_cycles", "dram_a_bytes",
    "multiplies_count". `notes` are sentences a reader of the numbers must know: a limit exceeded, a sampling error,
    a part not priced. Raises ValueError for a breakdown key without a unit.
    """

    cycles: float = 0.0
    seconds: float = 0.0
    joules: float = 0.0
    breakdown: Mapping[str, float] = field(default_factory=dict)
    area_mm2: float = 0.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in self.breakdown:
            if key.rsplit("_", 1)[-1] not in BREAKDOWN_UNITS:
                raise ValueError(f"breakdown key must end in one of {', '.join(BREAKDOWN_UNITS)}, got {key!r}")

    @property
    def watts(self) -> float:
        """Mean power; 0 for work that takes no time."""
        return self.joules / self.seconds if self.seconds else 0.0

    def part(self, unit: str) -> dict[str, float]:
        """The entries of the breakdown in one unit, such as "joules", by the name before the unit."""
        return {
            key.removesuffix(f"_{unit}"): value for key, value in self.breakdown.items() if key.endswith(f"_{unit}")
        }

    def __add__(self, other: "Cost") -> "Cost":
        keys = list(self.breakdown) + [key for key in other.breakdown if key not in self.breakdown]
        return Cost(
            cycles=self.cycles + other.cycles,
            seconds=self.seconds + other.seconds,
            joules=self.joules + other.joules,
            breakdown={key: self.breakdown.get(key, 0.0) + other.breakdown.get(key, 0.0) for key in keys},
            area_mm2=max(self.area_mm2, other.area_mm2),
            notes=self.notes + tuple(note for note in other.notes if note not in self.notes),
        )

    def __mul__(self, times: float) -> "Cost":
        return Cost(
            cycles=self.cycles * times,
            seconds=self.seconds * times,
            joules=self.joules * times,
            breakdown={key: value * times for key, value in self.breakdown.items()},
            area_mm2=self.area_mm2,
            notes=self.notes,
        )

    __rmul__ = __mul__
