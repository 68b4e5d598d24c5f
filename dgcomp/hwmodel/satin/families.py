"""Generators of benchmark formulas that need no files: lists of clauses of DIMACS literals."""

from collections.abc import Sequence

import numpy as np

__all__ = ["adder_equivalence", "factoring", "fan_out", "pigeonhole", "planted_communities", "random_ksat"]

Clauses = list[list[int]]


def random_ksat(num_vars: int, num_clauses: int, *, k: int = 3, seed: int = 0) -> Clauses:
    """Uniform random k-SAT without repeated variables in a clause; 3-SAT is hardest near 4.26 clauses per variable."""
    random = np.random.default_rng(seed)
    variables = np.argsort(random.random((num_clauses, num_vars)), axis=1)[:, :k] + 1 if num_vars < 64 else None
    if variables is None:
        variables = random.integers(1, num_vars + 1, (num_clauses, k))
        while (repeated := (np.diff(np.sort(variables, axis=1), axis=1) == 0).any(axis=1)).any():
            variables[repeated] = random.integers(1, num_vars + 1, (int(repeated.sum()), k))
    signs = np.where(random.random(variables.shape) < 0.5, -1, 1)
    clauses: Clauses = (variables * signs).tolist()
    return clauses


def planted_communities(num_vars: int, num_clauses: int, *, community: int = 50, seed: int = 0) -> Clauses:
    """Satisfiable 3-SAT: a planted model, nine in ten clauses inside communities, as industrial formulas have them."""
    random = np.random.default_rng(seed)
    model = random.random(num_vars) < 0.5
    clauses: Clauses = []
    while len(clauses) < num_clauses:
        local = random.random() < 0.9
        first = int(random.integers(0, max(num_vars - community, 1))) // community * community if local else 0
        span = min(community, num_vars) if local else num_vars
        variables = first + random.choice(span, 3, replace=False)
        signs = random.random(3) < 0.5
        if (signs == model[variables]).any():
            clauses.append([int(v + 1) if s else -int(v + 1) for v, s in zip(variables, signs, strict=True)])
    return clauses


def pigeonhole(holes: int) -> Clauses:
    """`holes` + 1 pigeons do not fit into `holes` holes."""
    var = [[p * holes + h + 1 for h in range(holes)] for p in range(holes + 1)]
    exclusive = [[-var[p][h], -var[q][h]] for h in range(holes) for q in range(holes + 1) for p in range(q)]
    return [list(row) for row in var] + exclusive


def fan_out(groups: int, width: int, depth: int = 1) -> Clauses:
    """Groups of equal variables: deciding one implies its group, `width` chains of `depth`; never a conflict."""
    clauses: Clauses = []
    for group in range(groups):
        root = group * (width * depth + 1) + 1
        for i in range(width):
            chain = [root, *(root + 1 + wave * width + i for wave in range(depth))]
            for x, y in zip(chain, chain[1:], strict=False):
                clauses += [[-x, y], [x, -y]]
    return clauses


def adder_equivalence(bits: int) -> Clauses:
    """A ripple-carry adder differs from one with carry select; unsatisfiable."""
    circuit = _Circuit()
    a, b = circuit.inputs(bits), circuit.inputs(bits)
    ripple, carry = circuit.add(a, b)
    selected, select_carry = _select_adder(circuit, a, b)
    differences = [circuit.xor(x, y) for x, y in zip([*ripple, carry], [*selected, select_carry], strict=True)]
    return [*circuit.clauses, differences]


def factoring(number: int) -> Clauses:
    """`number` is a product of two factors greater than 1 (array multiplier); unsatisfiable for a prime."""
    circuit = _Circuit()
    width = number.bit_length()
    a, b = circuit.inputs(width - 1), circuit.inputs((width + 1) // 2)
    total = [circuit.false] * (len(a) + len(b))
    for shift, y in enumerate(b):
        row = [circuit.both(x, y) for x in a]
        part, carry = circuit.add(total[shift : shift + len(a)], row)
        total[shift : shift + len(a) + 1] = [*part, carry][: len(total) - shift]
    units = [[x if number >> i & 1 else -x] for i, x in enumerate(total)]
    return [*circuit.clauses, *units, a[1:], b[1:]]


class _Circuit:
    """Gates in Tseitin's encoding; `false` is a variable fixed to false."""

    def __init__(self) -> None:
        self.num_vars, self.false = 1, 1
        self.clauses: Clauses = [[-1]]

    def inputs(self, count: int) -> list[int]:
        self.num_vars += count
        return list(range(self.num_vars - count + 1, self.num_vars + 1))

    def both(self, x: int, y: int) -> int:
        (z,) = self.inputs(1)
        self.clauses += [[-z, x], [-z, y], [z, -x, -y]]
        return z

    def xor(self, x: int, y: int) -> int:
        (z,) = self.inputs(1)
        self.clauses += [[-z, x, y], [-z, -x, -y], [z, -x, y], [z, x, -y]]
        return z

    def majority(self, x: int, y: int, z: int) -> int:
        (m,) = self.inputs(1)
        for p, q in ((x, y), (x, z), (y, z)):
            self.clauses += [[-p, -q, m], [p, q, -m]]
        return m

    def choose(self, condition: int, yes: int, no: int) -> int:
        (z,) = self.inputs(1)
        self.clauses += [[-condition, -yes, z], [-condition, yes, -z], [condition, -no, z], [condition, no, -z]]
        return z

    def add(self, a: Sequence[int], b: Sequence[int], carry: int | None = None) -> tuple[list[int], int]:
        """Sum bits, lowest first, and the carry out."""
        carry = self.false if carry is None else carry
        total = []
        for x, y in zip(a, b, strict=True):
            total.append(self.xor(self.xor(x, y), carry))
            carry = self.majority(x, y, carry)
        return total, carry


def _select_adder(circuit: _Circuit, a: Sequence[int], b: Sequence[int], block: int = 4) -> tuple[list[int], int]:
    """Each block is added for both carries in; the true one chooses."""
    total: list[int] = []
    carry = circuit.false
    for at in range(0, len(a), block):
        zero, carry_zero = circuit.add(a[at : at + block], b[at : at + block])
        one, carry_one = circuit.add(a[at : at + block], b[at : at + block], -circuit.false)
        total += [circuit.choose(carry, x, y) for x, y in zip(one, zero, strict=True)]
        carry = circuit.choose(carry, carry_one, carry_zero)
    return total, carry
