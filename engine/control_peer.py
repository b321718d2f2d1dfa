"""Who is at the other end of a control connection: what the kernel says of it, what it may do, how much it may have."""

from __future__ import annotations

import errno
import grp
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from ..shm import _shm
from ..shm.errors import Error
from .pidfd import PidFd
from .rundir import GROUP

UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid
SO_PEERGROUPS, SO_PEERPIDFD = 59, 77  # asm-generic/socket.h, Linux 4.13 and 6.5
GIDS_BYTES = 1024  # Python reads no longer option: of a user with more than 256 groups the first is what counts


@dataclass(frozen=True)
class Quota:
    """What one user may have at a time."""

    apps: int = 8
    memory: int = 64 << 20
    connections: int = 16


@dataclass
class Used:
    """What one user has."""

    apps: int = 0
    memory: int = 0
    connections: int = 0


class Group:
    """The group whose members may change things. Looked up once: asking may take seconds where a directory service answers."""

    def __init__(self, name: str | None):
        self.name = GROUP if name is None else name  # "": nobody is in it
        try:
            self.gid = grp.getgrnam(self.name).gr_gid
        except KeyError:
            self.gid = -1


class Peer:
    """The process at the other end. `trusted` (and `why`): root, the engine's own user, or a member of its group.

    `attached` says whether it is an app: its connection stays open until it goes, and on_gone tells when it has.
    """

    def __init__(self, number: int, sock: socket.socket, group: Group):
        self.id = number
        self.pid, self.uid, self.gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        self.why = self._trust(sock, group)
        self.trusted = bool(self.why)
        self.why = self.why or f"uid={self.uid} not in group {group.name}"
        self.layout = 0
        self.attached = False
        self.memory = 0
        self._attach: Callable[[Peer, int], None] | None = None
        self._detach: Callable[[Peer], None] | None = None

    def bind(self, attach: Callable[[Peer, int], None], detach: Callable[[Peer], None]) -> None:
        """Tell it whose quotas count."""
        self._attach, self._detach = attach, detach

    def attach(self, memory: int = 0) -> None:
        """It becomes an app with so many bytes of memory of its own. Raises E_QUOTA, E_FD_LIMIT, E_CTRL_MSG (it is one already)."""
        assert self._attach
        self._attach(self, memory)

    def detach(self) -> None:
        """It is an app no more; its connection goes on."""
        assert self._detach
        self._detach(self)

    def require_trust(self, what: str) -> None:
        """Let only those change things who may. Raises E_DENIED."""
        if not self.trusted:
            raise Error("E_DENIED", f"{self.why}: {what} is for its members, root and the engine's own user")

    def require_layout(self) -> None:
        """Let only those share memory whose idea of it is ours. Raises E_ABI."""
        if self.layout != _shm.LAYOUT_HASH:
            ours = f"engine {_shm.ABI_MAJOR}.{_shm.ABI_MINOR} layout {_shm.LAYOUT_HASH:x}"
            raise Error("E_ABI", f"app layout {self.layout:x}, {ours}: run the same pktring on both sides")

    def _trust(self, sock: socket.socket, group: Group) -> str:
        if self.uid == 0:
            return "uid 0"
        if self.uid == os.geteuid():
            return "the engine's own user"
        return f"group {group.name}" if group.gid in (self.gid, *_groups(sock)) else ""


def _groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        gids = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GIDS_BYTES)
    except OSError:
        return ()
    return struct.unpack(f"{len(gids) // 4}I", gids)


def pidfd_of(sock: socket.socket, pid: int) -> PidFd | None:
    """The peer's pidfd; None when it has ended. Raises E_FD_LIMIT.

    Before Linux 6.5 there is only the pid, which another process may have by now; then the end of the connection tells alone.
    """
    try:
        return PidFd(sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD), pid)
    except OSError as why:
        if why.errno in (errno.EMFILE, errno.ENFILE):
            raise Error("E_FD_LIMIT", f"pidfd of app {pid}: {why.strerror}; raise LimitNOFILE") from None
        return PidFd.open(pid) if why.errno == errno.ENOPROTOOPT and pid > 0 else None
