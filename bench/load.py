"""The load: wrk for requests, curl for bulk, and the readers of what they print.

Every run is checked: a socket error, an answer other than 2xx, a byte too many or too few make a LoadError, never a
figure.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import attrs

UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}

WRK_TOTAL = re.compile(r"^\s*(\d+) requests in ", re.MULTILINE)
WRK_RATE = re.compile(r"^Requests/sec:\s+([\d.]+)", re.MULTILINE)
WRK_LATENCY = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m|h)\s*$", re.MULTILINE)
WRK_TROUBLE = re.compile(r"^\s*(Socket errors: .*|Non-2xx or 3xx responses: .*)$", re.MULTILINE)

CURL_FORMAT = "%{http_code} %{size_download} %{size_upload} %{time_total}"


class LoadError(Exception):
    """A run that gives no figure: it failed, or what it did is not what was asked."""


@attrs.frozen
class Viewer:
    """Where the load goes: `url` without a path, and the Host header to send if the URL's own will not do."""

    url: str
    host: str | None = None

    def options(self) -> list[str]:
        """Return the options that wrk and curl share."""
        return ["-H", f"Host: {self.host}"] if self.host else []


@attrs.frozen
class Requests:
    """What wrk counted. Latencies in milliseconds, `rate` in requests per second."""

    count: int
    rate: float
    p50: float
    p99: float


@attrs.frozen
class Transfer:
    """What curl counted: bytes of the body in either direction, seconds in all."""

    status: int
    down: int
    up: int
    seconds: float


def parse_wrk(text: str) -> Requests:
    """Read wrk's report (with --latency). Raises LoadError if it is not whole, or tells of any failed request."""
    trouble = WRK_TROUBLE.findall(text)
    if trouble:
        raise LoadError(f"wrk: {'; '.join(trouble)}")
    total, rate = WRK_TOTAL.search(text), WRK_RATE.search(text)
    latency = {share: float(number) * UNITS_MS[unit] for share, number, unit in WRK_LATENCY.findall(text)}
    if total is None or rate is None or latency.keys() != {"50", "99"}:
        raise LoadError(f"wrk: a report that is not understood: {text.strip()[-200:]!r}")
    if total[1] == "0":
        raise LoadError("wrk: not one request was answered")
    return Requests(int(total[1]), float(rate[1]), latency["50"], latency["99"])


def parse_curl(text: str) -> Transfer:
    """Read the line of CURL_FORMAT. Raises LoadError for anything else."""
    fields = text.split()
    try:
        return Transfer(int(fields[0]), int(fields[1]), int(fields[2]), float(fields[3]))
    except (ValueError, IndexError):
        raise LoadError(f"curl: a line that is not understood: {text!r}") from None


def run(command: list[str], limit: float) -> str:
    """Run a program to its end and return its standard output. Raises LoadError for a bad exit or after `limit` s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise LoadError(f"{command[0]}: not done after {limit:.0f} s") from None
    if done.returncode:
        raise LoadError(f"{command[0]}: exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout


def get_small(viewer: Viewer, connections: int, seconds: int, fresh: bool = False) -> Requests:
    """Ask for the small body over and over on `connections` connections, `fresh` for a new one per request."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *viewer.options()]
    if fresh:
        command += ["-H", "Connection: close"]
    return parse_wrk(run([*command, f"{viewer.url}/small"], seconds + 30))


def download(viewer: Viewer, path: str, size: int, target: Path = Path("/dev/null")) -> Transfer:
    """Fetch `path`, which must be `size` bytes, once over a new connection."""
    done = curl(viewer, ["-o", str(target), f"{viewer.url}{path}"])
    if done.status != 200 or done.down != size:
        raise LoadError(f"download: status {done.status}, {done.down} of {size} bytes")
    return done


def upload(viewer: Viewer, source: Path, stored: Path) -> Transfer:
    """PUT the file `source` once over a new connection; the Host must have all of it in `stored` afterwards."""
    stored.unlink(missing_ok=True)
    size = source.stat().st_size
    done = curl(viewer, ["-T", str(source), "-o", "/dev/null", f"{viewer.url}/upload/{stored.name}"])
    arrived = stored.stat().st_size if stored.exists() else 0
    if done.status not in {201, 204} or done.up != size or arrived != size:
        raise LoadError(f"upload: status {done.status}, {done.up} sent and {arrived} stored of {size} bytes")
    return done


def curl(viewer: Viewer, arguments: list[str]) -> Transfer:
    """Run curl once with `arguments` and return what it counted."""
    return parse_curl(run(["curl", "-sS", "-w", CURL_FORMAT, *viewer.options(), *arguments], 120))
