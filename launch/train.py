"""Train a model with DDP over torchrun, with or without gradient compression: `train.py --help` says how.

The loop is plain PyTorch. What the model and its data are is in launch/tasks, what travels between the ranks in
launch/compression.py; every other module beside this one does what its name says.
"""

import gc
import math
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if __name__ == "__main__":
    # `launch` is not an installed package: it is found beside this file, whatever the working directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.checkpoint import load_checkpoint, save_checkpoint
from launch.compression import Exchange, build_exchange
from launch.logs import Logs
from launch.messages import gather_texts
from launch.meter import Meter
from launch.options import Options, UsageError, parse_options
from launch.report import render, summarize, write_json
from launch.stopping import STOPPED_STATUS, StopRequest, stop_with_launcher
from launch.tasks import Part, Task, build_task, seed_of

if TYPE_CHECKING:
    from dgcomp.hwmodel import Profile
    from dgcomp.sparse import Pruner

__all__ = ["learning_rate_factor", "main", "train"]


def main() -> None:
    """Parse the command line, join the other ranks, train; a user's error ends every rank with one sentence.

    Exit status 2 after such an error, STOPPED_STATUS if the run was asked to stop before its end.
    """
    stop_with_launcher()
    is_first = int(os.environ.get("RANK", 0)) == 0
    options = parse_options(quiet=not is_first)
    # several ranks share the cores: torch's default of one thread per core in each would fight over them
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    complaint, is_finished = None, False
    with _process_group(options) as device:
        try:
            is_finished = train(options, device)["is_finished"]
        except UsageError as error:
            complaint = str(error)  # and not the error, whose traceback would keep the DDP model alive
    if complaint is not None:
        if is_first:
            print(f"train.py: {complaint}", file=sys.stderr, flush=True)
        raise SystemExit(2)
    if not is_finished:
        raise SystemExit(STOPPED_STATUS)


@contextmanager
def _process_group(options: Options) -> Iterator[torch.device]:
    """Join the process group that torchrun describes, or make one of a single rank."""
    use_cuda = options.run.device == "cuda" or (options.run.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    backend = "nccl" if use_cuda else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(seconds=options.run.timeout_seconds))
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        # DDP objects sit in reference cycles; left to the interpreter's end, gloo's threads can abort a rank there
        gc.collect()
        dist.destroy_process_group()


def train(options: Options, device: torch.device) -> dict[str, Any]:
    """Train in the current process group and return the figures of the closing table (see `report.summarize`).

    Raises UsageError on every rank if data, batch size or checkpoint don't fit on one of them.
    """
    run = _prepare(options, device)
    hardware = _hardware_profile(options, run)
    end = min(options.train.epochs * run.task.steps_per_epoch, options.train.max_steps or sys.maxsize)
    with (
        StopRequest(device) as stop,
        Logs(options, rank=dist.get_rank(), first_step=run.step) as logs,
        hardware or nullcontext(),
    ):
        if run.step:
            logs.say(f"going on after step {run.step}")
        is_stopped = False
        while run.step < end and not is_stopped:
            is_stopped = _train_epoch(run, end, stop, logs, hardware)
            is_whole = run.step % run.task.steps_per_epoch == 0
            if is_whole or run.step == end:
                run.history.append(_evaluate(run))
                logs.say(_epoch_line(run, is_whole))
            complaint = _save(run, logs)
            is_stopped = is_stopped or (run.step < end and stop.agreed(run.step))
        if is_stopped and complaint:
            raise UsageError(complaint)
        if run.step == end and options.compress.flush and run.exchange.flush():
            run.flushed_value = _evaluate(run)
            _save(run, logs)
        if is_stopped:
            logs.say(f"stopped after step {run.step}; go on with --resume")
        result = _result(run, is_finished=not is_stopped)
        if hardware is not None and hardware.reports:
            logs.say(hardware.table(layers=False))
        if not is_stopped:
            logs.say(render(result))
    if options.run.result_json is not None and dist.get_rank() == 0:
        write_json(options.run.result_json, result)
    return result


@dataclass
class _Run:
    """Everything that a training loop holds; `step` counts optimizer steps since the start of the run."""

    options: Options
    task: Task
    exchange: Exchange
    precision: AbstractContextManager[Any]
    clip_norm: float | None
    pruner: "Pruner | None"
    meter: Meter
    step: int
    history: list[float]
    flushed_value: float | None = None

    def part(self, micro_batch: int) -> Part:
        """This rank's share of a global batch, or one of its micro-batches."""
        accumulate = self.options.train.accumulate
        return Part(dist.get_rank() * accumulate + micro_batch, dist.get_world_size() * accumulate)


def _prepare(options: Options, device: torch.device) -> _Run:
    """Build everything, on all ranks or on none, and go on from a checkpoint if asked to."""
    task = _build_together(options, device)
    clip_norm = options.train.clip_norm or task.clip_norm
    exchange = build_exchange(
        task.model, task.optimizer, options, steps_per_epoch=task.steps_per_epoch, clip_norm=clip_norm
    )
    precision = _precision(options, task)
    pruner = _pruner(options, task)
    step, history, totals = 0, [], {}
    folder = options.run.checkpoint_folder
    found = load_checkpoint(folder) if options.run.resume and folder is not None else None
    if found is not None:
        shared, own, is_own, remark = found
        if remark and dist.get_rank() == 0:
            print(f"train.py: {remark}", file=sys.stderr, flush=True)
        _check_fits(shared["made_by"], _made_by(options, task))
        task.model.load_state_dict(shared["model"])
        task.optimizer.load_state_dict(shared["optimizer"])
        if pruner is not None:
            pruner.load_state_dict(shared["pruner"])
        exchange.load_state_dict(own["exchange"])  # the means in it, unless all ranks bring their own
        if is_own:
            task.load_state_dict(own["task"])
        step, history, totals = shared["step"], shared["history"], shared["totals"]
    return _Run(options, task, exchange, precision, clip_norm, pruner, Meter(exchange, totals, step), step, history)


def _build_together(options: Options, device: torch.device) -> Task:
    """Build the task on every rank, first on one rank per machine, which may have to download data."""
    is_first_here = int(os.environ.get("LOCAL_RANK", dist.get_rank())) == 0
    task, error = None, ""
    for turn in (True, False):
        if is_first_here == turn:
            try:
                task = build_task(options, device)
                _check_batch_size(task.batch_size, options.train.accumulate)
            except UsageError as problem:
                error = str(problem)
        errors = list(filter(None, gather_texts(error)))
        if errors:
            raise UsageError(errors[0])
    assert task is not None  # no rank had an error
    return task


def _precision(options: Options, task: Task) -> AbstractContextManager[Any]:
    """The context of --quant, to be entered around every forward pass."""
    if options.train.quant is None:
        return nullcontext()
    from dgcomp.quant import context_from_flag  # replaces functions of torch: only for those who ask

    if any(isinstance(module, torch.nn.RNNBase) for module in task.model.modules()):
        raise UsageError(
            f"--quant does not reach into --model {options.model_name}, which torch runs as one operation: "
            "take --model gpt"
        )
    try:
        return context_from_flag(options.train.quant, task.model)
    except ValueError as error:
        raise UsageError(f"--quant: {error}") from None


def _pruner(options: Options, task: Task) -> "Pruner | None":
    """Zeroes weights after every step as --prune asks for it, the same ones on every rank."""
    if options.train.prune is None:
        return None
    from dgcomp.sparse import Pruner  # compiles kernels: only for those who ask
    from dgcomp.sparse.options import parse_schedule

    return Pruner(task.model, parse_schedule(options.train.prune))


def _check_batch_size(batch_size: int, accumulate: int) -> None:
    num_parts = dist.get_world_size() * accumulate
    if batch_size % num_parts:
        raise UsageError(
            f"--batch-size {batch_size} (all ranks together) must be a multiple of ranks x --accumulate = {num_parts}"
        )


def _hardware_profile(options: Options, run: "_Run") -> "Profile | None":
    """Prices the steps of rank 0 on the accelerators of --hardware; the ranks compute alike."""
    if options.run.hardware is None or dist.get_rank() > 0:
        return None
    from dgcomp.hwmodel import profile  # compiles simulators: only for those who ask

    return profile(run.exchange.ddp, options.run.hardware, every=options.run.hardware_every)


def _train_epoch(run: _Run, end: int, stop: StopRequest, logs: Logs, hardware: "Profile | None") -> bool:
    """Train to the end of the epoch or to step `end`; True if the ranks agreed to stop before."""
    steps_per_epoch, interval = run.task.steps_per_epoch, run.options.run.checkpoint_interval
    epoch = run.step // steps_per_epoch
    steps = range(run.step, min(end, (epoch + 1) * steps_per_epoch))
    run.task.model.train()
    for step in logs.steps(steps, epoch=epoch, steps_per_epoch=steps_per_epoch):
        loss, learning_rate = _train_step(run, step)
        run.step = step + 1
        if hardware is not None and hardware.step() is not None:
            logs.say(hardware.summary())
        if logs.is_due(run.step):
            logs.write(run.step, {"loss": loss, "learning_rate": learning_rate, **run.exchange.stats()})
        if run.step == steps.stop:
            break  # evaluation and a checkpoint come next, whoever wants to stop
        if stop.agreed(run.step):
            return True
        if interval is not None and run.step % interval == 0:
            _save(run, logs)
    return False


def _train_step(run: _Run, step: int) -> tuple[float, float]:
    """One optimizer step on the global batch; returns this rank's mean loss and the learning rate."""
    options, task, exchange, meter = run.options.train, run.task, run.exchange, run.meter
    meter.begin_step(step)
    # dropout is a function of seed, step and rank alone, so that a resumed run needs no saved random state
    torch.manual_seed(seed_of(options.seed, 3, step, dist.get_rank()))
    factor = learning_rate_factor(
        step,
        num_steps=options.epochs * task.steps_per_epoch,
        warmup_steps=round(options.lr_warmup_epochs * task.steps_per_epoch),
        schedule=options.lr_schedule,
    )
    for group in task.optimizer.param_groups:
        group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor
    epoch, step_in_epoch = divmod(step, task.steps_per_epoch)
    task.optimizer.zero_grad()
    total_loss = 0.0
    for micro_batch in range(options.accumulate):
        with meter.phase("data"):
            batch = task.batch(epoch, step_in_epoch, run.part(micro_batch))
        is_last = micro_batch == options.accumulate - 1
        with meter.phase("forward and backward"), nullcontext() if is_last else exchange.ddp.no_sync():
            bf16 = torch.autocast(exchange.ddp.device.type, torch.bfloat16, enabled=options.amp == "bf16")
            with bf16, run.precision:
                loss = task.loss(exchange.ddp, batch) / options.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
            total_loss += loss.item()
    with meter.phase("optimizer"):
        if run.clip_norm is not None and not exchange.clips_itself:
            torch.nn.utils.clip_grad_norm_(task.model.parameters(), run.clip_norm)
        task.optimizer.step()
        if run.pruner is not None:
            run.pruner.step()
    meter.end_step()
    return total_loss, task.optimizer.param_groups[0]["lr"]


def learning_rate_factor(step: int, *, num_steps: int, warmup_steps: int, schedule: str) -> float:
    """Learning rate of step `step` (from 0) as a share of its peak: a linear warm-up, then the schedule."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "step":
        return 0.1 ** ((2 * step >= num_steps) + (4 * step >= 3 * num_steps))
    return 1.0


def _evaluate(run: _Run) -> float:
    """The task's metric over the whole test set, each rank doing its part."""
    run.task.model.eval()
    # DDP copies rank 0's batch statistics to the others before a forward pass, so after the last one they differ
    for buffer in run.task.model.buffers():
        dist.broadcast(buffer, src=0)
    with run.precision:
        total = run.task.evaluate(Part(dist.get_rank(), dist.get_world_size())).to(run.exchange.ddp.device)
    dist.all_reduce(total)
    value, count = total.tolist()
    return run.task.score(value / count)


def _epoch_line(run: _Run, is_whole: bool) -> str:
    totals = run.meter.totals()
    name = f"epoch {run.step // run.task.steps_per_epoch}" if is_whole else f"step {run.step}"
    kept = f", {run.pruner.density:.1%} of the weights kept" if run.pruner is not None else ""
    return (
        f"{name}: {run.task.metric} {run.history[-1]:.2f}, {totals['seconds']:.0f} s, "
        f"{totals['bytes_sent'] / 1e6:.3g} MB sent by each rank{kept}"
    )


def _made_by(options: Options, task: Task) -> dict[str, Any]:
    """What must be the same for a checkpoint to fit."""
    return {
        "task": options.data.task,
        "model": options.model_name,
        "data": task.label,
        "compress": options.compress.compress,
        "batch-size": task.batch_size,
        "quant": options.train.quant,
        "prune": options.train.prune,
        "winograd": options.train.winograd or None,
    }


def _check_fits(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if saved.get(name) != value:  # checkpoints older than an option do not name it
            raise UsageError(
                f"the checkpoint was made with {name} {saved.get(name)}, not {value}: "
                "give the same options or another --checkpoint-folder"
            )


def _save(run: _Run, logs: Logs) -> str:
    """Save a checkpoint if there is to be one; a disk that takes none is said, not fatal, and said to the caller."""
    folder = run.options.run.checkpoint_folder
    if folder is None:
        return ""
    shared = {
        "made_by": _made_by(run.options, run.task),
        "model": run.task.model.state_dict(),
        "optimizer": run.task.optimizer.state_dict(),
        "step": run.step,
        "history": run.history,
        "totals": run.meter.totals(),
        "pruner": run.pruner.state_dict() if run.pruner is not None else None,
    }
    own = {"exchange": run.exchange.state_dict(), "task": run.task.state_dict()}
    try:
        save_checkpoint(folder, run.step, shared, own)
    except UsageError as error:
        logs.say(f"warning: {error}")
        return str(error)
    return ""


def _result(run: _Run, *, is_finished: bool) -> dict[str, Any]:
    totals = run.meter.totals()
    seconds = totals.pop("seconds")
    return summarize(
        run.options,
        label=run.task.label,
        metric=run.task.metric,
        history=run.history,
        flushed_value=run.flushed_value,
        ranks=dist.get_world_size(),
        steps=run.step,
        is_finished=is_finished,
        seconds=seconds,
        steady=run.meter.steady(),
        whole_run=totals,
        milliseconds=run.meter.milliseconds(),
    )


if __name__ == "__main__":
    main()
