"""netisr(9), counters and what monitors see: rows N-A, N-S and N-M of the specification."""

import json as json_module
import random
import struct

import pytest
from netisr_lab import Lab, numbered

from pktring.engine import netisr_tables
from pktring.engine.netisr import INTERNAL, NO_PORT, Refused, json, libxo, pack, text, unpack

SAMPLE = """\
Configuration:
Setting                        Current        Limit
Thread count                         2            2
Default queue limit                256        10240
Dispatch policy                 hybrid          n/a
Threads bound to CPUs          enabled          n/a

Protocols:
Name   Proto QLimit Policy Dispatch Flags
ip         1    256    cpu   hybrid   C--
arp        4    256 source  default   ---
ip6        6    256   flow  default   --F
epair      8   2100    cpu  default   CD-

Workstreams:
WSID CPU   Name     Len WMark   Disp'd  HDisp'd   QDrops   Queued  Handled
   0   0   ip         0    37        0    18022        0     5120    23142
   0   0   arp        0     1        0       12        0        3       15
   0   0   epair     12  2100        0        0      418    90210    90198
   1   1   ip         0    38        0    18031        0     5089    23120
   1   1   epair      0   640        0        0        0    88001    88001
"""
SETTINGS = {"numthreads": 2, "maxthreads": 2, "defaultqlimit": 256, "maxqlimit": 10240, "dispatch": "hybrid", "bindthreads": True}


def sample_tables():
    protocols = [("ip", 1, 256, 3, 2, 2), ("arp", 4, 256, 1, 0, 0), ("ip6", 6, 256, 2, 1, 0), ("epair", 8, 2100, 3, 6, 0)]
    works = [
        (0, 1, 0, 37, 0, 18022, 0, 5120, 23142),
        (0, 4, 0, 1, 0, 12, 0, 3, 15),
        (0, 8, 12, 2100, 0, 0, 418, 90210, 90198),
        (1, 1, 0, 38, 0, 18031, 0, 5089, 23120),
        (1, 8, 0, 640, 0, 0, 0, 88001, 88001),
    ]
    fields = {table: layout[1][1:] for table, layout in netisr_tables.STRUCTS.items()}
    return {
        "protocol": [dict(zip(("name", "proto", "qlimit", "policy", "flags", "dispatch"), p, strict=True)) for p in protocols],
        "workstream": [{"flags": 1, "wsid": i, "cpu": i} for i in range(2)],
        "work": [dict(zip(fields["work"], w, strict=True)) for w in works],
    }


@pytest.fixture
def lab():
    with Lab(2, maxqlimit=256, cpus=(0, 2), bindthreads=True) as lab:
        lab.register("arp", 4)
        lab.register("ip", 1, "cpu", dispatch="hybrid", drainedcpu="m:d")
        lab.register("ip6", 6, "flow", m2flow="m:f", qlimit=100)
        yield lab


# ---- N-A: what adds up ----


@pytest.mark.parametrize("seed", range(20))
def test_N_A1_A2_A3_at_rest(seed):
    r = random.Random(seed)
    with Lab(3, maxqlimit=64, defaultqlimit=64) as lab:
        attempts = {(proto, ws): 0 for proto in (1, 4) for ws in range(3)}
        highest = dict.fromkeys((1, 4), 20)
        for proto in (1, 4):
            lab.register(f"p{proto}", proto, qlimit=20)
        for vnet in (1, 2):
            lab.netisr.make_vnet()
            lab.netisr.set_port(vnet, 10 * vnet, vnet)
        for proto in (1, 4):
            lab.netisr.register_vnet(proto, 1)
        for _ in range(150):
            proto, port, source, who = r.choice((1, 4)), r.choice((1, 2, NO_PORT)), r.randrange(6), r.randrange(4)
            before = lab.netisr.done_by(proto, who)["hybrid_dispatched"]
            lab.netisr.set_dispatch(r.choice(("deferred", "hybrid")))
            n = r.randint(1, 12)
            lab.dispatch(who, proto, numbered(n), source=source, port=port)
            if port != 2:
                queued = n - (lab.netisr.done_by(proto, who)["hybrid_dispatched"] - before)
                attempts[proto, (source + (10 if port == 1 else 0)) % 3] += queued
            if r.random() < 0.2:
                lab.serve(r.randrange(3))
            if r.random() < 0.1:
                limit = r.randint(0, 64)
                highest[proto] = max(highest[proto], limit)
                lab.netisr.setqlimit(proto, limit)
            if r.random() < 0.1:
                lab.netisr.unregister_vnet(proto, 1)
                lab.netisr.register_vnet(proto, 1)
            lab.check()  # N-A1
            for (p, ws), n in attempts.items():
                work = lab.work(p, ws)
                assert work["qdrops"] + work["queued"] == n  # N-A3
                assert work["len"] <= work["watermark"] <= highest[p]  # N-A2
                assert work["handled"] >= work["dispatched"] + work["hybrid_dispatched"]


def test_N_A4_counters_have_64_bits_and_the_batch_in_hand_is_invisible(lab):
    end, found = lab.ends[0], []
    lab.hooks.append(lambda e, proto, frames: found.append(lab.work(4)))
    lab.queue(0, 4, numbered(5))
    end.serve()
    assert found[0]["queued"] == 5 and found[0]["len"] == found[0]["handled"] == 0
    row = lab.netisr.tables()["work"][0] | {"handled": 2**40, "queued": 2**63}
    assert unpack("work", pack("work", row))["queued"] == 2**63


def test_N_A4_counters_only_grow(lab):
    r = random.Random(7)
    last = {}
    for _ in range(100):
        lab.queue(r.randrange(3), r.choice((1, 4, 6)), numbered(r.randint(1, 9)), source=r.randrange(2), hash=r.randrange(9))
        if r.random() < 0.3:
            lab.serve()
        for proto in (1, 4, 6):
            for ws in range(2):
                now = lab.work(proto, ws)
                assert all(now[key] >= last.get((proto, ws), now)[key] for key in now if key != "len")
                last[proto, ws] = now


def test_N_A5_counters_are_exact_with_every_producer_at_work(lab):
    """One writer a cell: nothing is lost between them."""
    import threading

    lab.netisr.set_dispatch("direct")
    n = 3000

    def run(who):
        for i in range(n):
            lab.dispatch(who, 4, [b"x"]) if i % 2 else lab.queue(who, 4, [b"x"], source=0)

    threads = [threading.Thread(target=run, args=(who,)) for who in range(3)]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        lab.ends[0].serve()
    for t in threads:
        t.join()
    lab.serve()
    work = lab.work(4)
    assert [lab.netisr.done_by(4, who)["dispatched"] for who in range(3)] == [n // 2] * 3
    assert work["queued"] + work["qdrops"] == 3 * n // 2 and work["handled"] == work["queued"] + work["dispatched"]
    lab.check()


def test_N_A6_ours_stand_beside_the_BSDs(lab):
    assert {"purged", "nobufs", "noproto", "crashed"} <= set(lab.work(4))


# ---- N-S: settings ----


def test_N_S_settings_are_what_netstat_shows(lab):
    assert lab.netisr.settings() == {
        "numthreads": 2, "maxthreads": 2, "defaultqlimit": 256, "maxqlimit": 256, "dispatch": "direct", "bindthreads": True,
    }  # fmt: skip


@pytest.mark.parametrize("policy", ["default", "Direct", "", "x" * 20, "none", None, 3])
def test_N_S_a_dispatch_policy_that_is_none_is_refused_and_the_old_one_stays(lab, policy):
    lab.netisr.set_dispatch("hybrid")
    with pytest.raises(Refused):
        lab.netisr.set_dispatch(policy)
    assert lab.netisr.settings()["dispatch"] == "hybrid"


@pytest.mark.parametrize("n", [0, 3, -1])
def test_N_S_active_workstreams_are_those_there_are(lab, n):
    with pytest.raises(Refused):
        lab.netisr.set_active(n)
    assert lab.netisr.active == 2


@pytest.mark.parametrize("n", [0, 257, -1])
def test_N_S_a_default_limit_is_not_above_the_maximum(lab, n):
    with pytest.raises(Refused):
        lab.netisr.set_defaultqlimit(n)
    lab.netisr.set_defaultqlimit(9)
    lab.register("late", 3)
    assert lab.netisr.getqlimit("late") == 9 and lab.netisr.getqlimit("arp") == 256


# ---- N-M: tables ----


def test_N_M1_a_protocols_row(lab):
    rows = lab.netisr.tables()["protocol"]
    assert rows == [
        {"version": 80, "name": "ip", "proto": 1, "qlimit": 256, "policy": 3, "flags": 2 | 4, "dispatch": 2},
        {"version": 80, "name": "arp", "proto": 4, "qlimit": 256, "policy": 1, "flags": 0, "dispatch": 0},
        {"version": 80, "name": "ip6", "proto": 6, "qlimit": 100, "policy": 2, "flags": 1, "dispatch": 0},
    ]


def test_N_M2_a_workstreams_row(lab):
    assert lab.netisr.tables()["workstream"] == [
        {"version": 64, "flags": 1, "wsid": 0, "cpu": 0},
        {"version": 64, "flags": 1, "wsid": 1, "cpu": 2},
    ]


def test_N_M3_a_works_row(lab):
    lab.queue(0, 4, numbered(3), source=1)
    row = next(row for row in lab.netisr.tables()["work"] if row["proto"] == 4 and row["wsid"] == 1)
    assert row == row | {"version": 128, "len": 3, "watermark": 3, "queued": 3, "qdrops": 0, "handled": 0, "purged": 0}


def test_N_M4_every_registered_protocol_ascending_on_workstreams_with_a_worker():
    with Lab(3) as lab:
        lab.register("late", 9)
        lab.register("early", 2)
        lab.netisr.open_lanes(INTERNAL)
        assert [(r["wsid"], r["proto"]) for r in lab.netisr.tables()["work"]] == [(ws, p) for ws in range(3) for p in (2, 9)]
        lab.ends[1].leave()
        flags = [(r["wsid"], r["flags"]) for r in lab.netisr.tables()["workstream"]]
        assert flags == [(0, 1), (1, 0), (2, 1)]  # it has had one: its counters are not hidden
    netisr = lab.netisr.make(2, maxqlimit=64, defaultqlimit=64)
    assert netisr.tables() == {"protocol": [], "workstream": [], "work": []}


def test_N_M5_a_reader_refuses_another_version(lab):
    tables = lab.netisr.tables()
    for table, rows in tables.items():
        for row in rows:
            data = pack(table, row)
            assert len(data) == row["version"] and unpack(table, data) == {key: row[key] for key in netisr_tables.STRUCTS[table][1]}
        for wrong in (data[:-1], data + b"\0", struct.pack("=I", len(data) + 8) + data[4:], b""):
            with pytest.raises(ValueError, match="version"):
                unpack(table, wrong)
    assert not any(data[72:]) and len(data) == 128  # spare fields are zero


def test_N_M5_the_block_in_memory_has_its_own_version(lab):
    assert struct.unpack_from("=QQ", lab.netisr.memory) == (0x31727369746E7270, lab.netisr.size(2, maxqlimit=256))


def test_N_M6_the_text_is_netstats(lab):
    assert text(sample_tables(), SETTINGS) == SAMPLE


def test_N_M6_of_a_running_netisr(lab):
    lab.queue(0, 4, numbered(3), source=1)
    lines = text(lab.netisr.tables(), lab.netisr.settings()).splitlines()
    assert "ip         1    256    cpu   hybrid   CD-" in lines and "ip6        6    100   flow  default   --F" in lines
    assert "   1   2   arp        3     3        0        0        0        3        0" in lines
    unbound = text(sample_tables(), SETTINGS | {"bindthreads": False})
    assert "Threads bound to CPUs         disabled          n/a" in unbound.splitlines()


def test_N_M7_libxos_keys():
    found = json_module.loads(json_module.dumps(libxo(sample_tables())))["netisr"]
    assert found["protocol"][3] == {
        "name": "epair", "protocol": 8, "queue-limit": 2100, "policy-type": "cpu", "policy": "default", "flags": "CD-",
    }  # fmt: skip
    assert [len(stream["work"]) for stream in found["workstream"]] == [3, 2]
    assert found["workstream"][0]["work"][2] == {
        "workstream": 0, "cpu": 0, "name": "epair", "length": 12, "watermark": 2100, "dispatched": 0, "hybrid-dispatched": 0,
        "queue-drops": 418, "queued": 90210, "handled": 90198,
    }  # fmt: skip


def test_N_M7_ours_come_with_them(lab):
    found = json(lab.netisr.tables())
    assert set(found) == {"protocols", "workstreams"}
    work = found["workstreams"][1]["work"][0]
    assert (work["cpu"], work["purged"], work["crashed"]) == (2, 0, 0)


def test_N_M8_the_debuggers_view_has_no_handled():
    lines = netisr_tables.ddb(sample_tables()).splitlines()
    assert lines[0].split() == "CPU Proto Len WMark Max Disp HDisp Drop Queue".split()
    assert lines[3].split() == "0 epair 12 2100 2100 0 0 418 90210".split() and len(lines) == 6
