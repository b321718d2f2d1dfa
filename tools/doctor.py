"""`pktring doctor`: what works here, what does not, and how to mend it. Everything is tried, in namespaces of its own (probes.py)."""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pktring.shm.errors import Error

from . import cli, probes

if TYPE_CHECKING:
    from pktring.drivers.link import LinkFacts

EXAMPLES = """\
  pktring doctor                 everything, with a line on how to mend what is missing
  pktring doctor --try eth0      open eth0 as `capture` would, say what it is, and close it
  pktring doctor --json
"""
OLDEST_KERNEL = (6, 1)
CAPABILITIES = {13: "CAP_NET_RAW", 12: "CAP_NET_ADMIN", 39: "CAP_BPF", 14: "CAP_IPC_LOCK", 23: "CAP_SYS_NICE"}
UMEM_BYTES = 64 << 20  # what an AF_XDP port of a usual size pins
KNOBS = {  # of user namespaces: the value that forbids them, and the one that allows
    "kernel.unprivileged_userns_clone": ("0", "1"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
    "user.max_user_namespaces": ("0", "15000"),
}
ASK_ROOT = "run as root, or in `unshare --user --map-root-user --net`"


@dataclass(frozen=True)
class Check:
    """One thing looked at; `fix` is what to do where it is not ok, and `optional` says that everything works without."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    optional: bool = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--try", dest="port", metavar="PORT", help="open this port, report, close; nothing is changed")
    cli.common(parser, duration=False)


def run(args: argparse.Namespace, _stop: cli.Stop) -> int:
    """Print what was found. Status 1 when the port of --try does not open."""
    checks = []
    for check in [tried(args.port)] if args.port else looked():
        checks.append(check)
        if not args.json:
            print("\n".join(_lines(check)), flush=True)
    if args.json:
        cli.result({"checks": [asdict(check) for check in checks]})
    return 1 if args.port and not checks[0].ok else 0


def looked() -> Iterator[Check]:
    """Look at everything; what cannot even be looked at is a check that failed, and not the end."""
    for name, look in LOOKS.items():
        try:
            yield from look()
        except (Error, OSError) as error:
            yield Check(name, False, f"could not be looked at: {error}")


def _lines(check: Check) -> Iterator[str]:
    verdict = "ok" if check.ok else "note" if check.optional else "MISSING"
    yield f"{verdict:8} {check.name:18} {check.detail}"
    if check.fix and not check.ok:
        yield f"{'':8} {'':18} fix: {check.fix}"


def tried(name: str) -> Check:
    """Open a port as `capture` does, watching and not promiscuous, and close it."""
    import pktring

    try:
        with pktring.open(name, directions="rx", promisc=0) as port:
            facts = " ".join(f"{key}={value}" for key, value in port.facts().items())
            return Check(f"try {name}", True, "; ".join([facts, *port.warnings()]))
    except Error as error:
        what, _, todo = error.text.rpartition(": ")
        return Check(f"try {name}", False, f"{error.code} {what or error.text}", todo)


# ---- the machine ----


def _kernel() -> Iterator[Check]:
    release = os.uname().release
    version = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in release.split(".")[:2])
    yield Check("kernel", version >= OLDEST_KERNEL, f"Linux {release}", "Linux 6.1 (Debian 12) or newer")


def capabilities() -> list[str]:
    """Those of CAPABILITIES that this process has."""
    with open("/proc/self/status", encoding="ascii") as status:
        bits = int(next(line for line in status if line.startswith("CapEff")).split()[1], 16)
    return [name for bit, name in CAPABILITIES.items() if bits >> bit & 1]


def _privileges() -> Iterator[Check]:
    has = capabilities()
    lacks = [name for name in CAPABILITIES.values() if name not in has]
    detail = f"uid {os.geteuid()}" + (f", has {' '.join(has)}" if has else "") + (f", lacks {' '.join(lacks)}" if lacks else "")
    yield Check("privileges", not lacks, detail, f"{ASK_ROOT}; CAP_NET_RAW is enough to capture", optional="CAP_NET_RAW" in has)


def _tried(name: str, probe: Callable[[], str], fix: str, optional: bool = False) -> Check:
    works, said = probes.apart(probe, user=False) if os.geteuid() == 0 else _here(probe)
    return Check(name, works, said if works else f"refused: {said}", fix, optional)


def _here(probe: Callable[[], str]) -> tuple[bool, str]:
    """Without root: what this very user may do, not what root of a namespace of its own may."""
    try:
        return True, probe()
    except OSError as error:
        return False, error.strerror or str(error)
    except Error as error:
        return False, error.text


def _sockets() -> Iterator[Check]:
    yield _tried("af_packet", probes.packet_socket, f"{ASK_ROOT}: it takes CAP_NET_RAW")
    yield _tried("tpacket_v3", probes.tpacket_v3, "CAP_NET_RAW, and memory for the ring")
    yield _tried("taking", probes.host_drop, "CAP_NET_ADMIN and CONFIG_NF_TABLES_NETDEV: `bridge` keeps frames from the host with it")
    yield _tried("tap", probes.tap, f"{_tun()}; it takes CAP_NET_ADMIN")


def _tun() -> str:
    try:
        mode = os.stat("/dev/net/tun").st_mode & 0o777
    except FileNotFoundError:
        return "`modprobe tun`; in a container, give it /dev/net/tun"
    return "" if os.access("/dev/net/tun", os.R_OK | os.W_OK) else f"`chmod 666 /dev/net/tun` (it is {mode:o}; udev's default is 666)"


def _xdp() -> Iterator[Check]:
    optional = "optional: AF_PACKET serves every interface"
    yield _tried("af_xdp", probes.xdp_socket, f"CONFIG_XDP_SOCKETS and CAP_NET_RAW; {optional}", optional=True)
    machine = f"CAP_BPF and CAP_NET_ADMIN of the machine, not of a user namespace; {optional}"
    yield _tried("af_xdp_receive", probes.xdp_generic, machine, optional=True)
    native = _tried("af_xdp_native", probes.xdp_native, machine, optional=True)
    yield replace(native, detail=f"{native.detail}; {_offered(probes.XDP_BASIC)[1]}")
    names, said = _offered(probes.XDP_ZERO_COPY)
    yield Check("af_xdp_zero_copy", bool(names), said, f"a card whose driver has it (ice, ixgbe, mlx5 ...); {optional}", optional=True)


def _offered(bit: int) -> tuple[list[str], str]:
    """The interfaces whose drivers say that they can, and the sentence for it."""
    from pktring.drivers.link import interfaces

    features = probes.xdp_features()
    if features is None:
        return [], "a kernel before 6.3 does not say which interfaces can"
    names = [link.name for link in interfaces() if features.get(link.ifindex, 0) & bit]
    return names, f"offered by: {' '.join(names) or 'no interface here'}"


def _user_namespaces() -> Iterator[Check]:
    """As an ordinary user, even if we are root: an AF_PACKET socket there is what the demo needs."""
    works, said = probes.apart(probes.packet_socket, user=True, as_nobody=os.geteuid() == 0)
    wrong = [f"{knob}={good}" for knob, (bad, good) in KNOBS.items() if _read(f"/proc/sys/{knob.replace('.', '/')}") == bad]
    fix = f"`sysctl {' '.join(wrong)}`" if wrong else "allowed neither in a chroot nor by Docker's default profile; root needs none"
    detail = "an ordinary user can make them: demo and tests run without root" if works else f"refused to an ordinary user: {said}"
    yield Check("user_namespaces", works, detail, fix, optional=os.geteuid() == 0)


# ---- memory and CPUs ----


def _memory() -> Iterator[Check]:
    yield _shm_space()
    with open("/proc/meminfo", encoding="ascii") as file:
        info = {key: value.split()[0] for key, value in (line.split(":") for line in file)}
    pages = int(info.get("HugePages_Total", 0))
    detail = f"{pages} of {info.get('Hugepagesize', '?')} KiB reserved"
    yield Check("hugepages", pages > 0, f"{detail}; pktring needs none", "`sysctl vm.nr_hugepages=64` for programs that do", optional=True)
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    free = limit == resource.RLIM_INFINITY or limit >= UMEM_BYTES or "CAP_IPC_LOCK" in capabilities()
    size = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit >> 10} KiB"
    detail = f"RLIMIT_MEMLOCK {size}: without CAP_IPC_LOCK it limits the memory of AF_XDP"
    yield Check("memlock", free, detail, "`ulimit -l unlimited`, or LimitMEMLOCK=infinity", optional=True)


def _shm_space() -> Check:
    from pktring.shm.region import Region

    space = os.statvfs("/dev/shm")
    free = space.f_bavail * space.f_frsize >> 20
    try:
        began = time.monotonic()
        with Region.create(f"doctor-{os.getpid()}") as region:
            need, took_ms = len(region.mem) >> 20, (time.monotonic() - began) * 1e3
    except Error as error:
        return Check("shm_space", False, f"{error.code} {error.text}", "`mount -o remount,size=512M /dev/shm`; in Docker --shm-size=512m")
    return Check("shm_space", True, f"{free} MiB free in /dev/shm; a region of the usual {need} MiB was made in {took_ms:.0f} ms")


def _cpus() -> Iterator[Check]:
    mine = sorted(os.sched_getaffinity(0))
    isolated = _read("/sys/devices/system/cpu/isolated") or "none"
    nohz = _read("/sys/devices/system/cpu/nohz_full").replace("(null)", "") or "none"
    clock = _read("/sys/devices/system/clocksource/clocksource0/current_clocksource") or "unknown"
    detail = f"{cli.plural(len(mine), 'CPU')} usable, isolated: {isolated}, nohz_full: {nohz}, clock: {clock}"
    fix = f"boot with `isolcpus={mine[-1]} nohz_full={mine[-1]}` to keep other work, and its jitter, off a worker's CPU"
    yield Check("cpu_isolation", isolated != "none", detail, fix, optional=True)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


# ---- interfaces ----


def _interfaces() -> Iterator[Check]:
    from pktring.drivers.link import interfaces

    for link in interfaces():
        yield offloads(link)
        yield takable(link)


def takable(link: LinkFacts) -> Check:
    """Whether `bridge` may receive in place of the host."""
    from pktring.drivers.taking import would_cut_host

    why = would_cut_host(link.name)
    state = "up" if link.carrier else "no carrier" if link.up else "down"
    detail = why or f"{link.kind or link.driver or 'interface'}, mtu {link.mtu}, {state}"
    return Check(f"take {link.name}", why is None, detail, "`bridge --yes` takes it all the same; `capture` only watches", optional=True)


MERGING = ("gro", "tso", "gso", "uso", "lro")
CONSEQUENCES = {
    "lro": "lro merges received frames for good, so that captures and forwards differ from the wire",
    "tx-checksum": "checksums the host left to the card are completed",
    "rx-vlan": "VLAN tags the kernel took out are put back",
}


def offloads(link: LinkFacts) -> Check:
    """What the offloads of an interface mean for whoever sees its frames. Only LRO cannot be undone."""
    on = [name for name, is_on in link.offloads.items() if is_on]
    meanings = [text for name, text in CONSEQUENCES.items() if name in on]
    if set(on) & set(MERGING):
        meanings.insert(0, f"frames to {link.gso_max_size} B: forwarded whole, cut to wire size in captures")
    detail = "; ".join([" ".join(on) or "none on", *meanings])
    return Check(f"offloads {link.name}", "lro" not in on, detail, f"`ethtool -K {link.name} lro off`")


LOOKS = {
    "kernel": _kernel,
    "privileges": _privileges,
    "user_namespaces": _user_namespaces,
    "sockets": _sockets,
    "xdp": _xdp,
    "memory": _memory,
    "cpus": _cpus,
    "interfaces": _interfaces,
}
