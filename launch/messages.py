"""Texts and bytes between ranks, as tensors.

torch's object collectives unpickle what arrives, and a pickle can run code; these carry data only.
"""

import torch
import torch.distributed as dist

__all__ = ["gather_texts", "share_bytes"]


def gather_texts(text: str) -> list[str]:
    """Every rank's text, in the order of the ranks; collective."""
    own = _tensor(text.encode())
    sizes = [torch.zeros(1, dtype=torch.int64, device=own.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(own)], device=own.device))
    longest = max(int(size) for size in sizes)
    rows = [own.new_zeros(longest) for _ in sizes]
    dist.all_gather(rows, torch.cat([own, own.new_zeros(longest - len(own))]))
    return [_bytes(row[: int(size)]).decode() for row, size in zip(rows, sizes, strict=True)]


def share_bytes(data: bytes, source: int) -> bytes:
    """The `data` of rank `source`, on every rank; what the others bring is not looked at. Collective."""
    own = _tensor(data)
    size = torch.tensor([len(own)], device=own.device)
    dist.broadcast(size, src=source)
    if dist.get_rank() != source:
        own = own.new_empty(int(size))
    dist.broadcast(own, src=source)
    return _bytes(own)


def _tensor(data: bytes) -> torch.Tensor:
    """Bytes as uint8, on the device that the process group sends from."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    # frombuffer refuses an empty buffer
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
    return values.to(device)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
