"""F10, R9: the control socket under attack. Floods of connections, floods of messages, messages that were never written by a client.

The decoder alone is fed mutants of good messages for PKTRING_FUZZ_S seconds, and has to give every reason for refusal that it knows; the
whole server is fed by several processes, with descriptors, and has to lose none, to stay within its time, and to answer who behaves.
"""

import contextlib
import fcntl
import os
import random
import resource
import socket
import struct
import time

import pytest
from control_lab import connected, fd_of_process, process, wait_for

from pktring.engine import control_wire as wire
from pktring.engine.control import Client
from pktring.shm.errors import Error

FUZZ_S = float(os.environ.get("PKTRING_FUZZ_S", "2"))
CONNECTS = 10_000
# What the host of a virtual machine takes away counts as ours (a step in which nothing happened: 4 ms), so one in a thousand may be slower
# than control_lab.SLOW_S, which is R9's bound for the controller's loop.
SLOW = 1 / 1000
REPLY_S = 0.100
NOBODY = 65534


# ---- mutants ----


GOOD = [
    wire.encode("status", b"", request=1),
    wire.encode("echo", b'{"a":[1,2.5,null,true,"\\u00e9"],"b":{"c":{}}}', request=2**64 - 1),
    wire.encode("attach", b'{"memory":4096}', request=3),
    wire.encode("keep", b"", request=4, flags=wire.IN_MEMFD),
    wire.encode("nonsense", b"{}", request=0),
    wire.encode("fail", b'{"x":"' + b"y" * 3000 + b'"}', request=9),
]
EDGES = [0, 1, 2, 4, 5, 7, 8, 127, 128, 255, 256, 4031, 4032, 4033, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]
TEXT = [b"{", b"}", b"[", b"]", b'"', b"NaN", b"1e999", b"-", b"\\ud800", b"\\", b"\xff", b"\xc3", b"null", b"9" * 60]
TEXT += [b"[" * 50, b'{"a":' * 40, b'{"a":[' + b"[" * 40 + b"]" * 40 + b"]}"]


def mutant(rng):
    """A good message with one to three faults."""
    data = bytearray(rng.choice(GOOD))
    for _ in range(rng.randint(1, 3)):
        match rng.randrange(8):
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8) if data else 0
            case 1:  # a field of the header
                at, form = rng.choice([(0, "<I"), (4, "<H"), (6, "<H"), (8, "<I"), (12, "<I"), (16, "<I"), (24, "<I"), (56, "<I")])
                if len(data) >= 64:
                    struct.pack_into(form, data, at, rng.choice(EDGES) & (0xFFFF if form == "<H" else 0xFFFFFFFF))
            case 2:
                del data[rng.randrange(len(data)) :]
            case 3:
                data += rng.randbytes(rng.choice([1, 64, 5000, 70000]))
            case 4:  # the body
                word = rng.choice(TEXT)
                at = rng.choice([64, 64 + rng.randrange(40)])
                data[at : at + len(word)] = word
            case 5:  # a body of words that parsers stumble over
                raw = b"".join(rng.choices(TEXT, k=rng.randint(1, 30)))[: wire.ROOM]
                data[:] = wire.encode("echo", raw, request=5)
            case 6:
                data[32:56] = rng.choice([b"", b"status", b"..", b"\0status", b"STATUS", rng.randbytes(24)]).ljust(24, b"\0")[:24]
            case 7:
                data[:] = rng.randbytes(rng.choice([0, 1, 7, 8, 64, 4096]))
        data = data or bytearray(b"\0")
    return bytes(data)


REASONS = ["a message", "bad length", "bad magic", "control version", "unknown flags", "something behind", "bad verb"]
REASONS += ["no JSON", "the body is no object", "the body is more than"]


def reason(text):
    """Which refusal it is, whatever the values in it."""
    return next((name for name in REASONS if text.startswith(name)), text)


def test_R9_no_mutant_of_a_message_is_more_than_a_message_or_a_refusal():
    seed = int(os.environ.get("PKTRING_SEED", time.time_ns() & 0xFFFFFFFF))
    rng = random.Random(seed)
    reached, n, longest, slow = {"a message": 0}, 0, 0.0, 0
    end = time.monotonic() + FUZZ_S
    while time.monotonic() < end:
        data = mutant(rng)
        begin = time.thread_time()
        try:
            message = wire.decode(data)
            assert len(message.raw) <= wire.ROOM and message.flags & ~wire.FLAGS == 0, f"seed {seed}: {data!r}"
            body = wire.loads(message.raw)
            assert wire.loads(wire.dumps(body)) == body, f"seed {seed}: {data!r}"
            what = "a message"
        except Error as why:
            assert why.code in ("E_CTRL_MSG", "E_ABI"), f"seed {seed}: {data!r}"
            what = reason(why.text)
        took = time.thread_time() - begin
        longest, slow = max(longest, took), slow + (took > 0.001)
        reached[what] = reached.get(what, 0) + 1
        n += 1
    print(f"seed {seed}: {n} messages, longest {longest * 1e6:.0f} us, {reached}")
    assert set(reached) == set(REASONS), f"seed {seed}"
    assert slow <= 1 + n * SLOW, f"seed {seed}"


# ---- the whole ----


def attackers(n, body):
    """Run body(rng) in so many processes; their ids."""
    pids = []
    for i in range(n):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                body(random.Random(i))
            os._exit(0)
        pids.append(pid)
    return pids


def killed(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        os.waitpid(pid, 0)


def spoken(sock, rng, files):
    """One message, with or without descriptors."""
    rights = [rng.choice(files) for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 4, 5, 30]))]
    data = rng.choice([mutant(rng), rng.choice(GOOD)])
    if rights:
        socket.send_fds(sock, [data], rights)
    else:
        sock.send(data)


def chatter(path, until):
    """Messages without end: on one connection until it is closed, then on the next."""

    def body(rng):
        sealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.write(sealed, b'{"a":1}')
        fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, wire.SEALS)
        pipe, _ = os.pipe()
        files = [sealed, sealed, os.memfd_create("y"), pipe, os.eventfd(0), os.open("/", os.O_RDONLY)]
        while time.monotonic() < until:
            with contextlib.suppress(OSError), connected(path, 0.5) as sock:
                for _ in range(rng.randint(1, 20)):
                    spoken(sock, rng, files)
                    if rng.random() < 0.5:
                        sock.recv(100)

    return body


def asked(path, until, timeout_s=60.0):
    """Behave: ask for the status again and again until until(stats); how long each answer took, in order of length, and the last stats."""
    took, end = [], time.monotonic() + timeout_s
    while True:
        begin = time.monotonic()
        assert begin < end
        with Client(path) as client:
            assert client.call("status")[0] == {"name": "eng0"}
        took.append(time.monotonic() - begin)
        with Client(path) as client:
            stats = client.call("stats")[0]
        if until(stats):
            return sorted(took), stats


def at_rest(path):
    """The stats when only their asker is there."""
    wait_for(lambda: Client(path).call("stats")[0]["open"] == 1)
    with Client(path) as client:
        return client.call("stats")[0]


@pytest.mark.timeout(max(120, FUZZ_S * 3 + 60))
def test_R9_messages_from_all_sides_leave_no_descriptor_and_hold_up_nobody():
    with process() as (pid, path):
        at_rest(path)
        before, end = fd_of_process(pid), time.monotonic() + FUZZ_S
        pids = attackers(3, chatter(path, end))
        try:
            took, _ = asked(path, lambda stats: time.monotonic() > end, FUZZ_S + 30)
        finally:
            killed(pids)
        stats = at_rest(path)
        wait_for(lambda: fd_of_process(pid) <= before)
        print(f"{stats}, slowest of {len(took)} answers {took[-1] * 1e3:.1f} ms")
        assert stats["bad"] > 100 and stats["messages"] > 100 and (stats["apps"], stats["users"]) == (0, 1)
        assert stats["slow"] <= 1 + stats["steps"] * SLOW


def flood(path, speak, uid=None):
    """Connections without end, which stay open as long as they are let."""

    def body(rng):
        if uid:
            os.setresuid(uid, uid, uid)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
        held = []
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                sock.connect(path)
                if speak:
                    sock.send(speak)
            except BlockingIOError:
                sock.setblocking(True)
                sock.settimeout(0.001)
            except OSError:
                pass
            held.append(sock)
            if len(held) > 3000:
                held.pop(0).close()

    return body


SPEAK = {"silent": b"", "half": wire.encode("status", b"", request=1)[:100], "busy": wire.encode("status", b"", request=1)}


@pytest.mark.parametrize(
    "how, uid", [("silent", None), ("half", None), ("busy", None), pytest.param("silent", NOBODY, marks=pytest.mark.needs("host_root"))]
)
def test_F10_ten_thousand_connections_hold_up_nobody(how, uid):
    with process() as (pid, path):
        at_rest(path)
        before = fd_of_process(pid)
        pids = attackers(2, flood(path, SPEAK[how], uid))
        try:
            took, _ = asked(path, lambda stats: stats["accepted"] >= CONNECTS)
        finally:
            killed(pids)
        stats = at_rest(path)
        wait_for(lambda: fd_of_process(pid) <= before)
        print(f"{stats}, {len(took)} answers, slowest {took[-1] * 1e3:.1f} ms")
        assert stats["slow"] <= 1 + stats["steps"] * SLOW and took[len(took) * 95 // 100] <= REPLY_S
