"""netisr(9), vnets: rows N-V of the specification; purges, executed by the workers."""

import errno
import os
import signal
import threading
import time

import pytest
from netisr_lab import Lab, numbered

from pktring.engine.netisr import Refused


@pytest.fixture
def lab():
    """Ports 1 and 2 are of vnet 1, port 3 of vnet 2, the others of the default vnet; protocols 1 and 4 are in all of them."""
    with Lab(2, maxqlimit=256) as lab:
        for vnet in (1, 2):
            assert lab.netisr.make_vnet() == vnet
        for port, vnet in ((0, 0), (1, 1), (2, 1), (3, 2)):
            lab.netisr.set_port(port, 10, vnet)
        lab.register("ip", 1)
        lab.register("arp", 4)
        yield lab


def mixed(lab, who=0, proto=1, n=12):
    """Frames of ports 0, 1, 2, 3 in turn, each told by its first byte, on both workstreams."""
    end = lab.ends[who]
    for i in range(n):
        assert end.queue_src(proto, i // 4, end.make(bytes([i % 4, i]), i % 4, None)) == 0


def test_N_V1_one_protocol_for_one_vnet(lab):
    late = lab.netisr.make_vnet()
    lab.netisr.register_vnet("arp", late)
    assert lab.netisr.allowed(4, late) and not lab.netisr.allowed(1, late)
    lab.netisr.unregister_vnet("ip", 1)
    assert [lab.netisr.allowed(p, v) for p in (1, 4) for v in (0, 1, 2)] == [True, False, True, True, True, True]
    lab.netisr.register_vnet("ip", 1)
    assert lab.netisr.allowed(1, 1)


def test_N_V1_the_protocol_and_the_vnet_have_to_be_there(lab):
    for proto, vnet in ((2, 0), ("route", 1), (1, 3), (1, 64), (1, -1)):
        for call in (lab.netisr.register_vnet, lab.netisr.unregister_vnet):
            with pytest.raises(Refused) as refused:
                call(proto, vnet)
            assert refused.value.errno == errno.EINVAL


def test_N_V2_exactly_the_queued_frames_of_that_vnet_are_freed(lab):
    mixed(lab)
    mixed(lab, proto=4)
    before = [lab.work(1, ws) for ws in range(2)]
    inflight = lab.pools[0].count()["inflight"]
    assert lab.netisr.unregister_vnet("ip", 1) == []
    after = [lab.work(1, ws) for ws in range(2)]
    gone = [before[ws]["len"] - after[ws]["len"] for ws in range(2)]
    assert sum(gone) == 6 and [after[ws]["purged"] for ws in range(2)] == gone
    assert lab.pools[0].count()["inflight"] == inflight - 6
    for ws in range(2):
        assert all(after[ws][key] == before[ws][key] for key in ("queued", "handled", "watermark", "qdrops"))
        assert lab.work(4, ws)["purged"] == 0
    lab.check()
    lab.serve()
    assert sorted(f[0] for f in lab.frames(1)) == [0, 0, 0, 3, 3, 3] and len(lab.frames(4)) == 12
    for ws in range(2):
        assert [f[1] for f in lab.frames(1, ws)] == sorted(f[1] for f in lab.frames(1, ws))  # the others keep their order
    lab.check()


def test_N_V2_what_is_purged_makes_room(lab):
    lab.netisr.setqlimit("ip", 4)
    lab.queue(0, 1, numbered(4), port=1, source=0)
    assert lab.queue(0, 1, [b"x"], port=0) == -errno.ENOBUFS
    lab.netisr.unregister_vnet("ip", 1)
    assert lab.queue(0, 1, numbered(5), port=0) == -errno.ENOBUFS
    assert lab.work()["len"] == 4
    lab.serve()
    assert lab.frames() == numbered(4)
    lab.check()


def test_N_V2_twice_and_again(lab):
    """Holes among holes, and a vnet that is let in anew meanwhile."""
    for _ in range(3):
        mixed(lab)
        lab.netisr.unregister_vnet("ip", 1)
        assert lab.queue(0, 1, [b"no"], port=1) == -errno.ENOPROTOOPT
        lab.netisr.register_vnet("ip", 1)
        lab.queue(0, 1, [b"new"], port=2)
        lab.netisr.unregister_vnet("ip", 2)
        lab.netisr.register_vnet("ip", 2)
        lab.check()
    lab.serve()
    assert lab.frames(1).count(b"new") == 1  # those of the first two rounds were purged in the next
    assert sum(f[0] == 0 for f in lab.frames(1)) == 9 and not any(f[0] in (1, 2, 3) for f in lab.frames(1))
    assert sum(lab.work(1, ws)["purged"] for ws in range(2)) == 3 * (6 + 3) + 2
    lab.check()


def test_N_V2_frames_of_several_slots(lab):
    for i in range(9):
        lab.queue(0, 1, [bytes([i]) * 1200], port=i % 3, source=0)
    inflight = lab.pools[0].count()["inflight"]
    lab.netisr.unregister_vnet("ip", 1)
    assert lab.pools[0].count()["inflight"] < inflight
    lab.serve()
    assert sorted(f[0] for f in lab.frames()) == [0, 3, 6] and all(len(f) == 1200 for f in lab.frames())
    lab.check()


def test_N_V3_what_is_detached_is_not_purged(lab):
    lab.queue(0, 1, numbered(3), port=1, source=0)

    def inside(end, proto, frames):
        lab.queue(1, 1, [b"after"], port=1, source=0)
        lab.netisr.allow(1, 1, False)

    lab.hooks.append(inside)
    lab.serve()
    assert lab.frames() == numbered(3)
    assert lab.work() == lab.work() | {"handled": 3, "purged": 1}
    lab.check()


def test_N_V3_neither_are_the_later_bursts_of_a_long_batch(lab):
    for i in range(3):
        lab.queue(0, 1, numbered(64, 64 * i), port=1, source=0)
    done = []

    def inside(end, proto, frames):
        lab.queue(0, 1, [b"after"], port=1, source=0)
        lab.netisr.allow(1, 1, False)
        done.append([lab.netisr.ask_purge(ws, -1) for ws in range(2)])

    lab.hooks.append(inside)
    lab.ends[0].budget = 64
    assert lab.ends[0].serve() == 64 and lab.netisr.purge_done(0, done[0][0])  # executed between two bursts
    assert lab.work() == lab.work() | {"len": 0, "purged": 1, "handled": 64}
    lab.serve()
    assert lab.frames() == numbered(192)
    lab.check()


def test_N_V4_the_default_vnet_stays_others_may_go(lab):
    with pytest.raises(Refused):
        lab.netisr.drop_vnet(0)
    lab.netisr.unregister_vnet("ip", 0)  # but it may do without a protocol
    mixed(lab, proto=4)
    assert lab.netisr.drop_vnet(1) == []
    with pytest.raises(Refused):
        lab.netisr.register_vnet("ip", 1)
    lab.serve()
    assert sorted({f[0] for f in lab.frames(4)}) == [0, 3]
    assert lab.netisr.make_vnet() == 1 and not lab.netisr.allowed(4, 1)


def test_there_are_sixty_four_vnets(lab):
    for vnet in range(3, 64):
        assert lab.netisr.make_vnet() == vnet
    with pytest.raises(Refused) as refused:
        lab.netisr.make_vnet()
    assert refused.value.errno == errno.ENOSPC
    lab.netisr.set_port(200, 7, 63)
    lab.netisr.register_vnet("ip", 63)
    lab.queue(0, 1, [b"x"], port=200)
    lab.serve()
    assert lab.frames() == [b"x"]


def test_a_port_changes_its_vnet(lab):
    lab.queue(0, 1, [b"old"], port=1)
    lab.netisr.set_port(1, 10, 2)
    lab.queue(0, 1, [b"new"], port=1)
    lab.netisr.unregister_vnet("ip", 1)
    lab.serve()
    assert lab.frames() == [b"new"]  # the old one was of vnet 1, whatever its port is now
    assert lab.work()["purged"] == 1
    lab.check()


def test_a_late_producer_is_purged_when_its_frame_is_taken(lab):
    """It was let in, then came the purge, then it put."""
    lab.netisr.unregister("ip")
    lab.register("ip", 1, "flow", m2flow="m:f")
    lab.ends[0].m2flow = lambda proto, descs: lab.netisr.unregister_vnet("ip", 1) or None
    lab.queue(0, 1, [b"late"], port=1)
    lab.netisr.register_vnet("ip", 1)
    lab.queue(1, 1, [b"in time"], port=1)
    lab.serve()
    assert lab.frames() == [b"in time"]
    assert sum(lab.work(1, ws)["purged"] for ws in range(2)) == 1
    lab.check()


# ---- who purges ----


def in_child(run):
    pid = os.fork()
    if not pid:
        try:
            run()
        finally:
            os._exit(0)
    return pid


def test_a_worker_in_another_process_executes_the_purge(lab):
    mixed(lab)

    def worker():
        end = lab.end(0, 0, lab.pools[0])
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            end.purge() if not lab.netisr.purge_done(0, 1) else None
            time.sleep(0.001)

    pid = in_child(worker)
    try:
        deadline = time.monotonic() + 10
        while lab.netisr.workstream(0)[1] != pid:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert lab.netisr.unregister_vnet("ip", 1, timeout_s=10) == []
        assert sum(lab.work(1, ws)["purged"] for ws in range(2)) == 6
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_worker_that_does_not_answer_is_named_and_frees_later(lab):
    mixed(lab)
    pid = in_child(lambda: (lab.end(0, 0, lab.pools[0]), time.sleep(20)))
    try:
        deadline = time.monotonic() + 10
        while lab.netisr.workstream(0)[1] != pid:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert lab.netisr.unregister_vnet("ip", 1, timeout_s=0.05) == [0]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    lab.ends[0] = lab.end(0, 0, lab.pools[0])
    lab.serve()
    assert sum(lab.work(1, ws)["purged"] for ws in range(2)) == 6 and sorted({f[0] for f in lab.frames()}) == [0, 3]
    lab.check()


def test_in_place_of_a_dead_worker_the_controller_purges(lab):
    pid = in_child(lambda: lab.end(0, 0, lab.pools[0]))
    os.waitpid(pid, 0)
    mixed(lab, who=1)
    assert lab.netisr.workstream(0)[1] == pid
    assert lab.netisr.unregister("ip", timeout_s=5) == []
    assert lab.pools[0].count()["inflight"] == 0
    lab.ends[0] = lab.end(0, 0, lab.pools[0])
    lab.serve()
    assert not lab.frames(1)


def test_purges_while_producers_and_the_worker_are_at_work(lab):
    """Threads here; whatever happens, frames of the vnet are handled or purged, each once, and the books agree."""
    lab.netisr.setqlimit("ip", 256)
    stop = threading.Event()
    sent = [0, 0, 0]

    def produce(who):
        while not stop.is_set():
            end = lab.ends[who]
            if (made := end.make(bytes([who]), 1 + who, None)) and end.queue_src(1, 0, made) == 0:
                sent[who] += 1

    threads = [threading.Thread(target=produce, args=(who,)) for who in range(3)]
    for t in threads:
        t.start()
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        lab.netisr.allow(1, 1, False)
        lab.netisr.ask_purge(0, -1)
        lab.ends[0].serve()
        lab.netisr.allow(1, 1, True)
        lab.ends[0].serve()
    stop.set()
    for t in threads:
        t.join()
    lab.serve()
    work = [lab.work(1, ws) for ws in range(2)]
    assert sum(w["handled"] + w["purged"] for w in work) == sum(sent) == sum(w["queued"] for w in work)
    assert sum(w["purged"] for w in work) > 0 and len(lab.frames()) == sum(w["handled"] for w in work)
    assert sum(f == b"\x02" for f in lab.frames()) == sent[2]  # port 3 is of another vnet
    lab.check()
