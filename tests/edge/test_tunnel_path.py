"""A request crosses a Link: front, Mux Stream, the Agent's relay, the Host."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

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
async def tunnel(address: tuple[str, int] | None = None) -> AsyncIterator[tuple[int, Host, Link, Link]]:
    """A Viewer's port, the Host (unless one is at `address`), and the two ends of the Link between."""
    host = Host()
    async with trio.open_nursery() as nursery, open_poller() as poller:
        if address is None:
            address = (await nursery.start(trio.serve_tcp, host.serve, 0))[0].socket.getsockname()
        edge, agent = link_pair(poller)
        dial = tcp_opener(poller, ("127.0.0.1", address[1]))
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


class Steps(trio.abc.Instrument):
    """Counts task steps by the name of the task."""

    def __init__(self) -> None:
        self.by_task: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.by_task[task.name] += 1

    @property
    def others(self) -> int:
        """Steps of all but the Poller's driver and timer."""
        return sum(count for name, count in self.by_task.items() if not name.startswith("netbore.link.poller.Poller.run_"))


def answer_until_closed(listener: socket.socket) -> None:
    """A Host in a thread: one connection, a fixed answer to each request."""
    connection, _ = listener.accept()
    with connection, suppress(ConnectionResetError):
        while connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


def ask(port: int, count: int) -> None:
    """A Viewer in a thread: requests one after another."""
    with socket.create_connection(("127.0.0.1", port)) as viewer:
        for _ in range(count):
            viewer.sendall(b"GET / HTTP/1.1\r\nHost: demo.tunnel.localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"\r\n\r\nhello"):
                answer += viewer.recv(65536)


@pytest.mark.seconds(60)
async def test_a_request_costs_no_task_step() -> None:
    """Only the Poller's two tasks run on the data path: fewer than 10 other steps in 10,000 requests."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with trio.open_nursery() as nursery, tunnel(server.getsockname()) as (port, _, _, _):
            nursery.start_soon(trio.to_thread.run_sync, answer_until_closed, server)
            await trio.to_thread.run_sync(ask, port, 10)
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            await trio.to_thread.run_sync(ask, port, 10000)
            trio.lowlevel.remove_instrument(steps)
    assert steps.others < 10
    assert steps.by_task.total() > 10000
