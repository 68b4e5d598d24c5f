"""Horovod: a DistributedOptimizer whose exchange is DGC, over Horovod's allgather, alltoall and allreduce.

Horovod's own `compression=` hook has no place for it: what it returns is summed by an allreduce of the tensor's shape,
and it is not told which parameter a tensor belongs to.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from dgcomp.compressor import Compressor
from dgcomp.config import DGCConfig
from dgcomp.integrations.horovod_group import hvd, use_horovod_group


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    config: DGCConfig | None = None,
    *,
    grad_scaler: Any = None,
) -> Any:
    """The same optimizer, which exchanges gradients by DGC in every `step()`; collective: call it on every rank.

    Broadcast the parameters first, as Horovod's examples do. All backward passes since the last zero_grad count as one
    step, so that gradients accumulate without an option. The optimizer gets three attributes: `compressor` (its
    stats(), state_dict(), flush(), as of DGCState), `synchronize()` and `skip_synchronize()`, the last two as in
    Horovod: with a GradScaler, synchronize(), then scaler.unscale_(optimizer), then scaler.step(optimizer) inside
    `with optimizer.skip_synchronize()`.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    named_parameters : as of model.named_parameters()
    config : DGCConfig, optional; `ranks_per_node` stays 1
    grad_scaler : torch.amp.GradScaler, optional

    Raises
    ------
    ValueError, RuntimeError
        On every rank alike, as `dgcomp.attach`.
    """
    config = config or DGCConfig()
    if config.ranks_per_node != 1:
        raise ValueError(f"ranks_per_node must be 1 with Horovod, got {config.ranks_per_node}")
    use_horovod_group()
    state = HorovodState.attached(named_parameters, optimizer, config, grad_scaler=grad_scaler)
    state.watch(optimizer)
    return optimizer


class HorovodState(Compressor):
    """The compressor of one optimizer; give it to `hvd.elastic.TorchState(..., compressor=optimizer.compressor)`."""

    _has_gradients = False
    _is_synchronized = False
    _skips_update = False

    def watch(self, optimizer: Any) -> None:
        """Exchange gradients before every step of the optimizer, and give it Horovod's methods."""
        optimizer.register_step_pre_hook(self._before_update)
        optimizer.register_step_post_hook(self._after_update)
        for parameter in self._names:
            parameter.register_post_accumulate_grad_hook(self._note_gradient)
        optimizer.compressor, optimizer.synchronize = self, self.synchronize
        optimizer.skip_synchronize = self.skip_synchronize

    def synchronize(self) -> None:
        """Exchange the gradients now, and not in the next step; collective."""
        is_finite = self.reduce_parameter_gradients()
        is_scaled = self.grad_scaler is not None and self.grad_scaler.is_enabled()
        self._is_synchronized, self._skips_update = True, not is_finite and not is_scaled

    @contextlib.contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Steps in this block take gradients that `synchronize` has exchanged already."""
        if not self._is_synchronized:
            raise RuntimeError("skip_synchronize() needs a synchronize() before it; call it after backward")
        yield
        self._is_synchronized = False

    def flush(self) -> dict[str, Tensor]:
        """As Compressor.flush; the step that it may make exchanges nothing."""
        self._has_gradients = False
        return super().flush()

    def _note_gradient(self, _parameter: Tensor) -> None:
        # hvd.broadcast_optimizer_state makes a step of zeros, which is none to exchange.
        self._has_gradients = True

    def _before_update(self, _optimizer: Any, args: Any, kwargs: Any) -> None:
        if kwargs.get("closure") or len(args) > 1:
            raise ValueError("step(closure) would need an exchange inside the step; call backward, then step()")
        if self._has_gradients and not self._is_synchronized:
            self.synchronize()
        if self._skips_update:
            for parameter in self._names:
                parameter.grad = None

    def _after_update(self, *_: Any) -> None:
        self._has_gradients = self._is_synchronized = self._skips_update = False


class CompressorStateHandler(hvd.elastic.state.StateHandler):  # type: ignore[misc]  # Horovod may be absent
    """Residuals and momentum in Horovod's elastic state: committed by every rank, shared after a change of ranks.

    A commit keeps each rank's own u and v and their means. A rank that rolls back goes on from its own; after ranks
    have come or gone all start from the means of the last commit.
    """

    def __init__(self, value: Compressor):
        super().__init__(value)
        self._saved = value.state_dict()

    def save(self) -> None:
        """Keep the state of this commit; collective, as a commit is."""
        self._saved = self.value.state_dict()

    def restore(self) -> None:
        """Take the last commit back, once the ranks have met again in sync()."""

    def sync(self) -> None:
        """Meet again, and go on from the last commit of rank 0; collective."""
        use_horovod_group()
        self.value.load_state_dict(hvd.broadcast_object(self._saved, root_rank=0, name="dgcomp.state"))
        self._saved = self.value.state_dict()


hvd.elastic.state.get_handler_registry().append((Compressor, CompressorStateHandler))
