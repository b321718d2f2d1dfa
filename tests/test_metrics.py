"""The Prometheus endpoint: real scrapes, read by prometheus_client's own parser."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest
import statuses
from command import eventually
from prometheus_client.parser import text_string_to_metric_families

from pktring.shm.errors import Error
from pktring.tools import metrics

ANY = "127.0.0.1:0"


def scraped(address):
    """Scrape it. -> {(sample name, frozenset of labels but the engine): value}, {family: type}."""
    host, port = address
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    samples = [sample for family in families for sample in family.samples]
    assert len({(s.name, frozenset(s.labels.items())) for s in samples}) == len(samples), "a series twice"
    values = {(s.name, frozenset((k, v) for k, v in s.labels.items() if k != "engine")): s.value for s in samples}
    return values, {family.name: family.type for family in families}


@pytest.fixture
def endpoint():
    state = {"status": statuses.status()}
    with metrics.serve(ANY, lambda: state["status"]) as served:
        yield served, state


def value(got, name, **labels):
    return got[name, frozenset(labels.items())]


def test_a_scrape_has_the_counters(endpoint):
    got, _ = scraped(endpoint[0].address)
    assert value(got, "pktring_up") == 1
    assert value(got, "pktring_port_frames_total", port="left", direction="rx") == 1500
    assert value(got, "pktring_port_bytes_total", port="right", direction="tx") == 95360
    assert value(got, "pktring_drops_total", port="left", reason="drop_filter") == 10
    assert value(got, "pktring_drops_total", port="right", reason="drop_filter") == 0  # there before the first one: rates need that
    assert value(got, "pktring_port_events_total", port="right", event="mirrored") == 10
    assert value(got, "pktring_port_up", port="right") == 0
    assert value(got, "pktring_worker_restarts_total", worker="2") == 2
    assert value(got, "pktring_worker_cpu_seconds_total", worker="1", cpu="0") == 12.5
    assert value(got, "pktring_netisr_queue_drops_total", protocol="epair", workstream="0") == 418
    assert value(got, "pktring_netisr_queue_length", protocol="epair", workstream="0") == 12
    assert value(got, "pktring_netisr_queue_limit", protocol="epair") == 2100
    assert value(got, "pktring_handler_raised_total", handler="ip", protocol="1", worker="2") == 1
    assert value(got, "pktring_buffers", state="lent") == 12
    assert value(got, "pktring_apps", port="left", memory="sealed") == 1


def test_names_and_types_are_as_prometheus_asks(endpoint):
    got, types = scraped(endpoint[0].address)
    assert all(name.startswith("pktring_") and types[name] in ("counter", "gauge") for name in types)
    assert all(name.endswith("_total") for (name, _) in got if types.get(name.removesuffix("_total")) == "counter")


def test_every_counter_of_a_ring_is_told_once(endpoint):
    from pktring.shm import _shm

    got, _ = scraped(endpoint[0].address)
    labels = [dict(labels) for _, labels in got]
    told = {found[key] for found in labels for key in ("reason", "event") if key in found}
    assert told | {"rx_frames", "rx_bytes", "tx_frames", "tx_bytes"} == {name for name, _ in _shm.COUNTERS}


def test_each_scrape_asks_anew(endpoint):
    served, state = endpoint
    state["status"] = statuses.later(state["status"], frames=500)
    assert value(scraped(served.address)[0], "pktring_port_frames_total", port="left", direction="rx") == 2000


@pytest.mark.parametrize("why", [Error("E_NO_CONTROLLER", "x: y"), OSError("gone")])
def test_an_engine_that_does_not_answer_is_down_and_the_endpoint_lives(why):
    def status():
        raise why

    with metrics.serve(ANY, status) as served:
        assert scraped(served.address)[0] == {("pktring_up", frozenset()): 0}


def test_a_closed_endpoint_frees_its_address(endpoint):
    with metrics.serve(ANY, statuses.status) as served:
        where = served.address
    with pytest.raises(urllib.error.URLError):
        scraped(where)
    with metrics.serve(f"{where[0]}:{where[1]}", statuses.status) as served:
        assert scraped(served.address)


def test_a_busy_address_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(Error, match="another program listens there") as got:
        metrics.serve(f"127.0.0.1:{other.getsockname()[1]}", statuses.status)
    assert got.value.code == "E_METRICS_LISTEN"


def test_an_address_of_another_host_is_refused():
    with pytest.raises(Error, match="choose another address") as got:
        metrics.serve("192.0.2.1:9469", statuses.status)
    assert got.value.code == "E_METRICS_LISTEN"


@pytest.mark.parametrize(
    "text, meant", [("127.0.0.1:9469", ("127.0.0.1", 9469)), ("[::1]:80", ("::1", 80)), ("localhost:0", ("localhost", 0))]
)
def test_an_address_is_read(text, meant):
    assert metrics.address(text) == meant


@pytest.mark.parametrize(
    "text", ["", "9469", ":9469", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "::1:80", "h:-1", "h:٣"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(Error, match="write ADDRESS:PORT") as got:
        metrics.address(text)
    assert got.value.code == "E_CONFIG"


def test_ipv6(endpoint):
    try:
        served = metrics.serve("[::1]:0", statuses.status)
    except Error:
        pytest.skip("no ::1 here")
    with served, urllib.request.urlopen(f"http://[::1]:{served.address[1]}/metrics", timeout=10) as answer:
        assert b"pktring_up 1.0" in answer.read()


# ---- as a process ----

PARENT = """\
import sys
from pktring.shm.errors import Error
from pktring.tools import metrics
try:
    child = metrics.start(sys.argv[1], sys.argv[2])
except Error as error:
    sys.exit(str(error))
print(child.pid, flush=True)
sys.stdin.read()
"""


def parent(listen, control="/nowhere/control.sock"):
    return subprocess.Popen([sys.executable, "-c", PARENT, listen, control], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def test_the_process_listens_when_start_returns_and_ends_with_its_parent():
    port = free_port()
    with parent(f"127.0.0.1:{port}") as starter:
        pid = int(starter.stdout.readline())
        assert psutil.Process(pid).cmdline()[:1]
        assert scraped(("127.0.0.1", port))[0] == {("pktring_up", frozenset()): 0}  # nobody answers there
        starter.kill()
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_the_process_has_none_of_its_parents_descriptors():
    port = free_port()
    with parent(f"127.0.0.1:{port}") as starter:
        pid = int(starter.stdout.readline())
        names = {os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0] for fd in os.listdir(f"/proc/{pid}/fd")}
        assert names <= {"/dev/null", "pipe", "socket", "anon_inode", *(os.readlink(f"/proc/{pid}/fd/2"),)}, names
        starter.stdin.close()


def test_a_process_that_cannot_listen_says_why():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(Error, match="E_METRICS_LISTEN .*another program listens"):
        metrics.start(f"127.0.0.1:{other.getsockname()[1]}", "/nowhere/control.sock")


def test_ctrl_c_in_the_terminal_is_not_for_it():
    port = free_port()
    with parent(f"127.0.0.1:{port}") as starter:
        pid = int(starter.stdout.readline())
        os.kill(pid, signal.SIGINT)
        assert scraped(("127.0.0.1", port))
        starter.stdin.close()
