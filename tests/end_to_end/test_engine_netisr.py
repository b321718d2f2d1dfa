"""netisr(9) on an engine of two workers with real interfaces, seen from outside: `stat -Q --json`, what arrives, what Python is told.

Registrations, limits, placement, dispatch; test_engine_netisr_work.py has the workers, vnets, changes under load and the books.
"""

import errno

import pytest
from command import eventually
from engine_handlers import KEPT, NONE, frame, told
from live import middle
from netisr_engine import BSD, PROTOCOLS, fresh, held, in_order, one, refused, rested, rising, started, ways

import pktring

pytestmark = pytest.mark.needs("root")


@pytest.fixture(scope="module")
def shared():
    with middle() as net, started(net, PROTOCOLS, dispatch="deferred") as run:
        yield run


@pytest.fixture
def e(shared):
    """The engine at rest, and deferred."""
    yield from rested(shared)


@pytest.fixture(scope="module")
def flows(shared):
    return ways(shared)


# ---- protocols and registrations ----


def test_N_K1_what_comes_in_is_counted_by_the_protocols_number(e):
    with rising(e) as rise:
        for kind, n in (("ip", 3), ("arp", 5), ("ipv6", 7), ("ether", 11)):
            e.send([frame(i, i, kind) for i in range(n)])
        tagged = frame(0)
        e.send([tagged[:12] + b"\x81\x00\x00\x05" + tagged[12:]])
        e.heard(27)
    assert {name: sum(row["handled"] for row in rows) for name, rows in rise.items()} == {"ip": 4, "arp": 5, "ipv6": 7, "ether": 11}
    numbers = {p["name"]: p["protocol"] for p in e.ask("stat", "-Q")["netisr"]["protocol"]}
    assert numbers == {"ip": 1, "arp": 4, "ether": 5, "ipv6": 6}


def test_N_K2_N_M1_the_table_of_protocols(e):
    rows = e.sysctl("net.isr.proto")
    assert [(r["name"], r["policy"], r["flags"], r["dispatch"]) for r in rows] == [
        ("ip", 2, 4, 0),
        ("arp", 1, 0, 0),
        ("ether", 2, 1, 0),
        ("ipv6", 3, 2, 0),
    ]
    assert {r["version"] for r in rows} == {80} and {r["qlimit"] for r in rows} == {256}


def test_N_M4_N_M6_N_M7_N_S1_both_workstreams_every_protocol_ascending(e):
    text = e.command("stat", "-Q").splitlines()
    at = text.index("Workstreams:")
    cpus = [str(w["cpu"]) for w in e.engine.status()["workers"]]
    rows = [[str(ws), cpus[ws], name] for ws in (0, 1) for name in ("ip", "arp", "ether", "ipv6")]
    assert [line.split()[:3] for line in text[at + 2 :]] == rows
    assert text[at - 5 : at - 1] == [
        "ip         1    256   flow  default   -D-",
        "arp        4    256 source  default   ---",
        "ether      5    256   flow  default   --F",
        "ipv6       6    256    cpu  default   C--",
    ]
    assert (text[2].split()[-2:], text[5].split()[-2:]) == (["2", "2"], ["enabled", "n/a"])


def test_N_R1_to_N_R7_N_R12_what_is_refused_changes_nothing_and_replaces_no_worker(e):
    before, pids = e.sysctl("net.isr.proto"), e.pids()
    h = "engine_handlers:stamped"
    for number, given in [
        (errno.EINVAL, {"name": ""}),
        (errno.EINVAL, {"handler": ""}),
        (errno.EINVAL, {"policy": "none"}),
        (errno.EINVAL, {"m2flow": h}),
        (errno.EINVAL, {"m2cpuid": h}),
        (errno.EINVAL, {"policy": "cpu"}),
        (errno.EINVAL, {"dispatch": "sometimes"}),
        (errno.EINVAL, {"proto": 16}),
        (errno.EINVAL, {"name": "two words"}),
        (errno.EEXIST, {"proto": "ip"}),
    ]:
        refused(number, e.netisr.register, pktring.Handler(**{"name": "x", "proto": 3, "handler": h, "policy": "source"} | given))
    refused(errno.EINVAL, e.netisr.unregister, 3)  # N-U1
    assert (e.sysctl("net.isr.proto"), e.pids()) == (before, pids)


def test_a_handler_that_cannot_be_loaded_leaves_everything_as_it_was(e):
    before, pids = e.sysctl("net.isr.proto"), e.pids()
    for bad in ("engine_handlers:nothing", "no.such.module:f", "forward:nowhere", "so:/no/such.so:f"):
        with pytest.raises(pktring.Error) as why:
            e.netisr.register(pktring.Handler("x", 3, bad, "source"))
        assert why.value.code == "E_HANDLER"
    with pytest.raises(pktring.Error) as why:
        e.netisr.register(pktring.Handler("x", 3, lambda batch: None, "source"))
    assert why.value.code == "E_HANDLER"
    assert (e.sysctl("net.isr.proto"), e.pids()) == (before, pids)


def test_N_K4_N_R8_N_R9_a_long_name_is_cut_a_limit_capped_and_said_once(e):
    with fresh(e, "n" * 40, qlimit=99_999, drainedcpu="engine_handlers:drained") as proto:
        (row,) = [r for r in e.sysctl("net.isr.proto") if r["proto"] == proto]
        assert (row["name"], row["qlimit"], row["flags"]) == ("n" * 31, 10240, 4)
        assert len([line for line in e.engine.status()["events"] if "99999" in line]) == 1


def test_N_R10_N_U2_N_U3_a_slot_begins_anew(e):
    with fresh(e, drainedcpu="engine_handlers:drained"):
        for source in (0, 1):
            assert e.netisr.queue_src(3, source, frame(source)) == 0
        e.heard(2)
        e.at_rest()
        assert [row["handled"] for row in e.rows("fresh")] == [1, 1]
    assert "fresh" not in e.rows()
    assert e.netisr.queue_src(3, 0, frame(0)) == -errno.ENOPROTOOPT
    with fresh(e):
        assert {row[key] for row in e.rows("fresh") for key in BSD + ("watermark",)} == {0}
        assert [r["flags"] for r in e.sysctl("net.isr.proto") if r["proto"] == 3] == [0]


# ---- limits ----


def test_N_W1_N_W2_N_Q2_a_limit_set_live_holds_and_the_tail_is_dropped(e, flows):
    flow = one(flows, 0, 1)
    e.netisr.setqlimit("ip", 8)
    assert e.netisr.getqlimit("ip") == 8  # N-Q1
    drops = e.netisr.getqdrops("ip")
    with rising(e) as rise:
        with held(e, 1):
            e.send([frame(i, flow) for i in range(20)])
            eventually(lambda: e.netisr.getqdrops("ip") - drops == 12)
            assert e.now("ip")[1]["length"] == 8 <= e.now("ip")[1]["watermark"]
        assert [number for number, *_ in e.heard(8)] == list(range(8))
    assert rise["ip"][1] == dict.fromkeys(BSD, 0) | {"queue-drops": 12, "queued": 8, "handled": 8} and not any(rise["ip"][0].values())
    refused(errno.EINVAL, e.netisr.setqlimit, "ip", 10241)
    assert e.netisr.getqlimit("ip") == 8
    e.netisr.clearqdrops("ip")  # N-Q6
    assert e.netisr.getqdrops("ip") == 0 and e.total("ip", "queue-drops") == 0 and e.total("ip", "handled") >= 8
    e.netisr.setqlimit("ip", 256)


def test_N_Q3_N_Q4_N_Q5_below_the_depth_zero_and_each_workstream(e):
    with fresh(e, qlimit=4):
        with held(e, 0, 1):
            answers = [e.netisr.queue_src(3, ws, frame(i)) for i in range(5) for ws in (0, 1)]
            assert answers == [0] * 8 + [-errno.ENOBUFS] * 2
            e.netisr.setqlimit(3, 2)
            assert [row["length"] for row in e.now("fresh")] == [4, 4]
            assert e.netisr.queue_src(3, 0, frame(9)) == -errno.ENOBUFS
        e.heard(8)
        e.netisr.setqlimit(3, 0)
        assert e.netisr.queue_src(3, 0, frame(9)) == -errno.ENOBUFS
        e.at_rest()
        assert [(row["queued"], row["watermark"], row["queue-drops"]) for row in e.rows("fresh")] == [(4, 4, 3), (4, 4, 1)]
        assert e.netisr.getqdrops("fresh") == 4


# ---- placement ----


def test_N_P2_source_is_the_interface_and_the_source(e):
    index = e.engine.status()["ports"]["left"]["facts"]["ifindex"]
    with rising(e) as rise:
        e.send([frame(i, i, "arp") for i in range(40)])
        e.heard(40)
    assert rise["arp"][index % 2]["queued"] == 40 and rise["arp"][1 - index % 2]["queued"] == 0
    with fresh(e):  # without an interface: the source
        assert not any(e.netisr.queue_src(3, source, frame(source)) for source in (0, 1, 2, 3, 5, 7))
        e.heard(6)
        e.at_rest()
        assert [row["queued"] for row in e.rows("fresh")] == [2, 4]


def test_N_P3_flow_by_the_hash_of_the_headers_over_both_workers_and_nobody_asked(e):
    before = told("m2flow")
    want = [sum(pktring.flow_hash(frame(0, f))[0] % 2 == ws for f in range(64)) for ws in (0, 1)]
    with rising(e) as rise:
        e.send([frame(i, i % 64) for i in range(192)])
        got = e.heard(192)
    assert [row["queued"] for row in rise["ip"]] == [3 * n for n in want] and min(want) > 16
    pids = e.pids()
    assert all(pids.index(pid) == pktring.flow_hash(frame(0, flow))[0] % 2 for _, flow, pid, _ in got)
    assert told("m2flow") == before


def test_N_P4_N_P8_flow_without_a_hash_asks_m2flow(e):
    index, asked = e.engine.status()["ports"]["left"]["facts"]["ifindex"], told("m2flow")
    with rising(e) as rise:
        e.send([frame(i, i, "ether") for i in range(30)] + [frame(30, NONE, "ether")])
        pids = e.pids()
        for _, flow, pid, _ in e.heard(31):
            assert pids.index(pid) == (index if flow == NONE else flow) % 2
    assert told("m2flow") - asked == 31
    kept = sum(e.work(5, "nobufs"))
    with rising(e) as rise:
        e.send([frame(0, KEPT, "ether")])
        eventually(lambda: sum(e.work(5, "nobufs")) == kept + 1)
        e.silent()
    assert not any(value for rows in rise.values() for row in rows for value in row.values())


def test_N_P5_flow_without_hash_and_m2flow_is_by_source(e):
    with fresh(e, policy="flow"):
        for source in (0, 1, 1):
            assert e.netisr.queue_src(3, source, frame(0, kind="ether")) == 0
        e.heard(3)
        e.at_rest()
        assert [row["queued"] for row in e.rows("fresh")] == [1, 2]


def test_N_P6_N_P7_what_m2cpuid_says_is_an_index(e):
    index, asked = e.engine.status()["ports"]["left"]["facts"]["ifindex"], told("m2cpuid")
    with rising(e) as rise:
        e.send([frame(i, flow, "ipv6") for i, flow in enumerate((0, 1, 2, 3, 5, 1001, NONE))])
        pids = e.pids()
        for _, flow, pid, _ in e.heard(7):
            assert pids.index(pid) == (index if flow == NONE else flow) % 2
    assert told("m2cpuid") - asked == 7 and sum(row["queued"] for row in rise["ipv6"]) == 7


def test_N_P1_one_workstream_and_nobody_is_asked(e):
    e.sysctl("dev.pktring.workers", 1)
    e.send([frame(i, i, kind) for i in range(8) for kind in ("ether", "ipv6")])
    e.heard(16)  # what moves now has moved: each receiving worker has seen it with its queues empty
    e.at_rest()
    e.send([frame(i, i, kind) for i in range(8) for kind in ("ether", "ipv6")])
    e.heard(16)
    e.at_rest()
    asked = told("m2flow"), told("m2cpuid")
    with rising(e) as rise:
        e.send([frame(i, i, kind) for i in range(20) for kind in ("ip", "arp", "ether", "ipv6")])
        assert {pid for *_, pid, _ in e.heard(80)} == {e.pids()[0]}
    assert {name: [row["queued"] for row in rows] for name, rows in rise.items()} == dict.fromkeys(("ip", "arp", "ether", "ipv6"), [20, 0])
    assert (told("m2flow"), told("m2cpuid")) == asked
    e.sysctl("dev.pktring.workers", 2)


# ---- dispatch ----


def test_N_D1_N_D4_N_D5_direct_and_deferred_and_a_protocol_that_differs(e, flows):
    for how, key in (("direct", "dispatched"), ("deferred", "queued")):
        e.sysctl("net.isr.dispatch", how)
        with rising(e) as rise:
            e.send([frame(i, i % 32) for i in range(96)])
            e.heard(96)
        side = how == "deferred"  # direct: who receives it; deferred: whose it is
        want = [3 * sum(way[side] == ws for way in flows.values()) for ws in (0, 1)]
        assert rise["ip"] == [dict.fromkeys(BSD, 0) | {key: n, "handled": n} for n in want]
    with fresh(e, dispatch="direct"):  # N-D2: queue defers whatever the policy says
        assert e.netisr.queue(3, frame(0)) == 0
        e.heard(1)
        e.at_rest()
        assert [(row["queued"], row["dispatched"]) for row in e.rows("fresh")] == [(1, 0), (0, 0)]
        assert e.ask("stat", "-Q")["netisr"]["protocol"][1]["policy"] == "direct"


def test_N_D8_N_D10_hybrid_runs_its_own_and_queues_what_is_anothers(e, flows):
    e.sysctl("net.isr.dispatch", "hybrid")
    pids = e.pids()
    for received in (0, 1):
        for placed in (0, 1):
            flow = one(flows, received, placed)
            with rising(e) as rise:
                for i in range(8):
                    e.send([frame(i, flow)])
                    ((number, _, pid, _),) = e.heard(1)
                    assert (number, pid) == (i, pids[placed])
            key = "hybrid-dispatched" if received == placed else "queued"
            assert rise["ip"][placed] == dict.fromkeys(BSD, 0) | {key: 8, "handled": 8}
            assert not any(rise["ip"][1 - placed].values())


def test_N_D6_direct_overtakes_what_is_queued(e, flows):
    flow = one(flows, 0, 1)
    with held(e, 1):
        e.send([frame(1, flow)])
        eventually(lambda: e.now("ip")[1]["length"] == 1)
        e.sysctl("net.isr.dispatch", "direct")
        e.send([frame(2, flow)])
        assert [number for number, *_ in e.heard(1)] == [2]
    assert [number for number, *_ in e.heard(1)] == [1]


@pytest.mark.parametrize("how", ["deferred", "hybrid", "direct"])
def test_N_D14_each_flow_is_handled_in_its_order(e, how):
    e.sysctl("net.isr.dispatch", how)
    for i in range(0, 2000, 100):
        e.send([frame(k, k % 32) for k in range(i, i + 100)])
        in_order(e.heard(100))
