"""Processes that end with the check, whatever ends it."""

import ctypes
import os
import pathlib
import signal
import subprocess
import time

from . import Failure

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def end_with_parent():
    """In the child: die when the check is killed in a way that it cannot see."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Processes:
    """Those that were started, each with a file for what it says."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.running = {}

    def start(self, name, *command):
        """Starts `command` under a name. It must not end by itself."""
        log = open(self.log_of(name), "wb")
        # Not as urgent as what else this machine does.
        nice = ["nice", "-n", "10"]
        self.running[name] = subprocess.Popen(
            [*nice, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            # Scratch volumes of the load, too, go when the folder goes.
            env=os.environ | {"TMPDIR": str(self.folder)},
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        log.close()

    def log_of(self, name):
        return self.folder / f"{name.replace(' ', '-')}.log"

    def said(self, name):
        return self.log_of(name).read_text(errors="replace")

    def wait_for(self, name, pattern, seconds):
        """Waits until the process says something; gives the match."""
        until = time.monotonic() + seconds
        while True:
            if found := pattern.search(self.said(name)):
                return found
            self.all_run()
            if time.monotonic() > until:
                raise Failure(f"{name} does not say '{pattern.pattern}' within {seconds} s:\n{self.last_of(name)}")
            time.sleep(0.1)

    def all_run(self):
        """Fails if one has ended."""
        for name, process in self.running.items():
            if (status := process.poll()) is not None:
                raise Failure(f"{name} ended early, with status {status}:\n{self.last_of(name)}")

    def last_of(self, name):
        lines = self.said(name).splitlines()[-8:]
        return "\n".join(f"    {line}" for line in lines) or "    (it said nothing)"

    def end(self):
        """Ends those that run: asked first, killed when they do not listen. The last first."""
        for process in reversed(self.running.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in reversed(self.running.values()):
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.running.clear()
