"""The Viewer's side: one request after another, bad input, ends and deadlines."""

from __future__ import annotations

import pytest

from netbore.proto.http.pages import PROBLEMS
from netbore.proto.http.sides import LIMITS, ExchangeLimits
from netbore.proto.http.viewer import ViewerConnection
from netbore.proto.wire import Code
from tests.proto.http.harness import Loop, MemoryStream, World, head_of

pytestmark = pytest.mark.usefixtures("messages")

GET = b"GET /a HTTP/1.1\r\nHost: a.tunnel.test\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: a.tunnel.test\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: a.tunnel.test\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def test_pipelined_requests_are_answered_in_order() -> None:
    world = World()
    world.stream.feed(GET + POST % 3 + b"abc" + GET)
    assert len(world.exchanges) == 1
    for number in range(3):
        assert len(world.exchanges) == number + 1
        world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
    assert [head_of(part)[2] for part in world.stream.got().split(b"HTTP/1.1")[1:]] == [b"0", b"1", b"2"]
    assert len(world.hosts) == 1
    world.settled()


def test_pipelined_request_in_two_parts() -> None:
    world = World()
    world.stream.feed(GET + GET[:10])
    world.host.feed(OK)
    assert world.stream.unconsumed == 0
    world.stream.feed(GET[10:])
    assert len(world.exchanges) == 2


def test_pipelined_input_is_consumed_when_its_turn_comes() -> None:
    world = World()
    world.stream.feed(GET + GET)
    assert world.stream.unconsumed == len(GET)
    world.host.feed(OK)
    assert world.stream.unconsumed == 0


def test_too_much_pipelined_input_is_not_read() -> None:
    world = World()
    world.stream.feed(GET)
    world.stream.feed(POST % 65000 + bytes(65000))
    assert not world.stream.paused
    world.stream.feed(bytes(1000))
    assert world.stream.paused
    world.host.feed(OK)
    assert not world.stream.paused
    assert len(world.exchanges) == 2


@pytest.mark.parametrize(
    ("bad", "status", "name"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400, b"bad_request"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501, b"not_implemented"),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405, b"method_not_allowed"),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, b"version_not_supported"),
        (b"GET /" + bytes(9000).replace(b"\0", b"a"), 414, b"uri_too_long"),
    ],
)
def test_bad_request_is_answered_and_closed(bad: bytes, status: int, name: bytes) -> None:
    world = World()
    world.stream.feed(bad)
    first, fields, _ = head_of(world.stream.got())
    assert first.startswith(b"HTTP/1.1 %d " % status)
    assert fields[b"netbore-error"] == name
    assert fields[b"connection"] == b"close"
    assert world.stream.eof_sent
    assert world.stream.stopped == 0
    assert not world.exchanges
    assert world.viewers_closed == [world.viewer]


def test_bad_request_to_a_slow_viewer() -> None:
    world = World()
    world.stream.room = 5
    world.stream.feed(b"nonsense\r\n\r\n")
    world.stream.feed(b"more")
    assert not world.stream.eof_sent
    world.stream.take(10)
    assert not world.stream.eof_sent
    world.stream.take(1 << 20)
    assert world.stream.eof_sent
    assert world.stream.got().startswith(b"HTTP/1.1 400 ")


def test_bad_pipelined_request_waits_for_the_answer_before() -> None:
    world = World()
    world.stream.feed(GET + b"nonsense\r\n\r\n")
    assert world.stream.got() == b""
    world.host.feed(OK)
    got = world.stream.got()
    assert got.startswith(OK)
    assert got[len(OK) :].startswith(b"HTTP/1.1 400 ")
    assert world.stream.eof_sent


def test_bad_chunk() -> None:
    world = World()
    world.stream.feed(CHUNKED)
    world.stream.feed(b"zz\r\n")
    assert world.host.reset_code == Code.CANCELLED
    assert world.stream.got().startswith(b"HTTP/1.1 400 ")
    assert world.stream.eof_sent
    world.stream.receiving = True
    world.stream.feed(b"more")


def test_bad_chunk_after_the_response_began() -> None:
    world = World()
    world.stream.feed(CHUNKED)
    world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1")
    world.stream.feed(b"zz\r\n")
    assert world.host.reset_code == Code.CANCELLED
    assert world.stream.reset_code == Code.CANCELLED


# --- ends ---


def test_end_between_requests_closes() -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed(OK)
    world.stream.feed_eof()
    assert world.stream.eof_sent
    assert world.viewers_closed == [world.viewer]


@pytest.mark.parametrize("secure", [False, True])
def test_end_while_waiting(secure: bool) -> None:
    """Half of a plain connection; all of a TLS one."""
    world = World(secure=secure)
    world.stream.feed(GET)
    world.stream.feed_eof()
    if secure:
        assert world.host.reset_code == Code.CANCELLED
        assert world.viewer.closed
    else:
        world.host.feed(OK)
        assert world.stream.got() == OK
        assert world.stream.eof_sent
        assert world.idle


def test_end_behind_pipelined_requests() -> None:
    world = World()
    world.stream.feed(GET + GET)
    world.stream.feed_eof()
    world.host.feed(OK)
    assert not world.viewer.closed
    world.host.feed(OK)
    assert world.stream.got() == OK + OK
    assert world.stream.eof_sent


def test_end_inside_a_pipelined_request() -> None:
    world = World()
    world.stream.feed(GET + POST % 10 + b"123")
    world.stream.feed_eof()
    world.host.feed(OK)
    got = world.stream.got()
    assert got.startswith(OK)
    assert b"request_cut_short" in got
    assert world.host.reset_code == Code.CANCELLED
    assert world.stream.eof_sent


def test_end_after_closing() -> None:
    world = World()
    world.stream.feed(b"nonsense\r\n\r\n")
    world.viewer.on_eof()
    world.viewer.on_reset(Code.HOST_CLOSED)
    world.viewer.on_stop(Code.HOST_CLOSED)
    world.viewer.on_writable()
    world.viewer.close()
    assert world.viewers_closed == [world.viewer]


def test_viewer_that_stops_is_gone() -> None:
    world = World()
    world.stream.feed(GET)
    world.stream.peer_stops()
    assert world.host.reset_code == Code.CANCELLED
    assert world.stream.reset_code == Code.CANCELLED


def test_idle_viewer_that_stops_or_resets() -> None:
    for end in ("peer_stops", "peer_resets"):
        world = World()
        getattr(world.stream, end)(Code.HOST_CLOSED)
        assert world.viewers_closed == [world.viewer]


def test_close_by_the_owner() -> None:
    world = World()
    world.viewer.close()
    assert world.stream.eof_sent
    world = World()
    world.stream.feed(GET)
    world.viewer.close()
    assert world.stream.reset_code == Code.CANCELLED
    assert world.host.reset_code == Code.CANCELLED


def test_draining_says_close() -> None:
    world = World()
    world.stream.feed(GET)
    world.viewer.draining = True
    world.host.feed(OK)
    assert head_of(world.stream.got())[1][b"connection"] == b"close"
    assert world.stream.eof_sent
    assert world.idle


def test_abort_inside_the_handler() -> None:
    world = World(forward=False)
    world.viewer._on_request = lambda exchange: exchange.abort()
    world.stream.feed(GET + GET)
    assert world.stream.reset_code == Code.CANCELLED
    assert world.viewers_closed == [world.viewer]


def test_close_when_the_answer_is_out() -> None:
    world = World(forward=False)
    world.stream.feed(GET + GET)
    exchange = world.exchanges[0]
    exchange.on_done = lambda _: world.viewer.close()
    exchange.refuse(PROBLEMS["no_such_tunnel"])
    assert world.stream.got().count(b"HTTP/1.1 404") == 1
    assert world.stream.eof_sent
    assert len(world.exchanges) == 1


def test_input_behind_a_spent_request_is_dropped() -> None:
    world = World()
    world.stream.feed(CHUNKED)
    world.host.feed(OK)
    world.stream.feed(b"10001\r\n" + bytes(65537) + b"\r\n1\r\na\r\n0\r\n\r\n" + GET)
    assert world.stream.eof_sent
    assert world.host.reset_code == Code.CANCELLED
    assert len(world.exchanges) == 1


def test_nobody_hears_of_the_end() -> None:
    loop = Loop()
    stream = MemoryStream(loop)
    viewer = ViewerConnection(stream, lambda exchange: exchange.abort(), loop.clock)
    stream.feed(GET)
    assert viewer.closed
    assert stream.reset_code == Code.CANCELLED


def test_frozen_by_the_front() -> None:
    """A held Viewer is neither read nor late."""
    world = World(forward=False)
    world.stream.feed(POST % 3 + b"a")
    world.viewer.freeze()
    world.viewer.freeze()
    world.sweep(100)
    world.stream.feed(b"b")
    assert world.stream.unconsumed == 1
    world.viewer.thaw(world.loop.now)
    world.viewer.thaw(world.loop.now)
    world.loop.run()
    assert world.stream.unconsumed == 2
    assert not world.done


# --- deadlines ---


def test_nothing_comes() -> None:
    world = World()
    world.sweep(14)
    assert not world.viewer.closed
    world.sweep(1.5)
    assert world.stream.eof_sent
    assert world.stream.got() == b""


def test_slow_head() -> None:
    world = World()
    for _ in range(14):
        world.sweep(1)
        world.stream.feed(b"G")
    world.sweep(1.5)
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"request_timeout"
    assert world.stream.eof_sent


def test_slow_second_head() -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed(OK)
    world.stream.got()
    world.sweep(70)
    world.stream.feed(b"G")
    world.sweep(14)
    world.stream.feed(b"E")
    assert not world.viewer.closed
    world.sweep(1.5)
    assert world.stream.got().startswith(b"HTTP/1.1 408 ")


def test_idle_connection_closes() -> None:
    world = World()
    world.stream.feed(GET)
    world.sweep(200)
    assert not world.viewer.closed, "a Viewer that waits for its answer is not idle"
    world.host.feed(OK)
    world.stream.got()
    world.sweep(74)
    assert not world.viewer.closed
    world.sweep(1.5)
    assert world.stream.eof_sent
    assert world.stream.got() == b""


def test_slow_body() -> None:
    world = World()
    world.stream.feed(POST % 10)
    for _ in range(3):
        world.sweep(59)
        world.stream.feed(b"1")
    assert not world.done
    world.sweep(61)
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"request_timeout"
    assert world.host.reset_code == Code.CANCELLED
    assert world.stream.eof_sent


def test_body_that_the_host_does_not_take_is_not_slow() -> None:
    world = World()
    world.host_room = 300
    world.stream.feed(POST % 1000 + bytes(300))
    world.sweep(61)
    world.sweep(61)
    assert not world.done
    world.host.take(1 << 20)
    world.sweep(59)
    assert not world.done
    world.sweep(2)
    assert world.done


def test_body_may_be_slow_once_the_response_has_begun() -> None:
    world = World()
    world.stream.feed(POST % 10)
    world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1")
    world.sweep(61)
    world.sweep(61)
    assert not world.done


def test_viewer_that_does_not_read() -> None:
    world = World()
    world.stream.feed(GET)
    world.stream.room = 10
    world.host.feed(OK)
    world.sweep(299)
    world.stream.take(10)
    world.sweep(299)
    assert not world.done
    world.sweep(2)
    assert world.stream.reset_code == Code.CANCELLED
    assert world.host.ended or world.hosts[0].closed


def test_viewer_is_not_excused_by_a_host_that_goes_on() -> None:
    world = World()
    world.stream.feed(GET)
    world.stream.room = 10
    world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    for _ in range(3):
        world.sweep(99)
        world.stream.writable = True
        world.host.feed(b"hello")
    world.sweep(4)
    assert world.stream.reset_code == Code.CANCELLED


def test_viewer_that_reads_again() -> None:
    world = World()
    world.stream.feed(GET)
    world.stream.room = 10
    world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell")
    world.stream.take(1 << 20)
    world.sweep(299)
    world.host.feed(b"o")
    assert world.stream.got() == OK
    world.sweep(76)
    assert world.stream.eof_sent


def test_deadline_without_cause_does_nothing() -> None:
    world = World()
    world.stream.feed(GET)
    world.viewer.on_deadline(world.loop.now)
    assert not world.done


def test_limits_are_given() -> None:
    world = World(limits=ExchangeLimits(head_seconds=1))
    world.sweep(1.1)
    assert world.viewer.closed


def test_an_empty_line_alone_is_no_head_and_gives_no_more_time() -> None:
    world = World()
    world.sweep(LIMITS.head_seconds - 1)
    world.stream.feed(b"\r\n")
    assert not world.viewer.closed
    world.sweep(2)
    assert world.viewer.closed


def test_a_request_that_is_answered_at_once_leaves_an_idle_connection() -> None:
    """Its time to be idle begins anew with each answer; the deadline of its first head is over."""
    world = World()
    world.viewer._on_request = lambda exchange: exchange.refuse(PROBLEMS["not_found"])
    for _ in range(6):
        world.stream.feed(GET)
        assert world.stream.got().startswith(b"HTTP/1.1 404 ")
        world.sweep(LIMITS.idle_seconds - 1)
        assert not world.viewer.closed
    world.sweep(2)
    assert world.viewer.closed


def test_refusal_to_a_slow_viewer_closes_late() -> None:
    world = World(forward=False)
    world.stream.feed(POST % 10)
    world.stream.room = 3
    world.exchanges[0].refuse(PROBLEMS["policy_refused"])
    assert not world.viewer.closed
    world.stream.take(1 << 20)
    assert world.stream.eof_sent
    assert world.exchanges[0].done
