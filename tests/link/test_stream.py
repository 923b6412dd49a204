"""The Trio adapter passes Trio's own suite, over Mux Streams and over sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import check_half_closeable_stream

from netbore.link.link import Link
from netbore.link.memory import memory_pair
from netbore.link.poller import Poller, open_poller
from netbore.link.socket_stream import TransportStream
from netbore.link.stream import StreamAdapter, code_name
from netbore.proto.handshake import Limits
from netbore.proto.mux import Role
from netbore.proto.wire import Code, Kind

from .quiet import Quiet


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Poller, Link, Link]]:
    async with open_poller() as poller:
        left, right = memory_pair(poller)
        edge = Link(poller, Role.ACCEPTOR, Limits(), Limits(), Quiet(), name="edge")
        agent = Link(poller, Role.DIALLER, Limits(), Limits(), Quiet(), name="agent")
        edge.attach(left, 0)
        agent.attach(right, 0)
        yield poller, edge, agent


async def stream_pair(edge: Link, agent: Link) -> tuple[StreamAdapter, StreamAdapter]:
    return await edge.open_stream(Kind.TCP, 1), await agent.accept()


async def fill(stream: StreamAdapter) -> None:
    """Send until nothing more is taken."""
    while stream.stream.writable:
        stream.stream.send_nowait(bytes(65536))
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, "part", "readonly"])
async def test_a_buffer_that_its_owner_changes_is_sent_again_as_it_was(
    kind: object, autojump_clock: trio.testing.MockClock
) -> None:
    """The peer had not got it when the transport died, and then the caller's buffer held something else."""
    async with linked() as (poller, edge, agent):
        sender, receiver = await stream_pair(edge, agent)
        agent._transport.watch(False, False)  # type: ignore[union-attr]  # what comes now dies with this transport
        buffer = bytearray(b"A" * 20000)
        views = {"part": memoryview(buffer)[5000:15000], "readonly": memoryview(buffer).toreadonly()}
        data = views[kind] if isinstance(kind, str) else kind(buffer)  # type: ignore[operator]
        said = bytes(data)
        await sender.send_all(data)
        await trio.testing.wait_all_tasks_blocked()
        assert edge.session.pipe.sent > len(said)
        buffer[:] = b"B" * 20000
        edge.detach("planted")
        agent.detach("planted")
        left, right = memory_pair(poller)
        received = agent.session.pipe.received
        edge.attach(left, received)
        agent.attach(right, edge.session.pipe.received)
        heard = b""
        while len(heard) < len(said):
            heard += await receiver.receive_some()
        assert heard == said


async def test_mux_streams_pass_trios_suite(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (_, edge, agent):

        async def clogged() -> tuple[StreamAdapter, StreamAdapter]:
            pair = await stream_pair(edge, agent)
            for stream in pair:
                await fill(stream)
            return pair

        await check_half_closeable_stream(lambda: stream_pair(edge, agent), clogged)
        assert edge.session.audit() == agent.session.audit() == []


async def test_transports_as_streams_pass_trios_suite(autojump_clock: trio.testing.MockClock) -> None:
    async with open_poller() as poller:

        async def pair() -> tuple[StreamAdapter, StreamAdapter]:
            await trio.lowlevel.checkpoint()
            left, right = memory_pair(poller)
            return StreamAdapter(TransportStream(poller, left)), StreamAdapter(TransportStream(poller, right))

        async def clogged() -> tuple[StreamAdapter, StreamAdapter]:
            streams = await pair()
            for stream in streams:
                await fill(stream)
            return streams

        await check_half_closeable_stream(pair, clogged)


async def test_a_link_is_a_listener(autojump_clock: trio.testing.MockClock) -> None:
    async def echo(stream: StreamAdapter) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with linked() as (_, edge, agent), trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [agent])
        for _ in range(3):
            async with await edge.open_stream(Kind.TCP, 1) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
        nursery.cancel_scope.cancel()


async def test_accept_ends_with_the_link(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (_, edge, agent):
        await edge.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await edge.accept()
        with pytest.raises(trio.BrokenResourceError, match="closed"):
            await agent.accept()
        with pytest.raises(trio.BrokenResourceError, match="has ended"):
            await agent.open_stream(Kind.TCP, 1)


async def test_a_reset_is_named(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (_, edge, agent):
        mine, theirs = await stream_pair(edge, agent)
        theirs.stream.reset(Code.HOST_REFUSED)
        with pytest.raises(trio.BrokenResourceError, match="host_refused"):
            await mine.receive_some()
        with pytest.raises(trio.BrokenResourceError, match="host_refused"):
            await mine.send_all(b"x")
    assert code_name(999) == "code 999"


async def test_cancelling_receive_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (_, edge, agent):
        mine, theirs = await stream_pair(edge, agent)
        with trio.move_on_after(1):
            await mine.receive_some()
        await theirs.send_all(b"kept")
        assert await mine.receive_some(2) == b"ke"
        assert await mine.receive_some() == b"pt"


async def test_a_closed_stream_lets_the_peer_open_another(autojump_clock: trio.testing.MockClock) -> None:
    """MAX_STREAMS rises when the handler is done, over many more Streams than may be open at once."""
    async with linked() as (_, edge, agent):
        for _ in range(3000):
            mine, theirs = await stream_pair(edge, agent)
            await mine.aclose()
            await theirs.aclose()
