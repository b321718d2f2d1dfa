"""The C-level tests of shm pass on its headers, and fail on faulty copies of them; mutants.py tries all faults."""

import os
import subprocess
import tempfile
from pathlib import Path

import ckernel
import mutants
import pytest

RULES = mutants.KILLERS["rules"]


def test_every_rule_of_the_headers_holds():
    flags = [f"-I{RULES.source.parent}", f"-I{mutants.HERE / 'crashstep'}"]
    exe = ckernel.program(RULES.source.read_text(), flags=flags)
    env = {**os.environ, "LD_PRELOAD": "", "ASAN_OPTIONS": "detect_leaks=0"}
    got = subprocess.run([exe], capture_output=True, text=True, timeout=60, env=env)
    assert got.returncode == 0 and not got.stdout, got.stdout + got.stderr


@pytest.mark.needs("setarch")
def test_no_data_race_between_the_two_sides_of_a_ring():
    with tempfile.TemporaryDirectory() as headers:
        try:
            assert mutants.KILLERS["rings"].says(Path(headers)) is None
        except mutants.CannotRun as why:
            pytest.skip(f"tool: ThreadSanitizer does not run here: {why}")


def test_every_fault_finds_its_place():
    for mutant in mutants.mutants():
        assert mutant.text() and mutant.killer in {*mutants.KILLERS, "nobody"}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.needs("setarch")
def test_a_sample_of_faults_is_found():
    try:
        alive = mutants.survivors(mutants.sample(), every=False)
    except mutants.CannotRun as why:
        pytest.skip(f"tool: ThreadSanitizer does not run here: {why}")
    assert not alive
