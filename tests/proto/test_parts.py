"""Parts: what is joined and what is passed on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netbore.proto.parts import JOIN_MOST, cut, pack, size
from netbore.proto.stream import COPY_BELOW

PIECES = st.lists(st.integers(0, 3 * COPY_BELOW).map(bytes) | st.binary(max_size=9) | st.binary(max_size=9).map(bytearray))


@given(PIECES)
def test_packing_changes_nothing_but_the_borders(pieces: list[bytes | bytearray]) -> None:
    parts = pack(pieces)
    assert b"".join(parts) == b"".join(pieces)
    assert len(parts) <= max(1, len(pieces))
    assert all(isinstance(part, bytes) for part in parts)


def test_what_is_short_together_is_one_part() -> None:
    assert pack([]) == []
    assert pack([b"a", bytearray(b"b"), b"c" * (JOIN_MOST - 2)]) == [b"ab" + b"c" * (JOIN_MOST - 2)]


def test_large_parts_are_not_copied_and_small_neighbours_joined() -> None:
    large, small = bytes(JOIN_MOST), b"x" * (COPY_BELOW - 1)
    parts = pack([b"a", b"b", large, small, large, b"c"])
    assert parts == [b"ab", large, small, large, b"c"]
    assert parts[1] is parts[3] is large


@given(PIECES, st.data())
def test_cutting_loses_nothing(pieces: list[bytes | bytearray], data: st.DataObject) -> None:
    whole = b"".join(pieces)
    limit = data.draw(st.integers(0, len(whole)))
    rest = cut(pieces, limit)
    assert size(pieces) == limit
    assert b"".join(pieces) + b"".join(rest) == whole
