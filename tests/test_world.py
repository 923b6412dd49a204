"""The whole in one process on a fake clock: bind, serve, break, resume, take over."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from netbore.agent.agent import Agent, Tunnel
from netbore.edge.hub import RequestEnded, RequestRefused
from netbore.errors import BindRefused, NameTaken, Replaced, Unauthorized
from netbore.link.stream import StreamAdapter
from netbore.proto.handshake import Credential
from netbore.testing import World, open_world

pytestmark = pytest.mark.seconds(600)


async def hello(stream: StreamAdapter) -> None:
    """A Host in the process: one fixed answer to each request without a body."""
    buffer = b""
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            buffer += data
            while b"\r\n\r\n" in buffer:
                _, _, buffer = buffer.partition(b"\r\n\r\n")
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


async def get(world: World, host: str) -> bytes:
    """The whole response to one GET."""
    async with await world.view() as viewer:
        await viewer.send_all(b"GET / HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % host.encode())
        response = b""
        async for data in viewer:
            response += data
        return response


def status(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


async def serve(
    nursery: trio.Nursery, agent: Agent, name: str | None = None, token: str | None = None, mode: str = "crash"
) -> Tunnel:
    """A Tunnel with `hello` behind it."""
    tunnel = await agent.open_tunnel(name, recreate_token=token, mode=mode)
    nursery.start_soon(serve_quietly, tunnel)
    return tunnel


async def serve_quietly(tunnel: Tunnel) -> None:
    try:
        await trio.serve_listeners(hello, [tunnel])
    except* trio.ClosedResourceError:
        pass


async def test_a_tunnel_is_reached_once_it_is_bound(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        tunnel = await serve(nursery, agent, "demo")
        assert (tunnel.name, tunnel.hostname) == ("demo", "demo.tunnel.localhost")
        assert tunnel.public_url == "http://demo.tunnel.localhost"
        assert (await get(world, tunnel.hostname)).endswith(b"\r\n\r\nhello")
        assert status(await get(world, "other.tunnel.localhost")) == 404
        nursery.cancel_scope.cancel()


async def test_the_edge_chooses_a_name(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        first, second = await serve(nursery, agent), await serve(nursery, agent)
        assert first.name != second.name
        for tunnel in (first, second):
            assert status(await get(world, tunnel.hostname)) == 200
        nursery.cancel_scope.cancel()


async def test_a_closed_tunnel_is_offline_and_not_unknown(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        tunnel = await serve(nursery, agent, "demo")
        await tunnel.aclose()
        await trio.sleep(1)
        response = await get(world, tunnel.hostname)
        assert status(response) == 503
        assert b"Netbore-Error: agent_offline" in response
        nursery.cancel_scope.cancel()


async def test_a_cut_link_is_resumed_and_a_request_in_between_is_held(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        tunnel = await serve(nursery, agent, "demo")
        link = agent.link
        for _ in range(20):
            await trio.sleep(11)  # for long enough, the next attempt comes at once
            world.dialled[-1].path.cut()
            assert status(await get(world, tunnel.hostname)) == 200
        assert agent.link is link
        assert len(world.dialled) == 21
        nursery.cancel_scope.cancel()


async def test_a_half_open_link_is_noticed_by_both_sides(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        tunnel = await serve(nursery, agent, "demo")
        link, started = agent.link, trio.current_time()
        world.dialled[-1].path.silence()
        await trio.sleep(20)
        assert status(await get(world, tunnel.hostname)) == 200
        assert trio.current_time() - started < 30
        assert agent.link is link
        nursery.cancel_scope.cancel()


async def test_without_its_agent_a_viewer_waits_a_while_and_is_told(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        tunnel = await serve(nursery, agent, "demo")
        world.network.refuse("edge", 7)
        world.dialled[-1].path.cut()
        await trio.sleep(1)
        started = trio.current_time()
        response = await get(world, tunnel.hostname)
        assert status(response) == 503
        assert b"Retry-After" in response
        assert 9 < trio.current_time() - started < 12
        world.network.refuse("edge", 7, refused=False)
        await trio.sleep(31)
        assert status(await get(world, tunnel.hostname)) == 200
        nursery.cancel_scope.cancel()


async def test_a_link_is_kept_for_its_grace_time_only(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        tunnel = await serve(nursery, agent, "demo")
        first = agent.link
        world.network.refuse("edge", 7)
        world.dialled[-1].path.cut()
        await trio.sleep(70)
        assert world.core.door.links == {}
        world.network.refuse("edge", 7, refused=False)
        await trio.sleep(31)
        assert agent.link is not first
        assert status(await get(world, tunnel.hostname)) == 200
        nursery.cancel_scope.cancel()


async def test_the_recreate_token_takes_a_name_over_at_once(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as old, world.agent() as new:
        loser = await serve(nursery, old, "demo")
        world.dialled[0].path.silence()  # the old connection still looks alive to the Edge
        winner = await serve(nursery, new, "demo", loser.recreate_token)
        assert status(await get(world, winner.hostname)) == 200
        assert winner.name == "demo"
        await trio.sleep(60)
        assert isinstance(loser.error, Replaced)
        assert isinstance(old.error, Replaced)
        nursery.cancel_scope.cancel()


async def test_a_held_name_needs_its_token(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as first, world.agent() as second:
        await serve(nursery, first, "demo")
        with pytest.raises(NameTaken, match="recreate token"):
            await second.open_tunnel("demo")
        with pytest.raises(BindRefused) as caught:
            await second.open_tunnel("-bad-")
        assert caught.value.code == "name_invalid"
        nursery.cancel_scope.cancel()


async def test_a_recreate_token_alone_brings_an_agent_back(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        async with world.agent() as agent:
            token = (await agent.open_tunnel("demo")).recreate_token
        assert token is not None
        async with world.agent(Credential("recreate", token)) as again:
            tunnel = await serve(nursery, again)
            assert tunnel.name == "demo"
            assert status(await get(world, tunnel.hostname)) == 200
            with pytest.raises(BindRefused) as caught:
                await again.open_tunnel("other")
            assert caught.value.code == "name_forbidden"
        nursery.cancel_scope.cancel()


async def test_a_wrong_token_is_final(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent(Credential("operator", "wrong")) as agent:
        with pytest.raises(Unauthorized, match="wrong"):
            await agent.open_tunnel("demo")


async def test_deleting_a_tunnel_takes_its_name_away(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        tunnel = await serve(nursery, agent, "demo")
        assert await world.core.tunnels.delete(tunnel.id)
        await trio.sleep(1)
        assert status(await get(world, tunnel.hostname)) == 404
        assert tunnel.error is not None
        nursery.cancel_scope.cancel()


async def test_leaving_ends_everything(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        async with world.agent() as agent, trio.open_nursery() as nursery:
            await serve(nursery, agent, "demo")
            nursery.cancel_scope.cancel()
        await trio.sleep(1)
        assert world.core.door.links == {}
        assert [tunnel.state for tunnel in world.core.tunnels.list()] == ["offline"]


async def test_the_hub_hears_of_everything(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        heard: list[object] = []
        leave = world.core.hub.listen_to_all(heard.append)
        async with world.agent() as agent:
            tunnel = await serve(nursery, agent, "demo")
            world.dialled[-1].path.cut()
            assert status(await get(world, tunnel.hostname)) == 200
            assert status(await get(world, "other.tunnel.localhost")) == 404
        await trio.sleep(1)
        leave()
        assert [type(event).__name__ for event in heard] == [
            "LinkOpened",
            "TunnelBound",
            "LinkBroken",
            "ViewerOpened",
            "RequestHeadRead",
            "LinkResumed",
            "FirstByte",
            "RequestEnded",
            "ViewerClosed",
            "ViewerOpened",
            "RequestHeadRead",
            "RequestRefused",
            "RequestEnded",
            "ViewerClosed",
            "LinkEnded",
            "TunnelUnbound",
        ]
        refused = next(event for event in heard if isinstance(event, RequestRefused))
        assert (refused.code, refused.status) == ("no_such_tunnel", 404)
        ended = next(event for event in heard if isinstance(event, RequestEnded))
        assert (ended.status, ended.sent, ended.complete) == (200, 5, True)
        nursery.cancel_scope.cancel()
