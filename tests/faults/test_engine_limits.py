"""An engine where something is short, denied, taken or of another version (F19, F20, F23, F26-F28): it says what and what to do, and leaves
nothing behind; or it goes on and says how.
"""

import contextlib
import os
import re
import resource
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import pytest
from command import COMMAND, left
from engine_lab import FORWARD, running
from live import Load, heard, middle, once_in_order
from soak.apps import Apps
from soak.rig import Rig

from pktring.shm.errors import Error

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(120)]

NOBODY = 65534


@pytest.fixture(scope="module")
def net():
    with middle() as made:
        yield made


@pytest.fixture
def up(net, tmp_path):
    """`pktring up` that is to be refused: (its one line, what it took, what it left)."""

    def run(config=FORWARD, prefix=(), status=1, **how):
        path = tmp_path / "engine.toml"
        path.write_text(config)
        env = {**os.environ, "PKTRING_RUNDIR": f"{tmp_path}/run"} | how.pop("env", {})
        before = left(), links(net)
        got = net.lab.run(net.fa.netns, [*prefix, *COMMAND, "up", str(path)], env=env, **how)
        assert (left(), links(net)) == before, "something was left behind"
        assert got.returncode == status, got
        assert "Traceback" not in got.stderr, got.stderr
        return got.stderr.splitlines()[-1]

    return run


def links(net):
    return re.findall(r"^\d+: (\S+):.*", net.lab.run(net.fa.netns, ["ip", "link"]).stdout, re.M)


# ---- F19, F20: too little of something ----


def test_F19_R16_an_engine_that_finds_dev_shm_full_is_refused_whole(up):
    small = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1M tmpfs /dev/shm && exec "$@"', "sh"]
    line = up(prefix=small)
    assert re.match(r"pktring: E_SHM_SPACE need \d+ free \d+ in /dev/shm: ", line), line


ROOMY = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=256M tmpfs /dev/shm && exec "$@"', "sh")


def test_F19_R16_what_does_not_fit_beside_an_engine_is_refused_and_the_engine_goes_on(net):
    with running(net, FORWARD, command=(*ROOMY, *COMMAND)) as engine, heard(net.b.netns) as got, Load(net.a) as load:
        rig = Rig(engine)
        with Path(f"/proc/{rig.pid(1)}/root/dev/shm/filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(file.name).free - (1 << 16))
        handler = {"name": "ip", "proto": "ip", "handler": "drop", "policy": "flow"}
        with pytest.raises(Error, match="E_SHM_SPACE"):
            rig.call("register", handler=handler)
        os.kill(rig.pid(1), 9)  # also who comes now needs no more
        engine.told("E_WORKER_DIED worker=1 .*sig=9")
        load.goes_on(200)
        assert len(engine.lines("E_WORKER_DIED")) == 1
    missing = once_in_order(load, got)
    assert len(missing) <= 64


def test_F19_an_engine_needs_no_locked_memory(net):
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, limit[1]))
    try:
        with running(net, FORWARD), heard(net.b.netns) as got, Load(net.a) as load:
            load.goes_on(200)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, limit)
    assert len(got) > 100


def test_F20_an_engine_that_may_open_too_few_files_is_refused(up):
    line = up(prefix=["prlimit", "--nofile=24:24"])
    assert re.match(r"pktring: E_FD_LIMIT .*24.*raise LimitNOFILE", line), line


def test_F20_an_app_too_many_is_refused_and_those_that_are_there_notice_nothing(net):
    with running(net, FORWARD) as engine, Apps(net, engine) as apps:
        first = apps.start("listen")
        rig = Rig(engine)
        pid = rig.controller()
        used = max(map(int, os.listdir(f"/proc/{pid}/fd")))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 12, used + 12))
        refusal = Apps.refused(net, engine)
        assert re.search(r"E_FD_LIMIT \d+/\d+ used; raise LimitNOFILE", refusal), refusal
        with Load(net.a) as load:
            load.goes_on(300)
        assert apps.asked(first)["frames"] > 0
        assert len(rig.status()["workers"]) == 2 and not engine.lines("E_WORKER_DIED")


# ---- F23: a CPU that cannot be had ----


FAR = FORWARD.replace("workers = 2", "workers = [0, 7]")


def test_F23_a_worker_that_cannot_have_its_cpu_runs_on_another_and_says_so(net):
    if os.cpu_count() > 7:
        pytest.skip("tool: this machine has a CPU 7")
    with running(net, FAR) as engine, heard(net.b.netns) as got, Load(net.a) as load:
        load.goes_on(300)
        worker = engine.status()["workers"][1]
        assert re.search(r"W_AFFINITY worker=2 wanted cpu7 \(EINVAL\), running on [\d,-]+", "\n".join(engine.lines("W_AFFINITY")))
        assert worker["state"] == "running" and "cpu7" in worker["note"]
    assert once_in_order(load, got) == []


def test_F23_with_strict_affinity_it_is_refused(up):
    if os.cpu_count() > 7:
        pytest.skip("tool: this machine has a CPU 7")
    line = up(FAR.replace("workers =", "strict_affinity = true\nworkers ="), status=2)
    assert re.match(r"pktring: E_CONFIG .*worker=2 wanted cpu7", line), line


# ---- F26: the same name ----


def test_F26_R14_of_several_that_start_at_once_one_runs_and_is_left_whole(net):
    with tempfile.TemporaryDirectory(prefix="pktring-test-") as folder:
        path = Path(folder, "e.toml")
        path.write_text(FORWARD)
        env = {**os.environ, "PKTRING_RUNDIR": f"{folder}/run"}
        argv = [*COMMAND, "up", str(path), "--duration", "6"]
        racers = [net.lab.start(net.fa.netns, argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=env) for _ in range(4)]
        with heard(net.b.netns) as got:
            ends = [racer.communicate(timeout=30)[1] if index else None for index, racer in enumerate([None, *racers]) if racer]
        won = [end for end, racer in zip(ends, racers, strict=True) if racer.returncode == 0]
        lost = [end.splitlines()[-1] for end, racer in zip(ends, racers, strict=True) if racer.returncode == 1]
    assert (len(won), len(lost), got) == (1, 3, []), ends
    assert all(re.match(r"pktring: E_NAME_BUSY name=t held by ", line) for line in lost), lost
    assert "is ready" in won[0] and "E_WORKER" not in won[0]


# ---- F27: another version ----


def test_F27_R15_a_memory_of_another_version_is_refused_by_who_attaches(net):
    with running(net, FORWARD) as engine, Apps(net, engine) as apps:
        memory = next(p for p in Path("/dev/shm").glob("pktring.engine-t*.mem"))
        apps.start("stop")
        with patched(memory, 8):
            refusal = Apps.refused(net, engine)
            assert "E_ABI" in refusal, refusal
        with heard(net.b.netns) as got, Load(net.a) as load:
            load.goes_on(200)
        assert once_in_order(load, got) == [] and not engine.lines("E_WORKER_DIED")


@contextlib.contextmanager
def patched(path, offset):
    with path.open("r+b") as file:
        was = os.pread(file.fileno(), 4, offset)
        os.pwrite(file.fileno(), struct.pack("<I", struct.unpack("<I", was)[0] + 77), offset)
        try:
            yield
        finally:
            os.pwrite(file.fileno(), was, offset)


# ---- F28: rights, squatters ----


@pytest.mark.needs("host_root", "setpriv")
def test_F28_without_the_right_to_open_the_interface_it_says_which(up, tmp_path):
    os.chmod(tmp_path, 0o777)
    base = tmp_path / "nobodys"
    base.mkdir()
    os.chown(base, NOBODY, NOBODY)
    base.chmod(0o700)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == os.geteuid() and str(folder) not in ("/", "/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)
    env = {"PKTRING_RUNDIR": str(base), "HOME": "/"}
    line = up(prefix=["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"], env=env)
    assert re.match(r"pktring: E_PERM need CAP_NET_RAW to open fa", line), line


@pytest.mark.needs("host_root")
def test_F28_a_memory_of_that_name_that_belongs_to_another_is_not_opened(up, tmp_path):
    place = f"{tmp_path}/run/t"
    squat = Path(f"/dev/shm/pktring.engine-t-{zlib.crc32(place.encode()):08x}.mem")
    squat.write_bytes(b"mine")
    os.chown(squat, NOBODY, NOBODY)
    try:
        line = up()
        assert re.match(rf"pktring: E_NAME_SQUATTED {squat} owned by uid {NOBODY}", line), line
        assert squat.read_bytes() == b"mine"
    finally:
        squat.unlink()
