"""The rounds: every row, every peer in turn, and in the next round the other way round.

Theory of operation. A round starts all peers afresh, proves that bytes cross them unharmed, and runs row by row; within
a row the peers follow each other closely, so that a slow minute of the machine falls on all of them. Ratios are taken
within a round, and only then their median. A failed run is kept as a fault and gives no figure.
"""

from __future__ import annotations

import filecmp
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from bench.load import LoadError, Requests, Transfer, Viewer, download, get_small, upload
from bench.measure import busy_seconds, cpu_seconds, peak_memory
from bench.peers import Host, Peer
from bench.programs import StartError

CHECK_SIZE = (4 << 20) + 7  # odd, so that no block size divides it


@attrs.frozen
class Row:
    """One thing to measure: requests on `connections` (each new if `fresh`), or the transfer of one file."""

    name: str
    title: str
    connections: int = 0
    fresh: bool = False

    @property
    def bulk(self) -> bool:
        """True for a transfer: its rate is in MB/s and its CPU in s/GB, else requests/s and us per request."""
        return self.connections == 0


ROWS = (
    Row("get-1", "small GET, 1 keep-alive connection", 1),
    Row("get-32", "small GET, 32 keep-alive connections", 32),
    Row("get-256", "small GET, 256 keep-alive connections", 256),
    Row("new-32", "small GET, a new connection each, 32 at once", 32, fresh=True),
    Row("download", "one download"),
    Row("upload", "one upload"),
)


@attrs.frozen
class Plan:
    """How much to do: `rounds` times `rows`, `seconds` per request row, `size` bytes per transfer."""

    rounds: int
    seconds: int
    size: int
    rows: Sequence[Row] = ROWS


@attrs.frozen
class Sample:
    """One run. `rate` in requests/s or MB/s, latency in ms, `cpu` by role in us per request or s per GB.

    `foreign` is the share of all cores' time that went to programs that are neither the peer, the Host nor the load.
    """

    peer: str
    row: str
    round: int
    rate: float
    cpu: dict[str, float]
    foreign: float
    p50: float | None = None
    p99: float | None = None


@attrs.frozen
class Fault:
    """A run that failed, or a peer that did not start (then `row` is "start")."""

    peer: str
    row: str
    round: int
    reason: str


@attrs.define
class Results:
    """All that was measured; `memory` has one entry per peer and round, peak bytes by role."""

    samples: list[Sample] = attrs.Factory(list)
    faults: list[Fault] = attrs.Factory(list)
    memory: list[tuple[str, dict[str, int]]] = attrs.Factory(list)


@attrs.frozen
class Round:
    """What all runs of one round share; `number` counts from 0."""

    plan: Plan
    host: Host
    folder: Path
    number: int


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is /dev/shm, else in the usual place; gone afterwards."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="netbore-bench-", dir=shared if shared.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_host(folder: Path, size: int) -> Iterator[Host]:
    """The Host with its two files, "file" of `size` bytes and "check"."""
    host = Host(folder, {"file": size, "check": CHECK_SIZE})
    try:
        yield host
    finally:
        host.program.stop()


def prove(viewer: Viewer, host: Host, folder: Path) -> None:
    """Send a file each way and compare every byte. Raises LoadError for a difference."""
    original, copy = host.file("check"), folder / "copy"
    download(viewer, "/check", CHECK_SIZE, copy)
    upload(viewer, original, host.stored("check"))
    for arrived in (copy, host.stored("check")):
        if not filecmp.cmp(original, arrived, shallow=False):
            raise LoadError(f"{arrived.name}: what arrived is not what was sent")


def load_seconds() -> float:
    """Return the CPU seconds of all load programs so far: they are the children that this process waits for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@attrs.frozen
class Reading:
    """The clocks at one moment: wall, whole machine, load programs, and each role, in seconds."""

    wall: float
    busy: float
    load: float
    roles: dict[str, float]

    @classmethod
    def take(cls, roles: dict[str, list[int]]) -> Reading:
        """Read all clocks now."""
        return cls(time.monotonic(), busy_seconds(), load_seconds(), cpu_seconds(roles))

    def since(self, earlier: Reading) -> tuple[dict[str, float], float]:
        """Return the CPU seconds by role since `earlier`, and the share of all cores that went to foreign programs."""
        used = {role: now - earlier.roles[role] for role, now in self.roles.items()}
        foreign = self.busy - earlier.busy - (self.load - earlier.load) - sum(used.values())
        return used, foreign / ((self.wall - earlier.wall) * (os.cpu_count() or 1))


def drive(viewer: Viewer, row: Row, now: Round) -> tuple[float, Requests | Transfer]:
    """Run the load of `row` once; return by how much its CPU is to be divided, and what the load program said."""
    size = now.plan.size
    if not row.bulk:
        counted = get_small(viewer, row.connections, now.plan.seconds, row.fresh)
        return counted.count / 1e6, counted
    if row.name == "download":
        return size / 1e9, download(viewer, "/file", size)
    return size / 1e9, upload(viewer, now.host.file("file"), now.host.stored("file"))


def measure(peer: Peer, viewer: Viewer, row: Row, now: Round) -> Sample:
    """Run one row once, a request row after a second of the same load to warm up. Raises LoadError."""
    if not row.bulk:
        get_small(viewer, row.connections, 1, row.fresh)
    roles = {**peer.processes(), "host": [now.host.program.pid]}
    before = Reading.take(roles)
    amount, said = drive(viewer, row, now)
    used, foreign = Reading.take(roles).since(before)
    cpu = {role: seconds / amount for role, seconds in used.items()}
    if isinstance(said, Requests):
        return Sample(peer.name, row.name, now.number, said.rate, cpu, foreign, p50=said.p50, p99=said.p99)
    return Sample(peer.name, row.name, now.number, now.plan.size / 1e6 / said.seconds, cpu, foreign)


@contextmanager
def running(peer: Peer, host: Host, folder: Path) -> Iterator[Viewer]:
    """The peer, up and proven. Raises StartError or LoadError."""
    folder.mkdir()
    try:
        viewer = peer.start(host.address, folder)
        prove(viewer, host, folder)
        yield viewer
    finally:
        peer.stop()


def start_all(peers: Sequence[Peer], now: Round, stack: ExitStack, results: Results) -> list[tuple[Peer, Viewer]]:
    """Bring all peers up until `stack` ends; one that fails is a fault and is left out."""
    viewers = []
    for peer in peers:
        try:
            viewer = stack.enter_context(running(peer, now.host, now.folder / f"{peer.name}-{now.number}"))
            viewers.append((peer, viewer))
        except (StartError, LoadError) as error:
            results.faults.append(Fault(peer.name, "start", now.number, str(error)))
    return viewers


def run_round(peers: Sequence[Peer], now: Round, results: Results) -> None:
    """Start the peers, run all rows, and stop the peers. Odd rounds take the peers in reverse order."""
    with ExitStack() as stack:
        viewers = start_all(peers, now, stack, results)
        for row in now.plan.rows:
            for peer, viewer in reversed(viewers) if now.number % 2 else viewers:
                progress(f"round {now.number + 1} of {now.plan.rounds}: {row.name} {peer.name}")
                try:
                    results.samples.append(measure(peer, viewer, row, now))
                except LoadError as error:
                    results.faults.append(Fault(peer.name, row.name, now.number, str(error)))
        for peer, _ in viewers:
            results.memory.append((peer.name, {role: peak_memory(pids) for role, pids in peer.processes().items()}))


def run_plan(peers: Sequence[Peer], plan: Plan) -> Results:
    """Run all rounds and return what they gave. Raises StartError only for the Host."""
    results = Results()
    with scratch() as folder, running_host(folder, plan.size) as host:
        for number in range(plan.rounds):
            run_round(peers, Round(plan, host, folder, number), results)
    progress("")
    return results


def progress(text: str) -> None:
    """Show `text` on the terminal's last line, and nowhere else."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
