"""What netisr_register(9) takes and what it refuses: pure rules. The BSD asserts them, in kernels built for debugging; here they always
raise and nothing has changed (ids N-K*, N-R*, N-Q* in the tests).

    name       given, no white space; 31 bytes of it are kept       policy     source, flow or cpu
    handler    given                                                m2flow     only with flow, which may do without
    proto      0..15, not yet registered                            m2cpuid    with cpu, and only there
    qlimit     0 = the default; above the maximum = the maximum      dispatch   default, deferred, hybrid or direct
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from pktring.shm.errors import Error

from . import _engine

PROTOCOLS = {
    "ip": 1, "igmp": 2, "route": 3, "arp": 4, "ether": 5, "ipv6": 6, "epair": 8, "ip-direct": 9, "ipv6-direct": 10,
}  # fmt: skip
POLICIES = {"source": 1, "flow": 2, "cpu": 3}
DISPATCHES = {"default": 0, "deferred": 1, "hybrid": 2, "direct": 3}
M2FLOW, M2CPUID, DRAINEDCPU = 1, 2, 4  # flags of a registration
NO_CPU = 2**32 - 1
NAME_MAX = 31
MAXPROT: int = _engine.PR_NETISR_PUBLIC


class Refused(Error):
    """E_NETISR, with the BSD's `errno`."""

    def __init__(self, number: int, why: str):
        super().__init__("E_NETISR", f"{why} ({errno.errorcode[number]})")
        self.errno = number


@dataclass(frozen=True)
class Handler:
    """What netisr_register(9) is given. `handler` and the callbacks: whatever pktring.engine.handlers can load.

    `proto`: a number, or a name of PROTOCOLS, of which the number is kept. `policy`, `dispatch`: a name or the BSD's number.
    """

    name: str
    proto: Any
    handler: Any
    policy: str | int = "source"
    m2flow: Any = None
    m2cpuid: Any = None
    drainedcpu: Any = None
    qlimit: int = 0
    dispatch: str | int = "default"

    def __post_init__(self) -> None:
        if isinstance(self.proto, str):
            object.__setattr__(self, "proto", PROTOCOLS.get(self.proto, self.proto))

    def describe(self) -> dict[str, Any]:
        """Return the same as JSON can carry to another process, functions by their names. Raises E_HANDLER for one without a name."""
        from .handlers import importable_name

        given = {key: getattr(self, key) for key in ("handler", "m2flow", "m2cpuid", "drainedcpu")}
        names = {key: importable_name(value) if value else None for key, value in given.items()}
        return {f.name: getattr(self, f.name) for f in fields(self)} | names


class Registration(NamedTuple):
    """A handler's facts as the tables have them. `message`: what is to be told about it, "" = nothing."""

    proto: int
    name: str
    policy: int
    dispatch: int
    qlimit: int
    flags: int
    message: str = ""


def check(handler: Handler, taken: Mapping[int, str], default: int, maximum: int) -> Registration:
    """Return what is to be registered; `taken`: names by protocol number. Raises Refused: EINVAL, or EEXIST for a slot in use (N-R7)."""
    name = handler.name
    if not isinstance(name, str) or not name:
        raise Refused(errno.EINVAL, "a protocol needs a name")
    if name.split() != [name] or "\0" in name:
        raise Refused(errno.EINVAL, f"the name {name!r} has white space in it, or a zero: it becomes one word of the tables")
    if not handler.handler:
        raise Refused(errno.EINVAL, f"{name}: there is no handler")
    policy = _code(handler.policy, POLICIES, f"{name}: policy")
    dispatch = _code(handler.dispatch, DISPATCHES, f"{name}: dispatch")
    if handler.m2flow and policy != POLICIES["flow"]:
        raise Refused(errno.EINVAL, f"{name}: m2flow is for policy flow")
    if bool(handler.m2cpuid) != (policy == POLICIES["cpu"]):
        raise Refused(errno.EINVAL, f"{name}: m2cpuid and policy cpu go together")
    proto = number(handler.proto)
    qlimit, message = limit(name, handler.qlimit, default, maximum)
    if proto in taken:
        raise Refused(errno.EEXIST, f"{name}: protocol {proto} is registered as {taken[proto]}: unregister it first")
    flags = bool(handler.m2flow) * M2FLOW | bool(handler.m2cpuid) * M2CPUID | bool(handler.drainedcpu) * DRAINEDCPU
    return Registration(proto, short(name), policy, dispatch, qlimit, flags, message)


def number(proto: Any) -> int:
    """Return the number that a name or number means. Raises Refused (EINVAL)."""
    found = PROTOCOLS.get(proto, proto) if isinstance(proto, str) else proto
    if isinstance(found, str) or isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < MAXPROT:
        raise Refused(errno.EINVAL, f"protocol {proto!r} is none of 0 to {MAXPROT - 1}, {', '.join(PROTOCOLS)}")
    return found


def limit(name: str, qlimit: int, default: int, maximum: int) -> tuple[int, str]:
    """Return the limit that a registration gets, and what is to be said about it (N-R9)."""
    if isinstance(qlimit, bool) or not isinstance(qlimit, int) or qlimit < 0:
        raise Refused(errno.EINVAL, f"{name}: a queue of {qlimit!r} frames")
    if qlimit > maximum:
        return maximum, f"netisr_register: {name} requested queue limit {qlimit} capped to net.isr.maxqlimit {maximum}"
    return qlimit or default, ""


def short(name: str) -> str:
    """Cut a name to what the tables hold, between two characters (N-K4)."""
    return name.encode()[:NAME_MAX].decode(errors="ignore")


def _code(said: str | int, names: dict[str, int], what: str) -> int:
    code = names.get(said) if isinstance(said, str) else said
    if code is None or isinstance(code, bool) or code not in names.values():
        raise Refused(errno.EINVAL, f"{what} {said!r} is none of {', '.join(names)}")
    return code


def word(code: int, names: Mapping[str, int]) -> str:
    """The name of a policy's or dispatch's number."""
    return next((name for name, number in names.items() if number == code), str(code))
