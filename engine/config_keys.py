"""The keys of a configuration: one table says what each may be, its default, and what it is for. Pure; config.py puts them together."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .sysctl import KNOBS

MAX_PORTS = 64  # PR_W_PORTS, PR_W_RULES of worker.h
MAX_RULES = 16
MAX_WORKERS = 64
MAX_PROTO = 15
NAMES = {"ip": 1, "igmp": 2, "route": 3, "arp": 4, "ether": 5, "ipv6": 6, "ip6": 6, "epair": 8, "ip-direct": 9, "ipv6-direct": 10}
BUILT_IN = ("forward", "mirror", "drop", "count")
WITH_PORT = ("forward", "mirror")  # forward:PORT, mirror or mirror:PORT
DISPATCH = KNOBS["net.isr.dispatch"].words


class Bad(ValueError):
    """Why a value is refused, and what would do."""


Reader = Callable[[Any], Any]  # a value as TOML has it -> ours; raises Bad
REQUIRED: Any = object()


@dataclass(frozen=True)
class Key:
    """A key of a table. `field`: what it is called in Python, where its own name is a word of the language."""

    name: str
    default: Any
    read: Reader
    text: str
    field: str = ""


def shown(value: object) -> str:
    """A value for a message: short, and whatever it is."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value) if isinstance(value, float) or abs(value) < 2**64 else "a huge number"
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else f"a {type(value).__name__}"


# ---- readers ----


def whole(low: int, high: int) -> Reader:
    """A whole number."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Bad(f"{shown(value)} is not a whole number from {low} to {high}")
        return int(value)

    return read


def seconds(low: float, high: float) -> Reader:
    """A time in seconds."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise Bad(f"{shown(value)} is not a time from {low:g} to {high:g} seconds")
        return float(value)

    return read


def word(pattern: str, what: str) -> Reader:
    """Text of one kind."""
    wanted = re.compile(pattern, re.ASCII)

    def read(value: Any) -> str:
        if not isinstance(value, str) or not wanted.fullmatch(value):
            raise Bad(f"{shown(value)} is not {what}")
        return str(value)

    return read


def choice(*words: str) -> Reader:
    """One of some words."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise Bad(f"{shown(value)} is none of {', '.join(words)}")
        return str(value)

    return read


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise Bad(f"{shown(value)} is neither true nor false")
    return value


def stride(value: Any) -> int:
    """The distance of buffers in a region."""
    size = whole(512, 65536)(value)
    if size % 64:
        raise Bad(f"{size} is not a multiple of 64")
    return int(size)


def printable(value: Any) -> str:
    """Any text of one line."""
    if not isinstance(value, str) or not value.isprintable():
        raise Bad(f"{shown(value)} is not text of one line")
    return str(value)


def workers(value: Any) -> tuple[int, ...] | int | str:
    """CPUs, a number of workers, or "auto"."""
    if value == "auto" and isinstance(value, str):
        return "auto"
    if isinstance(value, list | tuple):
        cpus = tuple(whole(0, 4095)(cpu) for cpu in value[: MAX_WORKERS + 1])
        if not 1 <= len(cpus) <= MAX_WORKERS:
            raise Bad(f"{len(value)} CPUs: name 1 to {MAX_WORKERS}")
        if twice := [cpu for cpu in cpus if cpus.count(cpu) > 1]:
            raise Bad(f"CPU {twice[0]} is named twice: there is one worker a CPU")
        return cpus
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_WORKERS:
        raise Bad(f'{shown(value)} is neither a list of CPUs, nor a number from 1 to {MAX_WORKERS}, nor "auto"')
    return int(value)


def options(value: Any) -> dict[str, str]:
    """Keys behind a port's `?`, as a table."""
    if not isinstance(value, dict):
        raise Bad(f"{shown(value)} is not a table of keys such as {{ slots = 512 }}")
    for key, inner in value.items():
        if not isinstance(key, str) or not re.fullmatch(r"\w{1,31}", key, re.ASCII):
            raise Bad(f"{shown(key)} is not a key of ports: see `pktring help ports`")
        if key in ("take", "queues"):
            raise Bad(f"{key} has a key of its own: {'take' if key == 'take' else 'rings'}")
        if not (isinstance(inner, int) and abs(inner) < 2**63 or isinstance(inner, str) and inner.isprintable()):
            raise Bad(f"{key} is neither text of one line, nor a number, nor true or false")
    return {key: str(int(inner)) if isinstance(inner, bool) else str(inner) for key, inner in value.items()}


def listen(value: Any) -> str:
    """HOST:PORT, a host with colons in brackets. Empty: nothing listens."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]{2,64}\]|[\w.-]{1,253}):([0-9]{1,5})", value, re.ASCII) if isinstance(value, str) else None
    if value != "" and not (found and int(found[2]) < 65536):
        raise Bad(f'{shown(value)} is not an address such as "127.0.0.1:9469"')
    return str(value)


def handler(value: Any) -> str:
    """module:qualname."""
    module, colon, name = value.partition(":") if isinstance(value, str) and len(value) <= 255 else ("", "", "")
    if not (colon and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))):
        raise Bad(f'{shown(value)} is not "module:function"')
    return str(value)


def any_handler(value: Any) -> str:
    """module:qualname, so:FILE:symbol, or one of ours with its port: the table in handlers.py."""
    kind, colon, rest = value.partition(":") if isinstance(value, str) and value.isprintable() and len(value) <= 4096 else ("", "", "")
    if kind == "so":
        file, _, symbol = rest.rpartition(":")
        right = bool(file) and symbol.isidentifier()
    elif kind in BUILT_IN:
        right = bool(rest) if colon else kind != "forward"
        right = right and (kind in WITH_PORT or not colon)
    else:
        return handler(value)
    if not right:
        raise Bad(f"{shown(value)} is no handler")
    return str(value)


def no_handler_or(value: Any) -> str:
    """module:qualname, or nothing."""
    return "" if value == "" else handler(value)


# ---- the table ----

_engine_name = word(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}", "a name of 1 to 31 letters, digits, - and _")
port_name = word(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}", "a name of 1 to 31 letters, digits, - _ and .")
_interface = word(r"[!-.0-9;->@-~]{1,15}|", "the name of an interface (1 to 15 characters): other ports are port = ...")
_protocol_name = word(r"[\x21-\x7e]{1,31}", "a name of 1 to 31 characters without a space")
_group = word(r"[A-Za-z0-9_.-]{0,32}\$?", "the name of a group")

TABLES: dict[str, tuple[Key, ...]] = {
    "engine": (
        Key("name", "default", _engine_name, "what `pktring --engine` calls it"),
        Key("workers", "auto", workers, 'CPUs such as [0, 1]; or how many; or "auto": every CPU this process may use'),
        Key("dispatch", "direct", choice(*DISPATCH), "net.isr.dispatch at start: deferred, hybrid or direct"),
        Key("strict_affinity", False, flag, "true: refuse to start where a worker cannot have its CPU (false: a warning)"),
        Key("orphan_timeout_s", 30.0, seconds(0.1, 86400), "how long workers go on without a controller"),
        Key("burst", 64, whole(1, 64), "frames that a worker handles at a time"),
        Key("slots", 1024, whole(2, 1 << 16), "slots of a ring, where a port does not say"),
        Key("buffers", 0, whole(0, (1 << 24) - 1), "buffers of the region, 0: as many as rings and queues need"),
        Key("buffer_size", 2048, stride, "bytes of a buffer, 256 of them headroom; in steps of 64", "stride"),
        Key("group", "pktring", _group, 'whose members may map the rings, if there is such a group; "" nobody'),
        Key("rss_key", "microsoft", choice("microsoft", "symmetric"), "Toeplitz key; symmetric: both ways of a connection to one worker"),
        Key("guests", False, flag, "true: every user of this machine may attach apps, which get copies in a memory of their own"),
        Key("yes", False, flag, "true: take even an interface by which this host is reached"),
    ),
    "port": (
        Key("interface", "", _interface, "an interface; or:"),
        Key("port", "", printable, 'any port name of `pktring help ports`, such as "tap:tap0"'),
        Key("rings", 1, whole(1, 64), "receive rings, spread over the workers"),
        Key("take", None, flag, "whether the host no longer sees what arrives (ports of [[forward]]: true; others: false)"),
        Key("options", {}, options, 'keys behind a port\'s `?`, such as { netns = "blue", slots = 512 }'),
    ),
    "forward": (
        Key("from", REQUIRED, port_name, "the [port] on which a frame arrives", "from_"),
        Key("to", REQUIRED, port_name, "the [port] that sends it"),
        Key("both", False, flag, "true: the other way too"),
        Key("filter", "", printable, 'pcap-filter(7); "" is every frame'),
    ),
    "mirror": (
        Key("from", REQUIRED, port_name, "the [port] whose frames are copied", "from_"),
        Key("to", REQUIRED, printable, 'a [port], or a port name such as "pcap:left.pcapng"'),
        Key("direction", "inout", choice("in", "out", "inout"), "in, out or inout, as the port sees them"),
        Key("filter", "", printable, 'pcap-filter(7); "" is every frame'),
    ),
    "protocol": (
        Key("name", REQUIRED, _protocol_name, "its name in `pktring stat -Q`"),
        Key(
            "handler",
            REQUIRED,
            any_handler,
            '"module:function", "so:FILE:symbol", "forward:PORT", "mirror", "mirror:PORT", "drop" or "count"',
        ),
        Key("policy", REQUIRED, choice("source", "flow", "cpu"), "which workstream: source, flow or cpu"),
        Key("proto", None, whole(0, MAX_PROTO), f"its number (known: {', '.join(f'{name} {n}' for name, n in NAMES.items())})"),
        Key("qlimit", 0, whole(0, 65536), "frames a workstream queues, 0: net.isr.defaultqlimit"),
        Key("dispatch", "default", choice("default", *DISPATCH), "default, deferred, hybrid or direct"),
        Key("m2flow", "", no_handler_or, '"module:function" that gives a frame its flow (policy flow)'),
        Key("m2cpuid", "", no_handler_or, '"module:function" that chooses the workstream (policy cpu)'),
        Key("drainedcpu", "", no_handler_or, '"module:function" that is called when a workstream has emptied its queue'),
    ),
    "metrics": (Key("listen", "", listen, 'where Prometheus asks, such as "127.0.0.1:9469"; "" nowhere'),),
}
ARRAYS = ("forward", "mirror", "protocol")
EVERY = (*TABLES, "sysctl")
