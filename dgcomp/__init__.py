"""Train over slow links and at low precision, and see what the hardware would pay for it."""

from dgcomp.attach import attach
from dgcomp.config import DGCConfig
from dgcomp.hook import dgc_hook
from dgcomp.local_adam import LocalAdam
from dgcomp.memory import ParameterSettings
from dgcomp.state import DGCState

__version__ = "0.1.0"

__all__ = ["DGCConfig", "DGCState", "LocalAdam", "ParameterSettings", "__version__", "attach", "dgc_hook"]
