"""The kill campaign at length: `./run soak [--report] [--kills N] [--seconds S]`. Each figure stands beside its target (spec R1-R24).

A figure that does not depend on what else the machine does must meet its target, or the exit status is 1; times are told.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from soak import figures  # noqa: E402


def arguments():
    parser = argparse.ArgumentParser(prog="./run soak", description=__doc__)
    parser.add_argument("--report", action="store_true", help="also print the table and, as the last line, JSON")
    parser.add_argument("--kills", type=int, default=1000, help="kills of each role (1000)")
    parser.add_argument("--seconds", type=float, default=0, help="after those, one fault of any kind after the other for so long (0)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    return parser.parse_args()


def suite(files, *more):
    """How many tests of these files pass, and whether all do."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *more, *(str(TESTS / f) for f in files)]
    got = subprocess.run(argv, cwd=TESTS.parent, capture_output=True, text=True)
    last = got.stdout.strip().splitlines()[-1] if got.stdout.strip() else got.stderr[-200:]
    return last, got.returncode == 0


def main():
    args = arguments()
    rows, problems = [], []
    for stage in figures.STAGES:
        print(f"soak: {stage.__name__.replace('_', ' ')}", file=sys.stderr, flush=True)
        try:
            rows += stage(args.kills, args.seed)
        except AssertionError as why:  # what had to hold did not: the figures of this stage are not known
            problems.append(f"{stage.__name__}: {why}")
            print(f"soak: FAILED {problems[-1][:2000]}", file=sys.stderr, flush=True)
    if args.seconds:
        with contextlib.suppress(KeyboardInterrupt):
            rows += figures.chaos(args.seconds, args.seed)
    if args.report:
        for name, what, files, target in figures.SUITES:
            told, good = suite(files)
            rows.append(figures.Row(name, what, told, target, good))
        table(rows)
        shown = [row.shown() for row in rows]
        print(json.dumps({"seed": args.seed, "kills": args.kills, "figures": shown, "failed": problems}))
    bad = problems + [row.name for row in rows if row.good is False and not row.load]
    told = f"missed: {', '.join(bad)}" if bad else "every target that the machine's load cannot move is met"
    print(f"soak: seed {args.seed}: {told}", file=sys.stderr)
    return bool(bad)


def table(rows):
    """Figures beside their targets."""
    width = max(len(row.what) for row in rows)
    for row in rows:
        mark = "" if row.good else "   (of this machine, as loaded as it is)" if row.load else "   MISSED"
        print(f"{row.name:4} {row.what:{width}}  {row.value}   target {row.target}{mark}")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(TESTS))
    sys.exit(main())
