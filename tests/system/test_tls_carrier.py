"""A Link in TLS alone: real programs, one port for Agents and Viewers, a cut, and servers that are no Edge."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from tests.system.conftest import sha256
from tests.system.processes import (
    DOMAIN,
    EdgeProgram,
    agent,
    curl,
    edge,
    eventually,
    free_port,
    needs_curl,
    needs_nginx,
    nginx,
    start_curl,
)
from tests.system.proxies import Proxy
from tests.system.raw_host import Connection, RawHost
from tests.system.test_programs import ends

pytestmark = [needs_nginx, needs_curl]

SIZE = 20_000_000


@pytest.fixture
def the_edge(tmp_path: Path) -> Iterator[EdgeProgram]:
    with edge(tmp_path) as running:
        yield running


def tls(port: int) -> str:
    return f"tls://{DOMAIN}:{port}"


def test_a_request_crosses_beside_viewers_of_the_same_port(tmp_path: Path, the_edge: EdgeProgram) -> None:
    with nginx(tmp_path) as host, agent(tmp_path, host.port, the_edge, name="demo", url=tls(the_edge.port)) as one:
        assert one.lines == [f"https://demo.{DOMAIN}:{the_edge.port}"]
        for options in ([], ["--http1.1"], ["--http1.1", "--no-alpn"]):
            answer = curl(the_edge, "demo", "/", *options)
            assert (answer.code, answer.status, answer.body) == (0, 200, b"hello from the host\n"), options
        assert curl(the_edge, "nobody").status == 404
        assert one.stop() == 0


def test_a_download_survives_cuts(tmp_path: Path, the_edge: EdgeProgram) -> None:
    content = hashlib.shake_256(b"tls").digest(SIZE)
    target = tmp_path / "download.bin"
    with (
        nginx(tmp_path) as host,
        Proxy(the_edge.port) as proxy,
        agent(tmp_path, host.port, the_edge, name="demo", url=tls(proxy.port)) as one,
    ):
        (host.root / "file.bin").write_bytes(content)
        with start_curl(the_edge, "demo", "/file.bin", "--limit-rate", "10M", output=target) as down:
            for number in (1, 2, 3):
                eventually(lambda number=number: down.received > number * SIZE // 5, 30, "the download goes on")
                assert proxy.cut() == 1
            answer = down.answer()
        assert (answer.code, answer.status, sha256(target)) == (0, 200, hashlib.sha256(content).hexdigest()), answer
        assert proxy.accepted == 4
        assert one.errors.count("resumed") == 3


def test_a_web_server_is_told_from_an_edge(tmp_path: Path, the_edge: EdgeProgram) -> None:
    """nginx refuses the handshake of a client whose only protocol it does not know."""
    authority = trustme.CA()
    leaf = authority.issue_cert(DOMAIN)
    authority.cert_pem.write_to_path(tmp_path / "web-ca.pem")
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "web.pem")
    port = free_port()
    block = (
        f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {tmp_path}/web.pem; ssl_certificate_key {tmp_path}/web.pem; }}"
    )
    options = ["--ca-file", str(tmp_path / "web-ca.pem")]
    with nginx(tmp_path, http=block), agent(tmp_path, 1, the_edge, *options, url=tls(port), wait=False) as one:
        ends(one, 8, f"use https://{DOMAIN}:{port}")


def test_a_proxy_that_ends_tls_before_the_edge_is_told(tmp_path: Path, the_edge: EdgeProgram) -> None:
    """It knows nothing of ALPN, and would take what comes for a request: nothing may come."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(the_edge.state / "leaf.pem")
    heard = []

    def end_tls(connection: Connection) -> None:
        with suppress(OSError), context.wrap_socket(connection.sock, server_side=True) as stream:
            heard.append(stream.version())
            heard.append(stream.recv(65536))

    with RawHost(end_tls) as other, agent(tmp_path, 1, the_edge, url=tls(other.port), wait=False) as one:
        ends(one, 8, f"use https://{DOMAIN}:{other.port}")
    assert heard in (["TLSv1.3"], ["TLSv1.3", b""])


def test_a_certificate_that_is_not_trusted(tmp_path: Path, the_edge: EdgeProgram) -> None:
    with edge(tmp_path, state="other") as other, agent(tmp_path, 1, other, url=tls(the_edge.port), wait=False) as one:
        ends(one, 6, "certificate")


def test_what_cannot_be_reached_and_what_is_no_url(tmp_path: Path, the_edge: EdgeProgram) -> None:
    with agent(tmp_path, 1, the_edge, url=tls(free_port()), wait=False) as one:
        ends(one, 7, "cannot be reached")
    with agent(tmp_path, 1, the_edge, url=f"{tls(the_edge.port)}/path", wait=False) as one:
        ends(one, 2, "tls://HOST[:PORT]")
