"""The Hugging Face Trainer: one call between making the Trainer and `trainer.train()`.

The Trainer wraps the model in DDP, loads a checkpoint and trains, all inside `train()`. So the call leaves a callback
in the Trainer, and a step in `trainer.accelerator.prepare`, which is the last moment before a checkpoint's optimizer
state is loaded.
"""

from pathlib import Path
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from dgcomp.config import DGCConfig
from dgcomp.integrations.accelerate import FOLDER
from dgcomp.integrations.accelerate import attach as attach_to_prepared
from dgcomp.integrations.files import load_own, save_own
from dgcomp.state import DGCState

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("dgcomp.integrations.transformers needs it: pip install transformers") from error


def attach(trainer: Any, config: DGCConfig | None = None) -> "DGCCallback":
    """Compress the gradient exchange of a Trainer's coming `train()` on several processes.

    Checkpoints get a folder `dgcomp` with the residuals, one file for each rank, and
    `train(resume_from_checkpoint=...)` reads it. The result's `.state` is the DGCState once training has begun.

    Parameters
    ----------
    trainer : transformers.Trainer, which will run on DDP
    config : DGCConfig, optional

    Raises
    ------
    ValueError
        If the Trainer would clip the update: its `max_grad_norm` is 1 unless it is set to 0.
    """
    if trainer.args.max_grad_norm:
        raise ValueError(
            f"max_grad_norm={trainer.args.max_grad_norm} would clip the update and not the gradient; set "
            f"TrainingArguments(max_grad_norm=0) and DGCConfig(clip_norm={trainer.args.max_grad_norm})"
        )
    callback = DGCCallback(trainer, config or DGCConfig())
    trainer.add_callback(callback)
    return callback


class DGCCallback(TrainerCallback):  # type: ignore[misc]  # transformers may be absent when types are checked
    """What `attach` leaves in a Trainer."""

    def __init__(self, trainer: Any, config: DGCConfig):
        self.config = config
        self.state: DGCState | None = None
        self._resume_from: Any = None
        self._trainer = trainer
        self._prepare, self._train = trainer.accelerator.prepare, trainer.train
        trainer.accelerator.prepare, trainer.train = self._prepare_and_attach, self._note_and_train

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check that compression is on, and go on from a checkpoint's residuals."""
        if self.state is None:
            raise ValueError(
                "the Trainer did not wrap the model in DDP, so there is no exchange to compress; "
                "start it in at least two processes with torchrun"
            )
        resume_from = get_last_checkpoint(args.output_dir) if self._resume_from is True else self._resume_from
        if resume_from:
            load_own(self.state, Path(resume_from) / FOLDER)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the residuals into the checkpoint that was just written; the Trainer calls it on every rank."""
        if self.state is not None:
            save_own(self.state, Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / FOLDER)

    def _note_and_train(self, resume_from_checkpoint: Any = None, *args: Any, **options: Any) -> Any:
        self._resume_from = resume_from_checkpoint or self._trainer.args.resume_from_checkpoint
        return self._train(resume_from_checkpoint, *args, **options)

    def _prepare_and_attach(self, *objects: Any, **options: Any) -> Any:
        prepared = self._prepare(*objects, **options)
        if isinstance(prepared, tuple) and isinstance(prepared[0], DistributedDataParallel) and self.state is None:
            self.state = attach_to_prepared(self._trainer.accelerator, prepared[0], prepared[1], self.config)
        return prepared
