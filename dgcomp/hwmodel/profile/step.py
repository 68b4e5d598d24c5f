"""What one training step costs: every operation on every accelerator, with the shares that no model covers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.network import Network
from dgcomp.hwmodel.operation import Accelerator, Operation, Precision

__all__ = ["OperationCost", "StepReport", "price_step"]


@dataclass(frozen=True, slots=True)
class OperationCost:
    """One operation without its samples, and its cost on each accelerator (None: not priced)."""

    layer: str
    kind: str
    phase: str
    macs: int
    weight_density: float
    activation_density: float
    activation_density_error: float
    """Standard error of the measured density."""
    precision: Precision
    costs: dict[str, Cost | None]


@dataclass(frozen=True, slots=True)
class StepReport:
    """All matrix products of one step, priced."""

    step: int
    accelerators: tuple[str, ...]
    operations: tuple[OperationCost, ...]
    networks: dict[str, dict[str, Cost]] = field(default_factory=dict)
    """By network, by accelerator: what the exchange adds to that accelerator's step."""
    unknown: dict[str, int] = field(default_factory=dict)
    """Operators that multiply matrices and that the profiler cannot read, with their calls: priced nowhere."""
    other_calls: int = 0
    """Calls of everything that is no matrix product (elementwise, normalization, optimizer): priced nowhere."""
    other_elements: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the step, dense."""
        return sum(operation.macs for operation in self.operations)

    def total(self, accelerator: str) -> Cost:
        """Cost of all operations that `accelerator` prices."""
        costs = (operation.costs[accelerator] for operation in self.operations)
        return reduce(Cost.__add__, (cost for cost in costs if cost is not None), Cost())

    def not_priced(self, accelerator: str) -> tuple[float, dict[str, float]]:
        """Share of the step's multiply-accumulates that `accelerator` does not price, in all and by what it is."""
        shares: dict[str, float] = {}
        for operation in self.operations:
            if operation.costs[accelerator] is None:
                what = f"{operation.kind} {operation.phase}"
                shares[what] = shares.get(what, 0.0) + operation.macs / max(self.macs, 1)
        return sum(shares.values()), shares


def price_step(
    step: int,
    operations: Sequence[Operation],
    accelerators: Sequence[Accelerator],
    networks: Sequence[Network],
    gradient_numel: int,
    **counts: object,
) -> StepReport:
    """Price captured operations; the networks exchange a gradient of `gradient_numel` elements."""
    rows = tuple(
        OperationCost(
            layer=operation.layer,
            kind=operation.kind,
            phase=operation.phase,
            macs=operation.macs,
            weight_density=operation.a_density,
            activation_density=operation.x_density,
            activation_density_error=operation.x_density_error,
            precision=operation.precision,
            costs={accelerator.name: accelerator.price(operation) for accelerator in accelerators},
        )
        for operation in operations
    )
    report = StepReport(step, tuple(accelerator.name for accelerator in accelerators), rows, **counts)  # type: ignore[arg-type]
    for network in networks:
        report.networks[network.name] = {
            name: network.step(report.total(name).seconds, gradient_numel) for name in report.accelerators
        }
    return report
