"""Records, the Pipe's units on a transport: their encoders and their decoder (docs/protocol.md section 2).

Theory of operation. The decoder is fed whatever the transport gave and is then asked for one record after another, so
that its user can stop between two of them: the handshake takes single records, and hands what follows (`leftover`) to
the Pipe.

- A SEQ is never gathered. Its payload comes out as it came in, in slices of the fed buffer, without a copy; so a SEQ may
  come out as many pieces, and its end is of no interest to anyone.
- Every other record is short, and comes out whole, as bytes. An incomplete one waits as the undecoded rest, which is
  joined to the next feed; it is at most a header and the record's limit, for the limit is checked as soon as the
  header is there.
- What a reader may skip (unknown types with the high bit, DATAGRAM) comes out once, empty, so that it can be counted;
  its payload is dropped as it comes.
- A violation is raised where it stands, again at every further call: nothing after it has a meaning.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from netbore.proto.errors import LocalProtocolError, RemoteProtocolError
from netbore.proto.stream import Data
from netbore.proto.wire import (
    MAX_SEQ,
    MAX_SKIPPED,
    RECORD_HEADER,
    RECORD_LENGTHS,
    SKIPPABLE,
    U16,
    U64,
    Code,
    Record,
)

#: Plain ints: comparing with a member of an enumeration costs three times as much.
SEQ: Final = int(Record.SEQ)
HEADER: Final = RECORD_HEADER.size
#: Bytes of an ACK, PING or PONG.
NUMBER_RECORD: Final = HEADER + U64.size

_SEQ_WORD: Final = SEQ << 24
_LENGTH: Final = 0xFFFFFF
_NUMBER: Final = Struct(">IQ")
_EMPTY: Final = memoryview(b"")

#: Shortest and longest payload of the records that come out whole.
_WHOLE: Final[dict[int, tuple[int, int]]] = {
    **{kind: (0, most) for kind, most in RECORD_LENGTHS.items() if kind not in (Record.SEQ, Record.DATAGRAM)},
    **dict.fromkeys((Record.ACK, Record.PING, Record.PONG), (U64.size, U64.size)),
    Record.CLOSE: (U16.size, RECORD_LENGTHS[Record.CLOSE]),
}


def encode_seq_header(count: int) -> bytes:
    """The header of a SEQ whose payload, `count` bytes (at most MAX_SEQ), follows."""
    return RECORD_HEADER.pack(_SEQ_WORD | count)


def encode_number(kind: Record, number: int) -> bytes:
    """An ACK, PING or PONG."""
    return _NUMBER.pack(kind << 24 | U64.size, number)


def encode_close(code: int, text: str) -> bytes:
    """A CLOSE; a text that is too long is cut."""
    most = RECORD_LENGTHS[Record.CLOSE] - U16.size
    cut = text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")
    return encode_record(Record.CLOSE, U16.pack(code) + cut.encode())


def encode_record(kind: Record, payload: bytes) -> bytes:
    """Any record. Raises LocalProtocolError where the payload is longer than its table allows."""
    if len(payload) > RECORD_LENGTHS[kind]:
        raise LocalProtocolError(Code.LIMIT_EXCEEDED, f"a {kind.name} of {len(payload)} bytes")
    return RECORD_HEADER.pack(kind << 24 | len(payload)) + payload


def decode_number(payload: Data) -> int:
    """The number in an ACK, PING or PONG."""
    number: int = U64.unpack(payload)[0]
    return number


def decode_close(payload: bytes) -> tuple[int, str]:
    """Code and text of a CLOSE. The code may be one that we do not know; bytes that are not UTF-8 are replaced."""
    return U16.unpack_from(payload)[0], payload[U16.size :].decode("utf-8", "replace")


class RecordDecoder:
    """Bytes in, records out. `feed`, then `next` until it gives None."""

    __slots__ = ("_at", "_data", "_end", "_left", "_skipping")

    def __init__(self) -> None:
        self._data = _EMPTY
        self._at = 0
        self._end = 0
        self._left = 0  # payload of the SEQ or skipped record in progress that is still to come
        self._skipping = False

    def feed(self, data: Data) -> None:
        """Take the next bytes of the transport. They are referenced until they are decoded, not copied."""
        if self._at < self._end:
            data = b"".join((self._data[self._at :], data))
        self._data = memoryview(data)
        self._at = 0
        self._end = len(data)

    def next(self) -> tuple[int, Data] | None:
        """The next record as (type, payload), or None when more bytes are needed.

        A SEQ's payload is a piece of at least one byte, a skipped record's is empty. Raises RemoteProtocolError
        (protocol_error).
        """
        while True:
            if self._left:
                piece = self._take()
                if not self._skipping or not piece:
                    return (SEQ, piece) if piece else None
                continue
            at = self._at
            if self._end - at < HEADER:
                self._let_go()
                return None
            word: int = RECORD_HEADER.unpack_from(self._data, at)[0]
            kind = word >> 24
            length = word & _LENGTH
            if kind == SEQ and length <= MAX_SEQ:
                self._at = at + HEADER
                self._left = length
                self._skipping = False
            elif kind in _WHOLE:
                return self._whole(kind, length)
            else:
                return self._skip(kind, length)

    def receive_one(self, data: Data, expected: frozenset[Record]) -> tuple[Record, bytes] | None:
        """Take `data`, which may be empty, and return the next record when it is whole; what follows it stays.

        For the handshake: raises RemoteProtocolError for a record that is not `expected`, as soon as its type is there.
        """
        self.feed(data)
        if self._at < self._end and self._data[self._at] not in expected:
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, f"a record of type {self._data[self._at]:#04x} in the handshake")
        record = self.next()
        return None if record is None else (Record(record[0]), bytes(record[1]))

    def leftover(self) -> bytes:
        """Hand over what was fed and not yet decoded; the decoder is then empty.

        Raises LocalProtocolError within a SEQ or skipped record, whose beginning is gone.
        """
        if self._left:
            raise LocalProtocolError(Code.INTERNAL_ERROR, "leftover within a record")
        rest = bytes(self._data[self._at : self._end])
        self._data = _EMPTY
        self._at = self._end = 0
        return rest

    def _take(self) -> Data:
        """The piece of the streamed payload that is there; empty when none is."""
        at = self._at
        end = min(at + self._left, self._end)
        if at == end:
            self._let_go()
            return b""
        self._at = end
        self._left -= end - at
        return self._data[at:end]

    def _let_go(self) -> None:
        """Let go of a read buffer that is used up: an idle Link must not pin it."""
        if self._at == self._end:
            self._data = _EMPTY
            self._at = self._end = 0

    def _whole(self, kind: int, length: int) -> tuple[int, bytes] | None:
        least, most = _WHOLE[kind]
        if not least <= length <= most:
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, f"a {Record(kind).name} of {length} bytes")
        start = self._at + HEADER
        if self._end - start < length:
            return None
        self._at = start + length
        return kind, bytes(self._data[start : self._at])

    def _skip(self, kind: int, length: int) -> tuple[int, bytes]:
        if not (kind & SKIPPABLE or kind == Record.DATAGRAM) or length > MAX_SKIPPED:
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, f"a record of type {kind:#04x} and {length} bytes")
        self._at += HEADER
        self._left = length
        self._skipping = True
        return kind, b""
