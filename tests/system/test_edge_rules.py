"""What the Edge itself decides, through real processes: headers, host names and certificates, redirects, loops, its own pages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest
import trustme

from tests.system.http1 import Message, Viewer
from tests.system.processes import DOMAIN, EdgeProgram, agent, curl, edge, free_port, needs_curl
from tests.system.raw_host import RawHost, Request, ok, serve

pytestmark = needs_curl


def tell(request: Request) -> bytes:
    """What the Host got, as JSON, with headers of its own that must not pass."""
    lines = request.raw.decode("latin-1").split("\r\n")[1:-2]
    fields = [line.partition(": ")[::2] for line in lines]
    return ok(
        json.dumps({"target": request.target, "fields": fields}).encode(),
        "Netbore-Error: forged",
        'Alt-Svc: h3=":443"',
        "Keep-Alive: timeout=20",
        "X-Private: 1",
        "Connection: X-Private",
        "Set-Cookie: wide=1; Domain=tunnel.localhost",
        "Set-Cookie: wider=1; Domain=.localhost",
        "Set-Cookie: own=1; Path=/",
        "X-Host: yes",
    )


@attrs.frozen
class Stand:
    """An Edge with a redirecting plain listener; `demo` and `other` tell what their Host got."""

    edge: EdgeProgram
    plain_port: int
    folder: Path

    def viewer(self, name: str = "demo") -> Viewer:
        return Viewer(self.edge.port, f"{name}.{DOMAIN}", self.edge.ca)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("rules")
    with ExitStack() as stack:
        the_edge = stack.enter_context(edge(folder, "--http-listen", "127.0.0.1:0"))
        plain_port = int(the_edge.wait_line(1).rsplit(":", 1)[1])
        host = stack.enter_context(RawHost(serve(tell)))
        for name in ("demo", "other"):
            stack.enter_context(agent(folder, host.port, the_edge, name=name, state=f"agent-{name}"))
        stack.enter_context(agent(folder, free_port(), the_edge, name="down", state="agent-down"))
        yield Stand(the_edge, plain_port, folder)


def seen(message: Message) -> dict[str, list[str]]:
    """What the Host got: values by lower-case name."""
    assert message.status == 200
    out: dict[str, list[str]] = {}
    for name, value in json.loads(message.body)["fields"]:
        out.setdefault(name.lower(), []).append(value)
    return out


# Headers


def test_what_a_viewer_says_of_itself_is_replaced(stand: Stand) -> None:
    forged = (
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-Proto: ftp",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Port: 1",
        "X-Real-IP: 192.0.2.1",
        "Forwarded: for=192.0.2.1",
        "Netbore-Id: 1",
        "NETBORE-Anything: 1",
    )
    with stand.viewer() as viewer:
        fields = seen(viewer.get("/a?b=c", *forged, "X-Mine: kept"))
    name = f"demo.{DOMAIN}"
    assert fields["host"] == [name]
    assert fields["x-forwarded-for"] == ["127.0.0.1"]
    assert fields["x-forwarded-proto"] == ["https"]
    assert fields["x-forwarded-host"] == [name]
    assert fields["forwarded"] == [f'for=127.0.0.1;proto=https;host="{name}"']
    assert re.fullmatch(r"1\.1 netbore-[0-9a-z-]+", fields["via"][0])
    assert fields["x-mine"] == ["kept"]
    assert not [key for key in fields if key.startswith("netbore-") or key in ("x-real-ip", "x-forwarded-port")]


def test_fields_of_one_connection_end_with_it(stand: Stand) -> None:
    ended = (
        "Connection: keep-alive, X-Hop",
        "X-Hop: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eDp5",
        "TE: gzip",
        "Upgrade: h2c",
        "HTTP2-Settings: AAA",
    )
    with stand.viewer() as viewer:
        fields = seen(viewer.get("/", *ended, "Cookie: a=1", "Authorization: Basic eDp5"))
    for name in ("connection", "x-hop", "keep-alive", "proxy-connection", "proxy-authorization", "te", "upgrade"):
        assert name not in fields, name
    assert fields["cookie"] == ["a=1"]
    assert fields["authorization"] == ["Basic eDp5"]


def test_via_is_built_upon(stand: Stand) -> None:
    with stand.viewer() as viewer:
        (via,) = seen(viewer.get("/", "Via: 1.0 one", "Via: 1.1 two (a comment)"))["via"]
        assert via.startswith("1.0 one, 1.1 two (a comment), 1.1 netbore-")
        viewer.send(f"GET / HTTP/1.0\r\nHost: {viewer.name}\r\n\r\n".encode())
        message = viewer.response()
        assert message is not None
        assert seen(message)["via"][0].startswith("1.0 netbore-")


def test_what_a_host_may_not_say(stand: Stand) -> None:
    with stand.viewer() as viewer:
        head = viewer.get("/").head
    assert head.all("set-cookie") == ["own=1; Path=/"]
    assert head.get("x-host") == "yes"
    for name in ("netbore-error", "alt-svc", "keep-alive", "x-private", "connection"):
        assert head.all(name) == [], name


def test_the_host_header_that_an_agent_asks_for(stand: Stand) -> None:
    with RawHost(serve(tell)) as host:
        for rule, expected in {"target": f"localhost:{host.port}", "dev.example": "dev.example"}.items():
            with (
                agent(stand.folder, host.port, stand.edge, "--host-header", rule, name="ruled", state="agent-ruled"),
                stand.viewer("ruled") as viewer,
            ):
                fields = seen(viewer.get("/"))
                assert fields["host"] == [expected]
                assert fields["x-forwarded-host"] == [f"ruled.{DOMAIN}"]


# Names and certificates


def test_one_certificate_covers_all_names(stand: Stand) -> None:
    """The embedded certificate is a wildcard, so one connection may ask for another Tunnel; routing is per request."""
    with stand.viewer("demo") as viewer:
        for name in ("demo", "other", "demo"):
            assert seen(viewer.get("/", host=f"{name}.{DOMAIN}"))["host"] == [f"{name}.{DOMAIN}"]
        assert seen(viewer.get("/", host=f"OTHER.{DOMAIN}.:{stand.edge.port}"))["x-forwarded-proto"] == ["https"]
        assert viewer.get("/", host=f"nobody.{DOMAIN}").status == 404


def test_a_name_that_the_certificate_does_not_cover_is_misdirected(tmp_path: Path) -> None:
    authority = trustme.CA()
    state = tmp_path / "given"
    state.mkdir(mode=0o700)
    authority.cert_pem.write_to_path(state / "ca.pem")
    certificate = authority.issue_cert(DOMAIN, f"*.{DOMAIN}")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.private_key_pem.write_to_path(key)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    options = ("--cert-file", str(chain), "--key-file", str(key))
    with (
        RawHost(serve(tell)) as host,
        edge(tmp_path, *options, state="given") as the_edge,
        agent(tmp_path, host.port, the_edge, name="demo"),
        Viewer(the_edge.port, f"demo.{DOMAIN}", the_edge.ca) as viewer,
    ):
        assert viewer.get("/").status == 200
        for other in ("demo.example", f"deeper.demo.{DOMAIN}", "127.0.0.1", "[::1]"):
            message = viewer.get("/", host=other)
            assert (message.status, message.get("netbore-error")) == (421, "misdirected"), other
        assert viewer.get("/", host=f"nobody.{DOMAIN}").status == 404
        assert viewer.get("/").status == 200
        assert host.requests == 2


# The plain listener


def test_the_plain_listener_redirects(stand: Stand) -> None:
    with Viewer(stand.plain_port, f"demo.{DOMAIN}", None) as viewer:
        for method in ("GET", "POST", "HEAD"):
            message = viewer.get("/a/b?c=d", method=method)
            assert message.status == 308
            assert message.get("location") == f"https://demo.{DOMAIN}:{stand.edge.port}/a/b?c=d"
    followed = curl(stand.edge, "demo", "/a", "--location", "--connect-to", f"demo.{DOMAIN}:80:127.0.0.1:{stand.plain_port}")
    assert followed.status == 200


# Loops


def test_a_tunnel_to_its_own_edge_ends(tmp_path: Path) -> None:
    with edge(tmp_path, plain=True) as the_edge:
        assert the_edge.plain_port is not None
        with (
            agent(tmp_path, the_edge.plain_port, the_edge, name="loop"),
            Viewer(the_edge.port, f"loop.{DOMAIN}", the_edge.ca) as viewer,
        ):
            for _ in range(2):
                message = viewer.get("/")
                assert message.status == 508
            posted = viewer.get("/", method="POST", body=bytes(100_000))
            assert posted.status == 508


# The Edge's own pages

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture(scope="module")
def offline(stand: Stand) -> str:
    """A Tunnel whose Agent was there and has gone."""
    with RawHost(serve(tell)) as host, agent(stand.folder, host.port, stand.edge, name="gone", state="agent-gone") as program:
        assert program.stop() == 0
    return "gone"


@pytest.mark.parametrize(
    "expected", [("nobody", 404, "no_such_tunnel"), ("gone", 503, "agent_offline"), ("down", 502, "host_refused")]
)
@pytest.mark.parametrize("accept", [BROWSER, "*/*", "application/json", "application/json, text/html;q=0.5", None])
def test_refusals_are_pages_for_people_and_documents_for_programs(
    stand: Stand, offline: str, expected: tuple[str, int, str], accept: str | None
) -> None:
    name, status, code = expected
    headers = () if accept is None else (f"Accept: {accept}",)
    with stand.viewer(name) as viewer:
        message = viewer.get("/<script>", *headers)
        assert (message.status, message.get("netbore-error"), message.get("cache-control")) == (status, code, "no-store")
        if accept == BROWSER:
            assert message.get("content-type") == "text/html; charset=utf-8"
            assert message.body.startswith(b"<!doctype html>")
        else:
            assert message.get("content-type") == "application/problem+json"
            document = json.loads(message.body)
            assert (document["status"], document["code"]) == (status, code)
        assert b"<script>" not in message.body
        head = viewer.get("/", *headers, method="HEAD")
        assert (head.status, head.get("netbore-error")) == (status, code)
        assert viewer.get("/", *headers).status == status


def test_refusing_does_not_wait_for_a_body(stand: Stand) -> None:
    with stand.viewer("nobody") as viewer:
        viewer.ask("POST", "/", "Content-Length: 1000000000", "Expect: 100-continue")
        message = viewer.response()
        assert message is not None
        assert (message.status, message.head.closing) == (404, True)


def test_the_api_host_has_nothing_else(stand: Stand) -> None:
    with Viewer(stand.edge.port, DOMAIN, stand.edge.ca) as viewer:
        message = viewer.get("/nothing")
        assert (message.status, message.get("netbore-error")) == (404, "not_found")
        assert message.get("content-type") == "application/problem+json"
