"""Count the frames and bytes of a port of a running engine, once a second; -s sends the first one back where it came from.

    python counter.py left                        # until SIGINT
    python counter.py -e edge -n 1000 -f udp -s left

counter.c does the same in C.
"""

import argparse
import signal
import sys
import time

import pktring


def send_back(port, frame):
    """A frame as it came, from its receiver to its sender. -> was there room for it?"""
    done = port.send([frame[6:12] + frame[:6] + frame[12:]]) == 1
    port.flush()
    return done


def count(port, most, back):
    """Until `most` frames came, or a signal. -> frames, bytes"""
    frames = bytes_ = 0
    told, second = (0, 0), int(time.time())
    try:
        while frames < most:
            batch = port.recv(min(256, most - frames), timeout=1.0)
            frames += len(batch)
            bytes_ += int(batch.lengths.sum())
            if back and len(batch):
                back = not send_back(port, bytes(batch[0]))
            if int(time.time()) != second:
                second = int(time.time())
                print(f"{frames - told[0]} frames/s  {bytes_ - told[1]} bytes/s", flush=True)
                told = frames, bytes_
    except KeyboardInterrupt:
        pass
    return frames, bytes_


def main(argv=None):
    parser = argparse.ArgumentParser(prog="counter.py")
    parser.add_argument("-e", dest="engine", default="default")
    parser.add_argument("-n", dest="most", type=int, default=sys.maxsize)
    parser.add_argument("-f", dest="filter", default="")
    parser.add_argument("-s", dest="back", action="store_true")
    parser.add_argument("port")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pktring.open(args.port, engine=args.engine, filter=args.filter) as port:
            facts = port.facts()
            print(f"counter: app {facts['app']} on {args.port}, {facts['memory']} memory", file=sys.stderr, flush=True)
            frames, bytes_ = count(port, args.most, args.back)
            print(f"{frames} frames, {bytes_} bytes, {port.stats()['drop_kernel']} dropped")
    except pktring.Error as why:
        print(f"counter: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
