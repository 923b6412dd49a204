"""What is forwarded, what is not, and what is said anew."""

from __future__ import annotations

import pytest

from netbore.proto.http.codec import RequestReader, ResponseReader, emit_request, emit_response
from netbore.proto.http.headers import Forwarding, framed, host_rule, to_host, to_viewer, trailers, visits
from netbore.proto.http.messages import BadMessage, Framing, Headers, RequestHead, ResponseHead

EDGE = Forwarding(b"192.0.2.7", b"https", b"e1")
PROXIED = Forwarding(b"2001:db8::7", b"http", b"e1", trusted=True)
APEX = b"tunnel.example"


def request(
    lines: bytes = b"", start: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a.tunnel.example:8443\r\n"
) -> RequestHead:
    (head, *_) = RequestReader().feed(start + b"\r\n" + host + lines + b"\r\n")
    assert isinstance(head, RequestHead)
    return head


def response(lines: bytes = b"", start: bytes = b"HTTP/1.1 200 OK", method: bytes = b"GET") -> ResponseHead:
    reader = ResponseReader()
    reader.expect(method, b"websocket")
    (head, *_) = reader.feed(start + b"\r\n" + lines + b"\r\n")
    assert isinstance(head, ResponseHead)
    return head


def added(head: RequestHead) -> Headers:
    """What stands behind the Viewer's own headers."""
    return head.headers[head.headers.index(next(pair for pair in head.headers if pair[0] == b"X-Forwarded-For")) :]


def test_a_whole_request() -> None:
    lines = b"user-AGENT: x\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nCookie: a=b\r\nNetbore-Error: x\r\n"
    lines += b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Port: 1\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n"
    assert emit_request(to_host(request(lines), EDGE)) == (
        b"GET / HTTP/1.1\r\nHost: a.tunnel.example:8443\r\nuser-AGENT: x\r\nCookie: a=b\r\n"
        b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n"
        b'Forwarded: for=192.0.2.7;proto=https;host="a.tunnel.example:8443"\r\n'
        b"Via: 1.1 netbore-e1\r\nX-Forwarded-Host: a.tunnel.example:8443\r\n\r\n"
    )


def test_a_trusted_proxy_is_built_upon() -> None:
    lines = b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2\r\nX-Forwarded-Proto: https\r\n"
    lines += b"X-Forwarded-Host: www.example\r\n"
    lines += b"Forwarded: for=192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\nX-Forwarded-Port: 443\r\nVia: 1.1 front (a, b)\r\n"
    head = to_host(request(lines), PROXIED)
    assert head.get(b"x-real-ip") == b"192.0.2.1"
    assert head.get(b"x-forwarded-port") == b"443"
    assert added(head) == (
        (b"X-Forwarded-For", b"192.0.2.1, 192.0.2.2, 2001:db8::7"),
        (b"X-Forwarded-Proto", b"https"),
        (b"Forwarded", b'for=192.0.2.1, for="[2001:db8::7]";proto=http;host="a.tunnel.example:8443"'),
        (b"Via", b"1.1 front (a, b), 1.1 netbore-e1"),
        (b"X-Forwarded-Host", b"www.example"),
    )


def test_a_trusted_proxy_that_says_nothing() -> None:
    assert added(to_host(request(), PROXIED)) == (
        (b"X-Forwarded-For", b"2001:db8::7"),
        (b"X-Forwarded-Proto", b"http"),
        (b"Forwarded", b'for="[2001:db8::7]";proto=http;host="a.tunnel.example:8443"'),
        (b"Via", b"1.1 netbore-e1"),
        (b"X-Forwarded-Host", b"a.tunnel.example:8443"),
    )


@pytest.mark.parametrize(
    "name",
    [b"Host", b"Content-Length", b"Content-Type", b"Cookie", b"Authorization", b"Expect", b"Trailer", b"Range", b"Cache-Control"],
)
def test_nomination_does_not_remove_what_must_stay(name: bytes) -> None:
    value = {b"Host": b"a", b"Content-Length": b"5", b"Expect": b"100-continue"}.get(name, b"x")
    host = b"" if name == b"Host" else b"Host: a\r\n"
    head = request(name + b": " + value + b"\r\nConnection: " + name.lower() + b"\r\n", host=host)
    assert to_host(head, EDGE).get(name.lower()) == value
    assert to_host(head, EDGE).framing == head.framing


def test_nomination_does_not_remove_what_we_say() -> None:
    head = to_host(request(b"Connection: X-Forwarded-For, Via, Forwarded, X-Mine\r\nX-Mine: 1\r\nVia: 1.0 x\r\n"), EDGE)
    assert head.get(b"x-forwarded-for") == b"192.0.2.7"
    assert head.get(b"via") == b"1.0 x, 1.1 netbore-e1"
    assert head.get(b"forwarded") is not None
    assert head.get(b"x-mine") is None


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (b"", ()),
        (b"TE: trailers, deflate;q=0.5\r\n", ((b"Connection", b"TE"), (b"TE", b"trailers"))),
        (b"TE: gzip\r\nConnection: TE\r\n", ()),
        (b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n", ()),
        (
            b"Connection: Upgrade\r\nUpgrade: WebSocket\r\nTE: trailers\r\n",
            ((b"Connection", b"upgrade"), (b"Upgrade", b"WebSocket")),
        ),
        (b"Connection: Upgrade\r\nUpgrade: a, b\r\n", ()),
        (b"Proxy-Connection: x\r\nProxy-Authorization: x\r\nKeep-Alive: x\r\n", ()),
        (b"transfer-ENCODING: Chunked\r\n", ((b"Transfer-Encoding", b"chunked"),)),
    ],
)
def test_connection_fields(lines: bytes, kept: Headers) -> None:
    assert to_host(request(lines), EDGE).headers[6:] == kept


def test_http_10_becomes_11() -> None:
    lines = b"Connection: keep-alive\r\nTE: trailers\r\nExpect: 100-continue\r\nContent-Length: 3\r\n"
    head = to_host(request(lines, b"POST /x HTTP/1.0"), EDGE)
    assert (head.method, head.target, head.minor, head.framing) == (b"POST", b"/x", 1, Framing.LENGTH(3))
    assert [name for name, _ in head.headers][:2] == [b"Host", b"Content-Length"]
    assert head.get(b"via") == b"1.0 netbore-e1"
    assert head.get(b"connection") is None
    assert not head.expect_continue


def test_http_10_without_host() -> None:
    head = request(start=b"GET / HTTP/1.0", host=b"")
    assert to_host(head, EDGE).headers[0] == (b"Host", b"")
    assert to_host(head, EDGE).get(b"x-forwarded-host") is None
    assert to_host(head, EDGE).get(b"forwarded") == b"for=192.0.2.7;proto=https"
    head.authority = b"a.tunnel.example"
    assert to_host(head, EDGE).headers[0] == (b"Host", b"a.tunnel.example")


def test_host_rewritten() -> None:
    head = to_host(request(), EDGE, host=b"127.0.0.1:8000")
    assert head.get_all(b"host") == [b"127.0.0.1:8000"]
    assert head.get(b"x-forwarded-host") == b"a.tunnel.example:8443"
    assert head.authority == b"a.tunnel.example"


@pytest.mark.parametrize(
    ("rule", "target", "value"),
    [
        ("keep", "x", None),
        ("target", "127.0.0.1:8000", b"127.0.0.1:8000"),
        ("target", "http://localhost:80/x", b"localhost"),
        ("target", "https://u:p@[::1]:8443", b"[::1]:8443"),
        ("target", "https://a.example:443", b"a.example"),
        ("target", "https://a.example:80", b"a.example:80"),
        ("www.example", "x", b"www.example"),
    ],
)
def test_host_rule(rule: str, target: str, value: bytes | None) -> None:
    assert host_rule(rule, target) == value


@pytest.mark.parametrize(("rule", "target"), [("a b", ""), ("", ""), ("ä", ""), ("target", "unix:/x"), ("target", "http://")])
def test_bad_host_rule(rule: str, target: str) -> None:
    with pytest.raises(ValueError, match="not a Host"):
        host_rule(rule, target)


def test_loops_end() -> None:
    once, other = b"Via: 1.1 netbore-e1 (x)\r\n", b"Via: 1.1 netbore-e12, 1.1 x (netbore-e1), netbore-e1\r\n"
    assert visits(request(), EDGE.pseudonym) == 0
    assert visits(request(once + other), EDGE.pseudonym) == 1
    assert to_host(request(once * 2 + other), EDGE).get(b"via") is not None
    with pytest.raises(BadMessage) as caught:
        to_host(request(once * 3), EDGE)
    assert caught.value.status == 508


def test_going_round_ends_at_the_third_visit() -> None:
    head = request()
    for _ in range(3):
        (again, *_rest) = RequestReader().feed(emit_request(to_host(head, EDGE)))
        assert isinstance(again, RequestHead)
        head = again
    with pytest.raises(BadMessage):
        to_host(head, EDGE)


def test_a_whole_response() -> None:
    lines = b"Server: x\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nContent-length: 5\r\n"
    lines += b"Alt-Svc: h2=:1\r\nNetbore-Error: x\r\nProxy-Authenticate: x\r\nSet-Cookie: a=b\r\n"
    lines += b"set-cookie: c=d; Domain=tunnel.example\r\n"
    head = to_viewer(response(lines), apex=APEX)
    assert head.framing == Framing.LENGTH(5)
    out = framed(head, viewer_minor=1, keep_alive=True)
    assert emit_response(out) == b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-length: 5\r\nSet-Cookie: a=b\r\n\r\n"


@pytest.mark.parametrize(
    ("cookie", "dropped"),
    [
        (b"a=b", False),
        (b"a=b; Path=/; Secure", False),
        (b"domain=tunnel.example", False),
        (b"a=b; Domain=", False),
        (b"a=b; Domain", False),
        (b"a=b; Domain=a.tunnel.example", False),
        (b"a=b; Domain=other.example", False),
        (b"a=b; Domain=nel.example", False),
        (b"a=b; Domain=tunnel.example", True),
        (b"a=b;domain = .Tunnel.Example ;Secure", True),
        (b'a=b; Domain="tunnel.example"', True),
        (b"a=b; Domain=tunnel.example.", True),
        (b"a=b; Domain=example", True),
        (b"a=b; Domain=a.tunnel.example; DOMAIN=tunnel.example", True),
        (b"a=b; Domain=tunnel.example; Domain=a.tunnel.example", True),
    ],
)
def test_cookies_for_the_apex(cookie: bytes, dropped: bool) -> None:
    head = to_viewer(response(b"Content-Length: 0\r\nSet-Cookie: " + cookie + b"\r\nX: y\r\n"), apex=APEX)
    assert head.get_all(b"set-cookie") == ([] if dropped else [cookie])
    assert head.get(b"x") == b"y"


CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("lines", "minor", "keep_alive", "expected", "framing"),
    [
        (CHUNKED, 1, True, ((b"Transfer-Encoding", b"chunked"),), Framing.CHUNKED),
        (CHUNKED, 1, False, ((b"Transfer-Encoding", b"chunked"), (b"Connection", b"close")), Framing.CHUNKED),
        (CHUNKED, 0, True, ((b"Connection", b"close"),), Framing.UNTIL_CLOSE),
        (b"", 1, True, ((b"Transfer-Encoding", b"chunked"),), Framing.CHUNKED),
        (b"", 0, True, ((b"Connection", b"close"),), Framing.UNTIL_CLOSE),
        (b"Content-Length: 0\r\n", 0, True, ((b"Content-Length", b"0"), (b"Connection", b"keep-alive")), Framing.LENGTH(0)),
        (b"Content-Length: 0\r\n", 0, False, ((b"Content-Length", b"0"), (b"Connection", b"close")), Framing.LENGTH(0)),
    ],
)
def test_framed(lines: bytes, minor: int, keep_alive: bool, expected: Headers, framing: Framing) -> None:
    head = framed(to_viewer(response(lines), apex=APEX), viewer_minor=minor, keep_alive=keep_alive)
    assert (head.headers, head.framing, head.minor) == (expected, framing, 1)
    assert (b"close" in head.connection) == ((b"Connection", b"close") in expected)


@pytest.mark.parametrize(
    ("start", "method", "lines", "kept"),
    [
        (b"HTTP/1.1 200 OK", b"HEAD", b"Content-Length: 5\r\n", ((b"Content-Length", b"5"),)),
        (b"HTTP/1.1 200 OK", b"HEAD", CHUNKED, ()),
        (b"HTTP/1.1 304 X", b"GET", b"Content-Length: 5\r\n", ((b"Content-Length", b"5"),)),
        (b"HTTP/1.1 204 X", b"GET", b"Content-Length: 0\r\nX: y\r\n", ((b"X", b"y"),)),
        (b"HTTP/1.0 103 X", b"GET", b"Link: x\r\nContent-Length: 0\r\n", ((b"Link", b"x"),)),
        (
            b"HTTP/1.1 101 X",
            b"GET",
            b"Connection: Upgrade, X-Hop\r\nX-Hop: 1\r\nUpgrade: WebSocket\r\n",
            ((b"Connection", b"upgrade"), (b"Upgrade", b"WebSocket")),
        ),
    ],
)
def test_responses_without_body(start: bytes, method: bytes, lines: bytes, kept: Headers) -> None:
    head = framed(to_viewer(response(lines, start, method), apex=APEX), viewer_minor=1, keep_alive=True)
    assert (head.headers, head.framing, head.minor) == (kept, Framing.NONE, 1)


@pytest.mark.parametrize(
    "name",
    [
        *(b"Content-Length", b"Transfer-Encoding", b"Host", b"Connection", b"TE", b"Trailer", b"Upgrade", b"Authorization"),
        *(b"Cookie", b"SET-COOKIE", b"WWW-Authenticate", b"Proxy-Authenticate", b"Content-Type", b"Netbore-Error", b"Location"),
        *(
            b"X-Forwarded-For",
            b"Forwarded",
            b"Via",
            b"X-Real-IP",
            b"Expect",
            b"If-Match",
            b"Access-Control-Allow-Origin",
            b"Alt-Svc",
        ),
    ],
)
def test_trailers_that_end_here(name: bytes) -> None:
    fields = ((b"Grpc-Status", b"0"), (name, b"1"), (b"Server-Timing", b"x"), (b"Digest", b"y"))
    assert trailers(fields) == (fields[0], fields[2], fields[3])
