"""What training would cost on published accelerators: cycles, seconds and joules, per layer and per step."""

from dgcomp.hwmodel import eie, satin, sparch, vsquant, winograd
from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.eie import EIE
from dgcomp.hwmodel.network import Network
from dgcomp.hwmodel.operation import Accelerator, Operation, Precision
from dgcomp.hwmodel.profile import Profile, profile
from dgcomp.hwmodel.registry import parse_accelerator, parse_accelerators, register
from dgcomp.hwmodel.sparch import OuterSPACE, SpArch
from dgcomp.hwmodel.vsquant import VSQuantPE
from dgcomp.hwmodel.winograd import WinogradEngine

__all__ = [
    "EIE",
    "Accelerator",
    "Cost",
    "Network",
    "Operation",
    "OuterSPACE",
    "Precision",
    "Profile",
    "SpArch",
    "VSQuantPE",
    "WinogradEngine",
    "eie",
    "parse_accelerator",
    "parse_accelerators",
    "profile",
    "register",
    "satin",
    "sparch",
    "vsquant",
    "winograd",
]
