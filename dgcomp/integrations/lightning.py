"""Lightning: a strategy, `Trainer(strategy=DGCStrategy(config))`.

A strategy and not a callback, because it alone knows where a checkpoint is written, and sees the optimizer before its
state is restored. Lightning's own `DDPStrategy(ddp_comm_hook=...)` is ignored on the CPU and leaves the residuals out
of the checkpoint.
"""

import shutil
from pathlib import Path
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from dgcomp.attach import attach
from dgcomp.config import DGCConfig
from dgcomp.integrations.files import load_own, save_own
from dgcomp.state import DGCState

try:
    from lightning.pytorch.strategies import DDPStrategy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("dgcomp.integrations.lightning needs Lightning: pip install lightning") from error


class DGCStrategy(DDPStrategy):  # type: ignore[misc]  # Lightning may be absent when types are checked
    """Lightning's DDP with compressed gradients.

    Beside every checkpoint `x.ckpt` stands a folder `x.ckpt.dgcomp` with the residuals, one file for each rank; keep
    the two together. `state` is the DGCState while fitting. Clip with DGCConfig(clip_norm=...) and not with the
    Trainer's gradient_clip_val.

    Parameters
    ----------
    config : DGCConfig, optional
    options : those of lightning.pytorch.strategies.DDPStrategy but the hook's

    Raises
    ------
    ValueError
        When fitting starts, if the module has more than one optimizer, or as `dgcomp.attach`.
    """

    def __init__(self, config: DGCConfig | None = None, **options: Any):
        super().__init__(**options)
        self.config = config or DGCConfig()
        self.state: DGCState | None = None
        self._resume_from: str | None = None

    def setup(self, trainer: Any) -> None:
        """Set DDP and the optimizer up and attach to them; then the residuals of a checkpoint are read."""
        super().setup(trainer)
        if not isinstance(self.model, DistributedDataParallel):
            return  # not fitting: no gradients
        if len(self.optimizers) != 1:
            raise ValueError(f"configure_optimizers must return one optimizer for DGC, got {len(self.optimizers)}")
        if trainer.gradient_clip_val:
            raise ValueError(
                f"gradient_clip_val={trainer.gradient_clip_val} would clip the update and not the gradient; "
                "use DGCConfig(clip_norm=...)"
            )
        scaler = getattr(self.precision_plugin, "scaler", None)
        self.state = attach(self.model, self.optimizers[0], self.config, grad_scaler=scaler)
        if self._resume_from is not None:
            load_own(self.state, _folder(self._resume_from))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save Lightning's checkpoint and the residuals beside it; Lightning calls it on every rank."""
        super().save_checkpoint(checkpoint, filepath, storage_options)
        if self.state is not None:
            save_own(self.state, _folder(filepath))

    def load_checkpoint(self, checkpoint_path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Read Lightning's checkpoint, and remember where the residuals are."""
        self._resume_from = str(checkpoint_path)
        checkpoint: dict[str, Any] = super().load_checkpoint(checkpoint_path, *args, **options)
        return checkpoint

    def remove_checkpoint(self, filepath: Any) -> None:
        """Remove a checkpoint with its residuals."""
        super().remove_checkpoint(filepath)
        if self.local_rank == 0:
            shutil.rmtree(_folder(filepath), ignore_errors=True)

    def teardown(self) -> None:
        """Let go of the model."""
        if self.state is not None:
            self.state.close()
        super().teardown()


def _folder(filepath: Any) -> Path:
    return Path(f"{filepath}.dgcomp")
