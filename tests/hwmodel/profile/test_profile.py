"""The live profiler: it counts what PyTorch's own counter counts, names layers, and leaves training alone."""

import csv
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from dgcomp import hwmodel, quant, sparse
from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.operation import Operation, joined
from dgcomp.hwmodel.profile.capture import Capture
from dgcomp.hwmodel.profile.sampling import ConvGeometry, Sampler, patches
from dgcomp.sparse import winograd_autograd
from tests.ranks import run_ranks


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )


class Attention(nn.Module):
    """Self-attention with torch's fused product, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def mask_weights(model: nn.Module, density: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand_like(parameter) < density)


# torch's counter counts no products of the fused attention on CPU: 2 forward, 5 backward (scores again, 4 gradients).
FUSED_ATTENTION = 7
MODELS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 5, stride=2)),
        (4, 3, 8, 8),
        0,
    ),
    "attention": (Attention, (3, 7, 16), FUSED_ATTENTION * 3 * 4 * 7 * 7 * 4),
    "multi-head": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True),
        (3, 7, 16),
        FUSED_ATTENTION * 3 * 2 * 7 * 7 * 8,
    ),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5), 0),
    "convolution 1d": (lambda: nn.Conv1d(4, 6, 3, dilation=2), (2, 4, 11), 0),
}


@pytest.mark.parametrize("name", MODELS)
def test_multiplies_equal_torch_flop_counter(name: str) -> None:
    build, shape, not_counted = MODELS[name]
    model = build()
    x = torch.randn(shape, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    with Capture(model, Sampler(elements=64, vectors=2)) as capture:
        model(x).sum().backward()
    assert sum(operation.macs for operation in capture.operations) == counter.get_total_flops() / 2 + not_counted
    assert not capture.unknown


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolutions(transposed: bool) -> None:
    """By hand: torch's counter counts the backward of groups too high."""
    model = (nn.ConvTranspose2d if transposed else nn.Conv2d)(4, 6, 3, groups=2)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    with Capture(model, Sampler(elements=64, vectors=2)) as capture:
        model(x).sum().backward()
    positions = 2 * 5 * 5 if transposed else 2 * 3 * 3
    assert [operation.macs for operation in capture.operations] == [positions * 6 * 2 * 9] * 3
    assert [operation.phase for operation in capture.operations] == ["forward", "input_grad", "weight_grad"]


def test_layers_directions_and_densities() -> None:
    model = small_net()
    mask_weights(model, 0.25)
    x = torch.randn(4, 3, 8, 8)
    with Capture(model, Sampler(elements=10_000, vectors=3)) as capture:
        model(x).sum().backward()
    seen = {(operation.layer, operation.kind, operation.phase) for operation in capture.operations}
    assert seen == {
        ("0", "conv", "forward"),
        ("2", "conv", "forward"),
        ("5", "linear", "forward"),
        ("5", "linear", "input_grad"),
        ("5", "linear", "weight_grad"),
        ("2", "conv", "input_grad"),
        ("2", "conv", "weight_grad"),
        ("0", "conv", "weight_grad"),  # the image needs no gradient
    }
    forward = {operation.layer: operation for operation in capture.operations if operation.phase == "forward"}
    for layer, operation in forward.items():
        weight = model.get_parameter(f"{layer}.weight")
        group = weight[: weight.shape[0] // operation.copies]
        assert operation.a_density == pytest.approx(float((group != 0).double().mean()), abs=1e-6)
        assert operation.a is not None
        assert operation.a.shape == (operation.rows, operation.inner)
        assert operation.x is not None
        assert operation.x.shape == (3, operation.inner)
    assert [forward[layer].channels for layer in ("0", "2", "5")] == [3, 4, None]
    activation = model[:5](x)
    assert forward["5"].x_density == pytest.approx(float((activation != 0).double().mean()), abs=1e-6)
    assert forward["5"].x_density_error == 0  # small enough to be counted whole


def test_sampled_density_is_within_its_error() -> None:
    x = (torch.rand(300, 400) < 0.3).float().t()  # not contiguous
    for seed in range(20):
        share, error = Sampler(elements=2000, vectors=1, seed=seed).density(x)
        assert error == pytest.approx((share * (1 - share) / 2000) ** 0.5)
        assert abs(share - float(x.mean())) < 4 * error


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 0, 1, 2), (1, 2, 2, 1), (3, 1, 1, 1)]
)
def test_patches_equal_unfold(stride: int, padding: int, dilation: int, groups: int) -> None:
    images = torch.randn(3, 4, 9, 7)
    conv = ConvGeometry([stride], [padding], [dilation], groups, spatial=2)
    first_group = images[:, : 4 // groups]
    unfolded = F.unfold(first_group, 3, dilation=dilation, padding=padding, stride=stride)  # [N, C * 9, positions]
    height, width = conv.output_size([9, 7], [3, 3])
    positions = [torch.randint(size, (20,)) for size in (3, height, width)]
    found = patches(images, positions, [3, 3], conv)
    assert torch.equal(found, unfolded[positions[0], :, positions[1] * width + positions[2]])


def test_products_from_samples_are_right_on_average() -> None:
    """A chip that counts pairs of nonzeros, on all columns: the sample of patches must be the layer's patches."""
    model = nn.Conv2d(4, 6, 3, padding=1)
    mask_weights(model, 0.3)
    x = torch.randn(2, 4, 6, 6).relu()
    with Capture(model, Sampler(elements=10, vectors=4000)) as capture:
        model(x)
    (operation,) = capture.operations
    assert operation.a is not None
    assert operation.x is not None
    pairs = float((operation.x.double() @ operation.a.double().t()).sum()) * operation.columns / len(operation.x)
    exact = float(F.conv2d((x != 0).double(), (model.weight != 0).double(), padding=1).sum())
    assert pairs == pytest.approx(exact, rel=0.05)


def train(steps: int, *, profiled: bool) -> tuple[list[torch.Tensor], hwmodel.Profile]:
    torch.manual_seed(0)
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prof = hwmodel.profile(model, ["eie", "vsquant:4/4/4/6"], every=2)
    with prof if profiled else nullcontext():
        for _ in range(steps):
            model(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if profiled:
                prof.step()
    return [parameter.detach().clone() for parameter in model.parameters()], prof


def test_training_is_the_same_to_the_bit() -> None:
    plain, _ = train(5, profiled=False)
    profiled, prof = train(5, profiled=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, profiled, strict=True))
    assert [report.step for report in prof.reports] == [0, 2, 4]


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_unsampled_steps_and_the_outside_see_no_hooks() -> None:
    model = small_net()
    prof = hwmodel.profile(model, "eie", every=3)
    assert num_hooks(model) == 0
    with prof:
        assert num_hooks(model) == 2 * len(list(model.modules()))
        model(torch.randn(1, 3, 8, 8))
        prof.step()
        assert num_hooks(model) == 0
        assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    with pytest.raises(KeyError), prof:
        raise KeyError
    assert num_hooks(model) == 0
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_compiled_models_are_seen_and_stay_compiled() -> None:
    """Sampled steps run eagerly, all others compiled, from one compilation."""
    runs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        runs.append("compile")

        def run(*args: torch.Tensor) -> Any:
            runs.append("run")
            return graph(*args)

        return run

    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    compiled = torch.compile(model, backend=backend)
    with hwmodel.profile(model, "eie", every=3) as prof:
        for step in range(7):
            compiled(torch.randn(2, 4)).sum().backward()
            report = prof.step()
            assert (report is not None) == (step % 3 == 0)
            assert runs.count("run") == step - step // 3
    assert runs.count("compile") == 1
    assert {row.layer for row in prof.last.operations} == {"0", "2"}


def test_autocast_is_seen_in_the_operands() -> None:
    model = nn.Linear(8, 4)
    with Capture(model, Sampler(elements=8, vectors=1)) as capture, torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 8)).sum().backward()
    assert [operation.precision.weight_bits for operation in capture.operations] == [16, 16]
    assert [operation.phase for operation in capture.operations] == ["forward", "weight_grad"]


def test_quantized_training_is_seen_in_its_bits() -> None:
    model = small_net()
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    with Capture(model, Sampler(elements=8, vectors=1)) as capture, quant.autocast("4/6/4/-"):
        model(x).sum().backward()
    forward = [operation for operation in capture.operations if operation.phase == "forward"]
    assert [str(operation.precision) for operation in forward] == ["4/6/4/-"] * 3
    assert [operation.layer for operation in forward] == ["0", "2", "5"]
    assert all(operation.a_is_weight for operation in forward)
    # Gradients are not quantized: they meet 4-bit weights, or 6-bit activations, in 32 bits.
    backward = {
        phase: {str(operation.precision) for operation in capture.operations if operation.phase == phase}
        for phase in ("input_grad", "weight_grad")
    }
    assert backward == {"input_grad": {"4/32/4/-"}, "weight_grad": {"32/6/-/-"}}
    assert len(capture.operations) == 9


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_recomputation_is_seen_as_such(reentrant: bool) -> None:
    model = small_net()
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with Capture(model, Sampler(elements=8, vectors=1)) as capture:
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    phases = [operation.phase for operation in capture.operations]
    assert phases.count("forward") == phases.count("input_grad") == phases.count("weight_grad") == 3
    assert 2 <= phases.count("recompute") <= 3  # the last layer's output need not be computed again
    assert {operation.layer for operation in capture.operations} == {"0", "2", "5"}


def test_lstm_layers_are_priced() -> None:
    model = nn.LSTM(6, 5)
    with Capture(model, Sampler(elements=8, vectors=2)) as capture:
        model(torch.randn(4, 3, 6))[0].sum().backward()
    forward = [operation for operation in capture.operations if operation.phase == "forward"]
    assert {(operation.rows, operation.inner) for operation in forward} == {(20, 6), (20, 5)}
    assert sum(operation.macs for operation in forward) == 4 * 3 * 20 * (6 + 5)


def test_winograd_layers_are_priced_in_their_domain() -> None:
    model = sparse.WinogradReLUConv2d(4, 6)
    mask_weights(model, 0.4)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with Capture(model, Sampler(elements=8, vectors=2)) as capture:
        model(x).sum().backward()
    costs = {operation.phase: hwmodel.WinogradEngine().price(operation) for operation in capture.operations}
    assert list(costs) == ["forward", "input_grad", "weight_grad"]  # the transforms are no products
    assert costs["forward"] is not None
    (counted,) = sparse.count_multiplies(model, x.detach()).layers
    assert costs["forward"].breakdown["multiplies_count"] == counted.sparse
    dense = hwmodel.WinogradEngine("dense").price(capture.operations[0])
    assert dense is not None
    assert dense.breakdown["multiplies_count"] == counted.dense
    assert costs["input_grad"] is not None
    assert costs["weight_grad"] is None


def test_blocks_of_images_of_a_winograd_layer_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparse.WinogradReLUConv2d(4, 6)
    x = torch.randn(5, 4, 8, 8, requires_grad=True)
    found = []
    for tiles in (20, 256):  # blocks of two images, the last one of one; all at once
        monkeypatch.setattr(winograd_autograd, "TILES_PER_BLOCK", tiles)
        with Capture(model, Sampler(elements=8192, vectors=2)) as capture:
            model(x).sum().backward()
        found.append(capture.operations)
    blocks, whole = found
    assert len(blocks) == 3
    for part, one in zip(blocks, whole, strict=True):
        assert (part.phase, part.rows, part.inner, part.columns) == (one.phase, one.rows, one.inner, one.columns)
    first = Operation("layer", "linear", "forward", 2, 3, 10, x_density=0.5, x_density_error=0.1)
    second = Operation("layer", "linear", "forward", 2, 3, 30, x_density=0.1)
    both = joined(first, second)
    assert (both.columns, both.x_density, both.x_density_error) == (40, pytest.approx(0.2), pytest.approx(0.025))


class OnlyLinear:
    """A chip of the user's own that prices forward passes of linear layers."""

    name = "only-linear"

    def price(self, operation: Operation) -> Cost | None:
        if operation.kind != "linear" or operation.phase != "forward":
            return None
        return Cost(cycles=operation.macs, seconds=operation.macs * 1e-9, joules=operation.macs * 1e-12)


def one_step(model: nn.Module, chips: Any) -> hwmodel.Profile:
    with hwmodel.profile(model, chips) as prof:
        model(torch.randn(4, 3, 8, 8)).sum().backward()
        prof.step()
    return prof


def test_what_is_not_priced_is_listed_with_its_share() -> None:
    prof = one_step(small_net(), [OnlyLinear(), "vsquant:4/4/-/-"])
    report = prof.last
    forward = 4 * 8 * 16 * 10
    assert report.total("only-linear").cycles == forward
    share, parts = report.not_priced("only-linear")
    assert share == pytest.approx(1 - forward / report.macs)
    assert sum(parts.values()) == pytest.approx(share)
    assert "conv weight_grad" in parts
    assert report.not_priced("vsquant-4/4/-/-") == (0.0, {})
    assert f"only-linear: not priced: {share:.1%}" in prof.table()
    assert "calls that multiply no matrices" in prof.table()


def test_unknown_products_are_reported() -> None:
    with Capture(nn.Identity(), Sampler(elements=8, vectors=1)) as capture:
        torch.ops.aten._sparse_mm(torch.eye(3).to_sparse_coo(), torch.ones(3, 2))
    names = set(capture.unknown) | {operation.kind for operation in capture.operations}
    assert names


def test_exports_and_scalars(tmp_path: Path) -> None:
    model = small_net()
    mask_weights(model, 0.3)
    prof = one_step(model, "eie,vsquant:4/4/4/6,sparch,winograd,network:1gbit,nodes=4")
    names = ("eie-64pe", "vsquant-4/4/4/6", "sparch", "winograd-sparse")
    prof.export(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    for process, name in enumerate(names):
        bars = [event for event in events if event["pid"] == process and event["ph"] == "X" and event["tid"] == 1]
        assert sum(bar["dur"] for bar in bars) == pytest.approx(prof.last.total(name).seconds * 1e6)
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-6 for a, b in zip(bars, bars[1:], strict=False))
    prof.export(tmp_path / "ops.csv")
    with (tmp_path / "ops.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(prof.last.operations)
    assert sum(float(row["sparch_joules"]) for row in rows) == pytest.approx(prof.last.total("sparch").joules)
    prof.export(tmp_path / "report.html")
    assert "<svg" in (tmp_path / "report.html").read_text()
    written: dict[str, float] = {}

    class Writer:
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written[tag] = value

    prof.log(Writer())
    assert written["hwmodel/sparch/step_joules"] == prof.last.total("sparch").joules
    assert written["hwmodel/network-1gbit-4x1/sparch/exposed_seconds"] > 0
    assert all(name in prof.summary() for name in names)
    with pytest.raises(ValueError, match=r"path must end in one of .json, .csv, .html, .png, got 'x.txt'"):
        prof.export("x.txt")


@pytest.mark.optional
def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one_step(small_net(), "eie,vsquant").export(tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 5_000


def test_bad_input_names_the_argument() -> None:
    model = small_net()
    with pytest.raises(
        ValueError, match="accelerator must be one of eie, vsquant, sparch, winograd, network .* got 'tpu'"
    ):
        hwmodel.profile(model, "eie,tpu")
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        hwmodel.profile(model, "eie", every=0)
    with pytest.raises(ValueError, match="accelerators must name at least one chip"):
        hwmodel.profile(model, "network:1gbit")
    with pytest.raises(ValueError, match="accelerators must have different names"):
        hwmodel.profile(model, "eie,eie")
    with pytest.raises(RuntimeError, match="no step has been priced yet"):
        hwmodel.profile(model, "eie").table()


def profile_under_ddp(rank: int) -> list[tuple[str, str, int]]:
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(small_net())
    with hwmodel.profile(model, "eie,vsquant:4/4/-/-,network:1gbit,nodes=2") as prof:
        model(torch.randn(4, 3, 8, 8)).sum().backward()
        prof.step()
    return [(row.layer, row.phase, row.macs) for row in prof.last.operations]


def test_under_ddp() -> None:
    first, second = run_ranks(profile_under_ddp, 2)
    assert first == second
    assert {layer for layer, _, _ in first} == {"0", "2", "5"}
    assert len(first) == 8
