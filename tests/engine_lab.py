"""A running engine between two hosts, for tests: `pktring up` as a user starts it, in the namespace of the middle host of `live.middle`.

    with middle() as net, running(net, FORWARD) as engine, heard(net.b.netns) as got, Load(net.a) as load:
        engine.kill_worker(1)
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from command import eventually

READY_S = 30.0
FORWARD = """
[engine]
name = "t"
workers = 2
slots = 256
[port.left]
interface = "fa"
rings = 2
[port.right]
interface = "fb"
rings = 2
[[forward]]
from = "left"
to = "right"
both = true
"""


@dataclass
class Running:
    """`pktring up` in a namespace; what it says is read as it comes."""

    net: object
    child: subprocess.Popen
    env: dict
    name: str = "t"
    said: list[tuple[float, str]] = field(default_factory=list)

    def listen(self):
        for line in self.child.stderr:
            self.said.append((time.monotonic(), line.rstrip()))

    def told(self, pattern, since=0.0, timeout_s=5.0):
        """Wait for a line that matches and was said after `since`. -> (when, line)"""
        return eventually(lambda: next(((at, line) for at, line in self.said if at >= since and re.search(pattern, line)), None), timeout_s)

    def lines(self, pattern):
        return [line for _, line in self.said if re.search(pattern, line)]

    def run(self, *words, timeout_s=20):
        """A pktring command on this machine, as a user types it."""
        return self.net.lab.run(self.net.fa.netns, [sys.executable, "-m", "pktring.tools.main", *words], env=self.env, timeout_s=timeout_s)

    def ask(self, *words):
        """The JSON of a command."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, (words, done.stderr, self.said[-10:])
        return json.loads(done.stdout)

    def status(self):
        return self.ask("stat", "--engine", self.name)

    def worker(self, number):
        """The pid of a worker, once it runs."""

        def pid():
            worker = self.status()["workers"][number - 1]
            return worker["pid"] if worker["state"] == "running" else None

        return eventually(pid, 5)

    def controller(self):
        return self.status()["pid"]

    def processes(self):
        """Pids of everything below the command."""
        import psutil

        return [p.pid for p in psutil.Process(self.child.pid).children(recursive=True)]


@contextlib.contextmanager
def running(net, config=FORWARD, *flags, handlers=None, env=None, command=(sys.executable, "-m", "pktring.tools.main")):
    """Run `pktring up` until the block ends, then end it as a user does. `handlers`: source of a module `handlers` that it can import."""
    with tempfile.TemporaryDirectory(prefix="pktring-test-") as folder:
        path = Path(folder)
        (path / "engine.toml").write_text(config)
        if handlers:
            (path / "handlers.py").write_text(handlers)
        env = {**os.environ, "PKTRING_RUNDIR": f"{folder}/run", "PYTHONPATH": folder, "PKTRING_DEBUG": "1", "SPT_NOENV": "1", **(env or {})}
        argv = [*command, "up", str(path / "engine.toml"), *flags]
        child = net.lab.start(net.fa.netns, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        engine = Running(net, child, env)
        reader = threading.Thread(target=engine.listen, daemon=True)
        reader.start()
        try:
            _ready(engine)
            yield engine
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            try:
                child.wait(15)
            finally:
                left = _survivors(folder)
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                reader.join(5)
        assert child.returncode == 0, (child.returncode, engine.said[-20:])
        assert not left, (left, engine.said[-20:])


def _ready(engine):
    """Ready, or what it said instead."""
    eventually(lambda: engine.lines("is ready") or engine.child.poll() is not None, READY_S)
    assert engine.lines("is ready"), engine.said[-20:]


def _survivors(folder):
    """Processes that still have this engine's environment."""
    import psutil

    found = []
    for p in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if p.environ().get("PKTRING_RUNDIR", "").startswith(folder) and p.status() != psutil.STATUS_ZOMBIE:
                found.append(p.pid)
    return found
