"""What the Edge does for one Agent: answers, grants, leases and takeovers, against an Agent that says what a test wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from netbore.edge.authority import Grant, OperatorAuthority
from netbore.edge.registry import Claim, Holder
from netbore.proto.handshake import Credential
from netbore.proto.mux_stream import MuxStream
from netbore.proto.wire import MAX_CONTROL_QUEUE, MAX_UNANSWERED, Code, Kind
from netbore.testing import open_world
from tests.edge.support import OTHER, BareAgent, config

pytestmark = pytest.mark.seconds(900)

# Messages that an Agent of this version does not send


async def test_a_request_that_asks_for_more_than_we_know_is_refused(autojump_clock: MockClock) -> None:
    """docs/protocol.md: a member whose name ends in `!` must be understood."""
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        agent.send(**{"type": "bind", "id": 1, "handle": 1, "name": "demo", "quota!": 1})
        answer = await agent.answer(1)
        assert (answer["type"], answer["code"]) == ("refused", "unsupported")
        assert (await agent.bound(2, "demo", quota=1))["name"] == "demo"


async def test_an_unknown_request_is_refused_and_harms_nothing(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        agent.send(type="dance", id=1)
        answer = await agent.answer(1)
        assert (answer["type"], answer["code"]) == ("refused", "unsupported")
        assert (await agent.bound(2, "demo"))["type"] == "bound"


# One answer after another


async def test_answers_come_in_the_order_of_the_requests(autojump_clock: MockClock) -> None:
    """An open that is cancelled is a bind and an unbind in one breath: no Tunnel may be left of it."""
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        for number in range(1, 20, 2):
            agent.bind(number, f"name{number}", handle=7)
            agent.send(type="unbind", id=number + 1, handle=7)
        agent.send(type="dance", id=21)
        agent.bind(22, "last", handle=7)
        assert (await agent.answer(22))["type"] == "bound"
        assert [message["id"] for message in agent.messages] == list(range(1, 23))
        assert [message["type"] for message in agent.messages] == ["bound", "unbound"] * 10 + ["refused", "bound"]
        assert [tunnel.name for tunnel in world.core.tunnels.list() if tunnel.state == "online"] == ["last"]
        assert [holding.name for holding in await world.core.tunnels._registry.list()] == ["last"]


async def test_a_link_that_ends_within_a_bind_leaves_nothing_behind(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:
        registry = world.core.tunnels._registry
        granted, claim = trio.Event(), registry.claim

        async def slow(*args: Any, **members: Any) -> Claim:
            answer = await claim(*args, **members)
            granted.set()
            await trio.sleep(5)
            return answer

        monkeypatch.setattr(registry, "claim", slow)
        agent = await BareAgent(world).connect()
        agent.bind(1, "demo")
        await granted.wait()
        agent.at_edge.link.close(Code.GOING_AWAY, "")
        await trio.sleep(10)
        assert await registry.lookup("demo") is None
        assert world.core.tunnels.list() == ()


@pytest.mark.parametrize("kind", ["bind", "dance"])
async def test_only_so_many_requests_may_wait(autojump_clock: MockClock, kind: str) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        for number in range(MAX_UNANSWERED):
            agent.send(type=kind, id=number, handle=number + 1)
        await agent.answer(MAX_UNANSWERED - 1)
        for number in range(MAX_UNANSWERED + 1):
            agent.send(type=kind, id=100 + number, handle=100 + number)
        await trio.sleep(1)
        assert agent.ended is not None
        assert agent.ended.code == Code.LIMIT_EXCEEDED


@pytest.mark.parametrize("number", [None, -1, 2**32, "1", 1.0, True])
async def test_a_request_needs_a_proper_id(autojump_clock: MockClock, number: object) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        agent.send(type="dance", id=number)
        await agent.bound(1)
        agent.send(type="unbind", id=number, handle=1)
        await trio.sleep(1)
        assert agent.ended is not None
        assert agent.ended.code == Code.PROTOCOL_ERROR


@pytest.mark.parametrize("epoch", [-1, 2**53 + 1, "1", 1.5])
async def test_an_epoch_is_a_number(autojump_clock: MockClock, epoch: object) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        agent.bind(1, "demo", epoch=epoch)
        await trio.sleep(1)
        assert agent.ended is not None
        assert agent.ended.code == Code.PROTOCOL_ERROR


async def test_an_agent_that_reads_no_answers_is_not_answered_for_ever(autojump_clock: MockClock) -> None:
    """It grants no credit for the control stream: what waits there is bounded."""
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        edge = agent.at_edge
        assert agent.link is not None
        agent.link.session.mux.control.direct = Deaf()  # type: ignore[assignment]
        most = 0
        for number in range(20_000):
            agent.send(type="dance", id=number)
            if number % 30 == 29:
                await trio.sleep(0.05)
                most = max(most, edge.link.session.mux.control.queued)
            if edge.link.ended is not None:
                break
        assert edge.link.ended is not None
        assert edge.link.ended.code == Code.LIMIT_EXCEEDED
        assert MAX_CONTROL_QUEUE / 2 < most <= MAX_CONTROL_QUEUE


class Deaf:
    """A sink that takes everything and consumes nothing."""

    def on_data(self, data: object) -> None:
        pass


async def test_an_agent_has_nothing_to_open_streams_for(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        assert agent.link is not None
        for _ in range(5):
            stream = agent.link.open(Kind.HTTP, 1)
            assert stream is not None
            await trio.sleep(1)
            assert not stream.sending
        assert agent.at_edge.link.session.mux.idle


# Grants


async def test_what_was_revoked_within_a_bind_does_not_stay_bound(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        first = await agent.bound(1, "demo")
        agent.send(type="unbind", id=2, handle=1)
        await agent.answer(2)
        authority = world.core.door.parts.authority
        assert isinstance(authority, OperatorAuthority)
        check = authority.check

        async def and_revoke(credential: Credential, instance: str) -> Grant:
            grant = await check(credential, instance)
            authority.revoke(first["tunnel"], "revoked at this moment")
            return grant

        monkeypatch.setattr(authority, "check", and_revoke)
        agent.bind(3, "demo", token=first["recreate_token"])
        await agent.answer(3)
        await trio.sleep(1)
        assert agent.messages[-1] == {"type": "unbound", "handle": 3, "code": "unbound", "text": "revoked at this moment"}
        assert agent.at_edge.bound == {}
        assert await world.core.tunnels._registry.lookup("demo") is None


async def test_a_handle_that_was_taken_away_can_be_bound_again_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Giving the name back stands in the same queue as the answers."""
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        token = (await agent.bound(1, "demo"))["recreate_token"]
        agent.send(type="unbind", id=2, handle=1)
        await agent.bound(3, "demo", handle=1, token=token)
        release = world.core.tunnels.release

        async def slow(link: str, handle: int) -> None:
            await trio.sleep(1)
            await release(link, handle)

        monkeypatch.setattr(world.core.tunnels, "release", slow)
        agent.at_edge.take_away(1, Code.UNBOUND, "a test", gentle=True)
        agent.bind(4, "other", handle=1)
        assert (await agent.answer(4))["name"] == "other"
        await trio.sleep(2)
        assert [holding.name for holding in await world.core.tunnels._registry.list()] == ["other"]


async def test_watches_end_with_what_they_watch(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        authority = world.core.door.parts.authority
        assert isinstance(authority, OperatorAuthority)
        agent = await BareAgent(world).connect()
        token = (await agent.bound(1, "demo"))["recreate_token"]
        for number in range(10, 50, 2):
            agent.send(type="unbind", id=number, handle=1)
            agent.bind(number + 1, "demo", handle=1, token=token)
            await agent.answer(number + 1)
        assert len(authority._watchers) == 2  # HELLO's and the Tunnel's
        await BareAgent(world, OTHER).connect()
        agent.at_edge.link.close(Code.GOING_AWAY, "")
        assert len(authority._watchers) == 1


async def test_a_hello_by_a_token_that_is_revoked_loses_what_that_token_gave(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        maker = await BareAgent(world, OTHER).connect()
        one, two = await maker.bound(1, "one"), await maker.bound(2, "two")
        maker.at_edge.link.close(Code.GOING_AWAY, "")
        agent = await BareAgent(world).connect(Credential("recreate", one["recreate_token"]))
        await agent.bound(1, "one")
        await agent.bound(2, "two", token=two["recreate_token"])
        await world.core.tunnels.delete(one["tunnel"])
        await trio.sleep(1)
        assert agent.kinds()[-1] == ("unbound", 1)
        assert list(agent.at_edge.bound) == [2]
        agent.bind(3, "one")  # its credential gives nothing any more
        assert (await agent.answer(3))["code"] == "name_forbidden"
        await world.core.tunnels.delete(two["tunnel"])
        await trio.sleep(1)
        assert agent.kinds()[-1] == ("unbound", 2)


async def test_a_hello_by_a_token_that_is_revoked_ends_when_it_gave_all(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        maker = await BareAgent(world, OTHER).connect()
        one = await maker.bound(1, "one")
        maker.at_edge.link.close(Code.GOING_AWAY, "")
        agent = await BareAgent(world).connect(Credential("recreate", one["recreate_token"]))
        await agent.bound(1, "one")
        await world.core.tunnels.delete(one["tunnel"], force=True)
        await trio.sleep(1)
        assert agent.ended is not None
        assert agent.ended.code == Code.UNAUTHORIZED


# Leases


async def test_a_name_that_was_lost_is_claimed_again(autojump_clock: MockClock) -> None:
    """The Registry came back empty: nobody has taken the name, and nobody may find it free."""
    async with open_world() as world:
        agent, thief = await BareAgent(world).connect(), await BareAgent(world, OTHER).connect()
        first = await agent.bound(1, "demo")
        registry = world.core.tunnels._registry
        await registry.release_link(agent.at_edge.id)
        await trio.sleep(11)
        holding = await registry.lookup("demo")
        assert holding is not None
        assert holding.holder == agent.at_edge.holder
        assert holding.links == {(agent.at_edge.id, 1)}
        assert agent.at_edge.bound[1].epoch == holding.epoch > first["epoch"]
        thief.bind(1, "demo")
        assert (await thief.answer(1))["code"] == "name_taken"
        assert ("unbound", 1) not in agent.kinds()


async def test_a_name_that_was_lost_to_another_is_taken_away(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Agent of another Edge has it by now, and this Edge was not told."""
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        await agent.bound(1, "demo")
        await agent.bound(2, "more")
        registry = world.core.tunnels._registry
        monkeypatch.setattr(world.core.publisher, "_follow", lambda change: None)
        await registry.release_link(agent.at_edge.id)
        await registry.claim("demo", Holder("operator", OTHER), "another.1", 1, takeover=False)
        await trio.sleep(11)
        assert agent.messages[-1]["type"] == "unbound"
        assert (agent.messages[-1]["handle"], agent.messages[-1]["code"]) == (1, "replaced")
        assert list(agent.at_edge.bound) == [2]
        holding = await registry.lookup("more")
        assert holding is not None
        assert holding.holder == agent.at_edge.holder


async def test_a_name_that_is_given_up_while_it_is_claimed_again_is_free(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        await agent.bound(1, "demo")
        registry = world.core.tunnels._registry
        claim = registry.claim

        async def slow(*args: Any, **members: Any) -> Claim:
            await trio.sleep(3)
            return await claim(*args, **members)

        monkeypatch.setattr(registry, "claim", slow)
        await registry.release_link(agent.at_edge.id)
        await trio.sleep(11)
        agent.send(type="unbind", id=2, handle=1)
        await agent.answer(2)
        await trio.sleep(5)
        assert await registry.lookup("demo") is None


# Takeover


async def test_a_gentle_takeover_lets_the_last_streams_end(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        old, new = await BareAgent(world).connect(), await BareAgent(world, OTHER).connect()
        token = (await old.bound(1, "demo"))["recreate_token"]
        streams: list[MuxStream] = []
        assert old.link is not None
        old.link.on_stream = streams.append
        viewer = await world.view()
        await viewer.send_all(b"GET / HTTP/1.1\r\nHost: demo.tunnel.localhost\r\nConnection: close\r\n\r\n")
        await trio.sleep(1)
        await new.bound(1, "demo", token=token, mode="handover")
        await trio.sleep(100)
        assert old.messages[-1]["code"] == "replaced"
        assert old.at_edge.link.ended is None
        streams[0].send_nowait(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        streams[0].send_eof()
        assert (await viewer.receive_some()).endswith(b"hello")
        await trio.sleep(1)
        assert old.ended is not None
        assert old.ended.code == Code.REPLACED


async def test_a_gentle_takeover_has_its_time(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world(config=config(tmp_path, handover_seconds=100.0)) as world:
        old, new = await BareAgent(world).connect(), await BareAgent(world, OTHER).connect()
        token = (await old.bound(1, "demo"))["recreate_token"]
        assert old.link is not None
        viewer = await world.view()
        await viewer.send_all(b"GET / HTTP/1.1\r\nHost: demo.tunnel.localhost\r\n\r\n")
        await trio.sleep(1)
        await new.bound(1, "demo", token=token, mode="handover")
        await trio.sleep(99)
        assert old.at_edge.link.ended is None
        await trio.sleep(3)
        assert old.ended is not None
        assert old.ended.code == Code.REPLACED


async def test_an_agent_that_was_replaced_gently_may_bind_again(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        old, new = await BareAgent(world).connect(), await BareAgent(world, OTHER).connect()
        token = (await old.bound(1, "demo"))["recreate_token"]
        streams: list[MuxStream] = []
        assert old.link is not None
        old.link.on_stream = streams.append
        viewer = await world.view()
        await viewer.send_all(b"GET / HTTP/1.1\r\nHost: demo.tunnel.localhost\r\n\r\n")
        await trio.sleep(1)
        await new.bound(1, "demo", token=token, mode="handover")
        await old.bound(2, "other")
        streams[0].reset(Code.HOST_CLOSED)
        await trio.sleep(10)
        assert old.at_edge.link.ended is None


async def test_a_takeover_by_force_ends_the_last_link_at_once(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        old, new = await BareAgent(world).connect(), await BareAgent(world, OTHER).connect()
        first = await old.bound(1, "demo")
        await old.bound(2, "more")
        token = first["recreate_token"]
        viewer = await world.view()
        await viewer.send_all(b"GET / HTTP/1.1\r\nHost: demo.tunnel.localhost\r\n\r\n")
        await trio.sleep(1)
        second = await new.bound(1, "demo", token=token)
        assert second["epoch"] > first["epoch"]
        await trio.sleep(0.1)
        assert old.at_edge.link.session.mux.idle
        assert old.messages[-1]["code"] == "replaced"
        await new.bound(2, "more", token=(await old.answer(2))["recreate_token"])
        await trio.sleep(0.1)
        assert old.ended is not None
        assert old.ended.code == Code.REPLACED
