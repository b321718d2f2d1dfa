"""Apps in processes of their own, attached to the ports of a running engine by opening the interface."""

import json
import os
import signal
import subprocess
import sys

import pytest
from command import eventually
from engine_lab import FORWARD, running
from frames import number, numbered
from live import Load, heard, middle, once_in_order

from pktring.drivers.netns import entered

APP = """
import json, sys, pktring
how = json.loads(sys.argv[1])
with pktring.open("fa", **how) as port:
    print(json.dumps(port.facts()), flush=True)
    for batch in port.batches(timeout=None):
        print(*(int.from_bytes(bytes(frame[14:22]), "big") for frame in batch), flush=True)
"""


class App:
    """A Python app on port left; `numbers()` are those of the frames it has seen so far."""

    def __init__(self, net, engine, **how):
        argv = [sys.executable, "-c", APP, json.dumps(how)]
        self.child = net.lab.start(net.fa.netns, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=engine.env)
        line = self.child.stdout.readline()
        assert line, self.child.stderr.read()
        self.facts = json.loads(line)
        os.set_blocking(self.child.stdout.fileno(), False)
        self._text = ""

    def numbers(self):
        self._text += self.child.stdout.read() or ""
        return [int(word) for word in self._text.rpartition("\n")[0].split()]

    def sees(self, wanted):
        eventually(lambda: self.numbers() == list(wanted), 5)

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(5)


@pytest.fixture
def net():
    with middle() as net:
        yield net


@pytest.mark.needs("root")
def test_a_copy_goes_to_the_app_and_the_frame_its_way(net):
    with running(net, FORWARD) as engine:
        app, ear = App(net, engine), net.lab.listening(net.b)
        assert (app.facts["mode"], app.facts["memory"]) == ("copy", "shared")
        net.lab.send(net.a, [numbered(i) for i in range(200)])
        app.sees(range(200))
        assert [number(frame) for frame in ear.take(200)] == list(range(200))
        (told,) = engine.status()["apps"]
        assert told["counters"]["copied"] == 200 and told["counters"]["drop_app_full"] == 0


@pytest.mark.needs("root")
def test_a_consumer_takes_what_it_asked_for_and_gives_all_back_at_its_death(net):
    with running(net, FORWARD) as engine:
        app, ear = App(net, engine, take=1, filter="ether[21] & 1 = 1"), net.lab.listening(net.b)
        net.lab.send(net.a, [numbered(i) for i in range(100)])
        app.sees(range(1, 100, 2))
        assert [number(frame) for frame in ear.take(50)] == list(range(0, 100, 2))
        app.kill()
        _, line = engine.told("W_APP_GONE")
        lent, returned = (int(word.partition("=")[2]) for word in line.split()[-2:])
        assert lent == returned > 0
        net.lab.send(net.a, [numbered(i) for i in range(100, 140)])
        assert [number(frame) for frame in ear.take(40)] == list(range(100, 140)), "its frames go on as before it came"
        assert engine.status()["pool"]["lent"] == 0


@pytest.mark.needs("root")
def test_what_an_app_sends_leaves_by_its_port(net, monkeypatch):
    import pktring

    with running(net, FORWARD) as engine:
        monkeypatch.setenv("PKTRING_RUNDIR", engine.env["PKTRING_RUNDIR"])
        ear = net.lab.listening(net.a)
        with entered(net.fa.netns):
            port = pktring.open("fa")
        with port:
            left = [numbered(i) for i in range(1000)]
            while left:
                del left[: port.send(left)]
            assert [number(frame) for frame in ear.take(1000)] == list(range(1000))
        assert engine.status()["ports"]["left"]["counters"]["tx_frames"] == 1000


@pytest.mark.needs("root")
def test_apps_come_and_go_under_load_and_no_frame_is_lost(net):
    with running(net, FORWARD) as engine, heard(net.b.netns) as got, Load(net.a) as load:
        for _ in range(4):
            first, second = App(net, engine), App(net, engine)
            load.goes_on(100)
            first.kill()
            load.goes_on(100)
            second.kill()
        engine.told("W_APP_GONE app=2")
    assert not once_in_order(load, got), "forwarding goes on while apps come and go"


@pytest.mark.needs("root")
def test_capture_attaches_to_the_engine_that_has_the_interface(net, tmp_path):
    with running(net, FORWARD) as engine:
        argv = [sys.executable, "-m", "pktring.tools.main", "capture", "-i", "fa", "-c", "50", "-w", str(tmp_path / "f.pcapng"), "--json"]
        capture = net.lab.start(net.fa.netns, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=engine.env)
        eventually(lambda: engine.status()["apps"], 10)
        net.lab.send(net.a, [numbered(i) for i in range(50)])
        out, err = capture.communicate(timeout=20)
        assert json.loads(out)["captured"] == 50, err


@pytest.mark.needs("root")
def test_the_end_of_the_engine_ends_its_apps(net):
    with running(net, FORWARD) as engine:
        app = App(net, engine)
        engine.run("down", "t")
        engine.child.wait(10)
        _, err = app.child.communicate(timeout=10)
        assert app.child.returncode and "E_DETACHED" in err, err
