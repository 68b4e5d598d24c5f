"""Coverage-guided fuzzing of the decoder: python -m tests.fuzz.atheris_decode -max_total_time=60

Options are libFuzzer's. Needs `pip install dgcomp[fuzz]`. The checksum is put right before every try: else nothing
would get past it.
"""

import inspect
import sys

import atheris
import numpy as np

from dgcomp.wire import message, positions
from tests.fuzz import mutate

# function by function: numba cannot compile instrumented ones, so the modules with compiled loops stay as they are
for module in (message, positions):
    for _, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__:
            atheris.instrument_func(function)


def try_bytes(raw: bytes) -> None:
    """One try: the magic number in front, the checksum right, the rest as the fuzzer wants it."""
    mutate.check(mutate.with_checksum(np.frombuffer(b"\xd6\xc1" + raw, np.uint8)))


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_bytes)
    atheris.Fuzz()
