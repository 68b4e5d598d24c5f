"""What the context quantizes, where, and where not: values and gradients against the network written out.

Where PyTorch runs the same kernels on the same numbers the comparison is exact.
"""

import contextlib
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgcomp import quant
from tests.quant.reference import Net, assert_equal, in_context, make_net, quantized, quantized_weight, reference, step

# --- values and gradients ---------------------------------------------------------------------------------------------


def test_equals_the_reference_and_has_no_effect_outside() -> None:
    net, x = make_net()
    plain = step(net, net, x)
    context = quant.autocast(weights=4, activations=4, method="octav")
    assert_equal(step(net, in_context(context, net), x), step(net, lambda x: reference(net, x), x))
    assert_equal(step(net, net, x), plain)
    assert quant.current_recipe() is None


def test_first_and_last_layer_get_eight_bits_and_rules_win() -> None:
    net, x = make_net()
    with quant.autocast(weights=4, activations=4, model=net):
        assert torch.equal(net(x), reference(net, x, (8, 4, 8)))
    with quant.autocast(weights=4, activations=4, model=net, first_last=None):
        assert torch.equal(net(x), reference(net, x))
    with quant.autocast(4, 4, model=net, rules={"mid*": 6, "linear": "3/3"}):
        assert torch.equal(net(x), reference(net, x, (8, 6, 3)))
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
    expected = operator(quantized(x), quantized_weight(w, channel=1 if transposed else 0), bias, stride=2, padding=1)
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
        assert torch.equal(layer(x), F.linear(quantized(x, 8), quantized_weight(layer.weight), layer.bias))
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
    assert torch.equal(looked_up, F.embedding(index, quantized_weight(table.weight)))
    expected = torch.matmul(quantized(a), quantized(b))
    for result in results:
        assert torch.equal(result, expected)
    assert torch.equal(a @ b, plain)


def test_attention_operands() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    with quant.autocast(4, 4, matmul=True):
        y = F.scaled_dot_product_attention(q, k, v)
    expected = F.scaled_dot_product_attention(quantized(q), quantized(k), quantized(v))
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
        projected = F.linear(quantized(x), quantized_weight(attention.in_proj_weight), attention.in_proj_bias)
        q, k, v = (t.view(2, 5, 2, 8).transpose(1, 2) for t in projected.chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 16)
        # The operand of the output projection is laid out (sequence, batch); one scale for all of it.
        expected = F.linear(quantized(mixed), quantized_weight(attention.out_proj.weight), attention.out_proj.bias)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(y, plain, atol=1e-3)


# --- scope ------------------------------------------------------------------------------------------------------------


def test_innermost_wins_and_exceptions_restore() -> None:
    net, x = make_net()
    outer, inner = quant.autocast(4, 4), quant.autocast(8, 8)
    with outer:
        expected = net(x)
        with inner:
            assert torch.equal(net(x), reference(net, x, (8, 8, 8)))
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
    net, x = make_net()
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
        assert torch.equal(net(x), reference(net, x))
    assert torch.equal(results["plain"], plain)
    assert torch.equal(results["same"], reference(net, x))
    assert torch.equal(results["eight"], reference(net, x, (8, 8, 8)))


def test_decorator_and_script() -> None:
    net, x = make_net()
    assert torch.equal(quant.autocast(4, 4)(net)(x), reference(net, x))
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    assert scripted(torch.randn(2, 3)).shape == (2, 4)


def test_functional_call_and_export() -> None:
    net, x = make_net()
    other = {name: p.detach() * 1.5 for name, p in net.named_parameters()}
    with quant.autocast(4, 4):
        y = torch.func.functional_call(net, other, (x,))
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(other[name])
    assert torch.equal(y, reference(net, x))
    with quant.autocast(4, 4):
        program = torch.export.export(net.eval(), (x,))
    torch.testing.assert_close(program.module()(x), reference(net, x), rtol=1e-5, atol=1e-5)


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
    exact = F.linear(quantized(x, bits).double(), quantized_weight(layer.weight, bits).double())
    torch.testing.assert_close((y.float() - layer.bias).double(), exact, rtol=1e-2, atol=1e-2)
    y.float().sum().backward()
    assert layer.weight.grad is not None
    expected = torch.autograd.grad(
        F.linear(quantized(x, bits), quantized_weight(layer.weight, bits)).sum(), layer.weight
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
    expected = F.conv2d(quantized(x.float()), quantized_weight(w), bias.float())
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
