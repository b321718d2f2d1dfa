"""The project's own promises: what a wheel holds, what the bootstrap says, what the test session itself refuses."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
FOLDERS = ["pktring", "shm", "drivers", "engine", "tools"]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
EXTENSIONS = SETUPTOOLS["ext-modules"]


def on_disk(pattern):
    return {p.relative_to(TOP) for folder in FOLDERS for p in (TOP / folder).rglob(pattern)}


def test_every_folder_with_python_is_a_package():
    assert set(map(str, {p.parent for p in on_disk("*.py")})) == set(SETUPTOOLS["package-dir"].values())
    assert set(SETUPTOOLS["packages"]) == set(SETUPTOOLS["package-dir"])


def test_every_c_source_is_built():
    compiled_later = {Path("tools/bench_engine.c"), Path("tools/bench_ring.c")}  # by the bench, on the machine that it measures
    assert {source for ext in EXTENSIONS for source in ext["sources"]} == set(map(str, on_disk("*.c") - compiled_later))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, offline, so that neither the tree nor an older build/ has a part in it."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(TOP / folder, tree / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for path in (p for p in TOP.iterdir() if p.is_file() and p.suffix in ("", ".toml", ".md")):
        shutil.copy(path, tree)
    cmd = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", tree / "out", tree]
    subprocess.run(cmd, check=True, timeout=300)
    (path,) = (tree / "out").iterdir()
    return zipfile.ZipFile(path)


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_a_wheel_puts_one_name_into_site_packages(wheel):
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"pktring", f"pktring-{PROJECT['project']['version']}.dist-info"}
    shipped = {p if p.parts[0] == "pktring" else "pktring" / p for glob in ("*.py", "*.h", "README.md") for p in on_disk(glob)}
    assert set(map(str, shipped)) <= set(names)
    built = {name.split(".")[0].replace("/", ".") for name in names if name.endswith(".so")}
    assert built == {ext["name"] for ext in EXTENSIONS}


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_a_wheel_works_far_from_the_tree(wheel, tmp_path):
    wheel.extractall(tmp_path)
    names = ", ".join(["pktring", *(ext["name"] for ext in EXTENSIONS)])
    code = f"import {names}; print(*(m.__file__ for m in ({names})))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=60).stdout
    assert all(path.startswith(str(tmp_path)) for path in out.split())


def run(*args, **env):
    return subprocess.run([sys.executable, TOP / "run", *args], capture_output=True, text=True, timeout=60, env={**os.environ, **env})


def test_the_bootstrap_lists_its_verbs():
    assert re.findall(r"^  (\w+) ", run("help").stdout, re.M)[:3] == ["demo", "test", "check"]


def test_the_bootstrap_refuses_an_unknown_verb_in_one_line():
    got = run("dmeo")
    assert (got.returncode, got.stdout, got.stderr.count("\n")) == (2, "", 1)


def session(tmp_path, body, **env):
    """Run a small suite of its own under our conftest; return pytest's exit status and output."""
    shutil.copy(TOP / "tests/conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(f"import os, subprocess, sys, pytest\n{body}")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    needs\naddopts = -rs -p no:cacheprovider\n")
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "PKTRING_TEST_PRIVATE")} | env
    got = subprocess.run([sys.executable, "-m", "pytest", tmp_path], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    return got.returncode, got.stdout


SKIPS = "def test_it(): pytest.skip({!r})"


def test_a_missing_program_skips_by_name(tmp_path):
    status, out = session(tmp_path, "@pytest.mark.needs('no-such-program')\ndef test_it(): pass", CI="true")
    assert status == 0 and "tool: no-such-program is not installed" in out


def test_a_missing_privilege_fails_under_ci_only(tmp_path):
    assert session(tmp_path, SKIPS.format("root: no CAP_NET_ADMIN"))[0] == 0
    status, out = session(tmp_path, SKIPS.format("root: no CAP_NET_ADMIN"), CI="true")
    assert status == 1 and "1 failed" in out and "skipped under CI: root" in out


def test_a_whole_file_skipped_fails_under_ci(tmp_path):
    assert session(tmp_path, "pytest.skip('no kernel', allow_module_level=True)", CI="true")[0] != 0


def test_an_expected_failure_is_no_skip(tmp_path):
    assert session(tmp_path, "@pytest.mark.xfail\ndef test_it(): assert 0", CI="true")[0] == 0


def test_a_forgotten_segment_fails_the_session(tmp_path):
    path = Path(f"/dev/shm/pktring-forgotten-{os.getpid()}")
    try:
        status, out = session(tmp_path, f"def test_it(): open({str(path)!r}, 'w')", CI="true")
    finally:
        path.unlink()
    assert status == 1 and f"left behind: shared memory {path}" in out


def test_a_forgotten_child_fails_the_session(tmp_path):
    status, out = session(tmp_path, "def test_it(): subprocess.Popen(['sleep', '60'])")
    left = re.search(r"left behind: process (\d+) sleep 60", out)
    assert status == 1 and left
    os.kill(int(left[1]), signal.SIGKILL)
