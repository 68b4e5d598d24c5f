"""`hwmodel.profile`: a context around a training loop that prices every n-th step on the accelerators asked for."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from dgcomp.hwmodel.network import Network
from dgcomp.hwmodel.operation import Accelerator
from dgcomp.hwmodel.profile import report
from dgcomp.hwmodel.profile.capture import Capture
from dgcomp.hwmodel.profile.sampling import Sampler
from dgcomp.hwmodel.profile.step import StepReport, price_step
from dgcomp.hwmodel.registry import parse_accelerator, parse_accelerators

__all__ = ["Profile", "profile"]


class Profile:
    """Prices sampled steps of a training loop; made by `profile`. Call `step()` at the end of every step."""

    def __init__(
        self,
        model: nn.Module,
        accelerators: "str | Iterable[str | Accelerator | Network]",
        *,
        every: int = 50,
        vectors: int = 8,
        elements: int = 4096,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        chips = _accelerators(accelerators)
        self.networks = [chip for chip in chips if isinstance(chip, Network)]
        self.accelerators: list[Accelerator] = [chip for chip in chips if not isinstance(chip, Network)]
        if not self.accelerators:
            raise ValueError('accelerators must name at least one chip, such as "eie", got only networks or nothing')
        names = [chip.name for chip in self.accelerators]
        if len(set(names)) < len(names):
            raise ValueError(f"accelerators must have different names, got {', '.join(names)}")
        self.reports: list[StepReport] = []
        """One report for each sampled step."""
        self._model = model
        self._every = every
        self._sampler = Sampler(elements=elements, vectors=vectors, seed=seed)
        self._step = 0
        self._capture: Capture | None = None

    def __enter__(self) -> "Profile":
        self._start_if_sampled()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        capture = self._stop()
        # A loop that never calls step(), or leaves in the middle of one, still gets what was seen.
        if capture is not None and kind is None and capture.operations:
            self._price(capture)

    def step(self) -> StepReport | None:
        """End a training step; the report if it was a sampled one, else None."""
        capture = self._stop()
        report_ = None if capture is None else self._price(capture)
        self._step += 1
        self._start_if_sampled()
        return report_

    def _start_if_sampled(self) -> None:
        if self._step % self._every == 0:
            self._capture = Capture(self._model, self._sampler)
            self._capture.__enter__()

    def _stop(self) -> Capture | None:
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.__exit__(None, None, None)
        return capture

    def _price(self, capture: Capture) -> StepReport:
        priced = price_step(
            self._step,
            capture.operations,
            self.accelerators,
            self.networks,
            sum(parameter.numel() for parameter in self._model.parameters() if parameter.requires_grad),
            unknown=dict(capture.unknown),
            other_calls=capture.other_calls,
            other_elements=capture.other_elements,
        )
        self.reports.append(priced)
        return priced

    @property
    def last(self) -> StepReport:
        """Report of the last sampled step; RuntimeError before there is one."""
        if not self.reports:
            raise RuntimeError("no step has been priced yet; call step() at the end of a training step")
        return self.reports[-1]

    def table(self, *, layers: bool = True) -> str:
        """The last sampled step as text: a line for each layer and direction (if `layers`), totals, what is missing."""
        return report.table(self.last, layers=layers)

    def summary(self) -> str:
        """The last sampled step in one line: time and energy on every accelerator."""
        return report.summary(self.last)

    def export(self, path: str | Path) -> None:
        """Write all sampled steps: .json (Chrome trace, opens in Perfetto), .csv, .html, or .png (needs matplotlib)."""
        writers = {
            ".json": report.write_trace,
            ".csv": report.write_csv,
            ".html": report.write_html,
            ".png": report.plot,
        }
        suffix = Path(path).suffix
        if suffix not in writers:
            raise ValueError(f"path must end in one of {', '.join(writers)}, got {str(path)!r}")
        _ = self.last
        writers[suffix](self.reports, Path(path))

    def log(self, writer: Any) -> None:
        """Write the last sampled step's scalars to a torch.utils.tensorboard.SummaryWriter."""
        for tag, value in report.scalars(self.last).items():
            writer.add_scalar(tag, value, self.last.step)


def profile(
    model: nn.Module,
    accelerators: "str | Iterable[str | Accelerator | Network]",
    *,
    every: int = 50,
    vectors: int = 8,
    elements: int = 4096,
    seed: int = 0,
) -> Profile:
    """Price the steps of a training loop on accelerators, from its real weights and activations.

        with hwmodel.profile(model, "eie,vsquant:4/4/4/6,network:1gbit") as prof:
            for x, y in batches:
                ...  # forward, backward, optimizer: unchanged
                prof.step()
        print(prof.table())

    Parameters
    ----------
    accelerators : chips and networks, or their names, see `hwmodel.parse_accelerators`.
    every : steps from one that is sampled to the next; the first one is. Others run as if there were no profiler.
    vectors : columns of every operand whose whole pattern is kept: cycles are means over them.
    elements : elements of every activation that are looked at to measure its density.

    Works under DDP, torch.compile (a sampled step runs eagerly), torch.autocast and checkpointing. Raises ValueError
    for an unknown accelerator name (the message lists the known ones) or numbers below 1.
    """
    return Profile(model, accelerators, every=every, vectors=vectors, elements=elements, seed=seed)


def _accelerators(accelerators: "str | Iterable[str | Accelerator | Network]") -> list[Accelerator | Network]:
    if isinstance(accelerators, str):
        return parse_accelerators(accelerators)
    return [parse_accelerator(chip) if isinstance(chip, str) else chip for chip in accelerators]
