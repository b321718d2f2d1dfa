"""A status as an engine's controller answers it, for tests of what is drawn from one; `later` is the same engine a while after."""

import copy


def counters(**given):
    """A row of counters, zero but for these."""
    from pktring.shm import _shm

    return dict.fromkeys([name for name, _ in _shm.COUNTERS], 0) | given


def status():
    """Two ports, two workers, a handler, an app, and drops of three kinds."""
    return {
        "name": "edge",
        "generation": 3,
        "pid": 4712,
        "supervisor": 4711,
        "uptime_s": 3723.4,
        "version": "0.1.0",
        "workers": [worker(1, 0, 12.5, 0, ""), worker(2, 1, 11.25, 2, "W_AFFINITY wanted cpu7, running on 0-1")],
        "ports": {"left": left(), "right": right()},
        "netisr": netisr(),
        "handlers": [handler(1, 40000, 1000, 0, 3.0, 80.0, ""), handler(2, 6262, 1000, 1, 5.0, 181.0, "ValueError: no such flow")],
        "apps": [app(1, 812, 1000, "left", "monitor", "sealed", 12, "uid 1000 is not in group pktring")],
        "pool": {"free": 3800, "owned": 96, "inflight": 4, "lent": 12, "kernel": 184, "reserved": 0},
        "events": ["I_UP edge", "E_WORKER_DIED worker=2 pid=4700 sig=9 reclaimed=37 lost<=64 resumed_ms=4.1"],
    }


def worker(number, cpu, cpu_s, restarts, note):
    times = {"restarts": restarts, "progress": 990 + number, "cpu_s": cpu_s}
    return {"id": number, "cpu": cpu, "wanted_cpu": cpu, "pid": 4712 + number, "state": "running", "note": note} | times


def handler(*values):
    keys = "worker frames batches raised mean_us max_us last_error".split()
    return {"protocol": 1, "name": "ip"} | dict(zip(keys, values, strict=True))


def app(*values):
    found = dict(zip("id pid uid port mode memory lent why".split(), values, strict=True))
    return found | {"counters": counters(rx_frames=640, delivered=628)}


def left():
    rings = [
        {"row": "left rx0", "worker": 1, **counters(rx_kernel=1000, rx_frames=1000, rx_bytes=64000, forwarded=990, drop_filter=10)},
        {"row": "left rx1", "worker": 2, **counters(rx_kernel=500, rx_frames=500, rx_bytes=32000, forwarded=500, drop_kernel=5)},
        {"row": "left tx0", "worker": 1, **counters(tx_queued=700, tx_frames=699, tx_bytes=44736, drop_tx_kernel=1)},
        {"row": "left tx1", "worker": 2, **counters(tx_queued=300, tx_frames=300, tx_bytes=19200)},
    ]
    facts = {"driver": "af_packet", "interface": "eth1", "ifindex": 4, "mtu": 1500, "up": True, "mode": "taking"}
    why = "af_xdp: not built; af_packet works"
    return port(0, facts, rings, why=why, warnings=["W_OFFLOADS if=eth1 gro on: super-frames are cut into wire frames or carried whole"])


def right():
    rings = [
        {"row": "right rx0", "worker": 1, **counters(rx_kernel=1000, rx_frames=1000, rx_bytes=64000, forwarded=1000)},
        {"row": "right tx0", "worker": 1, **counters(tx_queued=1490, tx_frames=1490, tx_bytes=95360, mirrored=10, drop_mirror=3)},
    ]
    return port(1, {"driver": "tap", "interface": "vm0", "up": False, "mode": "taking"}, rings)


def port(number, facts, rings, why="", warnings=()):
    names = counters()
    sums = {name: sum(ring[name] for ring in rings) for name in names}
    return {"number": number, "facts": facts, "warnings": list(warnings), "why": why, "counters": sums, "rings": rings}


def tables():
    """The rows of netisr's tables, as engine/netisr_tables.py has them; the figures of the sample of netstat -Q below."""
    works = [
        (0, 1, 0, 37, 0, 18022, 0, 5120, 23142),
        (0, 4, 0, 1, 0, 12, 0, 3, 15),
        (0, 8, 12, 2100, 0, 0, 418, 90210, 90198),
        (1, 1, 0, 38, 0, 18031, 0, 5089, 23120),
        (1, 8, 0, 640, 0, 0, 0, 88001, 88001),
    ]
    protocols = [("ip", 1, 256, 3, 2, 2), ("arp", 4, 256, 1, 0, 0), ("ip6", 6, 256, 2, 1, 0), ("epair", 8, 2100, 3, 6, 0)]
    return {
        "protocol": [row("name proto qlimit policy flags dispatch", values) for values in protocols],
        "workstream": [row("wsid cpu flags", (ws, ws, 1)) for ws in (0, 1)],
        "work": [row("wsid proto len watermark dispatched hybrid_dispatched qdrops queued handled", values) for values in works],
    }


def row(keys, values):
    return {"version": 0} | dict(zip(keys.split(), values, strict=True))


SETTINGS = {"numthreads": 2, "maxthreads": 2, "defaultqlimit": 256, "maxqlimit": 10240, "dispatch": "hybrid", "bindthreads": 1}


def netisr():
    """What a status says of netisr."""
    from pktring.engine import netisr_tables

    return {"settings": SETTINGS} | netisr_tables.json(tables())


def later(given, frames=1000, reason="drop_tx_full", lost=50, cpu_s=0.5):
    """The same engine when every port has received and sent so many frames of 64 bytes more, and the left one lost some."""
    after = copy.deepcopy(given)
    for name, found in after["ports"].items():
        for ring in (found["rings"][0], next(ring for ring in found["rings"] if " tx" in ring["row"])):
            way = "rx" if " rx" in ring["row"] else "tx"
            more = {f"{way}_frames": frames, f"{way}_bytes": frames * 64}
            if way == "rx" and name == "left":
                more[reason] = lost
            for counter, n in more.items():
                ring[counter] += n
                found["counters"][counter] += n
    for worker in after["workers"]:
        worker["cpu_s"] += cpu_s
    after["uptime_s"] += 1
    return after


NETSTAT_Q = """\
Configuration:
Setting                        Current        Limit
Thread count                         2            2
Default queue limit                256        10240
Dispatch policy                 hybrid          n/a
Threads bound to CPUs          enabled          n/a

Protocols:
Name   Proto QLimit Policy Dispatch Flags
ip         1    256    cpu   hybrid   C--
arp        4    256 source  default   ---
ip6        6    256   flow  default   --F
epair      8   2100    cpu  default   CD-

Workstreams:
WSID CPU   Name     Len WMark   Disp'd  HDisp'd   QDrops   Queued  Handled
   0   0   ip         0    37        0    18022        0     5120    23142
   0   0   arp        0     1        0       12        0        3       15
   0   0   epair     12  2100        0        0      418    90210    90198
   1   1   ip         0    38        0    18031        0     5089    23120
   1   1   epair      0   640        0        0        0    88001    88001
"""
