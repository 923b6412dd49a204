"""The API host: where Agents become Links, and where the control API will be.

It is one more target of the front. A WebSocket upgrade at the link path takes the Viewer's connection away from the
front, with its transport and the bytes that came behind the request, and hands it to the door. Everything else goes to
a target inside the process, over streams in memory (`process_opener`), or is not found.
"""

from __future__ import annotations

from collections.abc import Callable

from netbore.edge.targets import Opener
from netbore.link.base import Owned
from netbore.link.memory import memory_pair
from netbore.link.poller import Poller
from netbore.link.socket_stream import TransportStream
from netbore.link.transport import Transport
from netbore.link.websocket import WebSocketTransport
from netbore.proto.http.exchange import Exchange
from netbore.proto.http.messages import RequestHead
from netbore.proto.http.pages import PROBLEMS
from netbore.proto.http.viewer import ViewerConnection
from netbore.proto.stream import Stream
from netbore.proto.websocket import Refusal, accept_upgrade


class ApiTarget:
    """Requests for the API host."""

    def __init__(self, poller: Poller, link_path: str, on_agent: Callable[[Transport], None]) -> None:
        self._poller = poller
        self._link_path = link_path.encode()
        self._on_agent = on_agent

    def carry(self, exchange: Exchange, head: RequestHead) -> None:
        """Upgrade to a Link, or answer that there is no such thing."""
        if head.target.partition(b"?")[0] == self._link_path:
            self._upgrade(exchange)
        else:
            exchange.refuse(PROBLEMS["not_found"])

    def _upgrade(self, exchange: Exchange) -> None:
        answer = accept_upgrade(exchange.request)
        if isinstance(answer, Refusal):
            exchange.respond(answer.head, answer.body)
            return
        viewer = exchange.viewer
        assert isinstance(viewer, ViewerConnection)
        stream = viewer.stream
        assert isinstance(stream, TransportStream)
        leftover = viewer.surrender()
        inner = stream.surrender()
        if isinstance(inner, Owned):
            inner.carry_link()
        self._on_agent(WebSocketTransport.server(self._poller, inner, response=answer, leftover=leftover))


def process_opener(poller: Poller, serve: Callable[[Stream], None]) -> Opener:
    """Opens Streams to something inside the process: `serve` gets the far end of each and speaks HTTP/1.1 on it."""

    def connect() -> Stream:
        near, far = memory_pair(poller)
        serve(TransportStream(poller, far))
        return TransportStream(poller, near)

    return connect
