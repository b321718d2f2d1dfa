"""Super-frames in an engine: whole by a rule, cut for handlers and mirrors, and the books right in any case."""

import socket
import threading
from types import SimpleNamespace

import pytest
from command import eventually
from conservation import unaccounted
from engine_lab import running
from live import middle

from pktring.drivers.netns import entered

pytestmark = pytest.mark.needs("root")
SENT = bytes(range(256)) * (8 << 12)  # 8 MiB
HANDLERS = """
def across(batch):
    if batch.lengths.max() > 1514:
        raise ValueError(f"a frame of {batch.lengths.max()} bytes")
    batch.forward("right", where=batch.ports == 0)
    batch.forward("left", where=batch.ports == 1)
"""
CONFIG = """
[engine]
name = "t"
workers = 2
[port.left]
interface = "fa"
rings = 2
[port.right]
interface = "fb"
rings = 2
[[forward]]
from = "left"
to = "right"
both = true
filter = "tcp port 5001"
[[protocol]]
name = "arp"
handler = "handlers:across"
policy = "source"
[[protocol]]
name = "ip"
handler = "handlers:across"
policy = "flow"
qlimit = 4096
[sysctl]
"net.isr.maxqlimit" = 4096
"""


def transfer(net, port):
    """8 MiB from a to b over TCP. -> what arrived."""
    got = bytearray()
    with entered(net.b.netns):
        listener = socket.create_server(("10.0.0.2", port))
    with entered(net.a.netns):
        sender = socket.socket()
    with listener, sender:
        sender.settimeout(20)
        sender.connect(("10.0.0.2", port))
        receiver, _ = listener.accept()
        with receiver:
            receiver.settimeout(20)
            sending = threading.Thread(target=lambda: (sender.sendall(SENT), sender.shutdown(socket.SHUT_WR)), daemon=True)
            sending.start()
            while part := receiver.recv(1 << 20):
                got += part
            sending.join(20)
    return bytes(got)


def rows(engine, name="left"):
    return [ring for ring in engine.status()["ports"][name]["rings"] if " rx" in ring["row"]]


def total(engine, counter):
    return sum(ring[counter] for ring in rows(engine))


def balanced(engine):
    def books():
        all_rows = [ring for port in engine.status()["ports"].values() for ring in port["rings"]]
        return unaccounted(SimpleNamespace(counters=lambda: all_rows))

    eventually(lambda: not any(books().values()), 5)


def handler(engine, name):
    return [h for h in engine.status()["handlers"] if h["name"] == name]


def test_a_rule_carries_super_frames_whole_although_handlers_are_there():
    with middle(addresses=True) as net, running(net, CONFIG, handlers=HANDLERS) as engine:
        assert transfer(net, 5001) == SENT
        assert total(engine, "rx_bytes") / total(engine, "rx_frames") > 3000 and total(engine, "rx_supers") == 0
        balanced(engine)


def test_a_handler_gets_the_wire_frames_of_a_super_frame():
    with middle(addresses=True) as net, running(net, CONFIG, handlers=HANDLERS) as engine:
        assert transfer(net, 5002) == SENT
        assert total(engine, "rx_supers") > 0 and total(engine, "rx_pieces") > total(engine, "rx_supers")
        assert sum(h["raised"] for h in handler(engine, "ip")) == 0, handler(engine, "ip")
        assert sum(h["frames"] for h in handler(engine, "ip")) > len(SENT) / 1448
        balanced(engine)


def test_a_mirror_gets_wire_frames_from_the_worker_that_cannot_send_there(tmp_path):
    import pktring

    file = tmp_path / "m.pcapng"
    mirror = f'[[mirror]]\nfrom = "left"\nto = "pcap:{file}"\n'
    with middle(addresses=True) as net:
        with running(net, CONFIG.replace("[[protocol]]", mirror + "[[protocol]]", 1), handlers=HANDLERS) as engine:
            for _ in range(6):  # flows, which come to both workers
                assert transfer(net, 5001) == SENT
            assert all(ring["forwarded"] for ring in rows(engine)), "both workers had some"
    with pktring.open(f"pcap:{file}") as port:
        longest = max(int(batch.lengths.max()) for batch in port.batches())
    assert 1000 < longest <= 1514
