"""What stands beside the exchange: the hooks for events, giving a Stream away, and the ring around each connection."""

from __future__ import annotations

import pytest

from netbore.proto.http.messages import ResponseHead
from netbore.proto.http.sides import Phase
from netbore.proto.wire import Code

from .harness import World

pytestmark = pytest.mark.usefixtures("messages")

GET = b"GET / HTTP/1.1\r\nHost: a.tunnel.test\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def test_the_first_byte_and_the_counts_are_told() -> None:
    world = World(forward=False)
    heard: list[str] = []
    world.stream.feed(b"POST / HTTP/1.1\r\nHost: a.tunnel.test\r\nContent-Length: 3\r\n\r\nabc")
    (exchange,) = world.exchanges
    exchange.on_first_byte = lambda exchange: heard.append(f"first {exchange.status}")
    exchange.on_done = lambda exchange: heard.append(f"done {exchange.received} {exchange.sent}")
    world.send(exchange)
    world.host.feed(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    assert heard == []
    world.host.feed(ANSWER)
    assert heard == ["first 200", "done 3 5"]


def test_a_stream_is_given_away_with_what_came_behind_the_request() -> None:
    world = World(forward=False)
    world.stream.feed(GET + b"first bytes")
    assert world.viewer.surrender() == b"first bytes"
    assert world.done == world.exchanges
    assert world.viewer.closed
    assert world.stream.sink is None
    assert world.stream.got() == b""
    assert world.viewer.surrender() == b""


def test_a_bug_costs_a_viewer_its_connection_and_no_more() -> None:
    world = World()
    world.stream.feed(GET)
    world.viewer.on_crash(ValueError())
    assert world.viewer.closed
    assert world.stream.ended
    world.viewer.on_crash(ValueError())
    assert world.host.ended


def test_a_bug_costs_a_host_its_connection_and_the_viewer_hears_of_it() -> None:
    world = World()
    world.stream.feed(GET)
    (host,) = world.hosts
    host.on_crash(ValueError())
    assert host.closed
    assert world.stream.got().startswith(b"HTTP/1.1 500 ")
    host.on_crash(ValueError())


def test_a_bug_in_an_idle_host_connection() -> None:
    world = World()
    world.stream.feed(GET)
    (host,) = world.hosts
    world.host.feed(ANSWER)
    host.on_crash(ValueError())
    assert host.closed
    world.host.peer_resets(Code.HOST_CLOSED)


def test_a_viewer_is_idle_between_requests_only() -> None:
    world = World()
    assert world.viewer.idle
    world.stream.feed(GET[:10])
    assert not world.viewer.idle
    world.stream.feed(GET[10:])
    assert not world.viewer.idle
    world.host.feed(ANSWER)
    assert world.viewer.idle


def test_a_stream_that_began_with_a_large_window_is_pooled_and_one_that_grew_is_not() -> None:
    for begun, pooled in ((1 << 20, 1), (0, 0)):
        world = World()
        world.stream.feed(GET)
        world.host.begun, world.host.granted = begun, 1 << 20
        world.host.feed(ANSWER)
        assert len(world.idle) == pooled


def test_a_bug_while_a_response_is_made_ends_the_viewer_visibly() -> None:
    """Whatever is asked behind it must not be answered in its place."""
    world = World()
    for _ in range(2):  # the second time it is known, where heads are remembered
        world.stream.feed(GET)
        world.host.feed(ANSWER)
    world.stream.got()
    world.stream.feed(GET + GET)
    (host,) = world.hosts
    assert world.exchanges[-1].phase is Phase.FORWARDED

    def bug(head: ResponseHead) -> ResponseHead:
        raise ZeroDivisionError

    world.exchanges[-1]._rewrite = bug
    with pytest.raises(ZeroDivisionError):
        world.host.feed(ANSWER)
    host.on_crash(ZeroDivisionError())
    assert world.viewer.closed
    assert world.stream.got() == b""
    assert len(world.exchanges) == 3
