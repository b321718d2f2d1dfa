"""Killed at any instruction, netisr's operations leave nothing lost, stuck, torn or seen twice, and counters that add up.

The harness is that of test_crashstep.py; operations and laws are in crashstep/netisr.c.
"""

import json
import os
import subprocess
from pathlib import Path

import ckernel
import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent / "crashstep"


@pytest.fixture(scope="module")
def rows():
    exe = ckernel.program((HERE / "netisr.c").read_text(), flags=[f"-I{HERE}"], sanitize=False)
    env = {**os.environ, "LD_PRELOAD": ""}
    got = subprocess.run([exe, "--json"], capture_output=True, text=True, timeout=110, env=env)
    assert got.returncode in (0, 1), got
    return {row["operation"]: row for row in map(json.loads, got.stdout.splitlines())}


OPERATIONS = ("queue", "serve", "purge", "hybrid", "leave", "adopt", "bury")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_instruction_is_a_clean_place_to_die(rows, operation):
    row = rows[f"netisr {operation}"]
    assert row["points"] == row["clean"] > 1000, row
    assert row["again"] == row["again_clean"] > 1000, row
    assert row["kills"] > 0 and row["kills_differ"] == 0, row


def test_nothing_goes_untested(rows):
    assert set(rows) == {f"netisr {operation}" for operation in OPERATIONS}
