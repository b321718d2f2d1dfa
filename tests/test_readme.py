"""The README's examples do what it says: typed as they stand, in a namespace whose interfaces have its names.

    eth0 ===== far0     eth1 ===== far1     eth2 ===== far2          all the time, frames of every kind are sent out of far0 and far1

In the directory lie its edge.toml and mine.py; what speaks to an engine finds one that runs on them.

What is not run here: `./run ...`, which runs us, and the left side of the table, which is what you know.
"""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import captures
import psutil
import pytest
from command import eventually
from lab import End, Lab

TOP = Path(__file__).resolve().parent.parent
README = (TOP / "README.md").read_text()
ENV = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}

PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
HANDLERS = PYTHON.pop(0)
(EDGE,) = re.findall(r"^```toml\n(.*?)^```", README, re.M | re.S)
ASKING = ("stat", "sysctl", "top", "ps", "down")  # verbs that speak to an engine
INDENTED = re.findall(r"^    (pktring .*)$", README, re.M)
INLINE = re.findall(r"`(pktring \w+)`", README)
TABLE = re.findall(r"^\| `(.*?)`.*? \| `(.*?)` \|$", README, re.M)
TYPED = [right for _, right in TABLE]
COMMANDS = list(dict.fromkeys([*INDENTED, *(typed for typed in TYPED if typed.startswith("pktring ")), "pktring doctor"]))
SNIPPETS = [typed for typed in TYPED if not typed.startswith("pktring ")]


def frames():
    """One of each that the examples speak of."""
    from scapy.layers.dns import DNS, DNSQR
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.l2 import Ether

    ip = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="10.9.0.1", dst="10.9.0.2")
    packets = [
        ip / UDP(dport=53) / DNS(qd=DNSQR(qname="a.example")),
        *(ip / TCP(dport=port) for port in (22, 80, 443)),
        ip / UDP() / bytes(1400),
    ]
    return [bytes(packet) for packet in packets]


@pytest.fixture(scope="module")
def net():
    """The namespace, and traffic."""
    with Lab() as lab:
        here, far = lab.namespace("here"), lab.namespace("far")
        for i in range(3):
            lab.veth(End(here, f"eth{i}"), End(far, f"far{i}"))
        over = threading.Event()

        def send():
            with lab.inside(far), contextlib.ExitStack() as socks:
                outs = [socks.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) for _ in range(2)]
                for i, out in enumerate(outs):
                    out.bind((f"far{i}", 0))
                while not over.wait(0.02):
                    for frame in sent:
                        for out in outs:
                            out.send(frame)

        sent = frames()
        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        try:
            yield lab, End(here, "eth0"), [End(far, f"far{i}") for i in range(3)]
        finally:
            over.set()
            sender.join(10)


def in_directory(tmp_path):
    """What the README says lies there. -> the environment in which commands find it."""
    (tmp_path / "f.pcap").write_bytes(captures.pcap([(i, frame) for i, frame in enumerate(frames())]))
    (tmp_path / "edge.toml").write_text(EDGE)
    (tmp_path / "mine.py").write_text(HANDLERS)
    return ENV | {"PYTHONPATH": ".", "PKTRING_RUNDIR": str(tmp_path / "run")}


@contextlib.contextmanager
def edge(net, tmp_path):
    """The README's engine, running."""
    lab, here, _ = net
    with open(tmp_path / "said", "w+") as said:
        child = lab.start(here.netns, ["pktring", "up", "edge.toml"], cwd=tmp_path, env=in_directory(tmp_path), stderr=said, stdout=-3)
        try:
            eventually(lambda: "is ready" in (tmp_path / "said").read_text() or child.poll() is not None, 20)
            assert child.poll() is None, (tmp_path / "said").read_text()
            yield
        finally:
            child.terminate()
            child.wait(20)


def typed(net, tmp_path, line):
    """Run a command line as a user would in an empty directory, and press Ctrl-C after a second. -> (status, stdout, stderr)"""
    with edge(net, tmp_path) if line.split()[1] in ASKING else contextlib.nullcontext():
        return _typed(net, tmp_path, line)


def _typed(net, tmp_path, line):
    lab, here, _ = net
    env = in_directory(tmp_path)
    argv = ["bash", "-o", "pipefail", "-c", line] if "|" in line else shlex.split(line)
    with open(tmp_path / "stdout", "w") as out, open(tmp_path / "stderr", "w+") as err:
        child = lab.start(here.netns, argv, cwd=tmp_path, env=env, stdin=-3, stdout=out, stderr=err)
        with contextlib.suppress(AssertionError):
            eventually(lambda: child.poll() is not None or "pktring: " in (tmp_path / "stderr").read_text(), 20)
            eventually(lambda: child.poll() is not None, 1.5)
        if child.poll() is None:
            _ours(child).send_signal(signal.SIGINT)
        child.wait(20)
    return child.returncode, (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()


def _ours(child):
    """The process to press Ctrl-C on: of a pipe its first program, the other ends with its input."""
    if psutil.Process(child.pid).name() != "bash":
        return child
    below = [p for p in psutil.Process(child.pid).children(recursive=True) if any("pktring" in word for word in p.cmdline())]
    return below[0] if below else child


def read(path):
    import pktring

    with pktring.open(f"pcap:{path}") as port:
        return [bytes(frame) for batch in port.batches() for frame in batch]


# ---- commands ----


@pytest.mark.needs("root")
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_works_as_typed(net, tmp_path, line):
    if "tshark" in line and not any(Path(folder, "tshark").exists() for folder in ENV["PATH"].split(":")):
        pytest.skip("tool: tshark is not installed")
    status, out, err = typed(net, tmp_path, line)
    assert status == 0 and "Traceback" not in err, (line, out, err)
    if "doctor" not in line:  # which may well tell of codes
        assert not re.search(r"\bE_[A-Z]", err), err
    for name in re.findall(r"-w '?([\w%.-]+pcapng)", line) + re.findall(r"pcap:(\S+)", line):
        kept = read(tmp_path / time.strftime(name)) if "%" not in name else read(next(tmp_path.glob("ring-*.pcapng")))
        assert kept, f"{name} is empty"
        _only_what_was_asked_for(line, kept)
    if " -c 10" in line:
        assert len(out.splitlines()) == 10, out
    if "tshark" in line:
        assert "DNS" in out
    if line.endswith("-Q"):
        assert re.search(r"^ip +1 +256 +flow", out, re.M)
    if line.endswith("--check"):
        assert "nothing is wrong" in out


def _only_what_was_asked_for(line, kept):
    from scapy.layers.inet import TCP, UDP
    from scapy.layers.l2 import Ether

    packets = [Ether(frame) for frame in kept]
    if line.endswith("tcp port 443"):
        assert all(p[TCP].dport == 443 for p in packets)
    if line.endswith("port 53"):
        assert all(p[UDP].dport == 53 for p in packets)
    if line.endswith("udp"):
        assert all(UDP in p for p in packets)


@pytest.mark.needs("root")
def test_the_bridge_of_the_table_joins_two_ports(net, tmp_path):
    lab, _, (_, _, far2) = net
    assert "pktring bridge eth1 eth2" in TYPED
    with lab.listening(far2) as ear:
        typed(net, tmp_path, "pktring bridge eth1 eth2")
        assert set(ear.take(50)) >= set(frames()), "what far1 sent"


def test_every_row_of_the_table_is_run():
    assert len(TABLE) >= 6 and all(typed in COMMANDS or typed in SNIPPETS for typed in TYPED)
    assert {line.split()[1] for line in COMMANDS} >= {line.split()[1] for line in INLINE}
    assert {line.split()[1] for line in COMMANDS} == {"bridge", "capture", "doctor", "up", *ASKING}


# ---- Python ----


@contextlib.contextmanager
def running(net, tmp_path, program):
    """A Python program with what it prints; killed at the end of the block."""
    lab, here, _ = net
    with open(tmp_path / "printed", "w") as out:
        env = in_directory(tmp_path)
        child = lab.start(here.netns, [sys.executable, "-c", program], cwd=tmp_path, env=env, stdout=out, stderr=out)
        try:
            yield child, lambda: (tmp_path / "printed").read_text()
        finally:
            child.kill()
            child.wait(10)


@pytest.mark.needs("root")
def test_the_first_example_prints_columns_of_batches(net, tmp_path):
    with running(net, tmp_path, PYTHON[0]) as (child, printed):
        eventually(lambda: len(printed().splitlines()) > 3 or child.poll() is not None, 15)
        assert child.poll() is None, printed()
        rows = [re.fullmatch(r"(\d+) (\d+) \[(\d+)\]", line) for line in printed().splitlines()[1:3]]
        assert all(rows) and any(int(row[2]) for row in rows), printed()
        assert abs(int(rows[0][3]) / 1e9 - time.time()) < 60


@pytest.mark.needs("root")
def test_the_second_example_forwards_by_a_mask(net, tmp_path):
    lab, _, (_, _, far2) = net
    with lab.listening(far2) as ear, running(net, tmp_path, "import pktring\n" + PYTHON[1]) as (child, printed):
        got = ear.take(40, 15)
        assert child.poll() is None, printed()
    assert set(got) == {frame for frame in frames() if len(frame) < 1000}


@pytest.mark.needs("root")
def test_the_third_example_sniffs_ten_packets_and_ends(net, tmp_path):
    with running(net, tmp_path, "import pktring\n" + PYTHON[2]) as (child, printed):
        assert child.wait(30) == 0, printed()
        assert len([line for line in printed().splitlines() if line.startswith("Ether / IP")]) == 10


@pytest.mark.needs("root")
def test_the_fourth_example_attaches_to_the_engine(net, tmp_path):
    with edge(net, tmp_path), running(net, tmp_path, "import pktring\n" + PYTHON[3]) as (child, printed):
        eventually(lambda: len(printed().splitlines()) > 3 or child.poll() is not None, 15)
        assert child.poll() is None and re.fullmatch(r"\d+ shared copy", printed().splitlines()[1]), printed()


@pytest.mark.needs("root")
def test_the_fifth_example_is_an_engine_of_its_own(net, tmp_path):
    with running(net, tmp_path, "import pktring\n" + PYTHON[4]) as (child, printed):
        assert child.wait(30) == 0, printed()
        assert re.fullmatch(r"\d+ \d+", printed().splitlines()[-1]), printed()


@pytest.mark.needs("root")
@pytest.mark.parametrize("name", ["short", "to_port_53", "web"])
def test_a_handler_forwards_what_it_says(net, tmp_path, monkeypatch, name):
    if name == "web":
        pytest.importorskip("numba", reason="tool: numba is not installed")
    lab, _, (_, _, far2) = net
    rules = EDGE.replace("mine:short", f"mine:{name}").replace('"not udp"', '"arp"')  # all of IP comes to the handler
    monkeypatch.setitem(globals(), "EDGE", rules)
    with lab.listening(far2) as ear, edge(net, tmp_path):
        got = set(ear.take(150, 20))  # the first may all be of the worker that was first
    wanted = {
        "short": {frame for frame in frames() if len(frame) < 600},
        "to_port_53": {frame for frame in frames() if frame[23] == 17 and frame[36:38] == b"\0\x35"},
        "web": {frame for frame in frames() if frame[23] == 6 and frame[36:38] == b"\0\x50"},
    }
    assert got == wanted[name]


def press_ctrl_c(child, presses=10):
    """As a person does: again, when nothing happens. (While a library is being imported a first one may go unheard.)"""
    for _ in range(presses):
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(3)
            return


@pytest.mark.needs("root")
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_python_row_of_the_table_gives_packets(net, tmp_path, snippet):
    program = f"import pktring\nfrom scapy.all import sniff\nprint('ready')\ngot = {snippet}\nprint(len(got), 'packets')"
    with running(net, tmp_path, program) as (child, printed):
        eventually(lambda: "ready" in printed(), 15)
        time.sleep(1)
        press_ctrl_c(child)
        assert child.returncode == 0, printed()
        assert int(re.search(r"(\d+) packets", printed())[1]) > 0


def test_there_is_an_example_for_each_test():
    assert len(PYTHON) == 5 and "def " in HANDLERS


# ---- links ----


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", README))))
def test_a_link_leads_somewhere(target):
    assert (TOP / target).exists()


@pytest.mark.parametrize("folder", ["shm", "drivers", "engine"])
def test_a_folder_s_readme_names_files_that_exist(folder):
    text = (TOP / folder / "README.md").read_text()
    names = {name for row in re.findall(r"^\|(.*)$", text, re.M) for name in re.findall(r"`([\w*]+\.(?:py|c|h))`", row)}
    missing = [name for name in sorted(names) if not list((TOP / folder).glob(name))]
    assert names and not missing
