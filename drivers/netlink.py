"""Plain netlink(7) sockets that speak pyroute2's messages: opened in a namespace, pollable, closed when we say.

pyroute2 encodes and decodes; the socket is ours because its life has a meaning here: a watch is a descriptor that C code polls, and a
table of nf_tables dies with the socket that made it. (pyroute2's own sockets run an event loop, make one descriptor a thread, and fork to
enter a namespace.)

Importing this costs 0.15 s, nearly all of it pyroute2: import it inside the function that needs it.
"""

import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.marshal import Marshal
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from pktring.drivers.netns import entered

Message = Any  # a pyroute2 nlmsg: untyped, a dictionary with an `attrs` chain

SOL_NETLINK = 270
EXT_ACK, GET_STRICT_CHK = 11, 12  # linux/netlink.h
FLAGS_AND_SEQUENCE = struct.Struct("=6xHI")  # of nlmsghdr
LARGEST = 1 << 16
TIMEOUT_S = 5.0

_sequence = itertools.count(1)


def opened(protocol: int, groups: int = 0, netns: str | None = None) -> socket.socket:
    """Open a netlink socket of `protocol` in the namespace `netns`, subscribed to the multicast `groups` (a bit mask)."""
    with entered(netns):
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    for option in (EXT_ACK, GET_STRICT_CHK):
        sock.setsockopt(SOL_NETLINK, option, 1)
    sock.settimeout(TIMEOUT_S)  # the kernel answers inside sendmsg(2): this deadline only guards against a lost answer
    sock.bind((0, groups))
    return sock


def adopted(fd: int) -> socket.socket:
    """Go on with a socket that a process which is dead by now had opened. An answer it did not live to read is not for us."""
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sock.recv(1):
            pass
    sock.settimeout(TIMEOUT_S)
    return sock


def encoded(message: Message, kind: int, flags: int) -> bytes:
    """Turn a pyroute2 message into the bytes of a request; with NLM_F_ACK in `flags` the kernel answers even when all is well."""
    message["header"].update(type=kind, flags=flags | NLM_F_REQUEST, sequence_number=next(_sequence), pid=0)
    message.encode()
    return bytes(message.data)


def ask(sock: socket.socket, message: Message, kind: int, *, dump: bool = False, marshal: Marshal | None = None) -> list[Message]:
    """Send one request and return what the kernel answers. Raises OSError with the kernel's number and its own words for it.

    `marshal` knows the messages of the answer (those of rtnetlink).
    """
    return list(_answers(sock, [encoded(message, kind, NLM_F_DUMP if dump else NLM_F_ACK)], marshal or MarshalRtnl()))


def transact(sock: socket.socket, requests: Sequence[bytes]) -> None:
    """Send requests as one batch and wait until each that asks for it is acknowledged. Raises OSError on the first refusal."""
    for _ in _answers(sock, requests, Marshal()):
        pass


def _answers(sock: socket.socket, requests: Sequence[bytes], marshal: Marshal) -> Iterator[Message]:
    asked = {sequence: flags for flags, sequence in map(FLAGS_AND_SEQUENCE.unpack_from, requests)}
    waiting = {sequence for sequence, flags in asked.items() if flags & (NLM_F_ACK | NLM_F_DUMP)}
    sock.send(b"".join(requests))
    while waiting:
        for message in marshal.parse(sock.recv(LARGEST)):
            sequence = message["header"]["sequence_number"]
            if sequence not in asked:
                continue  # the rest of what an earlier request was answered, that was refused
            if message["header"]["type"] not in (NLMSG_ERROR, NLMSG_DONE):
                yield message
                continue
            _refuse(message)
            waiting.discard(sequence)


def _refuse(message: Message) -> None:
    if number := abs(message.get("error") or 0):
        words = message.get_attr("NLMSGERR_ATTR_MSG") or os.strerror(number)
        raise OSError(number, words)
