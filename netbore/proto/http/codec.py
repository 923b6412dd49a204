"""The HTTP/1.1 codec: bytes in, heads, body slices and ends out; heads in, bytes out.

Theory of operation. A reader goes through HEAD, BODY and DONE for each message and stops at DONE, however much it was given:
what follows is held, uninterpreted, until somebody says what it is (`next`, `expect`) or takes it away (`leftover`). So a
pipelined request cannot be read before the answer to the one before, and bytes of a Host that no request asked for
cannot become a response.

A head is read by the strict check, whose result counts. Whatever is not of the plain common shape is read by h11 too (`Opinion`),
and refused where the two differ, so that neither one's mistake alone can be used; tests hold that the strict check by itself
takes no head that h11 refuses. No h11 type leaves this module, and h11 never sees a body. A head whose bytes came before is not
read at all (`HeadMemo`), and a whole message with such a head is taken in one step (`take_known`).

A reader that raised BadMessage stays broken and raises it again. Pieces of the same feed are lost with it, which is meant:
nothing of a message known to be bad should go on.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

import h11

from netbore.proto.http.body import BodyReader, body_reader
from netbore.proto.http.head import (
    LIMITS,
    Collector,
    HttpLimits,
    check_partial,
    make_request,
    make_response,
    split_request,
    split_response,
)
from netbore.proto.http.messages import BadMessage, End, Framing, Headers, Piece, RequestHead, ResponseHead, Truncated
from netbore.proto.stream import Data


class Opinion(Enum):
    """Whose head h11 has to read as the strict check did.

    That the two never disagree on a head that the strict check takes is what the tests show; h11 costs ten times as much.
    So the plain common shape is spared it (ODD), and everything else is not.
    """

    ALWAYS = auto()
    ODD = auto()
    NEVER = auto()


#: Fields whose values are not kept longer than their message.
_SECRET: Final = (b"authorization", b"cookie", b"proxy-authorization", b"set-cookie")


#: Longest read that is looked at as one whole response, bytes.
SHORT: Final = 16384
#: How many heads a memo keeps, and how many bytes and lines one may have.
KNOWN_HEADS: Final = 512
KNOWN_BYTES: Final = 2048
KNOWN_LINES: Final = 32


class HeadMemo:
    """Heads that came before, by their bytes: the same bytes mean the same, so they are not read again.

    Clients that ask again, and Hosts that answer the same, mostly repeat their heads to the byte. At most `most` heads are kept,
    of at most `longest` bytes and `lines` lines each, none with a secret; what does not come again goes when it is full. With
    what is derived of it a head takes some ten times its bytes, so one memo serves an Edge, whatever its Tunnels.
    """

    __slots__ = ("_heads", "get", "lines", "longest", "most")

    def __init__(self, most: int = KNOWN_HEADS, longest: int = KNOWN_BYTES, lines: int = KNOWN_LINES) -> None:
        self.most = most
        self.longest = longest
        self.lines = lines
        self._heads: dict[tuple[bytes, bytes], Any] = {}
        #: Of (method, text): the head that the text was read as, in a response to a request by that method (b"" for
        #: requests); or None.
        self.get: Callable[[tuple[bytes, bytes]], Any] = self._heads.get

    def put(self, method: bytes, text: bytes, head: RequestHead | ResponseHead) -> None:
        """Remember a head that was read without complaint."""
        if len(text) <= self.longest and len(head.headers) <= self.lines and not any(name in head.fields for name in _SECRET):
            if len(self._heads) >= self.most:
                self._heads.clear()
            self._heads[method, text] = head

    def __len__(self) -> int:
        return len(self._heads)


class _State(Enum):
    HEAD = auto()
    BODY = auto()
    DONE = auto()


# As globals: to read a member of an enumeration costs ten times as much.
_HEAD, _BODY, _DONE = _State
_NO_BODY = Framing.NONE


class _Reader(ABC):
    """What both directions share: the states, the bytes that wait, and staying broken."""

    __slots__ = ("_body", "_broken", "_collector", "_limits", "_memo", "_second_opinion", "_state", "rest")

    def __init__(self, limits: HttpLimits, state: _State, second_opinion: Opinion, memo: HeadMemo | None) -> None:
        self._memo = memo
        self._limits = limits
        self._state = state
        self._second_opinion = second_opinion
        self._collector = Collector(b"\r\n\r\n")
        self._body: BodyReader | None = None
        #: Bytes that wait behind a whole message.
        self.rest = bytearray()
        self._broken: BadMessage | None = None

    @property
    def started(self) -> bool:
        """Some bytes of a head have arrived, but not all."""
        return bool(self._collector.held)

    def leftover(self) -> bytes:
        """Take the bytes behind a whole message away: another protocol's, after an upgrade."""
        rest = bytes(self.rest)
        self.rest.clear()
        return rest

    def feed(self, data: Data) -> list[Piece]:
        """The pieces that `data` completes, in order; body slices are views of `data`. Raises BadMessage."""
        if self._broken is not None:
            raise self._broken
        pieces: list[Piece] = []
        try:
            self._read(data, pieces)
        except BadMessage as error:
            self._broken = self._translated(error)
            raise self._broken from error
        return pieces

    def _read(self, data: Data, pieces: list[Piece]) -> None:
        at, stop = 0, len(data)
        while at < stop:
            if self._state is _HEAD:
                at = self._read_head(data, at, pieces)
            elif self._state is _BODY:
                at = self._read_body(data, at, pieces)
            else:
                self.rest += data[at:]
                return

    def _read_head(self, data: Data, at: int, pieces: list[Piece]) -> int:
        text, at = self._collector.take(data, at)
        if text is None:
            check_partial(self._collector.held, self._collector.scanned, self._limits)
        else:
            self._parse(text, pieces)
        return at

    def _read_body(self, data: Data, at: int, pieces: list[Piece]) -> int:
        body = self._body
        assert body is not None
        at = body.take(data, at, pieces)
        if body.done:
            self._end(pieces, body.trailers)
        return at

    def _begin(self, framing: Framing, pieces: list[Piece]) -> None:
        """A final head was read: its body comes next, or its end."""
        self._body = body_reader(framing, self._limits)
        if self._body is None:
            self._end(pieces, ())
        else:
            self._state = _BODY

    def _end(self, pieces: list[Piece], trailers: Headers) -> None:
        pieces.append(End(trailers) if trailers else _END)
        self._body = None
        self._state = _DONE

    @abstractmethod
    def _parse(self, text: bytes, pieces: list[Piece]) -> None:
        """A whole head has come: append it, and begin what follows it."""

    @abstractmethod
    def _translated(self, error: BadMessage) -> BadMessage:
        """The error as this direction reports it."""


_END: Final = End()


class RequestReader(_Reader):
    """Reads a Viewer's requests, one at a time.

    `feed` gives `RequestHead`, body slices and `End`; after the End it only holds, until `next`.
    """

    __slots__ = ("_blank",)

    def __init__(
        self, limits: HttpLimits = LIMITS, *, second_opinion: Opinion = Opinion.ODD, memo: HeadMemo | None = None
    ) -> None:
        super().__init__(limits, _HEAD, second_opinion, memo)
        #: The one empty line that may stand before a request (RFC 9112 section 2.2) has been seen.
        self._blank = False

    def take_known(self, data: Data) -> RequestHead | None:
        """The head of `data` when it is one whole request without a body that came before, which is the usual case: it is
        read then, up to its End. Else None, and nothing has changed."""
        memo = self._memo
        if memo is None or type(data) is not bytes or len(data) > memo.longest:
            return None
        if self._state is not _HEAD or self._collector.held or self._broken:
            return None
        head: RequestHead | None = memo.get((b"", data))
        if head is None or head.framing is not _NO_BODY:
            return None
        self._state = _DONE
        return head

    def next(self) -> list[Piece]:
        """Go on to the next request, after an End; returns its pieces that have arrived already. Raises BadMessage."""
        assert self._state is _DONE
        self._state = _HEAD
        self._blank = False
        return self.feed(self.leftover()) if self.rest else []

    def feed_eof(self) -> list[Piece]:
        """The Viewer's bytes have ended. Raises Truncated in the middle of a request, and may be asked again after `next`."""
        if self._state is _BODY or self.started:
            raise Truncated(400, "request cut short")
        return []

    def _read_head(self, data: Data, at: int, pieces: list[Piece]) -> int:
        if not self._blank:
            blank = self._blank_line(data, at)
            if blank != at:
                return blank
        return super()._read_head(data, at, pieces)

    def _blank_line(self, data: Data, at: int) -> int:
        """Where reading goes on behind an empty line at `at`, `at` itself without one."""
        collector = self._collector
        if not collector.held and data[at : at + 2] == b"\r\n":
            self._blank = True
            return at + 2
        if collector.held == b"\r" and data[at] == 10:
            self._blank = True
            collector.clear()
            return at + 1
        return at

    def _parse(self, text: bytes, pieces: list[Piece]) -> None:
        memo = self._memo
        head: RequestHead | None = memo.get((b"", text)) if memo is not None else None
        if head is None:
            head = self._read_request(text)
            if memo is not None and head.authority:  # one without may get its authority from the connection
                memo.put(b"", text, head)
        pieces.append(head)
        self._begin(head.framing, pieces)

    def _read_request(self, text: bytes) -> RequestHead:
        method, target, minor, headers = split_request(text, self._limits)
        head = make_request(method, target, minor, headers)
        if self._second_opinion is Opinion.ALWAYS or (self._second_opinion is Opinion.ODD and _is_odd(text, head)):
            _agree_on_request(text, method, target, minor, headers)
        return head

    def _translated(self, error: BadMessage) -> BadMessage:
        return error


class ResponseReader(_Reader):
    """Reads a Host's responses, each announced by `expect`.

    `feed` gives informational heads (which have no body and no End) and the final `ResponseHead`, body slices and `End`.
    Bytes that come unasked, or behind a 101, are held as `leftover`.
    """

    __slots__ = ("_method", "_upgrade")

    def __init__(
        self, limits: HttpLimits = LIMITS, *, second_opinion: Opinion = Opinion.ODD, memo: HeadMemo | None = None
    ) -> None:
        super().__init__(limits, _DONE, second_opinion, memo)
        self._method = b"GET"
        self._upgrade: bytes | None = None

    def expect(self, method: bytes, upgrade: bytes | None = None) -> None:
        """A request by `method` was sent, asking for the protocol `upgrade`: what comes next is its response.

        Raises BadMessage where bytes wait already, for they cannot be the answer.
        """
        assert self._state is _DONE
        if self.rest:
            self._broken = BadMessage(502, "bytes before the request")
        if self._broken is not None:
            raise self._broken
        self._method = method
        self._upgrade = upgrade
        self._state = _HEAD

    def feed_eof(self) -> list[Piece]:
        """The Host's bytes have ended: gives the End of a body that ends so.

        Raises Truncated while a response is owed or unfinished.
        """
        pieces: list[Piece] = []
        if self._body is not None and self._body.take_eof():
            self._end(pieces, ())
        if self._state is not _DONE:
            raise Truncated(502, "response cut short")
        return pieces

    def take_known(self, data: Data) -> tuple[ResponseHead, Data] | None:
        """Head and body of `data` when it is one whole response whose head came before, which is the usual case: it is read
        then, up to its End. Else None, and nothing has changed."""
        memo, size = self._memo, len(data)
        if memo is None or size > SHORT or self._state is not _HEAD or self._collector.held or self._broken:
            return None
        text = bytes(data)
        at = text.find(b"\r\n\r\n") + 4
        head: ResponseHead | None = memo.get((self._method, text[:at]))
        if head is None or head.status < 200:
            return None
        if head.framing.length != size - at and not (head.framing is _NO_BODY and at == size):
            return None
        self._state = _DONE
        return head, memoryview(data)[at:]

    def _parse(self, text: bytes, pieces: list[Piece]) -> None:
        memo = self._memo
        head: ResponseHead | None = memo.get((self._method, text)) if memo is not None else None
        if head is None:
            head = self._read_response(text)
            if memo is not None:
                memo.put(self._method, text, head)
        if head.status == 101:
            self._switch(head)
        pieces.append(head)
        if head.status >= 200:
            self._begin(head.framing, pieces)

    def _read_response(self, text: bytes) -> ResponseHead:
        status, reason, minor, headers = split_response(text, self._limits)
        head = make_response(status, reason, minor, headers, self._method)
        if self._second_opinion is Opinion.ALWAYS or (self._second_opinion is Opinion.ODD and _is_odd(text, head)):
            _agree_on_response(text, status, reason, minor, headers)
        return head

    def _switch(self, head: ResponseHead) -> None:
        if self._upgrade is None or head.upgrade != self._upgrade:
            raise BadMessage(502, "switch to a protocol that was not asked for")
        self._state = _DONE

    def _translated(self, error: BadMessage) -> BadMessage:
        return error if error.status == 502 else BadMessage(502, error.reason)


# --- the second opinion ---

_DISAGREE: Final = "parsers disagree"
#: What h11 must believe to have asked, before it will read an informational response.
_ASKED: Final = h11.Request(
    method="GET", target="/", headers=[("Host", "a"), ("Connection", "upgrade"), ("Upgrade", "a"), ("Expect", "100-continue")]
)


#: What a head of the plain shape is made of.
_NOT_PLAIN: Final = re.compile(rb"[^\r\n -~]")


def _is_odd(text: bytes, head: RequestHead | ResponseHead) -> bool:
    """Not of the plain common shape: bytes beyond printable ASCII, a transfer coding, an upgrade, an expectation."""
    fields = head.fields
    return b"transfer-encoding" in fields or b"upgrade" in fields or b"expect" in fields or _NOT_PLAIN.search(text) is not None


def _agree_on_request(text: bytes, method: bytes, target: bytes, minor: int, headers: Headers) -> None:
    connection = h11.Connection(h11.SERVER, len(text))
    event = _event(connection, text)
    if (
        not isinstance(event, h11.Request)
        or (event.method, event.target, event.http_version) != (method, target, b"1.%d" % minor)
        or not _same_headers(event.headers.raw_items(), headers)
    ):
        raise BadMessage(400, _DISAGREE)


def _agree_on_response(text: bytes, status: int, reason: bytes, minor: int, headers: Headers) -> None:
    connection = h11.Connection(h11.CLIENT, len(text))
    if status < 200:
        connection.send(_ASKED)
    event = _event(connection, text)
    if (
        not isinstance(event, h11.Response | h11.InformationalResponse)
        or (event.status_code, event.reason, event.http_version) != (status, reason, b"1.%d" % minor)
        or not _same_headers(event.headers.raw_items(), headers)
    ):
        raise BadMessage(502, _DISAGREE)


def _event(connection: h11.Connection, text: bytes) -> object:
    connection.receive_data(text)
    try:
        return connection.next_event()
    except h11.RemoteProtocolError:
        return None


def _same_headers(items: list[tuple[bytes, bytes]], ours: Headers) -> bool:
    # h11 lowers the value of Transfer-Encoding; apart from that the two must be the same to the byte.
    return items == list(ours) or items == [(name, _plain(name, value)) for name, value in ours]


def _plain(name: bytes, value: bytes) -> bytes:
    return value.lower() if name.lower() == b"transfer-encoding" else value


# --- emitting ---


def emit_request(head: RequestHead) -> bytes:
    """The bytes of a request's head. Raises ValueError where a part holds a line end."""
    if head.text is None:
        head.text = _emit(b"%b %b HTTP/1.%d\r\n" % (head.method, head.target, head.minor), head.headers)
    return head.text


def emit_response(head: ResponseHead) -> bytes:
    """The bytes of a response's head. Raises ValueError where a part holds a line end."""
    if head.text is None:
        head.text = _emit(b"HTTP/1.%d %d %b\r\n" % (head.minor, head.status, head.reason), head.headers)
    return head.text


def emit_chunk(data: Data) -> list[Data]:
    """`data` as one chunk, by reference; nothing for no data, since an empty chunk would be the last."""
    return [b"%x\r\n" % len(data), data, b"\r\n"] if data else []


def emit_last_chunk(trailers: Headers = ()) -> bytes:
    """The end of a chunked body. Raises ValueError where a part holds a line end."""
    return _emit(b"0\r\n", trailers)


def _emit(first: bytes, headers: Headers) -> bytes:
    text = b"%b%b\r\n" % (first, b"".join([b"%b: %b\r\n" % pair for pair in headers]))
    # Parsed parts hold no line end; a Host in this process could hand one in, and with it a header or a whole response.
    if not text.count(b"\n") == text.count(b"\r") == len(headers) + 2:
        raise ValueError("line end in a part of a head")
    return text
