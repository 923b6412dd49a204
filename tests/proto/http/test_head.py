"""What heads mean once they are accepted, and by which grammar they were."""

from __future__ import annotations

import pytest

from netbore.proto.http import head as strict
from netbore.proto.http.head import Collector, HttpLimits, make_request, make_response, parse_host, split_request, split_response
from netbore.proto.http.messages import BadMessage, End, Framing, Headers, RequestHead, ResponseHead, Truncated, tokens


def request(text: bytes) -> RequestHead:
    return make_request(*split_request(text.replace(b"\n", b"\r\n") + b"\r\n\r\n"))


def response(text: bytes, method: bytes = b"GET") -> ResponseHead:
    return make_response(*split_response(text.replace(b"\n", b"\r\n") + b"\r\n\r\n"), method)


@pytest.mark.parametrize(
    ("line", "host", "target", "authority", "host_header"),
    [
        (b"GET /", b"a", b"/", b"a", b"a"),
        (b"GET //a/../b?c=%d0|{}", b"A.Example.", b"//a/../b?c=%d0|{}", b"a.example", b"A.Example."),
        (b"GET /", b"a.b:65535", b"/", b"a.b", b"a.b:65535"),
        (b"GET /", b"a.b.:80", b"/", b"a.b", b"a.b.:80"),
        (b"GET /", b"[::FFFF:1.2.3.4]:80", b"/", b"[::ffff:1.2.3.4]", b"[::FFFF:1.2.3.4]:80"),
        (b"GET /", b"my_service-1", b"/", b"my_service-1", b"my_service-1"),
        (b"OPTIONS *", b"a", b"*", b"a", b"a"),
        (b"OPTIONS http://b:1", b"a", b"*", b"b", b"b:1"),
        (b"OPTIONS http://b?x", b"a", b"/?x", b"b", b"b"),
        (b"GET http://B.c", b"a", b"/", b"b.c", b"B.c"),
        (b"GET HTTPS://b/x?y", b"a", b"/x?y", b"b", b"b"),
        (b"GET http://b?y", b"a", b"/?y", b"b", b"b"),
        (b"!#$%&'*+-.^_`|~ /", b"a", b"/", b"a", b"a"),
    ],
)
def test_targets(line: bytes, host: bytes, target: bytes, authority: bytes, host_header: bytes) -> None:
    head = request(line + b" HTTP/1.1\nX: y\nHost: " + host)
    assert (head.target, head.authority, head.get(b"host")) == (target, authority, host_header)
    assert len(head.get_all(b"host")) == 1
    assert head.get(b"x") == b"y"


def test_absolute_form_gives_http_10_a_host() -> None:
    head = request(b"GET http://b/ HTTP/1.0")
    assert (head.authority, head.headers) == (b"b", ((b"Host", b"b"),))


@pytest.mark.parametrize("value", [b"a" * 261, b".", b".a", b"a b", b"[1.2.3.4]", b"[::1", b"a:1x", b"a:123456", b"[::1].:80"])
def test_bad_hosts(value: bytes) -> None:
    with pytest.raises(BadMessage, match="bad Host"):
        parse_host(value)


@pytest.mark.parametrize(
    ("version", "lines", "keep_alive", "upgrade", "expects"),
    [
        (b"1.1", b"", True, None, False),
        (b"1.0", b"", False, None, False),
        (b"1.0", b"\nConnection: Keep-Alive", True, None, False),
        (b"1.0", b"\nConnection: keep-alive, close", False, None, False),
        (b"1.1", b"\nConnection: x\nConnection: , CLOSE", False, None, False),
        (b"1.1", b"\nConnection: Upgrade\nUpgrade: WebSocket", True, b"websocket", False),
        (b"1.1", b"\nConnection: Upgrade\nUpgrade: SPDY/3.1\nContent-Length: 0", True, b"spdy/3.1", False),
        (b"1.1", b"\nConnection: Upgrade\nUpgrade: websocket\nContent-Length: 1", True, None, False),
        (b"1.1", b"\nConnection: Upgrade\nUpgrade: websocket, chat", True, None, False),
        (b"1.1", b"\nConnection: Upgrade\nUpgrade: websocket\nUpgrade: websocket", True, None, False),
        (b"1.1", b"\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: x", True, None, False),
        (b"1.1", b"\nConnection: Upgrade\nUpgrade: HTTP/2.0", True, None, False),
        (b"1.1", b"\nUpgrade: websocket", True, None, False),
        (b"1.0", b"\nConnection: upgrade\nUpgrade: websocket", False, None, False),
        (b"1.1", b"\nExpect: 100-Continue\nContent-Length: 5", True, None, True),
        (b"1.0", b"\nExpect: 100-continue\nContent-Length: 5", False, None, False),
    ],
)
def test_connection(version: bytes, lines: bytes, keep_alive: bool, upgrade: bytes | None, expects: bool) -> None:
    head = request(b"POST / HTTP/" + version + b"\nHost: a" + lines)
    assert (head.keep_alive, head.upgrade, head.expect_continue) == (keep_alive, upgrade, expects)


@pytest.mark.parametrize(
    ("text", "method", "framing"),
    [
        (b"HTTP/1.1 200 OK", b"GET", Framing.UNTIL_CLOSE),
        (b"HTTP/1.1 200 OK\nContent-Length: 0", b"GET", Framing.LENGTH(0)),
        (b"HTTP/1.1 200 OK\nContent-Length: 007", b"GET", Framing.LENGTH(7)),
        (b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"HEAD", Framing.NONE),
        (b"HTTP/1.1 304 Not Modified\nContent-Length: 5", b"GET", Framing.NONE),
        (b"HTTP/1.1 204 No Content\nContent-Length: 0", b"GET", Framing.NONE),
        (b"HTTP/1.1 102 Processing", b"GET", Framing.NONE),
    ],
)
def test_response_framing(text: bytes, method: bytes, framing: Framing) -> None:
    head = response(text, method)
    assert head.framing == framing
    assert head.informational == (head.status == 102)
    assert head.upgrade is None


def test_switching() -> None:
    assert response(b"HTTP/1.1 101 X\nUpgrade: WebSocket\nConnection: upgrade").upgrade == b"websocket"
    for lines in (b"", b"\nUpgrade: websocket", b"\nUpgrade: h2c\nConnection: upgrade", b"\nUpgrade: a, b\nConnection: upgrade"):
        with pytest.raises(BadMessage, match="no known protocol"):
            response(b"HTTP/1.1 101 X" + lines)


def test_heads_made_by_hand_mean_the_same() -> None:
    headers: Headers = ((b"A", b"1"), (b"a", b"2"), (b"Content-Length", b"3"), (b"Connection", b"X, y"))
    asked = RequestHead(b"PUT", b"/", 1, headers)
    answered = ResponseHead(200, b"OK", 1, headers)
    for head in (asked, answered):
        assert head.framing == Framing.LENGTH(3)
        assert head.framing is head.framing
        assert head.get(b"a") == b"1, 2"
        assert head.get_all(b"a") == [b"1", b"2"]
        assert head.get(b"b") is None
        assert head.connection == {b"x", b"y"}
        assert head.connection is head.connection
    assert "PUT" in repr(asked)
    assert "200" in repr(answered)


def test_framing_is_a_value() -> None:
    assert {Framing.LENGTH(5), Framing.LENGTH(5), Framing.NONE} == {Framing.NONE, Framing.LENGTH(5)}
    assert Framing.LENGTH(5) != Framing.LENGTH(6)
    assert Framing.NONE != "NONE"
    assert (repr(Framing.LENGTH(5)), repr(Framing.CHUNKED)) == ("LENGTH(5)", "CHUNKED")
    assert [framing.empty for framing in (Framing.NONE, Framing.LENGTH(0), Framing.LENGTH(1), Framing.CHUNKED)] == [
        True,
        True,
        False,
        False,
    ]
    assert End() == End(())
    assert issubclass(Truncated, BadMessage)
    assert tokens(b" a ,,B\t") == {b"a", b"b"}


BROWSER = (
    b"GET /assets/app.js?v=12 HTTP/1.1\r\nHost: demo.example:8443\r\nConnection: keep-alive\r\n"
    b'sec-ch-ua: "Chromium";v="128", "Not;A=Brand";v="24"\r\nsec-ch-ua-mobile: ?0\r\nUpgrade-Insecure-Requests: 1\r\n'
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nCookie: a=b_c; d=\xe4\r\n\r\n"
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (BROWSER, True),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost:a\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost:  a\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a \r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost:\ta\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nX_Y: a\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nX:\r\n\r\n", False),
    ],
)
def test_which_grammar_takes_a_head(text: bytes, plain: bool) -> None:
    """The quick way must be taken where it can be, and both ways must give the same."""
    both = tuple(bool(grammar.fullmatch(text)) for grammar in strict._REQUEST)
    assert both == (plain, True)
    *_, headers = split_request(text)
    lines = [line.partition(b":") for line in text[:-4].split(b"\r\n")[1:]]
    assert headers == tuple((name, value.strip(b" \t")) for name, _, value in lines)


@pytest.mark.parametrize("name", [b"X_Y", b"X.Y", b"~", b"Content-Length2_", b"_Host"])
def test_other_marks_in_names_are_sound(name: bytes) -> None:
    assert request(b"GET / HTTP/1.1\nHost: a\n" + name + b": b").get(name.lower()) == b"b"


def test_collector_finds_a_terminator_cut_anywhere() -> None:
    text = b"abc\r\n\r\nrest"
    for kind in (bytes, memoryview):
        for cut in range(len(text)):
            collector = Collector(b"\r\n\r\n")
            found, at = collector.take(kind(text[:cut]), 0)
            if found is None:
                assert at == cut
                found, at = collector.take(kind(text[cut:]), 0)
                at += cut
            assert (found, at) == (b"abc\r\n\r\n", 7)
            assert not collector.held


def test_limits_know_the_least() -> None:
    assert HttpLimits().least == 8192
    assert HttpLimits(head=100).least == 100
    assert HttpLimits(header_line=10).least == 10
    limits = HttpLimits(head=100)
    text = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 90
    with pytest.raises(BadMessage, match="head too large"):
        split_request(text + b"\r\n\r\n", limits)
    with pytest.raises(BadMessage, match="head too large"):
        strict.check_partial(bytearray(text), 0, limits)
    with pytest.raises(BadMessage, match="header line"):
        strict.check_partial(bytearray(text), 0, HttpLimits(header_line=50))
