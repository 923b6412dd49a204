"""What /proc says about a program with all its children, and the few statistics the report needs.

Theory of operation. A role ("server", "client", "host") is a list of root processes; its CPU is that of the whole tree
below them. A child that ended and was waited for has moved its time into its parent's "reaped" fields, so own plus
reaped over the living tree loses nothing between two readings. /proc counts user and system time in ticks (10 ms as a
rule), too coarse for one short download; the same sum in nanoseconds is the process's CPU clock, which is read instead.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


@attrs.frozen
class Stat:
    """One line of /proc/PID/stat. `reaped` is the CPU of the children it waited for, `started` since boot, in ticks."""

    pid: int
    parent: int
    reaped: int
    started: int


def parse_stat(line: str) -> Stat:
    """Read a line of /proc/PID/stat. The program's name is in brackets and may hold spaces and brackets of its own."""
    head, _, tail = line.rpartition(")")
    fields = tail.split()
    return Stat(int(head.split(" ", 1)[0]), int(fields[1]), sum(map(int, fields[13:15])), int(fields[19]))


def read_stats() -> dict[int, Stat]:
    """Return a Stat for every process that is there, by pid."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                stat = parse_stat((entry / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended since the directory was listed
            found[stat.pid] = stat
    return found


def tree(roots: Iterable[int], stats: Mapping[int, Stat]) -> list[int]:
    """Return the roots that are alive and all their descendants, each once, parents first."""
    children: dict[int, list[int]] = {}
    for stat in stats.values():
        children.setdefault(stat.parent, []).append(stat.pid)
    found: list[int] = []
    queue = list(roots)
    while queue:
        pid = queue.pop(0)
        if pid in stats and pid not in found:
            found.append(pid)
            queue += children.get(pid, ())
    return found


def own_seconds(pid: int) -> float:
    """Return the CPU seconds, user and system, of one process's threads, ended ones too; 0 if it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # the number that clock_getcpuclockid(3) gives on Linux
    except OSError:
        return 0.0


def cpu_seconds(roles: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the CPU seconds that each role's tree has used so far."""
    stats = read_stats()
    return {
        role: sum(own_seconds(pid) + stats[pid].reaped / TICKS_PER_SECOND for pid in tree(roots, stats))
        for role, roots in roles.items()
    }


def parse_peak(status: str) -> int:
    """Return VmHWM of a /proc/PID/status text in bytes; 0 for a process without memory (a zombie)."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_memory(roots: Iterable[int]) -> int:
    """Return the sum of the peak resident sizes, in bytes, over the tree; shared pages count once per process."""
    total = 0
    for pid in tree(roots, read_stats()):
        try:
            total += parse_peak((PROC / str(pid) / "status").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def parse_busy(stat: str) -> int:
    """Return the ticks that all cores together were not idle, from the text of /proc/stat. Stolen time counts."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    return user + nice + system + irq + softirq + steal


def busy_seconds() -> float:
    """Return the CPU seconds that the whole machine has been busy."""
    return parse_busy((PROC / "stat").read_text()) / TICKS_PER_SECOND


@attrs.frozen
class Spread:
    """Median, least and greatest of repeated runs, in the unit of the runs."""

    median: float
    least: float
    greatest: float


def spread(values: Iterable[float]) -> Spread | None:
    """Return the Spread of `values`, or None if there are none."""
    known = list(values)
    return Spread(statistics.median(known), min(known), max(known)) if known else None
