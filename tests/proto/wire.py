"""A simulated wire: two protocol cores, a virtual clock, and transports that fail in every way that matters.

Theory of operation. `Network` is the clock and its queue of calls, and the only source of chance. A `Cable` is one transport:
two `End`s, each with a bounded amount of bytes on their way to the other, which arrive later, in order, in pieces of any size.
`Peer` is the smallest driver that is right: it resumes with real RESUME and RESUMED records, fences before it counts, and pumps
its core.

A cut keeps any number of the bytes under way, which still arrive, late. A silent cut tells nobody. An end that was closed hears
nothing more: that is the fence, and `fences = False` makes a Peer that forgot it.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from netbore.proto.pipe import Pipe, PipeState, TransportDead
from netbore.proto.records import RecordDecoder, encode_record
from netbore.proto.wire import FLUSH, HANDSHAKE_SECONDS, Record


class Network:
    """Virtual time. Calls happen in the order of their time, then of their making."""

    def __init__(self, seed: int, latency: float = 0.05, capacity: int = 65536) -> None:
        self.random = Random(seed)
        self.latency = latency
        self.capacity = capacity
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._made = 0

    def at(self, when: float, call: Callable[[], None]) -> None:
        self._made += 1
        heapq.heappush(self._queue, (max(when, self.now), self._made, call))

    def step(self) -> None:
        self.now, _, call = heapq.heappop(self._queue)
        call()

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.step()
        self.now = end

    def run_until(self, done: Callable[[], bool], seconds: float = 3600.0) -> bool:
        """Let time pass until `done`, at most so much; return whether it is."""
        end = self.now + seconds
        while not done() and self._queue and self._queue[0][0] <= end:
            self.step()
        return done()


class End:
    """One end of a Cable. `owner` gets its bytes and its end of stream."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.owner: Peer | None = None
        self.other: End = self
        self.closed = False
        self.decoder: RecordDecoder | None = RecordDecoder()  # until the handshake is done
        self.written = 0
        self.arrived = 0  # of the other's bytes
        self.limit: int | None = None  # a cut: the other's bytes from here on are lost
        self._last_arrival = 0.0

    @property
    def room(self) -> int:
        """How many bytes it takes now."""
        return max(0, self.network.capacity - (self.written - self.other.arrived))

    def send(self, data: bytes) -> None:
        random = self.network.random
        most = random.choice((1 if len(data) < 300 else 200, 3000, 65536))
        at = 0
        while at < len(data):
            size = random.randint(1, most)
            self._send_piece(data[at : at + size])
            at += size

    def close(self) -> None:
        """Hear nothing more; the other end learns of it."""
        if not self.closed:
            self.closed = True
            if self.other.limit is None:
                self.other._later(self.other._hear_end)

    def _send_piece(self, piece: bytes) -> None:
        start = self.written
        self.written += len(piece)
        self.other._later(lambda: self.other._hear(start, piece))

    def _later(self, call: Callable[[], None]) -> None:
        delay = self.network.latency * self.network.random.uniform(1, 1.2)
        self._last_arrival = max(self._last_arrival, self.network.now + delay)
        self.network.at(self._last_arrival, call)

    def _hear(self, start: int, piece: bytes) -> None:
        kept = piece if self.limit is None else piece[: max(0, self.limit - start)]
        self.arrived += len(kept)
        if kept and not self.closed and self.owner is not None:
            self.owner.on_bytes(self, kept)
        if self.other.owner is not None:
            self.other.owner.pump()

    def _hear_end(self) -> None:
        if not self.closed and self.owner is not None:
            self.owner.on_end(self)


class Cable:
    """One transport."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.ends = (End(network), End(network))
        self.ends[0].other, self.ends[1].other = self.ends[1], self.ends[0]

    def cut(self, silent: bool = False) -> None:
        """Break it: of the bytes under way some arrive the rest is lost. After a silent cut nobody is told."""
        for end in self.ends:
            if end.limit is None:
                end.limit = self.network.random.randint(end.arrived, end.other.written)
                if not silent:
                    end._later(end._hear_end)


class Core(Protocol):
    """What a Peer drives: netbore's Session has this face."""

    pipe: Pipe

    @property
    def has_output(self) -> bool: ...
    def attach(self, peer_received: int, now: float, decoder: RecordDecoder | None = None) -> list[Any]: ...
    def detach(self, now: float) -> None: ...
    def receive_data(self, data: bytes, now: float) -> list[Any]: ...
    def data_to_send(self, limit: int, now: float) -> bytes: ...
    def next_deadline(self) -> float | None: ...
    def handle_timeout(self, now: float) -> list[Any]: ...
    def audit(self) -> list[str]: ...


class Peer:
    """One side's driver. Give `mark` to the core as its `on_output`, then set `core`."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.core: Core
        self.end: End | None = None
        self.acceptor: Peer | None = None  # whom a dialler dials
        self.fences = True
        self.epoch = 0
        self.events: list[Any] = []
        self.lose_answers = 0  # an acceptor cuts so many transports right after its RESUMED
        self.cables: list[Cable] = []
        self._marked = False
        self._armed: float | None = None

    # Transports

    def dial(self) -> Cable:
        """Open a new transport and resume over it."""
        assert self.acceptor is not None
        self._fence()
        cable = Cable(self.network)
        self.cables.append(cable)
        self.end, theirs = cable.ends
        self.end.owner, theirs.owner = self, self.acceptor
        self.epoch += 1
        self._say(self.end, Record.RESUME)
        self.network.at(self.network.now + HANDSHAKE_SECONDS, lambda: self._give_up(cable.ends[0]))
        return cable

    def on_end(self, end: End) -> None:
        if end is self.end:
            self._fence()
            if self.acceptor is not None and self.core.pipe.state is not PipeState.CLOSED:
                self.network.at(self.network.now + self.network.random.random(), self._redial)

    def on_bytes(self, end: End, data: bytes) -> None:
        if end.decoder is not None:
            self._handshake(end, data)
        elif end is self.end or (not self.fences and self.core.pipe.state is PipeState.ATTACHED):
            self._handle(self.core.receive_data(data, self.network.now))
        self.pump()

    def _give_up(self, end: End) -> None:
        if end.decoder is not None:
            self.on_end(end)

    def _redial(self) -> None:
        if self.end is None:
            self.dial()

    def _fence(self) -> None:
        """Abandon the transport, so that nothing it still delivers counts. Forgetting it means: go on taking what it delivers."""
        end, self.end = self.end, None
        if self.fences:
            if end is not None:
                end.close()
            self._detach()

    def _detach(self) -> None:
        if self.core.pipe.state is PipeState.ATTACHED:
            self.core.detach(self.network.now)

    def _say(self, end: End, kind: Record) -> None:
        message = {"epoch": self.epoch, "received": self.core.pipe.received}
        end.send(encode_record(kind, json.dumps(message).encode()))

    def _handshake(self, end: End, data: bytes) -> None:
        decoder = end.decoder
        assert decoder is not None
        record = decoder.receive_one(data, frozenset({Record.RESUME if self.acceptor is None else Record.RESUMED}))
        if record is None or self.core.pipe.state is PipeState.CLOSED:
            return
        message = json.loads(record[1])
        if self.acceptor is None:
            if message["epoch"] <= self.epoch or not self.core.pipe.accepts(message["received"]):
                end.close()
                return
            self._fence()
            self.end = end
            self.epoch = message["epoch"]
            self._say(end, Record.RESUMED)
            if self.lose_answers:
                self.lose_answers -= 1
                end.other.limit = end.other.arrived
                end.other._later(end.other._hear_end)
        end.decoder = None
        if end is self.end:
            self._detach()
            self._handle(self.core.attach(message["received"], self.network.now, decoder))

    # The core

    def mark(self) -> None:
        """The core has output."""
        if not self._marked:
            self._marked = True
            self.network.at(self.network.now, self.pump)

    def pump(self) -> None:
        """Send what the transport takes, check the invariants, set the timer."""
        self._marked = False
        core = self.core
        while (end := self.end) is not None and end.decoder is None and end.room > 0 and core.has_output:
            limit = self.network.random.randint(8192, FLUSH)
            data = core.data_to_send(limit, self.network.now)
            assert len(data) <= limit
            assert data or not core.has_output, "output that does not come out"
            end.send(data)
        assert core.audit() == []
        deadline = core.next_deadline()
        if deadline is not None and (self._armed is None or deadline < self._armed):
            self._armed = deadline
            self.network.at(deadline, lambda: self._tick(deadline))

    def _tick(self, armed: float) -> None:
        if self._armed == armed:
            self._armed = None
            self._handle(self.core.handle_timeout(self.network.now))
            self.pump()

    def _handle(self, events: list[Any]) -> None:
        for event in events:
            self.events.append(event)
            if isinstance(event, TransportDead) and self.end is not None:
                self.on_end(self.end)


def joined(network: Network, make: Callable[[Peer], Core]) -> tuple[Peer, Peer]:
    """A dialler and its acceptor, not yet connected: `dial` does that. `make` gives each its core."""
    dialler, acceptor = Peer(network), Peer(network)
    dialler.acceptor = acceptor
    for peer in (dialler, acceptor):
        peer.core = make(peer)
    return dialler, acceptor
