"""The front: accepts Viewers, and sends each request where its host name says.

It is hand 1 of the data path, the only one that knows Viewers. For each accepted transport there is a
`ViewerConnection`, for each request an `Exchange`; the RouteTable turns its authority into a route (hand 2), the gate
says allow or refuse (hand 3), and the route's target carries it on (hand 4).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs

from netbore.edge.routes import RouteTable
from netbore.link.poller import Poller
from netbore.link.socket_stream import TransportStream
from netbore.link.transport import Transport
from netbore.proto.http.exchange import Exchange, ExchangeLimits
from netbore.proto.http.head import HttpLimits
from netbore.proto.http.headers import Forwarding, to_host
from netbore.proto.http.messages import BadMessage
from netbore.proto.http.pages import PROBLEMS, Problem, problem_of
from netbore.proto.http.viewer import ViewerConnection

#: Decides on one request: None allows it.
Gate = Callable[[Exchange], Problem | None]


@attrs.frozen
class FrontLimits:
    """Of Viewers and their requests."""

    exchange: ExchangeLimits = ExchangeLimits()
    http: HttpLimits = HttpLimits()


def allow_all(exchange: Exchange) -> Problem | None:
    """The gate that lets everything pass."""
    return None


class Front:
    """Everything that the Edge does for Viewers. One front serves all listeners."""

    def __init__(
        self, poller: Poller, routes: RouteTable, *, edge_id: str, gate: Gate = allow_all, limits: FrontLimits | None = None
    ) -> None:
        self._poller = poller
        self._routes = routes
        self._edge_id = edge_id.encode()
        self._gate = gate
        self._limits = limits or FrontLimits()
        self.viewers: set[ViewerConnection] = set()

    def accept(self, transport: Transport, *, secure: bool) -> None:
        """Serve the Viewer behind an open transport."""
        peer = transport.facts.peer
        client = peer[0].encode() if peer is not None else b"unknown"
        forwarding = Forwarding(client, b"https" if secure else b"http", self._edge_id)
        viewer = ViewerConnection(
            TransportStream(self._poller, transport),
            partial(self._on_request, forwarding),
            self._clock,
            on_closed=self._on_closed,
            secure=secure,
            limits=self._limits.exchange,
            http=self._limits.http,
        )
        self.viewers.add(viewer)
        self._poller.sweep(viewer)

    def _on_request(self, forwarding: Forwarding, exchange: Exchange) -> None:
        route = self._routes.find(exchange.request.authority)
        if route is None:
            exchange.refuse(PROBLEMS["no_such_tunnel"])
            return
        problem = self._gate(exchange)
        if problem is not None:
            exchange.refuse(problem)
            return
        try:
            head = to_host(exchange.request, forwarding, host=route.host)
        except BadMessage as error:
            exchange.refuse(problem_of(error))
            return
        route.target.carry(exchange, head)

    def _on_closed(self, viewer: ViewerConnection) -> None:
        self.viewers.discard(viewer)
        self._poller.sweep_no_more(viewer)

    def _clock(self) -> float:
        return self._poller.now
