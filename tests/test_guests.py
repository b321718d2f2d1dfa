"""Who may attach to an engine: its own user and group; with `guests` everybody, with a memory of his own."""

import json
import subprocess
import sys

import pytest
from engine_lab import FORWARD, running
from frames import numbered
from live import middle

NOBODY = 65534
APP = f"""
import json, os, pktring
import numpy, pktring.attaching, pktring.engine.batch, pktring.ports  # now: the interpreter may lie where only root can read
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
try:
    with pktring.open("fa", engine="t") as port:
        print(json.dumps(port.facts()), flush=True)
        print(sum(len(batch) for batch in port.batches(timeout=1.0)))
except pktring.Error as why:
    print(json.dumps(dict(code=why.code, text=why.text)))
"""


def attached_as_nobody(net, engine, n=10):
    """Run an app as another user; send frames once it is attached. -> its first line, and how many frames it saw"""
    argv = [sys.executable, "-c", APP]
    app = net.lab.start(net.fa.netns, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=engine.env)
    line = app.stdout.readline()
    assert line, app.stderr.read()
    first = json.loads(line)
    net.lab.send(net.a, [numbered(i) for i in range(n)])
    out, err = app.communicate(timeout=20)
    return first, int(out or 0), err


@pytest.mark.needs("host_root")
def test_without_guests_another_user_is_refused():
    with middle() as net, running(net) as engine:
        first, seen, _ = attached_as_nobody(net, engine)
        assert first["code"] in ("E_NO_ENGINE", "E_PERM") and seen == 0


@pytest.mark.needs("host_root")
def test_a_guest_gets_copies_in_a_memory_of_his_own(tmp_path_factory):
    open_to_all = tmp_path_factory.getbasetemp() / "run"
    open_to_all.mkdir(0o755)
    open_to_all.parent.chmod(0o755)
    open_to_all.parent.parent.chmod(0o755)
    config = FORWARD.replace("workers = 2", "workers = 2\nguests = true")
    with middle() as net, running(net, config, env={"PKTRING_RUNDIR": str(open_to_all)}) as engine:
        first, seen, err = attached_as_nobody(net, engine)
        assert (first.get("memory"), first.get("mode")) == ("sealed", "copy"), (first, err)
        assert seen == 10
        engine.told("W_APP_GONE")
