"""What training would cost on published accelerators: cycles, seconds and joules, per layer and per step."""

from dgcomp.hwmodel import eie, sparch, vsquant
from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.eie import EIE
from dgcomp.hwmodel.operation import Accelerator, Operation
from dgcomp.hwmodel.sparch import OuterSPACE, SpArch
from dgcomp.hwmodel.vsquant import VSQuantPE

__all__ = ["EIE", "Accelerator", "Cost", "Operation", "OuterSPACE", "SpArch", "VSQuantPE", "eie", "sparch", "vsquant"]
