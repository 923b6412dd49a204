"""What the publisher does with Links that break, fill up, run out of ids and are taken over, through the whole path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from netbore.agent.agent import Agent, Tunnel, run_agent
from netbore.edge.config import EdgeConfig, EdgeLimits
from netbore.edge.door import DoorLimits
from netbore.edge.records import TunnelLimits
from netbore.edge.targets import HostLimits
from netbore.link.stream import StreamAdapter
from netbore.proto.handshake import Credential, Limits
from netbore.testing import DOMAIN, World, open_world
from tests.test_world import get, serve, serve_quietly, status

pytestmark = pytest.mark.seconds(900)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


@attrs.define
class Slow:
    """A Host that answers one request in two halves, the second when it is let."""

    go_on: trio.Event = attrs.field(factory=trio.Event)
    begun: trio.Event = attrs.field(factory=trio.Event)
    answer: bytes = b""
    taken: int = 0

    async def serve(self, tunnel: Tunnel) -> None:
        stream = await tunnel.accept()
        self.taken += len(await stream.receive_some())
        await stream.send_all(HEAD + b"hello")
        self.begun.set()
        await self.go_on.wait()
        await stream.send_all(b"world")

    async def ask(self, world: World, host: str) -> None:
        self.answer = await get(world, host)


async def begin(world: World, nursery: trio.Nursery, tunnel: Tunnel) -> Slow:
    """A request whose answer has begun."""
    slow = Slow()
    nursery.start_soon(slow.serve, tunnel)
    nursery.start_soon(slow.ask, world, tunnel.hostname)
    await slow.begun.wait()
    return slow


async def finish(slow: Slow) -> None:
    slow.go_on.set()
    await trio.sleep(5)
    assert slow.answer.endswith(b"helloworld")


def config(tmp_path: Path, **limits: object) -> EdgeConfig:
    return EdgeConfig(state_dir=tmp_path, domain=DOMAIN, limits=EdgeLimits(**limits))  # type: ignore[arg-type]


# Links that break


async def upload(world: World, host: str, pieces: int) -> bytes:
    async with await world.view() as viewer:
        head = "POST / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        await viewer.send_all((head % (host, 10_000 * pieces)).encode())
        for _ in range(pieces):
            await viewer.send_all(bytes(10_000))
            await trio.sleep(0.5)
        return b"".join([data async for data in viewer])


async def take(stream: StreamAdapter, size: int) -> None:
    """A Host that answers when it has got a head and `size` bytes."""
    buffer = b""
    while len(buffer.partition(b"\r\n\r\n")[2]) < size:
        data = await stream.receive_some()
        if not data:
            return
        buffer += data
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntaken")


@pytest.mark.parametrize("away", [0.0, 30.0])
async def test_an_upload_stands_still_while_its_link_is_broken(autojump_clock: MockClock, away: float) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        tunnel = await agent.open_tunnel("demo")
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await upload(world, tunnel.hostname, 100))

        async def host() -> None:
            await take(await tunnel.accept(), 1_000_000)

        nursery.start_soon(host)
        nursery.start_soon(ask)
        await trio.sleep(10)
        if away:
            world.network.refuse("edge", 7)
        world.dialled[-1].path.cut()
        await trio.sleep(away)
        if away:
            (viewer,) = world.core.front.viewers
            assert viewer.frozen
            world.network.refuse("edge", 7, refused=False)
        await trio.sleep(120)
        assert answers
        assert answers[0].endswith(b"taken")


@pytest.mark.parametrize("broken_first", [True, False])
async def test_a_way_that_was_taken_over_breaks_and_comes_back_with_its_link(
    autojump_clock: MockClock, broken_first: bool
) -> None:
    """A handover leaves Streams on the old Link, whatever happens to that first."""
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as old, AsyncExitStack() as stack:
        tunnel = await old.open_tunnel("demo")
        await old.open_tunnel("keep")
        (link,) = world.core.door.links.values()
        new = await stack.enter_async_context(world.agent())
        await new.open_tunnel("other")
        slow = await begin(world, nursery, tunnel)
        (viewer,) = world.core.front.viewers

        async def take_over() -> None:
            await new.open_tunnel("demo", recreate_token=tunnel.recreate_token, mode="handover")

        async def cut() -> None:
            world.network.refuse("edge", 7)
            world.dialled[0].path.cut()
            await trio.sleep(1)
            assert link.link.broken

        for step in (cut, take_over) if broken_first else (take_over, cut):
            await step()
        assert viewer.frozen
        world.network.refuse("edge", 7, refused=False)
        await trio.sleep(40)
        assert (link.link.broken, viewer.frozen) == (False, False)
        await finish(slow)
        await trio.sleep(1)
        assert not any(links.retired for links in world.core.publisher._links.values())
        nursery.cancel_scope.cancel()


async def test_a_request_goes_on_when_its_way_is_bound_on_a_link_that_is_broken(autojump_clock: MockClock) -> None:
    """Held until the Link is back, though no other way was there before."""
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        await serve(nursery, agent, "demo")
        (link,) = world.core.door.links.values()
        tunnel = next(iter(world.core.tunnels.list()))
        world.network.refuse("edge", 7)
        world.dialled[-1].path.cut()
        await trio.sleep(0.5)
        world.core.publisher.withdraw(link, 1)
        world.core.publisher.publish(link, 1, tunnel, crash=True)
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await get(world, tunnel.hostname))

        nursery.start_soon(ask)
        await trio.sleep(3)
        assert not answers
        world.network.refuse("edge", 7, refused=False)
        await trio.sleep(6)
        assert answers
        assert status(answers[0]) == 200
        nursery.cancel_scope.cancel()


# Taking over, deleting, forgetting


async def test_after_a_handover_the_old_streams_go_on_and_new_ones_are_the_new_holders(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as old, world.agent() as new:
        tunnel = await old.open_tunnel("demo")
        slow = await begin(world, nursery, tunnel)
        heir = await new.open_tunnel("demo", recreate_token=tunnel.recreate_token, mode="handover")
        await trio.sleep(1)
        other = await begin(world, nursery, heir)
        await finish(slow)
        await finish(other)
        nursery.cancel_scope.cancel()


async def test_after_a_crash_the_old_streams_are_reset(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as old, world.agent() as new:
        tunnel = await old.open_tunnel("demo")
        await old.open_tunnel("keep")
        async with trio.open_nursery() as nursery:
            slow = Slow()
            broken = trio.Event()

            async def host() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await slow.serve(tunnel)
                broken.set()

            async def ask() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await get(world, tunnel.hostname)

            nursery.start_soon(host)
            nursery.start_soon(ask)
            await slow.begun.wait()
            await new.open_tunnel("demo", recreate_token=tunnel.recreate_token)
            await trio.sleep(1)
            slow.go_on.set()
            await broken.wait()


@pytest.mark.parametrize("by_token", [False, True])
async def test_a_gentle_deletion_lets_streams_come_to_their_end(autojump_clock: MockClock, by_token: bool) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        tunnel = await agent.open_tunnel("demo")
        if by_token:
            await tunnel.aclose()
            await trio.sleep(1)
            tunnel = await agent.open_tunnel("demo", recreate_token=tunnel.recreate_token)
        slow = await begin(world, nursery, tunnel)
        assert await world.core.tunnels.delete(tunnel.id)
        assert status(await get(world, tunnel.hostname)) == 404
        assert tunnel.error is not None
        await finish(slow)


async def test_deleting_one_tunnel_does_not_cost_a_link_that_came_by_its_token(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        async with world.agent() as first:
            one, two = await first.open_tunnel("one"), await first.open_tunnel("two")
        await trio.sleep(1)
        assert one.recreate_token is not None
        async with world.agent(Credential("recreate", one.recreate_token)) as agent:
            mine = await agent.open_tunnel("one")
            await serve(nursery, agent, "two", two.recreate_token)
            link = agent.link
            assert await world.core.tunnels.delete(mine.id)
            await trio.sleep(20)
            assert agent.link is link
            assert status(await get(world, f"two.{DOMAIN}")) == 200
        nursery.cancel_scope.cancel()


async def test_names_that_are_forgotten_leave_nothing_behind(autojump_clock: MockClock, tmp_path: Path) -> None:
    limits = config(tmp_path, tunnels=TunnelLimits(offline=10))
    async with open_world(config=limits) as world, world.agent() as agent:
        before = len(world.core.routes)
        for number in range(30):
            await (await agent.open_tunnel(f"t{number}")).aclose()
        await trio.sleep(1)
        assert len(world.core.tunnels.list()) == 10
        assert len(world.core.routes) == before + 10
        assert len(world.core.publisher._published) == 10
        assert world.core.publisher._links == {}
        assert status(await get(world, f"t0.{DOMAIN}")) == 404
        assert status(await get(world, f"t29.{DOMAIN}")) == 503


async def test_a_bind_says_anew_how_the_tunnel_is_served(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent:
        tunnel = await agent.open_tunnel("demo", target="127.0.0.1:8000")
        target = world.core.publisher._published["demo"].target
        target._patience.learn(1.0, world.poller.now)
        await tunnel.aclose()
        await agent.open_tunnel("demo", target="127.0.0.1:8000", host_header="target")
        assert target._patience.at(world.poller.now) == 1.0
        await trio.sleep(1)
        await agent.open_tunnel("demo", target="127.0.0.1:9000", host_header="target", pool=False)
        assert not target.pooled
        assert target._patience.at(world.poller.now) > 1.0
        route = world.core.routes.find(b"demo.tunnel.localhost")
        assert route is not None
        assert (route.target, route.host) == (target, b"127.0.0.1:9000")


# Links that take no more Streams


async def several(count: int, ask: Callable[[], Awaitable[bytes]]) -> list[bytes]:
    """`count` answers at once."""
    answers: list[bytes] = []

    async def one() -> None:
        answers.append(await ask())

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return answers


async def answer_slowly(stream: StreamAdapter) -> None:
    await stream.receive_some()
    await trio.sleep(1)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")


async def serve_slowly(agent: Agent, name: str) -> None:
    tunnel = await agent.open_tunnel(name)
    try:
        await trio.serve_listeners(answer_slowly, [tunnel])
    except* trio.ClosedResourceError:
        pass


def agent_with(world: World, streams: int) -> AbstractAsyncContextManager[Agent]:
    """An Agent that allows so many Streams."""
    credential = Credential("operator", world.state.operator_token)
    limits = Limits(max_streams=streams)
    return run_agent(world.poller, world.dial_edge, credential, agent="test", limits=limits, jitter=world.random.random)


async def test_a_link_that_is_full_holds_requests_until_a_stream_has_ended(autojump_clock: MockClock) -> None:
    async with open_world() as world, agent_with(world, 4) as agent, trio.open_nursery() as nursery:
        nursery.start_soon(serve_slowly, agent, "demo")
        await trio.sleep(1)
        answers = await several(20, lambda: get(world, f"demo.{DOMAIN}"))
        assert [status(answer) for answer in answers] == [200] * 20
        nursery.cancel_scope.cancel()


async def test_idle_streams_of_one_tunnel_give_way_to_another(autojump_clock: MockClock) -> None:
    async with open_world() as world, agent_with(world, 4) as agent, trio.open_nursery() as nursery:
        for name in ("one", "two"):
            await serve(nursery, agent, name)
        slow = await begin(world, nursery, await agent.open_tunnel("slow"))
        assert [status(answer) for answer in await several(3, lambda: get(world, f"one.{DOMAIN}"))] == [200] * 3
        started = trio.current_time()
        assert [status(answer) for answer in await several(3, lambda: get(world, f"two.{DOMAIN}"))] == [200] * 3
        assert trio.current_time() - started < 1
        await finish(slow)
        nursery.cancel_scope.cancel()


async def test_a_link_that_stays_full_fails_its_requests_by_name(autojump_clock: MockClock, tmp_path: Path) -> None:
    limits = config(tmp_path, host=HostLimits(held_seconds=4.0))
    async with open_world(config=limits) as world, agent_with(world, 1) as agent, trio.open_nursery() as nursery:
        tunnel = await agent.open_tunnel("demo")
        slow = await begin(world, nursery, tunnel)
        started = trio.current_time()
        answer = await get(world, tunnel.hostname)
        assert status(answer) == 503
        assert b"Netbore-Error: limit_reached" in answer
        assert 4 <= trio.current_time() - started < 5
        await finish(slow)


async def test_requests_take_the_link_that_has_room(autojump_clock: MockClock) -> None:
    """Two Links of one Agent process: one is full, then says GOAWAY; the other serves."""
    async with open_world() as world, trio.open_nursery() as nursery:
        instance = world.random.randbytes(16).hex()
        async with world.agent(instance=instance) as first, world.agent(instance=instance) as second:
            slow = await begin(world, nursery, await first.open_tunnel("demo"))
            await serve(nursery, second, "demo")
            assert first.link is not None
            first.link.session.mux.goaway()
            await trio.sleep(1)
            for _ in range(4):
                assert status(await get(world, f"demo.{DOMAIN}")) == 200
            await finish(slow)
            nursery.cancel_scope.cancel()


async def test_a_link_without_ids_is_closed_when_its_agent_stays(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Of 60 requests, all at once, none fails."""
    limits = config(tmp_path, door=DoorLimits(max_id=20))
    async with open_world(config=limits) as world, world.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(serve_slowly, agent, "demo")
        await trio.sleep(1)
        links = set(world.core.door.links)
        for _ in range(3):
            answers = await several(20, lambda: get(world, f"demo.{DOMAIN}"))
            assert [status(answer) for answer in answers] == [200] * 20
        await trio.sleep(10)
        assert len(world.core.door.links) == 1
        assert not links & set(world.core.door.links)
        nursery.cancel_scope.cancel()


async def test_a_link_without_ids_is_left_for_another(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Its Streams come to their end, no request fails, and it is closed when it is empty."""
    limits = config(tmp_path, door=DoorLimits(max_id=20))
    async with open_world(config=limits) as world, world.agent() as agent, trio.open_nursery() as nursery:
        slow = await begin(world, nursery, await agent.open_tunnel("slow"))
        nursery.start_soon(serve_slowly, agent, "demo")
        await trio.sleep(1)
        first = next(iter(world.core.door.links))
        answers = await several(30, lambda: get(world, f"demo.{DOMAIN}"))
        assert [status(answer) for answer in answers] == [200] * 30
        assert first in world.core.door.links
        await finish(slow)
        await trio.sleep(10)
        assert first not in world.core.door.links
        nursery.cancel_scope.cancel()


async def test_a_second_link_serves_at_once_when_the_first_has_no_ids(autojump_clock: MockClock, tmp_path: Path) -> None:
    limits = config(tmp_path, door=DoorLimits(max_id=8))
    async with open_world(config=limits) as world, trio.open_nursery() as nursery:
        instance = world.random.randbytes(16).hex()
        async with world.agent(instance=instance) as first, world.agent(instance=instance) as second:
            tunnel = await first.open_tunnel("demo")
            slow = await begin(world, nursery, tunnel)
            nursery.start_soon(serve_quietly, tunnel)
            (link,) = (key for key, one in world.core.door.links.items() if one.bound)
            await serve(nursery, second, "demo")
            world.core.publisher._retire(world.core.publisher._links[link])
            started = trio.current_time()
            for _ in range(3):
                assert status(await get(world, f"demo.{DOMAIN}")) == 200
            assert trio.current_time() - started < 1
            assert link in world.core.door.links
            await finish(slow)
            assert link not in world.core.door.links
            nursery.cancel_scope.cancel()
