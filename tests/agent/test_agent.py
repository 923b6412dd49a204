"""An Agent and its Tunnels, over a whole simulated world."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from netbore.agent.agent import MAX_LINKS, Tunnel, run_agent
from netbore.edge.agents import AgentLink
from netbore.errors import BindRefused, NetboreError, Replaced, TunnelClosed, Unauthorized
from netbore.link.stream import StreamAdapter
from netbore.proto.handshake import Credential, Limits
from netbore.proto.wire import MAX_UNANSWERED, Code
from netbore.testing import World, open_world
from tests.test_world import get, serve, status

pytestmark = pytest.mark.seconds(900)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


def edge_links(world: World) -> list[AgentLink]:
    """The Edge's Links, oldest first."""
    return list(world.core.door.links.values())


def slow_host(world: World, nursery: trio.Nursery, seconds: float = 10) -> None:
    """A Host, web:80, that takes a while for the second half of its one answer."""

    async def answer(stream: StreamAdapter) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                await stream.receive_some()
                await stream.send_all(HEAD + b"hello")
                await trio.sleep(seconds)
                await stream.send_all(b"world")

    world.host("web", 80, lambda stream: nursery.start_soon(answer, stream))


class Getting:
    """A request under way."""

    def __init__(self, world: World, nursery: trio.Nursery, host: str) -> None:
        self.response: bytes | None = None
        nursery.start_soon(self._run, world, host)

    async def _run(self, world: World, host: str) -> None:
        try:
            self.response = await get(world, host)
        except trio.BrokenResourceError:
            self.response = b"broken"

    @property
    def whole(self) -> bool:
        return self.response is not None and self.response.endswith(b"helloworld")


class Ending:
    """What a task ended with."""

    def __init__(self, nursery: trio.Nursery, task: Callable[..., Any], *args: Any) -> None:
        self.error: BaseException | None = None
        self.at: float | None = None
        nursery.start_soon(self._run, task, args)

    async def _run(self, task: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            await task(*args)
        except Exception as error:
            self.error = error
        self.at = trio.current_time()


# Waiting


async def test_tunnels_that_are_opened_at_once_before_there_is_a_link(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent:
        opened = []

        async def one(name: str) -> None:
            opened.append((await agent.open_tunnel(name)).name)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for name in ("aa", "bb", "cc"):
                    nursery.start_soon(one, name)
        assert sorted(opened) == ["aa", "bb", "cc"]


async def test_accept_beside_wait_closed(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        tunnel = await serve(nursery, agent, "demo")
        await trio.sleep(1)
        waiters = [Ending(nursery, tunnel.wait_closed) for _ in range(2)]
        await trio.sleep(1)
        with trio.fail_after(20):
            assert status(await get(world, tunnel.hostname)) == 200
        await tunnel.aclose()
        await trio.sleep(1)
        assert [type(waiter.error) for waiter in waiters] == [TunnelClosed, TunnelClosed]
        nursery.cancel_scope.cancel()


# Errors come as they are documented


async def test_forward_raises_what_ended_the_tunnel(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        tunnel = await agent.open_tunnel("demo")
        await agent.open_tunnel("other")
        forwarding = Ending(nursery, tunnel.forward, "web:80")
        await trio.sleep(1)
        await world.core.tunnels.delete(tunnel.id)
        await trio.sleep(1)
        assert type(forwarding.error) is TunnelClosed


async def test_an_error_inside_the_block_leaves_it_as_it_is(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        with pytest.raises(BindRefused):
            async with world.agent() as agent:
                await agent.open_tunnel("-bad-")

        async def two_at_once() -> None:
            async with world.agent(Credential("operator", "wrong")) as agent, trio.open_nursery() as nursery:
                nursery.start_soon(agent.open_tunnel, "a")
                nursery.start_soon(agent.open_tunnel, "b")

        with pytest.raises(Unauthorized):
            await two_at_once()
        with pytest.RaisesGroup(ValueError, flatten_subgroups=True):
            async with world.agent():
                raise ValueError


async def test_opening_after_the_end_says_why(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent(Credential("operator", "wrong")) as agent:
        for _ in range(2):
            with pytest.raises(Unauthorized):
                await agent.open_tunnel("demo")
        assert isinstance(agent.error, Unauthorized)


# The end of a Tunnel


@pytest.mark.parametrize("how", ["forward", "accept"])
async def test_a_handover_lets_streams_come_to_their_end(autojump_clock: MockClock, how: str) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as old, world.agent() as new:
        tunnel = await old.open_tunnel("demo")
        await old.open_tunnel("other")
        slow_host(world, nursery)

        async def handler(stream: StreamAdapter) -> None:
            await stream.receive_some()
            await stream.send_all(HEAD + b"hello")
            await trio.sleep(10)
            await stream.send_all(b"world")

        task = (tunnel.forward, "web:80") if how == "forward" else (trio.serve_listeners, handler, [tunnel])
        serving = Ending(nursery, *task)
        getting = Getting(world, nursery, tunnel.hostname)
        await trio.sleep(2)
        await serve(nursery, new, "demo", tunnel.recreate_token, mode="handover")
        assert status(await get(world, tunnel.hostname)) == 200
        assert isinstance(tunnel.error, Replaced)
        assert serving.at is None
        await trio.sleep(20)
        assert getting.whole
        assert serving.at is not None
        assert isinstance(serving.error, Replaced) == (how == "forward")
        nursery.cancel_scope.cancel()


async def test_streams_that_nobody_accepted_are_given_back(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        tunnel = await agent.open_tunnel("demo")
        getting = Getting(world, nursery, tunnel.hostname)
        await trio.sleep(1)
        await tunnel.aclose()
        await trio.sleep(20)
        assert status(getting.response or b"") == 503
        assert agent.link is not None
        assert agent.link.session.mux.idle
        with pytest.raises(trio.ClosedResourceError):
            await tunnel.accept()


async def test_streams_that_are_given_back_make_room_for_others(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        credential, limits = Credential("operator", world.state.operator_token), Limits(max_streams=4)
        async with run_agent(world.poller, world.dial_edge, credential, agent="few Streams", limits=limits) as agent:
            for turn in range(12):
                tunnel = await agent.open_tunnel(f"t{turn}")
                nursery.start_soon(get_quietly, world, tunnel.hostname)
                await trio.sleep(1)
                await tunnel.aclose()
                await trio.sleep(1)
            tunnel = await serve(nursery, agent, "demo")
            with trio.fail_after(5):
                assert status(await get(world, tunnel.hostname)) == 200
            nursery.cancel_scope.cancel()


async def test_leaving_forward_cuts_what_is_in_flight(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        tunnel = await agent.open_tunnel("demo")
        slow_host(world, nursery, 100)
        with trio.move_on_after(5):
            nursery.start_soon(get_quietly, world, tunnel.hostname)
            await tunnel.forward("web:80")
        await trio.sleep(1)
        assert agent.link is not None
        assert agent.link.session.mux.idle
        world.poller.audit()
        nursery.cancel_scope.cancel()


async def get_quietly(world: World, host: str) -> None:
    with suppress(trio.BrokenResourceError):
        await get(world, host)


# Requests


async def test_more_tunnels_than_may_be_asked_for_at_once_come_back(autojump_clock: MockClock) -> None:
    count = MAX_UNANSWERED + 8
    async with open_world() as world, world.agent() as agent:
        for number in range(count):
            await agent.open_tunnel(f"t{number}")
        edge_links(world)[0].link.close(Code.GOING_AWAY, "test")
        await trio.sleep(60)
        assert len(world.dialled) == 2
        assert sum(tunnel.state == "online" for tunnel in world.core.tunnels.list()) == count


async def test_an_open_that_is_cancelled_leaves_nothing(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent:
        await agent.open_tunnel("first")
        for turn in range(12):
            with trio.move_on_after(0.002 * turn):
                await (await agent.open_tunnel(f"g{turn}")).aclose()
        await trio.sleep(5)
        online = [tunnel.name for tunnel in world.core.tunnels.list() if tunnel.state == "online"]
        assert online == ["first"]


async def test_messages_of_wrong_types_harm_nothing(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        tunnel = await serve(nursery, agent, "demo")
        link = edge_links(world)[0].link
        for wrong in ([], {}, "1", None, True, 1.5):
            link.send_message({"type": "bound", "id": wrong})
            link.send_message({"type": "unbound", "handle": wrong})
            link.send_message({"type": wrong})
        await trio.sleep(1)
        assert tunnel.error is None
        assert status(await get(world, tunnel.hostname)) == 200
        assert len(world.dialled) == 1
        nursery.cancel_scope.cancel()


# Coming back


def forget(link: AgentLink) -> None:
    """As if the Edge had been started again: it has never heard of this Link."""
    link.secret = "0" * 64


async def test_a_link_that_the_edge_forgot_costs_one_dial(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        tunnel = await serve(nursery, agent, "demo")
        await trio.sleep(20)
        first = agent.link
        forget(edge_links(world)[0])
        world.dialled[-1].path.cut()
        await trio.sleep(60)
        assert len(world.dialled) == 2
        assert agent.link is not first
        assert status(await get(world, tunnel.hostname)) == 200
        nursery.cancel_scope.cancel()


async def test_the_epoch_of_the_last_answer_is_sent_again(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent:
        tunnel = await agent.open_tunnel("demo")
        tunnel.bound({"tunnel": "t", "name": "demo", "epoch": 7})
        assert tunnel.bind_message()["epoch"] == 7
        for wrong in ("7", None, True, [7]):
            tunnel.bound({"tunnel": "t", "name": "demo", "epoch": wrong})
            assert "epoch" not in tunnel.bind_message()


async def test_a_token_that_is_taken_no_more_is_dropped_and_the_name_kept(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        told: list[str] = []
        agent.on_event = lambda kind, fields: told.append(kind)
        tunnel = await serve(nursery, agent, "demo")
        tunnel.recreate_token = "nbr_unknown"
        edge_links(world)[0].link.close(Code.GOING_AWAY, "test")
        await trio.sleep(10)
        assert tunnel.error is None
        assert tunnel.recreate_token not in ("", None, "nbr_unknown")
        assert status(await get(world, tunnel.hostname)) == 200
        assert told.count("bound") == 2
        nursery.cancel_scope.cancel()


# Moving


async def test_the_edge_moves_an_agent_under_running_requests(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        slow_host(world, nursery)
        tunnel = await agent.open_tunnel("demo")
        nursery.start_soon(tunnel.forward, "web:80")
        running = []
        for _ in range(10):
            running.append(Getting(world, nursery, tunnel.hostname))
            await trio.sleep(0.5)
        old = edge_links(world)[0]
        first = agent.link
        old.link.session.mux.move(4000)
        for _ in range(10):
            running.append(Getting(world, nursery, tunnel.hostname))
            await trio.sleep(0.5)
        assert agent.link is not first
        newest = edge_links(world)[-1]
        assert newest is not old
        assert newest.bound
        for handle in list(old.bound):
            world.core.publisher.withdraw(old, handle)
        for _ in range(10):
            running.append(Getting(world, nursery, tunnel.hostname))
            await trio.sleep(0.5)
        await old.link.drained()
        old.link.close(Code.GOING_AWAY, "moved")
        await trio.sleep(60)
        assert [one for one in running if not one.whole] == []
        assert first is not None
        assert first.ended is not None
        assert len(world.dialled) == 2, "the Link that was moved away from is not made anew"
        assert edge_links(world) == [newest]
        assert tunnel.error is None
        nursery.cancel_scope.cancel()


async def test_a_link_that_was_moved_away_from_is_still_resumed(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        slow_host(world, nursery, 60)
        tunnel = await agent.open_tunnel("demo")
        nursery.start_soon(tunnel.forward, "web:80")
        getting = Getting(world, nursery, tunnel.hostname)
        await trio.sleep(11)
        world.network.refuse("edge", 7)
        edge_links(world)[0].link.session.mux.move(1)
        await trio.sleep(0.2)
        world.dialled[0].path.cut()
        await trio.sleep(5)
        world.network.refuse("edge", 7, refused=False)  # HELLO of the second may come before RESUME of the first
        await trio.sleep(120)
        assert getting.whole
        assert len(edge_links(world)) == 2
        nursery.cancel_scope.cancel()


async def test_the_second_link_comes_at_once_when_the_first_ends(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        tunnel = await serve(nursery, agent, "demo")
        world.random.random = lambda: 0.99  # type: ignore[method-assign]
        edge_links(world)[0].link.session.mux.move(60_000)
        await trio.sleep(1)
        assert len(world.dialled) == 1
        edge_links(world)[0].link.close(Code.GOING_AWAY, "moved")
        await trio.sleep(2)
        assert status(await get(world, tunnel.hostname)) == 200
        nursery.cancel_scope.cancel()


async def test_a_tunnel_without_a_name_is_opened_once_while_moving(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        await agent.open_tunnel("first")
        edge_links(world)[0].link.session.mux.move(0)
        opened: list[Tunnel] = []

        async def one() -> None:
            opened.append(await agent.open_tunnel())

        for _ in range(10):
            await trio.sleep(0.01)
            nursery.start_soon(one)
        await trio.sleep(5)
        assert len(edge_links(world)) == 2
        assert sorted(tunnel.name for tunnel in world.core.tunnels.list()) == sorted(["first", *(t.name for t in opened)])
        assert len(edge_links(world)[1].bound) == 11


async def test_an_edge_that_asks_to_move_again_and_again(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent:
        await agent.open_tunnel("demo")
        for _ in range(3 * MAX_LINKS):
            for link in edge_links(world):
                link.link.session.mux.move(0)
            await trio.sleep(2)
        assert len(edge_links(world)) == MAX_LINKS


async def test_a_takeover_ends_both_links(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as old, world.agent() as new:
        tunnel = await serve(nursery, old, "demo")
        edge_links(world)[0].link.session.mux.move(0)
        await trio.sleep(2)
        winner = await serve(nursery, new, "demo", tunnel.recreate_token)
        await trio.sleep(10)
        assert isinstance(tunnel.error, Replaced)
        assert isinstance(old.error, Replaced)
        assert status(await get(world, winner.hostname)) == 200
        nursery.cancel_scope.cancel()


# Draining


async def test_draining_kills_nothing_with_many_tunnels(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        slow_host(world, nursery)
        tunnels = [await agent.open_tunnel(f"t{number}") for number in range(MAX_UNANSWERED + 8)]
        for tunnel in tunnels:
            nursery.start_soon(tunnel.forward, "web:80")
        running = [Getting(world, nursery, tunnel.hostname) for tunnel in tunnels]
        await trio.sleep(2)
        draining = Ending(nursery, agent.drain)
        await trio.sleep(1)
        assert status(await get(world, tunnels[0].hostname)) == 503
        with pytest.raises(NetboreError, match="drains"):
            await agent.open_tunnel("late")
        assert draining.at is None
        await trio.sleep(10)
        assert [one for one in running if not one.whole] == []
        assert draining.at is not None
        assert draining.error is None
        assert len(world.dialled) == 1
        nursery.cancel_scope.cancel()


async def test_draining_goes_on_over_a_cut(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        slow_host(world, nursery)
        tunnel = await agent.open_tunnel("demo")
        nursery.start_soon(tunnel.forward, "web:80")
        getting = Getting(world, nursery, tunnel.hostname)
        await trio.sleep(2)
        draining = Ending(nursery, agent.drain)
        await trio.sleep(1)
        world.dialled[-1].path.cut()
        await trio.sleep(30)
        assert getting.whole
        assert draining.at is not None
        nursery.cancel_scope.cancel()


async def test_draining_before_there_is_a_link(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.network.refuse("edge", 7)
        async with world.agent() as agent:
            await trio.sleep(5)
            await agent.drain()


async def test_an_old_agent_that_was_away_does_not_get_its_name_back(autojump_clock: MockClock) -> None:
    """Its Link is beyond the grace time, so nobody could tell it: its BIND says which holding it had."""
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as old:
        tunnel = await serve(nursery, old, "demo")
        world.network.refuse("edge", 7)
        world.dialled[-1].path.cut()
        await trio.sleep(90)
        async with world.agent(dial=world.dial_websocket) as new:
            winner = await serve(nursery, new, "demo", tunnel.recreate_token)
            world.network.refuse("edge", 7, refused=False)
            await trio.sleep(90)
            assert isinstance(tunnel.error, Replaced)
            assert winner.error is None
            assert old.error is None, "it may open others"
            assert status(await get(world, winner.hostname)) == 200
        nursery.cancel_scope.cancel()


async def test_leaving_forward_while_a_name_is_to_be_looked_up_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The addresses that worked fail, in the very moment: nothing is started in a nursery that closes."""
    async with open_world() as world, trio.open_nursery() as nursery, world.agent() as agent:
        tunnel = await agent.open_tunnel("demo")
        slow_host(world, nursery, 0)
        nursery.start_soon(get_quietly, world, tunnel.hostname)
        nursery.start_soon(later, 1.98, world.network.refuse, "web", 80)
        for number in range(40):
            nursery.start_soon(later, 1.985 + number * 0.0004, nursery.start_soon, get_quietly, world, tunnel.hostname)
        with trio.move_on_after(2):
            await tunnel.forward("web:80")
        await trio.sleep(5)
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []
        nursery.cancel_scope.cancel()


async def later(seconds: float, call: Callable[..., Any], *args: Any) -> None:
    await trio.sleep(seconds)
    call(*args)
