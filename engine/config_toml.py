"""A TOML file as values, and on which line each key stands, which tomllib does not say. Whatever is wrong is E_CONFIG with the line.

For the lines, a text that tomllib has accepted is cut into statements; each of them is read by tomllib alone, and its keys get the line
on which it begins.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator
from typing import Any

from pktring.shm.errors import Error

from .config_keys import shown

MAX_BYTES = 1 << 20
MAX_LINE = 500
NEWLINE = "\n"
Path = tuple[str | int, ...]  # ("forward", 1, "from"): the second [[forward]]


class ConfigError(Error):
    """E_CONFIG; `problems` are all of them, a line each, `str()` is the first."""

    def __init__(self, problems: Iterable[str]):
        self.problems = tuple(_one_line(each) for each in problems)
        more = len(self.problems) - 1
        super().__init__("E_CONFIG", self.problems[0] + (f" (and {more} more)" if more else ""))


def _one_line(text: str) -> str:
    """What is told comes from files of any kind, and goes to a terminal."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text[:2000].split()))
    return line if len(line) <= MAX_LINE else line[: MAX_LINE - 3] + "..."


def bytes_of(path: str) -> bytes:
    """Read a file of a size that a configuration may have. Raises E_NO_FILE, E_PERM, E_CONFIG."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a FIFO would wait for its writer
    except PermissionError:
        raise Error("E_PERM", f"{path}: this user may not read it: chmod or chgrp it") from None
    except (OSError, ValueError) as why:
        raise Error("E_NO_FILE", f"{shown(path)}: {getattr(why, 'strerror', None) or why}: name a TOML file") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError([f"{path}: not a regular file: name a TOML file"])
        with open(fd, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_BYTES:
        raise ConfigError([f"{path}: larger than {MAX_BYTES} bytes: is it a TOML file?"])
    return data


def text_of(data: bytes, name: str) -> str:
    """Decode, and refuse what is no text."""
    if (nul := data.find(b"\0")) >= 0:
        raise ConfigError([f"{name} line {_line(data, nul)}: a NUL byte: is it a TOML file?"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as why:
        raise ConfigError(
            [f"{name} line {_line(data, why.start)}: byte 0x{data[why.start]:02x} is not UTF-8: is it a TOML file?"]
        ) from None


def _line(data: bytes, at: int) -> int:
    return data.count(b"\n", 0, at) + 1


# tomllib's time grows with the square of the words of a key; the lookbehind and the possessive words keep this search linear.
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){32}""")


def parsed(text: str, name: str) -> dict[str, Any]:
    """The values of a TOML text."""
    if found := _LONG_KEY.search(text):
        raise ConfigError([f"{name} line {text.count(NEWLINE, 0, found.start()) + 1}: a key of more than 32 words: TOML has [tables]"])
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError([f"{name}: arrays or tables too deep in each other: nothing here needs that"]) from None
    except ValueError as why:  # TOMLDecodeError is one; a number of thousands of digits is another
        raise ConfigError([_syntax(name, text, str(why))]) from None


def _syntax(name: str, text: str, why: str) -> str:
    found = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", why)
    if not found:
        return f"{name}: {why}: see https://toml.io"
    line, column = (found[1], f", column {found[2]}") if found[1] else (text.count("\n") + (not text.endswith("\n")), "")
    return f"{name} line {line}{column}: {why[: found.start()]}: see https://toml.io"


# ---- lines ----

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[\[\]{}\n]"
    r"|[^\"'\#\[\]{}\n]+",
    re.S,
)


def lines(text: str) -> dict[Path, int]:
    """The line of every table and key, counted from 1."""
    found: dict[Path, int] = {}
    arrays: dict[Path, int] = {}  # arrays of tables: the number of the last one
    table: Path = ()
    for line, statement in _statements(text):
        said = tomllib.loads(statement)
        if statement.startswith("["):
            table = _header(said, statement.startswith("[["), arrays)
            found.setdefault(table, line)
        else:
            for path in _keys(said):
                found.setdefault(table + path, line)
    return found


def line_of(path: Path, known: dict[Path, int]) -> int:
    """The line of a key, or of the nearest table around it; 1 for what is nowhere."""
    while path and path not in known:
        path = path[:-1]
    return known.get(path, 1)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of headers and of `key = value`, which may go over several lines."""
    parts: list[str] = []
    line = began = 1
    depth = 0
    for token in _TOKEN.findall(text.replace("\r\n", "\n") + "\n"):
        depth += (token in "[{") - (token in "]}")
        if token == "\n" and not depth:
            if parts:
                yield began, "".join(parts).strip()
            parts = []
        elif parts or not (token.isspace() or token.startswith("#")):
            began = began if parts else line
            parts.append(token)
        line += token.count("\n")


def _header(said: dict[str, Any], array: bool, arrays: dict[Path, int]) -> Path:
    """Where [a.b] or [[a.b]] is: each array of tables on the way is followed by the number of its last table."""
    place: Path = ()
    inner: Any = said
    while inner:
        ((word, inner),) = inner.items() if isinstance(inner, dict) else inner[0].items()
        place += (word,)
        if array and isinstance(inner, list):
            arrays[place] = arrays.get(place, -1) + 1
            inner = None
        if place in arrays:
            place += (arrays[place],)
    return place


def _keys(said: Any) -> Iterator[Path]:
    """Yield the path of everything inside, tables and arrays written in one line too."""
    left: list[tuple[Path, Any]] = [((), said)]
    while left:
        path, value = left.pop()
        if path:
            yield path
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        left += [((*path, key), inner) for key, inner in items]
