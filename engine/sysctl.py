"""The knobs of net.isr, net.pktqueue, net.link.epair, dev.netmap and dev.pktring: their names, ranges and refusals are the BSDs'.

Pure rules: a Backend has the values, this file decides what may be written to them. netisr(9), pktqueue(9), epair(4), netmap(4);
NetBSD's sysctl(3) says ENOENT where a name is unknown, and so does a hash. What a knob does here stands beside it.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pktring.shm.errors import Error

from . import rps

Value = int | str
ERRNO = dict(errno.errorcode) | {errno.EOPNOTSUPP: "EOPNOTSUPP"}  # Linux has two names for it, this one is the BSDs'
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
MAX_TEXT = 20  # the kernel's buffer for the name of a dispatch policy, with its NUL
QLIMIT_MAX = 65536  # slots of a lane
PKTQ_MAXLEN_MAX = 65535  # PCQ_MAXLEN
QUEUE, ANY_QUEUE = "net.pktqueue.", "net.pktqueue.<name>."

# By a knob's access: with which errno a write is refused, and why. Whatever is not here may be written.
REFUSED = {
    "boot": (errno.EPERM, "set only when the engine starts, in [sysctl] of its configuration"),
    "read": (errno.EPERM, "read only"),
    "table": (errno.EINVAL, "a table, read only"),
    "foreign": (errno.EOPNOTSUPP, "without a meaning here"),
}


@dataclass(frozen=True)
class Knob:
    """`does`: what a write does; where writes are refused, why. `default` is the BSD's; its type is the knob's (None: a table)."""

    name: str
    access: str  # rw (at boot too), boot, read, table, foreign (readable, without a meaning here)
    default: Value | None
    does: str
    low: int = INT_MIN
    high: int = INT_MAX
    words: tuple[str, ...] = ()
    unknown: int = errno.EINVAL  # of a word that is none of `words`


def _foreign(why: str, **defaults: int) -> list[Knob]:
    return [Knob(f"dev.netmap.{name}", "foreign", value, why) for name, value in defaults.items()]


def _requested(prefix: str, why: str, *sizes: int) -> list[Knob]:
    """The sizes of a netmap memory's three kinds of objects: if, ring, buf."""
    names = [f"{prefix}{thing}_{what}" for thing in ("if", "ring", "buf") for what in ("size", "num")]
    return _foreign(why, **dict(zip(names, sizes, strict=True)))


_SIZES = "memory is made when the engine starts: set [engine] slots, buffers, buffer_size in the configuration and restart"
_PRIVATE = "every region here is made to the measure of its ports: use ?slots= of a port"
_OPENING = {"admode": 0, "generic_ringsize": 1024, "generic_rings": 1}
_KERNEL = "it steers netmap's kernel module, and there is none here"

KNOBS: dict[str, Knob] = {
    knob.name: knob
    for knob in [
        Knob("net.isr.dispatch", "rw", "direct", "the policy of protocols that have none", words=("deferred", "hybrid", "direct")),
        Knob("net.isr.maxthreads", "boot", 1, "workers at most, -1: one a CPU; here as many as [engine] workers says"),
        Knob("net.isr.bindthreads", "boot", 0, "nonzero: each worker is bound to its CPU; here so unless 0 is said"),
        Knob("net.isr.maxqlimit", "boot", 10240, "the most that a queue's limit can be", low=1, high=QLIMIT_MAX),
        Knob("net.isr.defaultqlimit", "boot", 256, "the limit of queues that are registered with none", low=1),
        Knob("net.isr.maxprot", "read", 16, "protocols that there can be: a constant"),
        Knob("net.isr.numthreads", "read", 0, "workers that run"),
        Knob("net.isr.proto", "table", None, "the protocols: `pktring stat -Q`"),
        Knob("net.isr.workstream", "table", None, "the workstreams: `pktring stat -Q`"),
        Knob("net.isr.work", "table", None, "what each workstream did of each protocol: `pktring stat -Q`"),
        Knob("net.link.epair.netisr_maxqlen", "rw", 2100, "the limit of epair's queues: 42 x ifqmaxlen", low=1),
        Knob("net.pktqueue.rps_hash", "rw", rps.DEFAULT, "which CPU a frame goes to", words=rps.ROUTINES, unknown=errno.ENOENT),
        Knob(f"{ANY_QUEUE}len", "read", 0, "frames that wait, markers not counted"),
        Knob(f"{ANY_QUEUE}maxlen", "rw", 256, "the limit of each CPU's queue", low=1, high=PKTQ_MAXLEN_MAX),
        Knob(f"{ANY_QUEUE}drops", "read", 0, "frames that found it full"),
        Knob("dev.pktring.workers", "rw", 0, "workers that get frames, live: the others run and rest", low=1),
        Knob("dev.netmap.generic_mit", "rw", 100_000, "ns for which a doorbell may wait for more frames", low=0, high=10**9),
        *_requested("", _SIZES, 1024, 100, 36864, 200, 2048, 163840),
        *_requested("priv_", _PRIVATE, 1024, 2, 20480, 4, 2048, 4098),
        *(Knob(f"dev.netmap.{thing}_curr_{n}", "read", 0, _SIZES) for thing in ("if", "ring", "buf") for n in ("size", "num")),
        *_foreign("ports are opened when the engine starts: name a driver, slots and rings in [port.NAME]", **_OPENING),
        *_foreign("frames that apps mark are not passed on to the host by this version", fwd=0),
        *_foreign("workers look for frames each turn anyway", no_pendintr=1, txsync_retry=2),
        *_foreign("a burst is [engine] burst frames", bridge_batch=1024),
        *_foreign("each frame has its own time stamp, by the kernel", no_timestamp=0),
        *_foreign("checksums are always right when a frame leaves", generic_hwcsum=0),
        *_foreign(_KERNEL, verbose=0, generic_txqdisc=1, ptnet_vnet_hdr=1, port_numa_affinity=0, max_bridges=8),
    ]
}


class SysctlError(Error):
    """E_SYSCTL, with the BSD's `errno`."""

    def __init__(self, name: str, number: int, why: str):
        super().__init__("E_SYSCTL", f"{name}: {why} ({ERRNO[number]})")
        self.errno = number


class Backend(Protocol):
    """Who has the values. `get` of a table returns its rows; `set` gets nothing that the rules refuse."""

    def get(self, name: str) -> Any: ...
    def set(self, name: str, value: Value) -> None: ...
    def queues(self) -> Sequence[str]:
        """The names of the pktqueues there are."""


class Sysctl:
    """Read and write knobs of a running engine by name."""

    def __init__(self, backend: Backend):
        self._backend = backend

    def names(self, prefix: str = "") -> list[str]:
        """The knobs there are; those below `prefix` ("net.isr"), or the one that it names. Raises SysctlError (ENOENT)."""
        every = [name for name in KNOBS if not name.startswith(ANY_QUEUE)]
        of_queues = [k.removeprefix(ANY_QUEUE) for k in KNOBS if k.startswith(ANY_QUEUE)]
        every += [f"{QUEUE}{queue}.{leaf}" for queue in self._backend.queues() for leaf in of_queues]
        under = [name for name in every if not prefix or name == prefix or name.startswith(prefix.removesuffix(".") + ".")]
        if not under:
            raise _no_such(prefix, every)
        return sorted(under)

    def get(self, name: str) -> Any:
        """The value of a knob: a number, a word, or the rows of a table. Raises SysctlError (ENOENT)."""
        knob = find(name, self._backend.queues())
        return knob.default if knob.access == "foreign" or name == "net.isr.maxprot" else self._backend.get(name)

    def read(self, prefix: str = "") -> dict[str, Any]:
        """Every knob of `names(prefix)` with its value."""
        return {name: self.get(name) for name in self.names(prefix)}

    def set(self, name: str, value: Value) -> tuple[Value, Value]:
        """Write a knob; a number may be text ("0x10", "4k"). -> (old, new).

        Raises SysctlError, and then the old value stays: ENOENT no such knob or hash, EINVAL out of range, EPERM only at boot or
        never, EOPNOTSUPP it has no meaning here.
        """
        knob = find(name, self._backend.queues())
        if knob.access in REFUSED:
            raise _refused(knob, name)
        new = value_of(knob, name, value)
        if (most := CEILING.get(name)) and int(new) > (limit := self._backend.get(most)):
            raise SysctlError(name, errno.EINVAL, f"{new} is more than {most}: give 1 to {limit}")
        old = self._backend.get(name)
        if new != old:
            self._backend.set(name, new)
        return old, new


CEILING = {"net.link.epair.netisr_maxqlen": "net.isr.maxqlimit", "dev.pktring.workers": "net.isr.numthreads"}


def find(name: str, queues: Sequence[str] = ()) -> Knob:
    """The knob of this name. Raises SysctlError (ENOENT, with the nearest name)."""
    queue, _, leaf = name.removeprefix(QUEUE).rpartition(".")
    if name.startswith(QUEUE) and queue and (knob := KNOBS.get(ANY_QUEUE + leaf)):
        if queue in queues:
            return knob
        raise _no_such(name, [f"{QUEUE}{known}.{leaf}" for known in queues])
    if name not in KNOBS or name.startswith(ANY_QUEUE):
        raise _no_such(name, list(KNOBS))
    return KNOBS[name]


def value_of(knob: Knob, name: str, value: Value) -> Value:
    """The value that a write of `value` means, by type and range. Raises SysctlError."""
    if knob.words:
        return _word(knob, name, value)
    number = _integer(value) if isinstance(value, str) else int(value)
    if number is None:
        raise SysctlError(name, errno.EINVAL, f"{_cut(value)} is not a number: write one such as 256, 0x100 or 1k")
    if not max(knob.low, INT_MIN) <= number <= min(knob.high, INT_MAX):
        shown = number if abs(number) < 2**64 else "it"
        raise SysctlError(name, errno.EINVAL, f"{shown} is out of range: give {knob.low} to {knob.high}")
    return number


def _word(knob: Knob, name: str, value: Value) -> str:
    if isinstance(value, str) and value in knob.words:
        return value
    number = errno.EINVAL if not isinstance(value, str) or len(value) >= MAX_TEXT else knob.unknown
    raise SysctlError(name, number, f"{_cut(value)} is none of its values: write {', '.join(knob.words)}")


_NUMBER = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})([kMG]?)", re.ASCII)
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def _integer(text: str) -> int | None:
    """Read a number as strtol(3) with base 0 does, and our suffixes."""
    found = _NUMBER.fullmatch(text.strip())
    if not found:
        return None
    sign, digits, suffix = found.groups()
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] not in "xX"
    try:
        size = int(digits, 8 if octal else 0)
    except ValueError:
        return None
    return (-size if sign == "-" else size) * _SCALE[suffix]


def _cut(value: object) -> str:
    return repr(value if len(value) <= 40 else value[:37] + "...") if isinstance(value, str) else f"{type(value).__name__} as such"


def _refused(knob: Knob, name: str) -> SysctlError:
    number, why = REFUSED[knob.access]
    return SysctlError(name, number, f"{why}: {knob.does}")


def _no_such(name: str, known: Sequence[str]) -> SysctlError:
    near = difflib.get_close_matches(name[:80], known, 1, 0.5)
    return SysctlError(_cut(name)[1:-1], errno.ENOENT, "no such knob: " + (f"did you mean {near[0]}?" if near else "see `pktring sysctl`"))


# ---- when the engine starts ----


def boot_value(name: str, value: object, queues: Sequence[str] = ()) -> Value:
    """Check one setting of [sysctl]: what may be set at boot, by the rules of a write. Raises SysctlError."""
    knob = find(name, queues)
    if knob.access in REFUSED and knob.access != "boot":
        raise _refused(knob, name)
    if not isinstance(value, int | str):
        raise SysctlError(name, errno.EINVAL, "neither a number nor text: give one of them")
    return value_of(knob, name, value)


def boot(settings: Mapping[str, Value], ncpu: int, workers: int | None = None) -> tuple[dict[str, Value], list[str]]:
    """Settle checked settings of [sysctl] as netisr_init does. -> (every knob that can be set at boot, messages).

    `workers`: how many [engine] asks for, which then are the default of maxthreads, each bound to its CPU; None: the BSD's defaults.
    """
    values = {name: knob.default for name, knob in KNOBS.items() if _at_boot(knob) and knob.default is not None} | dict(settings)
    messages: list[str] = []

    def force(name: str, value: int) -> None:
        if value != values[name]:
            messages.append(f"{name}: forced from {values[name]} to {value}")
            values[name] = value

    if workers is not None:
        values |= {"net.isr.maxthreads": workers, "net.isr.bindthreads": 1} | dict(settings)
    if workers is None or "net.isr.maxthreads" in settings:
        asked = int(values["net.isr.maxthreads"])
        values["net.isr.maxthreads"] = ncpu if asked == -1 else max(asked, 1)
        force("net.isr.maxthreads", min(int(values["net.isr.maxthreads"]), ncpu))
    for name in ("net.isr.defaultqlimit", "net.link.epair.netisr_maxqlen"):  # registration caps where a write refuses
        force(name, min(int(values[name]), int(values["net.isr.maxqlimit"])))
    running = int(values["net.isr.maxthreads"])
    values["dev.pktring.workers"] = values["dev.pktring.workers"] or running
    force("dev.pktring.workers", min(int(values["dev.pktring.workers"]), running))
    return values, messages


def _at_boot(knob: Knob) -> bool:
    return knob.access in ("rw", "boot") and not knob.name.startswith(ANY_QUEUE)
