"""Speed and memory of quantized training on this CPU.

    python -m benchmarks.quantization scale        octav_scale against an absmax reduction and the paper's eager form
    python -m benchmarks.quantization steps        compiled training steps: fp32, dgcomp, peers that are installed
    python -m benchmarks.quantization memory       bytes saved for the backward pass: fp32, plain, packed
    python -m benchmarks.quantization clips        squared error of OCTAV's clips on known distributions
    python -m benchmarks.quantization vectors      signal to noise of scales per vector

Every figure is the median of several runs, ratios are of medians of one run with the contestants taking turns, and the
physical limit stands beside it. Peers (torch.ao's fake quantization, torchao, brevitas) are measured on the same model
when they can be imported. Results are appended to benchmarks/results/quantization.json and rendered beside it.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.quant_tasks.errors import Figures, measure_clips, measure_vectors
from benchmarks.quant_tasks.pretrained_models import ResNet
from benchmarks.store import describe_commit
from dgcomp import quant

RESULTS = Path(__file__).parent / "results" / "quantization.json"


def interleaved(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after one warm-up, taking turns so that a busy neighbour slows all of them.

    With one thread it is the processor's time, which a neighbour disturbs less than the clock on the wall.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


# --- the scale --------------------------------------------------------------------------------------------------------


def paper_eager(x: Tensor, bits: int = 4, iterations: int = 10) -> Tensor:
    """The recursion as the paper states it, in eager torch operations: what its own implementation would do."""
    magnitude = x.abs()
    s = magnitude.sum() / (magnitude > 0).sum()
    for _ in range(iterations):
        above = magnitude > s
        inside = (magnitude <= s) & (magnitude > 0)
        s = (magnitude * above).sum() / (4.0**-bits / 3 * inside.sum() + above.sum())
    return s


def measure_scale(rounds: int, millions: list[int]) -> list[Figures]:
    rows: list[Figures] = []
    for size in millions:
        x = torch.randn(size * 1_000_000)
        contestants: dict[str, Callable[[], Any]] = {
            "x.abs().amax()": lambda x=x: x.abs().amax(),
            "torch.aminmax (one fused read)": lambda x=x: torch.aminmax(x),
            "x.sum() (one read)": lambda x=x: x.sum(),
            "octav_scale paper": lambda x=x: quant.octav_scale(x, 4, grid="paper"),
            "octav_scale exact": lambda x=x: quant.octav_scale(x, 4),
            "BitHistogram.add": lambda x=x: quant.BitHistogram().add(x),
        }
        if size <= 8:
            contestants["paper, eager, 10 iterations"] = lambda x=x: paper_eager(x)
        seconds = interleaved(contestants, rounds)
        exact = quant.octav_scale(x, 4, grid="paper", start=torch.tensor(2.5)).item()  # on all data, to the end
        allowed = seconds["x.abs().amax()"] + seconds["x.sum() (one read)"]
        fused = seconds["torch.aminmax (one fused read)"] + seconds["x.sum() (one read)"]
        row: Figures = {"elements": f"{size} M"}
        row.update({f"{name} (ms)": round(1e3 * s, 2) for name, s in seconds.items()})
        row["octav / (abs().amax() + read)"] = round(seconds["octav_scale exact"] / allowed, 2)
        row["octav / (aminmax + read)"] = round(seconds["octav_scale exact"] / fused, 2)
        if "paper, eager, 10 iterations" in seconds:
            row["eager paper / octav"] = round(seconds["paper, eager, 10 iterations"] / seconds["octav_scale paper"], 1)
        row["relative error of s"] = f"{abs(quant.octav_scale(x, 4, grid='paper').item() / exact - 1):.1e}"
        rows.append(row)
    return rows


# --- training steps ---------------------------------------------------------------------------------------------------


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(16, 128, 256)


def resnet20() -> tuple[nn.Module, Tensor]:
    return ResNet(3), torch.randn(64, 3, 32, 32)


MODELS = {"resnet20 batch 64": resnet20, "transformer 2 x 256, 16 x 128 tokens": transformer}


def training_step(model: nn.Module, x: Tensor, context: Callable[[], Any] | None = None) -> Callable[[], None]:
    forward = forward_of(model, x, context)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        forward().backward()

    return run


class FakeQuantLayer(nn.Module):
    """A layer around torch.ao's fake-quantization modules, as prepare_qat makes it: moving-average ranges."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        from torch.ao.quantization import (
            FakeQuantize,
            MovingAverageMinMaxObserver,
            MovingAveragePerChannelMinMaxObserver,
        )

        options = {"quant_min": -7, "quant_max": 7, "dtype": torch.qint8}
        self.layer = layer
        self.activation = FakeQuantize(MovingAverageMinMaxObserver, qscheme=torch.per_tensor_symmetric, **options)
        self.weight = FakeQuantize(
            MovingAveragePerChannelMinMaxObserver, qscheme=torch.per_channel_symmetric, ch_axis=0, **options
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight(self.layer.weight)
        if isinstance(self.layer, nn.Linear):
            return F.linear(self.activation(x), weight, self.layer.bias)
        return self.layer._conv_forward(self.activation(x), weight, self.layer.bias)


def with_torch_ao(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d) or type(layer) is nn.Linear:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, FakeQuantLayer(layer))
    return model


def with_torchao(model: nn.Module) -> nn.Module:
    """torchao's QAT: dynamic int8 activations per token, int4 weights in groups of 32; linear layers only."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    model = copy.deepcopy(model)
    activation = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    weight = IntxFakeQuantizeConfig(torch.int4, group_size=32)
    quantize_(model, QATConfig(activation_config=activation, weight_config=weight, step="prepare"))
    return model


def with_brevitas(model: nn.Module) -> nn.Module:
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    model = copy.deepcopy(model)
    options = {
        "weight_quant": Int8WeightPerChannelFloat, "input_quant": Int8ActPerTensorFloat,
        "weight_bit_width": 4, "input_bit_width": 4,
    }  # fmt: skip
    for name, layer in list(model.named_modules()):
        bias = getattr(layer, "bias", None) is not None
        if isinstance(layer, nn.Conv2d):
            twin = qnn.QuantConv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                bias=bias,
                **options,
            )
        elif type(layer) is nn.Linear:
            twin = qnn.QuantLinear(layer.in_features, layer.out_features, bias=bias, **options)
        else:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, twin)
    return model


PEERS = {
    "torch.ao fake quantization": with_torch_ao,
    "torchao QAT (linear only)": with_torchao,
    "brevitas": with_brevitas,
}


def measure_steps(rounds: int, models: list[str] | None, words: list[str] | None) -> list[Figures]:
    rows: list[Figures] = []
    for title, make in MODELS.items():
        if models and not any(word in title for word in models):
            continue
        torch.manual_seed(0)
        model, x = make()
        torch._dynamo.reset()
        contestants, missing = _contestants(model, x, words)
        seconds = interleaved(contestants, rounds)
        for name, s in seconds.items():
            rows.append({"model": title, "step": name, "ms": round(1e3 * s, 1),
                         "/ fp32 compiled": round(s / seconds[BASE], 2)})  # fmt: skip
        rows += [{"model": title, "step": text, "ms": "-", "/ fp32 compiled": "-"} for text in missing]
    return rows


BASE = "fp32 compiled"


def _contestants(
    model: nn.Module, x: Tensor, words: list[str] | None
) -> tuple[dict[str, Callable[[], None]], list[str]]:
    """Steps by name, each run once, and a line for each that could not be made; `words` picks some, fp32 stays."""
    makers: dict[str, Callable[[], Callable[[], None]]] = {
        BASE: lambda: training_step(torch.compile(copy.deepcopy(model)), x),
        "dgcomp 4/4 octav compiled": lambda: training_step(
            torch.compile(copy.deepcopy(model)), x, lambda: quant.autocast(4, 4)
        ),
        "fp32 eager": lambda: training_step(copy.deepcopy(model), x),
        "dgcomp 4/4 octav eager": lambda: training_step(copy.deepcopy(model), x, lambda: quant.autocast(4, 4)),
    }
    for name, convert in PEERS.items():
        makers[f"{name} eager"] = lambda convert=convert: training_step(convert(model), x)  # type: ignore[misc]
        makers[f"{name} compiled"] = lambda convert=convert: training_step(  # type: ignore[misc]
            torch.compile(convert(model)), x
        )
    steps, missing = {}, []
    for name, make in makers.items():
        if words and name != BASE and not any(word in name for word in words):
            continue
        try:
            step = make()
            step()
            steps[name] = step
        except Exception as error:  # a peer may be absent, or refuse a model: the table says which and why
            reason = str(error).splitlines()[0][:80] if str(error) else ""
            missing.append(f"{name}: {type(error).__name__}: {reason}")
    return steps, missing


# --- memory -----------------------------------------------------------------------------------------------------------


def saved_bytes(forward: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Net bytes that the allocator handed out during the forward pass: what waits for the backward. And the loss."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        loss = forward()
    return sum(event.self_cpu_memory_usage for event in record.key_averages()), loss


def forward_of(model: nn.Module, x: Tensor, context: Callable[[], Any] | None) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        if context is None:
            return model(x).square().mean()
        with context():
            return model(x).square().mean()

    return forward


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [module for _ in range(6) for module in (nn.Linear(512, 512), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(512, 10)), torch.randn(1024, 512)


def measure_memory() -> list[Figures]:
    rows: list[Figures] = []
    for title, make in {"MLP 7 x 512, ReLU, batch 1024": mlp, **MODELS}.items():
        torch.manual_seed(0)
        model, x = make()
        matmul = "transformer" in title  # the operands of attention are products' operands too
        forms: dict[str, Callable[[], Any] | None] = {
            "fp32": None,
            "4/4 plain": lambda matmul=matmul: quant.autocast(4, 4, matmul=matmul),  # type: ignore[misc]
            "4/4 packed": lambda matmul=matmul: quant.autocast(4, 4, matmul=matmul, pack=True),  # type: ignore[misc]
        }
        sizes, gradients = {}, {}
        for name, context in forms.items():
            forward = forward_of(model, x, context)
            forward()  # compiles loops and allocates what stays
            model.zero_grad(set_to_none=True)
            sizes[name], loss = saved_bytes(forward)
            loss.backward()
            gradients[name] = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            del loss
        seconds = interleaved({name: training_step(model, x, context) for name, context in forms.items()}, 3)
        same = all(torch.equal(a, b) for a, b in zip(gradients["4/4 plain"], gradients["4/4 packed"], strict=True))
        row: Figures = {"model": title}
        row.update({f"{name} (MB)": round(size / 1e6, 2) for name, size in sizes.items()})
        row["fp32 / packed"] = round(sizes["fp32"] / sizes["4/4 packed"], 2)
        row["gradients equal to the bit"] = str(same)
        row["step, packed / plain"] = round(seconds["4/4 packed"] / seconds["4/4 plain"], 2)
        rows.append(row)
    return rows


# --- results ----------------------------------------------------------------------------------------------------------


def save(name: str, rows: list[Figures]) -> None:
    """Append a run to the JSON file and render the newest run of each kind."""
    runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    runs.append(
        {
            "name": name,
            "command": "python -m benchmarks.quantization " + " ".join(sys.argv[1:]),
            "commit": describe_commit(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
            "rows": rows,
        }
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(runs, indent=1) + "\n")
    parts = ["# Speed and memory of quantized training\n"]
    newest = {(run["name"], run["command"]): run for run in runs}  # of every kind with every choice of rows
    for (kind, _), run in newest.items():
        facts = f"`{run['command']}`, commit {run['commit']}, torch {run['torch']}, {run['machine']}"
        parts.append(f"\n## {kind}\n\n{facts}\n\n{table(run['rows'])}")
    RESULTS.with_suffix(".md").write_text("".join(parts))


def table(rows: list[Figures]) -> str:
    """Markdown, one line per row."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(name, "-")) for name in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scale", "steps", "memory", "clips", "vectors"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--millions", type=int, nargs="*", default=[4, 64], help="tensor sizes of `scale`")
    parser.add_argument("--models", nargs="*", help="words that pick models of `steps`, such as resnet20")
    parser.add_argument("--contestants", nargs="*", help="words that pick rows of `steps`, such as dgcomp or brevitas")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "scale":
        rows = measure_scale(arguments.rounds, arguments.millions)
    elif arguments.what == "steps":
        rows = measure_steps(arguments.rounds, arguments.models, arguments.contestants)
    else:
        rows = {"memory": measure_memory, "clips": measure_clips, "vectors": measure_vectors}[arguments.what]()
    save(arguments.what, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
