"""torchft: replicas of one process each, with a lighthouse; a round that fails, and a replica that starts again."""

import warnings
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import dgcomp
from dgcomp.integrations.local_sgd import LocalSGD
from tests.integrations.jobs import LossNet
from tests.ranks import run_ranks
from tests.training import batch

SPARSE = dgcomp.DGCConfig(density=0.1, warmup_steps=2, momentum_masking=False)


class _Replica:
    """A small model in training; without a manager on plain ranks, as the reference."""

    def __init__(self, seed: int, manager_of: Any = None):
        torch.manual_seed(seed)
        self.model = LossNet()
        self.inner = torch.optim.SGD(self.model.parameters(), lr=0.1)
        outer = torch.optim.SGD(self.model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
        if manager_of is None:
            self.local = LocalSGD(self.model, self.inner, outer, sync_every=2, config=SPARSE)
            return
        from dgcomp.integrations.torchft import ManagedLocalSGD

        self.store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self.manager = manager_of(self.store)
        self.local = ManagedLocalSGD(self.manager, self.model, self.inner, outer, sync_every=2, config=SPARSE)

    def train(self, rounds: range, rank: int) -> Tensor:
        for step in range(2 * rounds.start, 2 * rounds.stop):
            self.inner.zero_grad()
            self.model(*batch(step, rank)).backward()
            self.inner.step()
        return torch.cat([p.detach().reshape(-1).clone() for p in self.model.parameters()])


def _replicas(rank: int, lighthouse: str) -> None:
    expected = [(replica := _Replica(0)).train(range(6), rank), replica.train(range(6, 8), rank)]
    dist.destroy_process_group()
    # torchft's own, which would otherwise end its import and its recovery
    warnings.filterwarnings("ignore")
    from torchft.manager import Manager

    from dgcomp.integrations.torchft import QuorumGroup

    def manager_of(store: Any) -> Any:
        group = QuorumGroup(timeout=timedelta(seconds=20))
        return Manager(
            pg=group, load_state_dict=None, state_dict=None, min_replica_size=2, use_async_quorum=False, rank=0,
            world_size=1, store_addr="localhost", store_port=store.port, lighthouse_addr=lighthouse, init_sync=False,
            replica_id=f"replica{rank}",
        )  # fmt: skip

    _refusals()
    replica = _Replica(0, manager_of)
    assert torch.equal(replica.train(range(6), rank), expected[0]), "the run is not that of LocalSGD on plain ranks"

    _fail_a_round(replica, rank)
    assert torch.equal(replica.train(range(6, 8), rank), expected[1]), "a dropped round has left a trace"
    if rank == 1:
        replica = _start_again(replica, manager_of)
    found = replica.train(range(8, 10), rank)
    others = [torch.empty_like(found) for _ in range(2)]
    dist.all_gather(others, found)
    assert torch.equal(*others), "a replica that started again is not like the other"
    assert not torch.equal(found, expected[1])
    assert replica.local.compressor.step == 10
    replica.manager.shutdown()


def _refusals() -> None:
    from dgcomp.integrations.torchft import ManagedLocalSGD, QuorumGroup

    model = LossNet()
    parts = (model, *(torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)))
    with pytest.raises(ValueError, match="exchange must be 'all_gather' or dense .* got 'owner' and 1"):
        ManagedLocalSGD(None, *parts, sync_every=1, config=dgcomp.DGCConfig(exchange="owner"))
    asynchronous = SimpleNamespace(_use_async_quorum=True, _pg=QuorumGroup())
    with pytest.raises(ValueError, match="pg=QuorumGroup"):
        ManagedLocalSGD(asynchronous, *parts, sync_every=1)


def _fail_a_round(replica: _Replica, rank: int) -> None:
    """Replica 1 leaves its group in the middle of an exchange: the round is dropped, on both."""
    reduce = replica.local.compressor.reduce

    def broken(gradients: Any) -> bool:
        dist.destroy_process_group()
        raise RuntimeError("Connection closed by peer")

    start = {name: tensor.clone() for name, tensor in replica.local.start.items()}
    if rank == 1:
        replica.local.compressor.reduce = broken
    replica.train(range(20, 21), rank)
    replica.local.compressor.reduce = reduce
    for name, parameter in replica.model.named_parameters():
        assert torch.equal(parameter, start[name])


def _start_again(replica: _Replica, manager_of: Any) -> _Replica:
    """A new process would come with a model of its own, an empty memory and step 0."""
    replica.manager.shutdown()
    dist.destroy_process_group()
    return _Replica(1, manager_of)


@pytest.mark.optional
def test_replicas_that_fail_and_start_again() -> None:
    torchft = pytest.importorskip("torchft.coordination", reason="torchft is not installed")
    lighthouse = torchft.LighthouseServer(bind="[::]:0", min_replicas=2, join_timeout_ms=1000)
    try:
        run_ranks(_replicas, 2, lighthouse.address())
    finally:
        lighthouse.shutdown()
