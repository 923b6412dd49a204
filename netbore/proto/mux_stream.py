"""A Stream of the Mux: the face of `netbore.proto.stream`, its two halves, and what waits in them.

Theory of operation. The halves follow the tables of `netbore.proto.state`, but what the user sees may run ahead of them: after
`send_eof` our half takes no more, though FIN leaves only behind the queue; after a FIN arrived, `on_eof` waits behind data that
waits.

- *Down.* `direct` is the sink while its data may go straight to it, else None: then `arrive` decides. Once anything
  waits, everything behind it waits too, until the posted `_tell` has emptied the queue.
- *Up.* Whatever the sink is owed is a field (`_stop_due`, `_writable_due`, `_waiting`, `_eof_due`, `_reset_due`), and one
  posted `_tell` pays it in that order. So a sink that comes late, or is exchanged, loses nothing, and a reset can cancel what
  is no longer true.
- *Receive credit.* While the receiving half is OPEN, the window's `size` is the sum of what the peer may still send
  (`credit_out`), what is not consumed, what was consumed and not returned (`owed`), and what was added and not announced
  (`added`).
- *Budget.* `held` is what the window draws from the Link's budget beyond `base`, which is its user's promise (the reserve of a
  Stream that the peer opened) and goes to its successor. At the end of the receiving half only what is unconsumed stays held,
  until it is consumed, or the Stream is reset (either way), stopped or released.
- *Deaf* Streams take no data (stop, reset), *mute* ones make no call at all (our own reset, release, after `on_reset`).

Fields without an underscore belong to the Mux and its scheduler too.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from netbore.proto.errors import LocalProtocolError
from netbore.proto.state import RECEIVING, SENDING, Half, Input, step
from netbore.proto.stream import COPY_BELOW, Data, Sink, kept
from netbore.proto.window import Growth
from netbore.proto.wire import HOST_ENDED, MAX_CREDIT, STREAM_QUEUE, STREAM_QUEUE_MOST, Code

if TYPE_CHECKING:
    from netbore.proto.mux import Mux

#: A sender that found the queue full is told when it has drained to this.
QUEUE_LOW: Final = STREAM_QUEUE // 2

#: Chunks shorter than this are merged when many wait: each costs an object beside its bytes.
_MERGE_BELOW: Final = 1024
_MERGE_FROM: Final = 16

# As globals: to read a member of an enumeration costs ten times as much.
_OPEN, _STOPPING, _ENDED = Half


def append(queue: deque[Data | bytearray], data: Data) -> None:
    """Queue `data`, so that many small pieces stay cheap to hold."""
    if len(queue) >= _MERGE_FROM and len(data) < _MERGE_BELOW:
        tail = queue[-1]
        if type(tail) is bytearray and len(tail) + len(data) < COPY_BELOW:
            tail += data
        else:
            queue.append(bytearray(data))
        return
    queue.append(kept(data))


class MuxStream:
    """One Stream of a Link. See `netbore.proto.stream.Stream` for what its methods promise.

    `id` is 0 until OPEN is encoded (and for the control stream). `kind`, `handle`, `hops` and `facts` are those of the OPEN.
    """

    __slots__ = (
        "_eof_called",
        "_eof_due",
        "_ours",
        "_paused",
        "_posted",
        "_reset_due",
        "_sink",
        "_stop_due",
        "_waiting",
        "_waiting_bytes",
        "_writable_due",
        "accepting",
        "added",
        "base",
        "begun",
        "blocked",
        "credit",
        "credit_out",
        "deaf",
        "direct",
        "eof_queued",
        "facts",
        "finished",
        "growth",
        "handle",
        "held",
        "hops",
        "id",
        "kind",
        "mute",
        "mux",
        "opened",
        "owed",
        "queue",
        "queued",
        "receiving_half",
        "released",
        "reset_queued",
        "scheduled",
        "sending_half",
        "stop_queued",
        "unconsumed",
        "window_due",
    )

    def __init__(
        self,
        mux: Mux,
        growth: Growth,
        credit: int,
        *,
        stream_id: int = 0,
        kind: int = 0,
        handle: int = 0,
        hops: int = 0,
        facts: dict[str, Any] | None = None,
        ours: bool = False,
    ) -> None:
        self.mux = mux
        self.id = stream_id
        self.kind = kind
        self.handle = handle
        self.hops = hops
        self.facts = facts
        self.opened = not ours  # its OPEN has passed
        self._ours = ours
        self.released = False

        self.receiving_half = _OPEN
        self.growth = growth
        self.credit_out = self.begun = growth.size  # what the peer may still send, and could at first
        self.unconsumed = 0  # what arrived and was not consumed, waiting or not
        self.owed = 0  # consumed, not yet returned by WINDOW
        self.added = 0  # added to the window, not yet announced
        self.base = growth.size
        self.held = 0
        self.window_due = False
        self.stop_queued: int | None = None  # a STOP that waits for our OPEN
        self.direct: Sink | None = None
        self._sink: Sink | None = None
        self._paused = False
        self._waiting: deque[Data | bytearray] = deque()
        self._waiting_bytes = 0
        self.deaf = False
        self.finished = False  # on_eof or on_reset was told
        self.mute = False

        self.sending_half = _OPEN
        self.queue: deque[Data | bytearray] = deque()
        self.queued = 0
        self.credit = credit
        self.scheduled = False
        self.accepting = True
        self.eof_queued = False
        self._eof_called = False
        self.reset_queued: tuple[int, int] | None = None  # code and delivered, behind the queue
        self.blocked = mux.frozen

        self._posted = False
        self._stop_due: int | None = None
        self._writable_due = False
        self._eof_due = False
        self._reset_due: tuple[int, int] | None = None

    # The face

    @property
    def sink(self) -> Sink | None:
        return self._sink

    @sink.setter
    def sink(self, sink: Sink | None) -> None:
        if self.mute:
            return
        self._sink = sink
        self._redirect()

    @property
    def writable(self) -> bool:
        return not self.blocked or not self.accepting

    @property
    def sending(self) -> bool:
        return self.accepting

    @property
    def receiving(self) -> bool:
        return not (self.deaf or self.finished)

    @property
    def granted(self) -> int:
        return self.credit_out + self.owed + self.added if self.receiving_half is not _ENDED else 0

    @property
    def suspended(self) -> bool:
        return self.mux.frozen

    def send_nowait(self, data: Data) -> int:
        count = len(data)
        if not self.accepting:
            return self._swallow(count)
        credit = self.credit
        # What has credit leaves as soon as the transport takes it; what has none may wait for long, and in every Stream at once.
        most = STREAM_QUEUE_MOST if credit >= STREAM_QUEUE_MOST else max(credit, STREAM_QUEUE)
        room = 0 if self.mux.frozen else most - self.queued
        if count >= room:
            self.blocked = True
            data = memoryview(data)[:room]
            count = room
        if not count:
            return 0
        queue = self.queue
        if queue:
            append(queue, data)
        else:
            queue.append(data if count >= COPY_BELOW else bytes(data))
        self.queued += count
        if credit and not self.scheduled:
            self.mux.scheduler.add(self)
        return count

    def send_eof(self) -> None:
        if self.accepting:
            self.accepting = False
            self.eof_queued = self._eof_called = True
            self.mux.scheduler.consider(self)

    def stop(self, code: int = 0) -> None:
        if self.deaf or self.finished:
            return
        self._deafen()
        if self.receiving_half is _ENDED:
            self.settle()
            return
        self.receiving_half = step(RECEIVING, self.receiving_half, Input.SEND_STOP)
        if self.opened:
            self.mux.scheduler.stop(self.id, code)
        else:
            self.stop_queued = code

    def reset(self, code: int, delivered: int = 0) -> None:
        if self.mute:
            return
        self._silence()
        if self.over:
            self.settle()
        elif self.queued and (code in HOST_ENDED or code == Code.NOT_PROCESSED):
            self.accepting = self.eof_queued = self._eof_called = False
            self.reset_queued = (code, delivered)
            self.mux.scheduler.consider(self)
        else:
            self.end_by_reset(Input.SEND_RESET)
            if self.opened:
                self.mux.scheduler.reset(self.id, code, delivered)
            self.mux.forget(self)

    def pause(self) -> None:
        self._paused = True
        self.direct = None

    def resume(self) -> None:
        self._paused = False
        self._redirect()

    def consumed(self, count: int) -> None:
        if self.deaf:
            return
        if not 0 <= count <= self.unconsumed - self._waiting_bytes:
            raise LocalProtocolError(Code.INTERNAL_ERROR, f"consumed {count} bytes more than was delivered")
        self.unconsumed -= count
        if self.receiving_half is _ENDED:
            self.settle()
            return
        self.owed += count
        mux, growth = self.mux, self.growth
        # Counted here, byte for byte, and not when credit returns: the rest below a quarter window, which returns only behind
        # further data, would hide that a window is full.
        if growth.moved(count, mux.now, mux.rtt):
            self._grow()
        if (self.added or self.owed * 4 >= growth.size) and not self.window_due:
            mux.scheduler.window(self)

    def release(self) -> None:
        if self.released:
            return
        self.released = True
        if self.accepting:
            self.reset(Code.CANCELLED)
        else:
            self.stop(Code.CANCELLED)
            self._silence()
            self.settle()
        if not self._ours:
            self.mux.handler_ended()

    # Called by the Mux: what arrives

    def arrive(self, data: Data) -> None:
        """`data`, whose credit is accounted for, goes to the sink, waits, or is dropped."""
        if self.deaf:
            return
        self.unconsumed += len(data)
        if self.direct is None:
            append(self._waiting, data)
            self._waiting_bytes += len(data)
            return
        try:
            self.direct.on_data(data)
        except Exception as error:
            self.mux.sink_failed(self, error)

    def receive_fin(self) -> None:
        """The peer's half has ended. Raises RemoteProtocolError when it had before."""
        self.receiving_half = step(RECEIVING, self.receiving_half, Input.RECEIVE_FIN)
        self.settle()
        sink = self.direct
        self.direct = None
        self.mux.forget_if_over(self)
        if self.deaf:
            return
        if sink is None:
            self._eof_due = True
            return
        self.finished = True
        try:
            sink.on_eof()
        except Exception as error:
            self.mux.sink_failed(self, error)

    def receive_stop(self, code: int) -> None:
        """Nobody reads what we send: FIN follows at once, or the reset that waits."""
        before = self.sending_half
        self.sending_half = step(SENDING, before, Input.RECEIVE_STOP)
        self._eof_called = False
        if before is _ENDED:
            return
        self.drop_queue()
        self.accepting = False
        self.eof_queued = self.reset_queued is None
        self.mux.scheduler.consider(self)
        self.mux.forget_if_over(self)
        if not self.mute:
            self._stop_due = code
            self._writable_due = False
            self.wake()

    def receive_window(self, increment: int) -> bool:
        """More credit. False when it is too much."""
        self.credit += increment
        self.mux.scheduler.consider(self)
        return self.credit <= MAX_CREDIT

    def receive_reset(self, code: int, delivered: int) -> None:
        """Both halves have ended. The sink learns of it now, or behind the data that waits (HOST_ENDED)."""
        self.end_by_reset(Input.RECEIVE_RESET)
        self.mux.forget(self)
        if self.mute:
            return
        if code in HOST_ENDED and not self.deaf and (self._waiting or self._eof_due):
            self._reset_due = (code, delivered)
            return
        self._deafen()
        self.settle()
        if self._sink is None:
            self._reset_due = (code, delivered)
            return
        sink = self._sink
        self._silence()
        try:
            sink.on_reset(code, delivered)
        except Exception as error:
            self.mux.sink_failed(self, error)

    def lose(self, code: int) -> None:
        """Both halves end for a reason of our side: told by a posted `on_reset`, data that waits is dropped."""
        self.end_by_reset(Input.SEND_RESET)
        if self.mute:
            return
        self._deafen()
        self.settle()
        self._reset_due = (code, 0)
        self.wake()

    # Called by the scheduler: what leaves

    @property
    def over(self) -> bool:
        """Both halves have ended."""
        return self.sending_half is _ENDED and self.receiving_half is _ENDED

    def simple(self) -> bool:
        """Nothing may leave but DATA."""
        return self.opened and not self.eof_queued and self.reset_queued is None

    @property
    def ready(self) -> bool:
        """Something may leave."""
        if not self.opened:
            return not self.over
        if self.queued:
            return self.credit > 0
        return self.eof_queued or self.reset_queued is not None

    def open_window(self, stream_id: int, size: int) -> None:
        """OPEN is being encoded: from now on the Stream has an id and a receive window."""
        self.id = stream_id
        self.opened = True
        self.growth.size = self.credit_out = self.begun = size
        self.mux.hold(self, size)

    def enlarge(self, size: int) -> None:
        """The window is to have `size` bytes, of which those beyond `base` were taken from the budget."""
        if size > self.growth.size:
            self.added = size - self.growth.size
            self.growth.size = self.begun = size
            self.mux.hold(self, self.added)
            self.mux.scheduler.window(self)

    def return_credit(self) -> int:
        """What a WINDOW is to say, in bytes; 0 when none is due any more."""
        self.window_due = False
        if self.receiving_half is not _OPEN:
            return 0
        increment = self.owed + self.added
        self.owed = self.added = 0
        self.credit_out += increment
        return increment

    def unblock(self) -> None:
        """There is room again."""
        self.blocked = False
        self._writable_due = not self.mute
        self.wake()

    def unblock_if_low(self) -> None:
        """There may be room again."""
        if self.blocked and self.queued <= QUEUE_LOW and not self.mux.frozen:
            self.unblock()

    def end_by_reset(self, happened: Input) -> None:
        """A RESET passes, either way: nothing is left to be sent, nothing is let in."""
        self.sending_half = step(SENDING, self.sending_half, happened)
        self.receiving_half = step(RECEIVING, self.receiving_half, happened)
        self.accepting = self.eof_queued = self._eof_called = False
        self.reset_queued = None
        self._stop_due = None
        self._writable_due = False
        self.direct = None
        self.drop_queue()
        self.settle()

    def drop_queue(self) -> None:
        """Nobody will want what is queued."""
        self.queue.clear()
        self.queued = 0

    def settle(self) -> None:
        """Give back to the budget what an ended receiving half needs no more."""
        if self.receiving_half is _ENDED:
            self.owed = self.added = self.credit_out = 0
            keep = max(0, self.unconsumed - self.base)
            if keep < self.held:
                self.mux.give(self, self.held - keep)

    def audit(self, coming: int) -> list[str]:
        """Broken invariants, in words. `coming` bytes of a DATA frame are under way to us."""
        wrong = []
        window = self.credit_out + self.unconsumed + self.owed + self.added + coming
        if self.receiving_half is _OPEN and not self.deaf and self.opened and window != self.growth.size:
            wrong.append(f"window of {self.growth.size}, but its parts are {window}")
        if min(self.credit, self.credit_out, self.unconsumed - self._waiting_bytes, self.held) < 0:
            wrong.append("something is below zero")
        if self.queued != sum(map(len, self.queue)) or (
            self.queued > max(STREAM_QUEUE, min(self.credit, STREAM_QUEUE_MOST)) and self is not self.mux.control
        ):
            wrong.append(f"{self.queued} bytes queued")
        if self._waiting_bytes != sum(map(len, self._waiting)):
            wrong.append(f"{self._waiting_bytes} bytes waiting")
        if self._due and not self._posted:
            wrong.append("the sink is owed a call that is not posted")
        if self.accepting and self.blocked and self.queued <= QUEUE_LOW and not self.mux.frozen:
            wrong.append("blocked, but nothing will say so")
        if self.direct is not None and (self._waiting or self.deaf or self._paused or self.direct is not self._sink):
            wrong.append("data would pass what waits")
        return wrong

    def _grow(self) -> None:
        """The window was used to the full."""
        mux, growth = self.mux, self.growth
        full = growth.size
        grown = growth.grow(mux.memory.known(mux.now))
        mux.memory.note(full, mux.now)
        if grown:
            mux.hold(self, grown)
            self.added += grown

    # What the sink is owed

    def wake(self) -> None:
        """Have `_tell` called in the turn."""
        if not self._posted:
            self._posted = True
            self.mux.post(self._tell)

    @property
    def _flows(self) -> bool:
        return self._sink is not None and not self._paused and not self.deaf

    @property
    def _due(self) -> bool:
        """Something is owed that the sink could be told now."""
        if self._sink is None:
            return False
        if self._stop_due is not None or self._writable_due:
            return True
        if self._waiting or self._eof_due:
            return self._flows
        return self._reset_due is not None

    def _redirect(self) -> None:
        waits = self._waiting or self._eof_due or self.receiving_half is not _OPEN
        self.direct = self._sink if self._flows and not waits else None
        if self._due:
            self.wake()

    def _tell(self) -> None:
        self._posted = False
        try:
            self._tell_up()
            self._tell_down()
        except Exception as error:
            self.mux.sink_failed(self, error)

    def _tell_up(self) -> None:
        if self._sink is not None and self._stop_due is not None:
            code, self._stop_due = self._stop_due, None
            self._sink.on_stop(code)
        if self._sink is not None and self._writable_due:
            self._writable_due = False
            self._sink.on_writable()

    def _tell_down(self) -> None:
        while self._waiting and self._sink is not None and not self._paused:
            data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._sink.on_data(bytes(data) if type(data) is bytearray else data)  # type: ignore[arg-type]
        if self._eof_due and not self._waiting and self._sink is not None and not self._paused:
            self._eof_due = False
            self.finished = True
            self._sink.on_eof()
        if self._reset_due is not None and not self._waiting and not self._eof_due and self._sink is not None:
            sink, (code, delivered) = self._sink, self._reset_due
            self._silence()
            self.settle()
            sink.on_reset(code, delivered)
            return
        self._redirect()

    def _deafen(self) -> None:
        """No data and no EOF is wanted any more."""
        self.deaf = True
        self.direct = None
        self._waiting.clear()
        self._waiting_bytes = 0
        self.unconsumed = 0
        self._eof_due = False

    def _silence(self) -> None:
        """No call to the sink follows."""
        self._deafen()
        self.mute = True
        self._sink = None
        self._stop_due = self._reset_due = None
        self._writable_due = False

    def _swallow(self, count: int) -> int:
        """What a half that takes no more says to `send_nowait`."""
        if self._eof_called:
            raise LocalProtocolError(Code.INTERNAL_ERROR, "sending after send_eof")
        return count
