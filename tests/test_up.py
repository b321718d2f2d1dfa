"""`pktring up`, `down`, `sysctl`: what is looked at before anything is opened, and an engine from its start to its end."""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import urllib.request

import pytest
import statuses
from command import COMMAND, answer, pktring, refused
from engine_lab import FORWARD, running
from live import middle
from posing import posing
from prometheus_client.parser import text_string_to_metric_families
from pyroute2 import IPRoute

from pktring.shm.errors import Error
from pktring.tools import down, sysctl

RIGHT = """\
[engine]
name = "edge"
workers = 1
[port.left]
port = "null:"
[port.right]
port = "null:"
[[forward]]
from = "left"
to = "right"
"""


@pytest.fixture
def written(tmp_path):
    def write(text=RIGHT):
        path = tmp_path / "edge.toml"
        path.write_text(text)
        return path

    return write


# ---- --check, --print-config ----


def test_a_right_file_is_said_to_be(written):
    got = pktring("up", written(), "--check")
    assert (got.returncode, got.stdout.splitlines()[-1].endswith("nothing is wrong"), got.stderr) == (0, True, "")


def test_a_check_tells_every_problem(written):
    got = pktring("up", written(RIGHT + 'wiht = 5\n[engin]\n[metrics]\nlisten = "here"\n'), "--check")
    assert refused(got, "E_CONFIG", 2).count(":") >= 2
    assert len(got.stdout.splitlines()) == 3 and "line 11" in got.stdout and "[forward]" in got.stdout or "wiht" in got.stdout


def test_a_check_as_json(written):
    assert answer(pktring("up", written(), "--check", "--json")) == {"ok": True, "problems": [], "warnings": []}
    got = pktring("up", written(RIGHT + "[engin]\n"), "--check", "--json")
    assert got.returncode == 2 and json.loads(got.stdout)["ok"] is False and json.loads(got.stdout)["problems"]


def test_a_configuration_is_printed_with_all_that_it_leaves_out(written):
    got = pktring("up", written(), "--print-config")
    assert got.returncode == 0 and "net.isr" in got.stdout and 'name = "edge"' in got.stdout
    again = pktring("up", written(got.stdout), "--print-config")
    assert (again.returncode, again.stdout) == (0, got.stdout)


def test_no_file_is_refused(tmp_path):
    refused(pktring("up", tmp_path / "no.toml"), "E_NO_FILE", 2)


# ---- down ----


def test_what_was_carried():
    got = down.carried(statuses.status())
    left = {"rx_frames": 1500, "rx_bytes": 96000, "tx_frames": 999, "tx_bytes": 63936, "dropped": 16}
    assert got["name"] == "edge" and got["ports"]["left"] == left
    assert down.lines(got) == [
        "left: received 1500 frames (96000 bytes), sent 999 frames (63936 bytes), 16 dropped",
        "right: received 1000 frames (64000 bytes), sent 1490 frames (95360 bytes), 0 dropped",
        "edge is down, after 3723 seconds up",
    ]


def test_two_names_are_refused():
    refused(pktring("down", "one", "--engine", "two"), "E_USAGE", 2)


@pytest.mark.parametrize("words", [["down"], ["stat"], ["stat", "-Q"], ["top"], ["sysctl"]])
def test_no_engine_is_told(words, monkeypatch, tmp_path):
    monkeypatch.setenv("PKTRING_RUNDIR", str(tmp_path))
    assert "start one with `pktring up CONFIG.toml`" in refused(pktring(*words), "E_NO_ENGINE", 1)


def test_no_engine_is_nothing_to_list(monkeypatch, tmp_path):
    monkeypatch.setenv("PKTRING_RUNDIR", str(tmp_path))
    got = pktring("ps")
    assert (got.returncode, got.stdout) == (0, "no engine runs: `pktring up CONFIG.toml` starts one\n")
    assert answer(pktring("ps", "--json")) == []
    refused(pktring("ps", "--engine", "edge"), "E_NO_ENGINE", 1)


# ---- sysctl ----


@pytest.mark.parametrize(
    "word, meant", [("net.isr", ("net.isr", None)), ("a=5", ("a", "5")), ("a = hybrid", ("a", "hybrid")), ("a=b=c", ("a", "b=c"))]
)
def test_a_knob_is_read(word, meant):
    assert sysctl.read(word) == meant


@pytest.mark.parametrize("word", ["", "=5", "a=", "a= "])
def test_what_is_no_knob_is_refused(word):
    with pytest.raises(Error, match="E_USAGE"):
        sysctl.read(word)


@pytest.mark.parametrize(
    "flags, shown, written_",
    [
        ({}, ["a: 1", "b: 2 rows, drawn by `pktring stat -Q`"], ["a: 1 -> 2"]),
        ({"n": True}, ["1", "2 rows, drawn by `pktring stat -Q`"], ["1 -> 2"]),
        ({"e": True}, ["a=1", "b=2 rows, drawn by `pktring stat -Q`"], ["a=1 -> 2"]),
    ],
)
def test_values_are_written_as_sysctl_does(flags, shown, written_):
    args = argparse.Namespace(**({"n": False, "e": False} | flags))
    values = {"a": 1, "b": [{}, {}]}
    assert sysctl.lines(values, values, args) == shown
    assert sysctl.lines({"a": 1}, {"a": 2}, args) == written_


# ---- asked over the socket ----


@pytest.fixture
def pose(tmp_path):
    with posing(tmp_path / "run") as made:
        yield made


def test_down_waits_until_the_engine_is_gone_and_says_what_it_carried(pose):
    got = pktring("down", env=pose.env)
    assert got.returncode == 0 and got.stdout.splitlines()[-1].startswith("edge is down")
    assert pktring("ps", env=pose.env).stdout.startswith("no engine runs")
    assert pose.child.wait(5) == 0


def test_down_as_json(pose):
    got = answer(pktring("down", "edge", "--json", env=pose.env))
    assert got["name"] == "edge" and got["ports"]["left"]["rx_frames"] >= 2500 and got["seconds"] < 10


def test_an_engine_that_does_not_go_is_told_after_the_deadline(tmp_path):
    with posing(tmp_path, "edge", "--stays") as pose:
        assert f"pid {pose.child.pid}" in refused(pktring("down", "--timeout", "0.5", env=pose.env), "E_BUSY", 1)


def test_which_of_several(tmp_path):
    with posing(tmp_path, "edge") as pose, posing(tmp_path, "core"):
        assert "(core, edge)" in refused(pktring("stat", env=pose.env), "E_USAGE", 2)
        assert "did you mean 'core'?" in refused(pktring("stat", "--engine", "cor", env=pose.env), "E_NO_ENGINE", 1)
        assert pktring("stat", "--engine", "core", env=pose.env).stdout.startswith("core:")
        assert [one["name"] for one in answer(pktring("ps", "--json", env=pose.env))] == ["core", "edge"]
        assert [one["name"] for one in answer(pktring("ps", "--json", "--engine", "edge", env=pose.env))] == ["edge"]


def test_a_dead_engine_is_stale(pose):
    pose.kill()
    assert re.search(r"edge +\d+ .*stale", pktring("ps", env=pose.env).stdout)
    refused(pktring("stat", env=pose.env), "E_NO_ENGINE", 1)


def test_an_engine_that_does_not_answer_is_a_line_of_ps_and_an_error_of_stat(pose):
    pose.child.send_signal(signal.SIGSTOP)
    assert "no answer (E_NO_CONTROLLER)" in pktring("ps", env=pose.env).stdout
    pose.child.send_signal(signal.SIGCONT)


def test_stat_watches(pose):
    got = pktring("stat", "--watch", "0.2", "--duration", "0.9", env=pose.env)
    lines = [line for line in got.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d (left|right) +rx", line)]
    assert got.returncode == 0 and len(lines) in (4, 6, 8) and "\nPort   Way" in got.stdout


def test_stat_as_json_has_the_status_and_the_rates(pose):
    assert "rates" not in answer(pktring("stat", "--json", env=pose.env))
    got = answer(pktring("stat", "left", "--json", "--watch", "0.2", "--duration", "0.5", env=pose.env))
    assert list(got["ports"]) == ["left"] and got["rates"]["ports"]["left"]["rx_pps"] > 0 and got["name"] == "edge"


def test_N_M6_stat_Q_prints_what_netstat_prints(pose):
    assert pktring("stat", "-Q", env=pose.env).stdout == statuses.NETSTAT_Q
    again = pktring("stat", "-Q", "--watch", "0.2", "--duration", "0.5", env=pose.env)
    assert again.returncode == 0 and again.stdout.startswith(statuses.NETSTAT_Q + "\n" + statuses.NETSTAT_Q)


def test_N_M7_stat_Q_as_json_has_libxos_keys(pose):
    got = answer(pktring("stat", "-Q", "--json", env=pose.env))["netisr"]
    assert set(got["protocol"][0]) == {"name", "protocol", "queue-limit", "policy-type", "policy", "flags"}
    assert got["protocol"][0]["policy"] == "hybrid"  # libxo's `policy` is the dispatch policy
    keys = "workstream cpu name length watermark dispatched hybrid-dispatched queue-drops queued handled".split()
    assert all(set(keys) <= set(work) for stream in got["workstream"] for work in stream["work"])


def test_a_sysctl_is_written_and_read(pose):
    assert pktring("sysctl", "net.isr.dispatch=direct", env=pose.env).stdout == "net.isr.dispatch: hybrid -> direct\n"
    assert pktring("sysctl", "-n", "net.isr.dispatch", env=pose.env).stdout == "direct\n"
    assert answer(pktring("sysctl", "--json", "net.isr.max", env=pose.env)) == {"net.isr.maxthreads": 2, "net.isr.maxqlimit": 10240}


# ---- an engine that carries frames ----

METRICS = '[metrics]\nlisten = "127.0.0.1:9469"\n'
FRAMES = [b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x88\xb5" + bytes([i]) * 50 for i in range(100)]


@pytest.fixture(scope="module")
def engine():
    with middle() as net, running(net, FORWARD + METRICS) as made:
        with net.lab.inside(net.fa.netns):
            up("lo")
        with net.lab.listening(net.b) as ear:
            net.lab.send(net.a, FRAMES)
            assert len(ear.take(len(FRAMES), 10)) == len(FRAMES)
        yield made


def up(name):
    with IPRoute() as ipr:
        ipr.link("set", index=socket.if_nametoindex(name), state="up")


@pytest.mark.needs("root")
def test_ps_shows_a_running_engine_and_what_its_workers_may_do(engine):
    (one,) = engine.ask("ps")
    assert (one["name"], one["state"], one["ports"], len(one["workers"])) == ("t", "running", ["left", "right"], 2)
    assert one["pid"] == engine.child.pid
    assert all(w["capabilities"] == [] and w["seccomp"] == "filter" for w in one["workers"])
    assert "capabilities none, seccomp filter" in engine.run("ps", "-v").stdout


@pytest.mark.needs("root")
def test_stat_counts_what_was_carried(engine):
    status = engine.status()
    assert status["ports"]["left"]["counters"]["rx_frames"] == 100 == status["ports"]["right"]["counters"]["tx_frames"]
    lines = [line.split() for line in engine.run("stat").stdout.splitlines()]
    assert ["left", "rx", "100", "6400", "0"] in [line[:5] for line in lines] and ["tx", "100", "6400", "0"] in lines


@pytest.mark.needs("root")
def test_stat_Q_of_a_running_engine(engine):
    page = engine.run("stat", "-Q").stdout.splitlines()
    assert page[2] == "Thread count                         2            2"
    assert page[4].split() == ["Dispatch", "policy", "direct", "n/a"]
    assert engine.ask("stat", "-Q")["netisr"]["settings"]["numthreads"] == 2


@pytest.mark.needs("root")
def test_knobs_of_a_running_engine(engine):
    assert engine.run("sysctl", "net.isr.dispatch=hybrid").stdout == "net.isr.dispatch: direct -> hybrid\n"
    assert engine.ask("sysctl", "net.isr.dispatch") == {"net.isr.dispatch": "hybrid"}
    assert len(engine.ask("sysctl")) > 20
    got = engine.run("sysctl", "net.isr.dispach=1")
    assert got.returncode == 2 and "did you mean net.isr.dispatch?" in got.stderr.splitlines()[-1]


@pytest.mark.needs("root")
def test_metrics_of_a_running_engine_are_its_counters(engine):
    with engine.net.lab.inside(engine.net.fa.netns), urllib.request.urlopen("http://127.0.0.1:9469/metrics", timeout=10) as answer_:
        families = text_string_to_metric_families(answer_.read().decode())
    found = {(s.name, s.labels.get("port"), s.labels.get("direction")): s.value for f in families for s in f.samples}
    assert found["pktring_port_frames_total", "left", "rx"] == 100 == found["pktring_port_frames_total", "right", "tx"]
    assert found["pktring_up", None, None] == 1


@pytest.mark.needs("root")
def test_top_goes_on_over_the_death_of_a_controller(engine):
    watching = subprocess.Popen([*COMMAND, "top", "--every", "0.3", "--duration", "5"], env=engine.env, stdout=subprocess.PIPE, text=True)
    os.kill(engine.controller(), signal.SIGKILL)
    engine.told("I_ADOPTED", timeout_s=10)
    out, _ = watching.communicate(timeout=20)
    assert watching.returncode == 0 and len(out.splitlines()) > 10


@pytest.mark.needs("root")
def test_down_ends_up_and_its_metrics():
    with middle() as net, running(net, FORWARD + METRICS) as made:
        with net.lab.inside(net.fa.netns):
            up("lo")
        got = made.ask("down")
        assert set(got["ports"]) == {"left", "right"}
        assert made.child.wait(10) == 0


@pytest.mark.needs("root")
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "duration"])
def test_up_ends_cleanly(how):
    flags = ["--duration", "0.5"] if how == "duration" else []
    with middle() as net, running(net, FORWARD, *flags) as made:
        if how != "duration":
            made.child.send_signal(getattr(signal, how))
        assert made.child.wait(10) == 0


@pytest.mark.needs("root")
def test_metrics_that_cannot_be_listened_for_end_the_engine():
    with middle() as net, tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder, "e.toml")
        config.write_text(FORWARD + METRICS.replace("127.0.0.1", "192.0.2.1"))
        got = pktring("up", config, lab=net.lab, netns=net.fa.netns, env={**os.environ, "PKTRING_RUNDIR": f"{folder}/run"})
    assert got.returncode == 1 and got.stderr.splitlines()[-1].startswith("pktring: E_METRICS_LISTEN [metrics] listen = '192.0.2.1:9469'")
