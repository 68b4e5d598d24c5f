"""Pruning: schedules, patterns, masks that hold, equal ranks; weight sharing and Huffman sizes."""

import numpy as np
import pytest
import torch
from torch import nn

from dgcomp.sparse import (
    NM,
    Balanced,
    Blocks,
    Cubic,
    EIEMatrix,
    Iterative,
    OneShot,
    Pruner,
    Unstructured,
    WinogradReLUConv2d,
    huffman_bits,
    share_weights,
    size_report,
    unshare_weights,
)
from tests.ranks import run_ranks


def small_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), WinogradReLUConv2d(8, 8), nn.Flatten(), nn.Linear(8 * 16, 64), nn.Linear(64, 4)
    )


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 3, 4, 4)).square().mean().backward()
    optimizer.step()


def test_schedules() -> None:
    assert [OneShot(0.1, at_step=3)(s) for s in (1, 2, 3, 9)] == [1, 1, 0.1, 0.1]
    assert [Iterative((0.5, 0.2), 2)(s) for s in (1, 2, 3, 4, 50)] == [0.5, 0.5, 0.2, 0.2, 0.2]
    cubic = Cubic(0.1, start=10, stop=110, every=10)
    densities = [cubic(s) for s in range(1, 200)]
    assert densities[:9] == [1.0] * 9
    assert densities[109:] == pytest.approx([0.1] * 90)
    assert densities == sorted(densities, reverse=True)
    assert cubic(60) == pytest.approx(0.1 + 0.9 / 8)
    assert cubic(69) == cubic(60)


def test_masks_hold_while_the_optimizer_moves_on() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    pruner = Pruner(model, Iterative((0.5, 0.25), 2))
    assert list(pruner.weights) == ["1", "3", "4"]  # the first convolution is left alone
    zeros: dict[str, torch.Tensor] = {}
    for _ in range(6):
        train_step(model, optimizer)
        pruner.step()
        for name, weight in pruner.weights.items():
            assert not weight[~pruner.masks[name]].any()
            if name in zeros:
                assert not weight[zeros[name]].any()  # once pruned, pruned
            zeros[name] = ~pruner.masks[name]
    assert pruner.densities() == pytest.approx(dict.fromkeys(pruner.weights, 0.25), abs=1e-3)
    assert model[0].weight.all()


def test_gradients_of_pruned_weights_are_zero_as_long_as_the_pruner_lives() -> None:
    model = small_model()
    pruner = Pruner(model, OneShot(0.5))
    pruner.step()
    pruned = {name: ~mask for name, mask in pruner.masks.items()}
    weights = pruner.weights
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train_step(model, optimizer)
    assert not any(weights[name].grad[zeros].any() for name, zeros in pruned.items())
    assert all(weight.grad.any() for weight in weights.values())
    share_weights(model[3])  # makes the weight a vector of centroids
    train_step(model, optimizer)
    assert model[3].parametrizations.weight.original.grad.any()
    unshare_weights(model[3])
    del pruner
    train_step(model, optimizer)
    assert all(weights[name].grad[zeros].any() for name, zeros in pruned.items() if name != "3")


def test_global_scope_has_one_threshold() -> None:
    model = small_model()
    pruner = Pruner(model, OneShot(0.3), scope="global")
    before = {name: weight.detach().abs().clone() for name, weight in pruner.weights.items()}
    pruner.step()
    kept = torch.cat([before[name][mask] for name, mask in pruner.masks.items()])
    dropped = torch.cat([before[name][~mask] for name, mask in pruner.masks.items()])
    assert kept.min() >= dropped.max()
    assert len(kept) == round(0.3 * (len(kept) + len(dropped)))


def test_checkpoint_continues_the_same_run() -> None:
    model = small_model()
    pruner = Pruner(model, Iterative((0.5, 0.25), 2))
    pruner.step()
    other = small_model()
    other.load_state_dict(model.state_dict())
    resumed = Pruner(other, Iterative((0.5, 0.25), 2))
    resumed.load_state_dict(pruner.state_dict())
    for _ in range(3):
        pruner.step()
        resumed.step()
    for name in pruner.masks:
        assert torch.equal(pruner.masks[name], resumed.masks[name])
        assert torch.equal(pruner.weights[name], resumed.weights[name])
    with pytest.raises(ValueError, match="state must hold masks of the layers"):
        Pruner(model, OneShot(0.5), layers=["3"]).load_state_dict(pruner.state_dict())


def test_patterns() -> None:
    weight = torch.randn(16, 24)
    assert Unstructured()(weight, 0.25).sum() == 96
    groups = NM(2, 4)(weight, 0.5).view(-1, 4)
    assert (groups.sum(dim=1) == 2).all()
    magnitude = weight.abs().view(-1, 4)
    assert (magnitude.masked_fill(~groups, 9).amin(1) >= magnitude.masked_fill(groups, 0).amax(1)).all()
    blocks = Blocks(4, 4)(weight, 0.5).view(4, 4, 6, 4).float().mean(dim=(1, 3))
    assert set(blocks.flatten().tolist()) == {0.0, 1.0}
    assert blocks.sum() == 12
    for pattern in (Unstructured(), Blocks(4, 4), Balanced(4)):
        assert pattern(weight, 1.0).all()
    with pytest.raises(ValueError, match="rows of a multiple of 4"):
        NM()(torch.randn(3, 6), 0.5)


def test_balanced_pruning_lowers_the_longest_queue() -> None:
    weight = torch.randn(1024, 256) * torch.rand(1024, 1).exp()  # some rows weigh more than others
    free, balanced = Unstructured()(weight, 0.1), Balanced(num_pes=64)(weight, 0.1)
    assert balanced.sum() == pytest.approx(float(free.sum()), rel=0.01)

    def most_work(mask: torch.Tensor) -> float:
        entries = EIEMatrix.from_dense(weight * mask, num_pes=64).entries_per_pe()
        windows = entries.reshape(64, -1, 8).sum(axis=2)
        return float(windows.max(axis=0).sum())

    assert most_work(balanced) < 0.75 * most_work(free)


def test_refuses_bad_input() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="layers must name"):
        Pruner(model, OneShot(0.5), layers=["nothing"])
    with pytest.raises(ValueError, match="density in"):
        Pruner(model, lambda step: 0.0).step()
    with pytest.raises(ValueError, match="pattern must be Unstructured"):
        Pruner(model, OneShot(0.5), scope="global", pattern=NM())
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight of 3 must be finite"):
        Pruner(model, OneShot(0.5)).step()


def _prune_in_ddp(rank: int) -> list[list[bool]]:
    torch.manual_seed(0)
    model = small_model()
    ddp = nn.parallel.DistributedDataParallel(model)
    pruner = Pruner(ddp, OneShot(0.4))
    if rank == 1:  # ranks that have drifted apart still get one mask
        with torch.no_grad():
            model[3].weight.add_(torch.randn_like(model[3].weight))
    pruner.step()
    return [mask.flatten().tolist() for mask in pruner.masks.values()]


def test_masks_are_identical_on_all_ranks() -> None:
    first, second = run_ranks(_prune_in_ddp, 2)
    assert first == second


def test_shared_weights_train_through_their_centroids() -> None:
    layer = nn.Linear(32, 16)
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.5)
    zeros = layer.weight == 0
    share_weights(layer, bits=3)
    centroids = layer.parametrizations.weight.original
    assert centroids.shape == (7,)
    assert layer.weight.unique().numel() <= 8
    x = torch.randn(5, 32)
    layer(x).sum().backward()
    codes = layer.parametrizations.weight[0].codes
    per_weight = x.sum(0).expand(16, 32)  # d sum / d weight
    expected = torch.stack([per_weight[codes == code].sum() for code in range(1, 8)])
    torch.testing.assert_close(centroids.grad, expected)
    torch.optim.SGD(layer.parameters(), 0.1).step()
    unshare_weights(layer)
    assert torch.equal(layer.weight == 0, zeros)
    assert torch.equal(EIEMatrix.from_dense(layer.weight, codebook_bits=3).to_dense(), layer.weight)


def test_huffman_bits() -> None:
    assert huffman_bits([1, 1, 1, 1]) == 8
    assert huffman_bits([5, 2, 1, 1]) == 5 + 2 * 2 + 3 + 3
    assert huffman_bits([7]) == 7
    assert huffman_bits([]) == 0
    counts = np.random.default_rng(0).integers(1, 1000, 16)
    share = counts / counts.sum()
    entropy = float(-(counts * np.log2(share)).sum())
    assert entropy <= huffman_bits(counts) <= entropy + counts.sum()


def test_size_report() -> None:
    weight = torch.randn(256, 128).round() * (torch.rand(256, 128) < 0.2)
    matrix = EIEMatrix.from_dense(weight)
    report = size_report(matrix)
    assert report.dense_bits == 32 * weight.numel()
    assert report.csr_bits == 64 * int((weight != 0).sum()) + 32 * 257
    assert report.eie_bits == matrix.size_bits()
    assert report.huffman_bits < report.eie_bits
