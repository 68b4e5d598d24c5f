"""torchft: local SGD between replicas that fail, come and go, its outer exchange compressed by DGC.

A replica is one process here. Before each outer step torchft's Manager agrees on a quorum; its replicas are torch's
default process group until the next one, so that the compressor runs on plain collectives. A round in which a replica
or a link fails is dropped as if it had not been trained. A replica that joins takes the start, the outer optimizer and
the momentum of another one, and begins with an empty residual; what a lost replica still held back is lost with it.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dgcomp.compressor import Compressor
from dgcomp.config import DGCConfig
from dgcomp.integrations.local_sgd import LocalSGD

try:
    from torchft.manager import Manager
    from torchft.process_group import ProcessGroupWrapper
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("dgcomp.integrations.torchft needs torchft: pip install torchft") from error

__all__ = ["ManagedLocalSGD", "QuorumGroup"]


class QuorumGroup(ProcessGroupWrapper):  # type: ignore[misc]  # torchft may be absent
    """What `Manager(pg=...)` configures: makes the replicas of a quorum torch's default process group."""

    backend = "gloo"

    def getBackendName(self) -> str:
        return self.backend

    def abort(self, errored: bool = True) -> None:
        """Leave the group of the last quorum."""
        if dist.is_initialized():
            dist.destroy_process_group()
        self._pg = None

    def _create_pg(self, store: dist.Store, rank: int, world_size: int) -> Any:
        dist.init_process_group(self.backend, store=store, rank=rank, world_size=world_size, timeout=self._timeout)
        return dist.group.WORLD


class QuorumCompressor(Compressor):
    """A compressor that can forget a step that failed half-way, and take over from another replica."""

    def kept(self) -> dict[str, Any]:
        """Copy of what a step changes."""
        memory = self.memory
        return {
            "tensors": {name: flat.clone() for name, flat in memory._flat_tensors().items()},
            "attributes": {
                name: copy.copy(getattr(memory, name))
                for name in ("thresholds", "learning_rates", "replicated", "residual_in_gradient")
            },
            "steps": self.counters.steps,
        }

    def go_back(self, kept: Mapping[str, Any]) -> None:
        """Be as when `kept` was taken, by this replica or by another one."""
        for name, flat in self.memory._flat_tensors().items():
            flat.copy_(kept["tensors"][name])
        for name, value in kept["attributes"].items():
            setattr(self.memory, name, copy.copy(value))
        self.counters.steps = kept["steps"]
        self._forget_step()


class ManagedLocalSGD(LocalSGD):
    """`LocalSGD` whose outer steps are between the replicas of a torchft Manager.

    Parameters
    ----------
    manager : torchft.Manager
        With ``pg=QuorumGroup()`` and ``use_async_quorum=False``, and state functions for what is not in the
        parameters and the outer optimizer (buffers, the inner optimizer). Collectives wait for `QuorumGroup`'s timeout.
    model, inner_optimizer, outer_optimizer, sync_every, config
        As of LocalSGD; `exchange` is "all_gather" or dense, `ranks_per_node` 1: other exchanges depend on who takes
        part.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        For such a config, an asynchronous quorum, a default process group of the script's own, or as LocalSGD.
    """

    _compressor_class = QuorumCompressor
    compressor: QuorumCompressor

    def __init__(
        self,
        manager: "Manager",
        model: nn.Module,
        inner_optimizer: torch.optim.Optimizer,
        outer_optimizer: torch.optim.Optimizer,
        *,
        sync_every: int,
        config: DGCConfig | None = None,
    ):
        config = config or DGCConfig()
        if config.exchange in ("owner", "auto") or config.ranks_per_node != 1:
            raise ValueError(
                f"exchange must be 'all_gather' or dense and ranks_per_node 1 with torchft, whose quorums change, got "
                f"{config.exchange!r} and {config.ranks_per_node}"
            )
        if manager._use_async_quorum or not isinstance(manager._pg, QuorumGroup):
            raise ValueError("manager must be made with pg=QuorumGroup() and use_async_quorum=False")
        if dist.is_initialized():
            raise RuntimeError("a quorum has to be torch's default process group; leave init_process_group out")
        # What the constructor agrees on, this replica agrees on with itself: it may join while others train.
        dist.init_process_group(QuorumGroup.backend, store=dist.HashStore(), rank=0, world_size=1)
        super().__init__(model, inner_optimizer, outer_optimizer, sync_every=sync_every, config=config)
        self.manager = manager
        manager.register_state_dict_fn("dgcomp", self._join, self._offer)

    @torch.no_grad()
    def outer_step(self) -> bool:
        """As of LocalSGD, within a new quorum; False also if the round was dropped because a replica or link failed."""
        self.manager.start_quorum()
        before, moved, is_finite = self.compressor.kept(), self._take_pseudo_gradients(), True
        if self.manager.errored() is None:
            try:
                is_finite = self.compressor.reduce(moved)
            except RuntimeError as error:  # from a collective
                self.manager.report_error(error)
        if not self.manager.should_commit():
            self.compressor.go_back(before)
            return False
        if is_finite:
            self._apply(moved)
        else:
            self._heal_inner_optimizer()
        return is_finite

    def _offer(self) -> dict[str, Any]:
        start = {name: tensor.clone() for name, tensor in self.start.items()}
        outer = copy.deepcopy(self.outer_optimizer.state_dict())
        return {"start": start, "outer_optimizer": outer, "compressor": self.compressor.kept()}

    @torch.no_grad()
    def _join(self, offered: Mapping[str, Any]) -> None:
        for name, parameter in self._parameters.items():
            self.start[name].copy_(offered["start"][name])
            parameter.copy_(self.start[name])
        self.outer_optimizer.load_state_dict(offered["outer_optimizer"])
        self.compressor.go_back(offered["compressor"])
        self.compressor.memory.residual.zero_()
        self.compressor.memory.leftover_residual.zero_()
