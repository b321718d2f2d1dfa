"""Capture files: read as a port that receives (pcap, pcapng), written as a port that sends (pcapng, nanoseconds).

    reader = open_reader("trace.pcap")                      # or a descriptor, or "-" for standard input
    ring.bind(reader.queues[0].device)                      # a receive ring; ring.sync() fills it
    reader.check()                                          # at the end: raises E_PCAP if the file was damaged

    writer = Writer("cap.pcapng", [Interface("eth0")])      # a transmit ring; after a sync with writer.paused:
    writer.proceed()                                        # the next file of a rotation, or an error that says why not

A file goes on in another process (`hand_on`, `adopt`): descriptors share one position. Where a reader stands its ring knows, and what
a writer has written the file itself says. Who closes a writer ends the file, once; all others let go.

The formats are in pcap_file.h, pcap_reader.h and pcap_writer.h, rotation in rotation.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from pktring.shm.device import Device
from pktring.shm.errors import Error

from . import _drivers
from .rotation import Rotation

SNAPLEN: int = _drivers.PCAP_SNAPLEN
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)

OPTIONS = {
    "link": "any = also frames of a file that are not Ethernet (reading; ethernet: E_PCAP)",
    "snaplen": f"bytes kept of a frame (writing; {SNAPLEN})",
    "size": "bytes after which a new file starts, as tcpdump -C (writing; 0: never)",
    "seconds": "seconds after which a new file starts, as tcpdump -G (writing; 0: never)",
    "files": "how many of them, as tcpdump -W (writing; 0: any number)",
}

# Where a writer is in its row of files.
PLACE = ("_start_s", "_count", "_spans", "_bytes_before", "_frames_before", "_told", "ended", "files")

File = str | os.PathLike[str] | int


@dataclass
class Queue:
    """The one queue of a file: the capsule to bind a ring to, and what to wait on (-1 = nothing)."""

    device: object
    rx_fd: int
    tx_fd: int
    core: _drivers.PcapReader | _drivers.PcapWriter

    @property
    def receives(self) -> bool:
        """Whether it is a file that is read."""
        return isinstance(self.core, _drivers.PcapReader)

    @property
    def sends(self) -> bool:
        """Whether it is a file that is written."""
        return not self.receives


@dataclass(frozen=True)
class Interface:
    """What a file says about an interface that it holds frames of. `port`: the number that its frames carry."""

    name: str
    description: str = ""
    snaplen: int = SNAPLEN
    filter: str = ""
    speed: int = 0  # bit/s
    os: str = ""
    hardware: str = ""
    mac: bytes | None = None
    port: int | None = None  # None = its place in the list


class Stats(NamedTuple):
    """An interface's counts since the capture began, None = not known (isb_ifrecv, ifdrop, filteraccept, osdrop, usrdeliv)."""

    received: int | None = None
    dropped: int | None = None
    accepted: int | None = None
    dropped_kernel: int | None = None
    delivered: int | None = None  # None = the frames written


def open(name: str, options: dict[str, str], *, direction: str = "rx", port: int | None = None) -> Reader | Writer:
    """Open the port `pcap:NAME`: a file that is there to be read ("rx"), or one to be written ("tx"); "-" = stdin or stdout."""
    if direction == "rx":
        return open_reader(name, port=port, any_link=_word(options, "link", ("ethernet", "any")) == "any")
    rotation = Rotation(_count(options, "size"), _count(options, "seconds"), _count(options, "files"))
    snaplen = _count(options, "snaplen") or SNAPLEN
    return Writer(name, [Interface("pktring", snaplen=min(snaplen, SNAPLEN))], rotation=rotation)


def adopt(state: dict, fds: list[int]) -> Reader | Writer:
    """Be a file that another process handed on. Its descriptor is ours from now on, also when this fails."""
    try:
        if state["direction"] == "rx":
            how = {key: state[key] for key in ("port", "any_link")}
            return Reader(fds[0], state["name"], owned=True, **how, handed=state)
        interfaces = [Interface(**told | {"mac": told["mac"] and bytes.fromhex(told["mac"])}) for told in state["interfaces"]]
        file = fds[0] if state["file"] is None else state["file"]
        return Writer(file, interfaces, rotation=Rotation(**state["rotation"]), **state["how"], handed=(state, fds[0]))
    except BaseException:
        os.close(fds[0])
        raise


# ---- reading ----


def open_reader(file: File, *, port: int | None = None, any_link: bool = False) -> Reader:
    """Open a capture file, a pipe or a descriptor (which stays the caller's). Raises E_NO_FILE, E_PERM, E_PCAP.

    `port`: what the metadata of every frame says, else its interface's number in the file.
    """
    if file == "-":
        file = sys.stdin.fileno()
    fd = file if isinstance(file, int) else _open(file, os.O_RDONLY)
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise Error("E_NO_FILE", f"{_name(file)} is a directory: name a file in it")
        return Reader(fd, _name(file), owned=not isinstance(file, int), port=port, any_link=any_link)
    except BaseException:
        if not isinstance(file, int):
            os.close(fd)
        raise


class Reader(Device):
    """A capture file as a port that receives; what `open_reader` returns."""

    kind = "pcap"

    def __init__(self, fd: int, name: str, *, owned: bool, port: int | None, any_link: bool, handed: dict | None = None):
        self.name = name
        self._fd = fd if owned else -1
        self._state = {"driver": self.kind, "direction": "rx", "name": name, "port": port, "any_link": any_link}
        self._core = _drivers.PcapReader(fd, -1 if port is None else port, any_link)
        self.is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self.first_ns: int | None = handed["first_ns"] if handed else None
        if self.is_file and not handed:
            _lock(fd, fcntl.LOCK_SH)  # against a writer who would truncate what is being read
            self.first_ns = self._core.look()
            if self.first_ns is None:
                self.check()
        self.queues = [Queue(self._core.device, -1 if self.is_file else fd, -1, self._core)]

    @property
    def interfaces(self) -> list[dict]:
        """The interfaces described so far: name, link, snaplen, speed, frames, dropped, stats (as in `Stats`)."""
        return self._core.interfaces

    @property
    def end(self) -> bool:
        """Nothing will come any more: the end of the file, or of what could be read of it."""
        return self._core.end

    def check(self) -> None:
        """Raise E_PCAP if what could not be read was damaged: the frames before it were delivered."""
        if self._core.errno == errno.EBADMSG:
            raise Error("E_PCAP", f"{self._core.trouble} in {self.name}: damaged, or not what it says; frames before that are good")
        if self._core.trouble is not None:
            raise Error("E_PCAP", f"{self._core.trouble} in {self.name}")

    def facts(self) -> dict:
        """What this port is."""
        return {"driver": self.kind, "file": self.name, "direction": "rx", "queues": 1, "interfaces": self.interfaces}

    def warnings(self) -> list[str]:
        """What the user should know: interfaces whose frames lack counts of drops are no news, damage is."""
        return [self._core.trouble] if self._core.trouble else []

    def hand_on(self) -> tuple[dict, list[int]]:
        """Return what another process needs to read on, with the ring that knows how far we are. What is no file cannot be read on."""
        return self._state | {"first_ns": self.first_ns}, [self._core.fd]

    def close(self) -> None:
        """Let the file go; rings that are still bound receive nothing more."""
        self._core.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


# ---- writing ----


class Writer(Device):
    """A capture file, or a row of them, as a port that sends.

    `file`: a name (with `rotation` by seconds a strftime pattern), "-" or a descriptor (which stays the caller's). `stats()` is asked
    for one `Stats` an interface at the end of each file, `closed(name)` is called after each. A frame belongs to the interface whose
    `port` its metadata names; with one interface all do. Files are made with `mode`, 0600 as dumpcap does: they hold other people's
    traffic. `start_s`: when the first file begins (now); for frames out of a file, the time of the first.
    Raises E_PERM, E_NO_FILE, E_FILE_BUSY, E_CAPTURE_SPACE, E_OPTION.
    """

    kind = "pcap"

    def __init__(
        self,
        file: File,
        interfaces: Sequence[Interface] = (),
        *,
        rotation: Rotation | None = None,
        stats: Callable[[], Sequence[Stats]] | None = None,
        closed: Callable[[str], object] | None = None,
        start_s: float | None = None,
        mode: int = 0o600,
        fsync: bool = False,
        hardware: str = "",
        application: str = "pktring",
        handed: tuple[dict, int] | None = None,
    ):
        self.rotation = rotation or Rotation()
        self.interfaces = list(interfaces) or [Interface("pktring")]
        self._file = sys.stdout.fileno() if file == "-" else file
        self._stats, self._on_closed, self._mode, self._fsync = stats, closed, mode, fsync
        self._start_s = int(time.time() if start_s is None else start_s)
        self._count = self._spans = 0
        self._bytes_before = self._frames_before = 0
        self._told = [0] * len(self.interfaces)
        self._failed: Error | None = None
        self.ended = False  # the number of files asked for is full, or the reader of a pipe went away
        self.files: list[str] = []  # made and not removed, oldest first
        self.queues: list[Queue] = []
        if self.rotation and isinstance(self._file, int):
            raise Error("E_OPTION", "a descriptor cannot be rotated: name a file")
        self._how = {"mode": mode, "fsync": fsync, "hardware": hardware, "application": application}
        self._fd, self._owned = self._adopt(*handed) if handed else self._open_next()
        uname = os.uname()
        described = [
            (i.name, i.description, i.filter, i.os, i.hardware, i.mac, i.speed, i.snaplen, n if i.port is None else i.port)
            for n, i in enumerate(self.interfaces)
        ]
        try:
            self._core = _drivers.PcapWriter(
                self._fd,
                described,
                hardware=hardware or uname.machine,
                os=f"{uname.sysname} {uname.release}",
                application=application,
                max_bytes=self.rotation.max_bytes,
                known=tuple(handed[0]["known"]) if handed else None,
            )
        except OSError as why:
            self._abandon()
            raise self._refused(why.errno or 0) from None
        except ValueError as why:
            self._abandon()
            raise Error("E_OPTION", str(why)) from None
        self._core.until_ns = self.rotation.until_ns(self._start_s)
        self.queues = [Queue(self._core.device, -1, self._fd if self.is_pipe else -1, self._core)]

    # ---- from process to process ----

    def hand_on(self) -> tuple[dict, list[int]]:
        """Return what another process needs to end the file, or to go on with it. The functions that were given stay here."""
        state = {
            "driver": self.kind,
            "direction": "tx",
            "file": None if isinstance(self._file, int) else os.fspath(self._file),
            "interfaces": [asdict(i) | {"mac": i.mac and i.mac.hex()} for i in self.interfaces],
            "rotation": asdict(self.rotation),
            "how": self._how,
            "at": {key: getattr(self, key) for key in PLACE},
            "known": [self._core.start, self._core.written, self._core.start_ns, list(self._core.frames)],
        }
        return state, [self._fd]

    def _adopt(self, state: dict, fd: int) -> tuple[int, bool]:
        for key, value in state["at"].items():
            setattr(self, key, value)
        self.is_pipe = not stat.S_ISREG(os.fstat(fd).st_mode)
        return fd, True

    def _ended_elsewhere(self) -> bool:
        """Count what other processes wrote, where nobody else may have. True = one of them ended the file."""
        if self.is_pipe or isinstance(self._file, int) or os.fstat(self._fd).st_size == self._core.start + self._core.written:
            return False
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self._core.recount(fd)
        finally:
            os.close(fd)

    def let_go(self) -> None:
        """Leave the file as it is to those who hold it too."""
        self._core.leave()
        self._abandon()

    # ---- files ----

    @property
    def name(self) -> str:
        """The file written now."""
        return self.files[-1] if self.files else _name(self._file)

    def _open_next(self) -> tuple[int, bool]:
        """-> (descriptor, ours to close)."""
        if isinstance(self._file, int):
            self.is_pipe = not stat.S_ISREG(os.fstat(self._file).st_mode)
            fd = _not_blocking(self._file)
            return fd, fd != self._file
        name = self.rotation.name(os.fspath(self._file), self._start_s, self._count)
        fd = _open(name, os.O_WRONLY | os.O_CREAT, self._mode)
        self.is_pipe = not stat.S_ISREG(os.fstat(fd).st_mode)
        if self.is_pipe:
            own = _not_blocking(fd)
            if own != fd:
                os.close(fd)
            fd = own
        else:
            if not _lock(fd, fcntl.LOCK_EX):
                os.close(fd)
                raise Error("E_FILE_BUSY", f"{name} is being written or read by another: choose another name")
            os.ftruncate(fd, 0)
        self.files = [*(f for f in self.files if f != name), name]
        for old in self.rotation.surplus(self.files):
            self.files.remove(old)
            with contextlib.suppress(OSError):
                os.unlink(old)
        return fd, True

    def proceed(self) -> bool:
        """Do what the pause calls for: start the next file. True = going on; False = this was the end, close.

        Raises E_CAPTURE_SPACE when the disk refused: what was written is whole, what was not is still in the ring.
        """
        why = self.paused
        if why is None:
            return True
        if why in ("size", "time"):
            return self._rotate(why)
        if why == "error" and self._core.error != errno.EPIPE:
            self._failed = self._refused(self._core.error)
            raise self._failed
        self.ended = True
        return False

    def _rotate(self, why: str) -> bool:
        next_s = self._core.next_ns // 10**9
        self._end_file()
        self._count = self.rotation.next_count(why, self._count)
        if why == "time":
            self._spans += 1
            self._start_s = next_s
            if self.rotation.last(self._spans):
                self.ended = True
                return False
        self._bytes_before, self._frames_before = self.written_bytes, self.frames
        self._fd, self._owned = self._open_next()
        try:
            self._core.rotate(self._fd)
        except OSError as refused:
            self._failed = self._refused(refused.errno or 0)
            raise self._failed from None
        self._core.until_ns = self.rotation.until_ns(self._start_s)
        return True

    def _end_file(self) -> None:
        refused = self._core.finish([tuple(s) for s in self._stats()] if self._stats else None)
        if self._fsync and not self.is_pipe:
            os.fsync(self._fd)
        self._abandon()
        if self._on_closed and self.files:
            self._on_closed(self.files[-1])
        if refused and refused != errno.EPIPE and not self._failed:
            self._failed = self._refused(refused)
            raise self._failed

    def _abandon(self) -> None:
        if self._owned:
            os.close(self._fd)
        self._fd, self._owned = -1, False

    def _refused(self, number: int) -> Error:
        if number in (errno.EPIPE, errno.ETIMEDOUT):
            return Error("E_PIPE", f"{self.name}: {os.strerror(number)}: nobody reads it")
        frames = self.frames - self._frames_before if self.queues else 0
        text = f"file={self.name} written={frames} frames stopped=1: {os.strerror(number)}"
        return Error("E_CAPTURE_SPACE", f"{text}: make room, or keep fewer files; frames not written are counted")

    # ---- facts ----

    @property
    def paused(self) -> str | None:
        """Why nothing is taken from the ring: size, time, error, closed; None = all is well."""
        return self._core.paused

    @property
    def frames(self) -> int:
        """Frames written, in all files."""
        return sum(self._core.frames)

    @property
    def written_bytes(self) -> int:
        """Bytes written, in all files."""
        return self._bytes_before + self._core.written

    def dropped(self, interface: int, total: int) -> None:
        """Say how many frames of an interface were dropped so far; its next frame's epb_dropcount tells of the new ones."""
        if total > self._told[interface]:
            self._core.dropped(interface, total - self._told[interface])
            self._told[interface] = total

    def resume(self) -> None:
        """Try again after an error, when there is room on the disk again."""
        self._failed = None
        self._core.resume()

    def facts(self) -> dict:
        """What this port is."""
        return {
            "driver": self.kind,
            "file": self.name,
            "direction": "tx",
            "queues": 1,
            "interfaces": [i.name for i in self.interfaces],
            "frames": self.frames,
            "written_bytes": self.written_bytes,
            "files": list(self.files),
        }

    def close(self) -> None:
        """End the file with its statistics. Sync the rings first: what is still in them is not written.

        Raises E_CAPTURE_SPACE when its end finds no room and nobody was told yet.
        """
        if self._fd >= 0 and self._ended_elsewhere():
            self.let_go()
        elif self._fd >= 0:
            self._end_file()


# ---- descriptors ----


def _open(name: str | os.PathLike[str], flags: int, mode: int = 0) -> int:
    try:
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOCTTY, mode)
    except OSError as why:
        text = f"{os.fspath(name)}: {why.strerror}"
        if why.errno in DENIED:
            raise Error("E_PERM", f"{text}: see its owner and mode, and its folder's") from None
        if why.errno in FULL:
            raise Error("E_CAPTURE_SPACE", f"file={os.fspath(name)} written=0 frames stopped=1: {why.strerror}: make room") from None
        raise Error("E_NO_FILE", f"{text}: name a file that is there" if not flags & os.O_CREAT else text) from None


def _lock(fd: int, how: int) -> bool:
    """An advisory lock for as long as the descriptor is open. False = somebody else's is in the way."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def _not_blocking(fd: int) -> int:
    """A descriptor of our own of the same pipe, not blocking: O_NONBLOCK on the given one would reach whoever shares it."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return fd
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return fd  # no /proc, or somebody else's pipe: its writes will wait for the reader


def _name(file: File) -> str:
    return f"fd {file}" if isinstance(file, int) else os.fspath(file)


def _count(options: dict[str, str], key: str) -> int:
    text = options.get(key, "0")
    if not text.isdecimal():
        raise Error("E_OPTION", f"{key}={text}: a number")
    return int(text)


def _word(options: dict[str, str], key: str, words: Sequence[str]) -> str:
    word = options.get(key, words[0])
    if word not in words:
        raise Error("E_OPTION", f"{key}={word}: {' or '.join(words)}")
    return word
