"""Links go down, away, under another name and to another MTU while `pktring bridge` forwards, and every frame is accounted for.

The number in a frame is the truth, and the bridge's counters must agree with it (live.py). Where the kernel loses frames before they reach
a port (its link has no carrier), what is missing must lie within that time. Times are printed (`pytest -s`), and asserted only loosely.
"""

import contextlib
import os
import socket
import threading
import time
from collections import Counter

import pytest
from command import eventually
from conservation import balanced
from frames import ETHERTYPE, numbered, tagged
from lab import End
from live import Load, accounted, bridged, heard, middle, once_in_order, resumed, told_times, within
from pyroute2 import IPRoute

import pktring
from pktring.engine.forward import Forwarder, Path
from pktring.shm.region import Region

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(120)]

FLAPS = 20


@pytest.fixture
def net(request):
    with middle(**getattr(request, "param", {})) as net:
        yield net


@pytest.fixture(params=["frames", "blocks"])
def rx(request):
    return request.param


def sockets_of(child):
    links = [os.readlink(f"/proc/{child.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{child.pid}/fd")]
    return sorted(link for link in links if link.startswith("socket:"))


def stats64(net, end):
    with net.lab.inside(end.netns), IPRoute() as ipr:
        return dict(ipr.get_links(net.lab.index(end))[0].get_attr("IFLA_STATS64"))


# ---- F12: down, up ----


def test_F12_the_receiving_side_flaps_under_load_and_the_same_sockets_go_on(net, rx):
    down_told, up_told, windows = [], [], []
    with bridged(net, rx) as bridge, heard(net.b.netns) as got, Load(net.a) as load:
        eventually(lambda: len(got) > 100)
        before = sockets_of(bridge.child)
        for _ in range(FLAPS):
            began = time.monotonic()
            net.lab.change(net.fa.netns, "fa", state="down")
            down_told.append(bridge.told("W_PORT_DOWN if=fa", began) - began)
            up = time.monotonic()
            n = len(got)
            net.lab.change(net.fa.netns, "fa", state="up")
            up_told.append(bridge.told("I_PORT_UP if=fa", up) - up)
            resumed(got, n, up)
            windows.append((began, time.monotonic()))
            load.goes_on(50)
        assert sockets_of(bridge.child) == before, "rings and sockets are kept"
    assert bridge.count("W_PORT_DOWN") == FLAPS == bridge.count("I_PORT_UP")
    missing = once_in_order(load, got)
    within(load, missing, windows)
    assert load.refused > FLAPS, "no flap met the load"
    assert len(got) == bridge.report["a_to_b"]["frames"] and not bridge.report["a_to_b"]["dropped"]
    told_times(f"F12 {rx} down told", down_told)
    told_times(f"F12 {rx} up told", up_told)


def test_F12_an_interface_that_is_down_or_was_costs_nothing(net, rx):
    """The socket's error is told once; poll(2) would say POLLERR until it is taken."""
    with bridged(net, rx) as bridge:
        for state in ("down", "up"):
            net.lab.change(net.fa.netns, "fa", state=state)
            bridge.told("W_PORT_DOWN" if state == "down" else "I_PORT_UP")
            time.sleep(0.3)
            before = bridge.cpu()
            time.sleep(1)
            assert bridge.cpu() - before < 0.1, f"awake while {state}"


def test_F12_the_sending_side_flaps_under_load_and_every_frame_is_counted(net, rx):
    resume, windows = [], []
    with bridged(net, rx) as bridge, heard(net.b.netns) as got, Load(net.a) as load:
        eventually(lambda: len(got) > 100)
        before, dropped = sockets_of(bridge.child), stats64(net, net.fb)["tx_dropped"]
        for _ in range(FLAPS):
            began = time.monotonic()
            net.lab.change(net.fb.netns, "fb", state="down")
            bridge.told("W_PORT_DOWN if=fb", began)
            load.goes_on(50)
            up, n = time.monotonic(), len(got)
            net.lab.change(net.fb.netns, "fb", state="up")
            resume.append(resumed(got, n, up))
            windows.append((began, time.monotonic()))
            load.goes_on(50)
        assert sockets_of(bridge.child) == before
        dropped = stats64(net, net.fb)["tx_dropped"] - dropped
    missing = once_in_order(load, got)
    within(load, missing, windows)
    told_times(f"F12 {rx} resume", resume)
    reasons = bridge.report["a_to_b"]["reasons"]
    silent = len(missing) - sum(reasons.values())
    assert set(reasons) == {"drop_down"}
    assert 0 <= silent <= min(dropped, FLAPS), "a frame that the kernel accepted at that very instant; it counts it itself"


def test_F12_the_far_end_flaps_under_load_and_what_cannot_leave_is_counted(net, rx):
    """Here the kernel drops what it is sent, and sendmsg succeeds: only who follows the link knows. It counts them itself, so can we."""
    silent = 0
    with bridged(net, rx) as bridge, heard(net.b.netns) as got, Load(net.a) as load:
        eventually(lambda: len(got) > 100)
        dropped = stats64(net, net.fb)["tx_dropped"]
        for _ in range(FLAPS // 2):
            began = time.monotonic()
            net.lab.change(net.b.netns, "vb", state="down")
            bridge.told("W_PORT_NO_CARRIER if=fb", began)
            load.goes_on(50)
            up, n = time.monotonic(), len(got)
            net.lab.change(net.b.netns, "vb", state="up")
            resumed(got, n, up)
            load.goes_on(50)
        silent = stats64(net, net.fb)["tx_dropped"] - dropped
    missing = once_in_order(load, got)
    reasons = Counter(bridge.report["a_to_b"]["reasons"])
    assert reasons["drop_down"] > silent, "it follows the link, but for the time a message takes"
    assert len(missing) == sum(reasons.values()) - reasons["drop_tx_kernel"] + silent, (len(missing), reasons, silent)


# ---- F13, F14: deleted, moved ----


@pytest.mark.parametrize("queues", [1, 2])
def test_F13_a_deleted_interface_is_waited_for_and_taken_again(net, rx, queues):
    told, resume, windows = [], [], []
    host = heard(net.fa.netns, ETHERTYPE)
    with bridged(net, f"{rx}&queues={queues}") as bridge, heard(net.b.netns) as got, host as hosts, Load(net.a) as load:
        eventually(lambda: len(got) > 100)
        before = sockets_of(bridge.child)
        for _ in range(5):
            began = time.monotonic()
            net.lab.delete(net.fa.netns, "fa")
            told.append(bridge.told("E_PORT_GONE if=fa ifindex=.* deleted; waiting for it", began) - began)
            n = len(got)
            net.lab.veth(net.a, net.fa)
            back = time.monotonic()
            bridge.told("I_PORT_BACK if=fa", began)
            resume.append(resumed(got, n, back))
            windows.append((began, time.monotonic()))
            load.goes_on(50)
        assert queues > 1 or sockets_of(bridge.child) == before
    within(load, once_in_order(load, got), windows)
    assert len(got) == bridge.report["a_to_b"]["frames"] and not bridge.report["a_to_b"]["dropped"]
    assert not hosts, "taking is in force from the first frame of the new interface on"
    told_times(f"F13 {rx} gone told", told)
    told_times(f"F13 {rx} resumed after the new one was up", resume)


def test_F13_what_is_sent_to_a_deleted_interface_is_counted(net, rx):
    windows = []
    with bridged(net, rx) as bridge, heard(net.b.netns) as got, Load(net.a) as load:
        eventually(lambda: len(got) > 100)
        for _ in range(5):
            began = time.monotonic()
            net.lab.delete(net.fb.netns, "fb")
            bridge.told("E_PORT_GONE if=fb", began)
            load.goes_on(50)
            n = len(got)
            net.lab.veth(net.b, net.fb)
            resumed(got, n, time.monotonic())
            windows.append((began, time.monotonic()))
            load.goes_on(50)
    missing = once_in_order(load, got)
    within(load, missing, windows)
    reasons = Counter(bridge.report["a_to_b"]["reasons"])
    assert bridge.report["a_to_b"]["frames"] + sum(reasons.values()) == len(load.sent)
    assert reasons["drop_down"] >= 5 * 50 and set(reasons) <= {"drop_down", "drop_tx_kernel"}


def test_F13_an_interface_that_goes_before_its_coming_was_heard_of_ends_nothing(net, rx):
    """Back, gone, back ... faster than anyone reads; and renamed, then deleted: the last word counts."""
    with bridged(net, rx) as bridge, heard(net.b.netns) as got:
        bridge.child.send_signal(19)
        for _ in range(3):
            net.lab.delete(net.fa.netns, "fa")
            net.lab.veth(net.a, net.fa)
        net.lab.change(net.fa.netns, "fa", ifname="fz")
        net.lab.delete(net.fa.netns, "fz")
        bridge.child.send_signal(18)
        bridge.told("E_PORT_GONE if=fz")
        net.lab.veth(net.a, End(net.fa.netns, "fz"))
        bridge.told("I_PORT_BACK if=fz")
        with Load(net.a):
            eventually(lambda: len(got) > 100)


def test_F14_an_interface_moved_to_another_namespace_is_told_so_and_waited_for(net, rx):
    elsewhere = net.lab.namespace("elsewhere")
    told, resume, windows = [], [], []
    with bridged(net, rx) as bridge, heard(net.b.netns) as got, heard(elsewhere, ETHERTYPE) as there, Load(net.a) as load:
        eventually(lambda: len(got) > 100)
        for _ in range(5):
            began = time.monotonic()
            net.lab.change(net.fa.netns, "fa", net_ns_fd=elsewhere)
            told.append(bridge.told("E_PORT_GONE if=fa .* moved to another network namespace", began) - began)
            net.lab.change(elsewhere, "fa", state="up")
            n = len(there)
            eventually(lambda n=n: len(there) > n)
            n = len(got)
            net.lab.change(elsewhere, "fa", net_ns_fd=net.fa.netns)
            net.lab.change(net.fa.netns, "fa", state="up")
            resume.append(resumed(got, n, time.monotonic()))
            windows.append((began, time.monotonic()))
            load.goes_on(50)
    within(load, once_in_order(load, got), windows)
    assert not set(there) & set(got), "what went to the other namespace was not forwarded"
    assert len(got) == bridge.report["a_to_b"]["frames"] and not bridge.report["a_to_b"]["dropped"]
    told_times(f"F14 {rx} moved told", told)
    told_times(f"F14 {rx} resumed", resume)


# ---- F15: renamed ----


@pytest.mark.parametrize("side", ["fa", "fb"])
def test_F15_a_rename_under_load_loses_nothing(net, rx, side):
    told = []
    with bridged(net, rx) as bridge, heard(net.b.netns) as got, Load(net.a) as load:
        eventually(lambda: len(got) > 100)
        for was, now in [(side, "fz"), ("fz", side)] * 5:
            began = time.monotonic()
            net.lab.change(net.fa.netns, was, ifname=now)
            told.append(bridge.told(f"I_PORT_RENAMED {was}→{now}", began) - began)
            load.goes_on(50)
    assert not accounted(load, got, bridge.report) and len(got) == len(load.sent)
    told_times(f"F15 {rx} {side} renamed told", told)


@contextlib.contextmanager
def joined(net, rx):
    """Two ports in this process, forwarded by a thread that also follows their links. -> (ports, events so far)"""
    events, over = [], threading.Event()
    with (
        Region.create(f"test-links-{os.getpid()}", rings=8, slots=512) as region,
        pktring.open("fa", netns=net.fa.netns, region=region, take=1, rx=rx) as a,
        pktring.open("fb", netns=net.fb.netns, region=region, take=1, rx=rx) as b,
    ):
        forwarder = Forwarder([Path(a, b), Path(b, a)])

        def run():
            while not over.is_set():
                if forwarder.run(0.1) == "event":
                    events.extend((time.monotonic(), event) for port in (a, b) for event in port.events())

        runner = threading.Thread(target=run, daemon=True)
        runner.start()
        try:
            yield (a, b), events
        finally:
            over.set()
            runner.join(10)
        assert balanced(region)


def test_F15_the_label_follows_and_the_host_still_gets_nothing(net, rx):
    with joined(net, rx) as ((a, _), events), heard(net.b.netns) as got, Load(net.a) as load:
        eventually(lambda: len(got) > 100)
        net.lab.change(net.fa.netns, "fa", ifname="fz")
        eventually(lambda: [e for _, e in events if e.kind == "renamed"])
        assert a.facts()["interface"] == "fz"
        with heard(net.fa.netns, ETHERTYPE) as host:
            load.goes_on(200)
        assert not host
    assert len(got) == len(load.sent) and not once_in_order(load, got)


def test_F15_an_event_is_seen_under_a_load_that_never_pauses(net, rx):
    with (
        pktring.open("fb", netns=net.fb.netns, take=1, rx=rx) as b,
        pktring.open("null:?len=64", directions="rx", region=b.region) as flood,
    ):
        forwarder = Forwarder([Path(flood, b)])
        assert forwarder.run(0.2) == "time"
        renamer = threading.Timer(0.1, net.lab.change, (net.fb.netns, "fb"), {"ifname": "fz"})
        renamer.start()
        assert forwarder.run(10) == "event"
        renamer.join()
        assert [e.kind for e in b.events()] == ["renamed"] and b.facts()["interface"] == "fz"


# ---- F16: another MTU ----


@pytest.mark.parametrize("net", [{"mtu": 1500}], indirect=True)
def test_F16_frames_longer_than_a_shrunk_mtu_are_counted_and_the_others_go_on(net, rx):
    def frame(i):
        return numbered(i, 1000 if i % 2 else 100)

    with bridged(net, rx) as bridge, heard(net.b.netns) as got, Load(net.a, frame) as load:
        eventually(lambda: len(got) > 100)
        for _ in range(5):
            began = time.monotonic()
            net.lab.change(net.fb.netns, "fb", mtu=600)
            bridge.told("W_PORT_MTU 1500→600 if=fb", began)
            load.goes_on(50)
            net.lab.change(net.fb.netns, "fb", mtu=1500)
            bridge.told("W_PORT_MTU 600→1500 if=fb", began)
            load.goes_on(50)
    reasons = accounted(load, got, bridge.report)
    assert set(reasons) == {"drop_mtu"} and reasons["drop_mtu"] >= 100
    assert all(i % 2 for i in once_in_order(load, got)), "a short frame was dropped"


@pytest.mark.parametrize("net", [{"mtu": 1500}], indirect=True)
def test_F16_frames_longer_than_the_ring_was_made_for_arrive_when_the_mtu_grows(net, rx):
    """The ring of rx=frames was sized by the MTU of the start; what is longer comes another way, in its place in the order."""

    def frame(i):
        return numbered(i, 5000 if i % 3 == 0 else 100)

    with bridged(net, rx) as bridge, heard(net.b.netns) as got, Load(net.a, frame) as load:
        eventually(lambda: len(got) > 100)
        assert load.refused and not any(i % 3 == 0 for i in got)
        for end in (net.b, net.fb, net.fa, net.a):
            net.lab.change(end.netns, end.name, mtu=9000)
        n = len(got)
        eventually(lambda: sum(i % 3 == 0 for i in got[n:]) > 100)
        net.lab.change(net.fa.netns, "fa", mtu=600)
        load.goes_on(100)
        net.lab.change(net.fa.netns, "fa", mtu=9000)
        load.goes_on(100)
    assert not accounted(load, got, bridge.report)


# ---- F17: lengths, offloads, tags ----


def test_F17_every_length_around_the_limits_is_sent_or_counted(net):
    frames = [numbered(size, size) for size in [*range(65), *range(1500, 1540)]]
    longest = 64 * 1792
    with (
        Region.create(f"test-links-{os.getpid()}", rings=2, slots=512) as region,
        pktring.open("fb", netns=net.fb.netns, region=region) as port,
        heard(net.b.netns) as got,
    ):
        assert port.send(frames) == len(frames)
        assert port.send([bytes(longest)]) == 1
        with pytest.raises(ValueError, match="longer than a ring"):
            port.send([bytes(longest + 1)])
        eventually(lambda: 1514 in got)
        stats = port.stats()
        assert balanced(region)
    assert stats["drop_runt"] == 14, "0 to 13 bytes are no Ethernet frame"
    # 1515 to 1518 bytes might be tagged: the kernel takes them only when they are
    assert stats["drop_mtu"] + stats["drop_error"] + stats["tx_frames"] == len(frames) + 1 - 14, stats
    assert [i for i in got if i > 1499][:15] == list(range(1500, 1515))


@pytest.mark.parametrize("net", [{"mtu": 65535, "offloads": False}], indirect=True)
def test_F17_frames_of_all_lengths_cross_whole(net, rx):
    """From a bare header to the longest that an interface can have, around every multiple of a buffer's room."""
    around = [k * 1792 + d for k in range(1, 37) for d in (-1, 0, 1)]
    sizes = [*range(14, 70), *around, *range(65540, 65550)]
    with bridged(net, rx) as bridge, net.lab.listening(net.b) as ear:
        for size in sizes:
            frame = numbered(size, size)
            net.lab.send(net.a, [frame])
            assert ear.take(1) == [frame], size
    assert bridge.report["a_to_b"]["frames"] == len(sizes) and not bridge.report["a_to_b"]["dropped"]


@pytest.mark.parametrize("net", [{"addresses": True}], indirect=True)
def test_F17_a_tcp_stream_is_exact_while_offloads_are_switched(net, rx):
    size, block = 64 << 20, os.urandom(1 << 20)
    received = []

    def server(listener):
        conn, _ = listener.accept()
        conn.settimeout(30)
        with conn:
            n = 0
            while piece := conn.recv(1 << 20):
                at = n % len(block)
                received.append(piece == (block * 3)[at : at + len(piece)])
                n += len(piece)
        received.append(n)

    with bridged(net, rx) as bridge:
        with net.lab.inside(net.b.netns), socket.socket() as listener:
            listener.bind((net.b.host, 4000))
            listener.listen()
            taker = threading.Thread(target=server, args=(listener,), daemon=True)
            taker.start()
            with net.lab.inside(net.a.netns):
                client = socket.create_connection((net.b.host, 4000), timeout=30)
            with client:
                for i in range(size >> 20):
                    client.sendall(block)
                    if i % 4 == 0:
                        for end in (net.a, net.fa, net.fb, net.b):
                            on = bool(i // 4 % 2)
                            net.lab.offloads(end, {"tso": on, "gso": on, "gro": on, "tx-checksum": on})
            taker.join(60)
    assert received[-1] == size and all(received[:-1])
    reasons = bridge.report["a_to_b"]["reasons"]
    assert not set(reasons) & {"drop_gso", "drop_csum", "drop_trunc", "drop_mtu"}, reasons


def test_F17_tags_are_kept_while_tag_offloads_are_switched(net, rx):
    plain = numbered(1, 200)
    sent = [tagged(plain, 0x6064), tagged(tagged(plain, 7), 0x20C8, 0x88A8), plain]
    with bridged(net, rx) as bridge, net.lab.listening(net.b) as ear:
        for i in range(8):
            for end in (net.fa, net.fb):
                net.lab.offloads(end, {"rx-vlan": bool(i & 1), "tx-vlan": bool(i & 2)})
            net.lab.send(net.a, sent)
            assert ear.take(3) == sent, i
    assert bridge.report["a_to_b"]["frames"] == 24 and not bridge.report["a_to_b"]["dropped"]
