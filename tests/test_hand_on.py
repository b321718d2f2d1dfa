"""A device goes from process to process: who opened it is killed, who is handed it goes on, and neither host nor frames notice."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from command import eventually
from frames import number, numbered, numbers
from lab import End, IPRoute, Lab

from pktring import ports
from pktring.drivers import link, pcap
from pktring.drivers.af_packet import AfPacket
from pktring.drivers.link import LinkWatch
from pktring.drivers.netns import entered
from pktring.drivers.tap import Tap
from pktring.engine.port import Port
from pktring.shm.device import Device
from pktring.shm.errors import Error
from pktring.shm.region import Region

pytestmark = pytest.mark.needs("root")

OPENER = """
import json, os, socket, sys
sys.path = json.loads(sys.argv[2])
from frames import numbers
from pktring.ports import open_device
from pktring.shm.region import RX, TX, Region
device, watch, why = open_device(**json.loads(sys.argv[3]))
end = socket.socket(fileno=int(sys.argv[1]))
for line in sys.stdin:
    if line == "hand on\\n":
        state, fds = device.hand_on()
        socket.send_fds(end, [json.dumps(state).encode()], fds)
    elif line.startswith("work in "):
        region = Region.attach(line.split()[2])
        index, ring = region.make_ring(RX, 256, "worker", 0, region.pool_of(1, 1))
        ring.bind(device.queues[0].device)
        print(index, flush=True)
    elif line.startswith("take "):
        print(*numbers(region, ring, int(line.split()[1])), flush=True)
    elif line.strip() == "count drops":
        ring.stats()
        print(flush=True)
    elif line.strip() == "send":
        index, ring = region.make_ring(TX, 256, "worker", 0, region.pool_of(1, 1))
        ring.bind(device.queues[0].device)
        print(ring.put([bytes(1400)]), ring.sync(), ring.device_error, flush=True)
    else:
        print(*(device.follow(event) for event in watch.events()), flush=True)
"""
STATES = 1 << 16
LATE_S = 3.0


@pytest.fixture
def net():
    with Lab() as net:
        yield net


@pytest.fixture
def region():
    with Region.create(f"test-hand-on-{os.getpid()}", rings=16, slots=1024) as region:
        yield region


class Opener:
    """A process that has a device open and does as it is told, until it is killed."""

    def __init__(self, net, **how):
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            argv = [sys.executable, "-c", OPENER, str(there.fileno()), json.dumps(sys.path), json.dumps(how)]
            self.child = net.start(None, argv, pass_fds=[there.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._end = here
        here.settimeout(20)
        self.state, self.fds = self.handed()

    def handed(self):
        """What it hands on. The descriptors arrive now, and serve nobody until they are adopted."""
        self.child.stdin.write("hand on\n")
        self.child.stdin.flush()
        text, fds, _, _ = socket.recv_fds(self._end, STATES, 100)
        assert text, "the opener died"
        return json.loads(text), fds

    def told(self, line):
        """Tell it to do something. -> the words of its answer"""
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()
        return self.child.stdout.readline().split()

    def follows(self):
        """Let it take its link events. -> what `follow` returned for each"""
        return self.told("follow")

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(10)

    def drop(self):
        """Close what it handed on, that nobody adopted."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.drop()
        self._end.close()


@contextlib.contextmanager
def adopted(opener, region, **how):
    """A port over what the opener had."""
    fds, opener.fds = opener.fds, []
    device, watch = ports.adopt_device(opener.state, fds)
    with Port("heir", region, device, watch, slots=1024, **how) as port:
        yield port


def gather(port, n, timeout_s=LATE_S):
    got, deadline = [], time.monotonic() + timeout_s
    while len(got) < n and time.monotonic() < deadline:
        with port.recv(timeout=0.1) as batch:
            got += [bytes(frame) for frame in batch]
    return got


def told(port, kind, timeout_s=LATE_S):
    """Wait for an event. -> the kinds of all that came, up to it"""
    kinds = []
    eventually(lambda: kinds.extend(event.kind for event in port.events()) or kind in kinds, timeout_s)
    return kinds


class Host:
    """Counts what the host's own stack gets of an interface's frames, as a program on one protocol would."""

    def __init__(self, end):
        with entered(end.netns):
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        self.sock.setblocking(False)

    def heard(self):
        n = 0
        with contextlib.suppress(BlockingIOError):
            while self.sock.recv(2048):
                n += 1
        return n

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()


class Stream(threading.Thread):
    """Numbered frames out of one end, without pause, until the end of the block; `sent` is how many."""

    def __init__(self, net, end):
        super().__init__(daemon=True)
        self.net, self.end, self.sent = net, end, 0
        self._over = threading.Event()

    def run(self):
        while not self._over.wait(0.001):
            self.net.send(self.end, [numbered(self.sent + i) for i in range(20)])
            self.sent += 20

    def goes_on(self, n=400):
        eventually(lambda goal=self.sent + n: self.sent >= goal, 10)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join(10)


def facts_of(end):
    return link.facts(end.name, end.netns)


# ---- AF_PACKET ----


@pytest.mark.parametrize("rx", ["frames", "blocks"])
@pytest.mark.parametrize("queues", [1, 2])
def test_F5_a_taken_interface_goes_on_in_another_process_without_a_frame_lost_or_heard(net, region, rx, queues):
    a, b = net.pair()
    with Host(b) as host:
        net.send(a, [numbered(0)])
        eventually(host.heard)  # else it proves nothing that it hears nothing later
        with Opener(net, name=f"{b.name}?rx={rx}&netns={b.netns}", queues=queues, take=True, yes=True) as opener, Stream(net, a) as stream:
            stream.goes_on()
            opener.kill()
            stream.goes_on()
            with adopted(opener, region) as port:
                stream.goes_on()
                stream.__exit__()
                got = [number(frame) for frame in gather(port, stream.sent)]
                assert sorted(got) == list(range(stream.sent))
                assert got == sorted(got), "numbered frames are one flow"
                assert port.stats()["drop_kernel"] == 0 and port.facts()["queues"] == queues
        assert host.heard() == 0
        net.send(a, [numbered(0)])
        eventually(host.heard)


def test_what_an_heir_sends_leaves(net, region):
    a, b = net.pair()
    with Opener(net, name=b.name + f"?netns={b.netns}", queues=2) as opener, net.listening(a) as ear:
        opener.kill()
        sent = [numbered(i) for i in range(100)]
        with adopted(opener, region) as port:
            assert port.send(sent) == 100 and ear.take(100) == sent


@pytest.mark.parametrize("queues", [1, 2])
def test_an_heir_follows_its_interface_as_the_dead_one_would_have(net, region, queues):
    a, b = net.pair()
    with Opener(net, name=b.name + f"?netns={b.netns}", queues=queues, take=True, yes=True) as opener, Host(b) as host:
        opener.kill()
        with adopted(opener, region) as port:
            net.change(b.netns, "vb", state="down")
            told(port, "down")
            assert port.send([numbered(0)]) == 1 and port.stats("tx")["drop_down"] == 1
            net.change(b.netns, "vb", ifname="vz", state="up")
            assert "renamed" in told(port, "up")
            assert port.facts()["interface"] == "vz"
            receives(net, port, a, End(b.netns, "vz"), host)
            net.delete(b.netns, "vz")
            told(port, "gone")
            net.veth(a, End(b.netns, "vz"))
            told(port, "up")
            receives(net, port, a, End(b.netns, "vz"), host)


def receives(net, port, a, b, host):
    """Frames arrive, each once, and not at the host; what is sent leaves."""
    net.running(a)
    gather(port, 1, 0.1)
    host.heard()
    sent = [numbered(i) for i in range(50)]
    with net.listening(a) as ear:
        net.send(a, sent)
        assert gather(port, 50) == sent and gather(port, 1, 0.05) == []
        assert port.send(sent) == 50 and ear.take(50) == sent
    assert host.heard() == 0


@pytest.mark.parametrize("queues", [1, 2])
@pytest.mark.parametrize("followed", [True, False])
def test_what_happened_while_nobody_watched_is_told_and_followed(net, region, queues, followed):
    """`followed`: by the dead one, after it had told what it holds: its heir finds that done."""
    a, b = net.pair()
    with Opener(net, name=b.name + f"?netns={b.netns}", queues=queues, take=True, yes=True) as opener, Host(b) as host:
        net.change(b.netns, "vb", ifname="vz")
        if followed:
            eventually(lambda: opener.follows())
        opener.kill()
        net.change(b.netns, "vz", mtu=1400)
        with adopted(opener, region) as port:
            assert told(port, "mtu") == ["renamed", "mtu"]
            assert port.facts()["mtu"] == 1400
            receives(net, port, a, End(b.netns, "vz"), host)
        net.change(b.netns, "vz", ifname="vb")
        net.send(a, [numbered(0)])
        eventually(host.heard)


@pytest.mark.parametrize("queues", [1, 2])
@pytest.mark.parametrize("back", ["before", "before, and followed", "later"])
def test_an_interface_that_went_while_nobody_watched_is_waited_for(net, region, queues, back):
    a, b = net.pair()
    with Opener(net, name=b.name + f"?netns={b.netns}", queues=queues, take=True, yes=True) as opener, Host(b) as host:
        net.delete(b.netns, "vb")
        if back != "later":
            net.veth(a, b)
        if back == "before, and followed":
            eventually(lambda: ("True" if queues > 1 else "False") in opener.follows())
        opener.kill()
        with adopted(opener, region) as port:
            told(port, "gone" if back == "later" else "up")
            if back == "later":
                net.veth(a, b)
                told(port, "up")
            receives(net, port, a, b, host)


def test_a_carrier_that_the_dead_one_missed_is_there_for_the_heir(net, region):
    """It went, and he told all who hold the device; it came while nobody watched. What was handed on is of before."""
    a, b = net.pair()
    with Opener(net, name=b.name + f"?netns={b.netns}") as opener:
        net.change(a.netns, "va", state="down")
        eventually(lambda: opener.follows())
        opener.kill()
        net.change(a.netns, "va", state="up")
        net.running(b)
        with adopted(opener, region) as port, net.listening(a) as ear:
            assert told(port, "up") == ["up"]
            assert port.send([numbered(1)]) == 1 and ear.take(1) == [numbered(1)]


def test_a_device_handed_on_between_back_and_up_hears_that_it_is_up(net):
    a, b = net.pair()
    with contextlib.closing(AfPacket("vb", netns_name=b.netns)) as device, contextlib.closing(device.watch()) as watch:
        net.delete(b.netns, "vb")
        net.veth(a, b)
        events = []
        eventually(lambda: events.extend(watch.events()) or (events and events[-1].kind == "up"))
        assert events[-2].kind == "back"
        for event in events[:-1]:
            device.follow(event)
        assert not device.carrier
        with contextlib.closing(copy_of(device)) as heir, contextlib.closing(heir.watch()) as again:
            eventually(lambda: [heir.follow(event) for event in again.events()])
            assert heir.carrier and device.carrier


def test_a_device_that_was_handed_on_is_handed_on_again(net, region):
    a, b = net.pair()
    with Opener(net, name=b.name + f"?netns={b.netns}", queues=2, take=True, yes=True) as opener, Host(b) as host:
        opener.kill()
        fds, opener.fds = opener.fds, []
        second, watch = ports.adopt_device(opener.state, fds)
        opener.state, fds = second.hand_on()
        opener.fds = [os.dup(fd) for fd in fds]
        watch.close()
        second.let_go()
        with adopted(opener, region) as port:
            receives(net, port, a, b, host)


def test_a_taking_that_was_adopted_leaves_no_hook_behind(net, region):
    """Hooks belong to names: one that was forgotten would take whatever interface has the name later."""
    a, b = net.pair()
    with Opener(net, name=b.name + f"?netns={b.netns}", take=True, yes=True) as opener, Host(b) as host:
        net.change(b.netns, "vb", ifname="vz")
        eventually(lambda: opener.follows())
        opener.kill()
        with adopted(opener, region) as port:
            told(port, "renamed")
            net.change(b.netns, "vz", ifname="vy")
            told(port, "renamed")
            for name in ("vb", "vz"):
                net.veth(c := End(net.namespace(), "vc"), End(b.netns, name))
                net.send(c, [numbered(0)])
                eventually(host.heard)
            receives(net, port, a, End(b.netns, "vy"), host)


def test_who_lets_go_takes_nothing_from_the_others(net, region):
    a, b = net.pair()
    with Opener(net, name=b.name + f"?netns={b.netns}", take=True, yes=True) as opener, Host(b) as host, adopted(opener, region) as port:
        other, watch = ports.adopt_device(*opener.handed())
        watch.close()
        other.let_go()
        opener.kill()
        receives(net, port, a, b, host)


def test_a_namespace_that_lost_its_name_is_found_by_its_socket(net, region):
    a, b = net.pair()
    with Opener(net, name=b.name + f"?netns={b.netns}", take=True, yes=True) as opener, Host(b) as host:
        opener.kill()
        opener.state["how"]["netns_name"] = a.netns  # as a pid may be another process's by now
        with adopted(opener, region) as port:
            net.change(b.netns, "vb", mtu=1400)
            told(port, "mtu")
            receives(net, port, a, b, host)
            before = descriptors()
        assert before - descriptors() >= 5


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("name", ["vb", "tap:t0"])
def test_nothing_is_left_open_when_adopting_fails(net, name):
    _, b = net.pair()
    with Opener(net, name=f"{name}?netns={b.netns}", queues=2) as opener:
        before = descriptors()
        opener.state["link"]["mac"] = "no address"
        with pytest.raises(ValueError):
            ports.adopt_device(opener.state, opener.fds)
        assert descriptors() == before - len(opener.fds)
        opener.fds = []


# ---- a ring goes on with its device ----


@pytest.mark.parametrize("name", ["va?rx=frames", "va?rx=blocks", "tap:t0?"])
def test_an_heir_of_ring_and_device_goes_on_behind_the_last_frame_that_was_taken(net, name):
    """Where the kernel's ring stands the engine's ring knows: an heir that began at its start would see frames twice, or none."""
    a, b = net.pair()
    end = End(a.netns, "t0") if name.startswith("tap") else b
    with Region.create(f"test-hand-on-{os.getpid()}", rings=8, slots=256, owners=2) as region:
        with Opener(net, name=f"{name}&netns={a.netns}") as opener:
            (index,) = map(int, opener.told(f"work in {region.name}"))
            net.send(end, [numbered(i) for i in range(150)])
            assert opener.told("take 100") == [str(i) for i in range(100)]
            opener.drop()
            opener.state, opener.fds = opener.handed()
            assert opener.told("take 50") == [str(i) for i in range(100, 150)]
            net.send(end, [numbered(i) for i in range(150, 200)])
            opener.kill()
            fds, opener.fds = opener.fds, []
            device, watch = ports.adopt_device(opener.state, fds)
            with contextlib.closing(device), contextlib.closing(watch):
                region.mend(1, region.pool_of(1, 2))
                ring = region.view.ring(index)
                ring.bind(device.queues[0].device)
                assert ring.resume() == 0
                net.send(end, [numbered(i) for i in range(200, 250)])
                assert numbers(region, ring, 101, 0.5) == list(range(150, 250))
                ring.bind(None)


def test_drops_that_a_worker_counted_its_heir_does_not_count_again(net):
    here = End(net.namespace(), "t0")
    with Region.create(f"test-hand-on-{os.getpid()}", rings=8, slots=256, owners=2) as region:
        with Opener(net, name=f"tap:t0?netns={here.netns}") as opener:
            (index,) = map(int, opener.told(f"work in {region.name}"))
            net.send(here, [numbered(0)], 1500)
            opener.told("take 1")
            opener.told("count drops")
            counted = sum(row["drop_tap_queue"] for row in region.counters())
            assert counted
            opener.kill()
            fds, opener.fds = opener.fds, []
            device, watch = ports.adopt_device(opener.state, fds)  # of before they were counted
            with contextlib.closing(device), contextlib.closing(watch):
                ring = region.view.ring(index)
                ring.bind(device.queues[0].device)
                ring.resume()
                ring.stats()
                assert sum(row["drop_tap_queue"] for row in region.counters()) == counted
                ring.bind(None)


def test_a_file_is_read_on_where_the_dead_one_stopped(net, tmp_path, region):
    first = writer(tmp_path / "f")
    with sending(region, first) as send:
        send([numbered(i) for i in range(200)])
    first.close()
    with Region.create(f"test-hand-on-file-{os.getpid()}", rings=8, slots=256, owners=2) as shared:
        with Opener(net, name=f"pcap:{tmp_path / 'f'}", directions="rx") as opener:
            (index,) = map(int, opener.told(f"work in {shared.name}"))
            assert opener.told("take 50") == [str(i) for i in range(50)]
            fds, opener.fds = opener.fds, []
            device, _ = ports.adopt_device(opener.state, fds)
            assert opener.told("take 50") == [str(i) for i in range(50, 100)], "who adopts does not move the place of who reads"
            opener.kill()
            with contextlib.closing(device):
                shared.mend(1, shared.pool_of(1, 2))
                ring = shared.view.ring(index)
                ring.bind(device.queues[0].device)
                assert ring.resume() == 0
                assert numbers(shared, ring, 101, 0.5) == list(range(100, 200))
                assert device.facts()["file"] == str(tmp_path / "f")
                ring.bind(None)


# ---- all who hold it know the same of the link ----


def test_what_one_process_hears_of_the_link_holds_in_all(net, region):
    """A worker cannot follow events: a carrier that went, a larger MTU, it knows at once from who does."""
    a, b = net.pair()
    with Region.create(f"test-theirs-{os.getpid()}", rings=8, slots=256, owners=2) as theirs:
        with Opener(net, name=f"va?netns={a.netns}") as opener, adopted(opener, region, directions="tx") as port:
            opener.told(f"work in {theirs.name}")
            assert opener.told("send") == ["1", "1", "0"]
            net.change(b.netns, "vb", state="down")
            told(port, "no_carrier")
            assert opener.told("send")[2] != "0" and sum(row["drop_down"] for row in theirs.counters()) == 1


def test_the_mtu_of_a_tap_holds_in_all_processes(net, region):
    here = End(net.namespace(), "t0")
    with Region.create(f"test-theirs-{os.getpid()}", rings=8, slots=256, owners=2) as theirs:
        with Opener(net, name=f"tap:t0?mtu=600&netns={here.netns}") as opener, adopted(opener, region, directions="tx") as port:
            opener.told(f"work in {theirs.name}")
            opener.told("send")
            assert sum(row["drop_mtu"] for row in theirs.counters()) == 1
            net.change(here.netns, "t0", mtu=1500)
            told(port, "mtu")
            with net.listening(here) as ear:
                opener.told("send")
                assert ear.take(1) == [bytes(1400)]


# ---- queues that only send ----


@pytest.mark.parametrize("name", ["vb", "tap:t0"])
@pytest.mark.parametrize("directions", ["rxtx", "tx"])
def test_a_device_may_have_more_queues_to_send_than_to_receive(net, region, name, directions):
    """Each worker has a queue to send by, some have one to receive by."""
    a, b = net.pair()
    with Opener(net, name=f"{name}?netns={b.netns}", queues=2, tx_queues=3, directions=directions) as opener:
        opener.kill()
        fds, opener.fds = opener.fds, []
        with contextlib.closing(ports.adopt_device(opener.state, fds)[0]) as device:
            n = 0 if name == "vb" and directions == "tx" else 2
            assert [(q.receives, q.rx_fd >= 0, q.sends, q.tx_fd >= 0) for q in device.queues] == [
                (i < n, i < n, True, True) for i in range(3)
            ]
            assert (device.facts()["queues"], device.facts()["tx_queues"]) == (n, 3)
            end = a if name == "vb" else End(b.netns, "t0")
            with net.listening(end) as ear:
                for i, queue in enumerate(device.queues):
                    index, ring = region.make_ring(1, 64, f"tx{i}", i)
                    ring.bind(queue.device)
                    assert ring.put([numbered(i)]) == 1 and ring.sync() == 1
                    assert ear.take(1) == [numbered(i)]
                    ring.bind(None)
                    region.drop_ring(index)


def test_a_tap_of_one_queue_is_written_to_by_several(net, region):
    """Also after it was made anew: the queues that only send go to the new one."""
    netns = net.namespace()
    with contextlib.closing(Tap("t0", tx_queues=2, netns_name=netns)) as tap, contextlib.closing(LinkWatch("t0", netns)) as watch:
        assert not tap.facts()["multi_queue"]
        index, ring = region.make_ring(1, 64, "tx1", 1)
        ring.bind(tap.queues[1].device)
        net.delete(netns, "t0")
        eventually(lambda: [tap.follow(event) for event in watch.events() if event.kind == "gone"])
        assert ring.put([numbered(0)]) == 1 and ring.sync() == 1
        tap.rebind()
        with net.listening(End(netns, "t0")) as ear:
            assert ring.put([numbered(1)]) == 1 and ring.sync() == 1
            assert ear.take(1) == [numbered(1)]
        ring.bind(None)
        region.drop_ring(index)


# ---- TAP ----


def up_since_ever(net, end):
    """Everything the kernel said of the interface from now on; -> a function that gives the kinds so far."""
    watch = LinkWatch(end.name, end.netns)
    kinds = []

    def so_far():
        kinds.extend(event.kind for event in watch.events())
        return kinds

    return so_far


@pytest.mark.parametrize("queues", [1, 2])
def test_F5_a_tap_goes_on_in_another_process_and_its_carrier_never_drops(net, region, queues):
    here = End(net.namespace(), "t0")
    with Opener(net, name=f"tap:t0?netns={here.netns}&mac=02:00:00:00:00:07", queues=queues) as opener:
        with net.inside(here.netns), IPRoute() as ipr:
            index = socket.if_nametoindex("t0")
            ipr.addr("add", index=index, address="10.0.0.1", prefixlen=24)
        was, events = facts_of(here), up_since_ever(net, here)
        net.send(here, [numbered(i) for i in range(100)])
        opener.kill()
        net.send(here, [numbered(i) for i in range(100, 200)])
        with adopted(opener, region) as port:
            net.send(here, [numbered(i) for i in range(200, 300)])
            got = [number(frame) for frame in gather(port, 300)]
            assert got == list(range(300))
            with net.listening(here) as ear:
                assert port.send([numbered(7)]) == 1 and ear.take(1) == [numbered(7)]
            assert facts_of(here) == was and events() == [] and port.stats()["drop_tap_queue"] == 0
            with net.inside(here.netns), IPRoute() as ipr:
                assert [addr.get_attr("IFA_ADDRESS") for addr in ipr.get_addr(index=index)] == ["10.0.0.1"]
        with pytest.raises(Error, match="E_NO_INTERFACE"):
            facts_of(here)


def test_drops_of_a_tap_are_counted_once_by_opener_and_heir(net, region):
    """And what was dropped before either came is not theirs."""
    here = End(net.namespace(), "t0")
    with contextlib.closing(Tap("t0", netns_name=here.netns, options={"persist": "1"})):
        net.send(here, [numbered(0)], 1500)
    with Opener(net, name=f"tap:t0?persist=0&netns={here.netns}") as opener:
        net.send(here, [numbered(0)], 1500)
        opener.kill()
        with adopted(opener, region) as port:
            kept = len(gather(port, 1500, 0.5))
            assert kept < 1500
            eventually(lambda: kept + port.stats()["drop_tap_queue"] == 1500)


@pytest.mark.parametrize("queues", [1, 2])
def test_an_heir_follows_its_tap(net, region, queues):
    here = End(net.namespace(), "t0")
    with Opener(net, name=f"tap:t0?netns={here.netns}", queues=queues) as opener:
        net.change(here.netns, "t0", ifname="t1")
        opener.kill()
        with adopted(opener, region) as port:
            told(port, "renamed")
            assert port.facts()["interface"] == "t1"
            net.change(here.netns, "t1", state="down")
            told(port, "down")
            net.change(here.netns, "t1", state="up", mtu=9000)
            assert "mtu" in told(port, "up")
            jumbo = numbered(1, 8000)
            with net.listening(End(here.netns, "t1")) as ear:
                assert port.send([jumbo]) == 1 and ear.take(1) == [jumbo]


@pytest.mark.parametrize("noticed", [True, False])
def test_a_tap_that_went_while_nobody_watched_is_made_anew_when_its_name_is_back(net, region, noticed):
    here = End(net.namespace(), "t0")
    with Opener(net, name=f"tap:t0?netns={here.netns}") as opener:
        net.delete(here.netns, "t0")
        if noticed:
            eventually(lambda: opener.follows())
            opener.drop()
            opener.state, opener.fds = opener.handed()
        opener.kill()
        with adopted(opener, region) as port:
            if not noticed:
                told(port, "gone")
            Tap("t0", netns_name=here.netns, options={"persist": "1"}).close()
            told(port, "back")
            eventually(lambda: facts_of(here).carrier)
            net.send(here, [numbered(5)])
            assert numbered(5) in gather(port, 1)
            net.delete(here.netns, "t0")


def test_a_tap_in_another_namespace_goes_on(net, region):
    here, there = net.namespace(), net.namespace("there")
    with Opener(net, name=f"tap:t0?netns={here}") as opener:
        with open(f"/run/netns/{there}", "rb") as file:
            net.change(here, "t0", net_ns_fd=file.fileno())
        net.change(there, "t0", state="up")
        assert opener.follows()
        opener.drop()
        opener.state, opener.fds = opener.handed()
        opener.kill()
        with adopted(opener, region) as port:
            net.send(End(there, "t0"), [numbered(5)])
            assert gather(port, 1) == [numbered(5)]


def test_the_end_of_a_persistent_tap_is_not_the_end_of_a_holder(net, region):
    """Who closes it switches its offloads off for whoever comes next; who only lets go must not, or the others' frames change."""
    here = End(net.namespace(), "t0")
    with Opener(net, name=f"tap:t0?netns={here.netns}&persist=1") as opener:
        other, watch = ports.adopt_device(*opener.handed())
        watch.close()
        was = facts_of(here).offloads
        other.let_go()
        assert facts_of(here).offloads == was
        opener.kill()
        with adopted(opener, region):
            assert facts_of(here).offloads == was
        assert facts_of(here).offloads != was
        net.delete(here.netns, "t0")


# ---- files ----


@contextlib.contextmanager
def sending(region, device):
    """A ring to put frames into the device."""
    index, ring = region.make_ring(1, 256, f"tx{id(device)}", 0)
    ring.bind(device.queues[0].device)
    yield lambda frames: (ring.put(frames), ring.sync())
    ring.bind(None)
    region.drop_ring(index)


def copy_of(device):
    """The device once more, as another process would have it."""
    state, fds = device.hand_on()
    return ports.adopt_device(json.loads(json.dumps(state)), [os.dup(fd) for fd in fds])[0]


def read(path):
    """-> the frames of a capture file, and what its interfaces' statistics say was delivered"""
    with Region.create(f"test-read-{os.getpid()}", rings=4, slots=1024) as region, ports.open(f"pcap:{path}", region=region) as port:
        frames = [bytes(frame) for batch in port.batches() for frame in batch]
        return frames, [interface["stats"][4] for interface in port.device.interfaces]


def writer(path, **how):
    return pcap.Writer(path, [pcap.Interface("a", port=0, mac=bytes(6)), pcap.Interface("b", port=1)], **how)


@pytest.mark.parametrize("last", ["writer", "heir"])
def test_a_file_is_ended_once_by_whoever_closes_it_first_with_counts_of_all_who_wrote(tmp_path, region, last):
    first = writer(tmp_path / "f")
    with sending(region, first) as send:
        send([numbered(i) for i in range(5)])
        heir = copy_of(first)
        send([numbered(i) for i in range(5, 9)])
    before, after = (heir, first) if last == "writer" else (first, heir)
    before.close()
    after.close()
    frames, delivered = read(tmp_path / "f")
    assert frames == [numbered(i) for i in range(9)] and delivered == [9, 0]


def test_half_a_record_of_one_who_died_is_cut_off(tmp_path, region):
    first = writer(tmp_path / "f")
    with sending(region, first) as send:
        heir = copy_of(first)
        send([numbered(0)])
        whole = os.stat(tmp_path / "f").st_size
        send([numbered(1)])
        os.truncate(tmp_path / "f", whole + 50)
        first.let_go()
    heir.close()
    assert read(tmp_path / "f") == ([numbered(0)], [1, 0])


def test_who_lets_go_of_a_file_writes_nothing(tmp_path, region):
    first = writer(tmp_path / "f")
    other = copy_of(first)
    size = os.stat(tmp_path / "f").st_size
    other.let_go()
    with sending(region, first) as send, sending(region, other) as nothing:
        nothing([numbered(7)])
        assert os.stat(tmp_path / "f").st_size == size
        send([numbered(0)])
    first.close()
    assert read(tmp_path / "f") == ([numbered(0)], [1, 0])


def test_a_row_of_files_goes_on(tmp_path, region):
    first = writer(tmp_path / "f", rotation=pcap.Rotation(max_bytes=2000))
    with sending(region, first) as send:
        send([numbered(i) for i in range(40)])
        assert first.paused == "size" and first.proceed()
        heir = copy_of(first)
        first.let_go()
    with sending(region, heir) as send:
        send([numbered(i, 500) for i in range(5)])
        assert heir.paused == "size" and heir.proceed()
        assert heir.name == str(tmp_path / "f2") and heir.files == [str(tmp_path / name) for name in ("f", "f1", "f2")]
    heir.close()
    assert len(read(tmp_path / "f1")[0]) > 1


def test_an_heir_keeps_the_file_from_others(tmp_path):
    first = writer(tmp_path / "f")
    heir = copy_of(first)
    first.let_go()
    with pytest.raises(Error, match="E_FILE_BUSY"):
        writer(tmp_path / "f")
    heir.close()
    writer(tmp_path / "f").close()


# ---- null, and what cannot ----


def test_null_goes_on(net, region):
    with Opener(net, name="null:?len=60", port_number=77) as opener:
        opener.kill()
        with adopted(opener, region) as port:
            batch = port.recv()
            assert len(batch) and set(batch.ports.tolist()) == {77}


def test_a_device_that_cannot_says_so():
    with pytest.raises(Error, match="E_HAND_ON"):
        Device().hand_on()
