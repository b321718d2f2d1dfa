"""The two protocols that no test run can cover by luck, searched exhaustively: sleeping and waking (F30, P-M5), and a lane's hand-over with
deaths at every step. Each has variants with one rule broken, in which the search has to find the forbidden state."""

import re
import subprocess
from pathlib import Path

import ckernel
import pytest

pytestmark = pytest.mark.needs("spin")

MODELS = Path(__file__).parent / "model"
BROKEN = {
    "wakeup": ["NO_FENCE_CONSUMER", "NO_FENCE_PRODUCER", "NO_LOOK", "NO_CONTROLLER"],
    "lane": ["HEAD_FIRST", "TAIL_FIRST", "USE_FIRST", "NO_POSITION", "WORD_THEN_TAIL"],
}


def search(model, variant, cwd):
    """-> (number of errors, states seen) of an exhaustive search, which ends at the first error."""
    made = ckernel.BUILD / f"spin_{model}_{variant}"
    made.mkdir(parents=True, exist_ok=True)
    define = [f"-D{variant}"] if variant else []
    subprocess.run(["spin", *define, "-a", MODELS / f"{model}.pml"], cwd=made, check=True, timeout=60, stdout=subprocess.DEVNULL)
    flags = ["-w", "-O1", "-DSAFETY", f"-iquote{made}"]
    exe = ckernel.program((made / "pan.c").read_text(), flags=flags, sanitize=False)
    said = subprocess.run([exe, "-m300000"], cwd=cwd, capture_output=True, text=True, check=True, timeout=100).stdout
    errors = int(re.search(r"errors: (\d+)", said)[1])
    assert errors or not re.search("depth too small|not completed", said)
    return errors, int(re.search(r"(\d+) states, stored", said)[1])


def test_P_M5_no_sleeper_is_left_behind_even_by_a_killed_producer(tmp_path):
    errors, states = search("wakeup", "", tmp_path)
    assert errors == 0 and states > 1000


def test_no_death_loses_a_buffer_or_repeats_a_frame(tmp_path):
    errors, states = search("lane", "", tmp_path)
    assert errors == 0 and states > 1_000_000


@pytest.mark.parametrize("model, variant", [(model, variant) for model, variants in BROKEN.items() for variant in variants])
def test_a_broken_rule_leads_to_the_forbidden_state(model, variant, tmp_path):
    assert search(model, variant, tmp_path)[0] == 1
