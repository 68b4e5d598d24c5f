"""What a training script needs to offer pruning and Winograd layers as options: text to schedule, model to model."""

from torch import nn

from dgcomp.sparse.pruner import Cubic, Iterative, OneShot, Schedule
from dgcomp.sparse.winograd import WinogradReLUConv2d

__all__ = ["convert_to_winograd", "parse_schedule"]


def parse_schedule(text: str) -> Schedule:
    """Schedule of a `--prune` option.

    "0.1" prunes to density 0.1 at the first step, "0.1@500" at step 500, "0.1@500-2500" on the cubic schedule between
    those steps, "0.5,0.3,0.1@700" takes each density for 700 steps. Raises ValueError for anything else.
    """
    densities_text, _, steps = text.partition("@")
    try:
        densities = [float(part) for part in densities_text.split(",")]
        start, _, stop = steps.partition("-")
        if not all(0 < density <= 1 for density in densities) or (len(densities) > 1 and (stop or not start)):
            raise ValueError
        if len(densities) > 1:
            return Iterative(densities, int(start))
        if stop:
            return Cubic(densities[0], int(start), int(stop))
        return OneShot(densities[0], int(start or 1))
    except ValueError:
        raise ValueError(
            f"prune must look like 0.1, 0.1@500, 0.1@500-2500 or 0.5,0.3,0.1@700 with densities in (0, 1], got {text!r}"
        ) from None


def convert_to_winograd(model: nn.Module, *, tile: int = 2, relu: bool = True) -> int:
    """Replace, in place, every 3x3 convolution of stride 1 but the first convolution; return how many.

    The new layers start from the spatial weights. With `relu`, an nn.ReLU that stands right before such a convolution
    in an nn.Sequential moves into it; a ReLU called as a function stays, which is still right but less sparse.
    Convolutions that Winograd cannot do (stride, groups, bias, dilation) are left alone. Make the optimizer afterwards.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    replaced = 0
    for parent in list(model.modules()):
        previous = None
        for name, child in list(parent.named_children()):
            if child is not first and isinstance(child, nn.Conv2d) and _is_eligible(child):
                setattr(parent, name, WinogradReLUConv2d.from_conv2d(child, tile=tile, relu=relu))
                replaced += 1
                if (
                    relu
                    and isinstance(parent, nn.Sequential)
                    and isinstance(getattr(parent, previous or "", None), nn.ReLU)
                ):
                    setattr(parent, str(previous), nn.Identity())
            previous = name
    return replaced


def _is_eligible(conv: nn.Conv2d) -> bool:
    plain = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1 and conv.bias is None
    return plain and conv.kernel_size == (3, 3) and conv.padding in ((0, 0), (1, 1), (2, 2))
