"""O(k) exchange: every rank sums one region, selects its share of k there, and the selections are gathered.

After Ok-Topk (Li and Hoefler, PPoPP 2022): at most 3k entries per worker whatever the number of ranks, where an
all-gather takes k(N - 1). Two rounds instead of one. Sizes are fixed beforehand: a rank that has more entries for an
owner than the message holds keeps the smallest ones, and what an owner does not select stays with the owner.
A message that an owner cannot read becomes its second message, so that all ranks stop together.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dgcomp import wire
from dgcomp.exchange.collectives import gather_bytes, swap_bytes
from dgcomp.exchange.gather import all_gather
from dgcomp.exchange.merge import merge
from dgcomp.exchange.regions import Regions, owner_count, region_count
from dgcomp.exchange.result import Exchanged, Plan, Selection, decode_all, global_ranks, padded, sum_dense

_ROOM_FOR_A_REASON = 96


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes that all ranks compute alike from the plan and the boundaries."""

    plan: Plan
    boundaries: NDArray[np.int64]

    @property
    def ranks(self) -> int:
        """Number of owners."""
        return len(self.boundaries) - 1

    def numel(self, owner: int) -> int:
        """Elements of the owner's region."""
        return int(self.boundaries[owner + 1] - self.boundaries[owner])

    def dense_slice(self, owner: int) -> slice:
        """The part of the dense vector that the owner sums."""
        total = self.plan.dense_numel
        return slice(total * owner // self.ranks, total * (owner + 1) // self.ranks)

    def part(self, owner: int, count: int) -> Plan:
        """What a message about the owner's region looks like that holds at most `count` entries."""
        numel = self.numel(owner)
        bounds = self.dense_slice(owner)
        return Plan(
            numel=numel,
            count=min(count, numel),
            codec=self.plan.codec,
            dense_numel=bounds.stop - bounds.start,
            dense_codec=self.plan.dense_codec,
            tag=self.plan.tag,
            group=self.plan.group,
            room_for_a_reason=_ROOM_FOR_A_REASON,
        )

    def sent(self, owner: int) -> Plan:
        """What every rank sends to the owner."""
        return self.part(owner, region_count(self.plan.count, self.ranks))

    def selected(self, owner: int) -> Plan:
        """What the owner sends to every rank."""
        return self.part(owner, owner_count(self.plan.count, self.ranks))

    def selected_bytes(self) -> int:
        """Length of every owner's padded message."""
        return max(self.selected(owner).capacity_bytes() for owner in range(self.ranks))


def owner(selection: Selection, plan: Plan, regions: Regions) -> Exchanged:
    """Exchange in two rounds, to the owners and from them; a vector shorter than the ranks is gathered instead."""
    ranks, own = dist.get_world_size(plan.group), dist.get_rank(plan.group)
    if plan.numel < ranks:
        return all_gather(selection, plan)
    boundaries, rebalancing = regions.update(selection.positions, plan.numel, plan.group)
    layout = Layout(plan, boundaries)
    outgoing, kept = pack_for_owners(selection, layout)
    received, calls_out = swap_bytes(outgoing, [layout.sent(own).capacity_bytes()] * ranks, plan.group)
    names = global_ranks(plan.group)
    summary, unselected = select_sums(received, layout, own, names)
    rows, calls_back = gather_bytes(padded(summary, layout.selected_bytes()), plan.group)
    result = unpack_selections(rows, layout, names)
    returned_positions, returned_values = merge(
        [kept.positions, unselected.positions], [kept.values, unselected.values], plan.numel
    )
    uploads = sum(len(row) for rank, row in enumerate(outgoing) if rank != own)
    summaries = (ranks - 1) * rows.shape[1]
    return Exchanged(
        positions=result.positions,
        values=result.values,
        returned_positions=returned_positions,
        returned_values=returned_values,
        dense=result.dense,
        dense_error=kept.dense + unselected.dense,
        message_bytes=uploads + rows.shape[1],
        bytes_sent=uploads + summaries,
        bytes_received=sum(len(row) for rank, row in enumerate(received) if rank != own) + summaries,
        messages=rebalancing + calls_out + calls_back,
    )


@dataclass(frozen=True, slots=True)
class Part:
    """Entries of the whole vector and a whole dense vector."""

    positions: Tensor
    values: Tensor
    dense: Tensor


def pack_for_owners(selection: Selection, layout: Layout) -> tuple[list[Tensor], Part]:
    """One padded message per owner, and what this rank keeps: the overflow and the quantization error."""
    cuts = np.searchsorted(selection.positions, layout.boundaries)
    rows, sent_positions, sent_values, sent_dense = [], [], [], []
    for owner in range(layout.ranks):
        plan = layout.sent(owner)
        if selection.failure is not None:
            rows.append(plan.failure(selection.failure))
            continue
        positions = selection.positions[cuts[owner] : cuts[owner + 1]] - layout.boundaries[owner]
        values = selection.values[cuts[owner] : cuts[owner + 1]]
        chosen = largest(values, plan.count)
        row = plan.encode(values[chosen], positions[chosen], selection.dense[layout.dense_slice(owner)])
        rows.append(row)
        sent = wire.decode_message(row)
        sent_positions.append(sent.positions + int(layout.boundaries[owner]))
        sent_values.append(sent.values)
        sent_dense.append(sent.dense)
    if selection.failure is not None:
        return rows, Part(torch.empty(0, dtype=torch.int64), torch.empty(0), selection.dense)
    rest = torch.from_numpy(selection.values).clone()
    where = torch.from_numpy(selection.positions)
    rest[torch.searchsorted(where, torch.cat(sent_positions))] -= torch.cat(sent_values)
    kept = rest.nonzero().squeeze(1)
    return rows, Part(where[kept], rest[kept], selection.dense - torch.cat(sent_dense))


def select_sums(received: list[Tensor], layout: Layout, own: int, names: list[int]) -> tuple[Tensor, Part]:
    """The owner's message with the largest sums of its region, and what it keeps: the other sums and the error."""
    plan, ranks = layout.selected(own), layout.ranks
    dense_rest = torch.zeros(layout.plan.dense_numel)
    try:
        messages = decode_all(received, names, [plan.numel] * ranks, [plan.dense_numel] * ranks)
    except wire.WireError as error:
        empty = Part(torch.empty(0, dtype=torch.int64), torch.empty(0), dense_rest)
        return plan.failure(str(error)), empty
    positions, sums = merge([m.positions for m in messages], [m.values for m in messages], plan.numel)
    dense = sum_dense([m.dense for m in messages])
    chosen = torch.from_numpy(largest(sums.numpy(), plan.count))
    row = plan.encode(sums[chosen].numpy(), positions[chosen].numpy(), dense)
    sent = wire.decode_message(row)
    rest = sums.clone()
    rest[chosen] -= sent.values
    kept = rest.nonzero().squeeze(1)
    dense_rest[layout.dense_slice(own)] = dense - sent.dense
    return row, Part(positions[kept] + int(layout.boundaries[own]), rest[kept], dense_rest)


def unpack_selections(rows: Tensor, layout: Layout, names: list[int]) -> Part:
    """The sums that the owners selected, region after region."""
    plans = [layout.selected(owner) for owner in range(layout.ranks)]
    messages = decode_all(rows, names, [plan.numel for plan in plans], [plan.dense_numel for plan in plans])
    starts = layout.boundaries.tolist()
    return Part(
        torch.cat([m.positions + start for m, start in zip(messages, starts, strict=False)]),
        torch.cat([m.values for m in messages]),
        torch.cat([m.dense for m in messages]),
    )


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices, in ascending order, of the `count` values of largest magnitude (of all if there are no more)."""
    if values.size <= count:
        return np.arange(values.size)
    if count == 0:
        return np.empty(0, np.int64)
    return np.sort(np.argpartition(np.abs(values), values.size - count)[values.size - count :])
