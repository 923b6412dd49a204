"""Dialling an Edge: TCP, TLS and the WebSocket upgrade, and what their failures mean."""

from __future__ import annotations

import ssl
from pathlib import Path

from netbore.agent.connect import Dial
from netbore.config import EdgeUrl
from netbore.errors import ConfigError, EdgeUntrusted, VersionMismatch
from netbore.link.dial import connect_tcp
from netbore.link.poller import Poller
from netbore.link.tcp import LINK_OPTIONS
from netbore.link.tls import TlsTransport
from netbore.link.transport import Transport, TransportBroken
from netbore.link.waiter import TransportWaiter
from netbore.link.websocket import UpgradeRefused, WebSocketTransport
from netbore.proto.wire import LINK_PATH, SUBPROTOCOL


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """What we trust: the system's authorities, or those of `ca_file` alone. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file is not None else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the CA file {ca_file} cannot be used: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def wss_dial(poller: Poller, edge: EdgeUrl, context: ssl.SSLContext) -> Dial:
    """Dials `edge` for a Link over a WebSocket; over TLS unless its URL is http.

    What the returned function raises beside TransportBroken is final: EdgeUntrusted, VersionMismatch.
    """
    default = 443 if edge.secure else 80
    host = f"[{edge.host}]" if ":" in edge.host else edge.host
    authority = host if edge.port == default else f"{host}:{edge.port}"

    async def dial() -> Transport:
        transport: Transport = await connect_tcp(poller, edge.host, edge.port, options=LINK_OPTIONS)
        try:
            if edge.secure:
                transport = TlsTransport.client(poller, transport, context, server_name=edge.host, link=True)
            transport = WebSocketTransport.client(poller, transport, host=authority, path=edge.path or LINK_PATH)
            await TransportWaiter(transport).opened()
        except BaseException as error:
            transport.close(abort=True)
            if isinstance(error, TransportBroken):
                raise explained(error) from error
            raise
        return transport

    return dial


def explained(error: TransportBroken) -> Exception:
    """The final error that a failed dial stands for, or the failure itself when it may be tried again."""
    if error.kind == "untrusted":
        return EdgeUntrusted(f"the Edge's certificate is not trusted: {error.reason}")
    if isinstance(error, UpgradeRefused) and error.answer.status == 426:
        spoken = ", ".join(error.answer.supported) or "other versions"
        return VersionMismatch(f"the Edge speaks {spoken}, and this Agent {SUBPROTOCOL}: update the older one")
    return error
