"""One request and its response, between a Viewer's side and a Host's side that do not know each other.

Theory of operation (docs/http.md). The two directions run side by side: whatever one side parses is given to the Exchange,
which hands it to the other side's Outbox; a flush then says how much of it left, and that much is consumed at its source. The
phase says how far the response is, for that decides what a failure means: before its first byte a Host may be lost and
replaced, after its head nothing can be taken back.

Calls from the sides come inside their Streams' sink calls. A handler may answer inside `on_request`; both sides can bear that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from netbore.proto.errors import LocalProtocolError
from netbore.proto.http import headers as rules
from netbore.proto.http.messages import Framing, Headers, RequestHead, ResponseHead
from netbore.proto.http.pages import PROBLEMS, Problem, problem_of_code, render
from netbore.proto.http.sides import LIMITS, TRANSITIONS, ExchangeLimits, HostSide, Input, Phase, ViewerSide
from netbore.proto.stream import Data, kept
from netbore.proto.wire import Code

#: RFC 9110 section 9.2.2, without TRACE, which is never passed on.
IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})
#: Losses that are a verdict on the Host and not on the connection: asking again would take as long again.
_LATE: Final = frozenset({Code.HOST_TIMEOUT, Code.IDLE_TIMEOUT, Code.TIMEOUT})


# As globals: to read a member of an enumeration costs ten times as much.
_ASKED, _FORWARDED, _ANSWERING, _EARLY, _OPAQUE, _DONE = Phase
_FORWARD, _ANSWER, _RETRY, _UPGRADE, _BEFORE, _WHOLE, _SPENT, _ABORT = Input


class Exchange:
    """One request and its response.

    The handler that got it calls one of `forward`, `respond`, `refuse` and `abort`, at once or later. `on_done` may be set, and
    is called once when it is over; `context` is the handler's own.
    """

    __slots__ = (
        "_dropped",
        "_forwarded",
        "_informed",
        "_kept",
        "_kept_size",
        "_on_retry",
        "_owed",
        "_rewrite",
        "_spare",
        "_trailers",
        "context",
        "host",
        "limits",
        "on_done",
        "on_first_byte",
        "phase",
        "received",
        "refusal",
        "request",
        "request_ended",
        "response_ended",
        "retries",
        "sent",
        "status",
        "viewer",
    )

    def __init__(self, request: RequestHead, viewer: ViewerSide, limits: ExchangeLimits = LIMITS) -> None:
        self.request = request
        self.viewer = viewer
        self.limits = limits
        self.host: HostSide | None = None
        self.phase = _ASKED
        self.request_ended = False
        self.response_ended = False
        self.retries = 0
        #: Status of the final response, 0 before it.
        self.status = 0
        self.on_done: Callable[[Exchange], None] | None = None
        #: Called once, when the final head of a Host's response has come.
        self.on_first_byte: Callable[[Exchange], None] | None = None
        #: Bytes of the request's body that came, and of the response's body that went.
        self.received = 0
        self.sent = 0
        #: The problem that was answered, or that ended it.
        self.refusal: Problem | None = None
        self.context: object = None
        self._on_retry: Callable[[Exchange, RequestHead], None] | None = None
        self._forwarded = request  # the head that the Host got
        #: The body as far as it may be needed (again); None when it has grown too large for that.
        self._kept: list[Data] | None = []
        self._kept_size = 0
        self._rewrite: Callable[[ResponseHead], ResponseHead]
        #: Bytes of the body that came and are not consumed yet.
        self._owed = 0
        #: The Host takes no more of the request.
        self._dropped = False
        #: How much more of the body is read when nobody needs it.
        self._spare = limits.early_bytes
        self._trailers: Headers = ()
        self._informed = 0

    # --- the handler ---

    @property
    def done(self) -> bool:
        """It is over; commands do nothing."""
        return self.phase is _DONE

    def forward(
        self,
        host: HostSide,
        head: RequestHead,
        rewrite: Callable[[ResponseHead], ResponseHead],
        on_retry: Callable[[Exchange, RequestHead], None] | None = None,
    ) -> None:
        """Send the request to `host`, with `head` (`headers.to_host`) in place of its own; the framing must be the request's.

        `rewrite` (`headers.to_viewer`) makes of each response head, informational ones included, the one for the Viewer, with the
        same framing. `on_retry` is called, with `head`, when the Host was lost without harm: the Exchange may be forwarded again,
        or answered.
        Raises LocalProtocolError if it was forwarded or answered already.
        """
        if self.phase is _DONE:
            host.unused()
            return
        self._step(_FORWARD)
        self.host = host
        self._rewrite = rewrite
        self._on_retry = on_retry
        self._forwarded = head
        host.start(self, head)
        if self._kept:
            for data in self._kept:
                host.send_body(data)
            if self._kept_size > self.limits.replay_bytes:
                self._kept = None
        if self.request_ended:
            host.send_end(self._trailers)
        self.flush_request()

    def respond(self, head: ResponseHead, body: bytes = b"") -> None:
        """Answer without a Host; after the head of a response has gone out, abort. `body` is whole, and small."""
        if self.done:
            return
        if self.phase > _FORWARDED:
            self.abort()
            return
        self._drop_host(Code.CANCELLED)
        self._step(_ANSWER)
        self.status = head.status
        if self.request.method == b"HEAD":
            head, body = ResponseHead(head.status, head.reason, 1, head.headers, framing=Framing.NONE), b""
        self.viewer.send_head(head, not self.request_ended)
        if body:
            self.viewer.send_body(body)
        self.viewer.send_end(())
        self.response_ended = True
        self.flush_response()

    def refuse(self, problem: Problem) -> None:
        """Answer with the page of `problem`; after the head of a response has gone out, abort."""
        self.refusal = problem
        self.respond(*render(problem, self.request))

    def abort(self, code: int = Code.CANCELLED) -> None:
        """End visibly, on both sides."""
        if not self.done:
            self._drop_host(code)
            self._over(_ABORT)
            self.viewer.abort(code)

    # --- from the Viewer's side ---

    def request_data(self, data: Data) -> None:
        """A slice of the request's body, owed to the Viewer's side until its `consumed`."""
        size = len(data)
        self.received += size
        self._owed += size
        if self._dropped or self.phase is _EARLY:
            self._spare -= size
            if self._spare < 0:
                if self.phase is _EARLY:
                    self.spent()
                return
        if self._dropped:
            self._release()
        elif self.host is None:
            self._keep(data)
        else:
            if self._kept is not None:
                self._remember(data)
            self.host.send_body(data)

    def request_end(self, trailers: Headers = ()) -> None:
        """The request is whole."""
        self.request_ended = True
        self._trailers = rules.trailers(trailers) if trailers else ()
        if self.host is not None and not self._dropped:
            self.host.send_end(self._trailers)

    def flush_request(self) -> None:
        """Offer to the Host what was sent since; called once after a batch of slices, and when the Host takes more."""
        if self.host is not None:
            # A body that is sent again was partly consumed the first time.
            left = min(self.host.flush(), self._owed)
            if left:
                self._owed -= left
                self.viewer.consumed(left)
        if self.response_ended:
            self._settle()

    def request_failed(self, problem: Problem) -> None:
        """The request will never be whole. The Viewer may still hear why."""
        if self.response_ended:
            self.spent()
        else:
            self.refuse(problem)

    def viewer_lost(self) -> None:
        """Nobody waits for the response."""
        self._drop_host(Code.CANCELLED)
        self._over(_ABORT)

    def response_stopped(self, code: int) -> None:
        """After an upgrade, the Viewer reads no more."""
        assert self.host is not None
        self.response_ended = True
        self.host.stop_reading(code)
        self._settle()

    def spent(self) -> None:
        """The response is whole, the rest of the request is not waited for."""
        self._drop_host(Code.CANCELLED)
        if self.phase is _ANSWERING:
            self._step(_BEFORE)
        self._over(_SPENT)
        self.viewer.finish()

    @property
    def waits_for_host(self) -> bool:
        """Part of the request has come and the Host has not taken it."""
        return self._owed > 0

    # --- from the Host's side ---

    def response_head(self, head: ResponseHead) -> bool:
        """A response head. False when the Exchange let go of this Host because of it."""
        if head.status < 200:
            return self._upgrade(head) if head.status == 101 else self._inform(head)
        self._begin_answer(head)
        self.viewer.send_head(self._rewrite(head), not self.request_ended)
        return True

    def _begin_answer(self, head: ResponseHead) -> None:
        self._step(_ANSWER)
        self._kept = None
        self.status = head.status
        if self.on_first_byte is not None:
            self.on_first_byte(self)

    def response_whole(self, head: ResponseHead, body: Data, framing: int) -> None:
        """A whole response at once, the first that comes; `framing` bytes of what came are not body."""
        host = self.host
        assert host is not None
        self._begin_answer(head)
        self.sent += len(body)
        left = self.viewer.send_whole(self._rewrite(head), body, not self.request_ended)
        self.response_ended = True  # not before: whoever raises until here has sent nothing
        host.consumed(framing + left)
        self._settle()

    def response_data(self, data: Data) -> None:
        """A slice of the response's body, owed to the Host's side until its `consumed`."""
        self.sent += len(data)
        self.viewer.send_body(data)

    def response_end(self, trailers: Headers = ()) -> None:
        """The response is whole."""
        self.response_ended = True
        self.viewer.send_end(rules.trailers(trailers) if trailers else ())

    def flush_response(self) -> None:
        """Offer to the Viewer what was sent since; called once after a batch of pieces, and when the Viewer takes more."""
        left = self.viewer.flush()
        if left and self.host is not None:
            self.host.consumed(left)
        if self.response_ended:
            self._settle()

    def request_stopped(self, code: int) -> None:
        """The Host takes no more of the request. It may still answer."""
        if self.phase is _OPAQUE:
            self.request_ended = True
            self.viewer.stop_reading(code)
            if self.response_ended:
                self._settle()
        else:
            self._drop_request()

    def host_lost(self, code: int, answered: bool, reused: bool) -> None:
        """The Host's side ended by itself, and is not called again.

        `answered`: some byte of a response had come; `reused`: it had carried another Exchange before.
        """
        self.host = None
        if self.response_ended and self.phase is not _OPAQUE:
            self._drop_request()
            self.flush_response()
        elif self.response_ended and code == Code.NOT_PROCESSED:
            # The Host had ended its half before; it only does not take what came later.
            self.request_ended = True
            self.viewer.stop_reading(code)
            self.flush_response()
        elif self.phase is not _FORWARDED:
            self.abort(code)
        elif self._on_retry is not None and not answered and self._may_retry(code, reused):
            self._step(_RETRY)
            self.retries += 1
            self._on_retry(self, self._forwarded)
        elif answered and code == Code.NOT_PROCESSED:
            # After an informational head: the Host knows of the request.
            self.refuse(problem_of_code(Code.HOST_CLOSED))
        else:
            self.refuse(problem_of_code(code))

    def host_failed(self) -> None:
        """The Host did not speak proper HTTP; its side ends itself."""
        self.host = None
        if self.phase is _FORWARDED:
            self.refuse(PROBLEMS["bad_gateway"])
        else:
            self.abort(Code.HOST_CLOSED)

    @property
    def waits_for_viewer(self) -> bool:
        """Neither side of the Host is at fault if nothing moves."""
        if self.response_ended or not self.viewer.drained:
            return True
        return not self.request_ended and not self._dropped and not self._owed

    # --- inside ---

    def _step(self, moved: Input) -> None:
        phase = TRANSITIONS.get((self.phase, moved))
        if phase is None:
            raise LocalProtocolError(Code.INTERNAL_ERROR, f"{moved.name} in {self.phase.name}")
        self.phase = phase

    def _keep(self, data: Data) -> None:
        assert self._kept is not None
        self._kept.append(kept(data))
        self._kept_size += len(data)

    def _remember(self, data: Data) -> None:
        if self._kept_size + len(data) <= self.limits.replay_bytes:
            self._keep(data)
        else:
            self._kept = None

    def _release(self) -> None:
        """Consume what is owed: nobody will send it."""
        if self._owed:
            owed, self._owed = self._owed, 0
            self.viewer.consumed(owed)

    def _drop_request(self) -> None:
        self._dropped = True
        self._kept = None
        if self._owed <= self._spare:
            self._spare -= self._owed
            self._release()

    def _drop_host(self, code: int) -> None:
        self._drop_request()
        host, self.host = self.host, None
        if host is not None:
            host.cancel(code)

    def _may_retry(self, code: int, reused: bool) -> bool:
        if self.retries or self._dropped:
            return False
        if code == Code.NOT_PROCESSED:
            return self._kept is not None
        bodiless = self.request_ended and not self._kept_size and self._kept is not None
        return reused and code not in _LATE and bodiless and self.request.method in IDEMPOTENT

    def _inform(self, head: ResponseHead) -> bool:
        self._informed += 1
        if self._informed > self.limits.informational:
            self._drop_host(Code.CANCELLED)
            self.refuse(PROBLEMS["bad_gateway"])
            return False
        if self.viewer.minor:
            self.viewer.send_head(self._rewrite(head), False)
        return True

    def _upgrade(self, head: ResponseHead) -> bool:
        host = self.host
        if host is None or self.request.upgrade is None or head.upgrade != self.request.upgrade:
            self._drop_host(Code.CANCELLED)
            self.refuse(PROBLEMS["bad_gateway"])
            return False
        self._step(_UPGRADE)
        self._kept = None
        self.status = head.status
        self.request_ended = False
        self.viewer.send_head(self._rewrite(head), False)
        host.go_opaque()
        early = self.viewer.go_opaque()
        if early:
            self.request_data(early)
        if self.viewer.ended:
            self.request_end()
        self.flush_request()
        return True

    def _settle(self) -> None:
        """The response has ended: see whether the Exchange has."""
        if self.phase is _DONE or not self.viewer.drained:
            return
        if self.request_ended:
            if self.phase is not _OPAQUE or self.host is None or self.host.drained:
                self._finish()
        elif self.phase is _ANSWERING:
            self._rest()

    def _rest(self) -> None:
        """The response is out before the request is in."""
        if self.host is None:
            self.spent()
            return
        self._step(_BEFORE)
        self._spare = self.limits.early_bytes
        self.viewer.expect_rest(self.limits.early_seconds)

    def _finish(self) -> None:
        if self._owed:
            self._release()
        host, self.host = self.host, None
        self._over(_WHOLE)
        if host is not None:
            host.finish()
        self.viewer.finish()

    def _over(self, moved: Input) -> None:
        self._step(moved)
        if self.on_done is not None:
            self.on_done(self)
