"""Train over slow links and at low precision, and see what the hardware would pay for it."""

__version__ = "0.1.0"
