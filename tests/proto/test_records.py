"""Records: encoders and decoder are the same table, read both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbore.proto import records
from netbore.proto.errors import LocalProtocolError, RemoteProtocolError
from netbore.proto.records import RecordDecoder, decode_close, decode_number, encode_close, encode_number, encode_record
from netbore.proto.stream import Data
from netbore.proto.wire import MAX_SEQ, RECORD_HEADER, RECORD_LENGTHS, Code, Record

#: (encoded, type, payload)
TABLE = [
    (records.encode_seq_header(3) + b"abc", Record.SEQ, b"abc"),
    (encode_number(Record.ACK, 2**53 - 1), Record.ACK, bytes.fromhex("001fffffffffffff")),
    (encode_number(Record.PING, 7), Record.PING, bytes.fromhex("0000000000000007")),
    (encode_number(Record.PONG, 2**64 - 1), Record.PONG, b"\xff" * 8),
    (encode_close(8, "replaced"), Record.CLOSE, b"\x00\x08replaced"),
    (encode_close(0, ""), Record.CLOSE, b"\x00\x00"),
    (encode_record(Record.HELLO, b"{}"), Record.HELLO, b"{}"),
    (encode_record(Record.WELCOME, b"x" * 8192), Record.WELCOME, b"x" * 8192),
    (encode_record(Record.RESUME, b""), Record.RESUME, b""),
    (encode_record(Record.RESUMED, b"[]"), Record.RESUMED, b"[]"),
    (encode_record(Record.REJECT, b"no"), Record.REJECT, b"no"),
    (encode_record(Record.DATAGRAM, b"later"), Record.DATAGRAM, b""),
    (bytes.fromhex("80000003") + b"new", 0x80, b""),
    (bytes.fromhex("ff000000"), 0xFF, b""),
]


def drain(decoder: RecordDecoder) -> list[tuple[int, bytes]]:
    """All records that are there, pieces of SEQs that follow each other joined."""
    found: list[tuple[int, bytes]] = []
    while (record := decoder.next()) is not None:
        join(found, record)
    return found


def join(found: list[tuple[int, bytes]], record: tuple[int, Data]) -> None:
    kind, payload = record
    if kind == Record.SEQ and found and found[-1][0] == Record.SEQ:
        payload = found.pop()[1] + payload
    found.append((kind, bytes(payload)))


def decode_in_pieces(data: bytes, sizes: list[int]) -> list[tuple[int, bytes]]:
    decoder = RecordDecoder()
    found: list[tuple[int, bytes]] = []
    at = 0
    for size in [*sizes, len(data)]:
        decoder.feed(data[at : at + size])
        for record in drain(decoder):
            join(found, record)
        at += size
    return found


@pytest.mark.parametrize(("encoded", "kind", "payload"), TABLE)
def test_table(encoded: bytes, kind: int, payload: bytes) -> None:
    """Whole, byte by byte, and with the beginning of another record behind, each record comes out the same."""
    expected = [(kind, payload)]
    assert decode_in_pieces(encoded, []) == expected
    assert decode_in_pieces(encoded, [1] * len(encoded)) == expected
    decoder = RecordDecoder()
    decoder.feed(encoded + b"\x01\x00")
    assert drain(decoder) == expected
    assert decoder.leftover() == b"\x01\x00"
    assert decoder.leftover() == b""


@given(st.lists(st.sampled_from(TABLE)), st.lists(st.integers(0, 3000)))
def test_any_split(chosen: list[tuple[bytes, int, bytes]], sizes: list[int]) -> None:
    """How the transport splits the bytes makes no difference."""
    expected: list[tuple[int, bytes]] = []
    for _, kind, payload in chosen:
        join(expected, (kind, payload))
    assert decode_in_pieces(b"".join(encoded for encoded, _, _ in chosen), sizes) == expected


def test_a_whole_record_needs_its_last_byte() -> None:
    for encoded, kind, _ in TABLE:
        if kind not in (Record.SEQ, Record.DATAGRAM) and kind < 0x80:
            decoder = RecordDecoder()
            decoder.feed(encoded[:-1])
            assert decoder.next() is None
            assert decoder.leftover() == encoded[:-1]


def test_sequence_bytes_are_not_copied() -> None:
    read = records.encode_seq_header(65536) + bytes(65536)
    decoder = RecordDecoder()
    decoder.feed(read)
    record = decoder.next()
    assert record is not None
    assert type(record[1]) is memoryview
    assert record[1].obj is read
    assert len(record[1]) == 65536


def test_sequence_bytes_do_not_wait_for_the_end_of_their_record() -> None:
    decoder = RecordDecoder()
    decoder.feed(records.encode_seq_header(MAX_SEQ) + b"ab")
    assert drain(decoder) == [(Record.SEQ, b"ab")]
    decoder.feed(b"cd")
    assert drain(decoder) == [(Record.SEQ, b"cd")]
    with pytest.raises(LocalProtocolError):
        decoder.leftover()


def test_an_empty_sequence_record_is_nothing() -> None:
    assert decode_in_pieces(records.encode_seq_header(0) + TABLE[1][0], []) == [(Record.ACK, TABLE[1][2])]


def test_used_up_buffer_is_let_go() -> None:
    decoder = RecordDecoder()
    for read in (TABLE[1][0], TABLE[0][0], TABLE[12][0]):
        decoder.feed(read)
        assert len(drain(decoder)) == 1
        assert decoder._data.obj == b""


VIOLATIONS = [
    *(RECORD_HEADER.pack(kind << 24 | most + 1) for kind, most in RECORD_LENGTHS.items()),
    *(RECORD_HEADER.pack(kind << 24 | 7) for kind in (Record.ACK, Record.PING, Record.PONG)),
    RECORD_HEADER.pack(Record.CLOSE << 24 | 1),
    RECORD_HEADER.pack(0x00 << 24),
    RECORD_HEADER.pack(0x7F << 24),
    RECORD_HEADER.pack(0x07 << 24 | 1),
    RECORD_HEADER.pack(0x80 << 24 | 65537),
]


@pytest.mark.parametrize("header", VIOLATIONS)
def test_violations(header: bytes) -> None:
    """The header alone is enough to refuse a record, and refusing is for good."""
    decoder = RecordDecoder()
    decoder.feed(TABLE[1][0] + header)
    assert decoder.next() == (Record.ACK, TABLE[1][2])
    for _ in range(2):
        with pytest.raises(RemoteProtocolError) as caught:
            decoder.next()
        assert caught.value.code is Code.PROTOCOL_ERROR
        assert str(caught.value).startswith("protocol_error: a")


@given(st.binary(max_size=200), st.lists(st.integers(1, 20)))
def test_random_bytes(data: bytes, sizes: list[int]) -> None:
    """Anything gives records or RemoteProtocolError, the same for every split, and holds at most one unfinished record."""

    def outcome(pieces: list[int]) -> tuple[list[tuple[int, bytes]], bool]:
        decoder = RecordDecoder()
        found: list[tuple[int, bytes]] = []
        at = 0
        for size in [*pieces, len(data)]:
            decoder.feed(data[at : at + size])
            at += size
            try:
                while (record := decoder.next()) is not None:
                    join(found, record)
            except RemoteProtocolError:
                return found, True
        return found, False

    assert outcome([]) == outcome(sizes) == outcome([1] * len(data))


def test_handshake_takes_one_record_and_leaves_the_rest() -> None:
    decoder = RecordDecoder()
    hello = encode_record(Record.HELLO, b"{}")
    expected = frozenset({Record.HELLO})
    assert decoder.receive_one(hello[:5], expected) is None
    assert decoder.receive_one(hello[5:] + TABLE[1][0], expected) == (Record.HELLO, b"{}")
    with pytest.raises(RemoteProtocolError, match="type 0x02 in the handshake"):
        decoder.receive_one(b"", expected)
    assert decoder.leftover() == TABLE[1][0]
    assert decoder.receive_one(b"", expected) is None


@pytest.mark.parametrize("first", [b"\x01", b"\x80", b"\x06", b"\x11"])
def test_handshake_refuses_other_records_by_their_type(first: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        RecordDecoder().receive_one(first, frozenset({Record.HELLO}))


def test_our_own_records_keep_the_limits() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        encode_record(Record.HELLO, bytes(8193))
    assert caught.value.code is Code.LIMIT_EXCEEDED


@given(st.integers(0, 65535), st.text(max_size=2000))
def test_close_text(code: int, text: str) -> None:
    """A CLOSE carries any code and text, cut to the limit at a whole character."""
    [(kind, payload)] = decode_in_pieces(encode_close(code, text), [])
    assert kind == Record.CLOSE
    got_code, got = decode_close(payload)
    assert got_code == code
    assert text.startswith(got)
    assert got == text or len(got.encode()) > 1022 - 4


def test_close_text_that_is_not_unicode() -> None:
    assert decode_close(b"\x00\x01a\xff") == (1, "a\ufffd")
    assert encode_close(1, "a\ud800") == encode_close(1, "a?")


def test_numbers() -> None:
    assert decode_number(TABLE[1][2]) == 2**53 - 1
