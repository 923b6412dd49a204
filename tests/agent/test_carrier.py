"""Dialling an Edge in TLS alone: what is spoken to, what is not, and what the Agent says of it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

import netbore
from netbore.agent.carrier import edge_dial, trust
from netbore.config import EdgeUrl
from netbore.errors import EdgeUntrusted, NetboreError, VersionMismatch
from netbore.link.poller import Poller, open_poller
from netbore.link.tcp import TcpTransport, listen
from netbore.link.tls import TlsTransport
from netbore.link.transport import TransportBroken
from netbore.proto.wire import ALPN
from tests.link.support import Recorder, until

DOMAIN = "tunnel.localhost"
#: That of the alert no_application_protocol (RFC 7301).
NO_APPLICATION_PROTOCOL = 120

Setup = Callable[[ssl.SSLContext], None]


class Server:
    """A TLS server that is no Edge. It writes down what it hears."""

    def __init__(self, poller: Poller, directory: Path, *protocols: str, setup: Setup | None = None) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority = trustme.CA()
        authority.issue_cert(DOMAIN).configure_cert(self.context)
        if protocols:
            self.context.set_alpn_protocols(list(protocols))
        if setup is not None:
            setup(self.context)
        self.ca = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.connections: list[Recorder] = []
        self._poller = poller
        self.edge = EdgeUrl(DOMAIN, listen(poller, "127.0.0.1", 0, self._accept).address[1], "tls")

    def _accept(self, inner: TcpTransport) -> None:
        self.connections.append(Recorder(TlsTransport.server(self._poller, inner, self.context)))

    async def heard(self) -> bytes:
        """Everything from the only connection, once it is over."""
        (one,) = self.connections
        await until(lambda: one.failed or one.broken or one.eof)
        return bytes(one.received)


async def failure(server: Server, poller: Poller) -> Exception:
    """How an Agent's dial fails."""
    with pytest.raises((NetboreError, TransportBroken)) as caught:
        await edge_dial(poller, server.edge, trust(server.ca))()
    return caught.value


async def test_our_protocol_is_offered_alone_and_its_choice_opens_the_transport(tmp_path: Path) -> None:
    async with open_poller() as poller:
        server = Server(poller, tmp_path, "http/1.1", ALPN)
        transport = await edge_dial(poller, server.edge, trust(server.ca))()
        assert isinstance(transport, TlsTransport)
        assert transport.facts.alpn == ALPN
        assert transport.try_send(b"HELLO") == 5
        transport.close()
        assert await server.heard() == b"HELLO", "nothing came before"


@pytest.mark.parametrize("protocols", [(), ("http/1.1",), ("h2", "http/1.1"), ("netbore/2",)])
async def test_a_server_that_does_not_choose_it_hears_nothing(tmp_path: Path, protocols: tuple[str, ...]) -> None:
    async with open_poller() as poller:
        server = Server(poller, tmp_path, *protocols)
        error = await failure(server, poller)
        assert isinstance(error, VersionMismatch)
        assert f"use https://{server.edge.authority}" in str(error)
        assert await server.heard() == b""


@pytest.mark.parametrize(
    ("alert", "kind"), [(NO_APPLICATION_PROTOCOL, VersionMismatch), (ssl.ALERT_DESCRIPTION_INTERNAL_ERROR, TransportBroken)]
)
async def test_a_server_may_refuse_it_by_an_alert(tmp_path: Path, alert: int, kind: type[Exception]) -> None:
    """That one alert is final; what others say may pass."""

    def refuse(context: ssl.SSLContext) -> None:
        context.sni_callback = lambda *_: alert

    async with open_poller() as poller:
        assert isinstance(await failure(Server(poller, tmp_path, setup=refuse), poller), kind)


async def test_a_certificate_that_is_not_trusted_is_the_same_as_over_wss(tmp_path: Path) -> None:
    async with open_poller() as poller:
        server = Server(poller, tmp_path, ALPN)
        trustme.CA().cert_pem.write_to_path(server.ca)
        assert isinstance(await failure(server, poller), EdgeUntrusted)
        assert await server.heard() == b""


async def test_it_is_final_for_a_patient_agent_too(tmp_path: Path) -> None:
    async with open_poller() as poller:
        server = Server(poller, tmp_path)
        with pytest.raises(VersionMismatch):
            async with netbore.connect(str(server.edge), token="nbo_x", ca_file=server.ca) as agent:
                await agent.open_tunnel("demo")
        assert len(server.connections) == 1
