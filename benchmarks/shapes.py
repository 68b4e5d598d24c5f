"""Parameter shapes of the models that the benchmarks compress, built from each architecture's rule.

`resnet50()`, `vgg16()`, `bert_base()` and `lstm1500()` return a list of shapes in model order. What is compressed are
the tensors of two and more dimensions; `split` counts both kinds.
"""

from collections.abc import Callable
from math import prod

Shape = tuple[int, ...]


def resnet50() -> list[Shape]:
    """ResNet-50 for 1,000 classes (He et al., 2016, table 1): 25,557,032 parameters."""
    shapes = _conv(64, 3, 7)
    width_in = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            shapes += _conv(width, width_in, 1) + _conv(width, width, 3) + _conv(4 * width, width, 1)
            if block == 0:
                shapes += _conv(4 * width, width_in, 1)
            width_in = 4 * width
    return shapes + [(1000, 2048), (1000,)]


def vgg16() -> list[Shape]:
    """VGG-16 without batch normalization (Simonyan and Zisserman, 2015, configuration D): 138,357,544 parameters."""
    shapes: list[Shape] = []
    width_in = 3
    for width in (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512):
        shapes += [(width, width_in, 3, 3), (width,)]
        width_in = width
    for features_in, features_out in ((512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)):
        shapes += [(features_out, features_in), (features_out,)]
    return shapes


def bert_base() -> list[Shape]:
    """BERT-base, uncased vocabulary, with the pooler (Devlin et al., 2019): 109,482,240 parameters."""
    hidden, feed_forward = 768, 3072
    shapes: list[Shape] = [(30522, hidden), (512, hidden), (2, hidden), (hidden,), (hidden,)]
    for _ in range(12):
        shapes += [(hidden, hidden), (hidden,)] * 4 + [(hidden,), (hidden,)]
        shapes += [(feed_forward, hidden), (feed_forward,), (hidden, feed_forward), (hidden,), (hidden,), (hidden,)]
    return shapes + [(hidden, hidden), (hidden,)]


def lstm1500() -> list[Shape]:
    """The Penn Treebank language model of Lin et al. (2018): 2 LSTM layers of 1,500, vocabulary 10,000, tied weights.

    194.68 MiB in fp32 in their table 3, which is 51,034,000 parameters with PyTorch's two biases per layer.
    """
    hidden, vocabulary = 1500, 10_000
    layer: list[Shape] = [(4 * hidden, hidden), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
    return [(vocabulary, hidden), *layer, *layer, (vocabulary,)]


MODELS: dict[str, Callable[[], list[Shape]]] = {
    "resnet50": resnet50,
    "vgg16": vgg16,
    "bert_base": bert_base,
    "lstm1500": lstm1500,
}


def split(shapes: list[Shape]) -> tuple[int, int]:
    """Elements in tensors of two and more dimensions, and elements in the others."""
    return sum(prod(s) for s in shapes if len(s) > 1), sum(prod(s) for s in shapes if len(s) < 2)


def _conv(width_out: int, width_in: int, kernel: int) -> list[Shape]:
    """A convolution without bias and its batch normalization."""
    return [(width_out, width_in, kernel, kernel), (width_out,), (width_out,)]
