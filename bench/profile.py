"""`outside-h11`: the CPU of Edge and Agent per request that is not spent in h11.

Theory of operation. One window of time, three observers: wrk counts requests, /proc counts CPU, and py-spy samples the
Python stack of each program. py-spy records busy moments only, so the share of its samples without an h11 frame is
the share of CPU outside h11. Its stops of the program cost a little, so the CPU per request is also taken alone first.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs

from bench.load import LoadError, Viewer, get_small
from bench.measure import cpu_seconds
from bench.peers import Netbore
from bench.programs import StartError, find
from bench.run import running, running_host, scratch

CONNECTIONS = 32
RATE = 200  # samples per second
ENOUGH = 5000
WINDOWS = 6

H11 = re.compile(r"[(/]h11/[^/;()]+\.py:\d+\)")
PROGRAMS = {"server": "Edge", "client": "Agent"}


@attrs.frozen
class Samples:
    """How many stacks were seen, and how many of them had no h11 frame."""

    total: int
    outside: int

    @property
    def share(self) -> float:
        """The share outside h11."""
        return self.outside / self.total if self.total else 0.0

    def __add__(self, other: Samples) -> Samples:
        return Samples(self.total + other.total, self.outside + other.outside)


def parse_raw(text: str) -> Samples:
    """Count py-spy's raw format: each line is frames with ";" between them, a blank, and how often that was seen."""
    total = outside = 0
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        total += int(count)
        outside += 0 if H11.search(stack) else int(count)
    return Samples(total, outside)


def sampled(pids: Mapping[str, int], seconds: int, viewer: Viewer, folder: Path) -> tuple[int, dict[str, Samples]]:
    """Sample all programs while wrk runs; return its requests and the samples by role. Raises LoadError."""
    spies = {}
    for role, pid in pids.items():
        command = ["record", "--pid", str(pid), "--rate", str(RATE), "--duration", str(seconds), "--format", "raw"]
        command = [find("py-spy") or "py-spy", *command, "--full-filenames", "--output", str(folder / f"{role}.raw")]
        spies[role] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        counted = get_small(viewer, CONNECTIONS, seconds)
        for role, spy in spies.items():
            _, said = spy.communicate(timeout=60)
            if spy.returncode:
                raise LoadError(f"py-spy of {role}: {said.strip()[-200:]}")
    finally:
        for spy in spies.values():
            if spy.poll() is None:
                spy.kill()
                spy.wait()
    return counted.count, {role: parse_raw((folder / f"{role}.raw").read_text()) for role in spies}


def per_request(requests: int, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return us per request by role."""
    return {role: (after[role] - before[role]) * 1e6 / requests for role in before}


def outside_h11(seconds: int, carrier: str) -> str:
    """Measure with the Link over `carrier`, in windows of `seconds` until each program has ENOUGH samples, and return the report.

    Raises StartError or LoadError, the latter too when the samples stay too few.
    """
    peer = Netbore(carrier)
    missing = peer.missing() or next((name for name in ("py-spy", "wrk", "nginx") if find(name) is None), None)
    if missing:
        raise StartError(f"{missing} is not installed")
    with scratch() as folder, running_host(folder, 1 << 20) as host, running(peer, host, folder / "netbore") as viewer:
        roots = peer.processes()
        get_small(viewer, CONNECTIONS, 2)
        start = cpu_seconds(roots)
        alone = per_request(get_small(viewer, CONNECTIONS, seconds).count, start, cpu_seconds(roots))
        requests, found = 0, dict.fromkeys(roots, Samples(0, 0))
        start = cpu_seconds(roots)
        for _ in range(WINDOWS):
            count, samples = sampled({role: pids[0] for role, pids in roots.items()}, seconds, viewer, folder)
            requests += count
            found = {role: seen + samples[role] for role, seen in found.items()}
            if min(seen.total for seen in found.values()) >= ENOUGH:
                return table(alone, per_request(requests, start, cpu_seconds(roots)), found)
    raise LoadError(f"too few samples: {found}")


def table(alone: Mapping[str, float], beside: Mapping[str, float], found: Mapping[str, Samples]) -> str:
    """Return one line per program and their sum, in us of CPU per request."""
    lines = [f"{'':8}{'CPU us/request':>16}{'not sampled':>13}{'samples':>9}{'outside h11':>13}{'us outside h11':>16}"]
    for role, seen in found.items():
        name, product = PROGRAMS[role], beside[role] * seen.share
        shares = f"{seen.total:9}{seen.share:13.1%}"
        lines.append(f"{name:8}{beside[role]:16.2f}{alone[role]:13.2f}{shares}{product:16.2f}")
    total = sum(beside[role] * seen.share for role, seen in found.items())
    lines.append(f"{'sum':8}{sum(beside.values()):16.2f}{sum(alone.values()):13.2f}{'':22}{total:16.2f}")
    return "\n".join(lines)
