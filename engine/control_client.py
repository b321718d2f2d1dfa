"""Asking a controller something, with a deadline: it may be dead, stopped, busy, or of another version."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from ..shm.errors import Error
from . import control_wire as wire
from .rundir import address, data_path

TIMEOUT_S = 5.0
SLICE_S = 0.25  # of waiting for room in the queue of those who call


class Client:
    """A connection to the controller that listens at `path`, made when first needed and again when the controller closed it in between.

    No call takes longer than `timeout_s`. A context manager.
    """

    def __init__(self, path: str, timeout_s: float = TIMEOUT_S):
        self.path = path
        self.timeout_s = timeout_s
        self._sock: socket.socket | None = None
        self._request = 0

    def call(self, verb: str, /, *, send_fds: Sequence[int] = (), **body: Any) -> tuple[dict[str, Any], list[int]]:
        """Ask; the answer, and the descriptors that came with it, which are the caller's to close.

        Raises what the controller refuses with, E_NO_CONTROLLER (dead or silent), E_NO_ENGINE, E_PERM, E_ABI, E_CTRL_MSG.
        """
        deadline = time.monotonic() + self.timeout_s
        self._request += 1
        data, made = _packed(verb, body, self._request)
        try:
            while True:
                sock = self._open(deadline)
                try:
                    return self._ask(sock, data, [*made, *send_fds], deadline)
                except Refused:
                    raise
                except BaseException as why:
                    self.close()  # what comes now would be taken for the answer to another question
                    if not isinstance(why, Error) or why.code != "E_BUSY" or time.monotonic() >= deadline:
                        raise
                # The crowd pushed us out before we were heard.
        finally:
            wire.closed(made)

    def fileno(self) -> int:
        """Readable when the controller is gone, between calls. For an app that stays attached; raises OSError before the first call."""
        return self._sock.fileno() if self._sock else -1

    def close(self) -> None:
        """Hang up. An attached app is an app no more."""
        if self._sock:
            self._sock.close()
            self._sock = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- one question ----

    def _ask(self, sock: socket.socket, data: bytes, fds: Sequence[int], deadline: float) -> tuple[dict[str, Any], list[int]]:
        try:
            sock.settimeout(_left(deadline))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # turned away: the reason may have come already
                wire.send(sock, data, fds)
            while True:
                sock.settimeout(_left(deadline))
                answer, got = wire.receive(sock, wire.MAX_ANSWER_FDS)
                if not answer:
                    raise self._nobody("hung up")
                message = _answer(answer, got)
                if message.request in (self._request, 0):  # 0: turned away before it was read
                    return _taken_apart(message, got)
                wire.closed(got)
        except TimeoutError:
            raise self._nobody(f"did not answer within {self.timeout_s:g} s") from None
        except OSError as why:
            raise self._nobody(why.strerror or str(why)) from None

    # ---- the connection ----

    def _open(self, deadline: float) -> socket.socket:
        if self._sock and select.select([self._sock], [], [], 0)[0]:
            self.close()  # idle for too long, or the controller was replaced
        while not self._sock:
            self._sock = self._connected(deadline)
        return self._sock

    def _connected(self, deadline: float) -> socket.socket | None:
        """None: the queue is full, and the time for waiting is not over."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._nobody(f"did not answer within {self.timeout_s:g} s")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            # Without a limit of the kernel's own, connect(2) waits for ever for a place in the queue of a stopped controller.
            wait_us = int(min(left, SLICE_S) * 1e6) + 1
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", *divmod(wait_us, 10**6)))
            with address(self.path) as short:
                sock.connect(short)
            sock.getpeername()  # a signal may have cut connect(2) short
            return sock
        except BlockingIOError:
            sock.close()
            return None
        except PermissionError:
            sock.close()
            raise Error("E_PERM", f"may not connect to {self.path}: be a member of its group, or root") from None
        except FileNotFoundError:
            sock.close()
            if not os.path.isdir(os.path.dirname(self.path)):
                raise Error("E_NO_ENGINE", f"name={self._name}: no such engine here: see `pktring ps`") from None
            raise self._nobody("is not there") from None
        except OSError as why:
            sock.close()
            raise self._nobody(f"is gone ({why.strerror})") from None

    @property
    def _name(self) -> str:
        return os.path.basename(os.path.dirname(self.path))

    def _nobody(self, what: str) -> Error:
        up = " (data path still up)" if data_path(os.path.dirname(self.path)) else ""
        return Error("E_NO_CONTROLLER", f"name={self._name}{up}: its controller {what}: try again in a moment, or see `pktring ps`")


class Refused(Error):
    """The controller's own words; the connection is as good as before."""


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _packed(verb: str, body: dict[str, Any], request: int) -> tuple[bytes, list[int]]:
    raw = wire.dumps(body)
    if len(raw) <= wire.ROOM:
        return wire.encode(verb, raw, request=request), []
    if len(raw) > wire.MAX_REQUEST:
        raise Error("E_CTRL_MSG", f"{verb} with {len(raw)} bytes: at most {wire.MAX_REQUEST}")
    return wire.encode(verb, b"", request=request, flags=wire.IN_MEMFD), [wire.sealed(raw)]


def _answer(data: bytes, fds: list[int]) -> wire.Message:
    try:
        message = wire.decode(data)
        if not message.flags & wire.ANSWER or (message.flags & wire.IN_MEMFD and not fds):
            wire.bad("no answer")
        return message
    except Error:
        wire.closed(fds)
        raise


def _taken_apart(message: wire.Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
    try:
        raw = wire.unsealed(fds[0], wire.MAX_ANSWER) if message.flags & wire.IN_MEMFD else message.raw
        body = wire.loads(raw)
        if message.flags & wire.REFUSED:
            raise (Refused if message.request else Error)(str(body.get("code")), str(body.get("text")))
    except Error:
        wire.closed(fds)
        raise
    if message.flags & wire.IN_MEMFD:
        os.close(fds.pop(0))
    return body, fds
