"""An Edge as a whole: its drain, its fronts, its sockets, and several of them in one process."""

from __future__ import annotations

import logging
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import netbore
from netbore.edge.descriptors import raise_limit
from netbore.edge.hub import RequestEnded
from netbore.link.tcp import TcpTransport
from netbore.link.tls import TlsTransport
from netbore.link.websocket import WebSocketTransport
from netbore.proto.wire import DEAD_SECONDS
from netbore.testing import DOMAIN, open_world
from tests.test_world import get, hello, serve, status

from .test_publisher import begin, finish

REQUEST = f"GET / HTTP/1.1\r\nHost: demo.{DOMAIN}\r\n\r\n".encode()


# Draining


@pytest.mark.seconds(600)
async def test_a_drain_lets_a_link_break_and_resume_under_a_request(autojump_clock: MockClock) -> None:
    """What is in flight when the Edge begins to stop comes to its end, over a cut, at the API host's own address."""
    async with open_world() as world, trio.open_nursery() as nursery:
        async with world.agent(dial=world.dial_websocket) as agent:
            tunnel = await agent.open_tunnel("demo")
            slow = await begin(world, nursery, tunnel)
            drained = trio.Event()

            async def drain() -> None:
                await world.core.drain()
                drained.set()

            nursery.start_soon(drain)
            await trio.sleep(1)
            world.dialled[-1].path.cut()
            await trio.sleep(12)
            assert len(world.dialled) == 2
            assert not drained.is_set()
            await finish(slow)
            assert drained.is_set()
        nursery.cancel_scope.cancel()


@pytest.mark.seconds(600)
async def test_who_comes_during_a_drain_is_told_and_does_not_prolong_it(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        await serve(nursery, agent, "demo")
        idle, late = await world.view(), await world.view()
        for viewer in (idle, late):
            await viewer.send_all(REQUEST)
            assert (await viewer.receive_some()).endswith(b"hello")
        await late.send_all(REQUEST[:20])
        await trio.sleep(0.1)
        with trio.fail_after(15):
            nursery.start_soon(world.core.drain)
            assert await idle.receive_some() == b"", "an idle connection ends at once"
            silent = await world.view()
            answer = await get(world, f"demo.{DOMAIN}")
            assert status(answer) == 503
            assert b"Netbore-Error: going_away" in answer
            await late.send_all(REQUEST[20:])
            answer = await late.receive_some()
            assert status(answer) == 200, "half a head was there before"
            assert b"Connection: close" in answer
            await world.core.drain()
            assert len(world.core.front.viewers) == 1
            await silent.aclose()
        nursery.cancel_scope.cancel()


# Real listeners


def config(state: Path, **more: object) -> netbore.EdgeConfig:
    return netbore.EdgeConfig(state_dir=state, listen=("127.0.0.1", 0), **more)  # type: ignore[arg-type]


async def test_the_redirecting_listener_is_heard_of_and_drained_too(tmp_path: Path) -> None:
    async with netbore.Edge(config(tmp_path, http_listen=("127.0.0.1", 0))) as edge:
        heard: list[RequestEnded] = []
        edge.running.core.hub.listen(RequestEnded, heard.append)
        address = edge.running.listeners["http"].address
        async with await trio.open_tcp_stream(*address) as viewer:
            await viewer.send_all(REQUEST.replace(b"demo.", b""))
            assert (await viewer.receive_some()).startswith(b"HTTP/1.1 308 ")
            assert [event.status for event in heard] == [308]
            await edge.drain()
            assert await viewer.receive_some() == b""
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(*address)


async def test_a_viewers_socket_that_becomes_a_link_is_a_links_socket(tmp_path: Path) -> None:
    async with netbore.Edge(config(tmp_path)) as edge:
        token = (tmp_path / "operator-token").read_text().strip()
        async with netbore.connect(edge.url, token=token, ca_file=tmp_path / "ca.pem") as agent:
            await agent.open_tunnel("demo")
            (link,) = edge.running.core.door.links.values()
            outer = link.link._transport
            assert isinstance(outer, WebSocketTransport)
            tls = outer._inner
            assert isinstance(tls, TlsTransport)
            tcp = tls._inner
            assert isinstance(tcp, TcpTransport)
            assert tcp._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == DEAD_SECONDS * 1000
            assert edge.running.listeners["https"]._open == 0, "Links do not count as Viewers"
            edge.audit()


async def _one_edge(state: Path, answers: list[bytes]) -> None:
    async with netbore.Edge(config(state, http_listen=("127.0.0.1", 0), http="serve")) as edge:
        token = (state / "operator-token").read_text().strip()
        async with netbore.connect(edge.url, token=token, ca_file=state / "ca.pem") as agent, trio.open_nursery() as nursery:
            tunnel = await agent.open_tunnel("demo")

            async def answer() -> None:
                with suppress(trio.ClosedResourceError):
                    while True:
                        nursery.start_soon(hello, await tunnel.accept())

            nursery.start_soon(answer)
            async with await trio.open_tcp_stream(*edge.running.listeners["http"].address) as viewer:
                for _ in range(20):
                    await viewer.send_all(REQUEST)
                    answers.append(await viewer.receive_some())
            edge.audit()
            nursery.cancel_scope.cancel()


def test_several_edges_live_in_threads_of_one_process(tmp_path: Path) -> None:
    answers: list[bytes] = []
    errors: list[BaseException] = []

    def one(state: Path) -> None:
        try:
            trio.run(_one_edge, state, answers)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(tmp_path / str(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert len(answers) == 60
    assert all(answer.endswith(b"hello") for answer in answers)


# Descriptors


@pytest.fixture
def low_limit() -> Iterator[int]:
    """A soft limit below the hard one, which is given."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_of_descriptors_is_raised_as_far_as_it_goes(low_limit: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    raise_limit(100)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == low_limit
    assert not caplog.records
    if low_limit != resource.RLIM_INFINITY:
        assert raise_limit(low_limit + 1) == low_limit
        assert str(low_limit) in caplog.text
