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
        env = {**os.environ, name: value, "TMPDIR": str(folder), "SPT_NOENV": "1"}  # titles leave the environment be
        self._before = self._around()
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
        return self._around() == self._before

    @staticmethod
    def _around():
        return left(), socket.if_nameindex(), sorted(Path("/run/netns").glob("*")), sorted(Path("/run/pktring").glob("demo-*"))


def understood(out, folder):
    """The summary has its parts, and the file that it names is there."""
    assert "host A" in out and "host B" in out and "worker 1 cpu " in out
    assert re.search(r"transfer   .* = .*bit/s, every byte as it was sent\n", out)
    assert re.search(r"netisr     200 questions and answers by .* µs, 0 lost\n", out)
    assert re.search(r"engine     A to B: \d+ frames.* carried whole; 0 dropped\n", out)
    assert re.search(r"engine     B to A: \d+ frames.*; 0 dropped\n", out)
    assert len(re.findall(r"worker \d, pid \d+, on CPU \d+: .* s of it; 0 restarts\n", out)) == 2
    assert re.search(r"captured   \d+ frames, .*; 0 dropped by the kernel, 0 by us\n", out)
    assert re.search(r"attached   pid \d+ of uid \d+ saw \d+ frames of port left .*IPv4.*; 0 dropped\n", out)
    assert "Workstreams:" in out and "[[protocol]]" in out
    (file,) = folder.glob("pktring-demo-*/demo.pcapng")
    assert sorted(path.name for path in file.parent.iterdir()) == ["demo.pcapng", "demo.toml"]
    assert out.count(str(file)) >= 2 and file.stat().st_size > 1000
    assert len(out.split("try next")[1].strip().splitlines()) == 8
    return file


def wire_frames(file):
    """How many frames are in the capture, and the longest that was on the wire."""
    import pktring

    with pktring.open(f"pcap:{file}") as port:
        found = [(len(batch), int(batch.wire_lengths.max())) for batch in port.batches()]
    return sum(n for n, _ in found), max(longest for _, longest in found)


def test_it_shows_a_transfer_and_ends(demo, tmp_path):
    one = demo("--duration", "1")
    status, out, err = one.end()
    assert status == 0, err
    file = understood(out, tmp_path)
    assert one.leaves_nothing()
    shown = subprocess.run([*COMMAND, "capture", "-r", file, "-c", "3"], capture_output=True, text=True, timeout=30)
    assert shown.returncode == 0 and len(shown.stdout.splitlines()) == 3


def test_what_it_says_is_what_was(demo, tmp_path):
    one = demo("--duration", "500ms", "--json", "-w", str(tmp_path / "d.pcapng"))
    status, out, err = one.end()
    assert status == 0, err
    found = json.loads(out)
    assert found["transfer"]["intact"] and found["file"] == str(tmp_path / "d.pcapng")
    assert found["bridge"]["a_to_b"]["bytes"] > found["transfer"]["bytes"] > 0
    assert found["bridge"]["a_to_b"]["dropped"] == found["bridge"]["b_to_a"]["dropped"] == 0
    assert found["capture"]["files"] == [found["file"]] and found["capture"]["dropped_engine"] == 0
    n, longest = wire_frames(found["file"])
    assert n == found["capture"]["captured"] and longest == 1514
    assert not list(tmp_path.glob("pktring-demo-*")), "the capture is elsewhere, so its own folder goes"


def test_its_netisr_and_the_attached_process_count_the_same_questions(demo, tmp_path):
    one = demo("--duration", "200ms", "--json")
    found = json.loads(one.end()[1])
    work = [row for stream in found["netisr"]["workstreams"] for row in stream["work"] if row["name"] == "ip"]
    assert found["netisr"]["lost"] == 0 and sum(row["handled"] for row in work) == 2 * found["netisr"]["round_trips"] == 400
    assert len(work) == 2 and all(row["queued"] for row in work), "flows come to both workstreams"
    assert len({worker["pid"] for worker in found["engine"]["workers"]}) == 2
    app = found["app"]
    assert app["kinds"]["IPv4"] == 200 and app["frames"] == app["counters"]["copied"] and app["dropped"] == 0


@pytest.mark.needs("host_root")
def test_another_user_gets_a_sealed_memory(demo, tmp_path):
    one = demo("--duration", "200ms", "--json")
    app = json.loads(one.end()[1])["app"]
    assert (app["uid"], app["memory"], app["mode"]) == (65534, "sealed", "copy") and "group" in app["why"]


@pytest.mark.skipif(not can_unshare(), reason="root: no user namespaces")
def test_it_works_as_root_of_a_user_namespace(demo, tmp_path):
    one = demo("--duration", "500ms", prefix=unshared([]))
    status, out, err = one.end()
    assert status == 0, err
    understood(out, tmp_path)
    assert "ours: no other user is known here" in err and "of uid 0 saw" in out and "in shared memory: same user" in out
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
    eventually(lambda: "a TCP transfer" in one.process.stderr.readline(), 20)
    assert len(one.marked()) >= 6, "itself, supervisor, controller, two workers, the attached process"
    one.process.kill()
    one.end()
    assert one.leaves_nothing()


def test_where_a_command_cannot_start_it_says_so(demo, tmp_path):
    one = demo("-w", str(tmp_path / "no/such/file"))
    status, out, err = one.end()
    assert (status, out) == (1, "") and err.splitlines()[-1].startswith("pktring: E_DEMO `pktring up` did not start")
    assert one.leaves_nothing()
