"""A region: one memory of buffers and rings in netmap's layout, with its ledger and its counters beside it.

Three POSIX shared memory segments, `/pktring.NAME.mem`, `.ledger` and `.counters`; the picture is in layout.h. The maker
creates each with O_EXCL, allocates every page (posix_fallocate: a full /dev/shm is an error now, not a SIGBUS later),
sets the mode with fchmod (the umask would cut it), fills it, and stores READY last. Whoever attaches checks owner, size,
magic, ABI, layout, generation and geometry before mapping anything writable.
"""

from __future__ import annotations

import errno
import grp
import mmap
import os
import time
from array import array
from collections.abc import Iterator

import posix_ipc

from . import _shm
from .errors import Error
from .pool import Pool

PREFIX = "pktring."
SEGMENTS = {"mem": _shm.PR_MEM, "ledger": _shm.PR_LEDGER, "counters": _shm.PR_COUNTERS}
RX, TX = _shm.PR_RX, _shm.PR_TX
DEFAULT_STRIDE = 2048
DEFAULT_SLOTS = 1024


class Region:
    """Rings and buffers in shared memory; made by `create`, joined by `attach`, a context manager.

    `view` is the C core's hold on it, `mem` a memoryview of the whole region. The maker unlinks the names on close.
    """

    def __init__(self, name: str, maps: dict[str, mmap.mmap], made: bool, header: dict):
        self.name = name
        self.generation: int = header["generation"]
        self.geometry: dict[str, int] = header["geometry"]
        self._maps = maps
        self._made = made
        self._fork_pid = os.getpid()
        self.mem = memoryview(maps["mem"])
        self.view = _shm.View(maps["mem"], maps["ledger"], maps["counters"])
        self.pool = Pool(self.view, owner=1)
        self._rings: dict[int, array[int]] = {}
        self._ports = 0

    @classmethod
    def create(
        cls,
        name: str,
        *,
        rings: int = 16,
        slots: int = DEFAULT_SLOTS,
        buffers: int | None = None,
        stride: int = DEFAULT_STRIDE,
        mode: int = 0o600,
        group: str | None = None,
        generation: int | None = None,
    ) -> Region:
        """Make the region `name` with room for `rings` rings of up to `slots` slots and `buffers` buffers of `stride` bytes.

        Raises E_SHM_SPACE, E_NAME_BUSY (the name is in use by a living process), E_NAME_SQUATTED, E_PERM, E_REGION (sizes).
        """
        sweep()
        buffers = rings * slots + 2 if buffers is None else buffers
        try:
            geometry = _shm.carve(max(rings, 4), rings, slots, buffers, stride)
        except (ValueError, OverflowError) as why:
            raise Error("E_REGION", f"{why}: strides are 512..65536 in steps of 64") from None
        sizes = {"mem": geometry["size"], "ledger": geometry["ledger_size"], "counters": geometry["counters_size"]}
        _check_space(sum(sizes.values()))
        generation = time.time_ns() if generation is None else generation
        maps: dict[str, mmap.mmap] = {}
        pid = os.getpid()
        try:
            for part, kind in SEGMENTS.items():
                # Only the counters are for everyone's eyes; the ledger stays with the engine, whatever the group.
                bits = {"mem": mode, "ledger": 0o600, "counters": mode | 0o444}[part]
                maps[part] = _make(name, part, sizes[part], bits, group)
                start = start_time(pid)
                _shm.header_write(
                    maps[part], kind, max(rings, 4), rings, slots, buffers, stride, generation, pid, start, f"{name}.{part}"
                )
            region = cls(name, maps, True, _shm.header_read(maps["mem"]))
            region.pool.format()
            for part in ("counters", "ledger", "mem"):
                _shm.header_state(maps[part], _shm.PR_READY)
        except BaseException:
            for part in maps:
                _unlink(name, part)
            raise
        return region

    @classmethod
    def attach(cls, name: str, *, generation: int | None = None) -> Region:
        """Map a region that another process made. Raises E_NO_REGION, E_ABI, E_NAME_SQUATTED, E_PERM, E_GENERATION."""
        maps, heads = {}, {}
        for part in SEGMENTS:
            maps[part], heads[part] = _join(name, part)
        found = {head["generation"] for head in heads.values()}
        if len(found) > 1:
            raise Error("E_GENERATION", f"the segments of {name} are of {len(found)} generations: its maker is at work, try again")
        if generation is not None and found != {generation}:
            raise Error("E_GENERATION", f"{name} is of generation {found.pop()}, not {generation}: attach anew")
        return cls(name, maps, False, heads["mem"])

    # ---- rings ----

    def make_ring(self, direction: int, slots: int, label: str, ringid: int = 0) -> tuple[int, _shm.Ring]:
        """Make a ring of `slots` slots, its buffers taken from the pool. -> (index, ring). Raises E_REGION_FULL."""
        index = next((i for i in range(self.geometry["ring_num"]) if i not in self._rings), None)
        if index is None:
            raise Error("E_REGION_FULL", f"all {self.geometry['ring_num']} rings of {self.name} are in use: make it with more")
        bufs = self.pool.take(slots)
        if len(bufs) < slots:
            self.pool.give(bufs)
            raise Error("E_REGION_FULL", f"{slots} buffers wanted, {len(bufs)} free in {self.name}: make it with more buffers")
        try:
            ring = self.view.make_ring(index, direction, slots, ringid, self.pool.owner, label, bufs)
        except ValueError as why:
            self.pool.give(bufs)
            raise Error("E_REGION", f"{why}: the region was made for fewer slots a ring") from None
        self._rings[index] = bufs
        return index, ring

    @property
    def made_here(self) -> bool:
        """Whether this very process made it (a child of fork shares the memory, not the duty to clean up)."""
        return self._made and os.getpid() == self._fork_pid

    @property
    def slots(self) -> int:
        """The most slots a ring may have here."""
        return (self.geometry["ring_size"] - _shm.LAYOUT["pr_ring"][1]) // _shm.LAYOUT["pr_slot"][1]

    def has_room(self, n_rings: int, slots: int) -> bool:
        """Whether so many rings of so many slots can still be made here, with what their queues keep at hand."""
        left = self.geometry["ring_num"] - len(self._rings)
        return slots <= self.slots and n_rings <= left and self.pool.free >= n_rings * slots

    def drop_ring(self, index: int) -> None:
        """Take a ring apart; whatever buffers lie in its slots now go back to the pool."""
        ring = self.view.ring(index)
        held = array("I", (ring.slot(i)[0] for i in range(ring.num_slots)))
        self.view.drop_ring(index)
        del self._rings[index]
        self.pool.give(held)

    def name_port(self, name: str, tx: list[int], rx: list[int]) -> int:
        """Write a netmap_if over these rings; returns its offset in the region."""
        offset = self.view.name_port(self._ports % self.geometry["if_num"], name[:15], tx, rx)
        self._ports += 1
        return offset

    def counters(self) -> list[dict]:
        """One dict a ring in use: `ring` its number, `row` its label, then every counter by name."""
        return [named(row) for row in _shm.rows(self._maps["counters"])]

    # ---- end ----

    def close(self) -> None:
        """Let go. The maker's names vanish; whoever has the memory mapped keeps it until it lets go too."""
        if self.made_here:
            self._made = False
            for part in SEGMENTS:
                _shm.header_state(self._maps[part], _shm.PR_DEAD)
                _unlink(self.name, part)

    def __enter__(self) -> Region:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def named(row: tuple[int, str, int, tuple[int, ...]]) -> dict:
    """A counter row as a dict."""
    ring, name, writer, values = row
    return {"ring": ring, "row": name, "writer": writer} | dict(zip(COUNTER_NAMES, values, strict=True))


COUNTER_NAMES = tuple(name for name, _ in _shm.COUNTERS)
COUNTER = {name: i for i, name in enumerate(COUNTER_NAMES)}


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
    """Unlink what dead processes of this user left in /dev/shm; returns the names."""
    gone = []
    for name, part in _names():
        try:
            header = _peek(name, part)
        except (OSError, Error):
            continue
        if header["trouble"] in (None, "dead", "not ready", "layout") and not alive(header):
            _unlink(name, part)
            gone.append(f"{name}.{part}")
    return gone


def _names() -> Iterator[tuple[str, str]]:
    for file in os.listdir("/dev/shm"):
        name, _, part = file.removeprefix(PREFIX).rpartition(".")
        if file.startswith(PREFIX) and part in SEGMENTS:
            yield name, part


def _path(name: str, part: str) -> str:
    return f"/{PREFIX}{name}.{part}"


def _check_space(need: int) -> None:
    fs = os.statvfs("/dev/shm")
    free = fs.f_bavail * fs.f_frsize
    if need > free:
        raise Error("E_SHM_SPACE", f"need {need} free {free} in /dev/shm: free some or ask for fewer or shorter rings")


def _make(name: str, part: str, size: int, mode: int, group: str | None) -> mmap.mmap:
    try:
        memory = posix_ipc.SharedMemory(_path(name, part), posix_ipc.O_CREX, mode=mode)
    except posix_ipc.ExistentialError:
        raise _taken(name, part) from None
    except (posix_ipc.PermissionsError, PermissionError):
        raise Error("E_PERM", f"may not create /dev/shm{_path(name, part)}: see the mode of /dev/shm") from None
    except (OSError, ValueError) as why:
        raise Error("E_REGION", f"no segment named {name!r}: {why}") from None
    try:
        os.posix_fallocate(memory.fd, 0, size)
        os.fchmod(memory.fd, mode)
        if group is not None:
            os.fchown(memory.fd, -1, _group_id(group))
        return mmap.mmap(memory.fd, size)
    except OSError as why:
        memory.unlink()
        if why.errno == errno.ENOSPC:
            fs = os.statvfs("/dev/shm")
            raise Error("E_SHM_SPACE", f"need {size} free {fs.f_bavail * fs.f_frsize} in /dev/shm: free some") from None
        raise Error("E_PERM", f"/dev/shm{_path(name, part)}: {why.strerror}") from None
    except Error:
        memory.unlink()
        raise
    finally:
        memory.close_fd()


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Error("E_PERM", f"no group {group!r}: create it with `groupadd {group}`") from None


def _taken(name: str, part: str) -> Error:
    """The name exists: whose is it?"""
    try:
        header = _peek(name, part)
    except Error as why:
        return why
    except OSError as why:
        return Error("E_NAME_SQUATTED", f"/dev/shm{_path(name, part)} is in the way: {why.strerror}")
    if header["trouble"] == "magic":
        return Error("E_NAME_SQUATTED", f"/dev/shm{_path(name, part)} is not a pktring segment: remove it or choose another name")
    return Error("E_NAME_BUSY", f"name={name} held by pid {header['owner_pid']}: choose another name or end that process")


def _open(name: str, part: str) -> tuple[int, os.stat_result]:
    """Open a segment and check who owns it, before a byte of it is believed."""
    try:
        memory = posix_ipc.SharedMemory(_path(name, part), mode=0)
    except posix_ipc.ExistentialError:
        raise Error("E_NO_REGION", f"no region {name!r} ({part}): see /dev/shm for those that exist") from None
    except (posix_ipc.PermissionsError, PermissionError):
        raise Error("E_PERM", f"may not open /dev/shm{_path(name, part)}: ask its owner for the group") from None
    stat = os.fstat(memory.fd)
    if stat.st_uid not in (0, os.geteuid()):
        memory.close_fd()
        raise Error("E_NAME_SQUATTED", f"/dev/shm{_path(name, part)} owned by uid {stat.st_uid}: not ours, not mapped")
    return memory.fd, stat


def _peek(name: str, part: str) -> dict:
    """Read a segment's header without mapping anything writable."""
    fd, _ = _open(name, part)
    try:
        return _shm.header_read(os.pread(fd, _shm.PAGE, 0))
    finally:
        os.close(fd)


def _join(name: str, part: str) -> tuple[mmap.mmap, dict]:
    fd, stat = _open(name, part)
    try:
        header = _shm.header_read(os.pread(fd, _shm.PAGE, 0))
        trouble = header["trouble"]
        if trouble is None and part == "mem" and header["size"] != header["geometry"]["size"]:
            trouble = "geometry"
        if trouble is None and (header["size"] != stat.st_size or header["kind"] != SEGMENTS[part]):
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
        return mmap.mmap(fd, stat.st_size), header
    finally:
        os.close(fd)


def _unlink(name: str, part: str) -> None:
    try:
        posix_ipc.unlink_shared_memory(_path(name, part))
    except (posix_ipc.ExistentialError, posix_ipc.PermissionsError):
        pass
