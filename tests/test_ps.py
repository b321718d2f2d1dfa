"""`pktring ps`: engines, a line each, and what their workers may still do."""

import os
import re

import statuses

from pktring.tools import ps

STALE = {"name": "old", "pid": None, "workers": [], "ports": [], "apps": [], "generation": None, "state": "stale"}


def listed(**changes):
    return ps.listed(statuses.status() | changes)


def test_an_engine_is_a_line():
    head, row = ps.text([listed()]).splitlines()
    assert head.split() == ["NAME", "PID", "GEN", "WORKERS", "PORTS", "APPS", "STATE"]
    assert row.split() == ["edge", "4711", "3", "2/2", "2", "1", "running,", "up", "1:02:03"]


def test_a_worker_that_does_not_run_degrades_its_engine():
    workers = statuses.status()["workers"]
    workers[0]["state"] = "held_off"
    assert re.search(r"1/2 .* degraded", ps.text([listed(workers=workers)]))


def test_a_dead_engines_folder_is_stale():
    assert ps.text([listed(), STALE]).splitlines()[2].split() == ["old", "-", "-", "-", "-", "-", "stale"]


def test_an_engine_that_does_not_answer_is_told():
    silent = STALE | {"name": "mute", "pid": 9, "state": "no answer", "why": "E_NO_CONTROLLER"}
    assert ps.text([silent]).splitlines()[1].split()[-3:] == ["no", "answer", "(E_NO_CONTROLLER)"]


def test_no_engine_is_told_with_what_to_do():
    assert ps.text([]) == "no engine runs: `pktring up CONFIG.toml` starts one"


def test_more_about_each_engine():
    page = ps.text([listed(), STALE], verbose=True)
    assert "  worker 1: cpu 0, pid 4713, running, 0 restarts" in page
    assert "2 restarts" in page and "W_AFFINITY" in page and "  ports: left right" in page
    assert "in sealed memory of its own (uid 1000 is not in group pktring), 12 buffers lent" in page
    assert page.splitlines()[-1].startswith("old")


def test_the_keys():
    got = listed()
    assert {"name", "pid", "workers", "ports", "generation"} <= set(got)
    assert all({"id", "cpu", "pid", "state"} <= set(worker) for worker in got["workers"])
    assert got["ports"] == ["left", "right"]


def test_what_a_process_may_do_is_read_from_the_kernel():
    mine = ps.rights(os.getpid())
    assert mine["seccomp"] in ("none", "filter") and ("net_admin" in mine["capabilities"]) == capable(12)


def capable(bit):
    (line,) = [line for line in open("/proc/self/status") if line.startswith("CapEff")]
    return bool(int(line.split()[1], 16) >> bit & 1)


def test_a_jailed_worker_is_told(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text("Name:\tx\nCapEff:\t0000000000001000\nNoNewPrivs:\t1\nSeccomp:\t2\n")
    assert ps.rights(7, tmp_path) == {"capabilities": ["net_admin"], "seccomp": "filter", "no_new_privs": True}
    assert ps.rights(8, tmp_path) == {}
    one = listed()
    one["workers"][0] |= ps.rights(7, tmp_path)
    assert "0 restarts, capabilities net_admin, seccomp filter" in ps.text([one], verbose=True)


def test_capabilities_have_their_numbers():
    assert [ps.CAPABILITIES.index(name) for name in ("net_admin", "net_raw", "ipc_lock", "sys_nice", "bpf", "checkpoint_restore")] == [
        *(12, 13, 14, 23, 39, 40)
    ]
