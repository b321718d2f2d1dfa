"""Processes by pidfd: identity, signals, waiting with a deadline, also for those that are not our children."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pktring.engine.pidfd import PidFd, ended
from pktring.shm.errors import Error
from pktring.shm.segment import start_time


@pytest.fixture
def sleeper():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield child
    child.kill()
    child.wait(10)


def stranger():
    """The pid of a process whose parent is gone."""
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    return int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=30).stdout)


def test_a_process_is_known_by_pid_and_start_time(sleeper):
    start = start_time(sleeper.pid)
    with PidFd.open(sleeper.pid, start) as process:
        assert process.pid == sleeper.pid and not process.ended
    assert PidFd.open(sleeper.pid, start + 1) is None, "another process that has this pid by now"


def test_a_process_that_is_gone_is_none(sleeper):
    sleeper.kill()
    sleeper.wait(10)
    assert PidFd.open(sleeper.pid) is None


def test_a_refused_identity_leaks_no_descriptor(sleeper):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert PidFd.open(sleeper.pid, 1) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_waiting_ends_at_the_deadline(sleeper):
    with PidFd.open(sleeper.pid) as process:
        begin = time.monotonic()
        assert not process.wait(0.05)
        assert 0.05 <= time.monotonic() - begin < 2


def test_a_killed_child_is_reaped_by_its_signal(sleeper):
    with PidFd.open(sleeper.pid) as process:
        assert process.reap() is None
        assert process.kill(5)
        assert process.reap() == "sig=9"
        assert process.reap() is None and not process.signal(signal.SIGTERM)
    sleeper.returncode = -9


def test_a_child_that_exits_is_reaped_by_its_status():
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with PidFd.open(child.pid) as process:
        assert process.wait(10) and process.reap() == "status=3"
    child.returncode = 3


def test_a_zombie_has_ended(sleeper):
    with PidFd.open(sleeper.pid) as process:
        os.kill(sleeper.pid, signal.SIGKILL)
        assert process.wait(5) and os.path.exists(f"/proc/{sleeper.pid}"), "not reaped yet, and ended all the same"


def test_a_process_that_is_not_our_child_is_waited_for_and_killed():
    pid = stranger()
    with PidFd.open(pid, start_time(pid)) as process:
        assert not process.wait(0)
        assert process.reap() is None, "not ours to reap"
        assert process.kill(5) and process.ended
        assert not process.signal(signal.SIGKILL) or process.ended


def test_a_stopped_process_has_not_ended_and_can_be_killed(sleeper):
    with PidFd.open(sleeper.pid) as process:
        process.signal(signal.SIGSTOP)
        assert not process.wait(0.05)
        assert process.kill(5)


def test_the_first_of_many_to_end_is_told():
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(4)]
    known = [PidFd.open(child.pid) for child in children]
    try:
        assert ended(known, 0.01) == []
        children[2].kill()
        assert ended(known, 5) == [known[2]]
        children[0].kill()
        assert known[0].wait(5) and ended(known, 5) == [known[0], known[2]]
        assert ended([], 5) == []
    finally:
        for child, process in zip(children, known, strict=True):
            child.kill()
            child.wait(10)
            process.close()


def test_a_pidfd_is_not_inherited_by_a_program(sleeper):
    with PidFd.open(sleeper.pid) as process:
        assert not os.get_inheritable(process.fd)


@pytest.mark.needs("host_root")
def test_signalling_a_stranger_says_why_not(sleeper):
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        process = PidFd.open(sleeper.pid)
        try:
            process.signal(signal.SIGTERM)
        except Error as why:
            os._exit(0 if why.code == "E_PERM" else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def test_no_descriptor_left_is_a_clear_refusal(sleeper):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(Error) as why:
            PidFd.open(sleeper.pid)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert why.value.code == "E_FD_LIMIT"


def test_how_a_process_ended_is_known_of_anothers_child_too():
    """Here it is reaped behind its back; where the kernel is older than 6.15 nothing is known."""
    for end, told in ((9, "sig=9"), (None, "status=3")):
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(3)"], stdin=subprocess.PIPE)
        with PidFd.open(child.pid) as process:
            assert process.told(0) is None
            if end:
                child.kill()
            child.communicate()
            assert process.reap() is None
            assert process.told(1) in (told, None)
            assert process.told(1) == told or tuple(map(int, os.uname().release.split(".")[:2])) < (6, 15)
