"""Held requests, ways in turn, and connections that fail alone: a HostTarget over memory, on a simulated Poller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from netbore.edge.front import Front, FrontLimits
from netbore.edge.held import HeldRequests, HeldRoom
from netbore.edge.pool import HostPool, PoolLimits
from netbore.edge.routes import Route, RouteTable
from netbore.edge.targets import HostLimits, HostTarget, Refused
from netbore.link.memory import memory_pair
from netbore.link.poller import Poller, open_poller
from netbore.link.socket_stream import TransportStream
from netbore.link.stream import StreamAdapter
from netbore.proto.http.host import HostConnection
from netbore.proto.http.pages import PROBLEMS
from netbore.proto.http.sides import ExchangeLimits
from netbore.proto.http.viewer import ViewerConnection
from netbore.proto.stream import Stream
from netbore.proto.wire import Code

pytestmark = pytest.mark.seconds(900)

REQUEST = b"GET / HTTP/1.1\r\nHost: demo.tunnel.localhost\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@attrs.define
class Setting:
    """A front, one target, and what opens Streams to Hosts; `hosts` are their far ends, newest last."""

    poller: Poller
    front: Front
    routes: RouteTable
    target: HostTarget
    hosts: list[StreamAdapter] = attrs.field(factory=list)
    problem: str | None = None

    def open(self) -> Stream:
        if self.problem is not None:
            raise Refused(PROBLEMS[self.problem])
        near, far = memory_pair(self.poller)
        self.hosts.append(StreamAdapter(TransportStream(self.poller, far)))
        return TransportStream(self.poller, near)

    async def ask(self, request: bytes = REQUEST) -> StreamAdapter:
        """A Viewer's connection with one request on it."""
        near, far = memory_pair(self.poller)
        viewer = StreamAdapter(TransportStream(self.poller, near))
        self.front.accept(far, secure=False)
        await viewer.send_all(request)
        await trio.testing.wait_all_tasks_blocked()
        return viewer


async def response(viewer: StreamAdapter) -> bytes:
    """What has come, at least something."""
    return await viewer.receive_some()


@asynccontextmanager
async def setting(limits: HostLimits | None = None, room: HeldRoom | None = None) -> AsyncIterator[Setting]:
    async with open_poller() as poller:
        routes = RouteTable()
        target = HostTarget(poller, apex=b"tunnel.localhost", limits=limits, room=room)
        routes.put(Route(b"demo.tunnel.localhost", target))
        yield Setting(poller, Front(poller, routes, edge_id="e1"), routes, target)
        poller.audit()


# Held requests


async def test_a_request_waits_for_a_way_and_goes_on(autojump_clock: MockClock) -> None:
    async with setting() as one:
        way = one.target.add(one.open, suspended=True)
        viewer = await one.ask()
        await trio.sleep(5)
        assert len(one.target.held) == 1
        way.restore()
        await one.hosts[0].receive_some()
        await one.hosts[0].send_all(ANSWER)
        assert (await response(viewer)).endswith(b"hello")
        assert len(one.target.held) == 0


async def test_a_request_that_waits_in_vain_hears_why_it_waited(autojump_clock: MockClock) -> None:
    async with setting(HostLimits(held_seconds=3.0)) as one:
        one.target.add(one.open)
        for problem in ("limit_reached", "agent_offline"):
            one.problem = problem
            started = trio.current_time()
            viewer = await one.ask()
            assert b"Netbore-Error: %b" % problem.encode() in await response(viewer)
            assert 3 <= trio.current_time() - started < 3.5


async def test_so_many_wait_for_a_tunnel_and_so_many_in_all(autojump_clock: MockClock) -> None:
    room = HeldRoom(3)
    async with setting(HostLimits(held=2), room) as one:
        other = HostTarget(one.poller, apex=b"tunnel.localhost", limits=HostLimits(held=2), room=room)
        one.routes.put(Route(b"other.tunnel.localhost", other))
        for target in (one.target, other):
            target.add(one.open, suspended=True)
        viewers = [await one.ask() for _ in range(2)]
        assert b"limit_reached" in await response(await one.ask())
        also = REQUEST.replace(b"demo", b"other")
        viewers.append(await one.ask(also))
        assert b"limit_reached" in await response(await one.ask(also)), "the Edge's own limit"
        assert (len(one.target.held), len(other.held), room.left) == (2, 1, 0)


async def test_a_viewer_that_goes_away_gives_its_place_back(autojump_clock: MockClock) -> None:
    room = HeldRoom(10)
    async with setting(HostLimits(held=1), room) as one:
        way = one.target.add(one.open, suspended=True)
        done: list[object] = []
        viewer = await one.ask()
        (connection,) = one.front.viewers
        assert connection.exchange is not None
        assert one.target.held.deadline == 10.0
        one.target.held._held[connection.exchange] = attrs.evolve(one.target.held._held[connection.exchange], on_done=done.append)
        viewer.stream.reset(Code.CANCELLED)
        await trio.testing.wait_all_tasks_blocked()
        assert (len(one.target.held), room.left) == (0, 10)
        assert one.front.viewers == set()
        assert len(done) == 1, "whoever watched the exchange is told of its end"
        second = await one.ask()
        assert len(one.target.held) == 1
        way.restore()
        await one.hosts[0].send_all(ANSWER)
        assert (await response(second)).endswith(b"hello")


async def test_a_connection_that_became_idle_serves_who_waits(autojump_clock: MockClock) -> None:
    async with setting() as one:
        one.target.add(one.open)
        first = await one.ask()
        one.problem = "limit_reached"
        second = await one.ask()
        assert len(one.target.held) == 1
        await one.hosts[0].receive_some()
        await one.hosts[0].send_all(ANSWER)
        assert (await response(first)).endswith(b"hello")
        await one.hosts[0].receive_some()
        await one.hosts[0].send_all(ANSWER)
        assert (await response(second)).endswith(b"hello")
        assert len(one.hosts) == 1


async def test_the_next_way_is_tried_when_one_opens_nothing(autojump_clock: MockClock) -> None:
    async with setting() as one:

        def refuse() -> Stream:
            raise Refused(PROBLEMS["limit_reached"])

        one.target.add(refuse)
        one.target.add(one.open)
        for count in (1, 2, 3):
            await one.ask()
            assert len(one.hosts) == count


async def test_a_name_that_is_gone_holds_nobody(autojump_clock: MockClock) -> None:
    async with setting() as one:
        one.target.add(one.open, suspended=True)
        viewer = await one.ask()
        one.target.close()
        assert b"no_such_tunnel" in await response(viewer)


# Ways that were taken away


async def test_a_retired_way_keeps_nothing_and_says_when_it_is_empty(autojump_clock: MockClock) -> None:
    async with setting() as one:
        way = one.target.add(one.open)
        emptied: list[object] = []
        way.on_empty = emptied.append
        viewer = await one.ask()
        one.target.remove(way)
        way.suspend()
        (connection,) = one.front.viewers
        seen = [connection.frozen]
        way.restore()
        seen.append(connection.frozen)
        assert seen == [True, False]
        assert not emptied
        await one.hosts[0].receive_some()
        await one.hosts[0].send_all(ANSWER)
        assert (await response(viewer)).endswith(b"hello")
        assert emptied == [way]
        assert len(way) == len(way.pool) == 0


async def test_a_tunnel_that_is_not_pooled_any_more_closes_what_is_idle(autojump_clock: MockClock) -> None:
    async with setting() as one:
        way = one.target.add(one.open)
        viewer = await one.ask()
        await one.hosts[0].receive_some()
        await one.hosts[0].send_all(ANSWER)
        await response(viewer)
        assert len(way.pool) == 1
        one.target.set_pooled(False)
        assert len(way.pool) == 0


# The second ring: what is swept fails alone


def planted(monkeypatch: pytest.MonkeyPatch, victim: type) -> Callable[[object], None]:
    """Make `on_deadline` of one instance raise; of the others it is as it was."""
    real = victim.on_deadline  # type: ignore[attr-defined]
    chosen: list[object] = []

    def on_deadline(self: object, now: float) -> None:
        if self in chosen:
            raise RuntimeError("planted")
        real(self, now)

    monkeypatch.setattr(victim, "on_deadline", on_deadline)
    return chosen.append


@asynccontextmanager
async def short(response_seconds: float = 300.0) -> AsyncIterator[Setting]:
    """A setting whose deadlines come soon."""
    limits = ExchangeLimits(head_seconds=5, response_seconds=response_seconds)
    async with setting(HostLimits(exchange=limits, pool=PoolLimits(idle_seconds=5), held_seconds=5)) as one:
        one.front._limits = FrontLimits(exchange=limits)
        one.target.add(one.open)
        yield one
        assert one.poller.counters.crashes == 1


async def test_a_viewer_fails_alone(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with short() as one:
        plant = planted(monkeypatch, ViewerConnection)
        await one.ask(b"GET / HT")
        plant(next(iter(one.front.viewers)))
        neighbour = await one.ask(b"GET / HT")
        assert b"408" in await response(neighbour)
        assert not one.front.viewers


async def test_a_host_connection_fails_alone(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with short(5) as one:
        plant = planted(monkeypatch, HostConnection)
        viewer = await one.ask()
        (way,) = one.target.ways
        plant(next(iter(way._live)))
        neighbour = await one.ask()
        assert b"Netbore-Error: internal_error" in await response(viewer)
        assert b"Netbore-Error: host_timeout" in await response(neighbour)
        assert len(way) == 0


async def test_a_pool_loses_its_idle_connections_only(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with short() as one:
        plant = planted(monkeypatch, HostPool)
        (way,) = one.target.ways
        plant(way.pool)
        first, second = await one.ask(), await one.ask()
        await one.hosts[0].receive_some()
        await one.hosts[0].send_all(ANSWER)
        await response(first)
        await one.hosts[1].receive_some()
        await one.hosts[1].send_all(ANSWER[:-1])
        await trio.sleep(5.5)
        assert len(way.pool) == 0
        await one.hosts[1].send_all(ANSWER[-1:])
        received = b""
        while not received.endswith(b"hello"):
            received += await response(second)


async def test_who_waits_at_a_target_that_fails_is_told(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with short() as one:
        plant = planted(monkeypatch, HeldRequests)
        plant(one.target.held)
        served = await one.ask()
        (way,) = one.target.ways
        one.problem = "limit_reached"
        viewer = await one.ask()
        await one.hosts[0].receive_some()
        await one.hosts[0].send_all(ANSWER[:-1])
        assert b"Netbore-Error: internal_error" in await response(viewer)
        await one.hosts[0].send_all(ANSWER[-1:])
        received = b""
        while not received.endswith(b"hello"):
            received += await response(served)
        assert way in one.target.ways
