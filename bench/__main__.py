"""The command: `python -m bench` for the table, `python -m bench outside-h11` for the cost outside h11."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.load import LoadError
from bench.peers import CARRIERS, PEERS, Netbore, Peer
from bench.profile import outside_h11
from bench.programs import StartError, find
from bench.report import as_json, as_text
from bench.run import ROWS, Plan, run_plan

MIB = 1 << 20


def names(allowed: Sequence[str], text: str) -> list[str]:
    """Split "a,b" and refuse what is not allowed."""
    chosen = text.split(",")
    unknown = [name for name in chosen if name not in allowed]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(allowed)}")
    return chosen


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    peers, rows = [peer.name for peer in PEERS], [row.name for row in ROWS]
    options = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    options.add_argument("what", nargs="?", choices=["table", "outside-h11"], default="table")
    options.add_argument("--quick", action="store_true", help="3 rounds, 2 s a row, 64 MiB instead of 5, 5 s, 300 MiB")
    options.add_argument("--rounds", type=int)
    options.add_argument("--seconds", type=int, help="of each request row (2 or 5), of each profile window (20)")
    options.add_argument("--only", type=lambda text: names(peers, text), default=peers, metavar="PEER,...", help=", ".join(peers))
    options.add_argument("--rows", type=lambda text: names(rows, text), default=rows, metavar="ROW,...", help=", ".join(rows))
    options.add_argument(
        "--carrier", choices=[*CARRIERS], default="wss", help="of Netbore's Link: a WebSocket over TLS, or TLS alone"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write everything, raw samples included")
    return options


def chosen_peers(only: Sequence[str], carrier: str) -> list[Peer]:
    """Return the peers that can run, telling on stderr which cannot. Raises StartError if one of those is Netbore."""
    usable = []
    for kind in (kind for kind in PEERS if kind.name in only):
        peer = Netbore(carrier) if kind is Netbore else kind()
        missing = peer.missing()
        if missing and isinstance(peer, Netbore):
            raise StartError(f"{missing} is not installed")
        if missing:
            print(f"{peer.name} is left out: {missing} is not installed", file=sys.stderr)
        else:
            usable.append(peer)
    return usable


def measure_table(options: argparse.Namespace) -> int:
    """Run the rounds and print the table; return 1 if anything failed."""
    for program in ("nginx", "wrk", "curl"):
        if find(program) is None:
            raise StartError(f"{program} is not installed; it is the Host or the load, so nothing can be measured")
    rounds, seconds, size = (3, 2, 64 * MIB) if options.quick else (5, 5, 300 * MIB)
    rows = [row for row in ROWS if row.name in options.rows]
    plan = Plan(options.rounds or rounds, options.seconds or seconds, size, rows)
    peers = chosen_peers(options.only, options.carrier)
    results = run_plan(peers, plan)
    shown = [peer.name for peer in peers]
    print(as_text(results, plan, shown))
    if options.json:
        options.json.write_text(json.dumps(as_json(results, plan, shown), indent=1) + "\n")
    return 1 if results.faults else 0


def main() -> int:
    """Run the command; SIGTERM ends it as an interrupt does, so that what was started is stopped."""
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if options.what == "outside-h11":
            print(outside_h11(options.seconds or 20, options.carrier))
            return 0
        return measure_table(options)
    except (StartError, LoadError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
