"""A simulated network on the Trio clock: latency, splits, cuts, silence, late bytes and refusals, chosen by a seed.

Theory of operation. Its transports are memory transports with time between them: what one end sends is cut into segments,
and each is put into the other end's inbox by a timer of that end's Poller, in order. Bytes that are under way count against
the receiver's room, so back-pressure works as on a real network. Under MockClock, and with a seeded random source, a run is
repeatable.

A `Path` is one connection. It can be *cut* (both ends get a reset), at once or at an exact byte (`cut_at`), *silenced*
(bytes vanish and no end is told), and *held* (bytes wait, and arrive late when it is let go). An end can get a reset of its
own (`reset`), of which the other does not know.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from random import Random

import attrs

from netbore.link.memory import MemoryTransport
from netbore.link.poller import Poller
from netbore.link.transport import Facts, Owner, TransportBroken
from netbore.proto.stream import Data

Address = tuple[str, int]


@attrs.frozen
class Conditions:
    """What a network is like. Seconds and bytes."""

    latency: tuple[float, float] = (0.001, 0.001)
    #: What arrives does so at multiples of this; 0.0 is any time. A coarse one makes a long simulation cheap.
    tick: float = 0.0
    #: Segments are cut at random up to this many bytes; None sends all in one.
    segment: int | None = None
    capacity: int = 65536


class SimulatedTransport(MemoryTransport):
    """One end of a `Path`. Made by `Network.dial` and by its listeners."""

    __slots__ = ("_arriving", "_flight", "_fuse", "_last_arrival", "path")

    def __init__(self, poller: Poller, path: Path, owner: Owner | None = None) -> None:
        super().__init__(poller, owner, path.network.conditions.capacity)
        self.path = path
        self._flight = 0
        self._fuse: int | None = None
        self._last_arrival = 0.0
        self._arriving: deque[tuple[float, Callable[[], None]]] = deque()

    def room(self) -> int:
        return max(0, super().room() - self._flight)

    def _pass_on(self, data: Data, peer: MemoryTransport) -> int:
        assert isinstance(peer, SimulatedTransport)
        count = min(len(data), peer.room())
        for segment in self.path.network.split(bytes(data[:count])):
            peer.depart(segment)
        return count

    def _end(self, error: TransportBroken | None) -> None:
        peer = self._peer
        if isinstance(peer, SimulatedTransport):
            peer.schedule((lambda: peer.break_off(error)) if error is not None else peer.take_eof)

    def depart(self, segment: bytes) -> None:
        """`segment` begins its way to this end."""
        self._flight += len(segment)
        if not self.path.silent:
            self.schedule(lambda: self._arrive(segment))

    def schedule(self, event: Callable[[], None]) -> None:
        """Have `event` happen here after the network's latency, in the order of sending."""
        if self.path.silent:
            return
        arrival = max(self._last_arrival, self.path.network.arrival(self._poller.now))
        if arrival > self._last_arrival or not self._arriving:
            self._poller.call_at(arrival, self._next_arrivals)
        self._last_arrival = arrival
        self._arriving.append((arrival, event))

    def _next_arrivals(self) -> None:
        """What is due arrives; one timer serves all that comes at one moment."""
        now = self._poller.now
        while self._arriving and self._arriving[0][0] <= now and not (self.path.silent or self.path.held):
            self._arriving.popleft()[1]()

    def catch_up(self) -> None:
        """What was held arrives now."""
        while self._arriving and not self.path.silent:
            self._arriving.popleft()[1]()

    def post_catch_up(self) -> None:
        self._poller.post(self.catch_up)

    @property
    def in_flight(self) -> int:
        """Bytes on their way to this end, held ones included."""
        return self._flight

    def cut_at(self, count: int) -> None:
        """Cut the path as soon as exactly `count` more bytes have arrived here."""
        self._fuse = count

    def reset(self) -> None:
        """This end learns of a reset at once, the other of nothing."""
        self.break_off(TransportBroken("reset", "the network reset this end"))

    def _arrive(self, segment: bytes) -> None:
        self._flight -= len(segment)
        if self._fuse is None:
            self._let_in(segment)
        elif len(segment) < self._fuse:
            self._fuse -= len(segment)
            self._let_in(segment)
        else:
            segment = segment[: self._fuse]
            if segment:
                self._let_in(segment)
            self.path.cut()

    def _let_in(self, segment: bytes) -> None:
        if self.path.on_arrival is not None:
            self.path.on_arrival(self, segment)
        if self.closed:
            # As TCP does: bytes for a closed end bring a reset.
            self._end(TransportBroken("reset", "the other end has closed"))
        else:
            self.take_in(segment)

    def connected(self) -> None:
        """Dialling is over, unless the network has swallowed the answer."""
        if self._broken is not None:
            self._fail(self._broken)
        elif not (self.closed or self.path.silent):
            self._open()
            self._tell()

    def refused(self) -> None:
        self._fail(TransportBroken("refused", "nobody listens there"))

    def can_send(self) -> bool:
        # Unlike in memory, an end does not know that the other has closed before the news has arrived.
        return self._broken is not None or (self._peer is not None and self._peer.room() > 0)


class Path:
    """One connection of the network."""

    def __init__(self, network: Network, poller: Poller, other: Poller, address: Address, owner: Owner | None) -> None:
        self.network = network
        self.silent = False
        self.held = False
        self.was_cut = False
        #: Told of each segment that arrives at an end, before the end takes it: for tests.
        self.on_arrival: Callable[[SimulatedTransport, bytes], None] | None = None
        self.dialler = SimulatedTransport(poller, self, owner)
        self.acceptor = SimulatedTransport(other, self)
        number = len(network.paths) + 1
        self.facts = Facts(peer=address, local=("dialler", number)), Facts(peer=("dialler", number), local=address)

    def cut(self) -> None:
        """Both ends learn of a reset at once; what is under way is lost."""
        self.was_cut = True
        self.silence()
        for end in (self.dialler, self.acceptor):
            end.break_off(TransportBroken("reset", "the network cut the connection"))

    def silence(self) -> None:
        """From now on bytes vanish, and neither end is told: the half-open connection."""
        self.silent = True

    def hold(self) -> None:
        """Bytes under way wait until `let_go`."""
        self.held = True

    def let_go(self) -> None:
        """What was held arrives, late."""
        self.held = False
        for end in (self.dialler, self.acceptor):
            end.post_catch_up()


class SimulatedListener:
    """A listening address of the network. `on_accept(transport)` gives each its owner."""

    def __init__(
        self, network: Network, poller: Poller, address: Address, on_accept: Callable[[SimulatedTransport], None]
    ) -> None:
        self._network = network
        self.poller = poller
        self.address = address
        self.on_accept = on_accept

    def close(self) -> None:
        """Dials of this address are refused from now on. Idempotent."""
        self._network.forget(self)


class Network:
    """Listeners, dials and their conditions. `random` is the only source of chance."""

    def __init__(self, random: Random, conditions: Conditions | None = None) -> None:
        self._random = random
        self._listeners: dict[Address, SimulatedListener] = {}
        self._refused: set[Address] = set()
        self.conditions = conditions or Conditions()
        self.paths: list[Path] = []

    def listen(self, poller: Poller, host: str, port: int, on_accept: Callable[[SimulatedTransport], None]) -> SimulatedListener:
        """Accept dials of (host, port). Raises ValueError when the address is taken."""
        if (host, port) in self._listeners:
            raise ValueError(f"{host}:{port} is taken")
        listener = self._listeners[host, port] = SimulatedListener(self, poller, (host, port), on_accept)
        return listener

    def forget(self, listener: SimulatedListener) -> None:
        if self._listeners.get(listener.address) is listener:
            del self._listeners[listener.address]

    def refuse(self, host: str, port: int, refused: bool = True) -> None:
        """Refuse dials of an address, or take them again."""
        (self._refused.add if refused else self._refused.discard)((host, port))

    def dial(self, poller: Poller, host: str, port: int, owner: Owner | None = None) -> SimulatedTransport:
        """Begin to connect. `on_open` or `on_failed` comes after a round trip."""
        address = (host, port)
        listener = self._listeners.get(address)
        path = Path(self, poller, poller if listener is None else listener.poller, address, owner)
        self.paths.append(path)
        if listener is None or address in self._refused:
            path.acceptor.close()
            poller.call_at(self.arrival(self.arrival(poller.now)), path.dialler.refused)
        else:
            there = self.arrival(poller.now)
            listener.poller.call_at(there, lambda: self._accept(path, listener))
            poller.call_at(self.arrival(there), path.dialler.connected)
        return path.dialler

    def _accept(self, path: Path, listener: SimulatedListener) -> None:
        if path.silent or path.dialler.closed:
            path.acceptor.close()
            return
        dialler, acceptor = path.dialler, path.acceptor
        acceptor.join(dialler, path.facts[1])
        dialler.join(acceptor, path.facts[0])
        dialler.opened = False  # until the answer has come back
        listener.on_accept(acceptor)

    # Chance.

    def arrival(self, sent: float) -> float:
        """When something arrives that is sent at the time `sent`, alone."""
        low, high = self.conditions.latency
        tick = self.conditions.tick
        arrival = sent + (low if low == high else self._random.uniform(low, high))
        return math.ceil(arrival / tick) * tick if tick else arrival

    def split(self, data: bytes) -> list[bytes]:
        most = self.conditions.segment
        if most is None:
            return [data] if data else []
        pieces = []
        while data:
            size = self._random.randint(1, most)
            pieces.append(data[:size])
            data = data[size:]
        return pieces
