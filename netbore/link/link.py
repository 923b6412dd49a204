"""A Link: the driver that joins a protocol session to transports that come and go.

Theory of operation. The Link is the owner of its present transport. Bytes come in by `on_readable` and leave by
`flush`, which the Poller's turn calls last, once for all that the turn produced; a flush hands over at most 64 KiB, or 256 KiB
to a transport that keeps up, and, when more is waiting, asks for `on_writable`, so that frames are chosen when the socket can
take them. All of it is synchronous. The one who made the Link (the Edge's door, the Agent's dialler) is its *user*: it hears of
Streams, messages, broken transports and the end, and brings the next transport.

Third ring of errors: an exception in protocol code ends the Link with CLOSE(internal_error) and is never resumed, since
a resume would replay the same bytes into the same bug.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import trio

from netbore.changes import Changed
from netbore.link.base import READ, next_read
from netbore.link.poller import Poller, Timer
from netbore.link.stream import StreamAdapter
from netbore.link.transport import Transport, TransportBroken
from netbore.proto import events, pipe
from netbore.proto.handshake import Limits
from netbore.proto.mux import Refusal, Role
from netbore.proto.mux_stream import MuxStream
from netbore.proto.parts import cut
from netbore.proto.records import RecordDecoder
from netbore.proto.session import Ended, Session
from netbore.proto.stream import Data
from netbore.proto.window import Budget
from netbore.proto.wire import FLUSH, FLUSH_MOST, MAX_CONTROL_QUEUE, MAX_ID, Code, Kind

#: Bytes handed to it at once, and at most once it has proved fast: with a WebSocket's header, whole TLS records.
WRITE = FLUSH - 16
WRITE_MOST = FLUSH_MOST - 16

log = logging.getLogger("netbore.link")


class LinkUser(Protocol):
    """Who made the Link. Calls come from the Poller's turn."""

    def on_message(self, link: Link, message: dict[str, Any]) -> None:
        """A control message arrived."""

    def on_broken(self, link: Link, reason: str) -> None:
        """The transport died. The Link lives on until `attach` or `close`."""

    def on_move(self, link: Link, spread: float) -> None:
        """The Edge wants a second Link, dialled within `spread` seconds."""

    def on_open_allowed(self, link: Link) -> None:
        """An `open` that was refused for MAX_STREAMS may be tried again."""

    def on_ended(self, link: Link, ended: Ended) -> None:
        """The Link is over; its Streams have been reset. The last call."""


class Link(trio.abc.Listener[StreamAdapter]):
    """One logical connection between an Edge and an Agent.

    It is also a Trio Listener of the Streams that the peer opens: `accept` gives them one by one, as HalfCloseableStreams. A
    synchronous handler set as `on_stream` takes them instead.
    """

    def __init__(
        self,
        poller: Poller,
        role: Role,
        ours: Limits,
        theirs: Limits,
        user: LinkUser,
        *,
        name: str,
        budget: Budget | None = None,
        max_id: int = MAX_ID,
    ) -> None:
        """A Link whose handshake has agreed on these limits; it waits for `attach`. `name` is for logs."""
        self.name = name
        self.session = Session(role, ours, theirs, post=poller.post, on_output=self._mark, budget=budget, max_id=max_id)
        self.on_stream: Callable[[MuxStream], None] | None = None
        self._poller = poller
        self._user = user
        self._transport: Transport | None = None
        self._unsent: list[Data] = []
        self._limit = WRITE
        self._read = READ
        self._timer: Timer | None = None
        self._arrived: deque[MuxStream] = deque()
        self._changed = Changed()
        self._draining = 0  # tasks that want to hear of each step of the session
        self._stepped = Changed()

    # State

    @property
    def ended(self) -> Ended | None:
        """Why the Link is over, or None while it is not."""
        return self.session.ended

    @property
    def broken(self) -> bool:
        """There is no transport now."""
        return self._transport is None

    # Transports

    def attach(self, transport: Transport, peer_received: int, decoder: RecordDecoder | None = None) -> None:
        """Go on over `transport`, whose handshake is done; `decoder` holds what came behind it.

        Raises RemoteProtocolError when the peer's offset is impossible.
        """
        self.detach("a new transport took its place")
        now = self._poller.now
        happened = self.session.attach(peer_received, now, decoder)
        self._transport = transport
        transport.owner = self
        transport.watch(True, False)
        self._handle(happened)
        self._mark()

    def detach(self, reason: str) -> None:
        """Fence: abandon the present transport and all it may still deliver."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        log.debug("link %s lost its transport: %s", self.name, reason)
        transport.close(abort=True)
        self._unsent = []
        self._limit = WRITE
        self.session.detach(self._poller.now)
        self._arm()

    def close(self, code: int = Code.NO_ERROR, text: str = "") -> None:
        """End the Link for good: Streams are reset, CLOSE is offered to the transport once. Idempotent."""
        if self.session.ended is None:
            self._finish(self.session.close(code, text))

    # Streams

    def open(self, kind: Kind, handle: int, hops: int = 0) -> MuxStream | None:
        """Open a Stream to the peer; None when `refusal` says why not."""
        return self.session.mux.open(kind, handle, hops)

    @property
    def refusal(self) -> Refusal | None:
        """Why no Stream can be opened now."""
        return self.session.mux.refusal

    def send_message(self, message: dict[str, Any]) -> None:
        """Queue a control message. A peer that grants no credit for so long that MAX_CONTROL_QUEUE bytes wait ends the Link."""
        mux = self.session.mux
        mux.send_message(message)
        if mux.control.queued > MAX_CONTROL_QUEUE:
            self.close(Code.LIMIT_EXCEEDED, "the peer does not read the control stream")

    async def open_stream(self, kind: Kind, handle: int) -> StreamAdapter:
        """Open a Stream as a Trio stream. A checkpoint. Raises trio.BrokenResourceError when the peer allows none now."""
        await trio.lowlevel.checkpoint()
        stream = self.open(kind, handle)
        if stream is None:
            raise trio.BrokenResourceError(str(self.refusal and self.refusal.value))
        return StreamAdapter(stream)

    async def accept(self) -> StreamAdapter:
        """The next Stream that the peer opened. A checkpoint; cancelling it loses no Stream.

        Raises trio.ClosedResourceError after `aclose`, trio.BrokenResourceError when the Link ended otherwise.
        """
        await trio.lowlevel.checkpoint()
        while not self._arrived:
            if self.ended is not None:
                if self.ended.by_peer:
                    raise trio.BrokenResourceError(self.ended.text)
                raise trio.ClosedResourceError(self.ended.text)
            await self._changed.wait()
        return StreamAdapter(self._arrived.popleft())

    async def drained(self, handle: int | None = None) -> None:
        """Wait until no Stream is open, or none of one handle, and the peer has all that was sent on them; or until the end.

        A checkpoint, for any number of tasks. A broken Link is waited for.
        """
        await trio.lowlevel.checkpoint()
        session = self.session
        self._draining += 1
        try:
            while self.ended is None and session.mux.busy(handle):
                await self._stepped.wait()
            sent = session.pipe.sent
            while self.ended is None and session.pipe.acked < sent:
                await self._stepped.wait()
        finally:
            self._draining -= 1

    async def aclose(self) -> None:
        """End the Link at once. A checkpoint."""
        self.close(Code.GOING_AWAY, "closed")
        await trio.lowlevel.checkpoint()

    # The transport's owner

    def on_open(self) -> None:
        """Never called: a Link gets its transport after the handshake."""

    def on_failed(self, error: TransportBroken) -> None:
        """Never called, for the same reason."""

    def on_readable(self) -> None:
        transport = self._transport
        if transport is None:
            return
        try:
            data = transport.try_recv(self._read)
        except TransportBroken as error:
            self._break(error.reason)
            return
        if data:
            self._read = next_read(len(data), self._read)
            self._handle(self.session.receive_data(data, self._poller.now))
            self._after()
        elif data is not None:
            self._break("the peer closed the connection")

    def on_writable(self) -> None:
        self._mark()

    def on_crash(self, error: Exception) -> None:
        """Third ring: a bug in protocol code, ours or planted."""
        log.error("link %s failed", self.name, exc_info=error)
        self.close(Code.INTERNAL_ERROR, "internal error")

    def flush(self) -> None:
        """Send what is waiting, as far as the transport takes it now, at most one flush."""
        happened = self.session.take_events(self._poller.now)
        if happened:
            self._handle(happened)
        transport = self._transport
        if transport is None:
            return
        fresh = not self._unsent
        parts = self._unsent or self.session.parts_to_send(self._limit, self._poller.now)
        if parts:
            try:
                sent = transport.try_send_parts(parts)
            except TransportBroken as error:
                self._break(error.reason)
                return
            self._unsent = cut(parts, sent)
            self._adapt(transport, 2 * sent > self._limit and fresh)
        transport.watch(True, bool(self._unsent) or self.session.has_output)
        self._step()
        self._arm()

    # Inside

    def _adapt(self, transport: Transport, full: bool) -> None:
        """What waits in a slow transport delays all that comes later: only one that takes `full` flushes whole, and passes them
        on, gets larger ones."""
        if self._unsent or ((full or self._limit > WRITE) and transport.draining):
            self._limit = WRITE
        elif full:
            self._limit = min(2 * self._limit, WRITE_MOST)

    def _mark(self) -> None:
        self._poller.mark(self, last=True)

    def _after(self) -> None:
        self._step()
        if self._transport is not None and self.session.has_output:
            self._mark()
        else:
            self._arm()

    def _step(self) -> None:
        if self._draining:
            self._stepped.set()

    def _handle(self, happened: list[Any]) -> None:
        for event in happened:
            match event:
                case events.StreamOpened(stream=stream):
                    self._opened(stream)
                case events.MessageReceived(message=message):
                    self._user.on_message(self, message)
                case events.Move(spread=spread):
                    self._user.on_move(self, spread / 1000)
                case events.OpenAllowed():
                    self._user.on_open_allowed(self)
                case events.SinkFailed(stream=stream, error=error):
                    log.error("stream %s of link %s failed", stream.id, self.name, exc_info=error)
                case pipe.TransportDead(reason=reason):
                    self._break(reason)
                case Ended():
                    self._finish(event)
                case _:
                    pass

    def _opened(self, stream: MuxStream) -> None:
        if self.on_stream is not None:
            self.on_stream(stream)
        else:
            self._arrived.append(stream)
            self._changed.set()

    def _break(self, reason: str) -> None:
        self.detach(reason)
        if self.session.ended is None:
            self._user.on_broken(self, reason)

    def _finish(self, ended: Ended) -> None:
        """The session has ended: say so, once, and let go of the transport."""
        transport, self._transport = self._transport, None
        if transport is not None:
            last = [*self._unsent, *self.session.parts_to_send(FLUSH, self._poller.now)]
            with suppress(TransportBroken):
                transport.try_send_parts(last)
            transport.close()
        if self._timer is not None:
            self._timer.cancel()
        for stream in self._arrived:
            stream.release()
        self._arrived.clear()
        self._changed.set()
        self._step()
        self._user.on_ended(self, ended)

    def _arm(self) -> None:
        """Keep one timer that fires no later than the session's next deadline."""
        deadline = self.session.next_deadline()
        timer = self._timer
        if deadline is None or (timer is not None and timer.deadline <= deadline):
            return
        if timer is not None:
            timer.cancel()
        self._timer = self._poller.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.session.ended is None:
            self._handle(self.session.handle_timeout(self._poller.now))
        if self.session.ended is None:
            self._after()
