"""The demo's second program: a process of another user, attached to a port of the running engine, that counts what it sees.

It is forked and not started anew, because the other user may have no right to read where pktring is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pktring
from pktring.shm.errors import Error

NOBODY = 65534
NEEDED = ("numpy", "pktring.ports", "pktring.attaching", "pktring.engine.filter", "pktring.drivers.link")  # imported while we may read
FILTER = "not tcp"
TURN_S = 0.1
END_S = 10.0
KINDS = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6"}


def another_user() -> int | None:
    """The uid of the other user, None where there is none: not root, or a user namespace that knows nobody else."""
    return NOBODY if os.geteuid() == 0 and _mapped("uid_map") and _mapped("gid_map") else None


def _mapped(file: str) -> bool:
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self", file).read_text().splitlines()]
    return any(first <= NOBODY < first + n for first, _, n in ranges)


class App:
    """The process; attached when this returns. `end()` lets it close its port and tell what it saw. Ends with this process too."""

    def __init__(self, engine: str, port: str, uid: int | None):
        over, self._over = os.pipe()  # held open by us alone: its end is ours
        self._told, told = os.pipe()
        for module in NEEDED:
            import_module(module)
        self._pid = os.fork()
        if not self._pid:
            os.close(self._over)
            os.close(self._told)
            _child(engine, port, uid, over, told)
        os.close(over)
        os.close(told)
        self._lines = open(self._told, encoding="utf-8")
        try:
            self.attached = self._hear()
        except BaseException:
            self.__exit__()
            raise

    def _hear(self) -> dict[str, Any]:
        if not select.select([self._told], [], [], END_S)[0]:
            raise Error("E_DEMO", f"the attached process said nothing within {END_S:g} s: see `pktring doctor`")
        message = json.loads(self._lines.readline() or '{"error": ["E_DEMO", "the attached process died: see the lines above"]}')
        if "error" in message:
            raise Error(*message["error"])
        return message

    def end(self) -> dict[str, Any]:
        """Ask it to end. -> who it was, what it saw."""
        os.close(self._over)
        self._over = -1
        return self.attached | self._hear()

    def __enter__(self) -> App:
        return self

    def __exit__(self, *_: object) -> None:
        if self._over >= 0:
            os.close(self._over)
            self._over = -1
        deadline = time.monotonic() + END_S
        while self._pid and not os.waitpid(self._pid, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(0.005)
        self._pid = 0
        self._lines.close()


# ---- in the child ----


def _child(engine: str, port: str, uid: int | None, over: int, told: int) -> None:
    def tell(**message: Any) -> None:
        os.write(told, json.dumps(message).encode() + b"\n")

    status = 1
    try:
        os.setsid()  # Ctrl-C is the demo's, which then ends us
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        with pktring.open(port, engine=engine, filter=FILTER) as seen:
            facts = seen.facts()
            tell(app=facts["app"], pid=os.getpid(), uid=os.geteuid(), port=port, mode=facts["mode"], memory=facts["memory"])
            tell(**_watch(seen, over))
        status = 0
    except Error as why:
        tell(error=[why.code, why.text])
    except BaseException as why:  # whatever it is, the demo has to hear of it
        with contextlib.suppress(OSError):
            tell(error=["E_DEMO", f"the attached process: {why!r}: a defect of pktring"])
    finally:
        os._exit(status)


def _watch(port: Any, over: int) -> dict[str, Any]:
    """Count frames by what they carry, until the end is asked for."""
    kinds: Counter[str] = Counter()
    n_bytes = 0
    while True:
        last = bool(select.select([over], [], [], 0)[0])
        batch = port.recv(timeout=0.0 if last else TURN_S)
        n_bytes += int(batch.lengths.sum())
        kinds.update(_kind(frame) for frame in batch)
        if last and not len(batch):
            stats = port.stats()
            return {"frames": kinds.total(), "bytes": n_bytes, "kinds": dict(kinds.most_common()), "dropped": stats["drop_kernel"]}
        batch.release()


def _kind(frame: memoryview) -> str:
    return KINDS.get(struct.unpack_from("!H", frame, 12)[0], "other")
