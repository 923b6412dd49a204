"""The front: accepts Viewers, and sends each request where its host name says.

It is hand 1 of the data path, the only one that knows Viewers. For each accepted transport there is a
`ViewerConnection`, for each request an `Exchange`; the RouteTable turns its authority into a route (hand 2), the gate
says allow or refuse (hand 3), and the route's target carries it on (hand 4).

While it *drains*, each connection ends after the response at hand. Who comes later is told that the Edge is stopping, but for
routes that are `always` served: Links that break meanwhile must be able to resume, or what they carry would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import attrs
import trio

from netbore.changes import Changed
from netbore.edge.hub import FirstByte, Hub, RequestEnded, RequestHeadRead, RequestRefused, ViewerClosed, ViewerOpened
from netbore.edge.routes import Route, RouteTable
from netbore.link.poller import Poller
from netbore.link.socket_stream import TransportStream
from netbore.link.transport import Transport
from netbore.proto.http.codec import HeadMemo, Opinion
from netbore.proto.http.exchange import Exchange
from netbore.proto.http.head import HttpLimits
from netbore.proto.http.headers import Forwarding, to_host
from netbore.proto.http.messages import BadMessage, RequestHead, ResponseHead
from netbore.proto.http.pages import PROBLEMS, Problem, problem_of
from netbore.proto.http.sides import ExchangeLimits
from netbore.proto.http.viewer import ViewerConnection

#: Decides on one request: None allows it, a Problem refuses it, a head (with no body) answers it.
Gate = Callable[[Exchange], Problem | ResponseHead | None]
#: Whether one certificate covers both host names, so that a connection made for one may carry requests for the other.
Covers = Callable[[str, str], bool]


@attrs.frozen
class FrontLimits:
    """Of Viewers and their requests."""

    exchange: ExchangeLimits = ExchangeLimits()
    http: HttpLimits = HttpLimits()
    #: Whose heads h11 has to read as the strict check did.
    second_opinion: Opinion = Opinion.ODD


def allow_all(exchange: Exchange) -> Problem | ResponseHead | None:
    """The gate that lets everything pass."""
    return None


def redirect_to(scheme: str, port: int) -> Gate:
    """The gate of a plain listener that sends everyone to `scheme`://same-host:`port`/same-target."""
    suffix = b"" if port == {"https": 443, "http": 80}[scheme] else b":%d" % port

    def gate(exchange: Exchange) -> ResponseHead:
        request = exchange.request
        target = request.target if request.target.startswith(b"/") else b"/"
        location = b"%b://%b%b%b" % (scheme.encode(), request.authority, suffix, target)
        return ResponseHead(308, b"Permanent Redirect", 1, ((b"Location", location), (b"Content-Length", b"0")))

    return gate


def one_certificate(a: str, b: str) -> bool:
    """For an Edge whose one certificate covers all its names."""
    return True


class Visit:
    """What is known of one Viewer's connection. `number` and `requests` are for the hub's listeners.

    `head` is what was made for the Host of the last `request` for the route's `host`: most Viewers ask in the same words again.
    """

    __slots__ = ("forwarding", "head", "host", "late", "number", "request", "requests", "secure", "server_name")

    request: RequestHead | None
    head: RequestHead

    def __init__(self, forwarding: Forwarding, server_name: bytes | None, secure: bool, number: int, late: bool) -> None:
        self.forwarding = forwarding
        self.server_name = server_name
        self.secure = secure
        self.number = number
        #: It came when the Edge had begun to stop.
        self.late = late
        self.requests = 0
        self.request = None
        self.host: bytes | None = None


class Front:
    """Everything that the Edge does for Viewers of the listeners that share one gate."""

    def __init__(
        self,
        poller: Poller,
        routes: RouteTable,
        *,
        edge_id: str,
        hub: Hub | None = None,
        gate: Gate = allow_all,
        covers: Covers = one_certificate,
        limits: FrontLimits | None = None,
        numbers: Iterator[int] | None = None,
        memo: HeadMemo | None = None,
    ) -> None:
        """`numbers` count connections and requests for the hub; fronts that share a hub share them, and one `memo`."""
        self._poller = poller
        self._routes = routes
        self._edge_id = edge_id.encode()
        self._hub = hub or Hub()
        self._gate = gate
        self._covers = covers
        self._limits = limits or FrontLimits()
        self.viewers: set[ViewerConnection] = set()
        self.draining = False
        self._memo = memo if memo is not None else HeadMemo()
        self._numbers = numbers or count(1)
        #: Those who came before the drain and are not gone.
        self._leaving: set[ViewerConnection] = set()
        self._changed = Changed()

    def accept(self, transport: Transport, *, secure: bool) -> None:
        """Serve the Viewer behind an open transport; `secure` when it is TLS."""
        facts = transport.facts
        client = facts.peer[0].encode() if facts.peer is not None else b"unknown"
        forwarding = Forwarding(client, b"https" if secure else b"http", self._edge_id)
        server_name = facts.server_name.lower().encode() if facts.server_name else None
        visit = Visit(forwarding, server_name, secure, next(self._numbers), self.draining)
        viewer = ViewerConnection(
            TransportStream(self._poller, transport),
            partial(self._on_request, visit),
            self._poller.clock,
            on_closed=self._on_closed,
            secure=secure,
            limits=self._limits.exchange,
            http=self._limits.http,
            second_opinion=self._limits.second_opinion,
            memo=self._memo,
        )
        viewer.context = visit
        viewer.draining = self.draining
        self.viewers.add(viewer)
        self._poller.sweep(viewer)
        if self._hub.active:
            self._hub.emit(ViewerOpened(visit.number, facts.peer, secure))

    def _on_request(self, visit: Visit, exchange: Exchange) -> None:
        request = exchange.request
        visit.requests += 1
        authority = request.authority
        if visit.server_name is not None and authority != visit.server_name:
            if not authority:
                request.authority = authority = visit.server_name  # HTTP/1.0 without Host
            elif not self._covers(visit.server_name.decode(), authority.decode()):
                exchange.refuse(PROBLEMS["misdirected"])
                return
        route = self._routes.find(authority)
        if self._hub.active:
            self._announce(visit, exchange, route)
        if route is None:
            exchange.refuse(PROBLEMS["no_such_tunnel"])
            return
        if visit.late and not route.always:
            exchange.refuse(PROBLEMS["going_away"])
            return
        verdict = self._gate(exchange)
        if verdict is not None:
            if isinstance(verdict, Problem):
                exchange.refuse(verdict)
            else:
                exchange.respond(verdict)
            return
        if visit.request is not request or visit.host is not route.host:
            try:
                visit.head = to_host(request, visit.forwarding, host=route.host)
            except BadMessage as error:
                exchange.refuse(problem_of(error))
                return
            visit.request, visit.host = request, route.host
        route.target.carry(exchange, visit.head)

    def _announce(self, visit: Visit, exchange: Exchange, route: Route | None) -> None:
        """Tell the hub of a request, now and as it goes on."""
        number, started, clock = next(self._numbers), self._poller.now, self._poller.clock
        request, hub = exchange.request, self._hub
        hub.emit(
            RequestHeadRead(
                number,
                visit.number,
                request.authority.decode(),
                request.method.decode(),
                request.target.decode("ascii", "replace"),
                route.tunnel if route is not None else None,
            )
        )

        def on_first_byte(exchange: Exchange) -> None:
            hub.emit(FirstByte(number, clock() - started))

        def on_done(exchange: Exchange) -> None:
            if exchange.refusal is not None:
                hub.emit(RequestRefused(number, exchange.refusal.code, exchange.refusal.status))
            hub.emit(
                RequestEnded(
                    number,
                    exchange.status or None,
                    clock() - started,
                    exchange.received,
                    exchange.sent,
                    exchange.response_ended,
                )
            )

        exchange.on_first_byte, exchange.on_done = on_first_byte, on_done

    # The end

    def drain(self) -> None:
        """Let each connection end after the response at hand; idle ones end now. Idempotent."""
        if self.draining:
            return
        self.draining = True
        self._leaving = set(self.viewers)
        for viewer in list(self.viewers):
            viewer.draining = True
            if viewer.idle:
                viewer.close()

    async def drained(self) -> None:
        """Wait until all Viewers are gone that were there when the drain began. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while self._leaving:
            await self._changed.wait()

    def _on_closed(self, viewer: ViewerConnection) -> None:
        self.viewers.discard(viewer)
        self._poller.sweep_no_more(viewer)
        if self.draining:
            self._leaving.discard(viewer)
            self._changed.set()
        if self._hub.active:
            visit = viewer.context
            assert isinstance(visit, Visit)
            self._hub.emit(ViewerClosed(visit.number, visit.requests))
