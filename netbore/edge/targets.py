"""Where requests go: to a Host by a Stream, however that Stream is opened.

Theory of operation. The front knows `Target.carry` only. A `HostTarget` has one `Way` for each Link of its Tunnel's
holder (or one that dials an address, which makes the same front a plain reverse proxy). A way opens Streams, keeps idle
ones in its pool, and knows the connections that are in use. When its Link breaks it is *suspended*: what is in use
stands still. A request takes the next way that opens a Stream for it; when none does, it is held for a short while
(`held`). A way that was removed is *retired*: it gets no new request, but what is in use comes to its end, and is still
suspended and restored with its Link until it is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import attrs

from netbore.edge.held import HeldRequests, HeldRoom
from netbore.edge.pool import HostPool, Patience, PoolLimits
from netbore.link.base import NOBODY
from netbore.link.link import Link
from netbore.link.poller import Poller
from netbore.link.socket_stream import TransportStream
from netbore.link.tcp import TcpTransport
from netbore.proto.http import headers
from netbore.proto.http.codec import HeadMemo, Opinion
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
    #: How long a request waits for a broken or full Link, how many may wait for one Tunnel, and for all of an Edge.
    held_seconds: float = 10.0
    held: int = 1000
    held_in_all: int = 10_000


class Way:
    """One way to a Host: what opens Streams, and the connections made of them. The owner of its connections."""

    def __init__(self, target: HostTarget, opener: Opener, patience: Patience) -> None:
        self._target = target
        self._opener = opener
        self._poller = target.poller
        self.pool = HostPool(target.clock, patience, target.limits.pool)
        self._live: set[HostConnection] = set()
        self.suspended = False
        self.retired = False
        #: Called once when it is retired and its last connection has closed.
        self.on_empty: Callable[[Way], object] | None = None
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
                memo=self._target.memo,
            )
            self._live.add(host)
            self._poller.sweep(host)
        return host

    def on_idle(self, host: HostConnection) -> None:
        if self.suspended or self.retired or not self._target.pooled:
            host.close()
        else:
            self.pool.on_idle(host)
            self._target.has_room()

    def on_closed(self, host: HostConnection) -> None:
        self.pool.on_closed(host)
        self._live.discard(host)
        self._poller.sweep_no_more(host)
        if self.retired and not self._live and self.on_empty is not None:
            on_empty, self.on_empty = self.on_empty, None
            on_empty(self)

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
        if not self.retired:
            self._target.release_held()

    def retire(self) -> None:
        """No more Streams are opened; idle connections are closed, others come to their end."""
        self.retired = True
        self._poller.sweep_no_more(self.pool)
        self.pool.close()

    def __len__(self) -> int:
        return len(self._live)


class HostTarget:
    """One Host, and all the ways to it."""

    def __init__(
        self,
        poller: Poller,
        *,
        apex: bytes,
        limits: HostLimits | None = None,
        pooled: bool = True,
        room: HeldRoom | None = None,
        memo: HeadMemo | None = None,
    ) -> None:
        """`apex` is the Edge's domain, for the rules of cookies. Without `pooled`, each request gets a Stream of its own.
        `room` and `memo` are shared by all targets of an Edge."""
        self.poller = poller
        self.clock = poller.clock
        self.limits = limits = limits or HostLimits()
        #: Connections are used again; see `set_pooled`.
        self.pooled = pooled
        self._rewrite: Callable[[ResponseHead], ResponseHead] = partial(headers.to_viewer, apex=apex)
        self._patience = Patience()
        self.memo = memo if memo is not None else HeadMemo()
        self._ways: list[Way] = []
        self._next = 0
        room = room or HeldRoom(limits.held_in_all)
        self.held = HeldRequests(poller, room, seconds=limits.held_seconds, limit=limits.held)

    @property
    def ways(self) -> Iterable[Way]:
        """How the Host can be reached, suspended ways included."""
        return tuple(self._ways)

    def set_pooled(self, pooled: bool) -> None:
        """Whether connections are used again, from now on."""
        self.pooled = pooled
        if not pooled:
            self.close_idle()

    def other_host(self) -> None:
        """From now on another Host stands behind the ways: what was learned, and what is idle, belonged to the last one."""
        self._patience.forget()
        self.close_idle()

    def close_idle(self) -> None:
        """Close the connections that are not in use."""
        for way in self._ways:
            way.pool.close()

    def add(self, opener: Opener, *, suspended: bool = False) -> Way:
        """There is one more way; `suspended`, when its Link is broken already."""
        way = Way(self, opener, self._patience)
        self._ways.append(way)
        if suspended:
            way.suspend()
        else:
            self.release_held()
        return way

    def remove(self, way: Way) -> None:
        """This way is gone. Exchanges on it come to their end. Idempotent."""
        if way in self._ways:
            self._ways.remove(way)
            way.retire()

    def carry(self, exchange: Exchange, head: RequestHead) -> None:
        """Forward `exchange` on an idle connection or on a new one, hold it, or refuse it."""
        problem = self._forward(exchange, head)
        if problem is None:
            return
        if self._ways:
            self.held.hold(exchange, head, problem)
        else:
            exchange.refuse(problem)

    def _forward(self, exchange: Exchange, head: RequestHead) -> Problem | None:
        """Take the next way, in turn, that gives a connection; None, or why there is none."""
        ways = self._ways
        problem = PROBLEMS["agent_offline"]
        # A second try gets a new connection: other idle ones may be just as dead, and there is no third.
        pooled = self.pooled and not exchange.retries
        for _ in range(len(ways)):
            self._next = (self._next + 1) % len(ways)
            way = ways[self._next]
            if not way.suspended:
                try:
                    host = way.connection(exchange, pooled=pooled)
                except Refused as refused:
                    problem = refused.problem
                else:
                    exchange.forward(host, head, self._rewrite, self.carry)
                    return None
        return problem

    # Held requests

    def release_held(self) -> None:
        """A way is there, or has room: let those who wait go on."""
        if self.held:
            self.held.release(self._forward)

    def has_room(self) -> None:
        """A connection is idle: those who wait may use it, but not inside this call."""
        if self.held:
            self.poller.post(self.release_held)

    def on_crash(self, error: Exception) -> None:
        """A posted `release_held` raised."""
        self.held.on_crash(error)

    def close(self) -> None:
        """The name is gone: nothing is held any more."""
        for way in self.ways:
            self.remove(way)
        self.held.refuse_all(PROBLEMS["no_such_tunnel"])


def tcp_opener(poller: Poller, address: tuple[str, int]) -> Opener:
    """Dials `address`, a literal IP address and port, for each Stream."""

    def connect() -> Stream:
        try:
            return TransportStream(poller, TcpTransport.connect(poller, address, NOBODY))
        except OSError as error:  # no descriptor, or no memory
            raise Refused(PROBLEMS["limit_reached"]) from error

    return connect


def link_opener(link: Link, handle: int) -> Opener:
    """Opens Streams for the Tunnel that the Agent behind `link` knows by `handle`."""

    def connect() -> Stream:
        stream = link.open(Kind.HTTP, handle)
        if stream is None:
            raise Refused(PROBLEMS["limit_reached" if link.refusal is Refusal.MAX_STREAMS else "agent_offline"])
        return stream

    return connect
