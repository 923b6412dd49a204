"""The Mux: many Streams inside the Pipe's sequence (docs/protocol.md section 4). It knows no transport and no resume.

Theory of operation. `receive_data` cuts the sequence into frames (`frames.FrameReader`) and gives DATA to its Stream's sink in
the same call; what concerns the session becomes an event. `data_to_send` chooses frames when they can leave
(`scheduler.Scheduler`). The Mux itself keeps who exists:

- `_streams` holds opened Streams until both halves have ended. A frame for an id that is neither there nor above the last
  opened was under way when its Stream ended, and is dropped.
- `_unopened` holds ours that have no id yet: they hold a place in the peer's MAX_STREAMS, and take their window as OPEN is
  encoded.
- The control stream is a Stream like the others, with id 0, fixed windows outside the budget, and a sink that reads lines.
- `_reserve` is taken from the budget for the whole life of the Mux: `stream_window` for each Stream that the peer may have
  open. A Stream of the peer begins on it and leaves it to its successor, so raising MAX_STREAMS never has to wait.
- Wrong input is raised as RemoteProtocolError inside, and becomes the last event. An exception of a sink is a reset of its
  Stream and an event. What happened outside of `receive_data`, in posted calls, waits for the next one or for `take_events`.

`now` (seconds) is remembered for what commands have to date; it is as old as the turn, which only makes windows grow later.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from netbore.proto.errors import LocalProtocolError, RemoteProtocolError
from netbore.proto.events import (
    Event,
    Failed,
    GoAway,
    Move,
    OpenAllowed,
    SinkFailed,
    StreamOpened,
)
from netbore.proto.frames import (
    FrameReader,
    decode_open,
    encode_facts,
    encode_goaway,
    encode_message,
    encode_move,
    encode_open,
)
from netbore.proto.handshake import Limits
from netbore.proto.mux_control import ControlSink
from netbore.proto.mux_stream import MuxStream
from netbore.proto.rate import Allowance
from netbore.proto.scheduler import Scheduler
from netbore.proto.state import RECEIVING, Input, step
from netbore.proto.stream import Data
from netbore.proto.window import Budget, Growth, WindowMemory, first_window
from netbore.proto.wire import (
    CONTROL_WINDOW,
    MAX_CREDIT,
    MAX_ID,
    MAX_WINDOW,
    RESET_BODY,
    U16,
    U32,
    Code,
    Frame,
    Kind,
)

#: How often an OPEN that waits for a budget shared with other Links looks again, in seconds.
STARVED_SECONDS: Final = 0.25

_KINDS: Final = frozenset(map(int, Kind))


class Role(Enum):
    """Which side of the Link this is; the value is its first Stream id."""

    DIALLER = 1
    ACCEPTOR = 2


class Refusal(Enum):
    """Why no Stream can be opened now. Only MAX_STREAMS passes (OpenAllowed)."""

    MAX_STREAMS = "the peer allows no more Streams now"
    IDS = "the Link has used up its Stream ids"
    GOAWAY = "the peer accepts no more Streams"
    CLOSED = "the Link has ended"


class Mux:
    """One side of a Link's Streams.

    `ours` are the limits that we gave the peer, `theirs` those that it gave us. `post(fn, *args)` queues a call for the turn;
    `on_output()` says that output has appeared where there was none. `minor` may be shared with the Pipe. Raises
    LocalProtocolError when `budget` has no room for the reserve, `ours.max_streams * ours.stream_window` bytes.
    """

    def __init__(
        self,
        role: Role,
        ours: Limits,
        theirs: Limits,
        *,
        budget: Budget,
        post: Callable[..., None],
        on_output: Callable[[], None],
        max_id: int = MAX_ID,
        minor: Allowance | None = None,
    ) -> None:
        self.role = role
        self.budget = budget
        self.post = post
        self.on_output = on_output
        self.memory = WindowMemory()
        self.rtt: float | None = None  # seconds; set by the session, from the Pipe's PING
        self.now = 0.0
        self.frozen = False
        self.data_sent = 0  # DATA and OPEN frames since the last count
        self._minor = minor if minor is not None else Allowance()
        self._ours = ours
        self._window = theirs.stream_window
        self._max_id = max_id
        self._reserve = ours.max_streams * ours.stream_window
        if not budget.take(self._reserve):
            raise LocalProtocolError(Code.LIMIT_EXCEEDED, "no budget for the Streams that the peer may open")
        self._out = self._reserve
        self._events: list[Event] = []
        self._closed = False
        self._retry_at: float | None = None

        self._next_id: int = role.value
        self._last_peer_id = 0
        self._opened = 0  # how many of ours
        self._may_open = theirs.max_streams
        self._peer_opened = 0
        self._peer_may_open = ours.max_streams  # as announced
        self._handled = 0  # handlers that ended since then
        self._refused = False
        self._peer_gone_away = False
        self._goaway_id: int | None = None  # ours, once sent

        self.scheduler = Scheduler(self)
        self.control = MuxStream(self, Growth(CONTROL_WINDOW, CONTROL_WINDOW, budget), CONTROL_WINDOW)
        self.control.sink = ControlSink(self)
        self.scheduler.control = self.control
        self._streams: dict[int, MuxStream] = {0: self.control}
        self._unopened: dict[MuxStream, None] = {}
        self._lingering: set[MuxStream] = set()  # ended, but still holding budget
        self._reader = FrameReader(self._streams, self._admit, self._on_frame, self.sink_failed)
        self._handlers: dict[int, Callable[[int, bytes], None]] = {
            Frame.OPEN: self._on_open,
            Frame.FIN: self._on_fin,
            Frame.STOP: self._on_stop,
            Frame.RESET: self._on_reset,
            Frame.WINDOW: self._on_window,
            Frame.MAX_STREAMS: self._on_max_streams,
            Frame.GOAWAY: self._on_goaway,
            Frame.MOVE: self._on_move,
        }

    # Bytes in, bytes out

    def receive_data(self, data: Data, now: float) -> list[Event]:
        """Take the next bytes of the peer's sequence. Never raises for what the peer sent: `Failed` is then the last event."""
        if self._closed:
            return self.take_events()
        self.now = now
        try:
            self._reader.feed(data)
        except RemoteProtocolError as error:
            if not self._closed:
                self._closed = True
                self._events.append(Failed(error.code, error.text))
        self._earn()
        return self.take_events()

    def take_events(self) -> list[Event]:
        """What has happened, also in posted calls, and was not told yet."""
        events = self._events
        if events:
            self._events = []
            return events
        return []

    def data_to_send(self, limit: int, now: float) -> list[Data | bytearray]:
        """The next bytes of our sequence, at most `limit` of them, in pieces; a bytearray changes no more.

        Not empty while `has_output` and `limit` is above 0, unless what was to leave was reset meanwhile.
        """
        self.now = now
        parts = self.scheduler.take(limit, now)
        if self.data_sent:
            self._earn()
        if self.scheduler.starved and self._retry_at is None:
            self._retry_at = now + STARVED_SECONDS
        return parts

    @property
    def has_output(self) -> bool:
        """Whether `data_to_send` would give anything."""
        return self.scheduler.has_output

    def next_deadline(self) -> float | None:
        """When `handle_timeout` wants to be called."""
        return self._retry_at

    def handle_timeout(self, now: float) -> None:
        """Have OPENs that wait for the budget look again."""
        self.now = now
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self.scheduler.feed_starved()

    # Commands

    @property
    def refusal(self) -> Refusal | None:
        """Why `open` would return None."""
        if self._closed:
            return Refusal.CLOSED
        if self._peer_gone_away:
            return Refusal.GOAWAY
        if self._next_id + 2 * len(self._unopened) > self._max_id:
            return Refusal.IDS
        if self._opened + len(self._unopened) >= self._may_open:
            return Refusal.MAX_STREAMS
        return None

    @property
    def idle(self) -> bool:
        """No Stream is open but the control stream."""
        return len(self._streams) == 1 and not self._unopened

    def busy(self, handle: int | None = None) -> bool:
        """Whether a Stream is open for `handle`, or for any."""
        if handle is None:
            return not self.idle
        return any(stream.handle == handle and stream is not self.control for stream in self._live())

    def open(self, kind: Kind, handle: int, hops: int = 0, facts: dict[str, Any] | None = None) -> MuxStream | None:
        """Open a Stream; it may be sent on at once. None when `refusal` forbids it.

        Raises LocalProtocolError when the facts are longer than MAX_FACTS.
        """
        encode_facts(facts)
        refusal = self.refusal
        if refusal is not None:
            self._refused = refusal is Refusal.MAX_STREAMS
            return None
        growth = Growth(0, MAX_WINDOW, self.budget)
        stream = MuxStream(self, growth, self._window, kind=kind, handle=handle, hops=hops, facts=facts, ours=True)
        self._unopened[stream] = None
        self.scheduler.add(stream)
        return stream

    def send_message(self, message: dict[str, Any]) -> None:
        """Queue a message of the control stream, whatever its queue (`control.queued` bytes).

        Raises LocalProtocolError when it is longer than MAX_MESSAGE, or comes after `end_control`.
        """
        data = encode_message(message)
        control = self.control
        if not control.accepting:
            if not self._closed:
                raise LocalProtocolError(Code.INTERNAL_ERROR, "control message after its end")
            return
        control.queue.append(data)
        control.queued += len(data)
        self.scheduler.consider(control)

    def end_control(self) -> None:
        """Tell the peer that the Link closes. Idempotent."""
        self.control.send_eof()

    def goaway(self) -> None:
        """Accept no more Streams than have been opened. Idempotent."""
        if self._goaway_id is None and not self._closed:
            self._goaway_id = self._last_peer_id
            self.scheduler.urgent(encode_goaway(self._goaway_id))

    def move(self, spread: int) -> None:
        """Ask the peer to dial a second Link after a random part of `spread` milliseconds."""
        if not self._closed:
            self.scheduler.urgent(encode_move(spread))

    def freeze(self) -> None:
        """The Link is broken: Streams take nothing more."""
        self.frozen = True
        for stream in self._live():
            stream.blocked = True

    def thaw(self) -> None:
        """The Link is back: Streams that have room say so."""
        self.frozen = False
        for stream in self._live():
            stream.unblock_if_low()

    def abandon(self, handle: int, code: int) -> None:
        """The Tunnel behind `handle` is gone: its Streams are reset, and our sinks told by a posted `on_reset(code)`."""
        for stream in self._live():
            if stream.handle == handle and stream is not self.control and not stream.over:
                stream.lose(code)
                if stream.opened:
                    self.scheduler.reset(stream.id, code, 0)
                self.forget(stream)

    def close(self, code: int) -> None:
        """The Link has ended: nothing goes out or in any more. Each Stream's sink is told `on_reset(code)` by a posted call."""
        self._closed = True
        live = self._live()
        self._streams.clear()
        self._unopened.clear()
        self._lingering.clear()
        for stream in live:
            stream.lose(code)
        self.scheduler.clear()
        self.budget.give(self._out)
        self._out = self._reserve = 0
        self._retry_at = None

    # For Streams and the scheduler

    def hold(self, stream: MuxStream, count: int) -> None:
        """`count` bytes were taken from the budget for `stream`."""
        stream.held += count
        self._out += count

    def give(self, stream: MuxStream, count: int) -> None:
        """`stream` needs `count` bytes of the budget no more."""
        stream.held -= count
        if self._closed and not self._out:
            return
        self._out -= count
        self.budget.give(count)
        if not stream.held:
            self._lingering.discard(stream)
        self.scheduler.feed_starved()

    def forget(self, stream: MuxStream) -> None:
        """Both halves of `stream` have ended."""
        if stream in self._unopened:
            del self._unopened[stream]
            self._places_changed()
        elif self._streams.pop(stream.id, None) is not None and stream.held:
            self._lingering.add(stream)

    def forget_if_over(self, stream: MuxStream) -> None:
        """One half of `stream` has ended."""
        if stream.over:
            self.forget(stream)

    def encode_open(self, stream: MuxStream, now: float) -> bytes:
        """The OPEN of `stream`, which gets its id and window here; empty when the budget has no window for it."""
        size = first_window(self.budget, self.memory.known(now) // 2)
        if not size:
            return b""
        del self._unopened[stream]
        stream.open_window(self._next_id, size)
        self._streams[stream.id] = stream
        self._next_id += 2
        self._opened += 1
        self.data_sent += 1
        return encode_open(stream.id, stream.kind, stream.hops, stream.handle, window=size, facts=encode_facts(stream.facts))

    def handler_ended(self) -> None:
        """The handler of one of the peer's Streams is done: the peer may open another."""
        self._handled += 1
        if self.max_streams_due and not self._closed:
            self.scheduler.mark()

    @property
    def max_streams_due(self) -> bool:
        """Enough handlers have ended for a MAX_STREAMS: half of them, or any while the peer can open nothing."""
        if not self._handled or self._closed:
            return False
        return self._handled * 2 >= self._ours.max_streams or self._peer_opened >= self._peer_may_open

    def announce_max_streams(self) -> int:
        """The count that a MAX_STREAMS leaves with."""
        self._peer_may_open += self._handled
        self._handled = 0
        return self._peer_may_open

    def happened(self, event: Event) -> None:
        """The session is to hear of it."""
        self._events.append(event)

    def sink_failed(self, stream: MuxStream, error: Exception) -> None:
        """`stream`'s sink raised: the first ring. The control stream's reader raises what the peer did wrong."""
        if stream is self.control:
            raise error
        stream.reset(Code.INTERNAL_ERROR)
        self._events.append(SinkFailed(stream, error))

    # What the peer sends

    def _on_frame(self, kind: int, stream_id: int, payload: bytes) -> None:
        """Any frame but DATA; of a skipped one there is no payload."""
        if self._closed:
            return
        if kind not in (Frame.OPEN, Frame.FIN):
            self._earn()
            if not self._minor.spend(self.now):
                raise RemoteProtocolError(Code.LIMIT_EXCEEDED, "too many frames that carry nothing")
        handler = self._handlers.get(kind)
        if handler is not None:
            handler(stream_id, payload)

    def _earn(self) -> None:
        """DATA and OPEN pay for two minor frames each."""
        count = self.data_sent + self._reader.data_frames
        if count:
            self.data_sent = self._reader.data_frames = 0
            self._minor.earn(2 * count)

    def _find(self, stream_id: int) -> MuxStream | None:
        """The Stream that a frame is for; None when it has ended."""
        stream = self._streams.get(stream_id)
        if stream is None and not self._closed:
            mine = stream_id & 1 == self.role.value & 1
            if stream_id >= self._next_id if mine else stream_id > self._last_peer_id:
                raise RemoteProtocolError(Code.PROTOCOL_ERROR, f"frame for Stream {stream_id}, which was never opened")
        return stream

    def _admit(self, stream_id: int, length: int) -> MuxStream | None:
        """DATA of `length` bytes begins."""
        stream = self._find(stream_id)
        if stream is not None:
            stream.receiving_half = step(RECEIVING, stream.receiving_half, Input.RECEIVE_DATA)
            if length > stream.credit_out:
                raise RemoteProtocolError(Code.FLOW_CONTROL_ERROR, f"{length} bytes for Stream {stream_id} beyond its credit")
            stream.credit_out -= length
        return stream

    def _on_open(self, stream_id: int, payload: bytes) -> None:
        if stream_id & 1 == self.role.value & 1 or stream_id <= self._last_peer_id:
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, f"OPEN of Stream {stream_id} out of order")
        self._last_peer_id = stream_id
        self._peer_opened += 1
        self.data_sent += 1  # pays like one that was sent
        if self._peer_opened > self._peer_may_open:
            raise RemoteProtocolError(Code.LIMIT_EXCEEDED, "more Streams than MAX_STREAMS")
        if self.max_streams_due:
            self.scheduler.mark()
        opened = decode_open(payload)
        if opened.window > MAX_CREDIT:
            raise RemoteProtocolError(Code.FLOW_CONTROL_ERROR, "window of OPEN too large")
        if self._goaway_id is not None or opened.kind not in _KINDS:
            self.scheduler.reset(stream_id, Code.NOT_PROCESSED if opened.kind in _KINDS else Code.UNSUPPORTED, 0)
            self.handler_ended()
            return
        base = self._ours.stream_window
        stream = MuxStream(
            self,
            Growth(base, MAX_WINDOW, self.budget),
            opened.window,
            stream_id=stream_id,
            kind=opened.kind,
            handle=opened.handle,
            hops=opened.hops,
            facts=opened.facts,
        )
        self._streams[stream_id] = stream
        stream.enlarge(first_window(self.budget, self.memory.known(self.now) // 2, base))
        self._events.append(StreamOpened(stream))

    def _on_fin(self, stream_id: int, payload: bytes) -> None:
        stream = self._find(stream_id)
        if stream is not None:
            stream.receive_fin()

    def _on_stop(self, stream_id: int, payload: bytes) -> None:
        stream = self._find_not_control(stream_id)
        if stream is not None:
            stream.receive_stop(U16.unpack(payload)[0])

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        stream = self._find_not_control(stream_id)
        if stream is not None:
            stream.receive_reset(*RESET_BODY.unpack(payload))

    def _find_not_control(self, stream_id: int) -> MuxStream | None:
        if not stream_id:
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, "STOP or RESET of the control stream")
        return self._find(stream_id)

    def _on_window(self, stream_id: int, payload: bytes) -> None:
        (increment,) = U32.unpack(payload)
        if not increment:
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, "WINDOW of 0")
        stream = self._find(stream_id)
        if stream is not None and not stream.receive_window(increment):
            raise RemoteProtocolError(Code.FLOW_CONTROL_ERROR, f"credit of Stream {stream_id} too large")

    def _on_max_streams(self, stream_id: int, payload: bytes) -> None:
        _must_be_zero(stream_id)
        (count,) = U32.unpack(payload)
        if count > self._may_open:
            self._may_open = count
            self._places_changed()

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        _must_be_zero(stream_id)
        self._peer_gone_away = True
        self._events.append(GoAway(U32.unpack(payload)[0]))
        unopened = list(self._unopened)
        self._unopened.clear()
        for stream in unopened:
            stream.lose(Code.NOT_PROCESSED)

    def _on_move(self, stream_id: int, payload: bytes) -> None:
        _must_be_zero(stream_id)
        self._events.append(Move(U16.unpack(payload)[0]))

    def _places_changed(self) -> None:
        if self._refused and self.refusal is None:
            self._refused = False
            self._events.append(OpenAllowed())
            self.on_output()  # nothing to send, but whoever sends asks for the events too

    def _live(self) -> list[MuxStream]:
        return [*self._streams.values(), *self._unopened]

    # Invariants

    def audit(self) -> list[str]:
        """Broken invariants, in words."""
        live = self._live()
        wrong = self.scheduler.audit(live)
        for stream in live:
            coming = self._reader.under_way[1] if self._reader.under_way[0] is stream else 0
            wrong += [f"Stream {stream.id}: {text}" for text in stream.audit(coming)]
        wrong += [
            f"Stream {stream.id}: ended, but not forgotten" for stream in live if stream.over and stream is not self.control
        ]
        held = self._reserve + sum(stream.held for stream in {*live, *self._lingering})
        if self._out != held:
            wrong.append(f"{self._out} bytes of the budget are out, Streams and reserve hold {held}")
        return wrong


def _must_be_zero(stream_id: int) -> None:
    if stream_id:
        raise RemoteProtocolError(Code.PROTOCOL_ERROR, "a frame of the Link on a Stream")
