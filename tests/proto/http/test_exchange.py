"""One request and its response through a Viewer connection, an Exchange and a Host connection, over memory Streams."""

from __future__ import annotations

from functools import partial

import pytest

from netbore.proto.errors import LocalProtocolError
from netbore.proto.http.exchange import Exchange
from netbore.proto.http.messages import ResponseHead
from netbore.proto.http.pages import PROBLEMS
from netbore.proto.http.sides import LIMITS, TRANSITIONS, ExchangeLimits, Input, Phase
from netbore.proto.wire import Code
from tests.proto.http.harness import World, dechunked, head_of, stream_of

pytestmark = pytest.mark.usefixtures("messages")

GET = b"GET /a HTTP/1.1\r\nHost: a.tunnel.test\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: a.tunnel.test\r\nContent-Length: %d\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
ADDED = (
    b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n"
    b'Forwarded: for=192.0.2.7;proto=http;host="a.tunnel.test"\r\nVia: 1.%d netbore-e1\r\nX-Forwarded-Host: a.tunnel.test\r\n'
)


def forwarded(line: bytes, *fields: bytes, minor: int = 1) -> bytes:
    """A request as the Host gets it; `fields` come last."""
    return (
        line + b" HTTP/1.1\r\nHost: a.tunnel.test\r\n" + ADDED % minor + b"".join(field + b"\r\n" for field in fields) + b"\r\n"
    )


#: Name, request, response; the request as the Host gets it, the response as the Viewer gets it; whether each side stays.
EXAMPLES = [
    ("get", GET, OK, forwarded(b"GET /a"), OK, True, True),
    (
        "head",
        b"HEAD /a HTTP/1.1\r\nHost: a.tunnel.test\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        forwarded(b"HEAD /a"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        True,
        True,
    ),
    ("204", GET, b"HTTP/1.1 204 No\r\n\r\n", forwarded(b"GET /a"), b"HTTP/1.1 204 No\r\n\r\n", True, True),
    (
        "304",
        GET,
        b"HTTP/1.1 304 Same\r\nContent-Length: 9\r\n\r\n",
        forwarded(b"GET /a"),
        b"HTTP/1.1 304 Same\r\nContent-Length: 9\r\n\r\n",
        True,
        True,
    ),
    (
        "close from the Host",
        GET,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi",
        forwarded(b"GET /a"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        True,
        False,
    ),
    (
        "close from the Viewer",
        b"GET /a HTTP/1.1\r\nHost: a.tunnel.test\r\nConnection: close\r\n\r\n",
        OK,
        forwarded(b"GET /a"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        False,
        True,
    ),
    (
        "HTTP/1.0 Host",
        GET,
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        forwarded(b"GET /a"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        True,
        False,
    ),
    (
        "HTTP/1.0 Viewer",
        b"GET /a HTTP/1.0\r\nHost: a.tunnel.test\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n",
        forwarded(b"GET /a", minor=0),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi",
        False,
        True,
    ),
    (
        "HTTP/1.0 Viewer that stays",
        b"GET /a HTTP/1.0\r\nHost: a.tunnel.test\r\nConnection: keep-alive\r\n\r\n",
        OK,
        forwarded(b"GET /a", minor=0),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
        True,
        True,
    ),
    (
        "trailers",
        b"POST /a HTTP/1.1\r\nHost: a.tunnel.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: 1\r\nHost: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-B: 2\r\nNetbore-X: 3\r\n\r\n",
        forwarded(b"POST /a", b"Transfer-Encoding: chunked") + b"0\r\nX-A: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-B: 2\r\n\r\n",
        True,
        True,
    ),
    (
        "length both ways",
        POST % 4 + b"body",
        OK,
        forwarded(b"POST /a").replace(b"\r\nX-Forwarded-For", b"\r\nContent-Length: 4\r\nX-Forwarded-For") + b"body",
        OK,
        True,
        True,
    ),
    (
        "informational",
        GET,
        b"HTTP/1.1 103 Hints\r\nLink: </s>\r\n\r\n" + OK,
        forwarded(b"GET /a"),
        b"HTTP/1.1 103 Hints\r\nLink: </s>\r\n\r\n" + OK,
        True,
        True,
    ),
    (
        "informational to HTTP/1.0",
        b"GET /a HTTP/1.0\r\nHost: a.tunnel.test\r\n\r\n",
        b"HTTP/1.1 103 Hints\r\nLink: </s>\r\n\r\n" + OK,
        forwarded(b"GET /a", minor=0),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        False,
        True,
    ),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=[example[0] for example in EXAMPLES])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_examples(example: tuple[str, bytes, bytes, bytes, bytes, bool, bool], step: int) -> None:
    """Each example byte for byte, whole and in small steps."""
    _, request_, response, at_host, at_viewer, stays, pooled = example
    world = World()
    for at in range(0, len(request_), step):
        world.stream.feed(request_[at : at + step])
    assert world.host.got() == at_host
    for at in range(0, len(response), step):
        world.host.feed(response[at : at + step])
    assert world.stream.got() == at_viewer
    assert len(world.done) == 1
    assert world.viewer.closed is not stays
    assert world.stream.eof_sent is not stays
    assert bool(world.idle) is pooled
    assert bool(world.closed) is not pooled
    world.settled()
    if step > 1000:
        assert len(world.host.sends) == 1
        assert len(world.stream.sends) == 1


def test_until_close_becomes_chunked() -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed(b"HTTP/1.1 200 OK\r\n\r\none")
    world.host.feed(b"two")
    world.host.feed_eof()
    assert world.stream.got() == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert world.closed == world.hosts
    assert not world.viewer.closed


def test_until_close_to_http_10() -> None:
    world = World()
    world.stream.feed(b"GET / HTTP/1.0\r\n\r\n")
    world.host.feed(b"HTTP/1.1 200 OK\r\n\r\none")
    world.host.feed_eof()
    assert world.stream.got() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none"
    assert world.stream.eof_sent
    assert world.stream.reset_code is None


def test_each_piece_leaves_as_it_comes() -> None:
    """Server-sent events are not gathered, and each leaves in one part."""
    world = World()
    world.stream.feed(GET)
    world.host.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for event in (b"data: 1\n\n", b"data: 2\n\n"):
        world.stream.got()
        world.stream.sends.clear()
        world.host.feed(b"9\r\n" + event + b"\r\n")
        assert world.stream.got() == b"9\r\n" + event + b"\r\n"
        assert len(world.stream.sends) == 1


# --- back-pressure ---


def test_consumed_when_the_viewer_took_it() -> None:
    world = World()
    world.stream.feed(GET)
    world.stream.room = 0
    world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n")
    assert world.host.unconsumed == 0
    world.host.feed(bytes(12000))
    assert world.host.unconsumed == 12000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n"
    world.stream.take(len(head) + 5000)
    assert world.host.unconsumed == 7000
    world.stream.take(1 << 20)
    assert world.host.unconsumed == 0
    assert not world.done
    world.stream.room = 100
    world.host.feed(bytes(8000))
    assert not world.done
    assert not world.idle, "a connection whose bytes are still here is not pooled"
    world.stream.take(1 << 20)
    assert world.done
    assert world.idle
    assert world.stream.got() == head + bytes(20000)


def test_consumed_when_the_host_took_it() -> None:
    world = World()
    world.host_room = 0
    world.stream.feed(POST % 20000)
    assert world.stream.unconsumed == 0
    world.stream.feed(bytes(9000))
    world.stream.feed(bytes(11000))
    assert world.stream.unconsumed == 20000
    world.host.take(10000)
    assert 10000 <= world.stream.unconsumed < 10400
    world.host.take(1 << 20)
    assert world.stream.unconsumed == 0
    world.host.feed(OK)
    assert world.idle
    world.settled()


def test_order_of_what_waits() -> None:
    """Long parts and short ones, accepted little by little."""
    world = World()
    world.stream.feed(GET)
    world.stream.room = 0
    parts = [bytes([number]) * size for number, size in enumerate((9000, 3, 8000, 70000, 5, 6000))]
    world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % sum(map(len, parts)))
    for part in parts:
        world.host.feed(part)
    while not world.done:
        world.stream.take(2500)
    assert head_of(world.stream.got())[2] == b"".join(parts)
    world.settled()


def test_many_small_pieces_for_a_slow_viewer_stay_one_piece() -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    head = world.stream.got()
    world.stream.room = 0
    for _ in range(3000):
        world.host.feed(b"3\r\nabc\r\n")
    outbox = world.viewer.outbox
    assert len(outbox.waiting) + len(outbox.fresh) < 5
    world.host.feed(b"0\r\n\r\n")
    world.stream.take(1 << 20)
    assert dechunked(world.stream.got()) == b"abc" * 3000
    assert head.endswith(b"\r\n\r\n")
    world.settled()


# --- a handler that takes its time ---


def test_body_waits_for_the_handler() -> None:
    world = World(forward=False)
    world.stream.feed(POST % 8 + b"1234")
    world.stream.feed(b"5678")
    assert world.stream.unconsumed == 8
    world.send(world.exchanges[0])
    assert world.stream.unconsumed == 0
    assert world.host.got().endswith(b"\r\n\r\n12345678")
    assert len(world.host.sends) == 1
    world.host.feed(OK)
    assert world.stream.got() == OK


def test_viewer_leaves_before_the_handler_answers() -> None:
    world = World(forward=False)
    world.stream.feed(GET)
    world.stream.peer_resets(Code.HOST_CLOSED)
    exchange = world.exchanges[0]
    assert exchange.done
    assert world.done == [exchange]
    world.send(exchange)
    exchange.refuse(PROBLEMS["no_such_tunnel"])
    exchange.abort()
    assert world.idle == world.hosts
    assert world.host.got() == b""


def test_forwarded_twice_is_a_bug() -> None:
    world = World()
    world.stream.feed(GET)
    with pytest.raises(LocalProtocolError):
        world.send(world.exchanges[0])


# --- answers made here ---


def test_refused_requests_keep_the_connection() -> None:
    """Also many pipelined ones, without recursion."""
    world = World(forward=False)
    world.viewer._on_request = lambda exchange: exchange.refuse(PROBLEMS["no_such_tunnel"])
    world.stream.feed(GET * 1500)
    got = world.stream.got()
    assert got.count(b"HTTP/1.1 404 No such tunnel\r\n") == 1500
    assert b"Connection: close" not in got
    assert not world.viewer.closed
    world.settled()


def test_pipelined_refusals_wait_for_a_slow_viewer() -> None:
    world = World(forward=False)
    asked: list[Exchange] = []

    def refuse(exchange: Exchange) -> None:
        asked.append(exchange)
        exchange.refuse(PROBLEMS["no_such_tunnel"])

    world.viewer._on_request = refuse
    world.stream.room = 10
    world.stream.feed(GET * 5)
    assert len(asked) == 1
    world.stream.take(1 << 20)
    assert len(asked) == 5
    assert world.stream.got().count(b"HTTP/1.1 404") == 5
    world.settled()


def test_refusal_of_head_has_no_body() -> None:
    world = World(forward=False)
    world.stream.feed(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    world.exchanges[0].refuse(PROBLEMS["agent_offline"])
    first, fields, rest = head_of(world.stream.got())
    assert first == b"HTTP/1.1 503 Agent offline"
    assert int(fields[b"content-length"]) > 0
    assert fields[b"retry-after"] == b"5"
    assert fields[b"netbore-error"] == b"agent_offline"
    assert rest == b""


def test_refusal_before_the_body_closes() -> None:
    world = World(forward=False)
    world.stream.feed(POST % 100 + b"12345")
    world.exchanges[0].refuse(PROBLEMS["policy_refused"])
    first, fields, _ = head_of(world.stream.got())
    assert first == b"HTTP/1.1 403 Refused by policy"
    assert fields[b"connection"] == b"close"
    assert world.stream.eof_sent
    assert world.stream.stopped == 0
    assert world.viewers_closed == [world.viewer]


def test_refusal_with_the_whole_body_there_keeps_the_connection() -> None:
    world = World(forward=False)
    world.stream.feed(POST % 5 + b"12345")
    world.exchanges[0].refuse(PROBLEMS["policy_refused"])
    assert b"Connection: close" not in world.stream.got()
    assert not world.viewer.closed
    world.settled()


def test_refusing_what_is_forwarded_resets_the_host() -> None:
    world = World()
    world.stream.feed(GET)
    world.exchanges[0].refuse(PROBLEMS["going_away"])
    assert world.host.reset_code == Code.CANCELLED
    assert world.stream.got().startswith(b"HTTP/1.1 503 Going away\r\n")
    assert world.closed == world.hosts


def test_refusing_what_is_answered_aborts() -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1")
    world.exchanges[0].refuse(PROBLEMS["going_away"])
    assert world.host.reset_code == Code.CANCELLED
    assert world.stream.reset_code == Code.CANCELLED
    assert world.exchanges[0].done


def test_respond_without_length_is_chunked() -> None:
    world = World(forward=False)
    world.stream.feed(GET)
    world.exchanges[0].respond(ResponseHead(200, b"OK", 1, ()), b"hello")
    assert world.stream.got() == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


# --- early responses ---


def test_early_response_with_the_rest_of_the_body_in_time() -> None:
    world = World()
    world.stream.feed(POST % 10 + b"12345")
    world.host.got()
    world.host.feed(OK)
    _, fields, rest = head_of(world.stream.got())
    assert fields[b"connection"] == b"close"
    assert rest == b"hello"
    assert not world.viewer.closed
    assert not world.idle
    world.stream.feed(b"67890")
    assert world.host.got() == b"67890"
    assert world.idle == world.hosts
    assert world.stream.eof_sent
    assert world.stream.stopped == 0
    world.settled()


def test_early_response_and_too_much_body() -> None:
    world = World()
    world.stream.feed(POST % 1000000)
    world.host.feed(OK)
    world.stream.feed(bytes(65536))
    assert not world.viewer.closed
    world.stream.feed(bytes(1))
    assert world.stream.eof_sent
    assert world.host.reset_code == Code.CANCELLED
    assert world.exchanges[0].done


def test_early_response_and_too_much_time() -> None:
    world = World()
    world.stream.feed(POST % 1000000)
    world.host.feed(OK)
    world.sweep(0.9)
    world.stream.feed(b"1")
    assert not world.viewer.closed
    world.sweep(0.2)
    assert world.stream.eof_sent
    assert world.stream.reset_code is None
    assert world.host.reset_code == Code.CANCELLED


def test_body_flows_while_an_early_response_lasts() -> None:
    world = World()
    world.stream.feed(POST % 300000)
    world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
    world.stream.feed(bytes(200000))
    assert len(world.host.got()) > 200000
    world.stream.feed(bytes(100000))
    world.host.feed(b"2")
    assert world.idle == world.hosts
    assert world.stream.eof_sent


def test_response_before_the_host_took_all_resets_it() -> None:
    """An end of our half would make a part of the request look whole."""
    world = World()
    world.host_room = 500
    world.stream.feed(POST % 2000 + bytes(2000))
    world.host.feed(OK)
    assert world.stream.got() == OK
    assert world.host.reset_code == Code.CANCELLED
    assert not world.viewer.closed
    world.settled()


def test_host_that_stops_may_answer() -> None:
    world = World()
    world.stream.feed(POST % 1000000 + bytes(1000))
    world.host.peer_stops()
    world.stream.feed(bytes(60000))
    assert world.stream.unconsumed == 0
    world.stream.feed(bytes(60000))
    assert world.stream.unconsumed == 60000, "no more is read in vain"
    world.host.feed(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n")
    first, fields, _ = head_of(world.stream.got())
    assert first == b"HTTP/1.1 413 Large"
    assert fields[b"connection"] == b"close"
    world.sweep(1.1)
    assert world.stream.eof_sent
    assert world.stream.reset_code is None
    assert world.closed == world.hosts


def test_host_that_stopped_gets_the_viewer_a_new_allowance() -> None:
    world = World()
    world.stream.feed(POST % 1000000)
    world.host.peer_stops()
    world.stream.feed(bytes(60000))
    world.host.feed(OK)
    world.stream.feed(bytes(60000))
    assert world.stream.unconsumed == 0
    assert not world.viewer.closed
    world.stream.feed(bytes(6000))
    assert world.stream.eof_sent


def test_host_that_stops_and_the_request_ends() -> None:
    world = World()
    world.stream.feed(POST % 10 + b"12345")
    world.host.peer_stops()
    world.stream.feed(b"67890")
    world.host.feed(OK)
    assert world.stream.got() == OK
    assert not world.viewer.closed
    assert world.closed == world.hosts
    world.settled()


def test_host_lost_after_its_whole_response() -> None:
    world = World()
    world.stream.feed(POST % 10)
    world.stream.room = 4
    world.host.feed(OK)
    world.host.peer_resets(Code.HOST_CLOSED)
    assert not world.viewer.closed
    world.stream.take(1 << 20)
    assert world.stream.got().endswith(b"hello")
    assert world.stream.eof_sent
    assert world.stream.reset_code is None


# --- losses ---


def test_viewer_gone_cancels_the_host() -> None:
    world = World()
    world.stream.feed(GET)
    world.stream.peer_resets(Code.HOST_CLOSED)
    assert world.host.reset_code == Code.CANCELLED
    assert world.exchanges[0].done
    assert world.closed == world.hosts


def test_request_cut_short_resets_the_host() -> None:
    world = World()
    world.stream.feed(POST % 10 + b"123")
    world.stream.feed_eof()
    assert world.host.reset_code == Code.CANCELLED
    assert not world.host.eof_sent
    assert world.stream.got().startswith(b"HTTP/1.1 400 Request cut short\r\n")
    assert world.stream.eof_sent


def test_request_cut_short_after_the_response_began() -> None:
    world = World()
    world.stream.feed(POST % 10 + b"123")
    world.host.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1")
    world.stream.feed_eof()
    assert world.host.reset_code == Code.CANCELLED
    assert world.stream.reset_code == Code.CANCELLED


def test_request_cut_short_after_the_response_ended() -> None:
    world = World()
    world.stream.feed(POST % 10 + b"123")
    world.stream.room = 10
    world.host.feed(OK)
    world.stream.feed_eof()
    assert world.host.reset_code == Code.CANCELLED
    assert not world.viewer.closed
    world.stream.take(1 << 20)
    assert world.stream.got().endswith(b"hello")
    assert world.stream.eof_sent


@pytest.mark.parametrize(
    "body", [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n1"]
)
@pytest.mark.parametrize("end", ["eof", "reset"])
def test_response_cut_short_aborts_the_viewer(body: bytes, end: str) -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed(body)
    if end == "eof":
        world.host.feed_eof()
    else:
        world.host.peer_resets(Code.LINK_LOST)
    assert world.stream.reset_code in {Code.HOST_CLOSED, Code.LINK_LOST}
    assert not world.stream.eof_sent
    assert not world.stream.sent.endswith(b"0\r\n\r\n")


def test_until_close_cut_short_aborts_the_viewer() -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed(b"HTTP/1.1 200 OK\r\n\r\n1")
    world.host.peer_resets(Code.HOST_CLOSED)
    assert world.stream.reset_code == Code.HOST_CLOSED


@pytest.mark.parametrize(
    ("code", "status", "name"),
    [
        (Code.HOST_REFUSED, 502, b"host_refused"),
        (Code.HOST_UNREACHABLE, 502, b"host_unreachable"),
        (Code.HOST_TIMEOUT, 504, b"host_timeout"),
        (Code.HOST_CLOSED, 502, b"host_closed"),
        (Code.HOST_TLS, 502, b"host_tls"),
        (Code.LINK_LOST, 503, b"agent_offline"),
        (Code.GRACE_EXPIRED, 503, b"agent_offline"),
        (Code.PROTOCOL_ERROR, 502, b"bad_gateway"),
        (4711, 502, b"bad_gateway"),
    ],
)
def test_loss_without_an_answer_is_told_by_its_code(code: int, status: int, name: bytes) -> None:
    world = World()
    world.stream.feed(GET)
    world.host.peer_resets(code)
    first, fields, _ = head_of(world.stream.got())
    assert first.startswith(b"HTTP/1.1 %d " % status)
    assert fields[b"netbore-error"] == name
    assert not world.viewer.closed
    world.settled()


@pytest.mark.parametrize(
    "bad",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 101 Up\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n",
    ],
)
def test_bad_response_is_a_bad_gateway(bad: bytes) -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed(bad)
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"bad_gateway"
    assert world.host.reset_code == Code.PROTOCOL_ERROR
    assert world.closed == world.hosts


def test_bad_chunk_in_a_response_aborts() -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    world.host.feed(b"zz\r\n")
    assert world.stream.reset_code == Code.HOST_CLOSED
    assert world.exchanges[0].done


def test_too_many_informational_heads() -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed(b"HTTP/1.1 103 Hints\r\n\r\n" * 65)
    assert world.stream.got().count(b"HTTP/1.1 103") == 64
    assert world.closed == world.hosts
    assert world.exchanges[0].done


def test_surplus_spoils_the_connection_not_the_response() -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed(OK + b"HTTP/1.1 200 OK\r\n\r\n")
    assert world.stream.got() == OK
    assert world.closed == world.hosts


# --- retries ---


def reused(request: bytes) -> World:
    """A world in which `request` was sent on a connection that has served before."""
    world = World()
    world.stream.feed(GET)
    world.host.feed(OK)
    world.stream.got()
    world.host.got()
    world.stream.feed(request)
    assert len(world.hosts) == 1
    return world


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_not_processed_is_retried_whatever_the_method(fresh: bool, method: bytes) -> None:
    request = method + b" /a HTTP/1.1\r\nHost: a.tunnel.test\r\nContent-Length: 10\r\n\r\n12345"
    world = World() if fresh else reused(request)
    if fresh:
        world.stream.feed(request)
    first = world.host.got()
    world.host.peer_resets(Code.NOT_PROCESSED)
    assert len(world.hosts) == 2
    assert world.host.got() == first
    world.stream.feed(b"67890")
    assert world.host.got() == b"67890"
    world.host.feed(OK)
    assert world.stream.got() == OK
    assert world.exchanges[-1].retries == 1
    world.settled()


def test_retried_once() -> None:
    world = reused(GET)
    world.host.peer_resets(Code.NOT_PROCESSED)
    world.host.peer_resets(Code.NOT_PROCESSED)
    assert len(world.hosts) == 2
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"not_processed"


def test_retry_with_chunked_body_and_slow_host() -> None:
    world = World()
    world.host_room = 300
    world.stream.feed(b"POST /a HTTP/1.1\r\nHost: a.tunnel.test\r\nTransfer-Encoding: chunked\r\n\r\n")
    world.stream.feed(b"fa0\r\n" + bytes(4000) + b"\r\n")
    world.stream.feed(b"3\r\nabc\r\n0\r\nX-A: 1\r\n\r\n")
    world.host_room = 1 << 30
    world.host.peer_resets(Code.NOT_PROCESSED)
    assert world.stream.unconsumed == 0
    assert world.host.got().endswith(b"\r\nfa0\r\n" + bytes(4000) + b"\r\n3\r\nabc\r\n0\r\nX-A: 1\r\n\r\n")
    world.host.feed(OK)
    world.settled()


def test_no_retry_of_a_body_that_was_not_kept() -> None:
    world = World()
    world.stream.feed(POST % 100000 + bytes(60000))
    world.stream.feed(bytes(6000))
    world.host.peer_resets(Code.NOT_PROCESSED)
    assert len(world.hosts) == 1
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"not_processed"


def test_no_retry_of_a_large_body_that_waited_for_the_handler() -> None:
    world = World(forward=False)
    world.stream.feed(POST % 100000)
    world.stream.feed(bytes(70000))
    world.send(world.exchanges[0])
    world.host.peer_resets(Code.NOT_PROCESSED)
    assert len(world.hosts) == 1


def test_other_loss_on_a_reused_connection() -> None:
    world = reused(GET)
    world.host.peer_resets(Code.HOST_CLOSED)
    assert len(world.hosts) == 2
    world.host.feed(OK)
    assert world.stream.got() == OK


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (POST % 3 + b"abc", Code.HOST_CLOSED),
        (b"PUT /a HTTP/1.1\r\nHost: a.tunnel.test\r\nContent-Length: 3\r\n\r\nabc", Code.HOST_CLOSED),
        (POST % 0, Code.HOST_CLOSED),
        (GET, Code.HOST_TIMEOUT),
    ],
)
def test_other_loss_that_is_not_retried(request_: bytes, code: int) -> None:
    world = reused(request_)
    world.host.peer_resets(code)
    assert len(world.hosts) == 1
    assert world.stream.got().startswith(b"HTTP/1.1 50")


def test_no_retry_after_a_response_byte() -> None:
    world = reused(GET)
    world.host.feed(b"H")
    world.host.peer_resets(Code.NOT_PROCESSED)
    assert len(world.hosts) == 1
    assert world.stream.got().startswith(b"HTTP/1.1 502")


def test_no_retry_on_a_fresh_connection() -> None:
    world = World()
    world.stream.feed(GET)
    world.host.feed_eof()
    assert len(world.hosts) == 1
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"host_closed"


def test_no_retry_without_a_handler_for_it() -> None:
    world = World(retry=False)
    world.stream.feed(GET)
    world.host.peer_resets(Code.NOT_PROCESSED)
    assert len(world.hosts) == 1
    assert world.stream.got().startswith(b"HTTP/1.1 503")


def test_no_retry_after_a_stop() -> None:
    world = reused(GET)
    world.host.peer_stops()
    world.host.peer_resets(Code.HOST_CLOSED)
    assert len(world.hosts) == 1
    assert world.stream.got().startswith(b"HTTP/1.1 502")


def test_fin_waits_for_the_verdict() -> None:
    world = reused(POST % 3)
    world.host.feed_eof()
    assert world.stream.got() == b""
    world.stream.feed(b"abc")
    world.sweep(LIMITS.verdict_seconds - 0.1)
    assert len(world.hosts) == 1
    world.host.peer_resets(Code.NOT_PROCESSED)
    assert len(world.hosts) == 2
    assert world.host.got().endswith(b"abc")
    world.host.feed(OK)
    assert world.stream.got() == OK


@pytest.mark.parametrize(("request_", "hosts"), [(GET, 2), (POST % 3 + b"abc", 1)])
def test_fin_without_a_verdict(request_: bytes, hosts: int) -> None:
    world = reused(request_)
    world.host.feed_eof()
    world.sweep(LIMITS.verdict_seconds + 0.1)
    assert stream_of(world.hosts[0]).reset_code == Code.CANCELLED
    assert len(world.hosts) == hosts


# --- upgrades ---

UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a.tunnel.test\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


def upgraded(more: bytes = b"", answer: bytes = SWITCH, limits: ExchangeLimits | None = None) -> World:
    world = World(limits=limits or ExchangeLimits())
    world.stream.feed(UPGRADE + more)
    assert b"\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n" in world.host.got()
    world.host.feed(answer)
    return world


def test_upgrade_passes_leftovers_on_first() -> None:
    world = upgraded(b"early", SWITCH + b"greeting")
    assert world.stream.got() == SWITCH + b"greeting"
    assert world.host.got() == b"early"
    world.settled()
    world.stream.feed(b"ping")
    world.host.feed(b"pong")
    assert world.host.got() == b"ping"
    assert world.stream.got() == b"pong"
    world.settled()


def test_upgrade_whose_host_ended_keeps_what_it_said() -> None:
    """The Host ended first, and the Agent answers what comes later by not_processed: no harm to what was said."""
    world = upgraded()
    world.stream.room = 4
    world.host.feed(b"goodbye")
    world.host.feed_eof()
    world.stream.feed(b"late")
    world.host.peer_resets(Code.NOT_PROCESSED)
    world.stream.take(1 << 40)
    assert world.stream.reset_code is None
    assert world.stream.got() == SWITCH + b"goodbye"
    assert world.stream.eof_sent
    assert world.exchanges[0].done


def test_not_processed_after_an_informational_head_is_a_lost_host() -> None:
    world = World()
    world.stream.feed(b"POST /a HTTP/1.1\r\nHost: a.tunnel.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    world.host.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
    world.host.peer_resets(Code.NOT_PROCESSED)
    assert len(world.hosts) == 1
    assert b"netbore-error: host_closed" in world.stream.got().lower()


def test_upgrade_that_is_not_processed_in_the_middle_is_cut() -> None:
    world = upgraded()
    world.host.peer_resets(Code.NOT_PROCESSED)
    assert world.stream.reset_code == Code.NOT_PROCESSED


def test_upgrade_lets_a_paused_viewer_go_on() -> None:
    world = World()
    world.stream.feed(UPGRADE)
    world.stream.feed(bytes(70000))
    assert world.stream.paused
    world.host.got()
    world.host.feed(SWITCH)
    assert world.host.got() == bytes(70000)
    assert not world.stream.paused
    world.settled()


def test_upgraded_ends_each_way() -> None:
    world = upgraded()
    world.stream.feed_eof()
    assert world.host.eof_sent
    world.host.feed(b"more")
    assert not world.exchanges[0].done
    world.host.feed_eof()
    assert world.stream.got() == SWITCH + b"more"
    assert world.stream.eof_sent
    assert world.exchanges[0].done
    assert world.closed == world.hosts
    assert world.viewer.closed
    assert world.stream.reset_code is None
    assert world.host.reset_code is None


def test_upgraded_end_waits_for_what_is_queued() -> None:
    world = upgraded()
    world.stream.room = world.host.room = 0
    world.host.feed(b"12345")
    world.host.feed_eof()
    world.stream.feed(b"12345")
    world.stream.feed_eof()
    assert not world.stream.eof_sent
    assert not world.host.eof_sent
    assert world.stream.unconsumed == world.host.unconsumed == 5
    world.stream.take(100)
    assert world.stream.eof_sent
    assert not world.exchanges[0].done
    world.host.take(100)
    assert world.host.eof_sent
    assert world.exchanges[0].done
    assert world.host.reset_code is None


@pytest.mark.parametrize("first", ["viewer", "host"])
def test_upgraded_stops(first: str) -> None:
    """Who reads no more stops the other's source; the other direction goes on."""
    world = upgraded()
    world.stream.got()
    one, other = (world.stream, world.host) if first == "viewer" else (world.host, world.stream)
    one.peer_stops(Code.CANCELLED)
    assert other.stopped == Code.CANCELLED
    one.feed(b"still")
    assert other.got() == b"still"
    one.feed_eof()
    assert other.eof_sent
    assert world.exchanges[0].done


@pytest.mark.parametrize("first", ["viewer", "host"])
def test_upgraded_stops_last(first: str) -> None:
    world = upgraded()
    one, other = (world.stream, world.host) if first == "viewer" else (world.host, world.stream)
    one.feed_eof()
    one.peer_stops(Code.CANCELLED)
    assert other.stopped == Code.CANCELLED
    assert world.exchanges[0].done


@pytest.mark.parametrize("first", ["viewer", "host"])
def test_upgraded_reset(first: str) -> None:
    world = upgraded()
    one, other = (world.stream, world.host) if first == "viewer" else (world.host, world.stream)
    one.peer_resets(Code.HOST_CLOSED)
    assert other.reset_code is not None
    assert world.exchanges[0].done


def test_upgraded_idle() -> None:
    world = upgraded()
    world.sweep(3599)
    world.stream.feed(b"x")
    world.sweep(3599)
    assert not world.exchanges[0].done
    world.sweep(2)
    assert world.host.reset_code == Code.IDLE_TIMEOUT
    assert world.stream.reset_code == Code.IDLE_TIMEOUT


def test_upgrade_after_the_viewers_end() -> None:
    world = World()
    world.stream.feed(UPGRADE)
    world.stream.feed_eof()
    world.host.feed(SWITCH)
    assert world.host.eof_sent
    world.host.feed_eof()
    assert world.exchanges[0].done


def test_upgrade_refused_goes_on_as_http() -> None:
    world = upgraded(GET, OK)
    assert world.stream.got() == OK
    assert world.host.got() == forwarded(b"GET /a")
    world.settled()


def test_switch_to_another_protocol() -> None:
    world = upgraded(answer=SWITCH.replace(b"websocket", b"other"))
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"bad_gateway"


def test_switch_that_only_the_exchange_can_refuse() -> None:
    """A target inside the process has no reader that would notice."""
    world = World()
    world.stream.feed(GET)
    switch = ResponseHead(101, b"", 1, ((b"Connection", b"upgrade"), (b"Upgrade", b"x")))
    assert not world.exchanges[0].response_head(switch)
    assert world.host.reset_code == Code.CANCELLED
    assert head_of(world.stream.got())[1][b"netbore-error"] == b"bad_gateway"


# --- the table ---


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("moved", list(Input))
def test_what_the_table_lacks_is_a_bug(phase: Phase, moved: Input) -> None:
    world = World(forward=False)
    world.stream.feed(GET)
    exchange = world.exchanges[0]
    exchange.phase = phase
    step = partial(exchange._step, moved)
    if (phase, moved) in TRANSITIONS:
        step()
        assert exchange.phase is TRANSITIONS[phase, moved]
    else:
        with pytest.raises(LocalProtocolError):
            step()


def test_done_is_final_and_reachable() -> None:
    assert not [key for key in TRANSITIONS if key[0] == Phase.DONE]
    reached = {Phase.ASKED}
    for _ in Phase:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(Phase)
