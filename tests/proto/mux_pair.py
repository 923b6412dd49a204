"""Two Muxes, their turn queues, recording sinks and an in-order wire between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from netbore.proto.events import Event, StreamOpened
from netbore.proto.handshake import Limits
from netbore.proto.mux import Mux, Role
from netbore.proto.mux_stream import MuxStream
from netbore.proto.stream import Data
from netbore.proto.window import Budget
from netbore.proto.wire import LINK_BUDGET, MAX_ID, Kind

DEFAULT = Limits()


class Recorder:
    """A sink that writes down what it is told; it consumes at once while `greedy`."""

    def __init__(self, stream: MuxStream, greedy: bool = True) -> None:
        self.stream = stream
        self.greedy = greedy
        self.data = bytearray()
        self.owed = 0
        self.calls: list[Any] = []
        stream.sink = self

    def on_data(self, data: Data) -> None:
        assert len(data)
        self.data += data
        if self.greedy:
            self.stream.consumed(len(data))
        else:
            self.owed += len(data)

    def on_eof(self) -> None:
        self.calls.append("eof")

    def on_writable(self) -> None:
        self.calls.append("writable")

    def on_stop(self, code: int) -> None:
        self.calls.append(("stop", code))

    def on_reset(self, code: int, delivered: int = 0) -> None:
        self.calls.append(("reset", code, delivered))

    def consume(self, count: int | None = None) -> None:
        count = self.owed if count is None else min(count, self.owed)
        self.owed -= count
        self.stream.consumed(count)


class Side:
    """One Mux and what surrounds it."""

    def __init__(
        self, role: Role, ours: Limits = DEFAULT, theirs: Limits = DEFAULT, total: int = LINK_BUDGET, max_id: int = MAX_ID
    ) -> None:
        self.posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.marks = 0
        self.budget = Budget(total)
        self.mux = Mux(
            role,
            ours,
            theirs,
            budget=self.budget,
            post=lambda fn, *args: self.posted.append((fn, args)),
            on_output=self._mark,
            max_id=max_id,
        )
        self.wire = bytearray()  # on its way to the other side
        self.events: list[Event] = []
        self.sinks: dict[int, Recorder] = {}
        self.greedy = True

    def _mark(self) -> None:
        self.marks += 1

    def run(self) -> None:
        """Run the turn's queue."""
        while self.posted:
            fn, args = self.posted.popleft()
            fn(*args)
        self.take(self.mux.take_events())

    def flush(self, limit: int = 65536, now: float = 0.0) -> bytes:
        """What the Mux wants to send, at most `limit` bytes."""
        data = b"".join(self.mux.data_to_send(limit, now))
        assert len(data) <= limit
        return data

    def take(self, events: list[Event]) -> list[Event]:
        self.events += events
        for event in events:
            if isinstance(event, StreamOpened):
                self.sinks[event.stream.id] = Recorder(event.stream, self.greedy)
        return events

    def receive(self, data: Data, now: float = 0.0) -> list[Event]:
        return self.take(self.mux.receive_data(data, now))

    def open(self, sink: bool = True) -> MuxStream:
        stream = self.mux.open(Kind.HTTP, 7)
        assert stream is not None
        if sink:
            Recorder(stream, self.greedy)
        return stream

    def audit(self) -> None:
        assert self.mux.audit() == []


class Pair:
    """A dialler and an acceptor, joined directly."""

    def __init__(self, ours: Limits = DEFAULT, theirs: Limits = DEFAULT, total: int = LINK_BUDGET, max_id: int = MAX_ID) -> None:
        self.dialler = Side(Role.DIALLER, ours, theirs, total, max_id)
        self.acceptor = Side(Role.ACCEPTOR, theirs, ours, total, max_id)

    def drive(self, now: float = 0.0) -> None:
        """Until nothing moves any more."""
        for _ in range(10_000):
            moved = False
            for here, there in ((self.dialler, self.acceptor), (self.acceptor, self.dialler)):
                moved |= bool(here.posted)
                here.run()
                if here.mux.has_output:
                    data = here.flush(now=now)
                    moved |= bool(data)
                    there.receive(data, now)
                here.audit()
                there.audit()
            if not moved:
                return
        raise AssertionError("it never comes to rest")

    def opened(self) -> tuple[MuxStream, Recorder, MuxStream, Recorder]:
        """A Stream of the dialler, at both ends, with their sinks."""
        stream = self.dialler.open()
        self.drive()
        there = self.acceptor.sinks[stream.id]
        assert isinstance(stream.sink, Recorder)
        return stream, stream.sink, there.stream, there
