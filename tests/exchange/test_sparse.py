"""The exchange over real gloo ranks against a dense sum in rank order; one spawn holds all checks of a world size."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from dgcomp.exchange import Exchanged, Regions, all_reduce_sparse, collectives, mean_in_node, node_groups
from dgcomp.wire import WireError
from tests.ranks import run_ranks

NUMEL = 5000


def _input(rank: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    positions = torch.randperm(NUMEL, generator=generator)[:k]
    return torch.randn(k, generator=generator).to(dtype), positions


def _dense_input(rank: int) -> Tensor:
    return torch.randn(70, generator=torch.Generator().manual_seed(rank))


def _scattered(positions: Tensor, values: Tensor, numel: int = NUMEL) -> Tensor:
    return torch.zeros(numel).index_add_(0, positions, values.float())


def _report(result: Exchanged) -> dict[str, Any]:
    return {
        "sum": _scattered(result.positions, result.values),
        "positions": result.positions,
        "returned": _scattered(result.returned_positions, result.returned_values),
        "dense": result.dense,
        "dense_error": result.dense_error,
        "bytes": (result.message_bytes, result.bytes_sent, result.bytes_received, result.messages),
    }


CASES = {
    "lossless": {"codec": "auto", "dense_codec": "fp32"},
    "paper": {"codec": "paper", "dense_codec": "fp32"},
    "int4": {"codec": "int4", "dense_codec": "int4"},
    "int8 block": {"codec": "int8+block", "dense_codec": "int8"},
    "sign": {"codec": "sign", "dense_codec": "bf16"},
}


def _exchange_everything(rank: int, world_size: int) -> dict[str, Any]:
    out = {}
    values, positions = _input(rank, 50)
    for name, options in CASES.items():
        out[name] = _report(all_reduce_sparse(values, positions, NUMEL, dense=_dense_input(rank), tag=7, **options))
    uneven = _input(rank, 20 * rank)
    out["uneven"] = _report(all_reduce_sparse(*uneven, NUMEL, count=20 * world_size))
    half = _input(rank, 30, torch.bfloat16)
    out["bf16"] = _report(all_reduce_sparse(*half, NUMEL))
    out["empty"] = _report(all_reduce_sparse(torch.zeros(0), torch.zeros(0, dtype=torch.int64), NUMEL))
    out["all"] = _report(all_reduce_sparse(torch.arange(NUMEL) + 1.0, torch.arange(NUMEL), NUMEL))
    big = torch.randn(700_000)
    result = all_reduce_sparse(big, torch.arange(len(big)), len(big))
    out["chunks"] = result.messages
    regions = Regions(every=2)
    for step in range(4):
        for name, options in CASES.items():
            result = all_reduce_sparse(
                values, positions, NUMEL, dense=_dense_input(rank), algorithm="owner", regions=regions, **options
            )
            out[f"owner {name} {step}"] = _report(result)
    out["owner uneven"] = _report(all_reduce_sparse(*uneven, NUMEL, count=20 * world_size, algorithm="owner"))
    out["owner chunks"] = all_reduce_sparse(big, torch.arange(len(big)), len(big), algorithm="owner").messages
    result = all_reduce_sparse(torch.ones(1), torch.tensor([0]), 1, algorithm="owner")
    assert result.values.tolist() == [world_size]
    out["dense"] = _report(all_reduce_sparse(values, positions, NUMEL, dense=_dense_input(rank), algorithm="dense"))
    out["faults"] = _faults(rank, "all_gather")
    out["owner faults"] = _faults(rank, "owner")
    return out


def _faults(rank: int, algorithm: str) -> list[str]:
    """What each rank sees when the last one sends something wrong; afterwards the group still works."""
    texts = []
    good = torch.ones(3), torch.tensor([1, 5, 9])
    bad = [
        {"values": torch.tensor([1.0, float("nan"), 1.0])},
        {"positions": torch.tensor([1, 1, 9])},
        {"positions": torch.tensor([1, 5, NUMEL])},
        {"values": torch.ones(4), "positions": torch.arange(4)},
        {"tag": 2},
    ]
    for fault in bad:
        arguments: dict[str, Any] = {"values": good[0], "positions": good[1], "tag": 1, "count": 3}
        arguments["algorithm"] = algorithm
        if rank == 1:
            arguments |= fault
        with pytest.raises(WireError) as caught:
            all_reduce_sparse(numel=NUMEL, **arguments)
        texts.append(str(caught.value))
    with pytest.raises(WireError) as caught, _damage_in_transit(rank, algorithm):
        all_reduce_sparse(*good, NUMEL, algorithm=algorithm)
    texts.append(str(caught.value))
    all_reduce_sparse(*good, NUMEL, algorithm=algorithm)
    return texts


@contextmanager
def _damage_in_transit(rank: int, algorithm: str) -> Iterator[None]:
    """What rank 1 sends is changed by a bit after it was packed."""

    def damaged_gather(message: Tensor, group: Any) -> Any:
        message[12] ^= 1
        return collectives.gather_bytes(message, group)

    def damaged_swap(rows: list[Tensor], sizes: list[int], group: Any) -> Any:
        rows[0][12] ^= 1
        return collectives.swap_bytes(rows, sizes, group)

    damaged = {"all_gather": ("gather.gather_bytes", damaged_gather), "owner": ("owner.swap_bytes", damaged_swap)}
    name, function = damaged[algorithm]
    with patch(f"dgcomp.exchange.{name}", function) if rank == 1 else nullcontext():
        yield


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_algorithm(world_size: int) -> None:
    ranks = run_ranks(_exchange_everything, world_size, world_size)
    inputs = [_scattered(p, v) for v, p in (_input(rank, 50) for rank in range(world_size))]
    for name in CASES:
        _check_conserved([r[name] for r in ranks], inputs, exact=name in ("lossless", "paper"))
        dense = sum(_dense_input(rank) for rank in range(world_size))
        kept = sum(r[name]["dense_error"] for r in ranks)
        torch.testing.assert_close(ranks[0][name]["dense"] + kept, dense)
    assert ranks[0]["lossless"]["bytes"][1:] == ((world_size - 1) * ranks[0]["lossless"]["bytes"][0],) * 2 + (1,)
    assert ranks[0]["int4"]["bytes"][0] < ranks[0]["lossless"]["bytes"][0]
    uneven = [_scattered(p, v) for v, p in (_input(rank, 20 * rank) for rank in range(world_size))]
    _check_conserved([r["uneven"] for r in ranks], uneven, exact=True)
    half = [_scattered(p, v) for v, p in (_input(rank, 30, torch.bfloat16) for rank in range(world_size))]
    _check_conserved([r["bf16"] for r in ranks], half, exact=True)
    assert ranks[0]["empty"]["positions"].numel() == 0
    assert torch.equal(ranks[0]["all"]["sum"], world_size * (torch.arange(NUMEL) + 1.0))
    assert ranks[0]["chunks"] == 3
    _check_owner(ranks, inputs, uneven)
    _check_conserved([r["dense"] for r in ranks], inputs, exact=True)
    _check_faults([r["faults"] for r in ranks])
    _check_faults([r["owner faults"] for r in ranks])


def _check_owner(ranks: list[dict[str, Any]], inputs: list[Tensor], uneven: list[Tensor]) -> None:
    dense = sum(_dense_input(rank) for rank in range(len(ranks)))
    for step in range(4):
        for name in CASES:
            reports = [r[f"owner {name} {step}"] for r in ranks]
            _check_conserved(reports, inputs, exact=False)
            torch.testing.assert_close(reports[0]["dense"] + sum(r["dense_error"] for r in reports), dense)
            assert reports[0]["positions"].numel() <= 50 + len(ranks)
    _check_conserved([r["owner uneven"] for r in ranks], uneven, exact=False)
    # the histogram is gathered in every other exchange of the shared regions
    assert [ranks[0][f"owner lossless {step}"]["bytes"][3] for step in range(4)] == [3, 2, 3, 2]
    assert ranks[0]["owner chunks"] >= 4


def _check_conserved(reports: list[dict[str, Any]], inputs: list[Tensor], *, exact: bool) -> None:
    """Bitwise equal ranks, and nothing lost: inputs = sum + what was returned."""
    for report in reports[1:]:
        assert torch.equal(report["sum"], reports[0]["sum"])
        assert torch.equal(report["positions"], reports[0]["positions"])
        assert torch.equal(report["dense"], reports[0]["dense"])
    total = torch.zeros(NUMEL)
    for values in inputs:
        total += values
    returned = sum(report["returned"] for report in reports)
    if exact:
        assert torch.equal(reports[0]["sum"], total)
        assert not returned.any()
    else:
        torch.testing.assert_close(reports[0]["sum"] + returned, total)


def _check_faults(texts: list[list[str]]) -> None:
    assert all(text == texts[0] for text in texts)
    cures = ["got nan at index 1", "got 1 more than once", f"got {NUMEL} outside it", "at most count = 3, got 4", "tag"]
    cures.append("checksum")
    for text, cure in zip(texts[0], cures, strict=True):
        assert "rank 1" in text
        assert cure in text


def _two_level(rank: int) -> dict[str, Any]:
    nodes = node_groups(2)
    gradient = mean_in_node(torch.full((NUMEL,), float(rank)), nodes)
    assert gradient.eq(2 * nodes.node + 0.5).all()
    values, positions = _input(nodes.node, 50)
    out = {}
    for name, options in CASES.items():
        dense = _dense_input(nodes.node)
        result = all_reduce_sparse(
            values, positions, NUMEL, dense=dense, algorithm="two_level", nodes=nodes, tag=3, **options
        )
        out[name] = _report(result)
    faulty = values.clone()
    faulty[0] = torch.inf if nodes.node == 1 else 0.0
    with pytest.raises(WireError, match="rank 2.*got inf at index 0"):
        all_reduce_sparse(faulty, positions, NUMEL, algorithm="two_level", nodes=nodes)
    return out


def test_two_level() -> None:
    ranks = run_ranks(_two_level, 4)
    inputs = [_scattered(p, v) for v, p in (_input(node, 50) for node in range(2))]
    for name in CASES:
        _check_conserved([r[name] for r in ranks[::2]], inputs, exact=name in ("lossless", "paper"))
        for leader, member in ((0, 1), (2, 3)):
            for key in ("sum", "returned", "dense", "dense_error"):
                assert torch.equal(ranks[leader][name][key], ranks[member][name][key])
            assert ranks[leader][name]["bytes"][1] == ranks[leader][name]["bytes"][0]
            assert ranks[member][name]["bytes"][1] == 0


def test_arguments_are_refused_before_anything_is_sent() -> None:
    good = torch.ones(1), torch.zeros(1, dtype=torch.int64), 10
    with pytest.raises(ValueError, match=r"algorithm must be one of .*'ring'"):
        all_reduce_sparse(*good, algorithm="ring")
    with pytest.raises(ValueError, match="codec must be"):
        all_reduce_sparse(*good, codec="int5")
    with pytest.raises(ValueError, match="dense_codec must be"):
        all_reduce_sparse(*good, dense_codec="sign")
    with pytest.raises(ValueError, match="nodes must be given"):
        all_reduce_sparse(*good, algorithm="two_level")
