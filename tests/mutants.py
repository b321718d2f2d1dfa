"""Do the tests bite? Each mutant is a small fault put into a copy of one header of shm or engine; some test has to fail on it.

    python tests/mutants.py              a sample, each tried with the test that should kill it
    python tests/mutants.py --all        all of them, each with every test until one kills it
    python tests/mutants.py --all lane   those of lane.h

The faults are in mutants.txt. `rules` are the checks of single calls (tests/rules), `lanes` and `rings` two threads under ThreadSanitizer
(tests/tsan_*.c), `steps` is the crash-step harness (tests/crashstep), `books` a running engine whose frames are counted in and out
(tests/test_proof_engine.py; as root, and never in the sample: each builds an engine). A fault that no longer finds its place is an error:
the table is kept with the code. Status 0 = at least nine in ten were killed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ckernel

HERE = Path(__file__).resolve().parent
SHM, ENGINE = ckernel.TOP / "shm", ckernel.TOP / "engine"
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


@dataclass(frozen=True)
class Books:
    """The same, by an engine that is built with the faulty header and lies, for one run of a test, where the right one is."""

    file: str
    tests: str
    timeout_s: int = 120

    def says(self, headers: Path) -> str | None:
        """Build the extension and run the test on it."""
        (right,) = ENGINE.glob("_engine.*.so")
        for path in ENGINE.glob("*.c"):
            shutil.copy(path, headers)
        flags = ["-std=gnu11", "-O1", "-fno-strict-aliasing", "-w", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", f"-I{SHM}"]
        cmd = [*ckernel.CC, *flags, "-o", headers / "engine.so", *headers.glob("*.c")]
        got = subprocess.run(cmd, capture_output=True, text=True, timeout=300)
        assert got.returncode == 0, f"does not compile: {got.stderr}"
        script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line", self.file, "-k", self.tests]
        lying = ["unshare", "--mount", "sh", "-c", script, "sh", headers / "engine.so", right, *argv]
        try:
            got = subprocess.run(lying, capture_output=True, text=True, timeout=self.timeout_s, cwd=ckernel.TOP)
        except subprocess.TimeoutExpired:
            return "it never ends"
        if got.returncode == 0:
            return None
        if " failed" not in got.stdout:
            raise CannotRun(got.stderr or got.stdout)
        return next((line for line in got.stdout.splitlines() if "Error" in line or "assert" in line), "failed").rpartition(": ")[2]


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
KILLERS: dict[str, Killer | Books] = {
    "rules": Killer(HERE / "rules/rules.c", ["-O1"], timeout_s=5),
    "lanes": Killer(HERE / "tsan_lanes.c", TSAN, prefix=NO_ASLR, tries=5),
    "rings": Killer(HERE / "tsan_rings.c", TSAN, prefix=NO_ASLR, tries=5),
    "books": Books("tests/test_proof_engine.py", "test_10"),
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
        text = ((ENGINE if self.killer == "books" else SHM) / self.header).read_text()
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
        for path in [*SHM.glob("*.h"), *(ENGINE.glob("*.h") if mutant.killer == "books" else ())]:
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
        others = sorted(KILLERS.keys() - {"books"}, key=lambda name: name != m.killer)
        found = killed(m, others if every and m.killer != "books" else [m.killer])
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
