"""What holds for every test: `needs`, the rule that CI skips nothing but missing programs, and nothing left behind. See README.md."""

import contextlib
import os
import shutil
import socket
import time
import warnings
from pathlib import Path

import psutil
import pytest

CI = os.environ.get("CI", "").lower() in ("1", "true")
PRIVATE = "PKTRING_TEST_PRIVATE" in os.environ
CAP_NET_ADMIN = 12


def _capable():
    status = Path("/proc/self/status").read_text()
    return int(status.split("CapEff:")[1].split()[0], 16) >> CAP_NET_ADMIN & 1


def _host_root():
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


PRIVILEGES = {"root": (_capable, "no CAP_NET_ADMIN"), "host_root": (_host_root, "not root of the host")}


def _lack(thing):
    if thing in PRIVILEGES:
        here, why = PRIVILEGES[thing]
        return None if here() else f"{thing}: {why}"
    return None if shutil.which(thing) else f"tool: {thing} is not installed"


def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs"):
        for thing in marker.args:
            if why := _lack(thing):
                pytest.skip(why)


# Under CI a skip is a failure, but for optional programs: a suite that skips its way to green proves nothing.


def _refuse_skip(report):
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        path, line, reason = report.longrepr
        if not reason.removeprefix("Skipped: ").startswith("tool:"):
            report.outcome = "failed"
            report.longrepr = f"{path}:{line}: skipped under CI: {reason.removeprefix('Skipped: ')}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _refuse_skip((yield))


# What tests leave behind fails the last of them. Segments, interfaces and orphans are ours for certain only in namespaces of our own
# (`./run test`) or under CI; elsewhere another program's may come between, so they are told but do not fail.


def _things():
    return {
        *(f"shared memory {p}" for p in Path("/dev/shm").glob("pktring*")),
        *(f"interface {name}" for _, name in socket.if_nameindex()),
        *(f"namespace {p}" for p in Path("/run/netns").glob("*")),
        *(f"process {p}" for p in (_in_our_namespaces() if PRIVATE else [])),
    }


def _in_our_namespaces():
    """Yield what lives in the session's own namespaces, whoever its parent is by now."""
    ours = {os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt")}
    for p in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if p.pid != os.getpid() and ours & {os.readlink(f"/proc/{p.pid}/ns/net"), os.readlink(f"/proc/{p.pid}/ns/mnt")} and _counts(p):
                yield f"{p.pid} {' '.join(p.cmdline())}"


def _children():
    living = []
    for p in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            living += [f"process {p.pid} {' '.join(p.cmdline())}"] if _counts(p) else []
    return set(living)


def _counts(p):
    """multiprocessing's tracker lives as long as pytest itself; a zombie is dead."""
    return p.status() != psutil.STATUS_ZOMBIE and "multiprocessing.resource_tracker" not in " ".join(p.cmdline())


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind():
    before = _things()
    yield
    deadline = time.monotonic() + 2
    while (left := (_things() - before) | _children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    told = "left behind: " + ", ".join(sorted(left))
    if left and (PRIVATE or CI or _children()):
        pytest.fail(told, pytrace=False)
    elif left:
        warnings.warn(told, stacklevel=1)


@pytest.fixture(scope="session")
def shm_include():
    """The folder of the C headers."""
    return Path(__file__).resolve().parent.parent / "shm"
