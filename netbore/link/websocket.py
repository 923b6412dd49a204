"""WebSocket over any transport: TLS on the Edge's public port, and TCP, memory or the simulator elsewhere.

Theory of operation. The carrier's bytes are `netbore.proto.websocket_pipe`'s; here they meet a transport. Each `try_send`
makes one binary message of what it accepts, at most one flush. What the inner transport does not take of it is *held*, and
nothing more is accepted until it is gone, so a frame is never torn. Control frames that are due go out between messages.

Reading asks the inner transport for no more than its caller wants, and payload is never longer than its frames; so
payload is left over only where it came behind the upgrade. That, and a close frame that came together with data, make no
event in the inner transport: then this one puts itself on the ready list.

The end of the peer's direction is its close frame, with a code that says so; an inner end without one is an error
("truncated"). Ours is a close frame, and then the inner transport's end. As every transport's, each direction ends by itself: a
peer's close frame is answered when the owner ends its own direction, or closes.

The client form sends the upgrade as soon as the inner transport is open, and has a deadline for the answer. The server form
begins where a request's head has been read and judged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from wsproto.frame_protocol import CloseReason, XorMaskerSimple

from netbore.link.base import Owned
from netbore.link.poller import Poller
from netbore.link.transport import Owner, Transport, TransportBroken
from netbore.proto.http.messages import Headers
from netbore.proto.parts import cut, size
from netbore.proto.stream import Data
from netbore.proto.websocket import MAX_ANSWER, ClientHandshake, Opened, Refused, Unusable
from netbore.proto.websocket_pipe import Masker, PeerEnd, WebSocketPipe
from netbore.proto.wire import FLUSH_MOST

#: Bytes of keys drawn at once.
DRAW = 1024

#: Codes by which a peer says that it had nothing more to send. Any other tells of an error.
ENDINGS = frozenset({CloseReason.NORMAL_CLOSURE, CloseReason.GOING_AWAY, CloseReason.NO_STATUS_RCVD})


def masker() -> Masker:
    """The fastest there is: 64 KiB take some 1.4 us with a compiled one, 50 us without."""
    try:
        from websockets.speedups import apply_mask  # noqa: PLC0415 - not on every platform
    except ImportError:
        return slow_masker
    return apply_mask


def slow_masker(data: Data, key: bytes) -> bytes:
    """wsproto's, for platforms without a compiled one."""
    return bytes(XorMaskerSimple(key).process(bytearray(data)))


def keys() -> Iterator[bytes]:
    """Unpredictable masking keys without end (RFC 6455 section 5.3)."""
    while True:
        pool = os.urandom(DRAW)
        for at in range(0, DRAW, 4):
            yield pool[at : at + 4]


class UpgradeRefused(TransportBroken):
    """The server answered the upgrade with something other than 101.

    `answer` has its status and, where it was problem+json, its code, detail and the subprotocols that it speaks: a status of 426
    means that it is too old or too new for us.
    """

    def __init__(self, answer: Refused) -> None:
        super().__init__("refused", f"the upgrade was answered with status {answer.status}")
        self.answer = answer


class WebSocketTransport(Owned):
    """WebSocket over `inner`, whose owner it becomes. Made by `WebSocketTransport.client` and `WebSocketTransport.server`."""

    __slots__ = ("_ending", "_handshake", "_held", "_inner", "_pipe", "_plain", "_send_error", "deadline")

    def __init__(self, poller: Poller, inner: Transport, owner: Owner | None, pipe: WebSocketPipe) -> None:
        super().__init__(poller, owner)
        self._inner = inner
        self._pipe = pipe
        self._handshake: ClientHandshake | None = None
        self._held: list[Data] = []
        self._plain = b""
        self._ending = False
        self._send_error: TransportBroken | None = None
        self.deadline: float | None = None
        inner.owner = self

    @classmethod
    def client(
        cls,
        poller: Poller,
        inner: Transport,
        owner: Owner | None = None,
        *,
        host: str,
        path: str,
        headers: Headers = (),
        new_key: Callable[[], bytes] | None = None,
    ) -> WebSocketTransport:
        """Begin the client's side; `on_open` of the inner transport must be still to come.

        `host` is the value of Host, with its port where that is not the scheme's. `on_failed` gets UpgradeRefused for an answer
        other than 101. Raises ValueError for a host, path or header that HTTP does not allow.
        """
        handshake = ClientHandshake(host, path, headers=headers)
        made = cls(poller, inner, owner, WebSocketPipe(True, masker(), new_key or keys().__next__))
        made._handshake = handshake
        return made

    @classmethod
    def server(
        cls, poller: Poller, inner: Transport, response: bytes, leftover: bytes = b"", owner: Owner | None = None
    ) -> WebSocketTransport:
        """Take over the open `inner`, from which a request's head was read.

        `response` is what `accept_upgrade` gave, `leftover` what came behind the head. `on_open` is posted.
        """
        made = cls(poller, inner, owner, WebSocketPipe(False, masker(), keys().__next__))
        inner.watch(False, False)
        poller.post(made._accept, response, leftover)
        return made

    # The handshake.

    def on_open(self) -> None:
        """The inner transport is open."""
        if self._handshake is not None:
            self.deadline = self._poller.now + self._poller.limits.handshake_seconds
            self._poller.sweep(self)
            self._offer([self._handshake.request])
            self._rewatch()

    def on_failed(self, error: TransportBroken) -> None:
        self._fail(error)

    def on_deadline(self, now: float) -> None:
        self._fail(TransportBroken("timeout", "the upgrade was not answered in time"))

    def _read_answer(self, handshake: ClientHandshake) -> None:
        try:
            data = self._inner.try_recv(MAX_ANSWER)
        except TransportBroken as error:
            return self._fail(error)
        if data is None:
            return
        match handshake.receive_data(data) if data else handshake.receive_eof():
            case Opened(leftover=leftover):
                self._begin(leftover)
            case Refused() as answer:
                self._fail(UpgradeRefused(answer))
            case Unusable(reason=reason):
                self._fail(TransportBroken("protocol" if data else "truncated", reason))

    def _accept(self, response: bytes, leftover: bytes) -> None:
        if not self.closed:
            self._offer([response] if response else [])
            self._begin(leftover)

    def _begin(self, leftover: bytes) -> None:
        self._upgrade_over()
        self.facts = self._inner.facts
        if leftover:
            self._plain = self._take(leftover)
        self._open()
        if not self.closed:
            self._rewatch()
            self._more()

    def _upgrade_over(self) -> None:
        self._handshake = None
        self.deadline = None
        self._poller.sweep_no_more(self)

    # Readiness.

    def on_readable(self) -> None:
        if self._handshake is not None:
            self._read_answer(self._handshake)
        elif self.want_read:
            self._owner.on_readable()
            self._more()

    def on_writable(self) -> None:
        if self._held:
            self._offer(self._held)
        if self.opened and self.want_write and (not self._held or self._send_error is not None):
            self._owner.on_writable()
        if not self.closed:
            self._rewatch()

    def on_ready(self, mask: int) -> None:
        """From the ready list: payload, or the end, may be left over."""
        if self.want_read and self._left_over():
            self._owner.on_readable()
            self._more()

    def _left_over(self) -> bool:
        return bool(self._plain) or self._pipe.peer_end is not None

    def _more(self) -> None:
        if self.want_read and self.opened and self._left_over():
            self._poller.make_ready(self)

    def watch(self, readable: bool, writable: bool) -> None:
        if self.closed or (readable == self.want_read and writable == self.want_write):
            return
        self.want_read, self.want_write = readable, writable
        if self.opened:
            self._rewatch()
            self._more()

    def _rewatch(self) -> None:
        if self.opened:
            reading = self.want_read and self._pipe.peer_end is None
            self._inner.watch(reading, self.want_write or bool(self._held))
        else:
            self._inner.watch(self._handshake is not None, bool(self._held))

    # Receiving.

    def try_recv(self, limit: int) -> bytes | None:
        if not self.opened or self.closed:
            return None
        if self._plain:
            data, self._plain = self._plain[:limit], self._plain[limit:]
            return data
        if self._pipe.peer_end is None:
            came = self._inner.try_recv(limit)
            if came is None:
                return None
            if not came:
                raise TransportBroken("truncated", "the connection ended without a close frame")
            if payload := self._take(came):
                return payload
        end = self._pipe.peer_end
        return None if end is None else self._read_end(end)

    def _take(self, data: bytes) -> bytes:
        """The payload in bytes of the inner transport; what the pipe has to say to them is offered."""
        pieces = self._pipe.receive_data(data)
        if self._pipe.has_output and not self._held:
            self._offer(self._pipe.parts_to_send())
        if self._pipe.peer_end is not None:
            self._rewatch()
            self._more()
        return b"".join(pieces)

    def _read_end(self, end: PeerEnd) -> bytes:
        if end.failed:
            raise TransportBroken("protocol", f"the peer broke the WebSocket protocol: {end.reason}")
        if end.code not in ENDINGS:
            raise TransportBroken("reset", f"the peer closed the WebSocket with code {end.code}")
        return b""

    # Sending.

    @property
    def draining(self) -> bool:
        return bool(self._held) or (not self.closed and self._inner.draining)

    def try_send(self, data: Data) -> int:
        return self.try_send_parts((data,))

    def try_send_parts(self, parts: Sequence[Data]) -> int:
        if self.closed:
            return size(parts)
        if self._send_error is not None:
            raise self._send_error
        count = size(parts)
        if not self.opened or self._held or not count:
            return 0
        if self._pipe.close_sent:
            raise TransportBroken("reset", "our direction has ended")
        if count > FLUSH_MOST:
            parts = list(parts)
            cut(parts, FLUSH_MOST)
            count = FLUSH_MOST
        self._offer(self._pipe.encode(parts))
        if self._send_error is not None:
            raise self._send_error
        return count

    def _offer(self, parts: list[Data]) -> None:
        """Give `parts`, and then what else is due, to the inner transport. Hold what it does not take, and what made it fail
        in `_send_error`."""
        held = bool(self._held)
        try:
            while parts:
                # The inner transport may have a measure of its own, a little less than a frame: ask until it takes nothing.
                count = self._inner.try_send_parts(parts)
                if not count:
                    break
                parts = cut(parts, count) or self._pipe.parts_to_send()
        except TransportBroken as error:
            self._send_error = error
            parts = []
        self._held = parts
        if self._ending and not parts:
            self._inner.send_eof()
        if held != bool(parts):
            self._rewatch()

    def send_eof(self) -> None:
        if self.opened and not self.closed and not self._ending:
            self._ending = True
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        self._pipe.send_close()
        self._offer(self._held or self._pipe.parts_to_send())

    def close(self, abort: bool = False) -> None:
        if self.closed:
            return
        if self.opened and not abort and self._send_error is None:
            self._say_goodbye()
        self.closed = True
        self.want_read = self.want_write = False
        self._upgrade_over()
        self._held = []
        self._plain = b""
        self._poller.let_go(self)
        self._inner.close(abort)

    def unsent(self) -> bool | None:
        return bool(self._held) or (self._inner.unsent() if isinstance(self._inner, Owned) else None)

    def audit(self) -> str | None:
        if self.want_read and self.opened and self._left_over() and not self._poller.is_ready(self):
            return "a WebSocket transport has payload left over and is not on the ready list"
        return None
