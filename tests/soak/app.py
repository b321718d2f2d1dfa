"""Apps that attach to a running engine, to be killed: `app.py PORT` forks one for each word on its standard input, and says its pid.

    listen   looks at every number until SIGTERM, and says then what it heard
    hold     takes all that its rings hold, and gives nothing back
    stop     receives nothing at all
"""

import json
import os
import signal
import sys

import pktring

FLOW, NUMBER = 46, 50  # in a frame of numbered.c


def tell(**what):
    os.write(1, json.dumps({"pid": os.getpid()} | what).encode() + b"\n")


def listen(port):
    following, found = {}, {"frames": 0, "again": 0, "missing": 0}
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    tell(ready="listen")
    while True:
        batch = port.recv(timeout=0.2)
        if not len(batch) and over:
            break
        head = batch.head(58)
        flows, numbers = (head[:, at : at + n].copy().view(f"<u{n}")[:, 0].tolist() for at, n in ((FLOW, 4), (NUMBER, 8)))
        for flow, number in zip(flows, numbers, strict=True):
            expected = following.get(flow, number)
            found["again"] += number < expected
            found["missing"] += max(0, number - expected)
            following[flow] = max(expected, number + 1)
        found["frames"] += len(numbers)
        batch.release()
    tell(**found, counters={name: n for name, n in port.stats().items() if n})


def hold(port):
    kept = []
    while sum(map(len, kept)) < 2 * 255:  # of two workers, each a ring of 256 slots
        batch = port.recv(max=64, timeout=0.5)
        if not len(batch):
            break
        kept.append(batch)
    tell(ready="hold", held=sum(map(len, kept)))
    signal.pause()


def stop(port):
    tell(ready="stop")
    signal.pause()


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    tell(ready="zygote")
    for line in sys.stdin:
        role, *flags = line.split()
        if not os.fork():
            try:
                with pktring.open(sys.argv[1] + "".join(flags)) as port:
                    {"listen": listen, "hold": hold, "stop": stop}[role](port)
            except pktring.Error as why:
                print(f"{why.code} {why}", file=sys.stderr, flush=True)
            os._exit(0)


main()
