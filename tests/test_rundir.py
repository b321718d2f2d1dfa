"""Engines' names: exactly one holder, who gives it back by dying; stale folders, squatters, sockets."""

import grp
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest

from pktring.engine import rundir
from pktring.engine.pidfd import PidFd
from pktring.shm.errors import Error
from pktring.shm.segment import start_time

RACES = int(os.environ.get("PKTRING_RACES", "100"))
STARTERS = 8


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    """A base of our own."""
    path = tmp_path / "base"
    monkeypatch.setenv("PKTRING_RUNDIR", str(path))
    return path


def refused(code, function, *args, **how):
    with pytest.raises(Error) as why:
        function(*args, **how)
    assert why.value.code == code, why.value
    return why.value.text


def in_child(body):
    """Run `body` in a forked child; returns (pid, a pipe's end that closes when the child ends)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            body(writing)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    return pid, reading


def told(fd, timeout_s=10):
    """What a child said, in one read; b"" at its end."""
    import select

    assert select.select([fd], [], [], timeout_s)[0], "the child said nothing"
    return os.read(fd, 4096)


def holder_of(name, *, generation=7):
    """A child that holds `name` until it is killed."""

    def hold(out):
        claimed = rundir.claim(name)
        claimed.record(generation)
        os.write(out, b"held")
        time.sleep(60)

    pid, out = in_child(hold)
    assert told(out) == b"held"
    os.close(out)
    return pid


def killed(pid):
    with PidFd.open(pid) as process:
        assert process.kill(5)
        process.reap()


def fds():
    return len(os.listdir("/proc/self/fd"))


# ---- F26: one holder ----


def test_F26_a_name_is_held_by_one_and_the_other_is_told_by_whom():
    with rundir.claim("eng0"):
        text = refused("E_NAME_BUSY", rundir.claim, "eng0")
    assert text.startswith(f"name=eng0 held by pid {os.getpid()} since ")


def test_F26_the_lock_says_who_and_which_generation():
    with rundir.claim("eng0") as mine:
        mine.record(42)
        words = Path(mine.path, "lock").read_text().split()
    assert words[:6] == ["pid", str(os.getpid()), "start", str(start_time(os.getpid())), "generation", "42"]


def test_F26_a_loser_leaves_no_trace_and_no_descriptor():
    with rundir.claim("eng0", mode=0o755) as mine:
        mine.record(1)
        sock = rundir.listen(mine.control)
        before = {p: (p.stat().st_mode, p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in Path(mine.path).iterdir()}
        folder, n = os.stat(mine.path), fds()
        refused("E_NAME_BUSY", rundir.claim, "eng0", mode=0o700)
        assert {p: (p.stat().st_mode, p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in Path(mine.path).iterdir()} == before
        assert (os.stat(mine.path).st_mode, os.stat(mine.path).st_ctime_ns) == (folder.st_mode, folder.st_ctime_ns) and fds() == n
        sock.close()


def starter(name, begin, release):
    """A child that waits for `begin` to close, tries, says how it went, and holds what it got until `release` closes."""

    def body(out):
        os.read(begin, 1)
        try:
            mine = rundir.claim(name)
        except Error as why:
            os.write(out, why.code.encode())
            return
        mine.record(os.getpid())
        Path(mine.path, "worker-1.sock").write_text(str(os.getpid()))
        os.write(out, b"won")
        os.read(release, 1)
        left = Path(mine.path, "worker-1.sock").read_text(), Path(mine.path, "lock").read_text().split()[1]
        os.write(out, b" whole" if left == (str(os.getpid()),) * 2 else b" damaged")
        if os.getpid() % 2:
            mine.close()  # the others die with it, which is the kernel's way to end

    return in_child(body)


@pytest.mark.timeout(300)
def test_F26_R14_of_eight_racing_starters_exactly_one_wins_and_is_left_whole():
    for race in range(RACES):
        begin, go = os.pipe()
        release, let = os.pipe()
        os.set_inheritable(go, False)

        def race_on(begin=begin, release=release, name=f"eng{race % 3}"):
            return starter(name, begin, release)

        children = [race_on() for _ in range(STARTERS)]
        os.write(go, b"x" * STARTERS)
        said = [told(out) for _, out in children]
        os.write(let, b"x" * STARTERS)
        winners = [i for i, word in enumerate(said) if word == b"won"]
        assert sorted(said) == [b"E_NAME_BUSY"] * (STARTERS - 1) + [b"won"], said
        assert told(children[winners[0]][1]) == b" whole"
        for pid, out in children:
            assert os.waitpid(pid, 0)[1] == 0
            os.close(out)
        for fd in (begin, go, release, let):
            os.close(fd)


def test_F26_a_name_that_comes_and_goes_never_has_two_holders(tmp_path):
    """Claim, mark, look, unmark, close, in eight processes at once: the removal of the folder is raced too."""
    mark = tmp_path / "mark"

    def body(out):
        won = 0
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            try:
                mine = rundir.claim("eng0")
            except Error as why:
                assert why.code == "E_NAME_BUSY", why
                continue
            mine.record(1)
            fd = os.open(mark, os.O_CREAT | os.O_EXCL)  # fails when somebody else holds the name
            os.close(fd)
            os.unlink(mark)
            mine.close()
            won += 1
        os.write(out, str(won).encode())

    children = [in_child(body) for _ in range(STARTERS)]
    wins = [told(out, 30) for _, out in children]
    for pid, out in children:
        assert os.waitpid(pid, 0)[1] == 0
        os.close(out)
    assert sum(map(int, wins)) > 20, wins


# ---- death and heirs ----


def test_the_kernel_gives_back_the_name_of_a_killed_holder():
    pid = holder_of("eng0")
    refused("E_NAME_BUSY", rundir.claim, "eng0")
    killed(pid)
    with rundir.claim("eng0") as mine:
        assert mine.before.pid == pid and mine.before.generation == 7 and not mine.before.alive


def test_F6_sockets_of_a_dead_engine_are_removed_by_the_next_claimer_only():
    def die(out):
        mine = rundir.claim("eng0")
        mine.record(1)
        for path in (mine.control, mine.worker(1), mine.worker(2)):
            rundir.listen(path)

    pid, out = in_child(die)
    os.waitpid(pid, 0)
    os.close(out)
    (seen,) = rundir.engines()
    assert (seen.name, seen.alive, seen.pid) == ("eng0", False, pid) and len(os.listdir(seen.path)) == 4
    Path(seen.path, "notes.txt").write_text("not ours to remove")
    with rundir.claim("eng0") as mine:
        assert mine.workers() == [1, 2], "they may be alive"
        assert mine.clean() == ["control.sock", "worker-1.sock", "worker-2.sock"]
        assert sorted(os.listdir(mine.path)) == ["lock", "notes.txt"] and mine.workers() == []


def test_a_worker_that_let_go_does_not_keep_the_name_of_its_dead_controller():
    def controller(out):
        mine = rundir.claim("eng0")
        mine.record(1)
        worker = os.fork()
        if worker == 0:
            mine.release_in_child()
            os.write(out, str(os.getpid()).encode())
            time.sleep(60)
        time.sleep(60)

    pid, out = in_child(controller)
    worker = int(told(out))
    os.close(out)
    killed(pid)
    try:
        with rundir.claim("eng0"):
            assert start_time(worker), "it runs still"
    finally:
        killed(worker)


def test_a_child_that_did_not_let_go_shares_the_name():
    """As a supervisor and its controller do; and it is what release_in_child is for."""
    mine = rundir.claim("eng0")

    def wait(out):
        os.write(out, b"here")
        time.sleep(60)

    pid, out = in_child(wait)
    assert told(out) == b"here"
    os.close(out)
    mine.release_in_child()
    refused("E_NAME_BUSY", rundir.claim, "eng0")
    killed(pid)
    rundir.claim("eng0").close()


def test_a_child_that_closes_removes_nothing():
    mine = rundir.claim("eng0")
    pid, out = in_child(lambda out: mine.close())
    assert os.waitpid(pid, 0)[1] == 0
    os.close(out)
    refused("E_NAME_BUSY", rundir.claim, "eng0")
    mine.close()
    assert rundir.engines() == []


def test_the_lock_is_closed_by_exec():
    with rundir.claim("eng0") as mine:
        code = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in range(50) if os.path.exists(f'/proc/self/fd/{n}')])"
        got = subprocess.run([sys.executable, "-c", code], close_fds=False, stdout=subprocess.PIPE, text=True, check=True, timeout=30)
        out = got.stdout
        assert mine.path not in out


# ---- who is there ----


def test_engines_are_listed_alive_and_stale():
    pid = holder_of("b")
    killed(pid)
    with rundir.claim("a") as mine:
        mine.record(3)
        assert [(e.name, e.alive, e.pid, e.generation) for e in rundir.engines()] == [("a", True, os.getpid(), 3), ("b", False, pid, 7)]
        assert rundir.find("a").control == mine.control and rundir.find("b").alive is False
    assert [e.name for e in rundir.engines()] == ["b"]
    refused("E_NO_ENGINE", rundir.find, "a")


def test_looking_never_makes_a_starter_lose():
    def look(out):
        os.write(out, b"x")
        while True:
            rundir.engines()

    os.makedirs(os.environ["PKTRING_RUNDIR"], 0o700)
    lookers = [in_child(look) for _ in range(2)]
    try:
        assert all(told(out) for _, out in lookers)
        for _ in range(200):
            rundir.claim("eng0").close()
    finally:
        for pid, out in lookers:
            killed(pid)
            os.close(out)


def test_what_is_no_engine_is_not_listed(base):
    rundir.claim("eng0").close()
    (base / "empty").mkdir()
    (base / "file").write_text("")
    (base / "trap").mkdir()
    os.mkfifo(base / "trap/lock")
    (base / "link").mkdir()
    (base / "link/lock").symlink_to("/etc/passwd")
    (base / "with space").mkdir()
    assert rundir.engines() == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "x" * 33, "-x", ".x", "é", "a\n", "a\0b"])
def test_a_bad_name_is_refused(name):
    refused("E_USAGE", rundir.claim, name)
    refused("E_USAGE", rundir.find, name)


def test_a_good_name_is_taken():
    for name in ("a", "eng0", "A_b-c.d", "x" * 32, "0"):
        rundir.claim(name).close()


# ---- F28: squatters and rights ----


def test_F28_a_base_that_others_may_write_is_squatted(base):
    base.mkdir(mode=0o700)
    base.chmod(0o777)
    assert "writable by others" in refused("E_NAME_SQUATTED", rundir.claim, "eng0")
    assert rundir.engines() == []


def test_F28_a_base_that_is_a_link_or_a_file_is_squatted(base, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    base.symlink_to(tmp_path / "elsewhere")
    refused("E_NAME_SQUATTED", rundir.claim, "eng0")
    base.unlink()
    base.write_text("")
    refused("E_NAME_SQUATTED", rundir.claim, "eng0")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.needs("host_root")
def test_F28_a_base_of_another_user_is_squatted(base):
    base.mkdir(mode=0o700)
    os.chown(base, 65534, 65534)
    assert "owned by uid 65534" in refused("E_NAME_SQUATTED", rundir.claim, "eng0")


@pytest.mark.needs("host_root")
def test_F28_a_folder_of_another_user_is_squatted(base):
    (base / "eng0").mkdir(parents=True)
    base.chmod(0o700)
    os.chown(base / "eng0", 65534, 65534)
    assert "owned by uid 65534" in refused("E_NAME_SQUATTED", rundir.claim, "eng0")


def test_F28_a_lock_that_is_a_link_is_squatted(base):
    (base / "eng0").mkdir(parents=True)
    base.chmod(0o700)
    (base / "eng0/lock").symlink_to(base / "victim")
    refused("E_NAME_SQUATTED", rundir.claim, "eng0")
    assert not (base / "victim").exists()


@pytest.mark.needs("host_root")
def test_F28_the_place_is_by_user(monkeypatch):
    monkeypatch.delenv("PKTRING_RUNDIR")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert rundir.bases()[0] == ("/run/pktring", 0o755)
    home = tempfile.mkdtemp()  # not in tmp_path, which others may not enter
    os.chown(home, 65534, 65534)

    def as_nobody(out):
        os.setresuid(65534, 65534, 65534)
        first = rundir.bases()
        os.environ["XDG_RUNTIME_DIR"] = str(home)
        second = rundir.bases()[0]
        os.environ["XDG_RUNTIME_DIR"] = "/"
        assert first == rundir.bases() == [("/tmp/pktring-65534", 0o700)] and second == (f"{home}/pktring", 0o700)

    pid, out = in_child(as_nobody)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(out)
    os.rmdir(home)


def test_F28_modes_do_not_depend_on_the_umask():
    before = os.umask(0o077)
    try:
        with rundir.claim("eng0") as mine:
            sock = rundir.listen(mine.control)
            modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (mine.path, f"{mine.path}/lock", mine.control)]
            sock.close()
    finally:
        os.umask(before)
    assert modes == [0o750, 0o640, 0o660]


def test_F28_a_group_that_is_not_there_is_named():
    assert "groupadd no-such-group" in refused("E_PERM", rundir.claim, "eng0", group="no-such-group")


@pytest.mark.needs("host_root")
def test_F28_members_of_the_group_see_the_engine_and_others_do_not():
    some = next(g for g in grp.getgrall() if g.gr_gid not in (0, 65534))
    base = tempfile.mkdtemp()
    os.chmod(base, 0o755)
    os.environ["PKTRING_RUNDIR"] = base  # the fixture puts it back
    with rundir.claim("eng0", group=some.gr_name, generation=5) as mine:

        def look(groups):
            os.setgroups(groups)
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            return [(e.name, e.alive, e.generation) for e in rundir.engines()]

        children = [in_child(lambda out, groups=groups: os.write(out, repr(look(groups)).encode())) for groups in ([some.gr_gid], [])]
        assert [eval(told(out)) for _, out in children] == [[("eng0", True, 5)], []]
        for pid, out in children:
            assert os.waitpid(pid, 0)[1] == 0
            os.close(out)
        assert os.stat(mine.path).st_gid == some.gr_gid
    os.rmdir(base)


# ---- sockets ----


def test_a_socket_is_reached_however_deep_its_folder_lies(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    monkeypatch.setenv("PKTRING_RUNDIR", str(deep / "base"))
    with rundir.claim("eng0") as mine:
        ear = rundir.listen(mine.control)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as mouth, rundir.address(mine.control) as short:
            mouth.connect(short)
        ear.accept()[0].close()
        ear.close()


def test_whether_somebody_listens_is_asked_without_being_noticed():
    with rundir.claim("eng0") as mine:
        assert not rundir.listening(mine.control) and not rundir.data_path(mine.path)
        ear = rundir.listen(mine.worker(1))
        assert rundir.listening(mine.worker(1)) and rundir.data_path(mine.path)
        with pytest.raises(BlockingIOError):
            ear.accept()
        refused("E_NAME_BUSY", rundir.listen, mine.worker(1))
        ear.close()
        assert not rundir.listening(mine.worker(1)) and not rundir.data_path(mine.path)
        rundir.listen(mine.worker(1)).close()  # in place of the dead one


def test_nothing_stays_after_the_end(base):
    before = fds()
    with rundir.claim("eng0") as mine:
        rundir.listen(mine.control).close()
    assert os.listdir(base) == [] and fds() == before
