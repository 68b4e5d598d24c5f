"""Price the steps of an ordinary training loop on accelerators, from the values that are really there."""

from dgcomp.hwmodel.profile.session import Profile, profile
from dgcomp.hwmodel.profile.step import OperationCost, StepReport

__all__ = ["OperationCost", "Profile", "StepReport", "profile"]
