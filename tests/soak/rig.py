"""An engine that may be killed as often as one likes, and the processes of it.

Five deaths in ten seconds are a crash loop, which is held off on purpose (test_engine_loops.py); here thousands are meant.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from command import eventually
from engine_lab import running

from pktring.engine.control import Client
from pktring.shm.errors import Error

PATIENT = (
    sys.executable,
    "-c",
    "import sys; from pktring.engine import crew, supervisor; from pktring.tools.main import main;"
    " crew.DEATHS = supervisor.DEATHS = 10**6; sys.exit(main())",
)
DIED = r"E_WORKER_DIED worker={} "
SLOTS = 4096  # of AF_PACKET's rings: a burst of load during a replacement lies there
FORWARD = f"""
[engine]
name = "t"
workers = 2
slots = {SLOTS}
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

TAP = f"""
[engine]
name = "t"
workers = 2
slots = {SLOTS}
[port.left]
port = "tap:t0"
[port.right]
interface = "fb"
rings = 2
[[forward]]
from = "left"
to = "right"
"""
QUEUED = f"""
[engine]
name = "t"
workers = 2
slots = {SLOTS}
dispatch = "deferred"
[port.left]
interface = "fa"
rings = 2
take = true
[port.right]
interface = "fb"
rings = 2
[[protocol]]
name = "ip"
handler = "forward:right"
policy = "flow"
qlimit = 4096
[sysctl]
"net.isr.maxqlimit" = 4096
"""


class Rig:
    """A running engine (engine_lab.Running), asked over its socket without a process for each question."""

    def __init__(self, engine):
        self.engine = engine
        self.control = f"{engine.env['PKTRING_RUNDIR']}/{engine.name}/control.sock"

    def call(self, verb, timeout_s=5.0, **body):
        with Client(self.control, timeout_s) as client:
            answer, fds = client.call(verb, **body)
        for fd in fds:
            os.close(fd)
        return answer

    def status(self):
        """The status, also where a controller is just dying and another coming."""

        def asked():
            with contextlib.suppress(Error):
                return self.call("status")

        return eventually(asked, 10)

    def pid(self, number, not_=0):
        """The pid of worker `number` once it has its name and is another than `not_`; the engine is not asked."""

        def there():
            return next((pid for pid, name in self.crew() if name.startswith(f"pktring: worker {number} ") and pid != not_), None)

        return eventually(there, 10)

    def crew(self):
        """(pid, what it calls itself) of all processes of the engine."""
        found, todo = [], [self.engine.child.pid]
        while todo:
            pid = todo.pop()
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
                found += [(pid, name)] if name else []  # one without is a zombie
                todo += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def controller(self, not_=0):
        """The pid of the controller."""
        return eventually(lambda: next((pid for pid, name in self.crew() if name.startswith("pktring: controller") and pid != not_), 0), 10)

    def lines(self, pattern):
        return self.engine.lines(pattern)

    def told_more(self, pattern, n, timeout_s=10.0):
        """Wait until more than `n` lines match. -> the last"""
        deadline = time.monotonic() + timeout_s
        while len(found := self.lines(pattern)) <= n:
            assert time.monotonic() < deadline, (pattern, self.engine.said[-8:])
            time.sleep(0.0005)
        return found[-1]


@contextlib.contextmanager
def patient(net, config=FORWARD, **how):
    """The engine, running between the hosts of `live.middle`."""
    with running(net, config, command=PATIENT, **how) as engine:
        yield Rig(engine)


def kill(pid, number=signal.SIGKILL):
    """-> when, in seconds since the epoch, as the listener's times are"""
    at = time.time()
    os.kill(pid, number)
    return at
