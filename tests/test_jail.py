"""What a jailed worker can still do, and what it cannot: in forked children, since there is no way back."""

import ctypes
import errno
import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from lab import Ear, Lab, can_unshare, unshared

from pktring.drivers.netns import entered
from pktring.engine import _engine, jail

ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
X86_64, I386 = 0xC000003E, 0x40000003
EVERY_WISH = {"jit": True, "bpf": True, "files": True, "epoll": True}
AUDIT_ARCH = {"x86_64": X86_64, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)


def inside(body, timeout_s=20, **how):
    """Run body(facts) in a child that entered the jail; what it returns, through JSON. A child that fails or hangs fails the test."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = {}
        try:
            os.close(reading)
            if how.get("keep_fds") is not None:
                how["keep_fds"] = [*how["keep_fds"], writing]
            said = {"got": body(jail.enter(**how))}
        except BaseException:
            said = {"failed": traceback.format_exc()}
        finally:
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
    os.close(writing)
    try:
        assert select.select([reading], [], [], timeout_s)[0], "the child says nothing"
        said = json.loads(os.read(reading, 1 << 20) or b'{"failed": "it died"}')
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
    assert "failed" not in said, said["failed"]
    return said["got"]


def why_not(do, *args, **how):
    """The name of the errno that a call is refused with; None = it was not."""
    try:
        do(*args, **how)
    except OSError as why:
        return errno.errorcode[why.errno]
    return None


def call(nr, *args):
    """A system call by number; its result, or the name of its errno."""
    got = libc.syscall(ctypes.c_long(nr), *(ctypes.c_long(a) for a in args))
    return errno.errorcode[ctypes.get_errno()] if got < 0 else got


def status():
    return dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)


# ---- R21: what is left ----


def test_R21_no_capability_is_left_and_none_can_come_back():
    words = inside(lambda facts: status(), read_from=["/proc"])
    assert [int(words[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")] == [0] * 4
    assert (words["NoNewPrivs"], words["Seccomp"]) == ("1", "2")
    if os.geteuid() == 0:
        assert int(words["CapBnd"], 16) == 0


def test_R21_the_facts_are_what_the_kernel_says():
    facts, words = inside(lambda facts: (facts, status()), read_from=["/proc"])
    assert facts["capabilities"] == words["CapEff"].lstrip("0") + "0" == "0"
    assert (facts["seccomp"], facts["no_new_privs"], facts["threads"]) == (2, True, 1)
    assert facts["calls"] == 30 and facts["lacks"] == [] and facts["dumpable"] is False
    assert facts["landlock"] == _engine.jail_landlock_abi()


def run_filter(code, nr, args=(0,) * 6, arch=AUDIT_ARCH):
    """What the cBPF program answers: the kernel's way through it, step by step (socket filter documentation, seccomp_data)."""
    words = struct.unpack("16I", struct.pack("<iIQ6Q", nr, arch, 0, *args))
    a = pc = 0
    while True:
        op, jt, jf, k = code[pc]
        pc += 1
        match op:
            case 0x20:  # ld [k]
                a = words[k // 4]
            case 0x15:  # jeq
                pc += jt if a == k else jf
            case 0x35:  # jge
                pc += jt if a >= k else jf
            case 0x45:  # jset
                pc += jt if a & k else jf
            case 0x06:  # ret
                return k
            case _:
                raise AssertionError(f"instruction {op:#x}")


def program(**wishes):
    return list(struct.iter_unpack("<HBBI", _engine.jail_program(jail.allowed(**wishes))))


ARGS = [tuple(v if i == j else 0 for i in range(6)) for j in range(3) for v in (0, 1, 2, 3, 4, 7, 10, 15, 0x5421, 0xFFFFFFFF)]


def permitted(code):
    """Every call that it lets through with some argument or other, among far more numbers than there are."""
    return {nr for nr in range(2048) if any(run_filter(code, nr, args) == ALLOW for args in ARGS)}


def test_R21_at_most_thirty_system_calls_are_let_through():
    found = permitted(program())
    assert found == set(_engine.jail_calls(0).values()) and len(found) <= 30


def test_wishes_add_a_few_calls_and_take_none():
    plain = permitted(program())
    assert {n: len(permitted(program(**{n: True})) - plain) for n in EVERY_WISH} == {"jit": 1, "bpf": 1, "files": 1, "epoll": 2}
    assert plain < permitted(program(**EVERY_WISH)) == set(_engine.jail_calls(jail.allowed(**EVERY_WISH)).values())


@pytest.mark.parametrize("wishes", [{}, EVERY_WISH])
def test_what_is_not_let_through_is_EPERM_for_every_number_and_architecture(wishes):
    code = program(**wishes)
    listed = set(_engine.jail_calls(jail.allowed(**wishes)).values())
    assert {run_filter(code, nr) for nr in range(2048) if nr not in listed} == {REFUSE}
    assert {run_filter(code, nr, arch=I386) for nr in range(2048)} == {REFUSE}
    assert {run_filter(code, nr | 0x40000000) for nr in range(2048)} == {REFUSE}
    assert run_filter(code, -1) == REFUSE if AUDIT_ARCH == X86_64 else True


@pytest.mark.parametrize(
    "name, place, good, bad",
    [
        ("mmap", 2, [0, 1, 2, 3], [4, 5, 7]),
        ("openat", 2, [os.O_RDONLY, os.O_CLOEXEC, os.O_DIRECTORY | os.O_NOFOLLOW],
         [os.O_WRONLY, os.O_RDWR, 3, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_TMPFILE, os.O_RDWR | os.O_CLOEXEC]),
        ("ioctl", 1, [0x5421], [0, 0x5401, 0x400454CA, 0x5412]),
        ("prctl", 0, [15], [0, 1, 4, 22, 38, 47]),
    ],
)  # fmt: skip
def test_arguments_that_do_harm_are_refused(name, place, good, bad):
    code, nr = program(), _engine.jail_calls(0)[name]

    def verdict(value):
        return run_filter(code, nr, tuple(value if i == place else 0 for i in range(6)))

    assert {verdict(v) for v in good} == {ALLOW} and {verdict(v) for v in bad} == {REFUSE}
    assert {verdict(v | 0xABCD << 32) for v in good} == {ALLOW}, "the kernel reads the low half of these"
    assert {verdict(v | 0xABCD << 32) for v in bad} == {REFUSE}


def test_bpf_runs_programs_and_changes_maps_and_loads_nothing():
    groups = jail.allowed(bpf=True)
    nr = _engine.jail_calls(groups)["bpf"]
    code = program(bpf=True)
    assert {cmd for cmd in range(64) if run_filter(code, nr, (cmd, 0, 0, 0, 0, 0)) == ALLOW} == {2, 10}


# ---- refused, and not by death ----


def test_what_a_hostile_handler_would_try_is_refused(tmp_path):
    target = tmp_path / "file"
    target.write_text("before")

    def try_it(facts):
        return {
            "socket": why_not(socket.socket),
            "packet": why_not(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0),
            "pair": why_not(socket.socketpair),
            "fork": why_not(os.fork),
            "execve": why_not(os.execv, "/bin/true", ["true"]),
            "kill": why_not(os.kill, os.getppid(), 0),
            "write": why_not(os.open, target, os.O_WRONLY),
            "append": why_not(os.open, target, os.O_RDWR | os.O_APPEND),
            "create": why_not(os.open, tmp_path / "new", os.O_CREAT | os.O_WRONLY, 0o600),
            "unlink": why_not(os.unlink, target),
            "chmod": why_not(os.chmod, target, 0o777),
            "setuid": why_not(os.setuid, 65534),
            "memfd": why_not(os.memfd_create, "x"),
            "ptrace": call(101, 16, os.getppid(), 0, 0),
            "mount": call(165, 0, 0, 0, 0, 0),
            "bpf": call(321, 0, 0, 0),
            "unshare": call(272, 0x10000000),
            "setns": call(308, 0, 0),
            "process_vm_readv": call(310, os.getppid(), 0, 0, 0, 0, 0),
            "io_uring_setup": call(425, 1, 0),
            "pidfd_getfd": call(438, 0, 0, 0),
            "prlimit": call(302, 0, 4, 0, 0),
        }

    if os.uname().machine != "x86_64":
        pytest.skip("tool: numbers of x86_64")
    got = inside(try_it, read_from=["/"])
    assert set(got.values()) == {"EPERM"}, got
    assert target.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_memory_that_is_written_and_run_cannot_be_made():
    def make(facts):
        plain = mmap.mmap(-1, 4096)  # readable and writable: what Python itself lives on
        plain[:4] = b"abcd"
        address = ctypes.addressof(ctypes.c_char.from_buffer(plain))
        return [
            why_not(mmap.mmap, -1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
            why_not(mmap.mmap, -1, 4096, prot=mmap.PROT_EXEC),
            libc.mprotect(ctypes.c_void_p(address), 4096, mmap.PROT_READ | mmap.PROT_EXEC),
        ]

    assert inside(make) == ["EPERM", "EPERM", -1]
    assert inside(make, jit=True) == [None, None, 0]


def test_what_lies_outside_of_pythons_folders_is_not_read(tmp_path):
    if not _engine.jail_landlock_abi():
        pytest.skip("tool: this kernel has no Landlock")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "link.py").symlink_to("/etc/passwd")

    def read(facts):
        return [why_not(open, path) for path in (tmp_path / "secret", "/etc/passwd", "/proc/self/maps", os.__file__, jail.__file__)]

    assert inside(read) == ["EACCES", "EACCES", "EACCES", None, None]
    open_it = inside(lambda facts: [why_not(open, tmp_path / name) for name in ("secret", "link.py")], read_from=[str(tmp_path)])
    assert open_it == [None, "EACCES"]


def test_one_file_may_be_named_instead_of_a_folder(tmp_path):
    if not _engine.jail_landlock_abi():
        pytest.skip("tool: this kernel has no Landlock")
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    got = inside(lambda facts: [why_not(open, tmp_path / name) for name in ("a", "b")], read_from=[str(tmp_path / "a"), "/no/such/path"])
    assert got == [None, "EACCES"]


def test_neither_the_root_nor_a_home_is_readable_because_of_sys_path(monkeypatch):
    monkeypatch.setattr(sys, "path", ["", "/", os.path.expanduser("~"), "relative", *sys.path])
    paths = jail._code_paths()
    assert "/" not in paths and os.path.expanduser("~") not in paths and all(os.path.isabs(path) for path in paths)
    assert not any(a != b and a.startswith(f"{b}/") for a in paths for b in paths)


# ---- still possible ----


def test_python_goes_on_working():
    def work(facts):
        block = [bytearray(1 << 20) for _ in range(64)]
        del block
        begin = time.monotonic()
        time.sleep(0.01)
        try:
            raise ValueError("told")
        except ValueError:
            trace = traceback.format_exc()
        return [time.monotonic() - begin >= 0.01, 'raise ValueError("told")' in trace, os.getpid() > 1, sorted({3, 1, 2})]

    assert inside(work) == [True, True, True, [1, 2, 3]]


def test_a_traceback_shows_its_lines_even_if_nothing_of_it_was_imported_before(tmp_path):
    (tmp_path / "handler.py").write_text("""
import os, sys
from pktring.engine import jail
sys.path[:0] = ["", os.path.dirname(__file__)]
for name in ("ast", "linecache", "tokenize"):
    sys.modules.pop(name, None)
jail.enter()
import ast, traceback
try:
    len(5)  # the line
except TypeError:
    print(traceback.format_exc())
""")
    got = subprocess.run([sys.executable, tmp_path / "handler.py"], capture_output=True, text=True, timeout=30)
    assert got.returncode == 0 and "len(5)  # the line" in got.stdout, got.stderr


def test_numpy_goes_on_working():
    np = pytest.importorskip("numpy")

    def work(facts):
        big = np.arange(1 << 20, dtype=np.uint32)
        return [int((big * 2).sum() % 1000003), int(np.frombuffer(bytes(range(64)), "u1").sum())]

    assert inside(work) == [int((np.arange(1 << 20, dtype=np.uint32) * 2).sum() % 1000003), 2016]


MATRICES = """
import os, sys
BEFORE
from pktring.engine import jail
jail.prepare()
if os.fork() == 0:
    AFTER
    facts = jail.enter()
    print(facts["threads"], facts["lacks"], int((numpy.ones((700, 700)) @ numpy.ones((700, 700))).sum()), flush=True)
    os._exit(0)
assert os.wait()[1] == 0"""


@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
def test_numpy_multiplies_matrices_in_one_thread_whenever_it_was_imported(when):
    """OpenBLAS has a pool of threads, which fork loses and a jail does not let it start again."""
    code = MATRICES.replace(when, "import numpy; numpy.ones((700, 700)) @ numpy.ones((700, 700))")
    code = code.replace("BEFORE", "").replace("AFTER", "pass")
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, start_new_session=True)
    assert got.stdout == "1 [] 343000000\n", got.stderr


def test_other_threads_are_told_of():
    def enter():
        import threading

        done = threading.Event()
        thread = threading.Thread(target=done.wait, daemon=True)
        thread.start()

    facts = in_child_of(enter)
    assert facts["threads"] == 2 and facts["lacks"] == ["threads: 1 besides the caller keep capabilities and files: see jail.prepare"]


def test_descriptors_that_are_open_go_on_working(tmp_path):
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    path = str(tmp_path / "ear")
    ear.bind(path)
    ear.listen(2)
    mouth = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mouth.connect(path)
    capture = os.open(tmp_path / "capture", os.O_WRONLY | os.O_CREAT)

    def work(facts):
        os.eventfd_write(bell, 3)
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        ready = poll.poll(1000) == [(bell, select.POLLIN)] and select.select([bell], [], [], 1)[0] == [bell]
        there.settimeout(1.0)
        there.send(b"hello")
        socket.send_fds(there, [b"fd"], [bell])
        caller = ear.accept()[0]
        caller.settimeout(1.0)
        caller.send(b"met")
        os.write(capture, b"frame")
        os.writev(capture, [b"an", b"other"])
        return [ready, os.eventfd_read(bell), caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]

    got = inside(work, keep_fds=[bell, there.fileno(), ear.fileno(), capture])
    here.settimeout(5)
    assert got == [True, 3, 0] and here.recv(9) == b"hello"
    data, fds, _, _ = socket.recv_fds(here, 9, 4)
    assert data == b"fd" and len(fds) == 1
    os.close(fds[0])
    assert mouth.recv(9) == b"met" and (tmp_path / "capture").read_bytes() == b"frameanother"
    for sock in (here, there, ear, mouth):
        sock.close()
    os.close(bell)
    os.close(capture)


def test_captures_are_cut_back_and_epoll_waits_where_that_was_asked_for(tmp_path):
    capture = os.open(tmp_path / "capture", os.O_WRONLY | os.O_CREAT)
    poll = select.epoll()

    def work(facts):
        os.write(capture, b"0123456789")
        return [why_not(os.ftruncate, capture, 4), why_not(poll.poll, 0), facts["calls"]]

    assert inside(work) == ["EPERM", "EPERM", 30]
    assert inside(work, files=True, epoll=True) == [None, None, 33]
    assert (tmp_path / "capture").read_bytes() == b"0123"
    poll.close()
    os.close(capture)


@pytest.mark.needs("root")
def test_a_packet_socket_of_before_still_sends_and_receives():
    with Lab() as lab:
        a, b = lab.pair()
        with entered(a.netns):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
            sock.bind((a.name, 0x88B5))
        frame = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + b"hello" * 10
        with Ear(b) as ear:
            lab.send(b, [frame])  # waits in the socket from before the jail
            assert select.select([sock], [], [], 5)[0]

            def work(facts):
                sock.settimeout(5)
                got = sock.recv(2000) == frame
                sock.send(frame)
                return [got, facts["capabilities"], why_not(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)]

            assert inside(work, keep_fds=[sock.fileno()]) == [True, "0", "EPERM"]
            assert ear.take(1) == [frame]
        sock.close()


def test_only_the_descriptors_that_are_kept_stay_open():
    extra = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
    keep = extra[3]

    def look(facts):
        return [facts["closed"] >= 9, [fd for fd in extra if why_not(os.read, fd, 1) is None]]

    assert inside(look, keep_fds=[keep]) == [True, [keep]]
    assert inside(lambda facts: [facts["closed"], [fd for fd in extra if why_not(os.read, fd, 1) is None]]) == [None, extra]
    for fd in extra:
        os.close(fd)


def test_a_sleep_that_was_stopped_and_continued_ends_well():
    """poll after SIGSTOP and SIGCONT comes back by restart_syscall(2): refused, it would fail with EPERM."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        ok = 1
        try:
            jail.enter()
            os.write(writing, b"x")
            poll = select.poll()
            poll.register(reading, select.POLLPRI)
            ok = 0 if poll.poll(600) == [] else 2
        finally:
            os._exit(ok)
    assert select.select([reading], [], [], 10)[0]
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/wchan").read_text() == "0" and time.monotonic() < deadline:  # until it sleeps
        time.sleep(0.005)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    os.kill(pid, signal.SIGCONT)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(reading)
    os.close(writing)


def test_a_crash_is_a_death_by_its_signal():
    """faulthandler restores the handler, and the fault comes again: refused that, it would loop."""
    code = """
import ctypes, faulthandler
from pktring.engine import jail
faulthandler.enable()
jail.enter()
ctypes.string_at(0)"""
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert got.returncode == -signal.SIGSEGV and "Segmentation fault" in got.stderr and "string_at" in got.stderr


# ---- where a kernel or a user cannot ----


def refuse_outside(*numbers):
    """A filter around us that refuses these calls with ENOSYS, as a kernel without them would."""
    code = [struct.pack("<HBBI", 0x20, 0, 0, 0)]
    for nr in numbers:
        code += [struct.pack("<HBBI", 0x15, 0, 1, nr), struct.pack("<HBBI", 0x06, 0, 0, 0x00050000 | errno.ENOSYS)]
    code.append(struct.pack("<HBBI", 0x06, 0, 0, ALLOW))
    filled = ctypes.create_string_buffer(b"".join(code), sum(map(len, code)))
    prog = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(filled)))
    libc.prctl(38, 1, 0, 0, 0)
    assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(prog)), 0, 0) == 0


def in_child_of(prepare, **how):
    """Facts of a jail that was entered after `prepare`."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prepare()
            os.write(writing, json.dumps(jail.enter(**how)).encode())
        except BaseException:
            os.write(writing, json.dumps({"failed": traceback.format_exc()}).encode())
        finally:
            os._exit(0)
    os.close(writing)
    facts = json.loads(os.read(reading, 1 << 16))
    os.close(reading)
    os.waitpid(pid, 0)
    assert "failed" not in facts, facts["failed"]
    return facts


def test_a_kernel_without_landlock_is_told_of():
    facts = in_child_of(lambda: refuse_outside(444))
    assert facts["landlock"] == 0 and facts["lacks"] == ["landlock: Function not implemented"] and facts["capabilities"] == "0"


def test_a_kernel_that_refuses_filters_is_told_of_and_the_rest_is_done():
    facts = in_child_of(lambda: refuse_outside(317))
    assert facts["lacks"] == ["seccomp: Function not implemented"] and facts["calls"] == 0
    assert facts["capabilities"] == "0" and facts["no_new_privs"] and facts["landlock"] == _engine.jail_landlock_abi()


@pytest.mark.needs("host_root")
def test_a_user_without_privileges_is_jailed_too():
    def be_nobody():
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)

    facts = in_child_of(be_nobody)
    assert facts["lacks"] == [] and (facts["capabilities"], facts["seccomp"], facts["calls"]) == ("0", 2, 30)


@pytest.mark.needs("unshare")
def test_root_of_a_user_namespace_is_jailed_too():
    if not can_unshare():
        pytest.skip("tool: no user namespaces here")
    code = "import json; from pktring.engine import jail; print(json.dumps(jail.enter()))"
    facts = json.loads(subprocess.run(unshared([sys.executable, "-c", code]), stdout=subprocess.PIPE, check=True, timeout=60).stdout)
    assert facts["lacks"] == [] and (facts["capabilities"], facts["seccomp"]) == ("0", 2)


def test_a_jail_in_a_jail_says_what_it_could_not_do():
    facts = inside(lambda facts: jail.enter())
    assert facts["seccomp"] == 0 and len(facts["lacks"]) >= 5, "the kernel can no longer be asked, so nothing is claimed"


@pytest.mark.needs("host_root")
def test_others_of_the_same_user_may_look_into_it_only_where_that_was_wished():
    """The files in /proc of a process that is not dumpable are root's, and so nobody else may trace it."""

    def owner(dumpable):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                libc.prctl(4, 1, 0, 0, 0)
                jail.enter(dumpable=dumpable)
                os.write(writing, str(os.stat("/proc/self/maps").st_uid).encode())
            finally:
                os._exit(0)
        os.close(writing)
        said = os.read(reading, 100)
        os.close(reading)
        os.waitpid(pid, 0)
        return int(said)

    assert [owner(False), owner(True)] == [0, 65534]
