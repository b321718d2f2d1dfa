"""Imports and includes never point up: shm < drivers, engine < pktring (the front door) < tools. Drivers and engine are strangers."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
MAY_USE = {
    "shm": {"shm"},
    "drivers": {"drivers", "shm"},
    "engine": {"engine", "shm"},
    "pktring": {"pktring", "shm", "drivers", "engine"},
    "tools": {"tools", "pktring", "shm", "drivers", "engine"},
}
MAX_LINES = 600
HEAVY = {"numba", "numpy", "pyroute2", "scapy"}


def room_of(module):
    """Name the room of a dotted module, None for a stranger's: `pktring.shm.ring` is in shm, `pktring` is the front door."""
    parts = module.split(".")
    if parts[0] != "pktring":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in MAY_USE and parts[1] != "pktring" else "pktring"


def imports(source, package):
    """Yield (line, module) for each import, also those spelled as a string, as the front door's table of lazy names does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield from ((node.lineno, ".".join([*base, *filter(None, [node.module]), alias.name])) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"pktring(\.\w+)+", node.value):
            yield node.lineno, node.value


def includes(source):
    """Yield (line, name) for each quoted include; those in angle brackets are the system's."""
    for n, line in enumerate(source.splitlines(), 1):
        if found := re.match(r'\s*#\s*include\s*"([^"]+)"', line):
            yield n, found[1]


def upward_imports(room, source, package):
    return [(n, module) for n, module in imports(source, package) if room_of(module) not in MAY_USE[room] | {None}]


def upward_includes(room, source, folder, top=TOP):
    """List includes that leave the rooms this one may use, or that no file answers to."""
    bad = []
    for n, name in includes(source):
        places = [p.resolve() for p in (folder / name, top / "shm" / name) if p.exists()]
        if not places or places[0].relative_to(top).parts[0] not in MAY_USE[room]:
            bad.append((n, name))
    return bad


def sources(*suffixes):
    return sorted(p for room in MAY_USE for p in (TOP / room).rglob("*") if p.suffix in suffixes and p.is_file())


def test_no_python_import_points_up():
    bad = []
    for path in sources(".py"):
        room, *inner = path.relative_to(TOP).parent.parts
        package = ".".join(["pktring", *([] if room == "pktring" else [room]), *inner])
        bad += [f"{path.relative_to(TOP)}:{n} imports {module}" for n, module in upward_imports(room, path.read_text(), package)]
    assert not bad, "\n".join(bad)


def test_no_c_include_points_up():
    bad = []
    for path in sources(".c", ".h"):
        room = path.relative_to(TOP).parts[0]
        bad += [f"{path.relative_to(TOP)}:{n} includes {name}" for n, name in upward_includes(room, path.read_text(), path.parent)]
    assert not bad, "\n".join(bad)


def test_no_file_is_longer_than_a_reader_can_hold():
    long = {str(p.relative_to(TOP)): n for p in sources(".py", ".c", ".h") if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long


@pytest.mark.parametrize(
    "room, line",
    [
        ("shm", "from pktring.drivers import tap"),
        ("shm", "from .. import engine"),
        ("shm", "import pktring"),
        ("drivers", "from ..engine.worker import run"),
        ("drivers", "import pktring.engine"),
        ("engine", "def f():\n    from pktring import drivers"),
        ("engine", "import_module('pktring.drivers.tap')"),
        ("pktring", "LAZY = {'main': 'pktring.tools.main'}"),
    ],
)
def test_the_checker_bites_an_import(room, line):
    assert upward_imports(room, line, "pktring" if room == "pktring" else f"pktring.{room}")


@pytest.mark.parametrize(
    "room, line",
    [
        ("shm", "from .ring import put"),
        ("shm", "import mmap, posix_ipc"),
        ("drivers", "from ..shm import ring"),
        ("engine", "from pktring.shm.ring import put"),
        ("pktring", "from .engine import config"),
        ("tools", "import pktring"),
    ],
)
def test_the_checker_lets_pass_an_import(room, line):
    assert not upward_imports(room, line, "pktring" if room == "pktring" else f"pktring.{room}")


def test_the_checker_bites_an_include(tmp_path):
    for name in ("shm/ring.h", "drivers/tap.h", "engine/flow.h"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    def bad(room, name):
        return upward_includes(room, f'#include "{name}"', tmp_path / room, tmp_path)

    assert bad("shm", "../drivers/tap.h") and bad("engine", "../drivers/tap.h") and bad("drivers", "../engine/flow.h")
    assert bad("shm", "nowhere.h")
    assert not bad("drivers", "ring.h") and not bad("engine", "../shm/ring.h") and not bad("drivers", "tap.h")


def fresh_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_import_pktring_brings_nothing_heavy():
    loaded = fresh_python("import sys, pktring; print(*{m.partition('.')[0] for m in sys.modules})")
    assert not HEAVY & set(loaded.split())


def test_import_pktring_is_quick():
    code = "import time; t = time.perf_counter(); import pktring; print(time.perf_counter() - t)"
    sanitized = "LD_PRELOAD" in os.environ
    assert min(float(fresh_python(code)) for _ in range(5)) < (1 if sanitized else 0.150)
