"""The Host's side: one Stream to a Host, carrying one Exchange at a time and pooled between them.

Theory of operation (docs/http.md sections 5 to 7). The connection is the sink of its Stream. It encodes what the Exchange gives
it into an Outbox, and decodes what comes. It is *idle* while it has no Exchange; then any byte or end closes it, for a byte that
nobody asked for could only become the answer to somebody else's request. Its owner hears `on_idle` each time it may be used
(again) and `on_closed` once; both may be called from inside a command, and must only take the connection in or out.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

from netbore.proto.errors import LocalProtocolError
from netbore.proto.http.codec import HeadMemo, Opinion, ResponseReader, emit_last_chunk, emit_request
from netbore.proto.http.exchange import Exchange
from netbore.proto.http.head import LIMITS as HTTP_LIMITS
from netbore.proto.http.head import HttpLimits
from netbore.proto.http.messages import BadMessage, End, Framing, Headers, Piece, RequestHead, ResponseHead
from netbore.proto.http.sender import Sender
from netbore.proto.http.sides import LIMITS, ExchangeLimits, ViewerSide
from netbore.proto.stream import Data, Stream
from netbore.proto.wire import Code


class HostOwner(Protocol):
    """Who keeps idle connections: the pool."""

    def on_idle(self, host: HostConnection) -> None:
        """`host` may carry an Exchange."""

    def on_closed(self, host: HostConnection) -> None:
        """`host` is of no more use. Called once."""


class HostConnection(Sender):
    """One connection to a Host. A new one is idle, but not reported so."""

    __slots__ = (
        "_credit",
        "_head",
        "_method",
        "_reader",
        "_sent",
        "_spoilt",
        "_verdict",
        "_whole",
        "answered",
        "bound_to",
        "closed",
        "closed_by_host",
        "exchange",
        "hinted_timeout",
        "idle_since",
        "limits",
        "owner",
        "reused",
    )

    def __init__(
        self,
        stream: Stream,
        owner: HostOwner,
        clock: Callable[[], float],
        limits: ExchangeLimits = LIMITS,
        http: HttpLimits = HTTP_LIMITS,
        *,
        second_opinion: Opinion = Opinion.ODD,
        memo: HeadMemo | None = None,
    ) -> None:
        super().__init__(stream, clock)
        self.owner = owner
        self.limits = limits
        self.exchange: Exchange | None = None
        #: It has carried an Exchange before this one.
        self.reused = False
        #: A byte has come since the Exchange started.
        self.answered = False
        self.closed = False
        #: It was idle, and the Host ended it: by FIN, or by an error of its connection.
        self.closed_by_host = False
        #: When it became idle, on the clock.
        self.idle_since = 0.0
        #: Seconds that the Host says it keeps idle connections, None where it does not say.
        self.hinted_timeout: int | None = None
        #: The only Viewer's side that may use it, after connection-bound authentication.
        self.bound_to: ViewerSide | None = None
        self._reader = ResponseReader(http, second_opinion=second_opinion, memo=memo)
        self._head: ResponseHead | None = None
        self._method = b""
        self._sent = False
        self._whole = False
        #: It must not be used again.
        self._spoilt = False
        #: FIN came on a reused connection before any byte: the Agent's verdict is awaited.
        self._verdict = False
        #: Bytes of framing to consume together with the next bytes of body.
        self._credit = 0
        stream.sink = self

    # --- commands of the Exchange ---

    def start(self, exchange: Exchange, head: RequestHead) -> None:
        """Carry `exchange`. Raises LocalProtocolError unless idle and open."""
        if self.exchange is not None or self.closed:
            raise LocalProtocolError(Code.INTERNAL_ERROR, "the Host connection is not free")
        self.exchange = exchange
        self.answered = self._whole = self._sent = self._end_due = False
        self._head = None
        self._method = head.method
        self._chunked = head.framing is Framing.CHUNKED
        if self.frozen:
            exchange.viewer.freeze()
        self._reader.expect(head.method, exchange.request.upgrade)
        self.outbox.put(emit_request(head))
        if exchange.request.bound:
            self.bound_to = exchange.viewer

    def send_end(self, trailers: Headers) -> None:
        """The request is whole."""
        if self._opaque:
            self._end_due = True
            return
        if self._chunked:
            self.outbox.put(emit_last_chunk(trailers))
        self._sent = True

    def flush(self) -> int:
        """Offer what was sent; how many bytes of body may be consumed at their source."""
        outbox = self.outbox
        left = 0
        if outbox.size:
            before = outbox.size
            left = outbox.flush(self.stream)
            if outbox.size < before and not self._verdict:
                self._await()
        if self._end_due and not outbox.size:
            self._end_due = False
            self.stream.send_eof()
        return left

    def consumed(self, count: int) -> None:
        """`count` bytes of the response's body have left."""
        credit, self._credit = self._credit, 0
        self.stream.consumed(count + credit)

    def go_opaque(self) -> None:
        """Bytes both ways from now on."""
        self._opaque = self._spoilt = True
        self._chunked = False

    def finish(self) -> None:
        """The Exchange is over, the response whole: become idle, or close."""
        reusable = self.reusable()
        cut = self.outbox.size > 0 or (not (self._opaque or self._sent) and self.stream.sending)
        self._leave()
        if cut:
            # An end of our half would make a part of the request look whole.
            self.stream.reset(Code.CANCELLED)
            self._closed()
            return
        if not reusable:
            self._close_gracefully()
            return
        self.reused = True
        self.idle_since = self.clock()
        self._unset()
        self.owner.on_idle(self)

    def cancel(self, code: int) -> None:
        """The Exchange is over in the middle: reset the Stream."""
        self._leave()
        self.stream.reset(code)
        self._closed()

    def unused(self) -> None:
        """It was not needed after all."""
        if not self.closed:
            self.idle_since = self.clock()
            self.owner.on_idle(self)

    # --- the owner ---

    def reusable(self) -> bool:
        """It may carry another Exchange (docs/http.md section 5)."""
        head, stream = self._head, self.stream
        return (
            head is not None
            and self._whole
            and self._sent
            and not self._spoilt
            and not self.closed
            and head.minor == 1
            and head.keep_alive
            and not self.outbox.size
            and stream.sending
            and stream.receiving
            and (stream.granted <= self.limits.pooled_credit or stream.granted <= stream.begun)
        )

    def close(self) -> None:
        """Close an idle connection; with an Exchange, reset and lose it."""
        if self.closed:
            return
        if self.exchange is None:
            self._close_gracefully()
        else:
            self.stream.reset(Code.CANCELLED)
            self._lost(Code.CANCELLED)

    def freeze(self) -> None:
        """The Link is broken: deadlines stand still, here and at the Viewer, which is not read."""
        if not self.frozen:
            self._freeze()
            if self.exchange is not None:
                self.exchange.viewer.freeze()

    def thaw(self, now: float) -> None:
        """The Link is back."""
        if self.frozen:
            self._thaw(now)
            if self.exchange is not None:
                self.exchange.viewer.thaw(now)

    def on_deadline(self, now: float) -> None:
        """The deadline has passed at `now`."""
        exchange = self.exchange
        self.deadline = inf
        if exchange is None:
            return
        if self._verdict:
            self.stream.reset(Code.CANCELLED)
            self._lost(Code.HOST_CLOSED)
        elif self._opaque:
            self.stream.reset(Code.IDLE_TIMEOUT)
            self._lost(Code.IDLE_TIMEOUT)
        elif exchange.waits_for_viewer:
            self._await()
        else:
            self.stream.reset(Code.IDLE_TIMEOUT)
            self._lost(Code.HOST_TIMEOUT)

    # --- the sink of the Stream ---

    def on_data(self, data: Data) -> None:
        """Bytes of the Host."""
        exchange = self.exchange
        if exchange is None:
            if not self.closed:
                self.stream.reset(Code.CANCELLED)
                self._closed()
            return
        if self._opaque:
            self._await()
            exchange.response_data(data)
            exchange.flush_response()
            return
        if self._whole:
            self._spoilt = True
            return
        if not self.answered and (known := self._reader.take_known(data)) is not None:
            return self._take_whole(exchange, *known, len(data))
        self.answered = True
        try:
            pieces = self._reader.feed(data)
        except BadMessage:
            self._fail()
            return
        self._pass_on(exchange, pieces, len(data))

    def _pass_on(self, exchange: Exchange, pieces: list[Piece], size: int) -> None:
        for piece in pieces:
            kind = type(piece)
            if kind is ResponseHead:
                if not self._take_head(exchange, piece):  # type: ignore[arg-type]  # its type was just compared
                    return
            elif kind is End:
                self._take_end(exchange, piece)  # type: ignore[arg-type]
            else:
                size -= len(piece)  # type: ignore[arg-type]
                exchange.response_data(piece)  # type: ignore[arg-type]
        if self._opaque:
            size = self._pass_leftover(exchange, size)
        self._credit += size
        if not self._whole:
            self._await()
        exchange.flush_response()
        if self._credit and not self.closed:
            self.consumed(0)

    def on_eof(self) -> None:
        """The Host's FIN."""
        exchange = self.exchange
        if exchange is None:
            self.closed_by_host = True
            self._close_gracefully()
        elif self._opaque:
            exchange.response_end()
            exchange.flush_response()
        elif self._whole:
            self._spoilt = True
        elif not self.answered and self.reused:
            self._verdict = True
            self._set(self.limits.verdict_seconds)
        else:
            self._end_by_eof(exchange)

    def on_writable(self) -> None:
        """The Stream takes more."""
        if self.exchange is not None:
            self.exchange.flush_request()

    def on_stop(self, code: int) -> None:
        """The Host takes no more of the request."""
        self._spoilt = True
        self.outbox.clear()
        if self.exchange is not None:
            self.exchange.request_stopped(code)
        elif not self.closed:
            self._close_gracefully()

    def on_reset(self, code: int, delivered: int = 0) -> None:
        """The Stream has ended, with all that was in it."""
        if self.exchange is not None:
            self._lost(code)
        else:
            self.closed_by_host = code == Code.HOST_CLOSED
            self._closed()

    def on_crash(self, error: Exception) -> None:
        """Something here raised: this connection and its Exchange are lost, and nothing else."""
        if not self.closed:
            self.stream.reset(Code.INTERNAL_ERROR)
            if self.exchange is not None:
                self._lost(Code.INTERNAL_ERROR)
            else:
                self._closed()

    # --- inside ---

    def _take_whole(self, exchange: Exchange, head: ResponseHead, body: Data, size: int) -> None:
        """The way of most responses, which are whole in one read: nothing has to go through piece by piece."""
        self.answered = self._whole = True
        self._learn(exchange, head)
        exchange.response_whole(head, body, size - len(body))

    def _take_head(self, exchange: Exchange, head: ResponseHead) -> bool:
        """Pass a head on. False when the Exchange let go of this connection."""
        if head.status >= 200:
            self._learn(exchange, head)
        return exchange.response_head(head)

    def _learn(self, exchange: Exchange, head: ResponseHead) -> None:
        self._head = head
        if head.patience is not None:
            self.hinted_timeout = head.patience
        if head.bound:
            self.bound_to = exchange.viewer

    def _take_end(self, exchange: Exchange, end: End) -> None:
        self._whole = True
        self._spoilt = self._spoilt or bool(self._reader.rest)
        exchange.response_end(end.trailers)

    def _pass_leftover(self, exchange: Exchange, size: int) -> int:
        """After a 101: what came behind its head is the first of the opaque bytes."""
        leftover = self._reader.leftover()
        if leftover:
            exchange.response_data(leftover)
        return size - len(leftover)

    def _end_by_eof(self, exchange: Exchange) -> None:
        self._spoilt = True
        try:
            pieces = self._reader.feed_eof()
        except BadMessage:
            pieces = []
        if pieces:
            self._pass_on(exchange, pieces, 0)
        else:
            self.stream.reset(Code.CANCELLED)
            self._lost(Code.HOST_CLOSED)

    def _await(self) -> None:
        self._set(self.limits.opaque_seconds if self._opaque else self.limits.response_seconds)

    def _fail(self) -> None:
        exchange = self._leave()
        self.stream.reset(Code.PROTOCOL_ERROR)
        self._closed()
        exchange.host_failed()

    def _lost(self, code: int) -> None:
        exchange = self._leave()
        self._closed()
        exchange.host_lost(code, self.answered, self.reused)

    def _leave(self) -> Exchange:
        exchange, self.exchange = self.exchange, None
        assert exchange is not None
        if self.frozen:
            exchange.viewer.thaw(self.clock())
        return exchange

    def _close_gracefully(self) -> None:
        """Both halves end without harm to what was sent: there is nothing left to lose."""
        self.stream.send_eof()
        self.stream.stop()
        self._closed()

    def _closed(self) -> None:
        if not self.closed:
            self.closed = True
            self.outbox.clear()
            self._unset()
            self.owner.on_closed(self)
