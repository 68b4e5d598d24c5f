"""What rank 0 shows and writes while it trains: a progress bar, a line per epoch, TensorBoard and CSV."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from launch.options import Options, UsageError

__all__ = ["Logs"]


class Logs:
    """Context that writes the logs that the options ask for; does nothing on other ranks than 0."""

    def __init__(self, options: Options, *, rank: int, first_step: int) -> None:
        self._is_first = rank == 0
        show = options.run.progress
        self._has_bar = self._is_first and (show == "on" or (show == "auto" and sys.stderr.isatty()))
        self._interval = options.run.log_interval
        self._writers: list[Any] = []
        folder = options.run.log_folder
        if folder is not None and self._is_first:
            from dgcomp.telemetry import CSVWriter, TensorBoardWriter

            folder.mkdir(parents=True, exist_ok=True)
            # a resumed run gets a CSV file of its own beside that of the run it goes on from
            name = f"steps-from{first_step}.csv" if first_step else "steps.csv"
            try:
                self._writers = [TensorBoardWriter(folder), CSVWriter(folder / name)]
            except ModuleNotFoundError as error:
                raise UsageError(f"--log-folder: {error}") from None

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()

    def steps(self, steps: range, *, epoch: int, steps_per_epoch: int) -> Iterable[int]:
        """The steps of one epoch, with a progress bar if there is to be one."""
        if not self._has_bar:
            return steps
        from tqdm import tqdm

        done = steps.start % steps_per_epoch
        bar: Iterable[int] = tqdm(
            steps, desc=f"epoch {epoch + 1}", initial=done, total=done + len(steps), leave=False, unit="step"
        )
        return bar

    def is_due(self, step: int) -> bool:
        """Whether `write` has something to do after this step."""
        return bool(self._writers) and step % self._interval == 0

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the scalars of one step."""
        for writer in self._writers:
            writer.write(step, values)

    def say(self, text: str) -> None:
        """Print a line on rank 0."""
        if self._is_first:
            print(text, flush=True)
