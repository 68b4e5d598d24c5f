"""SatIn (arXiv 2303.02588): an exact SAT solver with the clock and the energy of a distributed associative array.

Largely a reconstruction: docs/satin.md says which parts.
"""

from dgcomp.hwmodel.satin.dimacs import Formula, as_formula, read_dimacs, write_dimacs
from dgcomp.hwmodel.satin.drat import check_proof
from dgcomp.hwmodel.satin.machine import Machine
from dgcomp.hwmodel.satin.solver import SatResult, solve

__all__ = ["Formula", "Machine", "SatResult", "as_formula", "check_proof", "read_dimacs", "solve", "write_dimacs"]
