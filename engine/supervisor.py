"""The small parent of an engine: it starts the controller, and another when that dies. Nothing else, so that nothing can go wrong.

    supervisor ── forks ──▶ controller ── forks ──▶ workers, a warm spare
        └── subreaper: when a controller dies its workers become children of this process, and go on forwarding

It has everything imported that a controller needs: the next one is there in milliseconds, and adopts the workers.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pktring.shm.errors import Error

PR_SET_CHILD_SUBREAPER = 36
DEATHS, WITHIN_S = 5, 10.0  # more deaths than that, and a pause comes before the next start
PAUSE_S = 5.0
ANEW, DEFECT = 75, 70  # a controller's exit status: it has ended everything, start from nothing; it gave up, and its workers run
UNHEARD = (signal.SIGUSR1, signal.SIGUSR2)  # they mean nothing to an engine, and would end it; its children inherit that
HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

Tell = Callable[[dict[str, Any]], None]  # what a controller says to whoever started the engine: {"ready": ...}, or {"error": [code, text]}
RunController = Callable[[bool, Tell], int]  # (adopt, tell) -> exit status


class Supervisor:
    """Keeps one controller running. `tell` hears what it says; `owner`: a descriptor whose end of file ends the engine, -1 = none."""

    def __init__(self, name: str, run_controller: RunController, tell: Tell, owner: int = -1):
        self.name = name
        self._run_controller = run_controller
        self._tell = tell
        self._owner = owner
        self._controller = 0
        self._half = b""  # a line that has not come whole
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._stopping = False

    def run(self) -> int:
        """Supervise until the engine ends by itself. Returns its exit status."""
        _title(f"pktring: {self.name}")
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, self._hear) for number in HEARD}
        handlers |= {number: signal.signal(number, signal.SIG_IGN) for number in UNHEARD}
        try:
            return self._keep(wake_r)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(wake_r)
            os.close(wake_w)

    def _keep(self, wake: int) -> int:
        said = self._start(adopt=False)
        while True:
            ready = select.select([wake, *(fd for fd in (said, self._owner) if fd >= 0)], [], [], 1.0)[0]
            if wake in ready:
                os.read(wake, 512)
            if self._owner in ready:
                self._owner = -1
                self._hear(signal.SIGTERM, None)
            if said in ready:
                said = self._listen(said)
            for status in self._reap():
                while said >= 0 and select.select([said], [], [], 0)[0]:  # its workers may hold the other end too
                    said = self._listen(said)
                ended = os.WEXITSTATUS(status) if os.WIFEXITED(status) else DEFECT
                if ended not in (ANEW, DEFECT):
                    return ended
                if self._stopping:
                    return 1
                self._pause()
                if said >= 0:
                    os.close(said)
                self._half = b""
                said = self._start(adopt=ended == DEFECT)

    def _start(self, *, adopt: bool) -> int:
        """Fork a controller; returns the descriptor by which it speaks."""
        said_r, said_w = os.pipe2(os.O_CLOEXEC)
        self._controller = os.fork()
        if self._controller:
            os.close(said_w)
            return said_r
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in HEARD:
                signal.signal(number, signal.SIG_DFL)
            os.close(said_r)
            status = self._run_controller(adopt, lambda message: _say(said_w, message))
        except Error as error:
            _say(said_w, {"error": [error.code, error.text]})
        except BaseException as error:
            _say(said_w, {"error": _refusal(error)})
            if os.environ.get("PKTRING_DEBUG"):
                import traceback

                traceback.print_exc()
        finally:
            os._exit(status)

    def _listen(self, said: int) -> int:
        """Pass on what the controller says, a line each; -1 when it has said it all."""
        text = os.read(said, 65536)
        *lines, self._half = (self._half + text).split(b"\n")
        for line in lines:
            self._tell(json.loads(line))
        if text:
            return said
        os.close(said)
        return -1

    def _reap(self) -> list[int]:
        """Bury dead children, orphans of dead controllers among them. Returns the wait status of the controller if it is one of them."""
        found: list[int] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if not pid:
                return found
            if pid == self._controller:
                found.append(status)

    def _pause(self) -> None:
        """A controller that dies again and again must not eat the machine."""
        now = time.monotonic()
        many = len(self._deaths) == DEATHS and now - self._deaths[0] < WITHIN_S
        self._deaths.append(now)
        if many:
            time.sleep(PAUSE_S)

    def _hear(self, number: int, _frame: Any) -> None:
        if number == signal.SIGCHLD:
            return
        self._stopping = self._stopping or number != signal.SIGHUP
        try:
            os.kill(self._controller, signal.SIGHUP if number == signal.SIGHUP else signal.SIGTERM)
        except ProcessLookupError:
            pass


def _refusal(error: BaseException) -> list[str]:
    """What nobody gave a code."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return ["E_FD_LIMIT", f"{limit}/{limit} used; raise LimitNOFILE: {error.strerror}"]
    return ["E_INTERNAL", f"{type(error).__name__}: {error}: a defect of pktring"]


def _say(fd: int, message: dict[str, Any]) -> None:
    os.write(fd, json.dumps(message).encode() + b"\n")


def _title(text: str) -> None:
    from setproctitle import setproctitle

    setproctitle(text)
