"""Do the tests of shm's headers bite? Each mutant is a small fault put into a copy of one header; some C-level test has to fail on it.

    python tests/mutants.py              a sample, each tried with the test that should kill it
    python tests/mutants.py --all        all of them, each with every test until one kills it
    python tests/mutants.py --all lane   those of lane.h

The faults are in mutants.txt. `rules` are the checks of single calls (tests/rules), `lanes` and `rings` two threads under ThreadSanitizer
(tests/tsan_*.c), `steps` is the crash-step harness (tests/crashstep). A fault that no longer finds its place is an error: the table is kept
with the code. Status 0 = at least nine in ten were killed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ckernel

HERE = Path(__file__).resolve().parent
SHM = ckernel.TOP / "shm"
ENOUGH = 0.9


class CannotRun(Exception):
    """The test itself does not run here."""


@dataclass(frozen=True)
class Killer:
    """A program that fails on a faulty header: its source, how it is built and run, how often it is worth trying."""

    source: Path
    flags: Sequence[str]
    args: Sequence[str] = ()
    prefix: Sequence[str] = ()
    tries: int = 1
    timeout_s: int = 60

    def says(self, headers: Path) -> str | None:
        """Build it with these headers in front of shm's own and run it; what it found, None = nothing."""
        exe = self._built(headers)
        env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "LD_PRELOAD": ""}
        for _ in range(self.tries):
            try:
                got = subprocess.run([*self.prefix, exe, *self.args], capture_output=True, text=True, timeout=self.timeout_s, env=env)
            except subprocess.TimeoutExpired:
                return "it never ends"
            if "FATAL: ThreadSanitizer" in got.stderr:
                raise CannotRun(got.stderr.splitlines()[0])
            if got.returncode:
                return _told(got.stdout, got.stderr) or f"exit status {got.returncode}"
        return None

    def _built(self, headers: Path) -> Path:
        exe = headers / self.source.stem
        includes = [f"-iquote{headers}", f"-I{HERE / 'crashstep'}", f"-I{HERE / 'rules'}"]
        includes += [f"-I{ckernel.TOP / room}" for room in ("shm", "drivers", "engine")]
        cmd = [*ckernel.CC, "-std=gnu11", "-fno-strict-aliasing", "-w", *self.flags, *includes, "-o", exe, self.source]
        env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # the compiler itself is not under test
        got = subprocess.run(cmd, capture_output=True, text=True, timeout=120, env=env)
        assert got.returncode == 0, f"does not compile: {got.stderr}"
        return exe


def _told(out: str, err: str) -> str | None:
    if "data race" in err:
        return "data race"
    lines = (out or err).splitlines()
    if lines and lines[-1].startswith("{"):
        row = json.loads(lines[-1])
        return f"{row['operation']}: {row['first']}"
    return lines[0] if lines else None


NO_ASLR = ("setarch", "--addr-no-randomize")  # large random offsets put the mapping where TSan keeps its own
TSAN = ("-O3", "-fsanitize=thread", "-pthread")
KILLERS = {
    "rules": Killer(HERE / "rules/rules.c", ["-O1"], timeout_s=5),
    "lanes": Killer(HERE / "tsan_lanes.c", TSAN, prefix=NO_ASLR, tries=5),
    "rings": Killer(HERE / "tsan_rings.c", TSAN, prefix=NO_ASLR, tries=5),
    "steps": Killer(HERE / "crashstep/crashstep.c", ["-O3"], ["--json", "--first", "--again", "0", "--kills", "0"]),
}


@dataclass(frozen=True)
class Mutant:
    """`right` stands in the header once; `wrong` takes its place."""

    header: str
    killer: str
    fault: str
    right: str
    wrong: str

    def text(self) -> str:
        """Return the header with its fault."""
        text = (SHM / self.header).read_text()
        places = text.count(self.right)
        assert places == 1, f"mutants.txt, {self.header}, {self.fault!r}: {places} places, not one, for {self.right!r}"
        return text.replace(self.right, self.wrong)


def mutants() -> Iterator[Mutant]:
    """Read the table."""
    for block in (HERE / "mutants.txt").read_text().split("\n\n"):
        title, *body = block.strip("\n").splitlines()
        if not title.startswith("#"):
            where, fault = title.split(": ", 1)
            header, killer = where.split(", ")
            right, wrong = ("\n".join(line[1:] for line in body if line[0] == mark) for mark in "-+")
            yield Mutant(header, killer, fault, right, wrong)


def sample() -> list[Mutant]:
    """Choose what the default suite has time for: of the quick killer's every twelfth, of the others' every fourth."""
    every = {"rules": 12, "lanes": 4, "rings": 4, "steps": 4}
    return [m for name, n in every.items() for m in [m for m in mutants() if m.killer == name][::n]]


def killed(mutant: Mutant, killers: Sequence[str]) -> tuple[str, str] | None:
    """Return the first of the killers that finds the fault, and what it says."""
    with tempfile.TemporaryDirectory(prefix="mutant") as headers:
        for path in SHM.glob("*.h"):
            shutil.copy(path, headers)
        Path(headers, mutant.header).write_text(mutant.text())
        for name in killers:
            if said := KILLERS[name].says(Path(headers)):
                return name, said
    return None


def survivors(some: Sequence[Mutant], *, every: bool) -> list[Mutant]:
    """Try them, print a line each; `every`: with every killer if need be. -> those that live."""
    alive = []
    for m in some:
        found = killed(m, sorted(KILLERS, key=lambda name: name != m.killer) if every else [m.killer])
        alive += [] if found else [m]
        name, said = found or ("ALIVE", "")
        print(f"{m.header:11} {m.fault:46} {name:6} {said[:100]}", flush=True)
    print(f"killed {len(some) - len(alive)} of {len(some)}: {1 - len(alive) / len(some):.1%}")
    return alive


def main(argv: list[str]) -> int:
    """Do as the docstring says."""
    ask = argparse.ArgumentParser(description="Put faults into copies of shm's headers and see the tests fail.")
    ask.add_argument("--all", action="store_true", help="every mutant, with every test until one kills it")
    ask.add_argument("header", nargs="?", default="", help="only those of headers whose name begins so")
    how = ask.parse_args(argv)
    some = [m for m in (list(mutants()) if how.all else sample()) if m.header.startswith(how.header)]
    return len(survivors(some, every=how.all)) > (1 - ENOUGH) * len(some)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
