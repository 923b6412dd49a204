"""docs/protocol.md is the source of every number; wire.py mirrors it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from netbore.proto import wire

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def table(*columns: str) -> list[list[str]]:
    """The rows of the one table of the page with exactly these column heads."""
    lines = PAGE.splitlines()
    starts = [n for n, line in enumerate(lines) if [c.strip() for c in line.strip("|").split("|")] == list(columns)]
    assert len(starts) == 1, f"{len(starts)} tables with the columns {columns}"
    rows = []
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_carriers() -> None:
    told = dict(table("carrier", "how"))
    assert f"path `{wire.LINK_PATH}`" in told["WSS"]
    assert f"`Sec-WebSocket-Protocol: {wire.SUBPROTOCOL}`" in told["WSS"]
    assert f"ALPN `{wire.ALPN}`" in told["TLS"]


def test_records() -> None:
    rows = table("record", "type", "payload", "most bytes")
    assert [(name, int(number, 16)) for name, number, _, _ in rows] == [(r.name, r.value) for r in wire.Record]
    assert {wire.Record[name]: int(most) for name, _, _, most in rows} == wire.RECORD_LENGTHS


def test_frames() -> None:
    rows = table("frame", "type", "payload", "length")
    assert [(name, int(number, 16)) for name, number, _, _ in rows] == [(f.name, f.value) for f in wire.Frame]
    spans = {wire.Frame[name]: tuple(map(int, re.findall(r"\d+", length))) for name, _, _, length in rows}
    assert {frame: (span[0], span[-1]) for frame, span in spans.items()} == wire.FRAME_LENGTHS


def test_kinds() -> None:
    rows = table("kind", "value", "facts")
    assert [(name, int(value)) for name, value, _ in rows] == [(kind.name.lower(), kind.value) for kind in wire.Kind]


def test_codes() -> None:
    rows = table("code", "name", "meaning")
    assert [(int(number), name) for number, name, _ in rows] == [(code.value, code.name.lower()) for code in wire.Code]
    assert {wire.Code[name.upper()] for _, name, meaning in rows if meaning.endswith("final")} == wire.FINAL


@pytest.mark.parametrize("row", table("limit", "default", "what happens beyond it"), ids=lambda row: row[0])
def test_limits(row: list[str]) -> None:
    name, default, _ = row
    assert getattr(wire, name) == float(default)


def test_every_limit_is_on_the_page() -> None:
    named = {name for name, value in vars(wire).items() if name.isupper() and isinstance(value, int | float)}
    documented = {row[0] for row in table("limit", "default", "what happens beyond it")}
    assert named - documented == {"MAX_OFFSET", "MAX_ID", "MAX_CREDIT", "SKIPPABLE", "MAX_SKIPPED"}


def test_host_ended() -> None:
    """Section 4.2 names the codes 18 to 22."""
    assert sorted(wire.HOST_ENDED) == list(range(18, 23))
