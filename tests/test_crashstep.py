"""Killed at any instruction, an operation on rings, lanes and owner words leaves nothing lost, shared, stuck, torn or seen twice.

The harness is C, tests/crashstep; its README says what is claimed. `pytest -s` prints its table.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import ckernel
import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent / "crashstep"
HEADERS = ("pool", "lane", "ring", "mend", "move", "pktqueue")
COLUMNS = ("cases", "points", "clean", "again", "again_clean", "kills", "seconds")
KINDS = ("lost", "twice", "stuck", "torn", "duplicate")
MISORDERED = {
    "head before slots": "lost",
    "head before words": "lost",
    "head before payload": "torn",
    "head by ones": "lost",
    "no words": "twice",
    "no lane reclaim": "lost",
    "processed before accepted": "duplicate",
    "tail before words": "lost",
    "tail before slots": "torn",
    "slot before lend": "twice",
    "adopted without skipping": "duplicate",
    "adopted by slots": "twice",
    "claimed when done": "torn",
    "sent without a word": "duplicate",
    "mended by slots": "twice",
    "mended without books": "lost",
    "published before taken": "duplicate",
    "given back before taken": "lost",
    "given back in order": "lost",
    "given back unmarked": "duplicate",
    "counted backwards": "twice",
    "two-step reserve": "stuck",
    "lent before its slot": "lost",
    "cursor behind the frames": "duplicate",
}
# Functions that store nothing into shared memory, or only into buffers and slots that are still the writer's.
NOTHING_TO_KILL = {
    "pr_pool_count", "pr_pool_owns", "pr_word_aux", "pr_pktq_capacity", "pr_pktq_cpu_of", "pr_pktq_heads", "pr_pktq_passed",
    "pr_pktq_ready", "pr_pktq_wait",
}  # fmt: skip


def crashstep(*args):
    exe = ckernel.program((HERE / "crashstep.c").read_text(), flags=[f"-I{HERE}"], sanitize=False)
    env = {**os.environ, "LD_PRELOAD": ""}  # the steps of a sanitizer's functions prove nothing
    got = subprocess.run([exe, "--json", *args], capture_output=True, text=True, timeout=110, env=env)
    assert got.returncode in (0, 1), got
    return {row["operation"]: row for row in map(json.loads, got.stdout.splitlines())}


def total(rows, key):
    return sum(row[key] for row in rows.values())


def told(rows):
    return "\n".join(f"{row['operation']}: {row['first']}" for row in rows if row["first"])


@pytest.fixture(scope="module")
def rows():
    rows = crashstep()
    row = "{:26}{:>6}{:>8}{:>8}{:>9}{:>8}{:>6}{:>7.5}".format
    print("\n" + row("operation", *COLUMNS))
    for r in rows.values():
        print(row(*(r[key] for key in ("operation", *COLUMNS))))
    print(row("total", *(total(rows, key) for key in COLUMNS)))
    return rows


def test_every_instruction_of_every_operation_is_a_clean_place_to_die(rows):
    assert not [r["operation"] for r in rows.values() if r["points"] != r["clean"] or not r["points"]], told(rows.values())
    assert total(rows, "points") >= 5000


def test_a_recovery_killed_at_any_instruction_is_run_again_by_the_next(rows):
    assert not [r["operation"] for r in rows.values() if r["again"] != r["again_clean"] or not r["again"]], told(rows.values())


def test_a_real_kill_leaves_the_memory_that_was_judged(rows):
    assert total(rows, "kills") >= 100
    assert total(rows, "kills_differ") == 0


@pytest.fixture(scope="module")
def wrong():
    rows = crashstep("--misordered")
    for r in rows.values():
        print(f"\n{r['operation']:26}" + "".join(f"{kind} {r[kind]}  " for kind in KINDS if r[kind]), end="")
    return rows


@pytest.mark.parametrize(("name", "kind"), MISORDERED.items())
def test_a_wrong_order_is_caught(wrong, name, kind):
    assert wrong[name][kind] > 0, wrong[name]
    assert wrong[name]["kills_differ"] == 0


def test_no_wrong_order_goes_untested(wrong):
    assert {name: row["expected"] for name, row in wrong.items()} == MISORDERED


def test_every_function_of_the_headers_is_stepped_through():
    """Reached, by name, from the scenarios, or known to leave nothing half done."""
    bodies = {}
    for header in HEADERS:
        text = (ckernel.TOP / f"shm/{header}.h").read_text()
        for found in re.finditer(r"^static inline [\w ]+\W(pr_\w+)\(", text, re.M):
            bodies[found[1]] = text[found.end() :].partition("\nstatic ")[0]
    reached = set(re.findall(r"\bpr_\w+", "".join(p.read_text() for p in HERE.glob("*.[ch]"))))
    while more := {name for caller in reached for name in re.findall(r"\bpr_\w+", bodies.get(caller, ""))} - reached:
        reached |= more
    never = sorted(bodies.keys() - reached - NOTHING_TO_KILL)
    assert not never, "give each a scenario in tests/crashstep, if it stores"
