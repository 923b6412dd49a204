"""What the pool learns about a Host's patience, and forgets."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from netbore.edge.pool import LEAST, REMEMBERED, HostPool, Patience, PoolLimits
from netbore.proto.http.host import HostConnection
from netbore.proto.wire import Code
from tests.proto.http.harness import World, stream_of


def test_the_shortest_idle_time_counts() -> None:
    patience = Patience()
    assert patience.at(0.0) == inf
    for seconds in (5.0, 1.0, 3.0):
        patience.learn(seconds, 0.0)
    assert patience.at(1.0) == 1.0


def test_one_close_out_of_turn_is_forgotten() -> None:
    """A Host that restarts closes connections of any age; that says nothing of the next hour."""
    patience = Patience()
    patience.learn(0.1, 10.0)
    patience.learn(20.0, 20.0)
    assert patience.at(10.0 + REMEMBERED - 0.1) == 0.1
    assert patience.at(10.0 + REMEMBERED) == inf
    patience.learn(20.0, 10.0 + REMEMBERED)
    assert patience.at(11.0 + REMEMBERED) == 20.0


def test_what_is_seen_again_and_again_is_kept() -> None:
    patience = Patience()
    for minute in range(60):
        patience.learn(1.0 + minute % 7 / 50, minute * 60.0)
    assert patience.at(3600.0) == 1.0


def test_a_close_that_came_at_once_says_nothing() -> None:
    """A Host that closes right after its answer had a reason of its own."""
    patience = Patience()
    patience.learn(LEAST / 2, 0.0)
    assert patience.at(0.0) == inf


def test_another_host_begins_anew() -> None:
    patience = Patience()
    patience.learn(1.0, 0.0)
    patience.forget()
    assert patience.at(0.0) == inf
    patience.learn(20.0, 0.0)
    assert patience.at(0.0) == 20.0


# What the pool learns from


class Pooled(World):
    """A Viewer that asks again and again, and the pool that stands behind it."""

    def __init__(self) -> None:
        self.patience = Patience()
        self.pool = HostPool(lambda: self.loop.now, self.patience, PoolLimits())
        super().__init__()

    def on_idle(self, host: HostConnection) -> None:
        self.pool.on_idle(host)

    def on_closed(self, host: HostConnection) -> None:
        self.pool.on_closed(host)

    def idle_host(self, fields: bytes = b"") -> HostConnection:
        """A connection that has just answered; `fields` are of that answer's head."""
        self.stream.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        self.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + fields + b"\r\n")
        return self.hosts[-1]

    @property
    def known(self) -> float:
        return self.patience.at(self.loop.now)


def test_neither_our_end_nor_the_links_says_anything_of_the_host() -> None:
    world = Pooled()
    ends: list[Callable[[HostConnection], None]] = [
        lambda host: host.close(),
        lambda host: stream_of(host).peer_resets(Code.LINK_LOST),
        lambda host: stream_of(host).peer_resets(Code.GOING_AWAY),
        lambda host: stream_of(host).feed(b"surplus"),
    ]
    for end in ends:
        host = world.idle_host()
        assert len(world.pool) == 1
        world.loop.now += 2.0
        end(host)
        assert len(world.pool) == 0
        assert world.known == inf


def test_the_hosts_end_says_how_long_it_waits() -> None:
    world = Pooled()
    host = world.idle_host()
    world.loop.now += 3.0
    stream_of(host).peer_resets(Code.HOST_CLOSED)
    assert world.known == 3.0
    host = world.idle_host()
    world.loop.now += 2.0
    stream_of(host).feed_eof()
    assert world.known == 2.0


def test_a_timeout_of_nothing_is_about_one_connection() -> None:
    world = Pooled()
    assert world.idle_host(b"Keep-Alive: timeout=0\r\n").closed
    assert (len(world.pool), world.known) == (0, inf)
    assert not world.idle_host(b"Keep-Alive: timeout=5\r\n").closed
    assert (len(world.pool), world.known) == (1, 5.0)


def test_a_crash_closes_what_is_idle() -> None:
    world = Pooled()
    host = world.idle_host()
    world.pool.on_crash(RuntimeError())
    assert host.closed
    assert (len(world.pool), world.pool.deadline) == (0, None)
