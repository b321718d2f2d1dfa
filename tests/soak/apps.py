"""Attached apps in processes of their own (app.py), for tests: started, asked what they heard, killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path


class Apps:
    """One process that forks apps; `with` ends it and them."""

    def __init__(self, net, engine, port="fa", errors=None):
        argv = [sys.executable, str(Path(__file__).parent / "app.py"), port]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        self.child = net.lab.start(net.fa.netns, argv, env=engine.env, **pipes)
        assert self._said()["ready"] == "zygote"
        self.pids = []

    def start(self, role, *flags):
        """-> its pid, once it is attached"""
        self.child.stdin.write(" ".join([role, *flags]) + "\n")
        self.child.stdin.flush()
        said = self._said()
        assert said.get("ready") == role, said
        self.pids.append(said["pid"])
        return said["pid"]

    @classmethod
    def refused(cls, net, engine):
        """An app that tries to attach and may not: what it says."""
        with cls(net, engine, errors=subprocess.PIPE) as apps:
            apps.child.stdin.write("stop\n")
            apps.child.stdin.close()
            return apps.child.stderr.read()

    def asked(self, pid):
        """End a listener. -> what it heard"""
        os.kill(pid, signal.SIGTERM)
        said = self._said()
        self.pids.remove(pid)
        return said

    def killed(self, pid):
        self.pids.remove(pid)
        os.kill(pid, signal.SIGKILL)

    def _said(self):
        line = self.child.stdout.readline()
        assert line, "the process of the apps ended"
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.child.stdin.close()
        self.child.wait(10)
        self.child.stdout.close()
