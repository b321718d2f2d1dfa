"""What can be seen of an engine from outside, and nothing behind it: a name, a control socket, a status that grows by 1000 frames each time
it is asked for. For tests of what tools draw and how they end, where frames do not matter.

    with posing(folder, "edge") as pose: pose.status; pose.kill()
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path


class Pose:
    """The posing process."""

    def __init__(self, folder, name, *flags):
        self.env = {**os.environ, "PKTRING_RUNDIR": str(folder)}
        argv = [sys.executable, __file__, name, *flags]
        self.child = subprocess.Popen(argv, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.child.stdout.readline() == "ready\n"

    def kill(self):
        """It dies, and cleans nothing up."""
        self.child.kill()
        self.child.wait()


@contextlib.contextmanager
def posing(folder, name="edge", *flags):
    """Pose until the block ends."""
    pose = Pose(folder, name, *flags)
    try:
        yield pose
    finally:
        pose.kill()
        pose.child.stdin.close()
        pose.child.stdout.close()


def main(name, *flags):
    sys.path.insert(0, str(Path(__file__).parent))
    import statuses

    from pktring.engine import rundir
    from pktring.engine.control import Server, Verb

    state = statuses.status() | {"name": name, "pid": os.getpid(), "supervisor": os.getpid()}
    knobs = {f"net.isr.{name.removesuffix('col')}": rows for name, rows in statuses.tables().items()}
    knobs |= {f"net.isr.{name}": value for name, value in statuses.SETTINGS.items()}
    asked_down = []

    def status(*_):
        state.update(statuses.later(state, frames=1000, lost=50))
        return state

    def sysctl(_peer, body, _fds):
        if "value" in body:
            knobs[body["name"]] = body["value"]
        return {"values": {key: value for key, value in knobs.items() if key.startswith(body["name"])}}

    def down(*_):
        asked_down.append(True)
        return state

    verbs = {"status": Verb(status, public=True), "sysctl": Verb(sysctl, public=True), "down": Verb(down)}
    signal.signal(signal.SIGTERM, lambda *_: asked_down.append(True))
    with rundir.claim(name) as claimed:
        claimed.record(3)
        server = Server(claimed.control, handlers=verbs)
        print("ready", flush=True)
        while not asked_down or "--stays" in flags:
            if select.select([server.fileno(), sys.stdin], [], [], 0.1)[0]:
                server.step()
        server.step()
        server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
