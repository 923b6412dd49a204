"""Who gets a connection to the Edge's TLS port: Viewers and Agents, by the protocol that ALPN chose. On real sockets."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

import netbore
from netbore.agent.agent import Agent, Tunnel, credential_of, run_agent
from netbore.agent.carrier import edge_dial, trust
from netbore.config import parse_edge_url
from netbore.edge.agents import AgentLink
from netbore.link.poller import open_poller
from netbore.link.stream import StreamAdapter
from netbore.link.tcp import TcpTransport
from netbore.link.tls import TlsTransport
from netbore.link.transport import Transport
from netbore.link.websocket import WebSocketTransport
from netbore.proto.handshake import FROM_ACCEPTOR, Credential, Handshake, Hello, Limits, Reject, encode
from netbore.proto.wire import ALPN, DEAD_SECONDS, MINOR, Code
from netbore.testing import DOMAIN
from tests.test_world import serve_quietly

REQUEST = f"GET / HTTP/1.1\r\nHost: demo.{DOMAIN}\r\n\r\n".encode()
HELLO = encode(
    Hello(minor=MINOR, credential=Credential("operator", "wrong"), instance="a" * 32, agent="stranger", limits=Limits())
)


def an_edge(state: Path, **more: object) -> netbore.Edge:
    config = netbore.EdgeConfig(
        state_dir=state,
        listen=("127.0.0.1", 0),
        http_listen=("127.0.0.1", 0),
        http="serve",
        **more,  # type: ignore[arg-type]
    )
    return netbore.Edge(config)


def over_tls(edge: netbore.Edge) -> str:
    """The URL that has an Agent dial in TLS alone."""
    return edge.url.replace("https://", "tls://")


@asynccontextmanager
async def linked(edge: netbore.Edge) -> AsyncIterator[tuple[Agent, Tunnel, AgentLink]]:
    """An Agent with a Link in TLS alone, its Tunnel `demo`, and the Link's end at the Edge."""
    state = edge.config.state_dir
    token = (state / "operator-token").read_text().strip()
    async with netbore.connect(over_tls(edge), token=token, ca_file=state / "ca.pem") as agent:
        tunnel = await agent.open_tunnel("demo")
        (link,) = edge.running.core.door.links.values()
        yield agent, tunnel, link


@asynccontextmanager
async def asking(edge: netbore.Edge, tunnel: Tunnel) -> AsyncIterator[tuple[trio.SocketStream, StreamAdapter]]:
    """A Viewer whose request is with the Host, and that Host's end of it."""
    async with await trio.open_tcp_stream(*edge.running.listeners["http"].address) as viewer:
        await viewer.send_all(REQUEST)
        host = await tunnel.accept()
        assert (await host.receive_some()).startswith(b"GET / ")
        yield viewer, host


@asynccontextmanager
async def dialled(
    edge: netbore.Edge, server_name: str | None, *protocols: str
) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    """Anybody's connection to the TLS port, its handshake done."""
    context = ssl.create_default_context(cafile=str(edge.config.state_dir / "ca.pem"))
    context.check_hostname = server_name is not None
    context.set_alpn_protocols(list(protocols))
    stream = await trio.open_tcp_stream("127.0.0.1", edge.port)
    tls = trio.SSLStream(stream, context, server_hostname=server_name, https_compatible=True)
    try:
        await tls.do_handshake()
        yield tls
    finally:
        await trio.aclose_forcefully(tls)


async def cut_and_resumed(agent: Agent, link: AgentLink) -> None:
    """Break the transport at the Edge, and wait until the Agent is back."""
    resumed = trio.Event()
    agent.on_event = lambda kind, fields: resumed.set() if kind == "resumed" else None
    link.fence("a test cuts")
    await resumed.wait()


async def received(viewer: trio.SocketStream, end: bytes) -> bytes:
    """What comes, until it ends so."""
    answer = b""
    while not answer.endswith(end):
        answer += await viewer.receive_some()
    return answer


# Links


async def test_a_link_in_tls_alone_is_a_links_socket_at_once(tmp_path: Path) -> None:
    async with an_edge(tmp_path) as edge, linked(edge) as (_, _, link):
        tls = link.link._transport
        assert isinstance(tls, TlsTransport)
        assert (tls.facts.alpn, tls.facts.server_name) == (ALPN, DOMAIN)
        assert not tls._lenient, "an end without close_notify is an error"
        tcp = tls._inner
        assert isinstance(tcp, TcpTransport)
        assert tcp._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == DEAD_SECONDS * 1000
        assert edge.running.listeners["https"]._open == 0, "Links do not count as Viewers"
        assert not edge.running.core.front.viewers
        edge.audit()


async def test_a_link_may_change_its_carrier(tmp_path: Path) -> None:
    """By WSS, by TLS alone and by WSS again, under one answer."""
    async with an_edge(tmp_path) as edge, open_poller() as poller:
        urls = [edge.url, over_tls(edge), edge.url]
        dials = [edge_dial(poller, parse_edge_url(url), trust(tmp_path / "ca.pem")) for url in urls]
        kinds = []

        async def next_dial() -> Transport:
            transport = await dials.pop(0)()
            kinds.append(type(transport))
            return transport

        credential = credential_of((tmp_path / "operator-token").read_text().strip())
        async with run_agent(poller, next_dial, credential, agent="test") as agent:
            tunnel = await agent.open_tunnel("demo")
            (link,) = edge.running.core.door.links.values()
            async with asking(edge, tunnel) as (viewer, host):
                await host.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nab")
                for part in (b"cd", b"ef"):
                    await cut_and_resumed(agent, link)
                    assert type(link.link._transport) is kinds[-1]
                    await host.send_all(part)
                assert (await received(viewer, b"ef")).endswith(b"\r\n\r\nabcdef")
        assert kinds == [WebSocketTransport, TlsTransport, WebSocketTransport]
        edge.audit()


async def test_an_edge_that_drains_still_resumes_links_in_tls_alone(tmp_path: Path) -> None:
    async with (
        an_edge(tmp_path) as edge,
        linked(edge) as (agent, tunnel, link),
        trio.open_nursery() as nursery,
        asking(edge, tunnel) as (viewer, host),
    ):
        nursery.start_soon(edge.drain)
        await trio.testing.wait_all_tasks_blocked()
        assert edge.running.core.front.draining
        await cut_and_resumed(agent, link)
        await host.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        assert (await received(viewer, b"hello")).startswith(b"HTTP/1.1 200 ")


# Who is who


async def test_viewers_and_links_share_the_port(tmp_path: Path) -> None:
    async with an_edge(tmp_path) as edge, linked(edge) as (_, tunnel, _), trio.open_nursery() as nursery:
        nursery.start_soon(serve_quietly, tunnel)
        for protocols in ([], ["http/1.1"], ["h2", "http/1.1"], ["h2"]):
            async with dialled(edge, f"demo.{DOMAIN}", *protocols) as viewer:
                await viewer.send_all(REQUEST)
                assert (await viewer.receive_some()).endswith(b"hello"), protocols
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", [DOMAIN, DOMAIN.upper(), None])
async def test_an_agent_is_heard_at_the_api_host_or_without_a_name(tmp_path: Path, name: str | None) -> None:
    async with an_edge(tmp_path) as edge, dialled(edge, name, ALPN) as stranger:
        await stranger.send_all(HELLO)
        answer = Handshake(FROM_ACCEPTOR).receive_data(await stranger.receive_some())
        assert isinstance(answer, Reject)
        assert answer.code == Code.UNAUTHORIZED
        assert await stranger.receive_some() == b""


async def test_at_other_names_only_http_is_spoken(tmp_path: Path) -> None:
    async with an_edge(tmp_path, api_host=f"api.{DOMAIN}") as edge:
        for name in (DOMAIN, f"demo.{DOMAIN}"):
            async with dialled(edge, name, ALPN) as stranger:
                assert await stranger.receive_some() == b"", name
        assert edge.running.core.door.pending == 0
        async with linked(edge) as (_, tunnel, _):
            assert tunnel.name == "demo"


async def test_http_is_not_spoken_to_who_asked_for_a_link(tmp_path: Path) -> None:
    async with an_edge(tmp_path) as edge, dialled(edge, DOMAIN, ALPN) as stranger:
        await stranger.send_all(REQUEST)
        answer = await stranger.receive_some()
        assert not answer.startswith(b"HTTP/")
        assert not edge.running.core.front.viewers
