"""C kernels alone: compile a snippet with our headers, as the product is compiled, and load it or run it.

    lib = ckernel.load('''#include "csum.h"
                          uint16_t sum(uint8_t *p, size_t n) { return pr_csum_fold(pr_csum_add(p, n, 0)); }''')
    lib.sum.restype, lib.sum.argtypes = ctypes.c_uint16, [ctypes.c_char_p, ctypes.c_size_t]
    assert lib.sum(b"\\x00\\x01", 2) == 0xFEFF

    exe = ckernel.program(Path("tests/offload_fuzz.c").read_text())     # an executable of its own, under ASan and UBSan
    subprocess.run([exe, "2.5"], check=True, timeout=60)

What is built stays in build/ckernel under the hash of what the compiler saw, headers included, and is built once.
"""

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
BUILD = TOP / "build/ckernel"
CC = shlex.split(os.environ.get("CC", "cc"))
FLAGS = ["-std=gnu11", "-O3", "-g", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]
INCLUDE = [f"-I{TOP / room}" for room in ("shm", "drivers", "engine")]
SANITIZE = {
    "undefined": ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"],
    "address": ["-fsanitize=address", "-fno-omit-frame-pointer"],
}
# ASan must be the first library of its process: Python has it only under `./run check --sanitize`.
SANITIZED_PYTHON = "libasan" in os.environ.get("LD_PRELOAD", "")


def load(source: str, *, flags: Sequence[str] = (), sanitize: bool = False) -> ctypes.CDLL:
    """Compile `source` and load it into this process; `sanitize`: under UBSan, which kills the process that errs.

    Functions return int and take int or bytes until told otherwise (ctypes' restype, argtypes).
    """
    kinds = ["undefined", "address"] if SANITIZED_PYTHON else ["undefined"] if sanitize else []
    checks = [flag for kind in kinds for flag in SANITIZE[kind]]
    return ctypes.CDLL(str(_built(source, ".so", ["-shared", "-fPIC", *flags, *checks])))


def program(source: str, *, flags: Sequence[str] = (), sanitize: bool = True) -> Path:
    """Compile `source`, which has a main, and return the executable; `sanitize`: under ASan and UBSan."""
    return _built(source, "", [*flags, *(flag for kind in SANITIZE.values() for flag in kind if sanitize)])


def _built(source: str, suffix: str, flags: Sequence[str]) -> Path:
    flags = [*FLAGS, *INCLUDE, *flags]
    seen = _cc([*flags, "-E", "-"], source)
    path = BUILD / (hashlib.sha256(repr((CC, flags)).encode() + seen).hexdigest()[:20] + suffix)
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as made:  # another process may be building the same
            _cc([*flags, "-o", f"{made}/it", "-"], source)
            os.replace(f"{made}/it", path)
    return path


def _cc(args: Sequence[str], source: str) -> bytes:
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # the compiler itself is not under test
    got = subprocess.run(
        [*CC, "-x", "c", *args], input=source.encode(), capture_output=True, env=env, cwd=TOP, timeout=120
    )
    if got.returncode:
        raise AssertionError(f"{shlex.join(CC)} refuses:\n{got.stderr.decode(errors='replace')}")
    return got.stdout
