"""netisr's tables as people and programs read them: rows (N-M1 to N-M5), netstat -Q's text and libxo's keys (N-M6, N-M7), ddb's view.

Pure: from rows to text. A row is a dict by the field names of sys/net/netisr.h's sysctl structs without their prefixes; `version` is
the struct's size, which is how the BSD tells its versions apart; our own counters come behind the BSD's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from .netisr_rules import DISPATCHES, DRAINEDCPU, M2CPUID, M2FLOW, POLICIES, word

Row = dict[str, Any]
Tables = dict[str, list[Row]]
OURS = ("purged", "crashed")  # keys of a work row that netisr(9) does not have

# struct sysctl_netisr_proto, _workstream, _work: 'x' are spare fields, which are zero.
STRUCTS = {
    "protocol": (struct.Struct("=I32s5I24x"), ("version", "name", "proto", "qlimit", "policy", "flags", "dispatch")),
    "workstream": (struct.Struct("=4I48x"), ("version", "flags", "wsid", "cpu")),
    "work": (
        struct.Struct("=5I12x5Q56x"),
        ("version", "wsid", "proto", "len", "watermark", "dispatched", "hybrid_dispatched", "qdrops", "queued", "handled"),
    ),
}
HAS_WORKER = 1  # flag of a workstream


def pack(table: str, row: Mapping[str, Any]) -> bytes:
    """One row as the BSD's sysctl would hand it out."""
    layout, fields = STRUCTS[table]
    return layout.pack(*(row[f].encode() if f == "name" else row[f] for f in fields))


def unpack(table: str, data: bytes) -> Row:
    """The row in `data`. Raises ValueError when it is of another version: a reader must not guess."""
    layout, fields = STRUCTS[table]
    version = struct.unpack_from("=I", data)[0] if len(data) >= 4 else 0
    if len(data) != layout.size or version != layout.size:
        raise ValueError(f"a row of {table} in {len(data)} bytes, version {version}: this reader knows version {layout.size}")
    row = dict(zip(fields, layout.unpack(data), strict=True))
    return row | ({"name": row["name"].rstrip(b"\0").decode()} if "name" in row else {})


def json(tables: Tables) -> dict[str, list[Row]]:
    """{"protocols": ..., "workstreams": [{..., "work": ...}]}: the keys of netstat -Q --libxo in each row, and OURS.

    "policy" is the dispatch policy there, and "policy-type" what places frames.
    """
    names = {p["proto"]: p["name"] for p in tables["protocol"]}
    cpus = {w["wsid"]: w["cpu"] for w in tables["workstream"]}
    work: dict[int, list[Row]] = {wsid: [] for wsid in cpus}
    for row in tables["work"]:
        work[row["wsid"]].append(
            {
                "workstream": row["wsid"],
                "cpu": cpus[row["wsid"]],
                "name": names[row["proto"]],
                "length": row["len"],
                "watermark": row["watermark"],
                "dispatched": row["dispatched"],
                "hybrid-dispatched": row["hybrid_dispatched"],
                "queue-drops": row["qdrops"],
                "queued": row["queued"],
                "handled": row["handled"],
            }
            | {key: row[key] for key in OURS if key in row}
        )
    return {
        "protocols": [_protocol(p) for p in tables["protocol"]],
        "workstreams": [{"workstream": wsid, "cpu": cpu, "work": work[wsid]} for wsid, cpu in cpus.items()],
    }


def _protocol(row: Row) -> Row:
    return {
        "name": row["name"],
        "protocol": row["proto"],
        "queue-limit": row["qlimit"],
        "policy-type": word(row["policy"], POLICIES),
        "policy": word(row["dispatch"], DISPATCHES),
        "flags": flags(row["flags"]),
    }


def libxo(tables: Tables) -> dict[str, dict[str, list[Row]]]:
    """What `netstat -Q --libxo json` prints, with OURS (N-M7)."""
    found = json(tables)
    return {"netisr": {"protocol": found["protocols"], "workstream": found["workstreams"]}}


def flags(bits: int) -> str:
    """C m2cpuid, D drainedcpu, F m2flow; '-' where there is none."""
    return "".join(letter if bits & bit else "-" for letter, bit in (("C", M2CPUID), ("D", DRAINEDCPU), ("F", M2FLOW)))


def text(tables: Tables, settings: Mapping[str, Any]) -> str:
    """What `netstat -Q` prints, with `settings` of Netisr.settings() (N-M6)."""
    found = json(tables)
    bound = "enabled" if settings["bindthreads"] else "disabled"
    config: Sequence[tuple[str, Any, Any]] = (
        ("Setting", "Current", "Limit"),
        ("Thread count", settings["numthreads"], settings["maxthreads"]),
        ("Default queue limit", settings["defaultqlimit"], settings["maxqlimit"]),
        ("Dispatch policy", settings["dispatch"], "n/a"),
        ("Threads bound to CPUs", bound, "n/a"),
    )
    works = [row for stream in found["workstreams"] for row in stream["work"]]
    lines = ["Configuration:", *("{:<25} {:>12} {:>12}".format(*row) for row in config)]
    lines += ["", "Protocols:", "Name   Proto QLimit Policy Dispatch Flags", *map(_protocol_line, found["protocols"])]
    lines += ["", "Workstreams:", "WSID CPU   Name     Len WMark   Disp'd  HDisp'd   QDrops   Queued  Handled", *map(_work_line, works)]
    return "\n".join(lines) + "\n"


def _protocol_line(p: Row) -> str:
    return f"{p['name']:<6} {p['protocol']:>5} {p['queue-limit']:>6} {p['policy-type']:>6} {p['policy']:>8}   {p['flags']}"


def _work_line(w: Row) -> str:
    counts = " ".join(f"{w[key]:>8}" for key in ("dispatched", "hybrid-dispatched", "queue-drops", "queued", "handled"))
    return f"{w['workstream']:>4} {w['cpu']:>3}   {w['name']:<6} {w['length']:>5} {w['watermark']:>5} {counts}"


def ddb(tables: Tables) -> str:
    """The kernel debugger's `show netisr`: no Handled, and the limit as Max (N-M8)."""
    protocols = {p["proto"]: p for p in tables["protocol"]}
    cpus = {w["wsid"]: w["cpu"] for w in tables["workstream"]}
    lines = [f"{'CPU':>3} {'Proto':>6} {'Len':>5} {'WMark':>5} {'Max':>5} {'Disp':>8} {'HDisp':>8} {'Drop':>8} {'Queue':>8}"]
    for w in tables["work"]:
        counts = " ".join(f"{w[key]:>8}" for key in ("dispatched", "hybrid_dispatched", "qdrops", "queued"))
        p = protocols[w["proto"]]
        lines.append(f"{cpus[w['wsid']]:>3} {p['name']:>6} {w['len']:>5} {w['watermark']:>5} {p['qlimit']:>5} {counts}")
    return "\n".join(lines) + "\n"
