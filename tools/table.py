"""Text in columns, and times as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def columns(head: str, rows: Iterable[Sequence[Any]], widths: Sequence[int] = ()) -> list[str]:
    """Line the rows up under a head of words; a word that begins with `>` heads a column of numbers, which end where it ends.

    `_` in a word is a blank. A column is as wide as its widest cell, and at least `widths[i]`; the last is not padded.
    """
    words = head.split()
    right = [word.startswith(">") for word in words]
    cells = [[word.removeprefix(">").replace("_", " ") for word in words], *([str(cell) for cell in row] for row in rows)]
    wide = [max(least, *(len(row[i]) for row in cells)) for i, least in zip(range(len(words)), [*widths, *[0] * len(words)], strict=False)]
    return [_line(row, wide, right) for row in cells]


def _line(row: Sequence[str], wide: Sequence[int], right: Sequence[bool]) -> str:
    padded = [cell.rjust(n) if flush else cell.ljust(n) for cell, n, flush in zip(row, wide, right, strict=True)]
    return "  ".join(padded).rstrip()


def age(seconds: float) -> str:
    """Write how long something lasts: '42 s', '3:05', '1:02:03', '2 d 01:02'."""
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    if days:
        return f"{days} d {hours:02}:{rest // 60:02}"
    if hours:
        return f"{hours}:{rest // 60:02}:{rest % 60:02}"
    return f"{whole // 60}:{whole % 60:02}" if whole >= 60 else f"{whole} s"
