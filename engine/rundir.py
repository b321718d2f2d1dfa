"""Where engines live: a folder each, with a lock that says who runs it and the sockets by which it is spoken to.

    BASE/NAME/lock           pid, start time, generation of the one that has the name; locked while it lives
    BASE/NAME/control.sock   the controller's
    BASE/NAME/worker-N.sock  the workers'

BASE is $PKTRING_RUNDIR, else /run/pktring (root), else $XDG_RUNTIME_DIR/pktring, else /tmp/pktring-UID. The lock is one of the open file
description (F_OFD_SETLK, fcntl(2)): the kernel frees it at the death of its last holder, a child of fork shares it until it lets go
(`release_in_child`), and F_OFD_GETLK asks for it without taking it, so that `ps` never makes a starter lose. It is taken before any other
trace of the engine is touched. Only its holder removes anything: a folder whose lock is free is stale, and is the next claimer's to clean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ..shm.errors import Error
from ..shm.segment import start_time

GROUP = "pktring"
LOCK, CONTROL = "lock", "control.sock"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
WORKER = re.compile(r"worker-(\d{1,4})\.sock")
FLOCK = struct.Struct("@hhqqi0q")  # struct flock of fcntl(2)
RECORD_BYTES = 256
WRITTEN_S = 0.2  # how long the holder of a lock may take to write its name into it
RETRIES = 100


@dataclass(frozen=True)
class Holder:
    """Who has a name: the lock's text."""

    pid: int
    start: int
    generation: int
    since: str

    @property
    def alive(self) -> bool:
        """Does that very process run?"""
        return start_time(self.pid) == self.start != 0


@dataclass(frozen=True)
class EngineSeen:
    """An engine as its folder shows it. `pid` 0: nobody has ever written into the lock."""

    name: str
    alive: bool
    pid: int
    since: str
    generation: int
    path: str

    @property
    def control(self) -> str:
        """Where its controller listens."""
        return f"{self.path}/{CONTROL}"


class RunDir:
    """A claimed name: its folder, and the lock that keeps it ours. Made by `claim`; a context manager. `before`: who had it last."""

    def __init__(self, name: str, path: str, folder: int, lock: int):
        self.name, self.path = name, path
        self.before = _read(lock)
        self._folder, self._lock = folder, lock
        self._pid = os.getpid()

    @property
    def control(self) -> str:
        """Where the controller listens."""
        return f"{self.path}/{CONTROL}"

    def worker(self, number: int) -> str:
        """Where worker `number` listens."""
        return f"{self.path}/worker-{number}.sock"

    @property
    def memory(self) -> str:
        """What the engine's shared memory is called: engines of one name in two places are two engines."""
        place = "" if self.path == f"/run/pktring/{self.name}" else f"-{zlib.crc32(self.path.encode()):08x}"
        return f"engine-{self.name}{place}"

    def workers(self) -> list[int]:
        """The numbers of the workers whose sockets are there, alive or not."""
        found = (WORKER.fullmatch(name) for name in os.listdir(self._folder))
        return sorted(int(match[1]) for match in found if match)

    def record(self, generation: int) -> None:
        """Write down that this process runs the engine, of this generation, as `claim` did for its caller."""
        pid = os.getpid()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"pid {pid}\nstart {start_time(pid)}\ngeneration {generation}\nsince {since}\n"
        os.pwrite(self._lock, text.encode().ljust(RECORD_BYTES), 0)

    def release_in_child(self) -> None:
        """Let go in a forked worker: else the name stays taken as long as the worker lives. Nothing is removed."""
        for fd in (self._lock, self._folder):
            if fd >= 0:
                os.close(fd)
        self._lock = self._folder = -1

    def clean(self) -> list[str]:
        """Remove what a dead engine of this name left in the folder, sockets; their names come back."""
        gone = []
        for name in os.listdir(self._folder):
            if name == CONTROL or WORKER.fullmatch(name):
                os.unlink(name, dir_fd=self._folder)
                gone.append(name)
        return sorted(gone)

    def open_to(self, mode: int, gid: int | None) -> None:
        """Let others see the engine: `mode` is the folder's, `gid` its group (None: as it is)."""
        try:
            if gid is not None:
                os.fchown(self._folder, -1, gid)
                os.fchown(self._lock, -1, gid)
            os.fchmod(self._folder, mode)
            os.fchmod(self._lock, 0o640 | mode & 0o004)
        except OSError as why:
            self.close()
            raise Error("E_PERM", f"{self.path} for group {gid}: {why.strerror}: be a member of it, or name another group") from None

    def close(self) -> None:
        """The end of the engine: remove the folder and give the name back. In a child of the claimer: just let go."""
        if self._lock >= 0 and os.getpid() == self._pid:
            self.clean()
            # While it is still locked: a starter that opened this lock sees that it is no longer the one in the folder.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(LOCK, dir_fd=self._folder)
            with contextlib.suppress(OSError):
                os.rmdir(self.path)  # a starter may have put its lock there already
        self.release_in_child()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def claim(name: str, *, group: str | None = None, mode: int = 0o750, generation: int = 0) -> RunDir:
    """Take an engine's name: exactly one of those who try at a time gets it, and the others touch nothing.

    What a dead engine left there stays until `clean`: its workers may be alive, and be adopted. `group` may enter the folder (default: the
    group `pktring`, where there is one). Raises E_NAME_BUSY, E_NAME_SQUATTED, E_PERM, E_USAGE.
    """
    checked(name)
    path = f"{_made_base()}/{name}"
    gid = _group(group)
    for _ in range(RETRIES):
        with contextlib.suppress(FileNotFoundError):  # its last holder removed it between our steps
            claimed = RunDir(name, path, *_locked(path, name))
            claimed.open_to(mode, gid)
            claimed.record(generation)
            return claimed
    raise Error("E_NAME_BUSY", f"name={name}: it comes and goes too fast to be taken: try again")


def engines(path: str | None = None) -> list[EngineSeen]:
    """Every engine that this user may see, alive or stale, by name; those of root and one's own. `path`: those of one base."""
    seen = []
    for base in [path] if path else _readable_bases():
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(base)):
                if NAME.fullmatch(name) and (one := _seen(base, name)):
                    seen.append(one)
    return seen


def find(name: str) -> EngineSeen:
    """The engine of this name, the living one if there are several. Raises E_NO_ENGINE, E_USAGE."""
    checked(name)
    found = [one for one in engines() if one.name == name]
    if not found:
        raise Error("E_NO_ENGINE", f"name={name}: no such engine here: see `pktring ps`, or start it with `pktring up`")
    return max(found, key=lambda one: one.alive)


def checked(name: str) -> str:
    """The name, if it may be one. Raises E_USAGE."""
    if not NAME.fullmatch(name):
        raise Error("E_USAGE", f"engine name {name[:40]!r}: 1 to 32 letters, digits, _ . -, and neither . nor - comes first")
    return name


# ---- the base ----


def bases() -> list[tuple[str, int]]:
    """Where this user's engines may live, with the mode that a base is made with; the first that can be made is taken."""
    if own := os.environ.get("PKTRING_RUNDIR"):
        return [(own, 0o700)]
    uid = os.geteuid()
    places = [("/run/pktring", 0o755)] if uid == 0 else []
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if xdg and uid and _is_ours(xdg):
        places.append((f"{xdg}/pktring", 0o700))
    return [*places, (f"/tmp/pktring-{uid}", 0o700)]


def _made_base() -> str:
    for path, mode in bases():
        try:
            os.mkdir(path, mode)
            os.chmod(path, mode)  # the umask cut it
        except FileExistsError:
            pass
        except OSError as why:
            if why.errno in (errno.EACCES, errno.EROFS, errno.ENOENT, errno.EPERM):
                continue
            raise
        _refuse_squatter(path)
        return path
    raise Error("E_PERM", f"none of {', '.join(path for path, _ in bases())} can be made: set PKTRING_RUNDIR to a folder of yours")


def _refuse_squatter(path: str) -> None:
    found = os.lstat(path)
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022:
        return
    what = f"owned by uid {found.st_uid}" if found.st_uid != os.geteuid() else "writable by others"
    what = what if stat.S_ISDIR(found.st_mode) else "not a folder"
    raise Error("E_NAME_SQUATTED", f"{path} {what}: remove it, or set PKTRING_RUNDIR to a folder of yours")


def _is_ours(path: str) -> bool:
    with contextlib.suppress(OSError):
        return os.lstat(path).st_uid == os.geteuid()
    return False


def _readable_bases() -> list[str]:
    """Only those of root and of this user: whatever another put into /tmp is not believed."""
    places = [path for path, _ in bases()]
    if "PKTRING_RUNDIR" not in os.environ and "/run/pktring" not in places:
        places.append("/run/pktring")
    return [path for path in places if _believed(path)]


def _believed(path: str) -> bool:
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        return stat.S_ISDIR(found.st_mode) and found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022
    return False


# ---- the folder and its lock ----


def _opened_folder(path: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as why:
        raise Error("E_NAME_SQUATTED", f"{path}: {why.strerror}: remove it or choose another name") from None
    if (uid := os.fstat(folder).st_uid) != os.geteuid():
        os.close(folder)
        raise Error("E_NAME_SQUATTED", f"{path} owned by uid {uid}: choose another name")
    return folder


def _group(group: str | None) -> int | None:
    """The gid; None for "", and where the default group is not there, or is not ours to give to."""
    import grp

    if group == "":
        return None
    try:
        gid = grp.getgrnam(group or GROUP).gr_gid
    except KeyError:
        if group is None:
            return None
        raise Error("E_PERM", f"no group {group!r}: create it with `groupadd {group}`") from None
    may = os.geteuid() == 0 or gid in (os.getegid(), *os.getgroups())
    return gid if may or group is not None else None


def _locked(path: str, name: str) -> tuple[int, int]:
    """The folder and its lock, which is ours now. Raises E_NAME_BUSY, E_NAME_SQUATTED; FileNotFoundError: vanished meanwhile."""
    with contextlib.ExitStack() as undo:
        folder = _opened_folder(path)
        undo.callback(os.close, folder)
        try:
            lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=folder)
        except FileNotFoundError:
            raise
        except OSError as why:
            raise Error("E_NAME_SQUATTED", f"{path}/{LOCK}: {why.strerror}: remove it or choose another name") from None
        undo.callback(os.close, lock)
        try:
            fcntl.fcntl(lock, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except (BlockingIOError, PermissionError):  # fcntl(2) names both for "taken"
            raise _busy(lock, name) from None
        # Is what we locked still what is called so? Its last holder may have removed it before letting go.
        if not os.path.samestat(os.stat(LOCK, dir_fd=folder, follow_symlinks=False), os.fstat(lock)):
            raise FileNotFoundError
        undo.pop_all()
        return folder, lock


def _busy(lock: int, name: str) -> Error:
    """Who holds it? Its text comes a moment after it is taken."""
    deadline = time.monotonic() + WRITTEN_S
    while (holder := _read(lock)) is None or not holder.alive:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.005)
    who = f"pid {holder.pid} since {holder.since}" if holder and holder.alive else "a process that is just starting"
    return Error("E_NAME_BUSY", f"name={name} held by {who}: choose another name or end it with `pktring down {name}`")


def _read(lock: int) -> Holder | None:
    words = dict(line.split(" ", 1) for line in os.pread(lock, RECORD_BYTES, 0).decode(errors="replace").splitlines() if " " in line)
    try:
        return Holder(int(words["pid"]), int(words["start"]), int(words["generation"]), words["since"][:40])
    except (KeyError, ValueError):
        return None


def _seen(base: str, name: str) -> EngineSeen | None:
    path = f"{base}/{name}"
    try:
        lock = os.open(f"{path}/{LOCK}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            return None
        held = fcntl.fcntl(lock, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        holder = _read(lock) or Holder(0, 0, 0, "")
        alive = FLOCK.unpack(held)[0] != fcntl.F_UNLCK
        return EngineSeen(name, alive, holder.pid, holder.since, holder.generation, path)
    finally:
        os.close(lock)


# ---- sockets ----


def listen(path: str, *, mode: int = 0o660, group: str | None = None, backlog: int = 128) -> socket.socket:
    """A listening SOCK_SEQPACKET socket at `path`, non-blocking, in place of one that a dead process left. For the holder of the lock.

    Raises E_NAME_BUSY (somebody listens there), E_PERM.
    """
    if listening(path):
        raise Error("E_NAME_BUSY", f"somebody listens at {path}: end that process")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with address(path) as short:
            sock.bind(short)
        gid = _group(group)
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, mode)
        sock.listen(backlog)
        sock.setblocking(False)
        return sock
    except OSError as why:
        sock.close()
        raise Error("E_PERM", f"listen at {path}: {why.strerror}: see who owns that folder") from None
    except BaseException:
        sock.close()
        raise


def listening(path: str) -> bool:
    """Does a living process listen at `path`? It is asked for a kind of socket that it is not, so it notices nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe, contextlib.suppress(FileNotFoundError):
        try:
            with address(path) as short:
                probe.connect(short)
        except OSError as why:
            return why.errno in (errno.EPROTOTYPE, errno.EACCES)
        return True
    return False


def data_path(path: str) -> bool:
    """Does any worker of the engine whose folder is `path` listen?"""
    with contextlib.suppress(OSError):
        return any(listening(f"{path}/{name}") for name in os.listdir(path) if WORKER.fullmatch(name))
    return False


@contextlib.contextmanager
def address(path: str) -> Iterator[str]:
    """A name for a socket at `path` that fits sockaddr_un's 108 bytes, however deep the folder lies; good inside the block."""
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
