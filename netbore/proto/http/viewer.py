"""The Viewer's side: one connection of a Viewer, its requests one after another.

Theory of operation (docs/http.md). The connection is the sink of its Stream. It reads one request, lets its Exchange come to its
end, and only then parses the next: pipelined input waits unparsed, and above a limit unread. Answering may happen inside
`on_request`, and finishing one Exchange may begin the next, so both meet in one loop (`_run`) that is never entered twice.

Whatever the answer says about the connection is decided when its head is sent: `_closing` is then final, and acted on once the
response has left. All that the Stream gave is either consumed, part of `_held` (input not parsed yet), or owed by the Exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from math import inf

from netbore.proto.http.codec import HeadMemo, Opinion, RequestReader, emit_last_chunk, emit_response
from netbore.proto.http.exchange import Exchange
from netbore.proto.http.head import LIMITS as HTTP_LIMITS
from netbore.proto.http.head import HttpLimits
from netbore.proto.http.headers import framed
from netbore.proto.http.messages import BadMessage, End, Framing, Headers, RequestHead, ResponseHead
from netbore.proto.http.pages import PROBLEMS, Problem, problem_of, render
from netbore.proto.http.sender import Sender
from netbore.proto.http.sides import LIMITS, ExchangeLimits, Phase
from netbore.proto.stream import Data, Stream
from netbore.proto.wire import Code


class Wait(IntEnum):
    """What the deadline is for."""

    NOTHING = 0
    IDLE = 1
    HEAD = 2
    BODY = 3
    SEND = 4
    REST = 5


# As globals: to read a member of an enumeration costs ten times as much.
_NOTHING, _IDLE, _HEAD, _BODY, _SEND, _REST = Wait
_FORWARDED = Phase.FORWARDED


class ViewerConnection(Sender):
    """One connection of a Viewer. `on_request(exchange)` is called for each request, `on_closed(viewer)` once."""

    __slots__ = (
        "_broken",
        "_busy",
        "_closing",
        "_credit",
        "_eof",
        "_fresh",
        "_held",
        "_on_closed",
        "_on_request",
        "_paused",
        "_reader",
        "_wait",
        "closed",
        "context",
        "draining",
        "exchange",
        "limits",
        "minor",
        "secure",
    )

    def __init__(
        self,
        stream: Stream,
        on_request: Callable[[Exchange], None],
        clock: Callable[[], float],
        *,
        on_closed: Callable[[ViewerConnection], None] | None = None,
        secure: bool = False,
        limits: ExchangeLimits = LIMITS,
        http: HttpLimits = HTTP_LIMITS,
        second_opinion: Opinion = Opinion.ODD,
        memo: HeadMemo | None = None,
    ) -> None:
        """`secure`: the Stream is TLS, where an end of input means that the Viewer is gone. `second_opinion`: see `codec`."""
        super().__init__(stream, clock)
        self.secure = secure
        self.limits = limits
        self.exchange: Exchange | None = None
        #: Minor version of the last request.
        self.minor = 1
        #: Set to end the connection after the response at hand, or the next one.
        self.draining = False
        self.closed = False
        #: The handler's own: facts of the connection.
        self.context: object = None
        self._on_request = on_request
        self._on_closed = on_closed
        self._reader = RequestReader(http, second_opinion=second_opinion, memo=memo)
        self._closing = False
        self._eof = False
        #: Nothing that comes is a request any more.
        self._broken = False
        #: An Exchange was made whose handler was not called yet.
        self._fresh = False
        self._busy = False
        self._paused = False
        #: Bytes that came, are not parsed, and are not consumed.
        self._held = 0
        #: Bytes to consume at the end of the loop.
        self._credit = 0
        self._wait = _HEAD
        self._set(limits.head_seconds)
        stream.sink = self

    # --- commands of the Exchange ---

    @property
    def ended(self) -> bool:
        """No more input will come, and none of it is missing."""
        return self._eof

    def send_head(self, head: ResponseHead, early: bool) -> None:
        """A response head without fields about this connection, which are added here."""
        if head.status >= 200:
            head = self._own(head, early)
        self.outbox.put(emit_response(head))

    def send_whole(self, head: ResponseHead, body: Data, early: bool) -> int:
        """A whole response, before which nothing was sent; how many bytes of body may be consumed at their source."""
        text = emit_response(self._own(head, early))
        left = self.outbox.offer(self.stream, b"".join((text, body)), len(body))
        if self.outbox.size:
            self._wait_for(_SEND, self.limits.send_seconds)
        return left

    def send_end(self, trailers: Headers) -> None:
        """The response is whole."""
        if self._opaque:
            self._end_due = True
        elif self._chunked:
            self.outbox.put(emit_last_chunk(trailers))

    def flush(self) -> int:
        """Offer what was sent; how many bytes of body may be consumed at their source."""
        outbox = self.outbox
        left = 0
        if outbox.size:
            before = outbox.size
            left = outbox.flush(self.stream)
            if not outbox.size:
                if self._wait is _SEND:
                    self._wait = _NOTHING
                    self._arm()
            elif self._wait is not _SEND or outbox.size < before:
                self._wait_for(_SEND, self.limits.send_seconds)
        if self._end_due and not outbox.size:
            self._end_due = False
            self.stream.send_eof()
        return left

    def consumed(self, count: int) -> None:
        """`count` bytes of the request's body have left."""
        if self._busy:
            self._credit += count
        else:
            self.stream.consumed(count)
            if self._wait is _BODY:
                self._arm()

    def expect_rest(self, seconds: float) -> None:
        """The response is whole, the request is not."""
        self._wait_for(_REST, seconds)

    def go_opaque(self) -> Data:
        """Bytes both ways from now on. Returns what came after the request, which the Exchange owes now."""
        self._opaque = self._closing = True
        self._chunked = False
        self._wait_for_nothing()
        leftover = self._reader.leftover()
        self._held -= len(leftover)
        self._regulate()
        return leftover

    def finish(self) -> None:
        """The Exchange is over, and the response whole."""
        exchange, self.exchange = self.exchange, None
        assert exchange is not None
        if not exchange.request_ended:
            self._closing = self._broken = True
        if self._closing:
            self._close_when_drained()
        elif not self._busy:
            self._go_on()

    def abort(self, code: int) -> None:
        """End visibly."""
        self.exchange = None
        self.stream.reset(code)
        self._gone()

    def freeze(self) -> None:
        """Deadlines stand still and nothing is read."""
        if not self.frozen:
            self._freeze()
            self._regulate()

    def thaw(self, now: float) -> None:
        """It goes on."""
        if self.frozen:
            self._thaw(now)
            self._regulate()

    # --- the owner ---

    @property
    def idle(self) -> bool:
        """Between requests, with nothing of a further one and nothing left to send."""
        return self.exchange is None and not self._reader.started and not self.outbox.size

    def close(self) -> None:
        """End at once: an idle connection cleanly, a response visibly."""
        if self.exchange is None:
            if not self.closed:
                self._close()
        elif self.exchange.done:
            self._closing = True
        else:
            self.exchange.abort()

    def surrender(self) -> bytes:
        """Give the Stream away before anything was answered, and return what came after the request.

        The connection and its Exchange are over; nothing here touches the Stream again.
        """
        exchange, self.exchange = self.exchange, None
        leftover = bytes(self._reader.leftover())
        self.stream.sink = None
        self._gone()
        if exchange is not None:
            exchange.viewer_lost()
        return leftover

    def on_deadline(self, now: float) -> None:
        """The deadline has passed at `now`."""
        self.deadline = inf
        exchange, wait = self.exchange, self._wait
        if wait is _HEAD and self._reader.started:
            self._reject(PROBLEMS["request_timeout"])
        elif wait is _HEAD or wait is _IDLE:
            self._close()
        elif wait is _SEND:
            self._fail()
        elif exchange is not None and wait is _REST:
            exchange.spent()
        elif exchange is not None and wait is _BODY:
            self._body_late(exchange)

    def on_crash(self, error: Exception) -> None:
        """Something here raised: this connection and its Exchange are lost, and nothing else."""
        if not self.closed:
            self._fail()

    # --- the sink of the Stream ---

    def on_data(self, data: Data) -> None:
        """Bytes of the Viewer."""
        if self.closed or self._broken:
            return
        exchange = self.exchange
        if self._opaque and exchange is not None:
            exchange.request_data(data)
            exchange.flush_request()
            return
        if exchange is None and not self._held and (head := self._reader.take_known(data)) is not None:
            return self._take_whole(head, len(data))
        self._held += len(data)
        self._run(data)

    def on_eof(self) -> None:
        """The Viewer's end of input."""
        self._eof = True
        exchange = self.exchange
        if self.closed:
            return
        if self._opaque and exchange is not None:
            exchange.request_end()
            exchange.flush_request()
        elif exchange is None:
            self._close_when_drained()
        elif not exchange.request_ended:
            self._broken = True
            exchange.request_failed(PROBLEMS["request_cut_short"])
        elif self.secure:
            self._fail()

    def on_writable(self) -> None:
        """The Stream takes more."""
        if self.exchange is not None:
            self.exchange.flush_response()
        else:
            self.flush()
            if self._closing and not self.closed and not self.outbox.size:
                self._close()

    def on_stop(self, code: int) -> None:
        """The Viewer takes no more."""
        if self._opaque and self.exchange is not None:
            self.outbox.clear()
            self.exchange.response_stopped(code)
        elif not self.closed:
            self._fail()

    def on_reset(self, code: int, delivered: int = 0) -> None:
        """The Viewer is gone."""
        if self.closed:
            return
        exchange, self.exchange = self.exchange, None
        self._gone()
        if exchange is not None:
            exchange.viewer_lost()

    # --- the loop over requests ---

    def _take_whole(self, head: RequestHead, size: int) -> None:
        """The way of most requests, which are whole in one read with nothing behind: there is no loop to enter."""
        self.minor = head.minor
        exchange = self.exchange = Exchange(head, self, self.limits)
        exchange.request_ended = True
        self._wait = _NOTHING
        self.stream.consumed(size)
        self._on_request(exchange)

    def _go_on(self) -> None:
        """The way of most Viewers, who wait for their answer: nothing is held, and there is no loop to enter."""
        if self._held or self._eof:
            self._run(None)
        else:
            self._reader.next()
            self._wait_for(_IDLE, self.limits.idle_seconds)

    def _run(self, data: Data | None) -> None:
        """Take in `data`, or go on to the next request with what is held, for as long as requests are answered at once."""
        assert not self._busy
        self._busy = True
        try:
            again = True
            while again:
                again = self._turn(data)
                data = None
        except BadMessage as error:
            self._refuse_input(error)
        finally:
            self._busy = False
        self._after()

    def _turn(self, data: Data | None) -> bool:
        """One feed of the reader. True when its request is over already and the next may be looked for."""
        pieces = self._reader.next() if data is None else self._reader.feed(data)
        exchange = self.exchange
        for piece in pieces:
            kind = type(piece)
            if kind is RequestHead:
                exchange = self._begin(piece)  # type: ignore[arg-type]  # its type was just compared
            elif exchange is None or self.exchange is not exchange:
                return False
            elif kind is End:
                exchange.request_end(piece.trailers)  # type: ignore[union-attr]
            else:
                self._held -= len(piece)  # type: ignore[arg-type]
                exchange.request_data(piece)  # type: ignore[arg-type]
        if exchange is None:
            return False
        if self._fresh:
            self._fresh = False
            self._on_request(exchange)
        elif pieces:
            exchange.flush_request()
        return self.exchange is None and not (self._closing or self.closed) and exchange.request_ended

    def _begin(self, head: RequestHead) -> Exchange:
        self._wait = _NOTHING  # the head has come
        self.minor = head.minor
        self._fresh = True
        exchange = self.exchange = Exchange(head, self, self.limits)
        return exchange

    def _after(self) -> None:
        """Consume what has been parsed, see to the end of input, set the deadline."""
        if self.closed:
            return
        exchange = self.exchange
        hold = len(self._reader.rest) if exchange is not None and exchange.request_ended else 0
        credit, self._credit = self._credit, 0
        if not self._broken:
            credit += self._held - hold
            self._held = hold
        if credit:
            self.stream.consumed(credit)
        if self._paused or hold > self.limits.pipelined_bytes:
            self._regulate()
        if self._eof and not self._opaque and not self._broken:
            self._after_eof(exchange)
        if not self.closed:
            self._arm()

    def _after_eof(self, exchange: Exchange | None) -> None:
        """No more input comes: what the loop left unfinished stays so."""
        if exchange is None:
            self._close_when_drained()
        elif not exchange.request_ended:
            self._broken = True
            exchange.request_failed(PROBLEMS["request_cut_short"])

    def _refuse_input(self, error: BadMessage) -> None:
        """What came is not HTTP that is served."""
        self._broken = True
        exchange = self.exchange
        if exchange is None:
            self._reject(problem_of(error))
        else:
            exchange.request_failed(problem_of(error))

    def _reject(self, problem: Problem) -> None:
        """Answer what did not become a request, and close."""
        self._broken = True
        head, body = render(problem)
        self.send_head(head, True)
        self.outbox.put(body)
        self.flush()
        self._close_when_drained()

    def _own(self, head: ResponseHead, early: bool) -> ResponseHead:
        """The final `head` with what concerns this connection: its framing and whether it stays."""
        exchange = self.exchange
        keep = exchange is not None and exchange.request.keep_alive and not (early or self.draining)
        head = framed(head, viewer_minor=self.minor, keep_alive=keep)
        self._chunked = head.framing is Framing.CHUNKED
        self._closing = not keep or head.framing is Framing.UNTIL_CLOSE
        return head

    # --- deadlines and reading ---

    def _arm(self) -> None:
        exchange = self.exchange
        if self.outbox.size or self._wait is _REST:
            return
        if exchange is None:
            if not self._reader.started:
                if self._wait is not _HEAD:
                    self._wait_for(_IDLE, self.limits.idle_seconds)
            elif self._wait is not _HEAD:
                self._wait_for(_HEAD, self.limits.head_seconds)
        elif not exchange.request_ended and exchange.phase <= _FORWARDED:
            self._wait_for(_BODY, self.limits.body_seconds)
        else:
            self._wait_for_nothing()

    def _wait_for(self, wait: Wait, seconds: float) -> None:
        self._wait = wait
        self._set(seconds)

    def _wait_for_nothing(self) -> None:
        # The deadline is left as it is: it passes without effect, and mostly another is set before.
        self._wait = _NOTHING

    def _body_late(self, exchange: Exchange) -> None:
        if exchange.waits_for_host or exchange.phase > _FORWARDED:
            self._arm()
        else:
            self._broken = True
            exchange.request_failed(PROBLEMS["request_timeout"])

    def _regulate(self) -> None:
        """Read, or not."""
        paused = not self.closed and (self.frozen or self._held > self.limits.pipelined_bytes)
        if paused is not self._paused:
            self._paused = paused
            if paused:
                self.stream.pause()
            else:
                self.stream.resume()

    # --- the end ---

    def _close_when_drained(self) -> None:
        self._closing = True
        if not self.outbox.size:
            self._close()

    def _close(self) -> None:
        """End our half after what was accepted, and read no more."""
        self.stream.send_eof()
        self.stream.stop()
        self._gone()

    def _fail(self) -> None:
        """The Viewer will not get the response."""
        exchange, self.exchange = self.exchange, None
        self.stream.reset(Code.CANCELLED)
        self._gone()
        if exchange is not None:
            exchange.viewer_lost()

    def _gone(self) -> None:
        self.closed = True
        self.outbox.clear()
        self._wait_for_nothing()
        if self._on_closed is not None:
            self._on_closed(self)
