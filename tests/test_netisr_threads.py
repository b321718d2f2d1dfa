"""netisr's parts at work at the same time: no data race, no flow reordered over thousands of changes, and the books agree.

The load is C, tsan_netisr.c.
"""

import os
import subprocess
from pathlib import Path

import ckernel
import pytest

SOURCE = Path(__file__).with_name("tsan_netisr.c")


def run(*flags, seconds=2):
    exe = ckernel.program(SOURCE.read_text(), flags=["-pthread", *flags], sanitize=False)
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "LD_PRELOAD": ""}
    got = subprocess.run(["setarch", "--addr-no-randomize", exe, str(seconds)], capture_output=True, text=True, timeout=60, env=env)
    return got.returncode, got.stdout + got.stderr


def test_nothing_is_lost_or_reordered_under_load():
    status, said = run()
    assert status == 0, said


FAULTS = {
    "a flow moves when its frames are queued": ("netisr_moves.h", "    if (!(e->n_empty >> ws & 1))\n        return 0;\n", ""),
    "a stale frame is not freed": ("netisr_serve.h", "    pr_netisr_free(e, b, pr_netisr_all(b) & ~keep);\n", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, tmp_path):
    for header in (ckernel.TOP / "engine").glob("*.h"):
        text = header.read_text()
        name, old, new = FAULTS[fault]
        if header.name == name:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (tmp_path / header.name).write_text(text)
    assert any(run(f"-iquote{tmp_path}", seconds=1)[0] for _ in range(5))


@pytest.mark.slow
def test_there_is_no_data_race():
    status, said = run("-fsanitize=thread", "-Wno-tsan")  # which does not know fences: those of doorbells order no data
    assert status == 0, said
