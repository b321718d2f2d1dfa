"""The messages of the control socket, as bytes: every one has the same size, whatever it says. Rules without I/O, then the I/O, thin.

    0        4       6       8       12      16        24       32      56         64                          4096
    | magic  | major | minor | flags | length| request | layout | verb  | zero     | JSON, `length` bytes | zero |

The first eight bytes mean the same in every version for ever, so that both sides can say which two versions met. A body that does not fit
is in a sealed memfd, the first descriptor of the message: nobody can cut it short while it is read. Nothing that arrives is believed:
sizes, padding, UTF-8, JSON's depth, the number of descriptors, the seals (see the CVEs of vhost-user: 2018-1059, 2019-14818, 2020-10726).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..shm import _shm
from ..shm.errors import Error

MAGIC = int.from_bytes(b"prCT", "little")
MAJOR, MINOR = 1, 0
MESSAGE = 4096
HEADER = struct.Struct("<IHHIIQQ24s8s")
VERSION = struct.Struct("<IHH")
ROOM = MESSAGE - HEADER.size
MAX_FDS = 4  # that a caller may send
MAX_ANSWER_FDS = 128  # a memory and a bell for each worker
MAX_REQUEST = 1 << 18  # bytes of a body in a memfd: some milliseconds of parsing
MAX_ANSWER = 1 << 26
DEPTH = 32  # of a body's lists and dicts

ANSWER, REFUSED, IN_MEMFD = 1, 2, 4  # flags
FLAGS = ANSWER | REFUSED | IN_MEMFD

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
MFD_NOEXEC_SEAL = 0x0008  # Linux 6.3


@dataclass(frozen=True)
class Message:
    """One, taken apart. `raw` is the body's JSON, empty when it is in a memfd."""

    flags: int
    request: int
    layout: int
    verb: str
    raw: bytes


# ---- rules ----


def encode(verb: str, raw: bytes, *, request: int, flags: int = 0) -> bytes:
    """The bytes of a message; `raw` has at most ROOM bytes."""
    name = verb.encode("ascii")
    if len(raw) > ROOM or len(name) > 24:
        raise ValueError(f"{len(raw)} bytes of body, {len(name)} of verb: at most {ROOM} and 24")
    head = HEADER.pack(MAGIC, MAJOR, MINOR, flags, len(raw), request, _shm.LAYOUT_HASH, name, b"")
    return (head + raw).ljust(MESSAGE, b"\0")


def decode(data: bytes) -> Message:
    """Take a message apart. Raises E_ABI (another major version), E_CTRL_MSG."""
    if len(data) < VERSION.size:
        bad(f"bad length {len(data)}")
    magic, major, minor = VERSION.unpack_from(data)
    if magic != MAGIC:
        bad(f"bad magic {magic:08x}")
    if major != MAJOR:
        raise Error("E_ABI", f"control version {major}.{minor} there, {MAJOR}.{MINOR} here: run the same pktring on both sides")
    if len(data) != MESSAGE:
        bad(f"bad length {len(data)}" if len(data) < MESSAGE else f"bad length, over {MESSAGE}")
    _, _, _, flags, length, request, layout, verb, zero = HEADER.unpack_from(data)
    if flags & ~FLAGS or any(zero):
        bad(f"unknown flags {flags:x}")
    if length > (0 if flags & IN_MEMFD else ROOM):
        bad(f"bad length {length} of the body")
    if data[HEADER.size + length :].strip(b"\0"):
        bad("something behind the body")
    return Message(flags, request, layout, _verb(verb), data[HEADER.size : HEADER.size + length])


def _verb(padded: bytes) -> str:
    name = padded.rstrip(b"\0")
    if not name or not all(0x61 <= c <= 0x7A or c in b"_-.0123456789" for c in name):
        bad(f"bad verb {name!r}")
    return name.decode()


def dumps(body: dict[str, Any]) -> bytes:
    """A body as bytes."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def refusal(why: Error) -> bytes:
    """A refusal as bytes, whatever its text is: a character may need six of them."""
    body = {"code": why.code, "text": why.text[: ROOM // 8]}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def loads(raw: bytes) -> dict[str, Any]:
    """A body from bytes. Raises E_CTRL_MSG."""
    try:
        body = json.loads(raw.decode(), parse_constant=_no_constant, parse_float=_finite) if raw else {}
        if b"\\u" in raw:
            json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair would trip up whoever prints it
    except (ValueError, RecursionError) as why:
        bad(f"no JSON: {type(why).__name__}")
    if not isinstance(body, dict):
        bad("the body is no object")
    if _deeper(body, DEPTH):
        bad(f"the body is more than {DEPTH} deep")
    return body


def _no_constant(word: str) -> NoReturn:
    raise ValueError(word)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _deeper(value: object, left: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner: Iterable[object] = value.values() if isinstance(value, dict) else value
    return left == 0 or any(_deeper(one, left - 1) for one in inner)


def bad(why: str) -> NoReturn:
    """Refuse a message."""
    raise Error("E_CTRL_MSG", f"{why}: not a control message of pktring")


# ---- descriptors ----


def closed(fds: Iterable[int]) -> None:
    """Close them all."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def sealed(raw: bytes) -> int:
    """A memfd that holds `raw` for ever. Raises OSError."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("pktring-body", flags | MFD_NOEXEC_SEAL)
    except OSError as why:
        if why.errno != errno.EINVAL:
            raise
        fd = os.memfd_create("pktring-body", flags)
    try:
        left = memoryview(raw)
        while left:
            left = left[os.write(fd, left) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        return fd
    except BaseException:
        os.close(fd)
        raise


def unsealed(fd: int, most: int) -> bytes:
    """What a sealed memfd holds, at most `most` bytes. Raises E_CTRL_MSG.

    Asking for the seals comes first: it fails on anything but a memfd, and never waits, as reading a pipe or a FUSE file might.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if seals & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE) != fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE:
            bad("a body that is not sealed")
        size = os.fstat(fd).st_size
        if size > most:
            bad(f"bad length {size} of the body")
        return os.pread(fd, size, 0)
    except OSError as why:
        bad(f"a body that cannot be read ({why.strerror})")


# ---- the socket ----


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message, whole or not at all. Raises OSError: BlockingIOError, BrokenPipeError ..."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, room: int = MAX_FDS) -> tuple[bytes, list[int]]:
    """The next message and its descriptors; b"" at the end. Raises BlockingIOError, E_CTRL_MSG (too many: all are closed).

    With `room` 0 the kernel drops the descriptors before they become ours: then no number of them fills our table, and the file of a
    hostile file system is not even flushed by us.
    """
    space = socket.CMSG_SPACE(room * 4) if room else 0
    try:
        data, notes, flags, _ = sock.recvmsg(MESSAGE + 1, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:  # it hung up with something of ours unread; said once, before its last words
        data, notes, flags, _ = sock.recvmsg(MESSAGE + 1, space, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, rights in notes:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(rights[: len(rights) // 4 * 4])
    if flags & socket.MSG_CTRUNC:
        closed(fds)
        bad(f"more than {room} descriptors")
    return data, list(fds)  # cut by the kernel (MSG_TRUNC): one byte too long, so `decode` refuses it
