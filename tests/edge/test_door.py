"""The door: handshakes, resume, limits, and what an unexpected error may cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from netbore.edge.door import DoorLimits
from netbore.edge.hub import LinkBroken, LinkEnded, LinkOpened, LinkResumed
from netbore.edge.registry import Holder
from netbore.link.transport import TransportBroken
from netbore.proto.handshake import Credential, Limits, Resume, Resumed, Welcome, encode
from netbore.proto.mux import Role
from netbore.proto.session import Session
from netbore.proto.window import Budget
from netbore.proto.wire import FIRST_ROOM, STREAM_WINDOW, Code
from netbore.testing import World, open_world
from tests.edge.support import OTHER, BareAgent, code, config

pytestmark = pytest.mark.seconds(900)


def broken(world: World) -> list[str]:
    """The Links that the Edge holds without a transport."""
    return [agent.id for agent in world.core.door.links.values() if agent.link.broken]


def instance(number: int) -> str:
    return f"{number:032x}"


async def fail(*_: Any, **__: Any) -> Any:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError("planted")


# Room for Links


async def test_an_agent_that_finds_no_room_is_rejected_and_the_edge_goes_on(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Each Link holds back its reserve and a first room; here there is place for two."""
    one = STREAM_WINDOW + FIRST_ROOM
    async with open_world(config=config(tmp_path, budget=2 * one, owner_budget=2 * one)) as world:
        first, second, third = (BareAgent(world, instance(number)) for number in range(3))
        await first.connect()
        for agent in (second, third):
            while isinstance(answer := await agent.ask(agent.hello()), Welcome):
                pass
            assert code(answer) == Code.LIMIT_EXCEEDED
        assert first.link is not None
        first.link.close(Code.GOING_AWAY, "")
        await trio.sleep(1)
        await third.connect()
        assert third.ended is None


async def test_all_of_the_budget_comes_back(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world() as world:
        for number in range(3):
            agent = await BareAgent(world, instance(number)).connect()
            await agent.bound(1)
            assert agent.link is not None
            agent.link.close()
        await trio.sleep(1)
        door = world.core.door
        assert (door.links, door.parts.budget.out, len(door._budgets)) == ({}, 0, 0)


def test_as_many_links_as_are_allowed_fit_the_budgets() -> None:
    """Also when all of them are one owner's."""
    limits = DoorLimits()
    owner = Budget(limits.owner_budget, Budget(512 * 1024 * 1024))
    for _ in range(limits.links):
        budget = Budget(limits.link_budget, owner)
        Session(Role.ACCEPTOR, Limits(limits.streams), Limits(), post=lambda *_: None, on_output=lambda: None, budget=budget)


async def test_one_owner_cannot_use_up_the_budget_of_all(autojump_clock: MockClock, tmp_path: Path) -> None:
    one = STREAM_WINDOW + FIRST_ROOM
    async with open_world(config=config(tmp_path, budget=4 * one, owner_budget=one)) as world:
        await BareAgent(world).connect()
        other = BareAgent(world, OTHER)
        assert code(await other.ask(other.hello())) == Code.LIMIT_EXCEEDED
        door = world.core.door
        assert door._budgets.of("another owner").take(one)
        assert door.parts.budget.out == 2 * one


async def test_no_more_links_than_are_allowed_however_many_come_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world(config=config(tmp_path, links=3)) as world:
        agents = [BareAgent(world, instance(number)) for number in range(8)]
        answers: list[object] = []

        async def come(agent: BareAgent) -> None:
            answers.append(await agent.ask(agent.hello()))

        async with trio.open_nursery() as nursery:
            for agent in agents:
                nursery.start_soon(come, agent)
        assert len([answer for answer in answers if isinstance(answer, Welcome)]) == 3
        assert len(world.core.door.links) == 3


async def test_whoever_cannot_hear_welcome_has_no_link(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        events: list[object] = []
        world.core.hub.listen_to_all(events.append)
        agent = BareAgent(world)
        transport = await agent.dial()
        hello = encode(agent.hello())
        transport.path.acceptor.cut_at(len(hello))
        assert agent.greeting is not None
        with pytest.raises(TransportBroken):
            await agent.ask(agent.hello(), dial=False)
        await trio.sleep(1)
        assert world.core.door.links == {}
        assert world.core.door.parts.budget.out == 0
        assert [type(event) for event in events if isinstance(event, LinkOpened | LinkEnded)] == [LinkOpened, LinkEnded]
        await agent.connect()


# Pending handshakes


async def test_a_flood_of_silent_connections_keeps_nobody_out(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world(config=config(tmp_path, pending=4)) as world:
        silent = [await world.dial_edge() for _ in range(4)]
        await trio.sleep(0.1)
        assert world.core.door.pending == 4
        await BareAgent(world).connect()
        await trio.sleep(0.1)
        assert world.core.door.pending == 3
        with pytest.raises(TransportBroken):
            silent[0].try_recv(1)
        assert silent[1].try_recv(1) is None


async def test_a_handshake_has_its_time(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        agent = BareAgent(world)
        transport = await agent.dial()
        assert agent.greeting is not None
        await trio.sleep(9.9)
        assert transport.try_recv(1) is None
        assert code(await agent.greeting.hear()) == Code.TIMEOUT
        assert transport.try_recv(1) == b""
        assert world.core.door.pending == 0


# Errors that nobody expected


async def test_a_failing_authority_costs_the_handshake(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        neighbour = await BareAgent(world, OTHER).connect()
        agent = BareAgent(world)
        with monkeypatch.context() as planted:
            planted.setattr(world.core.door.parts.authority, "check", fail)
            with pytest.raises(TransportBroken):
                await agent.ask(agent.hello())
        assert "planted" in caplog.text
        await agent.connect()
        assert (await neighbour.bound(1, "demo"))["name"] == "demo"
        assert world.core.door.pending == 0


async def test_a_failing_answer_costs_its_link(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        neighbour = await BareAgent(world, OTHER).connect()
        agent = await BareAgent(world).connect()
        with monkeypatch.context() as planted:
            planted.setattr(world.core.tunnels._registry, "claim", fail)
            agent.bind(1, "demo")
            await trio.sleep(1)
        assert agent.ended is not None
        assert (agent.ended.code, agent.ended.by_peer) == (Code.INTERNAL_ERROR, True)
        assert "planted" in caplog.text
        assert (await neighbour.bound(1, "demo"))["name"] == "demo"


async def test_a_failing_registry_costs_a_round_of_leases(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        await agent.bound(1, "demo")
        with monkeypatch.context() as planted:
            planted.setattr(world.core.tunnels._registry, "renew", fail)
            await trio.sleep(25)
        assert "planted" in caplog.text
        await trio.sleep(100)
        assert agent.ended is None
        assert await world.core.tunnels._registry.lookup("demo") is not None


async def test_a_registry_whose_watch_fails_is_watched_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        old = await BareAgent(world).connect()
        await old.bound(1, "demo")
        (entry,) = world.core.publisher._published.values()
        with monkeypatch.context() as planted:
            planted.setattr(world.core.publisher, "_follow", lambda change: 1 / 0)
            await old.bound(2, "more")
            await trio.sleep(0.1)
        assert "division by zero" in caplog.text
        await trio.sleep(5)
        # An Agent of another Edge takes the name over.
        await world.core.tunnels._registry.claim("demo", Holder("operator", OTHER), "another.1", 1, takeover=True)
        await trio.sleep(1)
        assert ("unbound", 1) in old.kinds()
        assert not entry.ways


# Resume


async def test_a_fenced_link_whose_resumed_cannot_be_said_has_its_grace_time(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        events: list[object] = []
        world.core.hub.listen_to_all(events.append)
        agent = await BareAgent(world).connect()
        transport = await agent.dial()
        resume = agent.resume_of()
        transport.path.acceptor.cut_at(len(encode(resume)))
        with pytest.raises(TransportBroken):
            await agent.ask(resume, dial=False)
        await trio.sleep(59)
        assert broken(world) == [agent.at_edge.id]
        await trio.sleep(2)
        assert world.core.door.links == {}
        assert [type(event) for event in events if isinstance(event, LinkBroken | LinkResumed | LinkEnded)] == [
            LinkBroken,
            LinkEnded,
        ]


async def test_a_lost_resumed_locks_nobody_out(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        for _ in range(3):
            transport = await agent.dial()
            resume = agent.resume_of()
            transport.path.acceptor.cut_at(len(encode(resume)))
            with pytest.raises(TransportBroken):
                await agent.ask(resume, dial=False)
            await trio.sleep(40)  # each of them begins the grace time anew
        await agent.resume()
        assert (await agent.bound(1, "demo"))["name"] == "demo"


async def test_of_two_resumes_at_once_the_later_epoch_wins(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        await agent.dial()
        earlier, first = agent.greeting, agent.resume_of()
        later, second = await agent.dial(), agent.resume_of()
        assert earlier is not None
        assert agent.greeting is not None
        answers: list[object] = []

        async def go(greeting: Any, resume: Any) -> None:
            try:
                await greeting.say(resume)
                answers.append(await greeting.hear())
            except TransportBroken:
                answers.append(None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go, earlier, first)
            nursery.start_soon(go, agent.greeting, second)
        resumed = [answer for answer in answers if isinstance(answer, Resumed) and answer.epoch == 2]
        assert len(resumed) == 1
        agent.go_on(resumed[0])
        assert (await agent.bound(1, "demo"))["name"] == "demo"
        assert not later.closed
        await trio.sleep(1)
        assert earlier.transport.try_recv(1) in (b"", None)
        assert agent.at_edge.epoch == 2


async def test_a_stale_epoch_is_told_and_a_higher_one_taken_on_the_same_transport(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        await agent.resume(epoch=7)
        for stale in (7, 3, 1):
            answer = await agent.ask(agent.resume_of(epoch=stale), dial=stale == 7)
            assert code(answer) == Code.STALE_EPOCH
            assert answer.epoch == 7  # type: ignore[union-attr]
        agent.go_on(await agent.ask(agent.resume_of(epoch=8), dial=False))
        assert (await agent.bound(1, "demo"))["name"] == "demo"


async def test_a_stale_epoch_harms_no_living_link(autojump_clock: MockClock) -> None:
    """A RESUME that was under way for long arrives behind the one that replaced it."""
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        await agent.dial()
        late, old = agent.greeting, agent.resume_of()
        await agent.resume()
        assert late is not None
        await late.say(old)
        assert code(await late.hear()) == Code.STALE_EPOCH
        assert broken(world) == []
        assert (await agent.bound(1, "demo"))["name"] == "demo"


@pytest.mark.parametrize("offset", [0, 10**6])
async def test_an_impossible_offset_ends_the_link(autojump_clock: MockClock, offset: int) -> None:
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        await agent.bound(1, "demo")
        await trio.sleep(1)  # its bytes are acknowledged
        assert code(await agent.ask(agent.resume_of(received=offset))) == Code.CORRUPT_SEQUENCE
        assert world.core.door.links == {}
        answer = await agent.ask(agent.hello(), dial=False)
        assert isinstance(answer, Welcome)


async def test_a_wrong_proof_and_an_unknown_link_look_alike(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        agent, stranger = await BareAgent(world).connect(), BareAgent(world, OTHER)
        assert agent.welcome is not None
        wrong = await stranger.ask(Resume(agent.welcome.link, 1, 0, "0" * 64))
        assert broken(world) == []
        assert agent.at_edge.epoch == 0
        unknown = await stranger.ask(Resume("another.1", 1, 0, "0" * 64), dial=False)
        assert wrong == unknown
        assert code(wrong) == Code.UNKNOWN_LINK
        assert (await agent.bound(1))["type"] == "bound"


# Several Links


async def test_only_so_many_broken_links_of_an_agent_are_kept(autojump_clock: MockClock) -> None:
    """The one that broke first goes, not the one that was made first."""
    async with open_world() as world:
        agents = [await BareAgent(world).connect() for _ in range(3)]
        for agent in (agents[2], agents[0], agents[1]):
            assert agent.link is not None
            agent.link.detach("a test")
            await trio.sleep(1)
        assert broken(world) == [agents[0].at_edge.id, agents[1].at_edge.id]
        await agents[0].resume()
        await agents[1].resume()


async def test_a_link_that_has_come_back_does_not_count_as_broken(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        agents = [await BareAgent(world).connect() for _ in range(5)]
        for agent in agents:
            assert agent.link is not None
            agent.link.detach("a test")
            await trio.sleep(1)
            await agent.resume()
        assert len(world.core.door.links) == 5
        assert len(world.core.door._broken) == 0


async def test_a_resume_of_a_third_link_ends_another_broken_one(autojump_clock: MockClock) -> None:
    """It is the fence that breaks it: the Link that comes back is not the one that has to go."""
    async with open_world() as world:
        agents = [await BareAgent(world).connect() for _ in range(3)]
        for agent in agents[1:]:
            assert agent.link is not None
            agent.link.detach("a test")
            await trio.sleep(1)
        await agents[0].resume()
        assert broken(world) == [agents[2].at_edge.id]
        assert (await agents[0].bound(1))["type"] == "bound"


async def test_only_so_many_broken_links_of_an_owner_are_kept(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world(config=config(tmp_path, owner_broken=4)) as world:
        agents = [await BareAgent(world, instance(number)).connect() for number in range(6)]
        for agent in agents:
            assert agent.link is not None
            agent.link.detach("a test")
            await trio.sleep(1)
        assert broken(world) == [agent.at_edge.id for agent in agents[2:]]
        assert len(world.core.door._broken) == 4


async def test_hello_ends_the_broken_links_that_it_does_not_keep(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        kept, given_up = await BareAgent(world).connect(), await BareAgent(world).connect()
        stranger, whole = await BareAgent(world, OTHER).connect(), await BareAgent(world).connect()
        for agent in (kept, given_up, stranger):
            assert agent.link is not None
            agent.link.detach("a test")
        await trio.sleep(1)
        assert kept.welcome is not None
        await BareAgent(world).connect(keeps=(kept.welcome.link,))
        assert broken(world) == [kept.at_edge.id, stranger.at_edge.id]
        await kept.resume()
        assert (await whole.bound(1))["type"] == "bound"
        assert code(await given_up.ask(given_up.resume_of())) == Code.UNKNOWN_LINK


async def test_hello_ends_no_link_of_another_owner(autojump_clock: MockClock) -> None:
    """An instance id is no secret: only together with its owner it says whose Link it is."""
    async with open_world() as world:
        agent = await BareAgent(world).connect()
        assert agent.link is not None
        agent.link.detach("a test")
        await trio.sleep(1)
        created = await world.core.tunnels.create("somebody else", name="theirs")
        await BareAgent(world).connect(Credential("recreate", created.recreate_token))
        assert broken(world) == [agent.at_edge.id]
        await agent.resume()


async def test_one_instance_may_serve_a_name_over_two_links(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = await BareAgent(world).connect(), await BareAgent(world).connect()
        first = await one.bound(1, "demo")
        second = await two.bound(2, "demo", token=first["recreate_token"])
        assert second["tunnel"] == first["tunnel"]
        assert second["epoch"] == first["epoch"]
        (entry,) = world.core.publisher._published.values()
        assert len(entry.ways) == 2
        assert one.link is not None
        one.link.close()
        await trio.sleep(1)
        assert len(entry.ways) == 1
        assert ("unbound", 2) not in two.kinds()


# Takeover


async def test_a_link_that_was_replaced_while_broken_hears_of_it_when_it_resumes(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        old, new = await BareAgent(world).connect(), await BareAgent(world, OTHER).connect()
        token = (await old.bound(1, "demo"))["recreate_token"]
        assert old.link is not None
        old.link.detach("a test")
        await trio.sleep(1)
        await new.bound(1, "demo", token=token)
        for _ in range(2):
            assert code(await old.ask(old.resume_of())) == Code.REPLACED
        assert old.welcome is not None
        assert code(await old.ask(Resume(old.welcome.link, 9, 0, "0" * 64))) == Code.UNKNOWN_LINK


async def test_replaced_links_are_remembered_for_a_while_and_without_their_streams(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(config=config(tmp_path, replaced=2, replaced_seconds=100.0)) as world:
        agents = [await BareAgent(world, instance(number)).connect() for number in range(4)]
        token = ""
        for agent in agents:
            token = (await agent.bound(1, "demo", token=token))["recreate_token"]
        await trio.sleep(1)
        door = world.core.door
        assert len(door._replaced) == 2
        assert [code(await agent.ask(agent.resume_of())) for agent in agents[:3]] == [
            Code.UNKNOWN_LINK,
            Code.REPLACED,
            Code.REPLACED,
        ]
        await trio.sleep(100)
        assert code(await agents[2].ask(agents[2].resume_of())) == Code.UNKNOWN_LINK
        assert door._replaced == {}


async def test_an_agent_that_was_superseded_does_not_steal_its_name_back(autojump_clock: MockClock) -> None:
    """Past grace its Link is forgotten; the epoch of its last BOUND still tells."""
    async with open_world() as world:
        old, new = await BareAgent(world).connect(), await BareAgent(world, OTHER).connect()
        first = await old.bound(1, "demo")
        token = first["recreate_token"]
        old.at_edge.link.close(Code.GRACE_EXPIRED, "")
        second = await new.bound(1, "demo", token=token)
        assert second["epoch"] > first["epoch"]
        await old.connect()
        old.bind(2, "demo", token=token, epoch=first["epoch"])
        answer = await old.answer(2)
        assert (answer["type"], answer["code"]) == ("refused", "replaced")
        old.bind(3, "demo", token=token, epoch=second["epoch"] - 1)
        assert (await old.answer(3))["code"] == "replaced"
        assert new.at_edge.link.ended is None
        await old.bound(4, "demo", token=token)  # a new process does not know of any epoch, and is the newer one
        await trio.sleep(1)
        assert new.ended is not None
        assert new.ended.code == Code.REPLACED
