"""Attached apps in processes of their own, trusted and not, and what they may do to the engine and to each other: nothing."""

import contextlib
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import ckernel
import pytest
from attached import STRANGER, Border, PortNamed
from frames import number, numbered

PATTERN = random.Random(1).randbytes(2400)
HERE = Path(__file__).resolve().parent
KINDS = pytest.mark.parametrize("uid", [0, STRANGER], ids=["shared", "sealed"])
pytestmark = pytest.mark.needs("host_root")  # it becomes another user


class App:
    """An attached process; `with` ends it. `said()` is what it reports when it is asked to end."""

    def __init__(self, border, role, uid, **keys):
        self.planned, fds, reply = border.table.attach(uid, uid, 1, PortNamed, workers=border.workers, **{"slots": 64} | keys)
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, HERE / "attached_app.py", role, str(uid)]
        self.process = subprocess.Popen(command, stdin=there)
        there.close()
        socket.send_fds(here, [json.dumps(reply).encode()], fds)
        for fd in fds:
            os.close(fd)
        here.settimeout(20)
        self.sock = here
        assert here.recv(100) == b"ready"

    def said(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        text = self.sock.recv(65536)
        return json.loads(text) if text else {}

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self.sock.close()


class Worker(threading.Thread):
    """Worker 0: offers numbered frames to each app, a few at a time, and keeps what it sends."""

    def __init__(self, border, ahead=24):  # of two slots each: fewer than there are
        super().__init__(daemon=True)
        self.border, self.ahead = border, ahead
        self.holds, self.offered, self.got, self.right = {}, {}, {}, {}
        self.give, self.wanted = set(), {}
        self._over = threading.Event()
        self._lock = threading.Lock()

    def serve(self, app, give=False, wanted=0):
        """`wanted`: frames to offer without being asked."""
        with self._lock:
            self.wanted[app.id] = wanted
            self.holds[app.id] = self.border.hold(app, 0)
            self.offered[app.id], self.got[app.id], self.right[app.id] = 0, [], 0
            if give:
                self.give.add(app.id)

    def run(self):
        while not self._over.is_set():
            with self._lock:
                busy = [self._turn(i, hold) for i, hold in self.holds.items()]
                bells = [hold.bell for hold in self.holds.values() if hold.bell >= 0]
                armed = not any(busy) and not sum(hold.arm() for hold in self.holds.values())
            if armed:
                with contextlib.suppress(OSError):  # an app went meanwhile
                    select.select(bells, [], [], 0.002)
            with self._lock:
                for hold in self.holds.values():
                    hold.heard()

    def _turn(self, app_id, hold):
        pool = self.border.pools[0]
        if not hold.turn():
            return 0
        got = hold.collect(pool)
        self.got[app_id] += got
        n = min(self.ahead - (self.offered[app_id] - len(self.got[app_id])), 16, self.wanted[app_id] - self.offered[app_id])
        frames = [self.frame(app_id, self.offered[app_id] + k) for k in range(n)]
        self.offered[app_id] += hold.offer(pool, frames, app_id in self.give) if frames else 0
        return len(got)

    @staticmethod
    def frame(app_id, i):
        return struct.pack("=QQ", app_id, i) + PATTERN[i % 251 :][: 48 + i * 41 % 2000]

    def wait(self, app, n, timeout=20):
        """Until n frames of the app are back; they are the right ones."""
        deadline = time.monotonic() + timeout
        self.wanted[app.id] = max(self.wanted[app.id], len(self.got[app.id])) + n
        while len(self.got[app.id]) < self.wanted[app.id]:
            assert time.monotonic() < deadline, f"{len(self.got[app.id])} frames of {self.wanted[app.id]}"
            time.sleep(0.002)
        first = self.right[app.id]
        got = self.got[app.id][first:]
        self.right[app.id] += len(got)
        assert got == [self.frame(app.id, first + i) for i in range(len(got))], "byte for byte, each once, in order"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join(10)
        assert not self.is_alive()
        self.border.holds = {(i, 0): hold for i, hold in self.holds.items()}


@pytest.fixture
def border():
    with Border() as border:
        yield border


@KINDS
@pytest.mark.parametrize("give", [False, True], ids=["copy", "consume"])
def test_frames_go_to_a_process_and_come_back_byte_for_byte(border, uid, give):
    with App(border, "echo", uid) as app, Worker(border) as worker:
        worker.serve(app.planned, give)
        worker.wait(app.planned, 3000)
    counted = border.counters(app.planned)
    assert not counted["drop_app_full"] and not counted["violations"]


def test_two_users_share_an_engine_and_one_is_killed(border):
    """PROOF 4: the other goes on, and loses nothing."""
    with App(border, "echo", 0) as ours, Worker(border) as worker:
        with App(border, "echo", STRANGER) as theirs:
            worker.serve(ours.planned)
            worker.serve(theirs.planned)
            worker.wait(ours.planned, 300)
            worker.wait(theirs.planned, 300)
            theirs.kill()
        assert gone(border, worker, theirs.planned) < 1
        worker.wait(ours.planned, 1000)


def gone(border, worker, app):
    """Detach an app that is dead. Seconds until all that it had is back."""
    begun = time.monotonic()
    line = border.table.detach(app.id, wait_s=5)
    took = time.monotonic() - begun
    assert line.startswith("W_APP_GONE"), line
    if app.trusted:
        assert line.endswith("lent=128 returned=128"), line
    with worker._lock:
        del worker.holds[app.id]
    return took


@KINDS
def test_R_F4_apps_killed_at_any_moment_give_everything_back_and_the_neighbour_loses_nothing(border, uid):
    took = []
    with App(border, "echo", 0) as neighbour, Worker(border) as worker:
        worker.serve(neighbour.planned)
        for i in range(12):
            with App(border, ("echo", "idle", "count")[i % 3], uid) as app:
                worker.serve(app.planned, i % 2 == 1, 10**6)
                time.sleep(random.random() * 0.05)
                app.kill()
            took.append(gone(border, worker, app.planned))
            worker.wait(neighbour.planned, 50)
    assert sorted(took)[len(took) // 2] < 0.02, took


@KINDS
def test_R_F29_an_app_that_stands_still_holds_nobody_up(border, uid):
    with App(border, "idle", uid) as stuck, App(border, "echo", 0) as neighbour, Worker(border, ahead=1000) as worker:
        worker.serve(stuck.planned, wanted=10**6)
        deadline = time.monotonic() + 10
        while not border.counters(stuck.planned)["drop_app_full"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        worker.ahead = 24
        worker.serve(neighbour.planned)
        worker.wait(neighbour.planned, 500)
        assert border.counters(stuck.planned)["copied"] < 64


@KINDS
def test_R_R7_an_app_that_rewrites_all_of_its_memory_harms_only_itself(border, uid):
    """Short form; the long one is the harness below, which also looks for accesses out of bounds."""
    mutations = 0
    with App(border, "echo", 0) as neighbour, App(border, "echo", STRANGER) as other, Worker(border) as worker:
        worker.serve(neighbour.planned)
        worker.serve(other.planned)
        for _ in range(3):
            with App(border, "rewrite", uid) as app:
                worker.serve(app.planned, wanted=10**6)
                time.sleep(1)
                mutations += app.said()["mutations"]
            gone_hostile(border, worker, app.planned)
            worker.wait(neighbour.planned, 100)
            worker.wait(other.planned, 100)
    assert mutations > 100_000
    for app in (neighbour.planned, other.planned):
        assert not border.counters(app)["violations"]


def gone_hostile(border, worker, app):
    assert border.table.detach(app.id, wait_s=5).startswith("W_APP_GONE")
    with worker._lock:
        del worker.holds[app.id]


def test_R_F11_an_app_that_cuts_and_punches_its_memory_harms_only_itself(border):
    with App(border, "echo", 0) as neighbour, Worker(border) as worker:
        worker.serve(neighbour.planned)
        with App(border, "cut", STRANGER) as app:
            worker.serve(app.planned, wanted=10**6)
            worker.wait(neighbour.planned, 300)
            told = app.said()
        assert told["holes"] > 10 and told["refused"] == 3 * told["holes"]
        gone_hostile(border, worker, app.planned)
        worker.wait(neighbour.planned, 300)


# ---- a worker dies ----


def work(border, app, gen, seen):
    """In a child: worker 0, until it is killed. `seen` gets the number of each frame that came back."""
    pool = border.region.pool_of(1, gen)
    hold = app.hold(border.region, 0, pool)
    n = gen << 16
    while True:
        if not hold.turn():
            os._exit(3)
        for frame in hold.collect(pool):
            os.write(seen, number(frame).to_bytes(4, "little"))
        hold.offer(pool, [numbered(n + k, 64 + k) for k in range(8)], True)
        n += 8


@KINDS
def test_R_F1_a_worker_killed_at_any_moment_leaves_the_app_its_rings_and_loses_no_buffer(border, uid):
    read, write = os.pipe()
    got = []
    with App(border, "echo", uid) as app:
        for gen in range(1, 16):
            pid = os.fork()
            if not pid:
                work(border, app.planned, gen, write)
            begun = time.monotonic()
            os.set_blocking(read, False)
            wanted = len(got) + 200
            while len(got) < wanted:
                assert time.monotonic() < begun + 10, "the app and the heir go on"
                with contextlib.suppress(BlockingIOError):
                    part = os.read(read, 65536)
                    got += [int.from_bytes(part[i : i + 4], "little") for i in range(0, len(part), 4)]
            time.sleep(random.random() * 0.005)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            border.region.pool_of(1, gen + 1).reclaim_process(1)
        border.pools[0] = border.region.pool_of(1, 99)
        hold = border.hold(app.planned, 0)
        assert hold.turn()
        assert border.count()["lent"] == (0 if uid else 128), "each slot has its buffer, and nothing else is lent"
    for fd in (read, write):
        os.close(fd)
    assert len(got) == len(set(got)), "nothing came back twice"
    assert not border.counters(app.planned)["violations"]


# ---- at length, and out of bounds ----


@pytest.mark.parametrize("seed", [1, 2])
def test_R_R7_hostile_rings_under_sanitizers(seed):
    exe = ckernel.program((HERE / "hostile/flood.c").read_text(), flags=["-pthread"])
    seconds = float(os.environ.get("PKTRING_FUZZ_S", "2"))
    env = {**os.environ, "LD_PRELOAD": ""}
    got = subprocess.run([exe, str(seconds), str(seed)], capture_output=True, text=True, timeout=seconds * 4 + 60, env=env)
    assert got.returncode == 0, got.stderr[-3000:]
    told = json.loads(got.stdout)
    assert told["mutations"] > 1_000_000
    least = {"head": 1, "cur": 1, "idx": 10, "well_received": 500, "well_sent": 500, "tx_frames": 500}
    reasons = ("drop_bad_idx", "drop_not_owner", "drop_bad_len", "drop_bad_flags", "violations")
    assert all(told[key] >= n for key, n in least.items()) and all(told[key] > 50 for key in reasons), told


@pytest.mark.needs("objdump")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="tool: it reads x86-64")
def test_R_F9_a_slot_is_read_once():
    """F9: the compiled check loads index, length and flags in one instruction, wherever it reads a slot of an app's."""
    source = '#include "border_tx.h"\nuint64_t look(const struct pr_ringh *h, uint32_t i) { return pr_slot_desc(h, i); }'
    lib = ckernel.load(source)
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", lib._name], capture_output=True, text=True, check=True, timeout=30).stdout
    body = text.split("<look>:")[1].split("ret")[0]
    loads = [line.split()[1:] for line in body.splitlines() if "(" in line and "(%rdi)" not in line and "lea" not in line]
    assert len(loads) == 1 and loads[0][0] == "mov" and loads[0][1].endswith(",%rax"), body
