"""Detection in video: how late objects are first seen, and how to see them early at little cost."""

from dgcomp.video.delay import DelayResult, average_delay
from dgcomp.video.delay_at_precision import MeanDelayResult, mean_delay

__all__ = ["DelayResult", "MeanDelayResult", "average_delay", "mean_delay"]
