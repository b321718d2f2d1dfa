"""Apps in C: pktring.h alone, attached to a running engine, beside one in Python, as users of its group or as guests."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ckernel
import pytest
from command import eventually
from engine_lab import FORWARD, running
from frames import ETHERTYPE, number, numbered
from lab import End, Lab
from live import Load, Net, heard, middle

import pktring
from pktring.engine import control_wire as wire
from pktring.shm.memfd_region import create
from pktring.shm.region import RX, TX

TOP = ckernel.TOP
NOBODY = 65534
GROUP, GID = "pktring-test-apps", 64300
ANN, BOB = 64301, 64302  # two users, both members of the group
USERS = {ANN: "pktring-ann", BOB: "pktring-bob"}
A, B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
OURS = f"ether proto {ETHERTYPE:#x}"
GROUPED = FORWARD.replace("workers = 2", f'workers = 2\ngroup = "{GROUP}"')

# counter.py as another user, whose eyes do not reach the interpreter that root runs: everything is loaded before.
PYTHON = f"""
import argparse, os, sys
argparse.ArgumentParser(prog="counter.py").parse_args([])
import numpy, pktring.attaching, pktring.engine.batch, pktring.ports
code = compile(open({str(TOP / "examples/counter.py")!r}).read(), "counter.py", "exec")
os.setgroups([{GID}]), os.setgid({BOB}), os.setuid({BOB})
exec(code, dict(__name__="__main__"))
"""


# ---- the header ----


@pytest.mark.parametrize("words", ["cc -std=c11", "cc -std=gnu11 -O2", "cc -std=gnu17 -O3", "g++ -xc++ -std=c++17", "g++ -xc++ -std=c++20"])
def test_the_header_is_clean_alone_in_c_and_in_cplusplus(words, tmp_path):
    if not shutil.which(words.split()[0]):
        pytest.skip(f"tool: {words.split()[0]} is not installed")
    (tmp_path / "it.c").write_text("#include <pktring.h>\nint main(void) { return pktring_attach(0, 0, 0, 0, 0, 0) != 0; }\n")
    flags = ["-Wall", "-Wextra", "-Werror", f"-I{pktring.get_include()}", "-fsyntax-only"]
    subprocess.run([*words.split(), *flags, "it.c"], cwd=tmp_path, check=True, timeout=60)


def test_the_header_is_clean_behind_others_and_in_two_files_of_a_program(tmp_path):
    for name, body in (("a", "int b(void); int main(void) { return b(); }"), ("b", "int b(void) { return pktring_attach != 0; }")):
        (tmp_path / f"{name}.c").write_text(f"#include <stdio.h>\n#include <fcntl.h>\n#include <pktring.h>\n{body}\n")
    subprocess.run(["cc", "-Wall", "-Wextra", f"-I{pktring.get_include()}", "a.c", "b.c"], cwd=tmp_path, check=True, timeout=60)


# ---- programs ----


@pytest.fixture(scope="module")
def open_to_all():
    """A folder that every user reaches."""
    with tempfile.TemporaryDirectory(prefix="pktring-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def built(folder, name, source, *, flags=(), sanitize=False):
    """A program where every user may run it."""
    path = folder / (name + "-asan" * sanitize)
    shutil.copy(ckernel.program(source, flags=["-fstrict-aliasing", *flags], sanitize=sanitize), path)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module", params=["plain", "asan"])
def counter(request, open_to_all):
    return built(open_to_all, "counter", (TOP / "examples/counter.c").read_text(), sanitize=request.param == "asan")


@pytest.fixture(scope="module")
def plain_counter(open_to_all):
    return built(open_to_all, "plain", (TOP / "examples/counter.c").read_text())


@pytest.fixture
def rundir(open_to_all):
    """Where the engine lives: a place that other users may look into."""
    folder = Path(tempfile.mkdtemp(dir=open_to_all))
    folder.chmod(0o755)
    return {"PKTRING_RUNDIR": str(folder)}


class App:
    """A program in the middle host; `uid`: as that user, a member of the group if it is one of ours."""

    def __init__(self, net, engine, argv, uid=0, **how):
        user = {"user": uid, "group": uid, "extra_groups": [GID] if uid in USERS else []} if uid else {}
        pipe = subprocess.PIPE
        self.child = net.lab.start(net.fa.netns, list(map(str, argv)), stdout=pipe, stderr=pipe, env=engine.env, cwd="/", **user, **how)
        self.first = self.child.stderr.readline().rstrip()

    def ends(self, number=0, timeout_s=20):
        """-> status, the last line of its output, the rest of what it said"""
        if number:
            self.child.send_signal(number)
        out, err = self.child.communicate(timeout=timeout_s)
        return self.child.returncode, ([*out.splitlines(), ""])[-1 if not out else -2], err


def with_users(folder):
    """A command prefix: in a mount namespace of its own, where the machine has our users and their group."""
    passwd = "".join(f"{name}:x:{uid}:{uid}::/:/bin/sh\n" for uid, name in USERS.items())
    (folder / "passwd").write_text(Path("/etc/passwd").read_text() + passwd)
    (folder / "group").write_text(Path("/etc/group").read_text() + f"{GROUP}:x:{GID}:{','.join(USERS.values())}\n")
    script = f'mount --bind {folder}/passwd /etc/passwd && mount --bind {folder}/group /etc/group && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "pktring.tools.main")


@contextlib.contextmanager
def two_programs(net, engine, counter, *more, python_port, c_port):
    """The same example twice: in C as Ann, in Python as Bob."""
    c = App(net, engine, [counter, "-e", "t", "-f", OURS, *more, c_port], ANN)
    assert re.fullmatch(rf"counter: app \d+ on {c_port}, shared memory", c.first), c.first
    python = App(net, engine, [sys.executable, "-c", PYTHON, "-e", "t", "-f", OURS, *more, python_port])
    assert re.fullmatch(rf"counter: app \d+ on {python_port}, shared memory", python.first), (python.first, python.child.stderr.read())
    yield c, python


def uids(engine):
    return sorted(app["uid"] for app in engine.status()["apps"])


def unicast(i):
    """A frame from a host A to a host B, which a bridge that has not heard of B sends everywhere."""
    return B + A + numbered(i)[12:]


# ---- two programs, two users, one engine ----


@pytest.mark.needs("host_root")
def test_a_program_in_c_and_one_in_python_of_two_users_exchange_frames(plain_counter, rundir, tmp_path):
    """Their ports are joined by a bridge, to which one frame is sent: it reaches both, and both send it to each other."""
    ports = GROUPED.partition("[[forward]]")[0]
    with Lab() as lab:
        wire_ns, mid = lab.namespace("wire"), lab.namespace("middle")
        net = Net(lab, End(wire_ns, "va"), End(wire_ns, "vb"), End(mid, "fa"), End(mid, "fb"))
        lab.veth(net.a, net.fa)
        lab.veth(net.b, net.fb)
        bridge = End(wire_ns, "br0")
        lab.bridge(bridge, ["va", "vb"])
        with running(net, ports, env=rundir, command=with_users(tmp_path)) as engine:
            with two_programs(net, engine, plain_counter, "-n", "2", "-s", c_port="left", python_port="right") as (c, python):
                assert uids(engine) == [ANN, BOB]
                lab.send(bridge, [unicast(7)])
                assert c.ends()[:2] == (0, "2 frames, 128 bytes, 0 dropped")
                assert python.ends()[:2] == (0, "2 frames, 128 bytes, 0 dropped")
            eventually(lambda: engine.status()["pool"]["lent"] == 0, 5)


@pytest.mark.needs("host_root")
def test_the_one_in_c_is_killed_and_the_one_in_python_goes_on(plain_counter, rundir, tmp_path):
    with middle() as net, running(net, GROUPED, env=rundir, command=with_users(tmp_path)) as engine, heard(net.b.netns) as got:
        with Load(net.a) as load, two_programs(net, engine, plain_counter, c_port="left", python_port="left") as (c, python):
            lent = engine.status()["pool"]["lent"]
            assert "frames/s" in c.child.stdout.readline() and "frames/s" in python.child.stdout.readline()
            assert c.ends(signal.SIGKILL)[0] == -signal.SIGKILL
            _, line = engine.told("W_APP_GONE")
            assert re.search(rf"pid={c.child.pid} .*lent={lent // 2} returned={lent // 2}$", line), line
            assert eventually(lambda: engine.status()["pool"]["lent"], 5) == lent // 2
            (app,) = engine.status()["apps"]
            load.goes_on(2000)
        (app,) = [eventually(lambda: at_rest(engine), 10)]
        status, line, err = python.ends(signal.SIGINT)
        counted, dropped = map(int, re.fullmatch(r"(\d+) frames, \d+ bytes, (\d+) dropped", line).groups())
        assert (status, err, app["uid"]) == (0, "", BOB)
        assert (counted, dropped) == (app["counters"]["copied"], app["counters"]["drop_app_full"])
        eventually(lambda: engine.status()["pool"]["lent"] == 0, 5)
    assert got == sorted(load.sent), "the engine forwarded less, or more, than was sent"


@pytest.mark.needs("root")
def test_an_app_that_outlived_a_controller_is_cleared_away_by_the_next(plain_counter):
    with middle() as net, running(net) as engine:
        app, stays = (App(net, engine, [plain_counter, "-e", "t", "-f", OURS, "left"]) for _ in range(2))
        before = engine.controller()
        os.kill(before, signal.SIGKILL)
        engine.told("I_ADOPTED")
        eventually(lambda: engine.run("stat", "--engine", "t").returncode == 0 and engine.controller() != before, 10)
        net.lab.send(net.a, [unicast(i) for i in range(10)])
        eventually(lambda: [a["counters"]["copied"] for a in engine.status()["apps"]] == [10, 10], 5)
        app.ends(signal.SIGKILL)
        engine.told(f"W_APP_GONE app=1 pid={app.child.pid} port=left lent=1024 returned=1024")
        assert [a["pid"] for a in engine.status()["apps"]] == [stays.child.pid]
        assert stays.ends(signal.SIGINT) == (0, "10 frames, 640 bytes, 0 dropped", "")
        engine.told(f"W_APP_GONE app=2 pid={stays.child.pid}")


def at_rest(engine):
    """The only app, when its numbers stand still."""
    before, after = engine.status()["apps"], engine.status()["apps"]
    return after[0] if before == after else None


# ---- what an app sees ----


@pytest.mark.needs("root")
def test_an_app_counts_what_comes_and_sends_one_back(counter):
    with middle() as net, running(net) as engine, net.lab.listening(net.a) as ear:
        app = App(net, engine, [counter, "-e", "t", "-n", "500", "-f", OURS, "-s", "left"])
        assert "shared memory" in app.first
        for start in range(0, 500, 50):
            net.lab.send(net.a, [B + A + numbered(i, 60 + i)[12:] for i in range(start, start + 50)])
            eventually(lambda n=start + 50: sum(a["counters"]["copied"] for a in engine.status()["apps"]) in (n, 0), 5)
        assert app.ends() == (0, f"500 frames, {sum(range(60, 560))} bytes, 0 dropped", "")
        (back,) = ear.take(1)
        assert (back[:6], back[6:12], number(back)) == (A, B, 0)
        assert not ear.take(1, 0.2)


@pytest.mark.needs("host_root")
def test_a_guest_gets_copies_in_a_sealed_memory_of_its_own(counter, rundir):
    config = FORWARD.replace("workers = 2", "workers = 2\nguests = true")
    with middle() as net, running(net, config, env=rundir) as engine, net.lab.listening(net.a) as ear:
        app = App(net, engine, [counter, "-e", f"{rundir['PKTRING_RUNDIR']}/t/control.sock", "-n", "20", "-s", "left"], NOBODY)
        assert "sealed memory" in app.first, app.first
        net.lab.send(net.a, [unicast(i) for i in range(20)])
        assert app.ends() == (0, "20 frames, 1280 bytes, 0 dropped", "")
        assert number(ear.take(1)[0]) == 0
        engine.told("W_APP_GONE")


@pytest.mark.needs("root")
def test_an_app_is_told_when_the_engine_ends(counter):
    with middle() as net:
        with running(net) as engine:
            app = App(net, engine, [counter, "-e", "t", "left"])
        status, line, err = app.ends()
        assert (status, line) == (1, "0 frames, 0 bytes, 0 dropped") and "E_DETACHED" in err


@pytest.mark.needs("root")
def test_an_app_is_told_when_every_process_of_the_engine_was_killed(counter):
    with middle() as net, running(net) as engine:
        app = App(net, engine, [counter, "-e", "t", "left"])
        with running_again(engine):
            status, _, err = app.ends()
        assert status == 1 and "E_DETACHED" in err


@contextlib.contextmanager
def running_again(engine):
    """Kill all of an engine; what `running` waits for afterwards is one that starts anew and ends well."""
    argv = engine.child.args
    for pid in [engine.child.pid, *engine.processes()]:
        os.kill(pid, signal.SIGKILL)
    engine.child.wait(10)
    yield
    again = engine.net.lab.start(engine.net.fa.netns, argv, stderr=subprocess.PIPE, env=engine.env)
    while "is ready" not in (line := again.stderr.readline()):
        assert line, "it does not start"
    engine.child.returncode = None
    again.send_signal(signal.SIGTERM)
    engine.child.returncode = again.wait(20)


ECHO = """
#include <pktring.h>
int main(int argc, char **argv)
{
    char why[256];
    struct pktring_port *p = pktring_attach("t", argv[argc - 1], 0, "ether proto 0x88b5", why, sizeof why);
    if (!p)
        return fprintf(stderr, "%s\\n", why), 1;
    fprintf(stderr, "%u rings\\n", p->n);
    for (struct pollfd wait = {pktring_fd(p), POLLIN, 0};;) {
        while (!pktring_ready(p)) {
            if (pktring_error(p))
                return pktring_close(p), 0;
            poll(&wait, 1, -1); /* for ever: a lost wake-up hangs */
        }
        for (uint32_t i = 0; i < p->n; i++) {
            struct pr_ring *rx = p->rx[i], *tx = p->tx[i];
            for (; rx->head != __atomic_load_n(&rx->tail, __ATOMIC_ACQUIRE); pktring_advance(rx, 1), pktring_advance(tx, 1)) {
                uint8_t *frame = pktring_buf(p, rx->slot[rx->head].buf_idx), mac[6];
                memcpy(mac, frame, 6), memcpy(frame, frame + 6, 6), memcpy(frame + 6, mac, 6);
                pr_slot_swap(&rx->slot[rx->head], &tx->slot[tx->head]);
            }
        }
        pktring_flush(p);
    }
}
"""


@pytest.mark.needs("root")
@pytest.mark.parametrize("sanitize", [False, True])
def test_rings_that_lie_open_carry_frames_back_in_the_buffers_in_which_they_came(open_to_all, sanitize):
    echo = built(open_to_all, "echo", ECHO, sanitize=sanitize)
    with middle() as net:
        with running(net) as engine, net.lab.listening(net.a) as ear:
            app = App(net, engine, [echo, "left"])
            assert app.first == "2 rings"
            for i in range(300):  # one after the other: each finds the app, and often the worker, asleep
                net.lab.send(net.a, [unicast(i)])
                (back,) = ear.take(1, 5)
                assert (back[:6], number(back)) == (A, i)
            (facts,) = engine.status()["apps"]
            assert facts["counters"]["tx_frames"] == 300 and not facts["counters"]["violations"]
        assert app.ends()[0] == 0


PIECES = """
#include <pktring.h>
int main(void)
{
    static uint8_t frame[9000], long_one[1 << 20];
    char why[256];
    struct pktring_port *p = pktring_attach("t", "left", 0, 0, why, sizeof why);
    if (!p)
        return fprintf(stderr, "%s\\n", why), 1;
    fprintf(stderr, "ready\\n");
    struct pollfd wait = {pktring_fd(p), POLLIN, 0};
    struct pktring_frame f;
    while (!pktring_recv(p, &f, 1))
        poll(&wait, 1, -1);
    uint32_t n = pktring_copy(p, &f, frame, sizeof frame), sent = 0;
    printf("%u slots, %u of %u bytes, %u copied, ", f.slots, f.length < f.frame_length, f.frame_length, n);
    frame[5] ^= 1;
    if (pktring_send(p, frame, 0) != -1 || pktring_send(p, long_one, sizeof long_one) != -1)
        return 3;
    while (pktring_send(p, frame, n) == 1) /* nobody is woken for it yet, but a worker may be awake */
        if (++sent == 3)
            break;
    printf("%u sent\\n", sent);
    pktring_close(p);
    return 0;
}
"""


@pytest.mark.needs("root")
def test_a_frame_of_many_buffers_is_copied_out_and_sent_whole(open_to_all):
    pieces = built(open_to_all, "pieces", PIECES, sanitize=True)
    config = FORWARD.replace("rings = 2", "rings = 2\n", 1)
    with middle(mtu=9000) as net, running(net, config) as engine, net.lab.listening(net.a) as ear:
        app = App(net, engine, [pieces])
        frame = numbered(5, 8000)
        net.lab.send(net.a, [frame])
        status, line, err = app.ends()
        assert (status, err) == (0, "") and re.fullmatch(r"[2-9] slots, 1 of 8000 bytes, 8000 copied, 3 sent", line), (line, err)
        assert ear.take(3) == 3 * [frame[:5] + bytes([frame[5] ^ 1]) + frame[6:]]


SEND = """
#include <pktring.h>
int main(void)
{
    char why[256], line[16];
    uint8_t frame[60] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5};
    struct pktring_port *p = pktring_attach("t", "left", 0, "udp", why, sizeof why);
    fprintf(stderr, "%s\\n", p ? "ready" : why);
    for (; fgets(line, sizeof line, stdin); pktring_flush(p))
        if (pktring_send(p, frame, sizeof frame) != 1)
            return 1;
    pktring_close(p);
    return 0;
}
"""


@pytest.mark.needs("root")
def test_a_worker_that_sleeps_is_woken_to_send(open_to_all):
    """It would wake by itself within 100 ms: most of these are there much earlier."""
    sender = built(open_to_all, "sender", SEND)
    with middle() as net, running(net) as engine, net.lab.listening(net.a) as ear:
        app = App(net, engine, [sender], stdin=subprocess.PIPE)
        took = []
        for _ in range(21):
            time.sleep(0.02)  # both workers are asleep by now
            began = time.monotonic()
            app.child.stdin.write("\n")
            app.child.stdin.flush()
            assert len(ear.take(1)) == 1
            took.append(time.monotonic() - began)
        assert sorted(took)[10] < 0.02, took
        assert app.ends()[0] == 0


# ---- refusals ----


@pytest.mark.needs("root")
def test_a_refusal_is_one_line_with_the_engines_code(counter):
    with middle() as net, running(net) as engine:

        def refusal(*words, uid=0):
            app = App(net, engine, [counter, *words], uid)
            status, _, more = app.ends()
            assert status == 1 and not more, (app.first, more)
            return app.first

        assert refusal("-e", "t", "nowhere") == "counter: E_NO_PORT engine t has no port 'nowhere': it has left, right"
        assert refusal("-e", "t", 'a "quoted\\ \n port').startswith("counter: E_NO_PORT engine t has no port 'a \"quoted")
        assert refusal("-e", "other", "left").startswith("counter: E_NO_ENGINE name=other")
        assert refusal("-e", "../t", "left").startswith("counter: E_NO_ENGINE")
        assert refusal("-e", "..", "left").startswith("counter: E_USAGE")
        assert refusal("-e", "t", "-f", "no such word", "left").startswith("counter: E_FILTER")
        assert refusal("-e", "t", "-f", "x" * 5000, "left").startswith("counter: E_CTRL_MSG")


@pytest.mark.needs("host_root")
def test_a_stranger_is_refused_where_there_are_no_guests(plain_counter, rundir):
    with middle() as net, running(net, env=rundir) as engine:
        app = App(net, engine, [plain_counter, "-e", "t", "left"], NOBODY)
        assert app.ends()[0] == 1 and app.first.startswith("counter: E_PERM may not connect")


@pytest.mark.needs("root")
def test_a_program_with_another_layout_is_refused(open_to_all):
    """E_ABI, before any of the engine's memory is shown to it."""
    source = '#include "region.h"\n#define pr_layout_hash() 1\n' + (TOP / "examples/counter.c").read_text()
    other = built(open_to_all, "other", "#define _GNU_SOURCE\n" + source)
    with middle() as net, running(net) as engine:
        app = App(net, engine, [other, "-e", "t", "left"])
        assert app.ends()[0] == 1 and re.match(r"counter: E_ABI app layout 1, engine \d+\.\d+ layout", app.first), app.first


# ---- a controller that lies ----


def answer(body, **how):
    raw = body if isinstance(body, bytes) else wire.dumps(body)
    return wire.encode("answer", raw, **{"request": 1, "flags": wire.ANSWER} | how)


GOOD = {"app": 3, "port": "left", "memory": "sealed", "slots": 64, "rx": [0], "tx": [1]}
LIES = {
    "nothing": (b"", 0, "E_NO_CONTROLLER"),
    "three bytes": (b"prC", 0, "E_CTRL_MSG"),
    "no magic": (bytes(4096), 0, "E_CTRL_MSG"),
    "another version": (b"prCT\x02\0\0\0" + bytes(4088), 0, "E_ABI control version 2.0"),
    "too short": (answer(GOOD)[:4000], 2, "E_CTRL_MSG"),
    "too long": (answer(GOOD) + b"\0\0", 2, "E_CTRL_MSG"),
    "a body that ends nowhere": (answer(b"[" * 4032), 2, "E_ABI"),
    "a body elsewhere": (answer(b"", flags=wire.ANSWER | wire.IN_MEMFD), 2, "E_CTRL_MSG"),
    "a question": (answer(GOOD, flags=0), 2, "E_CTRL_MSG"),
    "a refusal without an end": (answer(b'{"code":"' + b"x" * 4000, flags=3), 0, "x"),
    "escapes": (answer(b'{"code":"E_X","text":"a\\nb\\"c\\u00e9\\\\d\\', flags=3), 0, 'E_X a b"c?00e9\\d'),
    "no rings": (answer(GOOD | {"rx": [], "tx": []}), 1, "E_ABI"),
    "fewer bells than rings": (answer(GOOD), 1, "E_ABI"),
    "more bells than rings": (answer(GOOD), 3, "E_ABI"),
    "a hundred rings": (answer(GOOD | {"rx": [*range(100)], "tx": [*range(100)]}), 101, "E_ABI"),
    "a ring that is not there": (answer(GOOD | {"rx": [2]}), 2, "E_ABI"),
    "a ring far away": (answer(GOOD | {"tx": [4294967295]}), 2, "E_ABI"),
    "a ring of the other direction": (answer(GOOD | {"rx": [1]}), 2, "E_ABI"),
    "a ring of another length": (answer(GOOD | {"slots": 63}), 2, "E_ABI"),
    "a ring that is too long": (answer(GOOD | {"slots": 1 << 30}), 2, "E_ABI"),
}


@pytest.fixture(scope="module")
def memory():
    """A sealed region of two rings, as the engine makes it."""
    region, fds = create("lies", rings=2, slots=64, stride=2048)
    for direction in (RX, TX):
        region.make_ring(direction, 64, "x", 0)
    yield region, fds[0]
    region.close()
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def told(program, tmp_path, data, fds):
    """Serve one app with these bytes and descriptors. -> its status, and what it says"""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(path))
        server.listen()
        app = subprocess.Popen([program, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with server.accept()[0] as there:
            question = wire.decode(there.recv(5000))
            assert question.verb == "attach" and wire.loads(question.raw) == {"port": "left", "filter": "", "mode": "copy", "slots": 256}
            if data:
                socket.send_fds(there, [data], fds)
            else:
                there.shutdown(socket.SHUT_RDWR)
            out, err = app.communicate(timeout=20)
    path.unlink()
    return app.returncode, err.rstrip()


LIED_TO = """
#include <pktring.h>
static int open_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 500; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}
int main(int argc, char **argv)
{
    char why[256] = "it is content";
    int before = open_fds();
    struct pktring_port *p = pktring_attach(argv[argc - 1], "left", 0, 0, why, sizeof why);
    fprintf(stderr, "%s\\n", why);
    pktring_close(p);
    return open_fds() != before ? 9 : p == NULL;
}
"""


@pytest.fixture(scope="module")
def lied_to(open_to_all):
    return built(open_to_all, "lied-to", LIED_TO, sanitize=True)


@pytest.mark.parametrize("lie", LIES)
def test_no_lie_of_a_controller_does_more_than_end_in_a_line(lie, lied_to, memory, tmp_path):
    data, n_fds, why = LIES[lie]
    pairs = [socket.socketpair() for _ in range(max(n_fds - 1, 0))]
    status, said = told(lied_to, tmp_path, data, [memory[1], *(a.fileno() for a, _ in pairs)][:n_fds])
    for a, b in pairs:
        a.close()
        assert b.recv(1) == b"", "the app ended, but somebody holds its bell"
        b.close()
    assert status == 1 and said.startswith(why) and "\n" not in said, said


def test_the_truth_is_believed(lied_to, memory, tmp_path):
    bells = socket.socketpair()
    status, said = told(lied_to, tmp_path, answer(GOOD), [memory[1], bells[0].fileno()])
    for bell in bells:
        bell.close()
    assert (status, said) == (0, "it is content")


@pytest.mark.parametrize("at, word", [(0, "magic"), (16, "layout"), (24, "geometry"), (40, "state"), (100, "geometry"), (104, "geometry")])
def test_a_memory_that_is_not_what_it_should_be_is_not_used(at, word, lied_to, memory, tmp_path):
    region, fd = memory
    before = region.mem[at]
    region.mem[at] ^= 0x40
    with contextlib.ExitStack() as undo:
        undo.callback(region.mem.__setitem__, at, before)
        a, b = (undo.enter_context(end) for end in socket.socketpair())
        status, said = told(lied_to, tmp_path, answer(GOOD), [fd, a.fileno()])
    assert (status, said) == (1, f"E_ABI the engine's memory: {word}: run the same pktring on both sides")


def test_a_memory_that_was_cut_short_is_not_used(lied_to, memory, tmp_path):
    fd = os.memfd_create("short")
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        a, b = (undo.enter_context(end) for end in socket.socketpair())
        os.write(fd, bytes(memory[0].mem[:4096]))
        status, said = told(lied_to, tmp_path, answer(GOOD), [fd, a.fileno()])
    assert status == 1 and said.startswith("E_ABI the engine's memory: geometry"), said
