"""The Host's side: when a connection is reused, and its deadlines."""

from __future__ import annotations

import pytest

from netbore.proto.errors import LocalProtocolError
from netbore.proto.http.sides import ExchangeLimits
from netbore.proto.wire import Code
from tests.proto.http.harness import World, head_of, stream_of

pytestmark = pytest.mark.usefixtures("messages")

GET = b"GET /a HTTP/1.1\r\nHost: a.tunnel.test\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: a.tunnel.test\r\nContent-Length: %d\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def served(response: bytes = OK) -> World:
    """A world whose one Host connection has answered one request by `response`."""
    world = World()
    world.stream.feed(GET)
    world.host.feed(response)
    return world


def test_idle_connection_is_used_again() -> None:
    world = served()
    host = world.hosts[0]
    assert host.reused
    assert host.idle_since == world.loop.now
    for _ in range(3):
        world.stream.feed(GET)
        world.host.feed(OK)
    assert len(world.hosts) == 1
    assert world.stream.got() == OK * 4


@pytest.mark.parametrize("what", ["byte", "eof", "reset", "stop"])
def test_idle_connection_that_speaks_is_closed(what: str) -> None:
    world = served()
    if what == "byte":
        world.host.feed(b"H")
        assert world.host.reset_code == Code.CANCELLED
        world.host.receiving = True
        world.host.feed(b"T")
    elif what == "eof":
        world.host.feed_eof()
        assert world.host.eof_sent
    elif what == "reset":
        world.host.peer_resets(Code.HOST_CLOSED)
    else:
        world.host.peer_stops()
        assert world.host.stopped == 0
    assert world.closed == world.hosts
    assert not world.idle
    assert not world.viewer.closed


def test_stop_of_a_closed_connection() -> None:
    world = served()
    world.hosts[0].close()
    world.hosts[0].close()
    world.hosts[0].on_stop(Code.CANCELLED)
    world.hosts[0].on_eof()
    world.hosts[0].on_data(b"x")
    world.hosts[0].unused()
    assert world.closed == world.hosts
    assert not world.idle


@pytest.mark.parametrize("what", ["byte", "eof", "stop"])
def test_spoilt_while_the_viewer_still_reads(what: str) -> None:
    world = World()
    world.stream.feed(GET)
    world.stream.room = 10
    world.host.feed(OK)
    if what == "byte":
        world.host.feed(b"H")
    elif what == "eof":
        world.host.feed_eof()
    else:
        world.host.peer_stops()
    world.stream.take(1 << 20)
    assert world.stream.got() == OK
    assert world.closed == world.hosts
    assert not world.idle


def test_grown_credit_is_not_pooled() -> None:
    world = World()
    world.stream.feed(GET)
    world.host.granted = 262145
    world.host.feed(OK)
    assert world.closed == world.hosts
    assert world.host.eof_sent
    assert world.host.stopped == 0


@pytest.mark.parametrize("half", ["sending", "receiving"])
def test_half_that_has_ended_unheard_is_not_pooled(half: str) -> None:
    """A Stream knows of its end before its sink is told."""
    world = World()
    world.stream.feed(GET)
    setattr(world.host, half, False)
    world.host.unconsumed = len(OK)
    world.hosts[0].on_data(OK)
    assert world.stream.got() == OK
    assert world.closed == world.hosts


def test_http_10_is_not_pooled() -> None:
    world = served(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n")
    assert world.closed == world.hosts


def test_unsent_request_is_not_reusable() -> None:
    world = World()
    world.host_room = 10
    world.stream.feed(GET)
    world.stream.room = 10
    world.host.feed(OK)
    assert not world.hosts[0].reusable()
    world.host.take(1 << 20)
    assert world.hosts[0].reusable()


def test_busy_connection_cannot_start() -> None:
    world = World()
    world.stream.feed(GET)
    with pytest.raises(LocalProtocolError):
        world.hosts[0].start(world.exchanges[0], world.exchanges[0].request)


def test_hint_of_the_host() -> None:
    world = served(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: max=3, timeout=5\r\n\r\n")
    assert world.hosts[0].hinted_timeout == 5
    world = served(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: max=3\r\n\r\n")
    assert world.hosts[0].hinted_timeout is None


@pytest.mark.parametrize("value", [b"NTLM", b"Basic realm=x, Negotiate"])
def test_connection_bound_authentication(value: bytes) -> None:
    world = served(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nWWW-Authenticate: " + value + b"\r\n\r\n")
    assert world.hosts[0].bound_to is world.viewer
    world = World()
    world.stream.feed(b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Negotiate YII\r\n\r\n")
    assert world.hosts[0].bound_to is world.viewer


def test_other_authentication_is_not_bound() -> None:
    world = served(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nWWW-Authenticate: Basic realm=x\r\n\r\n")
    assert world.hosts[0].bound_to is None


def test_closing_a_busy_connection_loses_it() -> None:
    world = World()
    world.stream.feed(GET)
    world.hosts[0].close()
    assert world.host.reset_code == Code.CANCELLED
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"bad_gateway"


def test_idle_connection_hears_of_room_and_of_its_link() -> None:
    world = served()
    world.host.take(1)
    host = world.hosts[0]
    host.freeze()
    assert host.frozen
    host.thaw(world.loop.now)
    assert host.deadline == float("inf")
    assert world.idle == world.hosts


# --- deadlines ---


def test_silent_host_times_out() -> None:
    world = World()
    world.stream.feed(GET)
    world.sweep(299)
    assert not world.done
    world.sweep(2)
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"host_timeout"
    assert world.host.reset_code == Code.IDLE_TIMEOUT
    assert len(world.hosts) == 1


def test_host_that_falls_silent_in_its_response() -> None:
    world = World()
    world.stream.feed(GET)
    world.sweep(299)
    world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
    world.sweep(299)
    assert not world.done
    world.sweep(2)
    assert world.stream.reset_code == Code.HOST_TIMEOUT


def test_host_is_not_blamed_for_a_slow_viewer() -> None:
    world = World(limits=ExchangeLimits(send_seconds=100000, body_seconds=100000))
    world.stream.feed(POST % 3)
    world.sweep(301)
    assert not world.done
    world.stream.feed(b"abc")
    world.stream.room = 10
    world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello")
    world.sweep(301)
    world.sweep(301)
    assert not world.done
    world.stream.take(1 << 20)
    world.sweep(301)
    assert world.stream.reset_code == Code.HOST_TIMEOUT


def test_host_that_takes_no_more_times_out() -> None:
    world = World()
    world.host_room = 250
    world.stream.feed(POST % 1000 + bytes(500))
    world.sweep(299)
    world.host.take(10)
    world.sweep(299)
    assert not world.done
    world.sweep(2)
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"host_timeout"


def test_host_that_stopped_times_out() -> None:
    world = World()
    world.stream.feed(POST % 1000)
    world.host.peer_stops()
    world.sweep(301)
    assert head_of(world.stream.got())[1][b"netbore-error"] in {b"host_timeout", b"request_timeout"}


def test_idle_has_no_deadline() -> None:
    world = served()
    host = world.hosts[0]
    assert host.deadline == float("inf")
    host.on_deadline(world.loop.now)
    assert not host.closed


def test_deadlines_stand_still_while_the_link_is_broken() -> None:
    world = World()
    world.stream.feed(GET)
    host = world.hosts[0]
    world.sweep(200)
    host.freeze()
    host.freeze()
    world.sweep(1000)
    host.thaw(world.loop.now)
    host.thaw(world.loop.now)
    world.sweep(99)
    assert not world.done
    world.sweep(2)
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"host_timeout"


def test_viewer_is_not_read_while_the_link_is_broken() -> None:
    world = World()
    world.stream.feed(POST % 10 + b"1")
    world.sweep(50)
    world.hosts[0].freeze()
    world.sweep(1000)
    world.stream.feed(b"2345")
    assert world.stream.unconsumed == 0
    world.hosts[0].thaw(world.loop.now)
    world.loop.run()
    assert world.host.got().endswith(b"\r\n\r\n12345")
    world.sweep(59)
    assert not world.done


def test_frozen_and_lost() -> None:
    """The end of grace: the Viewer is read again, and told."""
    world = World()
    world.stream.feed(GET)
    world.hosts[0].freeze()
    world.host.peer_resets(Code.GRACE_EXPIRED)
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"agent_offline"
    assert not world.viewer.frozen
    assert not world.stream.paused


def test_started_on_a_frozen_connection() -> None:
    world = served()
    host = world.hosts[0]
    host.freeze()
    world.stream.feed(GET)
    assert world.viewer.frozen
    host.thaw(world.loop.now)
    assert not world.viewer.frozen
    world.host.feed(OK)
    assert stream_of(host) is world.host
    assert world.stream.got() == OK + OK
