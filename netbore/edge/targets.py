"""Where requests go: to a Host by a Stream, however that Stream is opened.

Theory of operation. The front knows `Target.carry` only. A `HostTarget` has one `Way` for each Link of its Tunnel's
holder (or one that dials an address, which makes the same front a plain reverse proxy). A way opens Streams, keeps idle
ones in its pool, and knows the connections that are in use. When its Link breaks it is *suspended*: what is in use
stands still, new requests go another way, or are held for a short while when there is no other. Held requests go on
when a way comes back or a new one is added, and are refused when their time is up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import attrs

from netbore.edge.pool import HostPool, Patience, PoolLimits
from netbore.link.base import NOBODY
from netbore.link.link import Link
from netbore.link.poller import Poller
from netbore.link.socket_stream import TransportStream
from netbore.link.tcp import TcpTransport
from netbore.proto.http import headers
from netbore.proto.http.codec import Opinion
from netbore.proto.http.exchange import Exchange
from netbore.proto.http.head import HttpLimits
from netbore.proto.http.host import HostConnection
from netbore.proto.http.messages import RequestHead, ResponseHead
from netbore.proto.http.pages import PROBLEMS, Problem
from netbore.proto.http.sides import ExchangeLimits
from netbore.proto.mux import Refusal
from netbore.proto.stream import Stream
from netbore.proto.wire import Kind


class Refused(Exception):
    """No Stream can be opened; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem


#: Opens a Stream to the Host, at once. Raises Refused.
Opener = Callable[[], Stream]


@attrs.frozen
class HostLimits:
    """Of everything between an Edge and its Hosts. Seconds and counts."""

    exchange: ExchangeLimits = ExchangeLimits()
    pool: PoolLimits = PoolLimits()
    http: HttpLimits = HttpLimits()
    #: Whose heads h11 has to read as the strict check did.
    second_opinion: Opinion = Opinion.ODD
    #: How long a request waits for a broken Link, and how many may wait for one Tunnel.
    held_seconds: float = 10.0
    held: int = 1000


class Way:
    """One way to a Host: what opens Streams, and the connections made of them. The owner of its connections."""

    def __init__(self, target: HostTarget, opener: Opener, patience: Patience) -> None:
        self._target = target
        self._opener = opener
        self._poller = target.poller
        self.pool = HostPool(target.clock, patience, target.limits.pool)
        self._live: set[HostConnection] = set()
        self.suspended = False
        self._poller.sweep(self.pool)

    def connection(self, exchange: Exchange, *, pooled: bool) -> HostConnection:
        """A connection that can carry `exchange`. Raises Refused."""
        host = self.pool.take(exchange.viewer) if pooled else None
        if host is None:
            limits = self._target.limits
            host = HostConnection(
                self._opener(),
                self,
                self._target.clock,
                limits.exchange,
                limits.http,
                second_opinion=limits.second_opinion,
            )
            self._live.add(host)
            self._poller.sweep(host)
        return host

    def on_idle(self, host: HostConnection) -> None:
        if self.suspended or not self._target.pooled:
            host.close()
        else:
            self.pool.on_idle(host)

    def on_closed(self, host: HostConnection) -> None:
        self.pool.on_closed(host)
        self._live.discard(host)
        self._poller.sweep_no_more(host)

    def suspend(self) -> None:
        """The Link is broken: connections stand still, deadlines too."""
        self.suspended = True
        for host in self._live:
            host.freeze()

    def restore(self) -> None:
        """The Link is back."""
        self.suspended = False
        now = self._poller.now
        for host in list(self._live):
            host.thaw(now)
        self._target.release_held()

    def close(self) -> None:
        """No more Streams are opened; idle connections are closed, others come to their end."""
        self._poller.sweep_no_more(self.pool)
        self.pool.close()

    def __len__(self) -> int:
        return len(self._live)


@attrs.frozen(eq=False)
class Held:
    """A request that waits for a way."""

    exchange: Exchange
    head: RequestHead
    until: float


class HostTarget:
    """One Host, and all the ways to it."""

    def __init__(self, poller: Poller, *, apex: bytes, limits: HostLimits | None = None, pooled: bool = True) -> None:
        """`apex` is the Edge's domain, for the rules of cookies. Without `pooled`, each request gets a Stream of its own."""
        self.poller = poller
        self.limits = limits or HostLimits()
        self.pooled = pooled
        self._rewrite: Callable[[ResponseHead], ResponseHead] = partial(headers.to_viewer, apex=apex)
        self._patience = Patience()
        self._ways: list[Way] = []
        self._next = 0
        self._held: deque[Held] = deque()
        #: Swept: when the oldest held request is refused.
        self.deadline: float | None = None

    def clock(self) -> float:
        return self.poller.now

    @property
    def ways(self) -> Iterable[Way]:
        """How the Host can be reached, suspended ways included."""
        return tuple(self._ways)

    def add(self, opener: Opener) -> Way:
        """There is one more way."""
        way = Way(self, opener, self._patience)
        self._ways.append(way)
        self.release_held()
        return way

    def remove(self, way: Way) -> None:
        """This way is gone. Exchanges on it come to their end. Idempotent."""
        if way in self._ways:
            self._ways.remove(way)
            way.close()

    def carry(self, exchange: Exchange, head: RequestHead) -> None:
        """Forward `exchange` on an idle connection or on a new one, hold it, or refuse it."""
        way = self._choose()
        if way is None:
            self._hold(exchange, head)
            return
        try:
            # A second try gets a new connection: other idle ones may be just as dead, and there is no third.
            host = way.connection(exchange, pooled=self.pooled and not exchange.retries)
        except Refused as refused:
            exchange.refuse(refused.problem)
            return
        exchange.forward(host, head, self._rewrite, partial(self._again, head))

    def _again(self, head: RequestHead, exchange: Exchange) -> None:
        self.carry(exchange, head)

    def _choose(self) -> Way | None:
        """The next way that is not suspended, in turn."""
        ways = self._ways
        for _ in range(len(ways)):
            self._next = (self._next + 1) % len(ways)
            way = ways[self._next]
            if not way.suspended:
                return way
        return None

    # Held requests

    def _hold(self, exchange: Exchange, head: RequestHead) -> None:
        if not self._ways:
            exchange.refuse(PROBLEMS["agent_offline"])
        elif len(self._held) >= self.limits.held:
            exchange.refuse(PROBLEMS["limit_reached"])
        else:
            self._held.append(Held(exchange, head, self.clock() + self.limits.held_seconds))
            if self.deadline is None:
                self.deadline = self._held[0].until
                self.poller.sweep(self)

    def release_held(self) -> None:
        """A way is there: let those who wait go on."""
        self.deadline = None
        self.poller.sweep_no_more(self)
        held, self._held = self._held, deque()
        for one in held:
            if not one.exchange.done:
                self.carry(one.exchange, one.head)

    def on_deadline(self, now: float) -> None:
        """Refuse those whose time is up."""
        while self._held and self._held[0].until <= now:
            self._held.popleft().exchange.refuse(PROBLEMS["agent_offline"])
        self.deadline = self._held[0].until if self._held else None
        if self.deadline is None:
            self.poller.sweep_no_more(self)

    def close(self) -> None:
        """The name is gone: nothing is held any more."""
        for way in self.ways:
            self.remove(way)
        held, self._held = self._held, deque()
        for one in held:
            one.exchange.refuse(PROBLEMS["no_such_tunnel"])
        self.poller.sweep_no_more(self)


def tcp_opener(poller: Poller, address: tuple[str, int]) -> Opener:
    """Dials `address`, a literal IP address and port, for each Stream."""

    def connect() -> Stream:
        return TransportStream(poller, TcpTransport.connect(poller, address, NOBODY))

    return connect


def link_opener(link: Link, handle: int) -> Opener:
    """Opens Streams for the Tunnel that the Agent behind `link` knows by `handle`."""

    def connect() -> Stream:
        stream = link.open(Kind.HTTP, handle)
        if stream is None:
            raise Refused(PROBLEMS["limit_reached" if link.refusal is Refusal.MAX_STREAMS else "agent_offline"])
        return stream

    return connect
