"""Check that all ranks hold the same parameters, bit for bit."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dgcomp.memory import Slot

INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_replicas(slots: Sequence[Slot], group: dist.ProcessGroup | None) -> None:
    """Raise RuntimeError on every rank, naming the tensors, if a parameter differs in any bit; collective.

    Sums of the bit patterns, weighted by position so that exchanged entries show, are compared: 8 bytes a tensor.
    """
    if not slots:
        return
    own = torch.stack([_checksum(slot.flat_parameter) for slot in slots])
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    table = torch.stack(gathered)
    different = (table != table[0]).any(dim=0)
    if bool(different.any()):
        names = [slot.name for slot, differs in zip(slots, different.tolist(), strict=True) if differs]
        ranks = (table != table[0]).any(dim=1).nonzero().flatten().tolist()
        raise RuntimeError(
            f"parameters {names} differ between rank 0 and rank(s) {ranks}; the replicas have drifted apart: load the "
            "same checkpoint on all ranks and look for an update that only some of them make"
        )


def _checksum(flat: Tensor) -> Tensor:
    bits = flat.view(INTEGER_OF_SIZE[flat.element_size()]).to(torch.int64)
    weights = torch.arange(1, bits.numel() + 1, device=bits.device)
    return (bits * (2 * weights + 1)).sum()
