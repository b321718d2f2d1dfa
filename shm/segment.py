"""Named pieces of shared memory, `/pktring.NAME.PART` in /dev/shm: made whole or not at all, joined only after every check.

The maker creates with O_EXCL, allocates every page that may be touched (posix_fallocate: a full /dev/shm is an error now, not a
SIGBUS later), sets the mode with fchmod (the umask would cut it), fills it, and stores READY last. Whoever joins checks owner, size,
magic, ABI, layout and generation before mapping anything writable. The header is drawn in layout.h.
"""

from __future__ import annotations

import errno
import grp
import mmap
import os
import time
from collections.abc import Iterator

import posix_ipc

from . import _shm
from .errors import Error

PREFIX = "pktring."
KINDS = {"mem": _shm.PR_MEM, "ledger": _shm.PR_LEDGER, "counters": _shm.PR_COUNTERS, "engine": _shm.PR_ENGINE}
NO_GEOMETRY = (0, 0, 0, 0, 0)


class Segment:
    """One of them, mapped: `map` the memory, `header` what its header said when it was mapped, `made` whether it was made here."""

    def __init__(self, name: str, part: str, memory: mmap.mmap, fd: int, header: dict, made: bool):
        self.name, self.part = name, part
        self.map = memory
        self.header = header
        self.made = made
        self._fd = fd

    @property
    def kept(self) -> bool:
        """Whether it outlives its maker, until somebody takes it over or discards it."""
        return bool(self.header["flags"] & _shm.PR_KEPT)

    def reserve_range(self, offset: int, size: int) -> None:
        """Allocate pages of a segment that was made sparse, before anybody touches them. Raises E_SHM_SPACE."""
        try:
            os.posix_fallocate(self._fd, offset, size)
        except OSError as why:
            raise _no_space(size, why, self.name, self.part) from None

    def publish(self) -> None:
        """It is filled: let others join."""
        _shm.header_state(self.map, _shm.PR_READY)

    def retire(self) -> None:
        """Nobody may join any more, and its name vanishes; whoever has it mapped keeps the memory."""
        _shm.header_state(self.map, _shm.PR_DEAD)
        unlink(self.name, self.part)

    def take_over(self) -> None:
        """Make this process its maker; the last one is dead. Whoever may do so holds the lock of that name."""
        _shm.header_owner(self.map, os.getpid(), start_time(os.getpid()))
        self.made = True

    def close(self) -> None:
        """Let go of the descriptor; the mapping goes with its last user."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def make_segment(
    name: str,
    part: str,
    size: int,
    kind: int,
    mode: int = 0o600,
    *,
    group: str | None = None,
    reserve: int | None = None,
    generation: int | None = None,
    kept: bool = False,
    owners: int = 1,
    geometry: tuple[int, int, int, int, int] = NO_GEOMETRY,
) -> Segment:
    """Make `/pktring.NAME.PART` of `size` bytes, not yet published. `reserve`: allocate only so many of them now, the rest is sparse.

    `kept`: it is not swept when its maker dies. The first page belongs to the header. Raises E_SHM_SPACE, E_NAME_BUSY,
    E_NAME_SQUATTED, E_PERM, E_REGION.
    """
    memory, fd = _make(name, part, size, mode, group, size if reserve is None else reserve)
    flags = _shm.PR_KEPT if kept else 0
    generation = time.time_ns() if generation is None else generation
    pid = os.getpid()
    _shm.header_write(memory, kind, *geometry, generation, pid, start_time(pid), f"{name}.{part}"[-47:], flags, owners)
    return Segment(name, part, memory, fd, _shm.header_read(memory), True)


def join_segment(name: str, part: str, kind: int | None = None) -> Segment:
    """Map a segment that another process made. Raises E_NO_REGION, E_ABI, E_NAME_SQUATTED, E_PERM."""
    fd, stat = _open(name, part)
    try:
        header = _shm.header_read(os.pread(fd, _shm.PAGE, 0))
        _refuse_trouble(header, name, part, stat.st_size, KINDS[part] if kind is None else kind)
        return Segment(name, part, mmap.mmap(fd, stat.st_size), fd, header, False)
    except BaseException:
        os.close(fd)
        raise


def start_time(pid: int) -> int:
    """A process's start time in clock ticks since boot (proc(5), stat field 22), 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def alive(header: dict) -> bool:
    """Is the process that made this segment still the one it was?"""
    start = start_time(header["owner_pid"])
    return start != 0 and start == header["owner_start"]


def sweep() -> list[str]:
    """Unlink what dead processes of this user left in /dev/shm, but for what is kept for a successor; returns the names."""
    gone = []
    for name, part in _names():
        try:
            header = peek(name, part)
        except (OSError, Error):
            continue
        kept = header["flags"] & _shm.PR_KEPT and header["trouble"] in (None, "layout")
        if header["trouble"] in (None, "dead", "not ready", "layout") and not kept and not alive(header):
            unlink(name, part)
            gone.append(f"{name}.{part}")
    return gone


def discard(name: str) -> list[str]:
    """Unlink every segment of this name, kept or not; for whoever found their maker dead and does not go on with them.

    Raises E_NAME_SQUATTED: root could remove another user's too, but would not know what that is.
    """
    gone = [part for part in KINDS if os.path.lexists(path := f"/dev/shm{_path(name, part)}") and _ours(path)]
    for part in gone:
        unlink(name, part)
    return gone


def _ours(path: str) -> bool:
    uid = os.lstat(path).st_uid
    if uid != os.geteuid():
        raise Error("E_NAME_SQUATTED", f"{path} owned by uid {uid}: remove it or choose another name")
    return True


def unlink(name: str, part: str) -> None:
    """Take the name away, if it is there and ours."""
    try:
        posix_ipc.unlink_shared_memory(_path(name, part))
    except (posix_ipc.ExistentialError, posix_ipc.PermissionsError):
        pass


def peek(name: str, part: str) -> dict:
    """Read a segment's header without mapping anything writable. Raises E_NO_REGION, E_PERM, E_NAME_SQUATTED."""
    fd, _ = _open(name, part)
    try:
        return _shm.header_read(os.pread(fd, _shm.PAGE, 0))
    finally:
        os.close(fd)


def check_space(need: int) -> None:
    """Raise E_SHM_SPACE if /dev/shm has less."""
    if need > _free():
        raise Error("E_SHM_SPACE", f"need {need} free {_free()} in /dev/shm: free some or ask for fewer or shorter rings")


def _free() -> int:
    fs = os.statvfs("/dev/shm")
    return fs.f_bavail * fs.f_frsize


def _names() -> Iterator[tuple[str, str]]:
    for file in os.listdir("/dev/shm"):
        name, _, part = file.removeprefix(PREFIX).rpartition(".")
        if file.startswith(PREFIX) and part in KINDS:
            yield name, part


def _path(name: str, part: str) -> str:
    return f"/{PREFIX}{name}.{part}"


def _make(name: str, part: str, size: int, mode: int, group: str | None, reserve: int) -> tuple[mmap.mmap, int]:
    try:
        memory = posix_ipc.SharedMemory(_path(name, part), posix_ipc.O_CREX, mode=mode)
    except posix_ipc.ExistentialError:
        raise _taken(name, part) from None
    except (posix_ipc.PermissionsError, PermissionError):
        raise Error("E_PERM", f"may not create /dev/shm{_path(name, part)}: see the mode of /dev/shm") from None
    except (OSError, ValueError) as why:
        raise Error("E_REGION", f"no segment named {name!r}: {why}") from None
    try:
        os.posix_fallocate(memory.fd, 0, reserve)
        if size > reserve:
            os.ftruncate(memory.fd, size)
        os.fchmod(memory.fd, mode)
        if group is not None:
            os.fchown(memory.fd, -1, _group_id(group))
        return mmap.mmap(memory.fd, size), os.dup(memory.fd)
    except OSError as why:
        memory.unlink()
        raise _no_space(reserve, why, name, part) from None
    except Error:
        memory.unlink()
        raise
    finally:
        memory.close_fd()


def _no_space(need: int, why: OSError, name: str, part: str) -> Error:
    if why.errno == errno.ENOSPC:
        return Error("E_SHM_SPACE", f"need {need} free {_free()} in /dev/shm: free some")
    return Error("E_PERM", f"/dev/shm{_path(name, part)}: {why.strerror}")


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Error("E_PERM", f"no group {group!r}: create it with `groupadd {group}`") from None


def _taken(name: str, part: str) -> Error:
    """The name exists: whose is it?"""
    try:
        header = peek(name, part)
    except Error as why:
        return why
    except OSError as why:
        return Error("E_NAME_SQUATTED", f"/dev/shm{_path(name, part)} is in the way: {why.strerror}")
    if header["trouble"] == "magic":
        return Error("E_NAME_SQUATTED", f"/dev/shm{_path(name, part)} is not a pktring segment: remove it or choose another name")
    if header["flags"] & _shm.PR_KEPT and not alive(header):
        return Error("E_NAME_BUSY", f"name={name} is kept for the successor of pid {header['owner_pid']}: adopt or discard it")
    return Error("E_NAME_BUSY", f"name={name} held by pid {header['owner_pid']}: choose another name or end that process")


def _open(name: str, part: str) -> tuple[int, os.stat_result]:
    """Open a segment and check who owns it, before a byte of it is believed."""
    try:
        memory = posix_ipc.SharedMemory(_path(name, part), mode=0)
    except posix_ipc.ExistentialError:
        raise Error("E_NO_REGION", f"no region {name!r} ({part}): see /dev/shm for those that exist") from None
    except (posix_ipc.PermissionsError, PermissionError):
        raise Error("E_PERM", f"may not open /dev/shm{_path(name, part)}: ask its owner for the group") from None
    os.set_inheritable(memory.fd, False)
    stat = os.fstat(memory.fd)
    if stat.st_uid not in (0, os.geteuid()):
        memory.close_fd()
        raise Error("E_NAME_SQUATTED", f"/dev/shm{_path(name, part)} owned by uid {stat.st_uid}: not ours, not mapped")
    return memory.fd, stat


def _refuse_trouble(header: dict, name: str, part: str, size: int, kind: int) -> None:
    trouble = header["trouble"]
    if trouble is None and part == "mem" and header["size"] != header["geometry"]["size"]:
        trouble = "geometry"
    if trouble is None and (header["size"] != size or header["kind"] != kind):
        trouble = "size"
    if trouble == "magic":
        raise Error("E_NAME_SQUATTED", f"/dev/shm{_path(name, part)} is not a pktring segment: choose another name")
    if trouble in ("dead", "not ready"):
        raise Error("E_NO_REGION", f"{name}.{part} is {trouble}: its maker (pid {header['owner_pid']}) ended or has not begun")
    if trouble is not None:
        raise Error(
            "E_ABI",
            f"{name}.{part}: {trouble}: theirs ABI {header['abi_major']}.{header['abi_minor']} layout "
            f"{header['layout_hash']:x}, ours {_shm.ABI_MAJOR}.{_shm.ABI_MINOR} layout {_shm.LAYOUT_HASH:x}: "
            "run the same pktring on both sides",
        )
