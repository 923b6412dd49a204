"""Starting and stopping programs: each with its own log, waited for, and ended by its own pid only.

Theory of operation. Programs get a process group of their own, so that Ctrl-C reaches the bench alone and it stops
them in order, but never a session of their own: where the kernel groups its scheduling by session (sched_autogroup),
sessions change who preempts whom, and nginx as two proxies was measured 25 % slower for nothing else.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from bench.measure import read_stats, tree

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class StartError(Exception):
    """A program did not come up; the text ends with the last of its log."""


def find(name: str) -> str | None:
    """Return the program's path, looking beside this Python first and in /usr/sbin last, or None."""
    return shutil.which(name, path=PATH)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """One running program with its output in `NAME.out` and `NAME.err` of `folder`. Raises StartError if it is missing."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        path = find(command[0])
        if path is None:
            raise StartError(f"{command[0]} is not installed")
        self.name, self.out, self.err = name, folder / f"{name}.out", folder / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self._process = subprocess.Popen([path, *command[1:]], stdin=subprocess.PIPE, stdout=out, stderr=err, process_group=0)
        self.pid = self._process.pid

    def check(self) -> None:
        """Raise StartError if the program has ended."""
        if self._process.poll() is not None:
            raise StartError(f"{self.name} ended with code {self._process.returncode}: {self._tail()}")

    def wait_for(self, pattern: str, log: Path | None = None, limit: float = 15) -> re.Match[str]:
        """Wait until `log` (standard output if None) has a whole line of `pattern`.

        Raises StartError when the program ends, or after `limit` seconds.
        """
        line, log = re.compile(rf"^{pattern}\r?\n", re.MULTILINE), log or self.out
        deadline = time.monotonic() + limit
        while (match := line.search(log.read_text(errors="replace"))) is None:
            self.check()
            if time.monotonic() > deadline:
                raise StartError(f"{self.name}: no line {pattern!r} within {limit:.0f} s: {self._tail()}")
            time.sleep(0.02)
        return match

    def _tail(self) -> str:
        return self.err.read_text(errors="replace").strip()[-400:]

    def stop(self, patience: float = 10) -> None:
        """End the program by SIGTERM, after `patience` seconds by SIGKILL, and then what is left of its children."""
        stats = read_stats()
        family = {pid: stats[pid].started for pid in tree([self.pid], stats)}
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        for pid, stat in read_stats().items():
            if family.get(pid) == stat.started:  # the same process, not a reused number
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
