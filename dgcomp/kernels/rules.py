"""The five ways in which a gradient g enters the momentum u and the residual v."""

from enum import IntEnum


class Rule(IntEnum):
    """How u and v change; every operation is one fp32 rounding, in the order written.

    The momentum rules are Lin et al., ICLR 2018, eq. (7), and its Nesterov form. The additional rules are for a second
    synchronized backward of one optimizer step: afterwards u and v are what one backward of the summed gradient gives.
    """

    FEEDBACK = 0
    """v + g: error feedback alone, there is no u."""
    MOMENTUM = 1
    """u = m*u + g, then v + u."""
    NESTEROV = 2
    """u = m*(u + g), then (v + u) + g."""
    ADDITIONAL_MOMENTUM = 3
    """u + g and v + g."""
    ADDITIONAL_NESTEROV = 4
    """u + m*g and (v + m*g) + g."""
