"""The context through everything that breaks other mechanisms on torch 2.13.

Checkpointing, torch.compile, optimizers that change weights behind a cache, packed activations, several ranks.
"""

import contextlib
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dgcomp
from dgcomp import quant
from tests.quant.reference import Net, assert_equal, in_context, make_net, quantized, quantized_weight, reference, step
from tests.ranks import run_ranks

# --- checkpointing and torch.compile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_checkpoint_recomputes_quantized(use_reentrant: bool, backward_inside: bool) -> None:
    net, x = make_net(use_reentrant)
    x.requires_grad_()
    expected = step(net, lambda x: reference(net, x), x)
    context = quant.autocast(4, 4)
    if backward_inside:
        with context:
            found = step(net, net, x)
    else:
        found = step(net, in_context(context, net), x)
    assert_equal(found, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_recomputes_matmuls_quantized(use_reentrant: bool) -> None:
    a = torch.randn(4, 5, requires_grad=True)
    b = torch.randn(5, 3, requires_grad=True)
    with quant.autocast(4, 4, matmul=True):
        y = checkpoint(lambda a: (a @ b).square(), a, use_reentrant=use_reentrant)
    y.sum().backward()
    found = [a.grad, b.grad]
    expected = torch.autograd.grad((quantized(a) @ quantized(b)).square().sum(), (a, b))
    for gradient, target in zip(found, expected, strict=True):
        assert gradient is not None
        assert torch.equal(gradient, target)


def test_checkpoint_outside_of_the_context_stays_plain() -> None:
    net, x = make_net(use_reentrant=False)
    context = quant.autocast(4, 4)  # the first context installs the gates: it must exist before the forward pass
    expected = step(net, net, x)
    net.zero_grad()
    y = net(x)
    with context:
        y.square().sum().backward()
    assert_equal([y.detach(), *(p.grad for p in net.parameters() if p.grad is not None)], expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("use_reentrant", [None, False])
def test_compile(backend: str, use_reentrant: bool | None) -> None:
    net, x = make_net(use_reentrant)
    expected = step(net, lambda x: reference(net, x), x)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    plain = step(net, net, x)
    for _ in range(2):
        assert_equal(step(net, in_context(quant.autocast(4, 4), compiled), x), expected, 2e-5)
    assert_equal(step(net, compiled, x), plain, 2e-5)


def test_a_thread_may_compile_before_it_runs_anything_in_eager_mode() -> None:
    net, x = make_net()
    torch._dynamo.reset()
    graphs, results = [], []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net, backend=backend)

    def run() -> None:
        for _ in range(3):
            with quant.autocast(4, 4):
                results.append(compiled(x))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(graphs) == 1
    for result in results:
        torch.testing.assert_close(result, reference(net, x), rtol=1e-5, atol=1e-5)


def test_compile_counts() -> None:
    """A new context with equal settings reuses the graph; other bits compile once more; going back is free."""
    net, x = make_net()
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net, backend=backend)
    for bits, total in ((4, 1), (4, 1), (8, 2), (4, 2)):
        with quant.autocast(bits, bits):
            compiled(x)
        assert len(graphs) == total
    compiled(x)
    assert len(graphs) == 3


def test_context_inside_the_compiled_function() -> None:
    net, x = make_net()
    torch._dynamo.reset()
    inside = torch.compile(quant.autocast(4, 4)(net.forward), backend="aot_eager", fullgraph=True)
    assert_equal(step(net, inside, x), step(net, lambda x: reference(net, x), x), 1e-5)


def test_compiled_vectors_and_model_rules() -> None:
    net, x = make_net()
    for context in (quant.autocast("4/4/6/6"), quant.autocast(4, 4, model=net), quant.autocast(4, 4, method="max")):
        torch._dynamo.reset()
        eager = step(net, in_context(context, net), x)
        compiled = step(net, in_context(context, torch.compile(net, backend="aot_eager", fullgraph=True)), x)
        assert_equal(compiled, eager, 1e-5)


# --- the cache of weights ---------------------------------------------------------------------------------------------


def _optimizers() -> list[Any]:
    return [
        ("sgd", {"foreach": False}), ("sgd", {"foreach": True}), ("sgd", {"fused": True}),
        ("adam", {"foreach": False}), ("adam", {"foreach": True}), ("adam", {"fused": True}),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), _optimizers())
def test_no_stale_weights_after_any_optimizer(name: str, options: dict[str, bool]) -> None:
    net, x = make_net()
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
    optimizer = kind(net.parameters(), lr=0.1, **options)  # type: ignore[operator]
    with quant.autocast(4, 4):  # one context around all steps, as in a loop inside it
        for _ in range(3):
            y = net(x)
            assert torch.equal(y, reference(net, x))
            optimizer.zero_grad()
            y.square().sum().backward()
            optimizer.step()


def test_cache_hits_and_invalidation() -> None:
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    context = quant.autocast(4, 4)
    cache = context._scope.cache
    assert cache is not None

    def check() -> None:
        y = layer(x)
        with quant.disabled():
            assert torch.equal(y, F.linear(quantized(x), quantized_weight(layer.weight), layer.bias))

    with context:
        check()
        check()  # gradient accumulation and tied weights come here
        assert cache.hits == 1
        with torch.no_grad():
            layer.weight.mul_(2)  # the version changes
        check()
        layer.weight.data = layer.weight.data * 3  # the address changes
        check()
        layer.load_state_dict({"weight": torch.randn(4, 6), "bias": torch.zeros(4)})
        check()
        layer.weight.data.mul_(-0.5)  # nothing changes: the documented case for invalidate()
        quant.invalidate()
        check()
        assert cache.hits == 1
    layer.weight.data.mul_(5)
    with context:
        check()


def test_gradient_accumulation_and_tied_weights() -> None:
    first, x = nn.Linear(6, 6, bias=False), torch.randn(2, 3, 6)
    with quant.autocast(4, 4):
        for part in x:
            first(first(part)).square().sum().backward()
    found = first.weight.grad
    w = first.weight
    total = sum(F.linear(quantized(F.linear(quantized(p), quantized_weight(w))), quantized_weight(w)).square().sum()
                for p in x)  # fmt: skip
    assert isinstance(total, Tensor)
    assert found is not None
    torch.testing.assert_close(torch.autograd.grad(total, w)[0], found, rtol=1e-5, atol=1e-6)


# --- packed activations -----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """What ResNets are made of: convolutions without bias, batch norms, ReLUs in place and not, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + x)


@pytest.mark.parametrize("estimator", ["pwl", "ste", "mad"])
def test_packed_gradients_are_equal_to_the_bit(estimator: str) -> None:
    net, x = make_net()
    x.requires_grad_()
    options: dict[str, Any] = {"activation_estimator": estimator}
    for layout in (torch.contiguous_format, torch.channels_last):
        x.grad = None
        given = x.detach().to(memory_format=layout).requires_grad_()
        plain = [*step(net, in_context(quant.autocast(4, 4, **options), net), given), given.grad]
        given = x.detach().to(memory_format=layout).requires_grad_()
        packed = [*step(net, in_context(quant.autocast(4, 4, pack=True, **options), net), given), given.grad]
        for a, b in zip(plain, packed, strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)


def test_packed_attention_and_odd_sizes() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 20, dropout=0.0, batch_first=True)
    x = torch.randn(3, 7, 12)
    results = [step(layer, in_context(quant.autocast(4, 4, pack=pack), layer), x) for pack in (False, True)]
    assert_equal(results[0], results[1])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_packed_batch_norm_is_equal_to_the_bit_and_saves_memory(layout: torch.memory_format) -> None:
    from benchmarks.quantization import saved_bytes

    torch.manual_seed(0)
    net = nn.Sequential(Residual(), Residual()).to(memory_format=layout)  # type: ignore[call-overload]
    x = torch.randn(8, 8, 16, 16).contiguous(memory_format=layout).requires_grad_()
    results, sizes = [], []
    for context in (contextlib.nullcontext(), quant.autocast(4, 4), quant.autocast(4, 4, pack=True)):
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.reset_running_stats()
        forward = in_context(context, net)
        x.grad = None
        results.append([*step(net, forward, x), x.grad, *(b.clone() for b in net.buffers())])
        sizes.append(saved_bytes(lambda forward=forward: forward(x).square().mean())[0])  # type: ignore[misc]

    assert_equal(results[1], results[2])
    assert sizes[0] > 2.5 * sizes[2]


def test_a_batch_norm_of_changed_values_saves_them() -> None:
    """The convolution's output is not what the norm sees: recomputing it would be wrong."""
    conv, norm, x = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), torch.randn(2, 3, 8, 8)
    gradients = []
    for pack in (False, True):
        with quant.autocast(4, 4, pack=pack):
            y = norm(conv(x).mul_(2)).square()
        gradients.append(torch.autograd.grad(y.sum(), conv.weight)[0])
    assert torch.equal(gradients[0], gradients[1])


def test_packed_attention_operands() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    x = torch.randn(3, 7, 16)
    contexts = [quant.autocast(4, 4, matmul=True, pack=pack) for pack in (False, True)]
    results = [step(layer, in_context(context, layer), x) for context in contexts]
    assert_equal(results[0], results[1])
    assert not torch.equal(results[0][0], step(layer, in_context(quant.autocast(4, 4), layer), x)[0])


# --- distributed ------------------------------------------------------------------------------------------------------


def _train_two_ranks(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = Net()
    ddp = nn.parallel.DistributedDataParallel(net)
    x = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(rank))
    with quant.autocast(4, 4):
        ddp(x).square().sum().backward()
    averaged = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    gradients = []
    for r in range(2):
        net.zero_grad()
        other = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(r))
        reference(net, other).square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    expected = [(a + b) / 2 for a, b in zip(*gradients, strict=True)]
    histogram = quant.BitHistogram().add(x).all_reduce()
    _train_with_dgc(rank)
    return {
        "error": max(float((a - e).abs().max() / e.abs().max()) for a, e in zip(averaged, expected, strict=True)),
        "scale": histogram.octav_scale(4),
        "data": x,
    }


def _train_with_dgc(rank: int) -> None:
    """Replicas stay equal to the bit: sparse exchange of gradients that went through quantized layers."""
    torch.manual_seed(0)
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    ddp = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    dgcomp.attach(ddp, optimizer, dgcomp.DGCConfig(density=0.05))
    context = quant.autocast(4, 4, model=net)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(4):
        x = torch.randn(4, 3, 10, 10, generator=generator)
        with context:
            loss = ddp(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for p, old in zip(net.parameters(), before, strict=True):
        others = [torch.empty_like(p) for _ in range(dist.get_world_size())]
        dist.all_gather(others, p.detach())
        assert all(torch.equal(p, other) for other in others)
        assert not torch.equal(p, old)


def test_ddp_with_and_without_dgc_and_a_scale_over_all_ranks() -> None:
    results = run_ranks(_train_two_ranks, 2)
    assert all(r["error"] < 1e-5 for r in results)
    assert results[0]["scale"] == results[1]["scale"]
    everything = torch.cat([r["data"] for r in results])
    assert results[0]["scale"] == quant.BitHistogram().add(everything).octav_scale(4)
