"""Coverage-guided fuzzing of the decoder: python -m tests.fuzz.atheris_decode -max_total_time=60

Options are libFuzzer's. Needs `pip install dgcomp[fuzz]`. The checksum is put right before every try: else nothing
would get past it.
"""

import sys

import atheris
import numpy as np

# not the modules with compiled loops: numba cannot compile instrumented functions
with atheris.instrument_imports(include=["dgcomp.wire.message", "dgcomp.wire.positions"]):
    from tests.fuzz import mutate


def try_bytes(raw: bytes) -> None:
    """One try: the magic number in front, the checksum right, the rest as the fuzzer wants it."""
    mutate.check(mutate.with_checksum(np.frombuffer(b"\xd6\xc1" + raw, np.uint8)))


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_bytes)
    atheris.Fuzz()
