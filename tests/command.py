"""The `pktring` command as a user runs it: a process, its exit status, and what it leaves behind."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "pktring.tools.main"]


def pktring(*words, lab=None, netns=None, timeout_s=60, prefix=(), **how):
    """Run it to its end, in a namespace of a Lab if one is given; output is text."""
    argv = [*prefix, *COMMAND, *map(str, words)]
    if lab:
        return lab.run(netns, argv, timeout_s=timeout_s, **how)
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, **how)


def started(lab, netns, *words, ready="pktring: ", **how):
    """Start it in a namespace, return when it said on stderr that it is ready. -> Popen, with stderr still to be read."""
    child = lab.start(netns, [*COMMAND, *map(str, words)], **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how)
    child.said = ""
    hear(child, ready)
    return child


def hear(child, text):
    """Read its stderr as far as a line with this text; an end before that fails (silence is the test's own timeout)."""
    while line := child.stderr.readline():
        child.said += line
        if text in line:
            return line
    raise AssertionError(f"it ended without {text!r}: {child.said}")


def ended(child, number=signal.SIGINT, timeout_s=20):
    """End it by a signal. -> (status, stdout, stderr)."""
    if child.poll() is None:
        child.send_signal(number)
    out, err = child.communicate(timeout=timeout_s)
    return child.returncode, out, child.said + err


def refused(got, code, status):
    """Assert that a command failed with one line, its code and its status. -> the line."""
    lines = got.stderr.splitlines()
    assert (got.returncode, len(lines)) == (status, 1), got
    assert re.match(rf"pktring: {code} \S", lines[0]), lines[0]
    assert ": " in lines[0].partition(code)[2], f"says not what to do: {lines[0]}"
    return lines[0]


def answer(got):
    """The JSON object that the command printed, and nothing else, on stdout."""
    assert got.returncode == 0, got
    return json.loads(got.stdout)


def left():
    """Shared memory of ours that is there now."""
    return {p.name for p in Path("/dev/shm").glob("pktring.*")}


def eventually(what, timeout_s=5.0):
    """Wait until `what()` is true; its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := what()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
    return value

