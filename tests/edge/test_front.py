"""The front before a plain TCP Host, with no tunnel between: a working reverse proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from netbore.edge.front import Front
from netbore.edge.routes import Route, RouteTable
from netbore.edge.targets import HostTarget, tcp_opener
from netbore.link.poller import Poller, open_poller
from netbore.link.tcp import listen


@attrs.define
class Host:
    """A Host that answers each request with its own head as the body, and counts its connections."""

    connections: int = 0
    heads: list[bytes] = attrs.field(factory=list)

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        buffer = b""
        while data := await stream.receive_some():
            buffer += data
            while b"\r\n\r\n" in buffer:
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                self.heads.append(head)
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))


@attrs.frozen
class Proxy:
    poller: Poller
    front: Front
    routes: RouteTable
    port: int
    host: Host

    async def view(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@asynccontextmanager
async def reverse_proxy() -> AsyncIterator[Proxy]:
    host = Host()
    async with trio.open_nursery() as nursery, open_poller() as poller:
        listeners = await nursery.start(trio.serve_tcp, host.serve, 0)
        routes = RouteTable()
        target = HostTarget(poller, apex=b"tunnel.localhost")
        target.add(tcp_opener(poller, ("127.0.0.1", listeners[0].socket.getsockname()[1])))
        routes.put(Route(b"demo.tunnel.localhost", target))
        front = Front(poller, routes, edge_id="e1")
        listener = listen(poller, "127.0.0.1", 0, lambda transport: front.accept(transport, secure=False))
        yield Proxy(poller, front, routes, listener.address[1], host)
        poller.audit()
        nursery.cancel_scope.cancel()


async def read_response(stream: trio.SocketStream) -> tuple[bytes, bytes]:
    """One response with a Content-Length."""
    buffer = b""
    while b"\r\n\r\n" not in buffer:
        buffer += await stream.receive_some()
    head, _, body = buffer.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += await stream.receive_some()
    assert len(body) == length
    return head, body


async def test_a_request_reaches_the_host_and_its_answer_comes_back() -> None:
    async with reverse_proxy() as proxy, await proxy.view() as viewer:
        await viewer.send_all(b"GET /a?b HTTP/1.1\r\nHost: demo.tunnel.localhost:8080\r\nX-Mine: 1\r\n\r\n")
        head, body = await read_response(viewer)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body.startswith(b"GET /a?b HTTP/1.1\r\nHost: demo.tunnel.localhost:8080\r\nX-Mine: 1\r\n")
    assert b"X-Forwarded-For: 127.0.0.1" in body
    assert b"Via: 1.1 netbore-e1" in body


async def test_connections_are_kept_on_both_sides() -> None:
    async with reverse_proxy() as proxy, await proxy.view() as first, await proxy.view() as second:
        for viewer in (first, second, first, first):
            await viewer.send_all(b"GET / HTTP/1.1\r\nHost: demo.tunnel.localhost\r\n\r\n")
            await read_response(viewer)
        assert (proxy.host.connections, len(proxy.host.heads)) == (1, 4)
        assert len(proxy.front.viewers) == 2
        await first.aclose()
        while len(proxy.front.viewers) == 2:
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_an_unknown_name_is_told_apart() -> None:
    async with reverse_proxy() as proxy, await proxy.view() as viewer:
        await viewer.send_all(b"GET / HTTP/1.1\r\nHost: other.tunnel.localhost\r\n\r\n")
        head, body = await read_response(viewer)
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"Netbore-Error: no_such_tunnel" in head
    assert b"no_such_tunnel" in body


async def test_a_host_that_is_down_is_told_apart() -> None:
    async with reverse_proxy() as proxy, await proxy.view() as viewer:
        target = HostTarget(proxy.poller, apex=b"tunnel.localhost")
        with trio.socket.socket() as unused:
            await unused.bind(("127.0.0.1", 0))
            target.add(tcp_opener(proxy.poller, unused.getsockname()))
        proxy.routes.put(Route(b"down.tunnel.localhost", target))
        await viewer.send_all(b"GET / HTTP/1.1\r\nHost: down.tunnel.localhost\r\n\r\n")
        head, _ = await read_response(viewer)
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"Netbore-Error: host_refused" in head


async def test_a_target_without_a_way_is_offline() -> None:
    async with reverse_proxy() as proxy, await proxy.view() as viewer:
        proxy.routes.put(Route(b"away.tunnel.localhost", HostTarget(proxy.poller, apex=b"tunnel.localhost")))
        await viewer.send_all(b"GET / HTTP/1.1\r\nHost: away.tunnel.localhost\r\n\r\n")
        head, _ = await read_response(viewer)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Netbore-Error: agent_offline" in head
    assert b"Retry-After: 5" in head
