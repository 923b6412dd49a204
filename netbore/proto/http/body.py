"""Bodies, taken out of the bytes that carry them, as they come.

Theory of operation. A body reader is given data and a place in it; it appends slices of the body to a list, memoryviews of
what it was given, and returns the place up to which it read. Body bytes are never copied and never held. What is held is at
most one unfinished chunk line or trailer section, bounded by a limit. `done` says that the body is complete; what follows in
the data is then not the reader's.

Chunk lines are as strict as heads: a size of 1 to 16 hexadecimal digits without sign or blank, CRLF and nothing like it.
Extensions are read by their grammar without its optional blanks, and dropped, since nobody may rely on them (RFC 9112
section 7.1.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from netbore.proto.http.head import LIMITS, TOKEN, Collector, HttpLimits, check_octets, split_section
from netbore.proto.http.messages import BadMessage, Framing, Headers, Piece
from netbore.proto.stream import Data

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + _QUOTED + rb"))?+)*+\r\n")
_CRLF: Final = b"\r\n"


class BodyReader(Protocol):
    """Takes one body out of data."""

    done: bool
    trailers: Headers

    def take(self, data: Data, at: int, pieces: list[Piece]) -> int:
        """Append the slices of the body in `data` from `at` on, and return where reading stopped. Raises BadMessage."""

    def take_eof(self) -> bool:
        """The bytes have ended: True where that completes the body."""


def _cut(data: Data, start: int, stop: int) -> Data:
    """A slice by reference; the data itself where it is all of it."""
    if start == 0 and stop == len(data):
        return data
    return memoryview(data)[start:stop]


class LengthBody:
    """A body of a known number of bytes, at least one."""

    __slots__ = ("done", "left", "trailers")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = False
        self.trailers: Headers = ()

    def take(self, data: Data, at: int, pieces: list[Piece]) -> int:
        """See BodyReader."""
        stop = min(len(data), at + self.left)
        pieces.append(_cut(data, at, stop))
        self.left -= stop - at
        self.done = self.left == 0
        return stop

    def take_eof(self) -> bool:
        """See BodyReader."""
        return False


class UntilCloseBody:
    """A body that ends with the bytes."""

    __slots__ = ("done", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.trailers: Headers = ()

    def take(self, data: Data, at: int, pieces: list[Piece]) -> int:
        """See BodyReader."""
        pieces.append(_cut(data, at, len(data)))
        return len(data)

    def take_eof(self) -> bool:
        """See BodyReader."""
        self.done = True
        return True


class ChunkedBody:
    """A body in chunks, with trailers. Each step reads one part and sets the next."""

    __slots__ = ("_left", "_limits", "_line", "_section", "_step", "done", "trailers")

    def __init__(self, limits: HttpLimits = LIMITS) -> None:
        self._limits = limits
        self._line = Collector(_CRLF)
        self._section = Collector(b"\r\n\r\n")
        self._left = 0
        self._step: Callable[[ChunkedBody, Data, int, list[Piece]], int] = ChunkedBody._take_size
        self.done = False
        self.trailers: Headers = ()

    def take(self, data: Data, at: int, pieces: list[Piece]) -> int:
        """See BodyReader."""
        stop = len(data)
        while at < stop and not self.done:
            at = self._step(self, data, at, pieces)
        return at

    def take_eof(self) -> bool:
        """See BodyReader."""
        return False

    def _take_size(self, data: Data, at: int, _: list[Piece]) -> int:
        if not self._line.held and (match := _SIZE.match(data, at)):
            self._begin(match[1])
            return match.end()
        line, at = self._line.take(data, at)
        if line is None:
            check_octets(self._line.held, self._line.scanned)
            if len(self._line.held) - 1 > self._limits.chunk_line:  # the CR of its end may be there
                raise BadMessage(400, "chunk line too long")
            return at
        match = _CHUNK_LINE.fullmatch(line) if len(line) - 2 <= self._limits.chunk_line else None
        if match is None:
            raise BadMessage(400, "bad chunk line")
        self._begin(match[1])
        return at

    def _begin(self, digits: bytes) -> None:
        self._left = int(digits, 16)
        if self._left:
            self._step = ChunkedBody._take_chunk
            return
        # The CRLF of the last chunk's line belongs to the section, so that one terminator fits a section of no lines too.
        self._section.held += _CRLF
        self._step = ChunkedBody._take_section

    def _take_chunk(self, data: Data, at: int, pieces: list[Piece]) -> int:
        stop = min(len(data), at + self._left)
        pieces.append(_cut(data, at, stop))
        self._left -= stop - at
        if self._left == 0:
            self._step = ChunkedBody._take_cr
        return stop

    def _take_cr(self, data: Data, at: int, _: list[Piece]) -> int:
        if data[at] != 13:
            raise BadMessage(400, "chunk longer than its size")
        self._step = ChunkedBody._take_lf
        return at + 1

    def _take_lf(self, data: Data, at: int, _: list[Piece]) -> int:
        if data[at] != 10:
            raise BadMessage(400, "chunk longer than its size")
        self._step = ChunkedBody._take_size
        return at + 1

    def _take_section(self, data: Data, at: int, _: list[Piece]) -> int:
        section, at = self._section.take(data, at)
        if section is not None:
            self.trailers = split_section(section, self._limits)
            self.done = True
            return at
        check_octets(self._section.held, self._section.scanned)
        if len(self._section.held) > self._limits.trailers:
            raise BadMessage(431, "trailers too large")
        return at


def body_reader(framing: Framing, limits: HttpLimits = LIMITS) -> BodyReader | None:
    """The reader of a body framed so; None where no byte of body can come."""
    if framing.length:
        return LengthBody(framing.length)
    if framing is Framing.CHUNKED:
        return ChunkedBody(limits)
    return UntilCloseBody() if framing is Framing.UNTIL_CLOSE else None
