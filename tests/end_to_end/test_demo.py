"""`pktring demo`: what a newcomer sees, and that nothing is left behind however it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from command import COMMAND, eventually, left
from lab import can_unshare, unshared

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def demo(tmp_path):
    """Starts demos that capture below `tmp_path`; a failed test leaves no process of theirs either."""
    begun = []

    def begin(*words, prefix=()):
        begun.append(Demo(tmp_path, *words, prefix=prefix))
        return begun[-1]

    yield begin
    for one in begun:
        for pid, _ in one.marked():
            os.kill(int(pid), signal.SIGTERM)
        one.process.wait(20)


class Demo:
    """A demo in a process of its own; it and all that it starts carry a mark in their environment."""

    def __init__(self, folder, *words, prefix=()):
        self.folder, self.mark = folder, f"PKTRING_TEST_MARK={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        env = {**os.environ, name: value, "TMPDIR": str(folder)}
        self._before = left(), socket.if_nameindex(), self._namespaces()
        argv = [*prefix, *COMMAND, "demo", *words]
        self.process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def end(self, timeout_s=60):
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def marked(self):
        """Processes that carry the mark."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append((path.name, (path / "cmdline").read_bytes()))
            except OSError:
                pass
        return found

    def leaves_nothing(self):
        eventually(lambda: not self.marked(), 10)
        return (left(), socket.if_nameindex(), self._namespaces()) == self._before

    @staticmethod
    def _namespaces():
        return sorted(Path("/run/netns").glob("*"))


def understood(out, folder):
    """The summary has its parts, and the file that it names is there."""
    assert "host A" in out and "host B" in out and "pktring bridge" in out
    assert re.search(r"transfer   .* = .*bit/s, every byte as it was sent\n", out)
    assert re.search(r"bridge     A to B: \d+ frames.* 0 dropped\n", out) and re.search(r"bridge     B to A: ", out)
    (file,) = folder.glob("pktring-demo-*/demo.pcapng")
    assert out.count(str(file)) >= 2 and file.stat().st_size > 1000
    assert len(out.split("try next")[1].strip().splitlines()) == 6
    return file


def test_it_shows_a_transfer_and_ends(demo, tmp_path):
    one = demo("--duration", "1")
    status, out, err = one.end()
    assert status == 0, err
    file = understood(out, tmp_path)
    assert one.leaves_nothing()
    shown = subprocess.run([*COMMAND, "capture", "-r", file, "-c", "3"], capture_output=True, text=True, timeout=30)
    assert shown.returncode == 0 and len(shown.stdout.splitlines()) == 3


def test_json(demo, tmp_path):
    one = demo("--duration", "500ms", "--json", "-w", str(tmp_path / "d.pcapng"))
    status, out, err = one.end()
    found = json.loads(out)
    assert status == 0 and found["transfer"]["intact"] and found["file"] == str(tmp_path / "d.pcapng")
    assert found["bridge"]["a_to_b"]["bytes"] > found["transfer"]["bytes"] > 0
    assert found["capture"]["files"] == [found["file"]]


@pytest.mark.skipif(not can_unshare(), reason="root: no user namespaces")
def test_it_works_as_root_of_a_user_namespace(demo, tmp_path):
    one = demo("--duration", "500ms", prefix=unshared([]))
    status, out, err = one.end()
    assert status == 0, err
    understood(out, tmp_path)
    assert one.leaves_nothing()


@pytest.mark.needs("setpriv")
@pytest.mark.skipif(not can_unshare(), reason="root: no user namespaces")
def test_an_ordinary_user_gets_a_user_namespace(demo, tmp_path):
    one = demo("--duration", "500ms", prefix=["setpriv", "--bounding-set", "-all,+setfcap", "--inh-caps", "-all"])
    status, out, err = one.end()
    assert status == 0, err
    understood(out, tmp_path)
    assert one.leaves_nothing()


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.7, 1.5])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_any_time_it_leaves_nothing(demo, tmp_path, number, after_s):
    one = demo("--duration", "30")
    said = one.process.stderr.readline()
    time.sleep(after_s)
    os.killpg(one.process.pid, number)  # as a terminal does
    status, _, err = one.end(20)
    assert status in (0, 130) and "Traceback" not in said + err, err
    assert one.leaves_nothing()


def test_killed_it_takes_its_commands_along(demo, tmp_path):
    one = demo("--duration", "30")
    eventually(lambda: len(one.marked()) == 3, 20)
    eventually(lambda: "capturing" in one.process.stderr.readline(), 20)
    one.process.kill()
    one.end()
    assert one.leaves_nothing()


def test_where_a_command_cannot_start_it_says_so(demo, tmp_path):
    one = demo("-w", str(tmp_path / "no/such/file"))
    status, out, err = one.end()
    assert (status, out) == (1, "") and err.splitlines()[-1].startswith("pktring: E_DEMO `pktring capture -i left")
    assert one.leaves_nothing()
