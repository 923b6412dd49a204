"""From samples to a table for people and a dictionary for programs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from bench.measure import Spread, spread
from bench.programs import find
from bench.run import Plan, Results, Row, Sample

REFERENCE = "nginx"

#: More of the machine than this to foreign programs, in the median, and the row is marked.
FOREIGN = 0.10

MIB = 1 << 20

COLUMNS = ("peer", "rate", "x nginx", "p50 ms", "p99 ms", "server", "client", "both", "x nginx", "host", "faults")


@attrs.frozen
class Line:
    """One peer in one row. The ratios are against nginx within the same round; None is "not known"."""

    peer: str
    row: str
    rate: Spread | None
    rate_ratio: Spread | None
    p50: Spread | None
    p99: Spread | None
    p99_ratio: Spread | None
    cpu: dict[str, Spread | None]
    cpu_ratio: Spread | None
    foreign: Spread | None
    faults: int


def both(sample: Sample) -> float:
    """Return the CPU of the peer's two sides together."""
    return sum(cost for role, cost in sample.cpu.items() if role != "host")


def ratios(mine: Sequence[Sample], theirs: Sequence[Sample], value: Callable[[Sample], float | None]) -> Spread | None:
    """Return the Spread of mine / theirs, each pair out of one round; rounds that lack one of the two are left out."""
    known = {sample.round: value(sample) for sample in theirs}
    pairs = [(value(sample), known.get(sample.round)) for sample in mine]
    return spread(a / b for a, b in pairs if a is not None and b)


def summarise(results: Results, row: str, peer: str) -> Line:
    """Gather all runs of one peer in one row."""
    mine = [sample for sample in results.samples if (sample.row, sample.peer) == (row, peer)]
    theirs = [sample for sample in results.samples if (sample.row, sample.peer) == (row, REFERENCE)]
    roles = sorted({role for sample in mine for role in sample.cpu})
    cpu = {role: spread(sample.cpu[role] for sample in mine) for role in roles}
    if len(cpu) > 1:  # more than the Host
        cpu["both"] = spread(map(both, mine))
    return Line(
        peer,
        row,
        rate=spread(sample.rate for sample in mine),
        rate_ratio=ratios(mine, theirs, lambda sample: sample.rate),
        p50=spread(sample.p50 for sample in mine if sample.p50 is not None),
        p99=spread(sample.p99 for sample in mine if sample.p99 is not None),
        p99_ratio=ratios(mine, theirs, lambda sample: sample.p99),
        cpu=cpu,
        cpu_ratio=ratios(mine, theirs, both) if "both" in cpu else None,
        foreign=spread(sample.foreign for sample in mine),
        faults=sum(fault.peer == peer and fault.row in {row, "start"} for fault in results.faults),
    )


def show(value: Spread | None, form: str, wide: bool = False) -> str:
    """Write the median, `wide` with "(least-greatest)" where they differ, or "-"."""
    if value is None:
        return "-"
    median, least, greatest = (format(number, form) for number in attrs.astuple(value))
    return f"{median} ({least}-{greatest})" if wide and least != greatest else median


def cells(line: Line, bulk: bool) -> list[str]:
    """Return the cells of one line of the table, in the order of COLUMNS."""
    fine = ".2f" if bulk else ".1f"
    server, client, total, host = (line.cpu.get(role) for role in ("server", "client", "both", "host"))
    return [
        line.peer,
        show(line.rate, ",.0f", wide=True),
        show(line.rate_ratio, ".2f", wide=True),
        show(line.p50, ".2f"),
        show(line.p99, ".2f", wide=True),
        show(server, fine),
        show(client, fine),
        show(total, fine, wide=True),
        show(line.cpu_ratio, ".2f"),
        show(host, fine),
        str(line.faults or "-"),
    ]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
    return "\n".join(lines) + "\n"


def section(results: Results, row: Row, peers: Sequence[str]) -> str:
    """Return the table of one row, with a mark where foreign programs took part in it."""
    lines = [summarise(results, row.name, peer) for peer in peers]
    units = "MB/s; CPU in s/GB" if row.bulk else "requests/s; CPU in us/request"
    table = aligned([COLUMNS, *(cells(line, row.bulk) for line in lines)])
    shares = [line.foreign.median for line in lines if line.foreign]
    mark = f"other programs took {max(shares):.0%} of the cores\n" if shares and max(shares) > FOREIGN else ""
    return f"{row.name}: {row.title} ({units})\n{table}{mark}"


def memory(results: Results, peers: Sequence[str]) -> list[tuple[str, str, Spread]]:
    """Return (peer, role, peak MiB) for all that have processes."""
    found = []
    for peer in peers:
        for role in ("server", "client"):
            peak = spread(peaks[role] / MIB for name, peaks in results.memory if name == peer and role in peaks)
            if peak is not None:
                found.append((peer, role, peak))
    return found


def as_text(results: Results, plan: Plan, peers: Sequence[str]) -> str:
    """Return the whole report: median (least-greatest) over the rounds."""
    parts = [section(results, row, peers) for row in plan.rows]
    peaks = [(peer, role, show(peak, ".0f", wide=True)) for peer, role, peak in memory(results, peers)]
    parts.append("peak resident memory over all rows\n" + aligned([("peer", "role", "MiB"), *peaks]))
    parts += [f"FAULT {fault.peer} {fault.row} round {fault.round + 1}: {fault.reason}" for fault in results.faults]
    return "\n".join(parts)


def version(program: str, option: str) -> str:
    """Return the first line a program says about its version, on either output, or "missing"."""
    path = find(program)
    if path is None:
        return "missing"
    done = subprocess.run([path, option], capture_output=True, text=True, check=False)
    return next(iter((done.stdout + done.stderr).strip().splitlines()), "")


def circumstances(plan: Plan) -> dict[str, Any]:
    """Return where, when and with what the figures were made."""
    asked = {"wrk": "-v", "curl": "--version", "nginx": "-v", "ssh": "-V"}
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
        "python": sys.version.split()[0],
        "programs": {program: version(program, option) for program, option in asked.items()},
        "plan": attrs.asdict(plan),
        "units": {"requests": "requests/s, ms, us/request", "bulk": "MB/s, s/GB", "memory": "MiB"},
    }


def as_json(results: Results, plan: Plan, peers: Sequence[str]) -> dict[str, Any]:
    """Return everything, raw samples included, fit for json.dump."""
    return {
        "circumstances": circumstances(plan),
        "summary": [attrs.asdict(summarise(results, row.name, peer)) for row in plan.rows for peer in peers],
        "memory": [{"peer": peer, "role": role, **attrs.asdict(peak)} for peer, role, peak in memory(results, peers)],
        "samples": [attrs.asdict(sample) for sample in results.samples],
        "faults": [attrs.asdict(fault) for fault in results.faults],
    }
