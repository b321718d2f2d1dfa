"""How capture files follow each other: tcpdump's -C, -G and -W (tcpdump(8)), as pure rules.

| given       | a new file starts                        | names                                       | -W files                     |
|-------------|------------------------------------------|---------------------------------------------|------------------------------|
| nothing     | never                                    | NAME                                        |                              |
| -C          | before one grows past so many bytes      | NAME, NAME1, NAME2; with -W NAME00, NAME01  | a ring: the oldest is reused |
| -G          | at the first frame after so many seconds | NAME through strftime(3)                    | the capture ends after them  |
| -C and -G   | at either                                | strftime, then numbers from 0 in each span  | the oldest are removed       |

The last line is where tcpdump ignores -W. Its -C starts a file after one grew past the size; ours never do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Rotation:
    """When a capture starts its next file, and how many it keeps; 0 = that rule is off."""

    max_bytes: int = 0
    seconds: int = 0
    files: int = 0

    def __bool__(self) -> bool:
        return bool(self.max_bytes or self.seconds)

    def name(self, pattern: str, start_s: int, count: int) -> str:
        """The name of the file that starts at `start_s` (s since the epoch) and is number `count` of its span."""
        name = time.strftime(pattern, time.localtime(start_s)) if self.seconds else pattern
        digits = len(str(self.files - 1)) if self.files > 1 else 0
        if not self.max_bytes or (count == 0 and not digits):
            return name
        return f"{name}{count:0{digits}d}" if digits else f"{name}{count}"

    def next_count(self, why: str, count: int) -> int:
        """The number of the next file: `why` it starts is "size" or "time"."""
        if why == "time" or (self.files and count + 1 >= self.files):
            return 0
        return count + 1

    def until_ns(self, start_s: int) -> int:
        """The time from which frames belong into the next file, 0 = never."""
        return (start_s + self.seconds) * 10**9 if self.seconds else 0

    def last(self, spans: int) -> bool:
        """Does the capture end when `spans` spans of seconds are over?"""
        return bool(self.files) and not self.max_bytes and spans >= self.files

    def surplus(self, names: list[str]) -> list[str]:
        """Which of the files made so far, oldest first, are to be removed now."""
        both = self.max_bytes and self.seconds and self.files
        return names[: max(len(names) - self.files, 0)] if both else []
