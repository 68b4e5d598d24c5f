"""The experiments of benchmarks/quant_accuracy.py."""

from benchmarks.quant_tasks.base import Context, Experiment
from benchmarks.quant_tasks.pretrained import minilm, resnet20
from benchmarks.quant_tasks.training import cifar10, fashion, gpt

__all__ = ["Context", "Experiment", "cifar10", "fashion", "gpt", "minilm", "resnet20"]
