"""Decisions: a binary heap of variables by activity, bumped as in VSIDS, and saved phases."""

from dgcomp.hwmodel.satin.state import DECIDE, State, emit, kernel

__all__ = ["bump", "heap_insert", "pick"]

RESCALE_ABOVE = 1e100


@kernel
def bump(s: State, variable: int) -> None:
    """Raise the activity of a variable that took part in a conflict."""
    r = s.registers[0]
    s.activity[variable] += r.variable_increment
    if s.activity[variable] > RESCALE_ABOVE:
        s.activity[:] *= 1 / RESCALE_ABOVE
        r.variable_increment *= 1 / RESCALE_ABOVE
    if s.heap_index[variable] >= 0:
        _sift_up(s, s.heap_index[variable])


@kernel
def heap_insert(s: State, variable: int) -> None:
    """Make a variable eligible again."""
    r = s.registers[0]
    if s.heap_index[variable] < 0:
        s.heap[r.heap_size] = variable
        s.heap_index[variable] = r.heap_size
        r.heap_size += 1
        _sift_up(s, r.heap_size - 1)


@kernel
def pick(s: State) -> int:
    """Literal to decide: the most active open variable with its saved phase; -1 when all are assigned."""
    r = s.registers[0]
    while r.heap_size > 0:
        variable = s.heap[0]
        s.heap_index[variable] = -1
        r.heap_size -= 1
        if r.heap_size > 0:
            s.heap[0] = s.heap[r.heap_size]
            s.heap_index[s.heap[0]] = 0
            _sift_down(s, 0)
        if s.value[2 * variable] == 0:
            literal = 2 * variable + s.phase[variable]
            emit(s, DECIDE, literal, 0)
            return int(literal)
    return -1


@kernel
def _sift_up(s: State, index: int) -> None:
    variable = s.heap[index]
    while index > 0:
        parent = (index - 1) // 2
        if s.activity[s.heap[parent]] >= s.activity[variable]:
            break
        s.heap[index] = s.heap[parent]
        s.heap_index[s.heap[index]] = index
        index = parent
    s.heap[index] = variable
    s.heap_index[variable] = index


@kernel
def _sift_down(s: State, index: int) -> None:
    size = s.registers[0].heap_size
    variable = s.heap[index]
    while 2 * index + 1 < size:
        child = 2 * index + 1
        if child + 1 < size and s.activity[s.heap[child + 1]] > s.activity[s.heap[child]]:
            child += 1
        if s.activity[s.heap[child]] <= s.activity[variable]:
            break
        s.heap[index] = s.heap[child]
        s.heap_index[s.heap[index]] = index
        index = child
    s.heap[index] = variable
    s.heap_index[variable] = index
