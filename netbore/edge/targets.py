"""Where requests go: to a Host by a Stream, however that Stream is opened.

The front knows `Target.carry` only. A Tunnel's target opens Streams on the Links of its holder; `tcp_opener` dials an
address directly, which makes the same front a plain reverse proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import attrs

from netbore.edge.pool import HostPool, Patience, PoolLimits
from netbore.link.base import NOBODY
from netbore.link.link import Link
from netbore.link.poller import Poller
from netbore.link.socket_stream import TransportStream
from netbore.link.tcp import TcpTransport
from netbore.proto.http import headers
from netbore.proto.http.exchange import Exchange, ExchangeLimits
from netbore.proto.http.host import HostConnection
from netbore.proto.http.messages import RequestHead, ResponseHead
from netbore.proto.http.pages import PROBLEMS, Problem
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
    """Of everything between an Edge and its Hosts."""

    exchange: ExchangeLimits = ExchangeLimits()
    pool: PoolLimits = PoolLimits()


class HostTarget:
    """One Host behind one or more ways to reach it; each way has a pool of its own."""

    def __init__(self, poller: Poller, *, apex: bytes, limits: HostLimits | None = None, pooled: bool = True) -> None:
        """`apex` is the Edge's domain, for the rules of cookies. Without `pooled`, each request gets a Stream of its own."""
        self._poller = poller
        self._limits = limits or HostLimits()
        self._rewrite: Callable[[ResponseHead], ResponseHead] = partial(headers.to_viewer, apex=apex)
        self._patience = Patience()
        self._pooled = pooled
        self._ways: list[tuple[Opener, HostPool]] = []
        self._turn = 0

    @property
    def ways(self) -> Sequence[Opener]:
        """How the Host can be reached now."""
        return [opener for opener, _ in self._ways]

    def add(self, opener: Opener) -> None:
        """There is one more way."""
        pool = HostPool(self._clock, self._patience, self._limits.pool, self._poller.sweep_no_more)
        self._poller.sweep(pool)
        self._ways.append((opener, pool))

    def remove(self, opener: Opener) -> None:
        """This way is gone. Exchanges on it come to their end."""
        for way in [way for way in self._ways if way[0] == opener]:
            self._ways.remove(way)
            self._poller.sweep_no_more(way[1])
            way[1].close()

    def carry(self, exchange: Exchange, head: RequestHead) -> None:
        """Forward `exchange` on an idle connection, or on a new one."""
        if not self._ways:
            exchange.refuse(PROBLEMS["agent_offline"])
            return
        self._turn = (self._turn + 1) % len(self._ways)
        opener, pool = self._ways[self._turn]
        host = pool.take(exchange.viewer) if self._pooled else None
        if host is None:
            try:
                host = self._connect(opener, pool)
            except Refused as refused:
                exchange.refuse(refused.problem)
                return
        exchange.forward(host, head, self._rewrite, partial(self._again, head))

    def _again(self, head: RequestHead, exchange: Exchange) -> None:
        self.carry(exchange, head)

    def _connect(self, opener: Opener, pool: HostPool) -> HostConnection:
        host = HostConnection(opener(), pool, self._clock, self._limits.exchange)
        self._poller.sweep(host)
        return host

    def _clock(self) -> float:
        return self._poller.now


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
