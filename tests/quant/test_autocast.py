"""The context against an explicit reference, through everything that breaks other mechanisms on torch 2.13.

The reference is the same network written out with `octav_scale` and `fake_quantize`. Where PyTorch runs the same
kernels on the same numbers the comparison is exact.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dgcomp import quant
from tests.ranks import run_ranks

checkpoint_imported_before = checkpoint


class Net(nn.Module):
    """conv - relu - conv - relu - linear, optionally with a checkpointed middle."""

    def __init__(self, use_reentrant: bool | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.middle = nn.Conv2d(8, 8, 3, bias=False)
        self.linear = nn.Linear(8, 5)
        self.use_reentrant = use_reentrant

    def block(self, x: Tensor) -> Tensor:
        return F.relu(self.middle(x))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.use_reentrant is None:
            x = self.block(x)
        else:
            x = checkpoint_imported_before(self.block, x, use_reentrant=self.use_reentrant)
        return self.linear(x.mean((2, 3)))


def _quantized(x: Tensor, bits: int = 4) -> Tensor:
    signed = bool((x < 0).any())
    return quant.fake_quantize(x, quant.octav_scale(x, bits, signed), bits, signed, "pwl")


def _quantized_weight(w: Tensor, bits: int = 4, channel: int = 0) -> Tensor:
    dims = [d for d in range(w.ndim) if d != channel]
    return quant.fake_quantize(w, quant.octav_scale(w, bits, dim=dims), bits, estimator="mad")


def _reference(net: Net, x: Tensor, bits: tuple[int, int, int] = (4, 4, 4)) -> Tensor:
    with quant.disabled():
        x = F.relu(F.conv2d(_quantized(x, bits[0]), _quantized_weight(net.conv.weight, bits[0]), net.conv.bias))
        x = F.relu(F.conv2d(_quantized(x, bits[1]), _quantized_weight(net.middle.weight, bits[1])))
        x = x.mean((2, 3))
        return F.linear(_quantized(x, bits[2]), _quantized_weight(net.linear.weight, bits[2]), net.linear.bias)


def _step(net: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Output and gradients of one backward pass."""
    net.zero_grad()
    y = forward(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def _net(use_reentrant: bool | None = None) -> tuple[Net, Tensor]:
    torch.manual_seed(1)
    return Net(use_reentrant), torch.randn(4, 3, 10, 10)


def _assert_equal(left: list[Tensor], right: list[Tensor], tolerance: float = 0.0) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def _in(context: Any, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with context:
            return function(x)

    return run


# --- values and gradients ---------------------------------------------------------------------------------------------


def test_equals_the_reference_and_has_no_effect_outside() -> None:
    net, x = _net()
    plain = _step(net, net, x)
    context = quant.autocast(weights=4, activations=4, method="octav")
    _assert_equal(_step(net, _in(context, net), x), _step(net, lambda x: _reference(net, x), x))
    _assert_equal(_step(net, net, x), plain)
    assert quant.current_recipe() is None


def test_first_and_last_layer_get_eight_bits_and_rules_win() -> None:
    net, x = _net()
    with quant.autocast(weights=4, activations=4, model=net):
        assert torch.equal(net(x), _reference(net, x, (8, 4, 8)))
    with quant.autocast(weights=4, activations=4, model=net, first_last=None):
        assert torch.equal(net(x), _reference(net, x))
    with quant.autocast(4, 4, model=net, rules={"mid*": 6, "linear": "3/3"}):
        assert torch.equal(net(x), _reference(net, x, (8, 6, 3)))
    with quant.autocast(4, 4, model=net, rules={"*": None}):
        y = net(x)
        with quant.disabled():
            assert torch.equal(net(x), y)


@pytest.mark.parametrize(
    "name", ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
)
def test_convolutions(name: str) -> None:
    spatial = int(name[-2])
    transposed = "transpose" in name
    x = torch.randn(2, 4, *(6,) * spatial)
    w = torch.randn((4, 6) if not transposed else (4, 6), dtype=torch.float32)
    w = torch.randn(*((6, 4) if not transposed else (4, 6)), *(3,) * spatial)
    bias = torch.randn(6)
    operator = getattr(F, name)
    expected = operator(_quantized(x), _quantized_weight(w, channel=1 if transposed else 0), bias, stride=2, padding=1)
    with quant.autocast(4, 4):
        assert torch.equal(getattr(F, name)(x, w, bias, stride=2, padding=1), expected)
        assert torch.equal(getattr(F, name)(input=x, weight=w, bias=bias, stride=2, padding=1), expected)


def test_vector_notation() -> None:
    layer, x = nn.Linear(40, 6), torch.randn(3, 5, 40)
    with quant.autocast("4/8/6/10"):
        y = layer(x)
    w = quant.per_vector(layer.weight, 4, 6, channel=0).dequantize()
    q = quant.per_vector(x, 8, 10).dequantize()
    assert torch.equal(y, F.linear(q, w, layer.bias))
    with quant.autocast("4/8/-/-"):
        assert torch.equal(layer(x), F.linear(_quantized(x, 8), _quantized_weight(layer.weight), layer.bias))
    with quant.autocast("-/-"):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_embedding_and_matmul_are_opt_in() -> None:
    table, index = nn.Embedding(10, 8), torch.tensor([[1, 2], [3, 4]])
    a, b = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    with quant.autocast(4, 4):
        assert torch.equal(table(index), F.embedding(index, table.weight))
        assert torch.equal(a @ b, torch.matmul(a, b))
    plain = a @ b
    products = [lambda: a @ b, lambda: torch.matmul(a, b), lambda: torch.bmm(a, b), lambda: a.matmul(b)]
    with quant.autocast(4, 4, embedding=True, matmul=True):
        looked_up = table(index)
        results = [product() for product in products]
    assert torch.equal(looked_up, F.embedding(index, _quantized_weight(table.weight)))
    expected = torch.matmul(_quantized(a), _quantized(b))
    for result in results:
        assert torch.equal(result, expected)
    assert torch.equal(a @ b, plain)


def test_attention_operands() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    with quant.autocast(4, 4, matmul=True):
        y = F.scaled_dot_product_attention(q, k, v)
    expected = F.scaled_dot_product_attention(_quantized(q), _quantized(k), _quantized(v))
    assert torch.equal(y, expected)


@pytest.mark.parametrize("train", [True, False])
def test_multi_head_attention(train: bool) -> None:
    """Also in evaluation, where PyTorch's fused fast path would run around the context."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).train(train)
    x = torch.randn(2, 5, 16)
    with torch.set_grad_enabled(train), quant.autocast(4, 4):
        y = layer(x)
        seen, _ = layer.self_attn(x, x, x, need_weights=False)
    with torch.set_grad_enabled(train), quant.disabled():
        plain = layer(x)
        attention = layer.self_attn
        projected = F.linear(_quantized(x), _quantized_weight(attention.in_proj_weight), attention.in_proj_bias)
        q, k, v = (t.view(2, 5, 2, 8).transpose(1, 2) for t in projected.chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 16)
        # The operand of the output projection is laid out (sequence, batch); one scale for all of it.
        expected = F.linear(_quantized(mixed), _quantized_weight(attention.out_proj.weight), attention.out_proj.bias)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(y, plain, atol=1e-3)


# --- scope ------------------------------------------------------------------------------------------------------------


def test_innermost_wins_and_exceptions_restore() -> None:
    net, x = _net()
    outer, inner = quant.autocast(4, 4), quant.autocast(8, 8)
    with outer:
        expected = net(x)
        with inner:
            assert torch.equal(net(x), _reference(net, x, (8, 8, 8)))
            with outer:  # entered a second time while it is open
                assert torch.equal(net(x), expected)
            with quant.disabled():
                assert quant.current_recipe() is None
        assert torch.equal(net(x), expected)
        with contextlib.suppress(ZeroDivisionError), inner:
            raise ZeroDivisionError
        assert torch.equal(net(x), expected)
    assert quant.current_recipe() is None


def test_the_scope_belongs_to_its_thread() -> None:
    net, x = _net()
    plain = net(x)
    results: dict[str, Tensor] = {}

    def run(name: str, context: Any) -> None:
        with context:
            results[name] = net(x)

    context = quant.autocast(4, 4)
    with context:
        jobs = [("plain", contextlib.nullcontext()), ("same", context), ("eight", quant.autocast(8, 8))]
        threads = [threading.Thread(target=run, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.equal(net(x), _reference(net, x))
    assert torch.equal(results["plain"], plain)
    assert torch.equal(results["same"], _reference(net, x))
    assert torch.equal(results["eight"], _reference(net, x, (8, 8, 8)))


def test_decorator_and_script() -> None:
    net, x = _net()
    assert torch.equal(quant.autocast(4, 4)(net)(x), _reference(net, x))
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    assert scripted(torch.randn(2, 3)).shape == (2, 4)


def test_functional_call_and_export() -> None:
    net, x = _net()
    other = {name: p.detach() * 1.5 for name, p in net.named_parameters()}
    with quant.autocast(4, 4):
        y = torch.func.functional_call(net, other, (x,))
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(other[name])
    assert torch.equal(y, _reference(net, x))
    with quant.autocast(4, 4):
        program = torch.export.export(net.eval(), (x,))
    torch.testing.assert_close(program.module()(x), _reference(net, x), rtol=1e-5, atol=1e-5)


# --- checkpointing and torch.compile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_checkpoint_recomputes_quantized(use_reentrant: bool, backward_inside: bool) -> None:
    net, x = _net(use_reentrant)
    x.requires_grad_()
    expected = _step(net, lambda x: _reference(net, x), x)
    context = quant.autocast(4, 4)
    if backward_inside:
        with context:
            found = _step(net, net, x)
    else:
        found = _step(net, _in(context, net), x)
    _assert_equal(found, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_recomputes_matmuls_quantized(use_reentrant: bool) -> None:
    a = torch.randn(4, 5, requires_grad=True)
    b = torch.randn(5, 3, requires_grad=True)
    with quant.autocast(4, 4, matmul=True):
        y = checkpoint(lambda a: (a @ b).square(), a, use_reentrant=use_reentrant)
    y.sum().backward()
    found = [a.grad, b.grad]
    expected = torch.autograd.grad((_quantized(a) @ _quantized(b)).square().sum(), (a, b))
    for gradient, target in zip(found, expected, strict=True):
        assert gradient is not None
        assert torch.equal(gradient, target)


def test_checkpoint_outside_of_the_context_stays_plain() -> None:
    net, x = _net(use_reentrant=False)
    context = quant.autocast(4, 4)  # the first context installs the gates: it must exist before the forward pass
    expected = _step(net, net, x)
    net.zero_grad()
    y = net(x)
    with context:
        y.square().sum().backward()
    _assert_equal([y.detach(), *(p.grad for p in net.parameters() if p.grad is not None)], expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("use_reentrant", [None, False])
def test_compile(backend: str, use_reentrant: bool | None) -> None:
    net, x = _net(use_reentrant)
    expected = _step(net, lambda x: _reference(net, x), x)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    plain = _step(net, net, x)
    for _ in range(2):
        _assert_equal(_step(net, _in(quant.autocast(4, 4), compiled), x), expected, 2e-5)
    _assert_equal(_step(net, compiled, x), plain, 2e-5)


def test_compile_counts() -> None:
    """A new context with equal settings reuses the graph; other bits compile once more; going back is free."""
    net, x = _net()
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
    net, x = _net()
    torch._dynamo.reset()
    inside = torch.compile(quant.autocast(4, 4)(net.forward), backend="aot_eager", fullgraph=True)
    _assert_equal(_step(net, inside, x), _step(net, lambda x: _reference(net, x), x), 1e-5)


def test_compiled_vectors_and_model_rules() -> None:
    net, x = _net()
    for context in (quant.autocast("4/4/6/6"), quant.autocast(4, 4, model=net), quant.autocast(4, 4, method="max")):
        torch._dynamo.reset()
        eager = _step(net, _in(context, net), x)
        compiled = _step(net, _in(context, torch.compile(net, backend="aot_eager", fullgraph=True)), x)
        _assert_equal(compiled, eager, 1e-5)


# --- mixed precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("quant_outside", [True, False])
def test_bfloat16_autocast_computes_on_codes(bits: int, quant_outside: bool) -> None:
    """Off the grid by nothing: the only error left is the rounding of the results to bfloat16."""
    layer, x = nn.Linear(64, 8), torch.randn(16, 64)
    contexts = [quant.autocast(bits, bits), torch.autocast("cpu", torch.bfloat16)]
    with contextlib.ExitStack() as stack:
        for context in contexts if quant_outside else contexts[::-1]:
            stack.enter_context(context)
        y = layer(x)
    assert y.dtype == torch.bfloat16
    exact = F.linear(_quantized(x, bits).double(), _quantized_weight(layer.weight, bits).double())
    torch.testing.assert_close((y.float() - layer.bias).double(), exact, rtol=1e-2, atol=1e-2)
    y.float().sum().backward()
    assert layer.weight.grad is not None
    expected = torch.autograd.grad(
        F.linear(_quantized(x, bits), _quantized_weight(layer.weight, bits)).sum(), layer.weight
    )
    torch.testing.assert_close(layer.weight.grad, expected[0], rtol=2e-2, atol=2e-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype: torch.dtype) -> None:
    layer, x = nn.Conv2d(4, 6, 3).to(dtype), torch.randn(2, 4, 8, 8, dtype=dtype)
    with quant.autocast(4, 4):
        y = layer(x)
    assert y.dtype == dtype
    w, bias = layer.weight.float(), layer.bias
    assert bias is not None
    expected = F.conv2d(_quantized(x.float()), _quantized_weight(w), bias.float())
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)


def test_bfloat16_vectors_and_compile() -> None:
    layer, x = nn.Linear(32, 8), torch.randn(16, 32)
    for context in (quant.autocast("4/8/6/10"), quant.autocast(4, 4)):
        with context, torch.autocast("cpu", torch.bfloat16):
            eager = layer(x)
            torch._dynamo.reset()
            compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
        assert eager.dtype == compiled.dtype == torch.bfloat16
        torch.testing.assert_close(compiled, eager)


# --- the cache of weights ---------------------------------------------------------------------------------------------


def _optimizers() -> list[Any]:
    return [
        ("sgd", {"foreach": False}), ("sgd", {"foreach": True}), ("sgd", {"fused": True}),
        ("adam", {"foreach": False}), ("adam", {"foreach": True}), ("adam", {"fused": True}),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), _optimizers())
def test_no_stale_weights_after_any_optimizer(name: str, options: dict[str, bool]) -> None:
    net, x = _net()
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
    optimizer = kind(net.parameters(), lr=0.1, **options)  # type: ignore[operator]
    with quant.autocast(4, 4):  # one context around all steps, as in a loop inside it
        for _ in range(3):
            y = net(x)
            assert torch.equal(y, _reference(net, x))
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
            assert torch.equal(y, F.linear(_quantized(x), _quantized_weight(layer.weight), layer.bias))

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
    total = sum(F.linear(_quantized(F.linear(_quantized(p), _quantized_weight(w))), _quantized_weight(w)).square().sum()
                for p in x)  # fmt: skip
    assert isinstance(total, Tensor)
    assert found is not None
    torch.testing.assert_close(torch.autograd.grad(total, w)[0], found, rtol=1e-5, atol=1e-6)


# --- packed activations -----------------------------------------------------------------------------------------------


def _saved_bytes(run: Callable[[], Tensor], parameters: list[Tensor]) -> int:
    """Bytes of distinct storages that autograd keeps for the backward pass, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    seen: dict[int, int] = {}
    kept: list[Any] = []

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        run()
    return sum(seen.values())


@pytest.mark.parametrize("estimator", ["pwl", "ste", "mad"])
def test_packed_gradients_are_equal_to_the_bit(estimator: str) -> None:
    net, x = _net()
    x.requires_grad_()
    options: dict[str, Any] = {"activation_estimator": estimator}
    for layout in (torch.contiguous_format, torch.channels_last):
        x.grad = None
        given = x.detach().to(memory_format=layout).requires_grad_()
        plain = [*_step(net, _in(quant.autocast(4, 4, **options), net), given), given.grad]
        given = x.detach().to(memory_format=layout).requires_grad_()
        packed = [*_step(net, _in(quant.autocast(4, 4, pack=True, **options), net), given), given.grad]
        for a, b in zip(plain, packed, strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)


def test_packed_attention_and_odd_sizes() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 20, dropout=0.0, batch_first=True)
    x = torch.randn(3, 7, 12)
    results = [_step(layer, _in(quant.autocast(4, 4, pack=pack), layer), x) for pack in (False, True)]
    _assert_equal(results[0], results[1])


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
        _reference(net, other).square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    expected = [(a + b) / 2 for a, b in zip(*gradients, strict=True)]
    histogram = quant.BitHistogram().add(x).all_reduce()
    return {
        "error": max(float((a - e).abs().max() / e.abs().max()) for a, e in zip(averaged, expected, strict=True)),
        "scale": histogram.octav_scale(4),
        "data": x,
    }


def test_ddp_and_a_scale_over_all_ranks() -> None:
    results = run_ranks(_train_two_ranks, 2)
    assert all(r["error"] < 1e-5 for r in results)
    assert results[0]["scale"] == results[1]["scale"]
    everything = torch.cat([r["data"] for r in results])
    assert results[0]["scale"] == quant.BitHistogram().add(everything).octav_scale(4)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["4", "4/8/6", "a/b", "4//8", "4/8/6/10/2", "", "4/8U/6/U"])
def test_malformed_notation(text: str) -> None:
    with pytest.raises(ValueError, match="notation must read"):
        quant.autocast(text)


def test_notation_fields() -> None:
    recipe = quant.parse_notation("4/8U/6/-")
    assert (recipe.weights, recipe.activations, recipe.unsigned) == (4, 8, True)
    assert (recipe.weight_scale_bits, recipe.activation_scale_bits) == (6, None)
    with pytest.raises(ValueError, match='notation "?.*9/4.*weights must be None or an integer from 2 to 8, got 9'):
        quant.parse_notation("9/4")


def test_bad_settings_name_the_argument() -> None:
    with pytest.raises(ValueError, match="activations must be None or an integer from 2 to 8, got 1"):
        quant.autocast(4, 1)
    with pytest.raises(ValueError, match="method must be one of octav, max"):
        quant.autocast(4, 4, "kmeans")
    with pytest.raises(ValueError, match="pass model="):
        quant.autocast(4, 4, rules={"*": 8})
    with pytest.raises(ValueError, match=r"rule 'head\*' matches no layer; the layers are conv, middle, linear"):
        quant.autocast(4, 4, model=Net(), rules={"head*": 8})
    with pytest.raises(ValueError, match="weight_estimator must be one of"):
        quant.autocast(4, 4, weight_estimator="mph")
