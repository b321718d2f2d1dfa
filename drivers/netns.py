"""Network namespaces: put the calling thread into one and bring it back. setns(2), network_namespaces(7), ip-netns(8).

A namespace belongs to the thread, and a socket keeps the namespace it was made in for ever: so whoever wants a socket elsewhere enters,
opens it, and leaves.
"""

import contextlib
import ctypes
import difflib
import errno
import fcntl
import os
from collections.abc import Iterator

from pktring.shm.errors import Error

NAMED = "/run/netns"
OWN = "/proc/thread-self/ns/net"
CLONE_NEWNET = 0x40000000
SIOCGSKNS = 0x894C
RIGHTS = "it takes CAP_SYS_ADMIN in its user namespace and in ours, and for pid:N the right to trace that process: see setns(2)"

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def entered(name: str | None) -> Iterator[None]:
    """Hold the calling thread in the network namespace `name`: one of /run/netns, `pid:1234` for that process's, `fd:5` for the one behind
    that descriptor, None for no change.

    Raises E_NO_NETNS where there is none, E_PERM where the kernel does not let us in.
    """
    if name is None:
        yield
        return
    target = _opened(name)
    try:
        home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(target, name)
            try:
                yield
            finally:
                _setns(home, "the namespace we came from")
        finally:
            os.close(home)
    finally:
        os.close(target)


def named() -> list[str]:
    """List the namespaces that have a name (`ip netns list`)."""
    try:
        return sorted(os.listdir(NAMED))
    except FileNotFoundError:
        return []


def identity(name: str | None) -> int:
    """Return the number that is the namespace, whatever its name: its inode in nsfs (`readlink /proc/self/ns/net`)."""
    try:
        return os.stat(OWN if name is None else path(name)).st_ino
    except OSError as error:
        raise _missing(name, error) from None


def of_socket(fd: int, name: str | None, inode: int) -> str | None:
    """Return a name of the namespace that a socket or TAP was made in: `name`, if that still is the one with this inode, else an `fd:N`.

    The descriptor is the caller's to close (`let_go`). A name may be gone by now, or another's: a pid's above all.
    """
    with contextlib.suppress(Error):
        if identity(name) == inode:
            return name
    try:
        return f"fd:{fcntl.ioctl(fd, SIOCGSKNS)}"
    except OSError:  # not ours to know: whoever enters it is told
        return name


def let_go(name: str | None) -> None:
    """Close what `of_socket` may have opened."""
    if name and name.startswith("fd:"):
        os.close(int(name[3:]))


def _opened(name: str) -> int:
    try:
        return os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _missing(name, error) from None


def _missing(name: str | None, error: OSError) -> Error:
    if error.errno in (errno.EACCES, errno.EPERM):
        return Error("E_PERM", f"network namespace {name}: {error.strerror}: {RIGHTS}")
    return Error("E_NO_NETNS", f"{name}: no such network namespace: {_advice(name or '')}")


def path(name: str) -> str:
    """Return the file that is the namespace. Raises E_NO_NETNS for what is no name."""
    if name.startswith("pid:") and name[4:].isdigit():
        return f"/proc/{name[4:]}/ns/net"
    if name.startswith("fd:") and name[3:].isdigit():
        return f"/proc/self/fd/{name[3:]}"
    if not name or "/" in name or name in (".", ".."):
        raise Error("E_NO_NETNS", f"{name!r} is no name of a network namespace: {_advice(name)}")
    return f"{NAMED}/{name}"


def _advice(name: str) -> str:
    near = difflib.get_close_matches(name, named(), 3)
    return f"did you mean {', '.join(near)}?" if near else "see `ip netns`, or name a process as pid:1234"


def _setns(fd: int, name: str) -> None:
    if _libc.setns(fd, CLONE_NEWNET) == 0:
        return
    number = ctypes.get_errno()  # EINVAL: a file that was left in /run/netns, not a namespace
    if number == errno.EPERM:
        raise Error("E_PERM", f"enter network namespace {name}: {os.strerror(number)}: {RIGHTS}")
    raise Error("E_NO_NETNS", f"{name} is not a network namespace ({os.strerror(number)}): {_advice(name)}")
