"""Frames to bytes and back, however the bytes are split."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbore.proto import frames
from netbore.proto.errors import LocalProtocolError, RemoteProtocolError
from netbore.proto.frames import FrameReader, Open
from netbore.proto.wire import MAX_FACTS, MAX_MESSAGE, Code, Frame

ENCODED = [
    (frames.encode(Frame.FIN, 3), "03000000 00000003"),
    (frames.encode(Frame.DATA, 1, b"ab"), "01000002 00000001 6162"),
    (frames.encode_open(5, 1, 2, 7, window=262144, facts=b""), "0200000c 00000005 01020000 00000007 00040000"),
    (frames.encode_open(5, 2, 0, 7, window=1, facts=b"{}"), "0200000e 00000005 02000000 00000007 00000001 7b7d"),
    (frames.encode_stop(2, 17), "04000002 00000002 0011"),
    (frames.encode_reset(2, 16, 258), "0500000a 00000002 0010 0000000000000102"),
    (frames.encode_window(9, 65536), "06000004 00000009 00010000"),
    (frames.encode_max_streams(1030), "07000004 00000000 00000406"),
    (frames.encode_goaway(6), "08000004 00000000 00000006"),
    (frames.encode_move(500), "09000002 00000000 01f4"),
]


class Taker:
    """Stands where a Stream stands, and has a sink that listens or not."""

    def __init__(self, log: list[Any], listens: bool) -> None:
        self.log = log
        self.direct = self if listens else None
        self.credit_out = 10**6
        self.unconsumed = 0

    def on_data(self, data: Any) -> None:
        if bytes(data) == b"boom":
            raise ValueError
        self.log.append(bytes(data))

    def arrive(self, data: Any) -> None:
        self.on_data(data)


def reader(log: list[Any], listens: bool = True) -> FrameReader:
    taker: Any = Taker(log, listens)

    def admit(stream_id: int, length: int) -> Any:
        return taker if stream_id == 1 else None

    return FrameReader(
        {1: taker} if listens else {}, admit, lambda *frame: log.append(frame), lambda stream, error: log.append(type(error))
    )


def read(pieces: list[bytes], listens: bool = True) -> list[Any]:
    """What a reader makes of `pieces`, neighbouring data joined."""
    log: list[Any] = []
    frame_reader = reader(log, listens)
    for piece in pieces:
        frame_reader.feed(piece)
    return list(joined(log))


def joined(log: list[Any]) -> Iterator[Any]:
    data = b""
    for entry in log:
        if isinstance(entry, bytes):
            data += entry
            continue
        if data:
            yield data
        data = b""
        yield entry
    if data:
        yield data


def single_bytes(data: bytes) -> list[bytes]:
    return [data[n : n + 1] for n in range(len(data))]


@pytest.mark.parametrize(("encoded", "hexadecimal"), ENCODED)
def test_encoding(encoded: bytes, hexadecimal: str) -> None:
    assert encoded == bytes.fromhex(hexadecimal)


@pytest.mark.parametrize(("encoded", "hexadecimal"), ENCODED)
def test_decoding_three_ways(encoded: bytes, hexadecimal: str) -> None:
    kind, stream_id, payload = encoded[0], int.from_bytes(encoded[4:8], "big"), encoded[8:]
    whole: list[Any] = [payload] if kind == Frame.DATA else [(kind, stream_id, payload)]
    fin = frames.encode(Frame.FIN, 3)
    assert read([encoded]) == whole
    assert read(single_bytes(encoded)) == whole
    assert read([encoded + fin[:5], fin[5:]]) == [*whole, (Frame.FIN, 3, b"")]


SAMPLE = b"".join(
    [
        *(encoded for encoded, _ in ENCODED),
        frames.encode(Frame.DATA, 1, b"z" * 5000),
        frames.encode(Frame.DATA, 99, b"for nobody"),
        b"\x80\x00\x00\x05\x00\x00\x00\x09skipp",
        b"\xff\x00\x00\x00\x00\x00\x00\x09",
        frames.encode(Frame.RECALL, 4, b"r" * 64),
        frames.encode(Frame.DATA, 1, b"end"),
    ]
)


@pytest.mark.parametrize("listens", [True, False])
def test_byte_by_byte_equals_whole(listens: bool) -> None:
    whole = read([SAMPLE], listens)
    assert (0x80, 9, b"") in whole
    assert (0xFF, 9, b"") in whole
    assert b"z" * 5000 + b"end" in b"".join(entry for entry in whole if isinstance(entry, bytes))
    assert read(single_bytes(SAMPLE), listens) == whole


@given(st.lists(st.integers(0, len(SAMPLE)), max_size=20), st.booleans())
def test_any_split_equals_whole(cuts: list[int], views: bool) -> None:
    edges = [0, *sorted(cuts), len(SAMPLE)]
    view: Any = memoryview(SAMPLE) if views else SAMPLE
    assert read([view[a:b] for a, b in itertools.pairwise(edges)]) == read([SAMPLE])


def test_data_is_given_as_it_comes() -> None:
    log: list[Any] = []
    frame_reader = reader(log)
    encoded = frames.encode(Frame.DATA, 1, b"abcdef")
    frame_reader.feed(encoded[:10])
    assert log == [b"ab"]
    taker, left = frame_reader.under_way
    assert taker is not None
    assert left == 4
    frame_reader.feed(encoded[10:])
    assert log == [b"ab", b"cdef"]
    assert frame_reader.under_way[1] == 0
    assert frame_reader.data_frames == 1


def test_large_data_is_not_copied() -> None:
    seen: list[Any] = []
    taker: Any = Taker([], True)
    taker.on_data = seen.append
    frame_reader = FrameReader({1: taker}, lambda *a: None, lambda *a: None, lambda *a: None)
    data = frames.encode(Frame.DATA, 1, b"x" * 4096) + frames.encode(Frame.DATA, 1, b"y" * 4095)
    frame_reader.feed(data)
    assert [type(chunk) for chunk in seen] == [memoryview, bytes]
    assert seen[0].obj is data


def test_what_a_sink_raises_is_told_and_reading_goes_on() -> None:
    data = frames.encode(Frame.DATA, 1, b"boom") + frames.encode(Frame.DATA, 1, b"fine")
    assert read([data]) == [ValueError, b"fine"]


@pytest.mark.parametrize(
    "header",
    [
        "01000000 00000001",  # DATA of nothing
        "01040001 00000001",  # DATA too long
        "03000001 00000001",  # FIN with a payload
        "0200000b 00000001",
        "0200100d 00000001",
        "04000003 00000001",
        "0a000041 00000001",
        "00000000 00000001",  # no such type
        "0c000000 00000001",
        "7f000000 00000001",
        "80010001 00000001",  # too much to skip
    ],
)
@pytest.mark.parametrize("listens", [True, False])
def test_wrong_headers_are_refused_before_their_payload(header: str, listens: bool) -> None:
    for pieces in ([bytes.fromhex(header)], single_bytes(bytes.fromhex(header))):
        with pytest.raises(RemoteProtocolError) as caught:
            read(pieces, listens)
        assert caught.value.code is Code.PROTOCOL_ERROR


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_random_bytes_give_frames_or_an_error(pieces: list[bytes]) -> None:
    try:
        read(pieces)
    except RemoteProtocolError as error:
        assert error.text  # noqa: PT017


def test_open() -> None:
    payload = ENCODED[2][0][8:]
    assert frames.decode_open(payload) == Open(1, 2, 7, 262144, None)
    assert frames.decode_open(payload + b'{"viewer":"a"}') == Open(1, 2, 7, 262144, {"viewer": "a"})
    with pytest.raises(RemoteProtocolError, match="reserved"):
        frames.decode_open(payload[:2] + b"\x00\x01" + payload[4:])


@pytest.mark.parametrize("text", [b"", b"{", b"\xff{}", b"1" * 5000, b"[" * 16000, b"NaN5"])
def test_what_is_not_json_is_the_peers_error(text: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="not JSON"):
        frames.parse_object(text)


@pytest.mark.parametrize("text", [b"[]", b"3", b'"a"', b"null"])
def test_json_must_be_an_object(text: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="not an object"):
        frames.parse_object(text)


def test_facts_and_messages_have_a_limit() -> None:
    assert frames.encode_facts(None) == b""
    assert frames.encode_facts({"a": 1}) == b'{"a":1}'
    assert len(frames.encode_facts({"a": "x" * (MAX_FACTS - 8)})) == MAX_FACTS
    with pytest.raises(LocalProtocolError):
        frames.encode_facts({"a": "x" * (MAX_FACTS - 7)})
    assert frames.encode_message({"a": "\u00e9\n"}) == b'{"a":"\\u00e9\\n"}\n'
    assert len(frames.encode_message({"a": "x" * (MAX_MESSAGE - 8)})) == MAX_MESSAGE + 1
    with pytest.raises(LocalProtocolError):
        frames.encode_message({"a": "x" * (MAX_MESSAGE - 7)})
