"""Processes by pidfd (pidfd_open(2)): a pid may come to mean another process, a pidfd may not. Works for those that are not our children.

A pidfd is readable once its process has ended, also while it is a zombie; so it stands in a poll set beside sockets.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Iterable

from ..shm.errors import Error
from ..shm.segment import start_time

INFO = struct.Struct("=Q52xi")  # struct pidfd_info of linux/pidfd.h: mask, ..., exit_code
INFO_EXIT = 1 << 3
PIDFD_GET_INFO = 3 << 30 | INFO.size << 16 | 0xFF << 8 | 11  # _IOWR


class PidFd:
    """One process. `fileno()` is the pidfd; `pid` is for people. A context manager."""

    def __init__(self, fd: int, pid: int):
        self.fd, self.pid = fd, pid
        os.set_inheritable(fd, False)

    @classmethod
    def open(cls, pid: int, start: int | None = None) -> PidFd | None:
        """The process `pid` that began at `start` (clock ticks since boot; None: whichever has that pid now); None when it is gone.

        Raises E_FD_LIMIT.
        """
        try:
            fd = os.pidfd_open(pid)
        except OSError as why:
            if why.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):  # the last two: it is a thread, so no process of ours
                return None
            raise Error("E_FD_LIMIT", f"pidfd_open {pid}: {why.strerror}; raise LimitNOFILE") from None
        # Asked only now: had the pid gone to another process before, that one's start time is a later one.
        if start is not None and start_time(pid) != start:
            os.close(fd)
            return None
        return cls(fd, pid)

    def fileno(self) -> int:
        """For select, poll and epoll."""
        return self.fd

    @property
    def ended(self) -> bool:
        """Whether it has ended by now."""
        return self.wait(0)

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; False when it has ended. Raises E_PERM."""
        try:
            signal.pidfd_send_signal(self.fd, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise Error("E_PERM", f"may not signal pid {self.pid}: it belongs to another user") from None
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; False when it still runs after `timeout_s`."""
        return bool(ended([self], timeout_s))

    def kill(self, timeout_s: float = 2.0) -> bool:
        """SIGKILL it and wait: only now may its memory be reclaimed. False: it hangs in the kernel still (state D)."""
        return not self.signal(signal.SIGKILL) or self.wait(timeout_s)

    def reap(self) -> str | None:
        """How a child of ours ended, "status=1" or "sig=9", and no zombie is left; None while it runs, or when it is not ours to reap."""
        try:
            how = os.waitid(os.P_PIDFD, self.fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None
        if how is None:
            return None
        return f"status={how.si_status}" if how.si_code == os.CLD_EXITED else f"sig={how.si_status}"

    def told(self, timeout_s: float = 0.005) -> str | None:
        """As `reap`, of a process that is somebody else's child, once its parent has reaped it (PIDFD_GET_INFO, Linux 6.15)."""
        deadline, info = time.monotonic() + timeout_s, bytearray(INFO.size)
        while True:
            INFO.pack_into(info, 0, INFO_EXIT, 0)
            try:
                fcntl.ioctl(self.fd, PIDFD_GET_INFO, info)
            except OSError:
                return None
            mask, code = INFO.unpack(info)
            if mask & INFO_EXIT:
                return f"sig={code & 0x7F}" if code & 0x7F else f"status={code >> 8 & 0xFF}"
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.0002)

    def close(self) -> None:
        """Let go of the descriptor; the process does not notice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> PidFd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()


def ended(processes: Iterable[PidFd], timeout_s: float) -> list[PidFd]:
    """Wait until one of them has ended, at most `timeout_s`; those that have, in the order given. None of them: returns at once."""
    known = {process.fd: process for process in processes}
    poll = select.poll()
    for fd in known:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while known:
        left = deadline - time.monotonic()
        if found := {fd for fd, _ in poll.poll(max(left, 0) * 1000)}:
            return [process for fd, process in known.items() if fd in found]
        if left <= 0:
            break
    return []
