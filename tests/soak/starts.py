"""Engines that are started by this process, to be killed at any moment of their life: warm, so that a start costs what the engine's own
work costs and not Python's imports.

    with Home(net) as home:
        life = home.start()          # forks `pktring up`, in all but the command line
        life.kill()                  # everything of it, at once
        home.start().ready()
"""

import contextlib
import json
import os
import select
import signal
import sys
import tempfile
import time
from pathlib import Path

from command import eventually, left

import pktring

CONFIG = {
    "engine": {"name": "t", "workers": 2, "slots": 256},
    "port": {"left": {"interface": "fa", "rings": 2}, "right": {"interface": "fb", "rings": 2}, "tap": {"port": "tap:t0"}},
    "forward": [{"from": "left", "to": "right", "both": True}],
}


class Life:
    """One start of an engine, from its fork on."""

    def __init__(self, home):
        self.began = time.monotonic()
        self._said, said = os.pipe2(os.O_CLOEXEC)
        self._lines = b""
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.setsid()
                log = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 2)
                sys.stderr = open(2, "w", closefd=False)  # pytest has put its own there
                with home.net.lab.inside(home.net.fa.netns):
                    status = pktring.Engine(home.config).run(lambda told: os.write(said, json.dumps(told).encode() + b"\n"))
            finally:
                os._exit(status)
        os.close(said)

    def ready(self, timeout_s=15.0):
        """Wait until it says so. -> seconds since the fork"""
        deadline = time.monotonic() + timeout_s
        while b'"ready"' not in self._lines:
            assert select.select([self._said], [], [], max(0, deadline - time.monotonic()))[0], "not ready in time"
            more = os.read(self._said, 65536)
            assert more and b'"error"' not in self._lines + more, self._lines + more
            self._lines += more
        return time.monotonic() - self.began

    def pids(self):
        """Its processes: all of its session, whoever their parent is."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] not in "ZX":
                    found.append(int(entry.name))
        return found

    def named(self, name):
        """Pids of those that call themselves so."""

        def is_it(pid):
            with contextlib.suppress(OSError):
                return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(f"pktring: {name}".encode())
            return False

        return [pid for pid in self.pids() if is_it(pid)]

    def kill(self, *pids, number=signal.SIGKILL):
        """Kill these, or everything, children that are just being forked too."""
        for pid in pids:
            os.kill(pid, number)
        while not pids and (there := self.pids()):
            for pid in there:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if not pids:
            self.over()

    def over(self, timeout_s=15):
        """Wait until it is. -> its exit status"""
        end = []
        if self.pid:
            eventually(lambda: end.append(os.waitpid(self.pid, os.WNOHANG)) or end[-1][0], timeout_s)
            os.close(self._said)
            self.pid = 0
        return os.waitstatus_to_exitcode(end[-1][1]) if end else None

    def stop(self):
        """End it as a user does."""
        os.kill(self.pid, signal.SIGTERM)
        return self.over()


class Home:
    """Where engines of one name live; at the end of the block nothing of them is left, or it fails."""

    def __init__(self, net, **engine):
        self.net = net
        self.config = CONFIG | {"engine": CONFIG["engine"] | engine}
        self.lives = []

    def __enter__(self):
        self._undo = contextlib.ExitStack()
        self.folder = self._undo.enter_context(tempfile.TemporaryDirectory(prefix="pktring-test-"))
        self.log = f"{self.folder}/log"
        self._rundir = os.environ.get("PKTRING_RUNDIR")
        os.environ["PKTRING_RUNDIR"] = f"{self.folder}/run"
        return self

    def start(self):
        self.lives.append(Life(self))
        return self.lives[-1]

    def told(self, pattern_text):
        return Path(self.log).read_text(errors="replace").count(pattern_text) if os.path.exists(self.log) else 0

    def traces(self):
        """What an engine leaves in the world: shared memory, interfaces of the host in the middle, files."""
        with self.net.lab.inside(self.net.fa.netns):
            import socket

            links = {name for _, name in socket.if_nameindex()}
        return left(), links, sorted(os.listdir(f"{self.folder}/run")) if os.path.isdir(f"{self.folder}/run") else []

    def __exit__(self, kind, *_):
        for life in self.lives:
            if life.pid:
                life.kill()
        if kind and os.path.exists(self.log):
            print(Path(self.log).read_text(errors="replace")[-3000:])
        self._undo.close()
        os.environ.pop("PKTRING_RUNDIR")
        if self._rundir is not None:
            os.environ["PKTRING_RUNDIR"] = self._rundir
