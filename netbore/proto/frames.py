"""Frames to bytes and back (docs/protocol.md section 4).

Theory of operation. `FrameReader` cuts the sequence into frames wherever it was split. A DATA frame is admitted once, by its
header, for its whole length, and its payload then goes to the Stream piece by piece, so nothing is put together and a
piece is delivered in the call that brought it. What is to be skipped takes the same way, to nobody. Every other frame is short:
it is collected, if need be, and handed over whole. The header of each frame is unpacked once; the common case, a DATA frame
for a Stream whose sink listens, is written out in `feed` because it is the hot path.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import attrs

from netbore.proto.errors import LocalProtocolError, RemoteProtocolError
from netbore.proto.mux_stream import MuxStream
from netbore.proto.stream import COPY_BELOW, Data
from netbore.proto.wire import (
    FRAME_HEADER,
    FRAME_LENGTHS,
    MAX_DATA,
    MAX_FACTS,
    MAX_MESSAGE,
    MAX_SKIPPED,
    OPEN_HEAD,
    RESET_BODY,
    SKIPPABLE,
    U16,
    U32,
    Code,
    Frame,
)

_HEADER: Final = FRAME_HEADER.size
_LENGTHS: Final = {int(kind): lengths for kind, lengths in FRAME_LENGTHS.items()}
_DATA: Final = int(Frame.DATA)


def encode(kind: Frame, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return FRAME_HEADER.pack(kind << 24 | len(payload), stream_id) + payload


def encode_open(stream_id: int, kind: int, hops: int, handle: int, *, window: int, facts: bytes) -> bytes:
    """OPEN: `window` is the opener's receive window in bytes, `facts` JSON or nothing."""
    return encode(Frame.OPEN, stream_id, OPEN_HEAD.pack(kind, hops, 0, handle, window) + facts)


def encode_stop(stream_id: int, code: int) -> bytes:
    """STOP."""
    return encode(Frame.STOP, stream_id, U16.pack(code))


def encode_reset(stream_id: int, code: int, delivered: int) -> bytes:
    """RESET: `delivered` bytes of the peer's DATA reached their end."""
    return encode(Frame.RESET, stream_id, RESET_BODY.pack(code, delivered))


def encode_window(stream_id: int, increment: int) -> bytes:
    """WINDOW: `increment` more bytes of credit."""
    return encode(Frame.WINDOW, stream_id, U32.pack(increment))


def encode_max_streams(count: int) -> bytes:
    """MAX_STREAMS: the peer may have opened `count` Streams over the Link's life."""
    return encode(Frame.MAX_STREAMS, 0, U32.pack(count))


def encode_goaway(last_id: int) -> bytes:
    """GOAWAY: no Stream above `last_id` is accepted."""
    return encode(Frame.GOAWAY, 0, U32.pack(last_id))


def encode_move(spread: int) -> bytes:
    """MOVE: within `spread` milliseconds."""
    return encode(Frame.MOVE, 0, U16.pack(spread))


def encode_facts(facts: dict[str, Any] | None) -> bytes:
    """The facts of an OPEN. Raises LocalProtocolError when they are too long."""
    data = b"" if facts is None else json.dumps(facts, separators=(",", ":")).encode()
    if len(data) > MAX_FACTS:
        raise LocalProtocolError(Code.LIMIT_EXCEEDED, "facts of a Stream too long")
    return data


def encode_message(message: dict[str, Any]) -> bytes:
    """One message of the control stream. Raises LocalProtocolError when it is too long."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise LocalProtocolError(Code.LIMIT_EXCEEDED, "control message too long")
    return data + b"\n"


def parse_object(data: bytes | bytearray) -> dict[str, Any]:
    """A JSON object that the peer sent. Raises RemoteProtocolError."""
    try:
        found = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(Code.PROTOCOL_ERROR, "not JSON") from error
    if not isinstance(found, dict):
        raise RemoteProtocolError(Code.PROTOCOL_ERROR, "JSON, but not an object")
    return found


@attrs.frozen
class Open:
    """The payload of an OPEN."""

    kind: int
    hops: int
    handle: int
    window: int
    facts: dict[str, Any] | None


def decode_open(payload: bytes) -> Open:
    """Raises RemoteProtocolError."""
    kind, hops, zero, handle, window = OPEN_HEAD.unpack_from(payload)
    if zero:
        raise RemoteProtocolError(Code.PROTOCOL_ERROR, "reserved bytes of OPEN are not zero")
    facts = payload[OPEN_HEAD.size :]
    return Open(kind, hops, handle, window, parse_object(facts) if facts else None)


class FrameReader:
    """Cuts the sequence into frames. Every method that takes the peer's bytes raises RemoteProtocolError where they are wrong.

    `streams` are those that have not ended, by id. `admit(id, length)` decides about DATA that the hot path leaves alone, and
    returns who takes its payload; `on_frame(type, id, payload)` takes every other frame, `on_failure(stream, error)` what a
    sink raised.
    """

    __slots__ = ("_left", "_rest", "_taker", "admit", "data_frames", "on_failure", "on_frame", "streams")

    def __init__(
        self,
        streams: dict[int, MuxStream],
        admit: Callable[[int, int], MuxStream | None],
        on_frame: Callable[[int, int, bytes], None],
        on_failure: Callable[[MuxStream, Exception], None],
    ) -> None:
        self.streams = streams
        self.admit = admit
        self.on_frame = on_frame
        self.on_failure = on_failure
        self.data_frames = 0  # since someone last set it to 0
        self._rest = bytearray()  # the begin of a frame other than DATA, or of a header
        self._left = 0  # bytes of a DATA payload, or of a skipped one, that are still to come
        self._taker: MuxStream | None = None  # who gets them

    @property
    def under_way(self) -> tuple[MuxStream | None, int]:
        """Whose DATA has begun and not ended, and how many bytes are to come."""
        return self._taker, self._left

    def feed(self, data: Data) -> None:
        """The next bytes of the sequence."""
        view = memoryview(data)
        end = len(data)
        at = self._resume(view) if self._left or self._rest else 0
        unpack = FRAME_HEADER.unpack_from
        find = self.streams.get
        while end - at >= _HEADER:
            word, stream_id = unpack(data, at)
            at += _HEADER
            length = word & 0xFFFFFF
            stream = find(stream_id)
            if stream is None or word >> 24 != _DATA or stream.direct is None or not 0 < length <= stream.credit_out:
                flows = self._begin(word >> 24, length, stream_id)
                at = self._go_on(view, at) if flows else self._short(view, at, length)
                continue
            if length > MAX_DATA:
                raise RemoteProtocolError(Code.PROTOCOL_ERROR, "DATA too long")
            self.data_frames += 1
            stream.credit_out -= length
            if length > end - at:
                self._taker = stream
                self._left = length
                at = self._go_on(view, at)
                continue
            stream.unconsumed += length
            stop = at + length
            chunk = view[at:stop] if length >= COPY_BELOW else data[at:stop]
            at = stop
            try:
                stream.direct.on_data(chunk)
            except Exception as error:
                self.on_failure(stream, error)
        if at < end:
            self._rest += view[at:]

    def _begin(self, kind: int, length: int, stream_id: int) -> bool:
        """A header has come. Whether the payload goes on as it comes; otherwise the frame is to be collected."""
        low, high = _LENGTHS.get(kind, (0, MAX_SKIPPED if kind & SKIPPABLE else -1))
        if not low <= length <= high:
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, f"frame type {kind:#04x} of {length} bytes")
        if kind == _DATA:
            self.data_frames += 1
            self._taker = self.admit(stream_id, length)
            self._left = length
        elif kind & SKIPPABLE:
            self.on_frame(kind, stream_id, b"")
            self._taker = None
            self._left = length
        return self._left > 0

    def _short(self, view: memoryview, at: int, length: int) -> int:
        """The payload of a short frame, whose header lies just before `at`: hand it over, or keep what there is."""
        start = at - _HEADER
        if len(view) - at < length:
            self._rest += view[start:]
            return len(view)
        self._hand_over(bytes(view[start : at + length]))
        return at + length

    def _hand_over(self, frame: bytes) -> None:
        word, stream_id = FRAME_HEADER.unpack_from(frame)
        if not word >> 24 & SKIPPABLE:
            self.on_frame(word >> 24, stream_id, frame[_HEADER:])

    def _go_on(self, view: memoryview, at: int) -> int:
        """More of a payload that goes to its taker as it comes. Return where it ends."""
        piece = view[at : at + self._left]
        if piece:
            self._left -= len(piece)
            if self._taker is not None:
                self._taker.arrive(piece)
        return at + len(piece)

    def _resume(self, view: memoryview) -> int:
        """Go on with the frame that an earlier call left open. Return how many bytes of `view` it took."""
        if self._left:
            return self._go_on(view, 0)
        rest = self._rest
        at = 0
        if len(rest) < _HEADER:
            at = min(_HEADER - len(rest), len(view))
            rest += view[:at]
            if len(rest) < _HEADER:
                return at
            word, stream_id = FRAME_HEADER.unpack_from(rest)
            if self._begin(word >> 24, word & 0xFFFFFF, stream_id):
                rest.clear()
                return self._go_on(view, at)
        word, _ = FRAME_HEADER.unpack_from(rest)
        missing = _HEADER + (word & 0xFFFFFF) - len(rest)
        piece = view[at : at + missing]
        rest += piece
        if len(piece) == missing:
            frame = bytes(rest)
            rest.clear()
            self._hand_over(frame)
        return at + len(piece)
