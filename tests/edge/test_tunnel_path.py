"""A request crosses a Link: front, Mux Stream, the Agent's relay, the Host."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from netbore.edge.front import Front
from netbore.edge.routes import Route, RouteTable
from netbore.edge.targets import HostTarget, link_opener, tcp_opener
from netbore.link.link import Link
from netbore.link.memory import memory_pair
from netbore.link.poller import Poller, open_poller
from netbore.link.tcp import listen
from netbore.proto.handshake import Limits
from netbore.proto.mux import Role
from netbore.relay import relay
from tests.link.quiet import Quiet

from .test_front import Host, read_response

pytestmark = pytest.mark.usefixtures("deadline")


def link_pair(poller: Poller) -> tuple[Link, Link]:
    """An Edge's and an Agent's end of one Link over memory, its handshake done."""
    limits = Limits()
    ends = []
    transports = memory_pair(poller)
    for role, transport in zip((Role.ACCEPTOR, Role.DIALLER), transports, strict=True):
        link = Link(poller, role, limits, limits, Quiet(), name=role.name)
        link.attach(transport, 0)
        ends.append(link)
    return ends[0], ends[1]


@asynccontextmanager
async def tunnel() -> AsyncIterator[tuple[int, Host, Link, Link]]:
    host = Host()
    async with trio.open_nursery() as nursery, open_poller() as poller:
        listeners = await nursery.start(trio.serve_tcp, host.serve, 0)
        edge, agent = link_pair(poller)
        dial = tcp_opener(poller, ("127.0.0.1", listeners[0].socket.getsockname()[1]))
        agent.on_stream = lambda stream: relay(stream, dial()) and None
        routes = RouteTable()
        target = HostTarget(poller, apex=b"tunnel.localhost")
        target.add(link_opener(edge, 1))
        routes.put(Route(b"demo.tunnel.localhost", target))
        front = Front(poller, routes, edge_id="e1")
        listener = listen(poller, "127.0.0.1", 0, lambda transport: front.accept(transport, secure=False))
        yield listener.address[1], host, edge, agent
        poller.audit()
        assert edge.session.audit() == agent.session.audit() == []
        nursery.cancel_scope.cancel()


async def test_a_request_crosses() -> None:
    async with tunnel() as (port, host, _, _), await trio.open_tcp_stream("127.0.0.1", port) as viewer:
        for _ in range(100):
            await viewer.send_all(b"GET / HTTP/1.1\r\nHost: demo.tunnel.localhost\r\n\r\n")
            head, body = await read_response(viewer)
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert body.startswith(b"GET / HTTP/1.1\r\nHost: demo.tunnel.localhost")
    assert host.connections == 1
