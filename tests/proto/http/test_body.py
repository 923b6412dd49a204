"""Body readers alone; framing errors are in the corpus of test_codec."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbore.proto.http.body import ChunkedBody, LengthBody, UntilCloseBody, body_reader
from netbore.proto.http.head import HttpLimits
from netbore.proto.http.messages import BadMessage, Framing, Headers, Piece
from netbore.proto.stream import Data


def slices(pieces: list[Piece]) -> list[Data]:
    return [piece for piece in pieces if isinstance(piece, bytes | memoryview)]


def run(reader: ChunkedBody, parts: list[Data]) -> tuple[bytes, Data]:
    """The body, and what was left of the part that ended it."""
    pieces: list[Piece] = []
    for part in parts:
        at = reader.take(part, 0, pieces)
        if reader.done:
            return b"".join(slices(pieces)), part[at:]
        assert at == len(part)
    raise AssertionError("not done")


def test_which_reader() -> None:
    assert body_reader(Framing.NONE) is None
    assert body_reader(Framing.LENGTH(0)) is None
    assert isinstance(body_reader(Framing.LENGTH(1)), LengthBody)
    assert isinstance(body_reader(Framing.CHUNKED), ChunkedBody)
    assert isinstance(body_reader(Framing.UNTIL_CLOSE), UntilCloseBody)


def test_length() -> None:
    reader = LengthBody(5)
    pieces: list[Piece] = []
    data = b"--hel"
    assert reader.take(data, 2, pieces) == 5
    assert not reader.done
    assert not reader.take_eof()
    assert reader.take(b"lo--", 0, pieces) == 2
    assert reader.done
    assert slices(pieces) == [b"hel", b"lo"]
    assert isinstance(pieces[0], memoryview)
    assert pieces[0].obj is data


def test_until_close() -> None:
    reader = UntilCloseBody()
    pieces: list[Piece] = []
    data = b"hello"
    assert reader.take(data, 0, pieces) == 5
    assert pieces[0] is data
    assert not reader.done
    assert reader.take_eof()
    assert reader.done


@pytest.mark.parametrize(
    ("text", "body", "trailers"),
    [
        (b"0\r\n\r\n", b"", ()),
        (b"0000000000000000\r\n\r\n", b"", ()),
        (b"1\r\na\r\n0;x\r\nA: b\r\nC:d\r\n\r\n", b"a", ((b"A", b"b"), (b"C", b"d"))),
        (b"000000000000000a\r\n0123456789\r\n0\r\n\r\n", b"0123456789", ()),
        (b'1;a;b=c;d="e\\" ;\t\xe4"\r\n\r\r\n1;=\r\n', None, ()),
        (b'1;a;b=c;d="e\\" ;\t\xe4"\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n', b"\r\n", ()),
    ],
)
def test_chunked(text: bytes, body: bytes | None, trailers: Headers) -> None:
    for parts in ([text + b"next"], [memoryview(text + b"next")], [text[at : at + 1] for at in range(len(text))]):
        reader = ChunkedBody()
        if body is None:
            with pytest.raises(BadMessage, match="bad chunk line"):
                run(reader, list(parts))
            continue
        assert run(reader, list(parts)) == (body, b"next" if len(parts) == 1 else b"")
        assert reader.trailers == trailers
        assert not reader.take_eof()


def test_chunks_are_slices_of_what_came() -> None:
    pieces: list[Piece] = []
    data = b"5\r\nhello\r\n6\r\n worl"
    reader = ChunkedBody()
    reader.take(data, 0, pieces)
    assert slices(pieces) == [b"hello", b" worl"]
    assert all(isinstance(piece, memoryview) and piece.obj is data for piece in pieces)
    rest = b"d"
    reader.take(rest, 0, pieces)
    assert pieces[2] is rest


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=20), max_size=6),
    extension=st.sampled_from([b"", b";a", b";a=b", b';a="b;\\"c"']),
    cuts=st.lists(st.integers(0, 300), max_size=8),
    upper=st.booleans(),
)
def test_any_chunking_and_any_cuts(chunks: list[bytes], extension: bytes, cuts: list[int], upper: bool) -> None:
    sizes = [(b"%X" if upper else b"%x") % len(chunk) for chunk in chunks]
    text = b"".join(size + extension + b"\r\n" + chunk + b"\r\n" for size, chunk in zip(sizes, chunks, strict=True))
    text += b"0" + extension + b"\r\nX: y\r\n\r\n"
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    reader = ChunkedBody()
    parts: list[Data] = [text[a:b] for a, b in pairwise(places)]
    assert run(reader, parts) == (b"".join(chunks), b"")
    assert reader.trailers == ((b"X", b"y"),)


def test_own_limits() -> None:
    limits = HttpLimits(chunk_line=5, trailers=12, headers=1)
    assert run(ChunkedBody(limits), [b"1;abc", b"\r", b"\nx\r\n0\r\nA: b\r\n\r\n"])[0] == b"x"
    for text in (b"1;abcd\r\n", b"1;abcde", b"0\r\nA: bcdef\r\n\r\n", b"0\r\nA: bcdefghi", b"0\r\nA:\r\nB:\r\n\r\n"):
        for parts in ([text], [text[:2], text[2:]]):
            reader = ChunkedBody(limits)
            *first, last = parts
            for part in first:
                reader.take(part, 0, [])
            with pytest.raises(BadMessage):
                reader.take(last, 0, [])
