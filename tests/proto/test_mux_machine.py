"""Two Muxes under every order of commands that Hypothesis can think of.

No byte is lost, repeated or reordered, and all comes to rest.
"""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from netbore.proto.events import Failed, SinkFailed
from netbore.proto.handshake import Limits
from netbore.proto.mux import Refusal, Role
from netbore.proto.mux_stream import MuxStream
from netbore.proto.wire import STREAM_QUEUE, STREAM_QUEUE_MOST, Code, Kind
from tests.proto.mux_pair import Recorder, Side

LIMITS = Limits(max_streams=4, stream_window=16384)
#: Room for full windows; windows shrink; OPENs wait for each other.
TOTALS = [64 * 1048576, 600_000, 65536 + 20_000]
CODES = [Code.CANCELLED, Code.HOST_CLOSED, Code.NOT_PROCESSED, Code.HOST_TIMEOUT]
WHICH = st.integers(0, 15)
SIDES = st.sampled_from([0, 1])
#: Sends take slices at (sent + seed) mod 251 of a pattern of that period, so its position alone tells each byte.
PATTERN = bytes(n % 251 for n in range(200_000))


@attrs.define(eq=False)
class End:
    """One end of a Stream as its user sees it."""

    stream: MuxStream
    side: int
    sink: Recorder
    sent: int = 0
    seed: int = 0
    eof: bool = False
    spoiled: bool = False  # we or the peer stopped or reset: completeness is not promised
    other: End | None = None


class Joined(RuleBasedStateMachine):
    """Commands on both sides of a wire with delay and splits."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.total = 0
        self.sides: list[Side] = []
        self.ends: list[End] = []
        self.known: dict[tuple[int, int], End] = {}  # (opener's side, id) -> the opener's end
        self.seed = 0

    @initialize(greedy=st.booleans(), rtt=st.sampled_from([None, 0.05]), total=st.sampled_from(TOTALS))
    def start(self, greedy: bool, rtt: float | None, total: int) -> None:
        self.total = total
        self.sides = [Side(role, LIMITS, LIMITS, total) for role in Role]
        for side in self.sides:
            side.greedy = greedy
            side.mux.rtt = rtt

    # Helpers

    def pick(self, which: int) -> End:
        return self.ends[which % len(self.ends)]

    def absorb(self, side: int) -> None:
        """Meet the Streams that the peer opened."""
        for stream_id, sink in self.sides[side].sinks.items():
            if (1 - side, stream_id) in self.known:
                opener = self.known[1 - side, stream_id]
                if opener.other is None:
                    self.seed += 1
                    end = End(sink.stream, side, sink, seed=self.seed, other=opener)
                    opener.other = end
                    self.ends.append(end)

    def move(self, side: int, count: int, limit: int) -> None:
        """Encode up to `limit` bytes, deliver up to `count` of those on the wire."""
        here, there = self.sides[side], self.sides[1 - side]
        here.wire += here.flush(limit, self.now)
        for end in self.ends:
            if end.side == side and end.stream.id and end.other is None:
                self.known[side, end.stream.id] = end
        data = bytes(here.wire[:count])
        del here.wire[:count]
        events = there.receive(data, self.now)
        assert not [event for event in events if isinstance(event, Failed | SinkFailed)], events
        self.absorb(1 - side)

    # Commands

    @rule(side=SIDES)
    def open(self, side: int) -> None:
        mux = self.sides[side].mux
        refusal = mux.refusal
        stream = mux.open(Kind.HTTP, 1)
        assert (stream is None) == (refusal is Refusal.MAX_STREAMS)
        if stream is not None:
            self.seed += 1
            self.ends.append(End(stream, side, Recorder(stream, self.sides[side].greedy), seed=self.seed))

    @precondition(lambda self: self.ends)
    @rule(which=WHICH, count=st.sampled_from([0, 1, 7, 300, 5000, 20000, 65536, 100_000]))
    def send(self, which: int, count: int) -> None:
        end = self.pick(which)
        if not end.stream.sending:
            return
        at = (end.sent + end.seed) % 251
        taken = end.stream.send_nowait(memoryview(PATTERN)[at : at + count])
        assert 0 <= taken <= count
        assert taken == count or not end.stream.writable
        end.sent += taken

    @precondition(lambda self: self.ends)
    @rule(which=WHICH)
    def send_many_small(self, which: int) -> None:
        for _ in range(40):
            self.send(which, 7)

    @precondition(lambda self: self.ends)
    @rule(which=WHICH)
    def send_eof(self, which: int) -> None:
        end = self.pick(which)
        end.eof = end.eof or end.stream.sending
        end.stream.send_eof()

    @precondition(lambda self: self.ends)
    @rule(which=WHICH)
    def stop(self, which: int) -> None:
        end = self.pick(which)
        end.stream.stop(3)
        end.spoiled = True
        assert not end.stream.receiving

    @precondition(lambda self: self.ends)
    @rule(which=WHICH, code=st.sampled_from(CODES))
    def reset(self, which: int, code: int) -> None:
        end = self.pick(which)
        end.stream.reset(code, 5)
        end.spoiled = True
        assert not end.stream.receiving
        assert not end.stream.sending

    @precondition(lambda self: self.ends)
    @rule(which=WHICH)
    def release(self, which: int) -> None:
        end = self.pick(which)
        end.stream.release()
        end.spoiled = True

    @precondition(lambda self: self.ends)
    @rule(which=WHICH, on=st.booleans())
    def pause(self, which: int, on: bool) -> None:
        stream = self.pick(which).stream
        (stream.pause if on else stream.resume)()

    @precondition(lambda self: self.ends)
    @rule(which=WHICH, on=st.booleans())
    def change_sink(self, which: int, on: bool) -> None:
        end = self.pick(which)
        end.stream.sink = end.sink if on else None

    @precondition(lambda self: self.ends)
    @rule(which=WHICH, count=st.integers(0, 300_000))
    def consume(self, which: int, count: int) -> None:
        self.pick(which).sink.consume(count)

    @rule(side=SIDES, on=st.booleans())
    def freeze(self, side: int, on: bool) -> None:
        mux = self.sides[side].mux
        (mux.freeze if on else mux.thaw)()

    @rule(side=SIDES)
    def message(self, side: int) -> None:
        self.sides[side].mux.send_message({"type": "note", "fields": "x" * 50})

    @rule(side=SIDES, count=st.sampled_from([1, 9, 1000, 30_000, 10**6]), limit=st.sampled_from([0, 1, 10, 5000, 65536]))
    def wire(self, side: int, count: int, limit: int) -> None:
        self.now += 0.01
        self.move(side, count, limit)

    @rule(side=SIDES)
    def turn(self, side: int) -> None:
        self.sides[side].run()

    # What always holds

    @invariant()
    def nothing_is_broken(self) -> None:
        for side in self.sides:
            side.audit()
            assert side.budget.out <= self.total
        for end in self.ends:
            self.check(end)

    def check(self, end: End) -> None:
        stream, other = end.stream, end.other
        assert stream.queued <= max(STREAM_QUEUE, min(stream.credit, STREAM_QUEUE_MOST))
        assert stream.granted + stream.unconsumed <= max(stream.growth.size, 0)
        if other is not None:
            got = bytes(end.sink.data)
            start = other.seed % 251
            assert got == expected(start, len(got))
            assert len(got) <= other.sent
        kinds = [call if isinstance(call, str) else call[0] for call in end.sink.calls]
        assert kinds.count("eof") <= 1
        assert kinds.count("stop") <= 1
        assert "reset" not in kinds[:-1]

    def teardown(self) -> None:
        """With willing sinks and a wire that works, everything arrives and every credit comes home."""
        for side in self.sides:
            side.mux.thaw()
        for _ in range(400):
            if not self.round():
                break
        else:
            raise AssertionError("it never comes to rest")
        for end in self.ends:
            self.check_end(end)
        for end in self.ends:
            end.stream.release()
        for _ in range(50):
            self.round()
        for side in self.sides:
            side.audit()
            assert side.budget.out == LIMITS.max_streams * LIMITS.stream_window
            assert side.mux.refusal is None
            side.mux.close(Code.LINK_LOST)
            assert side.budget.out == 0

    def round(self) -> bool:
        moved = False
        self.now += 1
        for side in (0, 1):
            here = self.sides[side]
            here.mux.handle_timeout(self.now)
            moved |= bool(here.posted or here.wire)
            here.run()
            for end in self.ends:
                if end.side == side:
                    if end.stream.sink is None:
                        end.stream.sink = end.sink
                    end.stream.resume()
                    end.sink.consume()
            before = len(here.wire)
            here.wire += here.flush(65536, self.now)
            moved |= len(here.wire) != before
            self.move(side, 10**9, 65536)
            here.audit()
        return moved or any(side.posted for side in self.sides)

    def check_end(self, end: End) -> None:
        other = end.other
        if other is None:  # it was reset before its OPEN left, or waits for the others' budget
            assert end.spoiled or (not end.stream.opened and self.total == TOTALS[-1])
            return
        assert not end.stream.queued
        assert end.stream.writable
        self.check(end)
        if not (end.spoiled or other.spoiled):
            assert len(end.sink.data) == other.sent
            assert ("eof" in end.sink.calls) == other.eof
        if end.stream.receiving and end.stream.sending and not other.spoiled:
            assert not [call for call in end.sink.calls if call[0] == "reset"]
        host_ended = [call for call in end.sink.calls if call[0] == "reset" and 18 <= call[1] <= 22]
        if host_ended and not end.spoiled:
            assert len(end.sink.data) == other.sent


def expected(start: int, count: int) -> bytes:
    """What the first `count` bytes of a sender look like."""
    unit = bytes((start + n) % 251 for n in range(251))
    return (unit * (count // 251 + 1))[:count]


TestJoined: Any = Joined.TestCase
TestJoined.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
