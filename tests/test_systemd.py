"""The service of systemd: how much it may do, measured by systemd-analyze; and notifications, heard on a real socket."""

import contextlib
import fnmatch
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import lab
import pytest

from pktring.engine import sd_notify
from pktring.tools import help

TOP = Path(__file__).resolve().parent.parent
UNIT = help.UNIT
DROP_INS = {"tap": 2.4, "af_xdp": 2.3, "netns": 2.4, "metrics": 2.3, "numba": 2.1}  # and what each may cost, with the unit
ANALYZE = ["systemd-analyze", "--no-pager"]


def unit_in(folder, drop_in=None):
    """Put the unit of an engine into a folder, as it is installed, with a program that is there."""
    path = folder / "pktring@edge.service"
    path.write_text(UNIT.read_text().replace("/usr/local/bin/pktring", shutil.which("true")))
    if drop_in:
        (folder / "pktring@edge.service.d").mkdir(exist_ok=True)
        shutil.copy(UNIT.parent / f"{drop_in}.conf", folder / "pktring@edge.service.d")
    return path


def analyze(*words):
    return subprocess.run([*ANALYZE, *map(str, words)], capture_output=True, text=True, timeout=60)


def exposure(path):
    """Measure; the threshold is in tenths, and systemd-analyze fails above it."""
    got = analyze("security", "--offline=true", "--threshold=21", path)
    score = float(re.search(r"exposure level for \S+: ([\d.]+)", got.stdout)[1])
    assert (got.returncode == 0) == (score <= 2.1)
    return score


# ---- what it may do ----


@pytest.mark.needs("systemd-analyze")
def test_R21_the_exposure_of_the_service_is_2_1_at_most(tmp_path):
    assert exposure(unit_in(tmp_path)) <= 2.1


@pytest.mark.needs("systemd-analyze")
def test_the_measure_sees_what_is_let_go(tmp_path):
    path = unit_in(tmp_path)
    path.write_text(path.read_text().replace("User=pktring", "User=root").replace("NoNewPrivileges=yes", ""))
    assert exposure(path) > 2.1


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("name", DROP_INS)
def test_a_drop_in_opens_little(tmp_path, name):
    assert exposure(unit_in(tmp_path)) <= exposure(unit_in(tmp_path, name)) <= DROP_INS[name]


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("name", [None, *DROP_INS])
def test_systemd_understands_every_line(tmp_path, name):
    got = analyze("verify", unit_in(tmp_path, name))
    assert (got.returncode, got.stderr) == (0, "")


def test_every_file_is_described_and_shipped():
    files = {path.name for path in UNIT.parent.iterdir()}
    assert files == {UNIT.name, "pktring.sysusers", *(f"{name}.conf" for name in DROP_INS)}
    shipped = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["pktring.tools"]
    assert all(any(fnmatch.fnmatch(f"systemd/{name}", pattern) for pattern in shipped) for name in files)
    assert all(name.split(".")[0] in UNIT.read_text() for name in files)


def settings(key):
    """Every value of a setting, as one list of words."""
    return [word for value in re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.M) for word in value.split()]


def test_the_controller_keeps_two_capabilities_and_three_families():
    assert settings("CapabilityBoundingSet") == settings("AmbientCapabilities") == ["CAP_NET_RAW", "CAP_NET_ADMIN"]
    assert settings("RestrictAddressFamilies") == ["AF_PACKET", "AF_NETLINK", "AF_UNIX"]


# ---- system calls: what the filter lets through ----


@cache
def members(name):
    """The system calls of a set, those of sets in it included."""
    text = analyze("syscall-filter", name).stdout
    words = [word for line in text.splitlines()[1:] if (word := line.strip()) and not word.startswith("#")]
    return frozenset().union(*(members(word) if word.startswith("@") else {word} for word in words))


def let_through(*drop_ins):
    """Read the filters as systemd does: lines in order, the first one says that nothing else is let through."""
    allowed = set()
    for path in [UNIT, *(UNIT.parent / f"{name}.conf" for name in drop_ins)]:
        for value in re.findall(r"^SystemCallFilter=(.*)$", path.read_text(), re.M):
            named = set().union(*(members(word) if word.startswith("@") else {word} for word in value.lstrip("~").split()))
            allowed = allowed - named if value.startswith("~") else allowed | named
    return allowed


@pytest.mark.needs("systemd-analyze")
def test_dangerous_calls_are_not_let_through():
    no = {"mount", "ptrace", "bpf", "setuid", "init_module", "kexec_load", "reboot", "swapon", "keyctl", "perf_event_open", "pidfd_getfd"}
    assert not no & let_through()
    assert "bpf" in let_through("af_xdp") and "setns" in let_through("netns")


@pytest.mark.needs("systemd-analyze")
def test_the_calls_of_a_jail_and_of_a_controller_are_let_through():
    jail = (TOP / "engine/jail.h").read_text() if (TOP / "engine/jail.h").exists() else ""
    inside = set(re.findall(r"PR_CALL\((\w+),", jail)) - {"name", "bpf"}
    putting_it_up = {"prctl", "capset", "seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}
    controller = {"sched_setaffinity", "pidfd_open", "pidfd_send_signal", "eventfd2", "memfd_create", "fchown", "sendmsg", "clone", "wait4"}
    assert not (inside | putting_it_up | controller) - let_through()


ENGINE = """[engine]
name = "systemd-test"
[port.left]
interface = "left0"
[port.right]
interface = "right0"
[[forward]]
from = "left"
to = "right"
both = true
"""


@pytest.mark.needs("root", "systemd-analyze", "strace")
@pytest.mark.parametrize("verb", ["bridge", "up"])
def test_what_the_engine_calls_is_let_through(tmp_path, verb):
    said = tmp_path / "strace"
    (tmp_path / "engine.toml").write_text(ENGINE)
    words = {"bridge": ["left0", "right0"], "up": [str(tmp_path / "engine.toml")]}[verb]
    tracer = ["strace", "-f", "-qq", "-e", "signal=none", "-o", str(said)]
    command = [*tracer, sys.executable, "-m", "pktring.tools.main", verb, *words, "--duration", "0.5"]
    with lab.Lab() as here:
        ends, middle = here.namespace("ends"), here.namespace("middle")
        here.veth(lab.End(ends, "left1"), lab.End(middle, "left0"))
        here.veth(lab.End(ends, "right1"), lab.End(middle, "right0"))
        got = here.run(middle, command, timeout_s=60, env={**os.environ, "PKTRING_RUNDIR": str(tmp_path / "run")})
    assert got.returncode == 0, got
    ran = said.read_text()
    called = set(re.findall(r"^\d+ +(\w+)\(", ran, re.M))
    assert {"setsockopt", "poll"} <= called and not called - let_through() - {"execve"}
    families = set(re.findall(r"socket\((AF_\w+)", ran))
    assert families and families <= set(settings("RestrictAddressFamilies"))


# ---- `pktring help systemd` ----


def test_help_prints_the_unit_for_this_installation(capsys):
    print("\n".join(help._systemd()))
    out = capsys.readouterr().out
    command = re.search(r"^ExecStart=(\S+)", out, re.M)[1]
    assert os.access(command, os.X_OK) and "/usr/local/bin/pktring" not in out
    assert out.splitlines()[0].startswith(f"# In {UNIT.parent}: ") and len(out.splitlines()) == len(UNIT.read_text().splitlines()) + 1


def test_help_prints_a_configuration_that_can_be_read():
    from pktring.engine import config

    assert config.from_text("\n".join(help._config())) == config.Config()


# ---- notifications ----


@contextlib.contextmanager
def manager(address, monkeypatch):
    """The socket on which a service manager listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
        yield sock


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_notification_is_heard(tmp_path, monkeypatch, kind):
    address = str(tmp_path / "notify") if kind == "path" else f"\0pktring-test-{os.getpid()}"
    with manager(address, monkeypatch) as heard:
        assert sd_notify.notify("READY=1\nSTATUS=2 workers, \u00e9")
        assert heard.recv(4096).decode() == "READY=1\nSTATUS=2 workers, \u00e9"


@pytest.mark.parametrize("address", [None, "", "relative", "vsock:2:1234", "/nowhere/at/all"])
def test_where_nobody_listens_nothing_happens(monkeypatch, address):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not sd_notify.notify("READY=1")


@pytest.mark.timeout(20)
def test_a_manager_that_does_not_read_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sd_notify, "TIMEOUT_S", 0.05)
    with manager(str(tmp_path / "notify"), monkeypatch):
        assert not all(sd_notify.notify("STATUS=" + "x" * 1000) for _ in range(10_000))


@pytest.mark.timeout(60)
def test_an_engine_tells_when_it_is_ready_and_when_it_stops(tmp_path, monkeypatch):
    (tmp_path / "engine.toml").write_text('[engine]\nname = "systemd-test"\nworkers = 1\n[port.a]\nport = "null:"\n')
    monkeypatch.setenv("PKTRING_RUNDIR", str(tmp_path / "run"))
    with manager(str(tmp_path / "notify"), monkeypatch) as heard:
        heard.settimeout(30)
        engine = subprocess.Popen([sys.executable, "-m", "pktring.tools.main", "up", tmp_path / "engine.toml"], stdout=subprocess.DEVNULL)
        try:
            assert b"READY=1" in heard.recv(4096).split(b"\n")
            engine.send_signal(signal.SIGHUP)
            assert b"RELOADING=1" in heard.recv(4096).split(b"\n")
            assert b"READY=1" in heard.recv(4096).split(b"\n")
            engine.send_signal(signal.SIGTERM)
            assert b"STOPPING=1" in heard.recv(4096).split(b"\n")
            assert engine.wait(30) == 0
        finally:
            engine.kill()
            engine.wait(30)
