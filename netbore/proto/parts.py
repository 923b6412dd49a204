"""Bytes in several parts: large ones are passed on as they are and never joined, small neighbours become one.

What leaves a Link goes through here twice, and a body through none of it by copy: the Pipe packs a flush, the WebSocket carrier
its frames. Parts are immutable from then on, whoever holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from netbore.proto.stream import COPY_BELOW, Data

#: What is together no longer than this is joined whatever its pieces are: that costs less than to look at each.
JOIN_MOST: Final = 4 * COPY_BELOW


def pack(pieces: Sequence[Data | bytearray]) -> list[Data]:
    """Join small neighbours, so that few parts leave; large ones stay as they are."""
    if not pieces:
        return []
    if size(pieces) <= JOIN_MOST:
        return [b"".join(pieces)]
    parts: list[Data] = []
    small: list[Data | bytearray] = []
    for piece in pieces:
        if len(piece) < COPY_BELOW:
            small.append(piece)
            continue
        if small:
            parts.append(b"".join(small))
            small.clear()
        parts.append(piece)  # type: ignore[arg-type]  # bytearrays are small
    if small:
        parts.append(b"".join(small))
    return parts


def size(parts: Sequence[Data | bytearray]) -> int:
    """How many bytes they are together."""
    return len(parts[0]) if len(parts) == 1 else sum(map(len, parts))


def cut(parts: list[Any], limit: int) -> list[Any]:
    """Shorten a list of parts or pieces to `limit` bytes together, and return what was cut off, in the same order."""
    over = size(parts) - limit
    rest: list[Any] = []
    while over > 0:
        part = memoryview(parts.pop())
        keep = max(0, len(part) - over)
        rest.insert(0, part[keep:])
        over -= len(part) - keep
        if keep:
            parts.append(part[:keep])
    return rest
