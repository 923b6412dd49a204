"""A relay: joins two Streams, byte for byte, until both directions have ended.

Theory of operation. Two half-relays, one for each direction, and no task. Each is the sink of its source: what the source
gives goes to the target at once; what the target does not take is kept (at most what the source had credit for) and offered
again when the target is writable. The source's bytes are consumed exactly when the target has accepted them, so back-
pressure runs through.

Each direction goes to its own EOF. A target that takes no more (`on_stop`) ends only that direction: its source is stopped,
and the other direction goes on, so an answer that was given before the whole question was read is not lost. A reset ends
both; one that stands for the Host's end waits for the bytes that came before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from netbore.proto.stream import Data, Stream, kept
from netbore.proto.wire import HOST_ENDED


class HalfRelay:
    """One direction: the sink of `source`. Its `other` half is the other direction."""

    __slots__ = ("_ended", "_kept", "_relay", "_verdict", "done", "moved", "other", "source", "target")

    other: HalfRelay

    def __init__(self, relay: Relay, source: Stream, target: Stream) -> None:
        self._relay = relay
        self.source = source
        self.target = target
        #: Bytes that the target has accepted.
        self.moved = 0
        self.done = False
        self._kept: deque[Data] = deque()
        self._ended = False
        self._verdict: int | None = None  # a reset that waits behind the kept bytes

    # The source tells.

    def on_data(self, data: Data) -> None:
        if self.done:
            self.source.consumed(len(data))
            return
        if self._kept:
            self._kept.append(kept(data))
            return
        count = self.target.send_nowait(data)
        self.moved += count
        if count < len(data):
            self._kept.append(kept(memoryview(data)[count:]))
        if count:
            self.source.consumed(count)

    def on_eof(self) -> None:
        self._ended = True
        if not self._kept:
            self._finish()

    def on_writable(self) -> None:
        """Our source can be sent to again: that is the other direction's target."""
        self.other.push()

    def on_stop(self, code: int) -> None:
        """Our source takes no more: that is the other direction's target."""
        self.other.stopped(code)

    def on_reset(self, code: int, delivered: int = 0) -> None:
        if self._kept and code in HOST_ENDED and not self.done:
            self._verdict = code
            self.other.stopped(code)
        else:
            self._relay.reset(self, code)

    # The other half asks.

    def push(self) -> None:
        """Offer the kept bytes again."""
        while self._kept and not self.done:
            data = self._kept[0]
            count = self.target.send_nowait(data)
            self.moved += count
            if count:
                self.source.consumed(count)
            if count < len(data):
                self._kept[0] = kept(memoryview(data)[count:])
                return
            self._kept.popleft()
        if self._verdict is not None:
            self._relay.reset(self, self._verdict)
        elif self._ended and not self.done:
            self._finish()

    def stopped(self, code: int) -> None:
        """The target takes no more: this direction ends, and what it kept is dropped."""
        if not self.done:
            self.done = True
            self._kept.clear()
            self.source.stop(code)
            self._relay.one_done(self)

    def _finish(self) -> None:
        self.done = True
        self.target.send_eof()
        self._relay.one_done(self)


class Relay:
    """Both directions. Made by `relay`."""

    __slots__ = ("_map_code", "_on_done", "back", "code", "forth", "over")

    def __init__(
        self, a: Stream, b: Stream, on_done: Callable[[Relay], None] | None, map_code: Callable[[int], int] | None
    ) -> None:
        self._on_done = on_done
        self._map_code = map_code
        #: The code of the reset that ended it, None after two orderly ends.
        self.code: int | None = None
        self.over = False
        self.forth, self.back = self.halves(a, b)
        self.forth.other, self.back.other = self.back, self.forth

    def halves(self, a: Stream, b: Stream) -> tuple[HalfRelay, HalfRelay]:
        """The direction from `a` to `b`, and the one back. A hook."""
        return HalfRelay(self, a, b), HalfRelay(self, b, a)

    def start(self) -> None:
        self.forth.source.sink = self.forth
        self.back.source.sink = self.back

    def one_done(self, half: HalfRelay) -> None:
        if half.other.done:
            self._end()

    def reset(self, half: HalfRelay, code: int) -> None:
        """The source of `half` was reset: reset its target, with the count of the target's bytes that reached that source."""
        if not self.over:
            self.code = code
            self.forth.done = self.back.done = True
            half.target.reset(code if self._map_code is None else self._map_code(code), half.other.moved)
            self._end()

    def cancel(self, code: int) -> None:
        """Reset both Streams. Nothing happens when the relay is over."""
        if not self.over:
            self.code = code
            self.forth.done = self.back.done = True
            self.forth.source.reset(code, self.back.moved)
            self.back.source.reset(code, self.forth.moved)
            self._end()

    def _end(self) -> None:
        self.over = True
        self.forth.source.release()
        self.back.source.release()
        if self._on_done is not None:
            self._on_done(self)


def relay(
    a: Stream, b: Stream, on_done: Callable[[Relay], None] | None = None, *, map_code: Callable[[int], int] | None = None
) -> Relay:
    """Join two Streams; becomes the sink of both.

    `on_done(relay)` is called once, when both directions have ended; then `relay.forth.moved` and `relay.back.moved` are the
    bytes that went from `a` to `b` and back, and both Streams have been released. `map_code` turns the code of a reset of one
    Stream into that for the other; by default it is the same.
    """
    joined = Relay(a, b, on_done, map_code)
    joined.start()
    return joined
