"""Dialling an Edge: how a Link is carried there, by the scheme of its URL, and what the failures mean.

https and http are a WebSocket, over TLS or without. tls is the Link in TLS alone, by ALPN; a server that does not choose
our protocol there is not spoken to, since it would take a Link's bytes for a broken request.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

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
from netbore.proto.wire import ALPN, LINK_PATH, SUBPROTOCOL

#: The protocol that is offered by ALPN, by scheme; http has no TLS to offer it in.
OFFERED: Final = {"https": "http/1.1", "tls": ALPN}
#: What OpenSSL calls the alert of a server that refuses the handshake because it does not know our protocol.
NO_PROTOCOL: Final = "NO_APPLICATION_PROTOCOL"


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """What we trust: the system's authorities, or those of `ca_file` alone. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file is not None else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the CA file {ca_file} cannot be used: {error}") from error


def edge_dial(poller: Poller, edge: EdgeUrl, context: ssl.SSLContext) -> Dial:
    """Dials `edge` for a Link, over the carrier that its scheme says. `context` is ours from now on: it offers what fits.

    What the returned function raises beside TransportBroken is final: EdgeUntrusted, VersionMismatch. It is a checkpoint;
    cancelling it leaves nothing open.
    """
    if edge.scheme in OFFERED:
        context.set_alpn_protocols([OFFERED[edge.scheme]])
    carry = _CARRIERS[edge.scheme]

    async def dial() -> Transport:
        transport: Transport = await connect_tcp(poller, edge.host, edge.port, options=LINK_OPTIONS)
        try:
            transport = carry(poller, transport, edge, context)
            await TransportWaiter(transport).opened()
            _check(transport, edge)
        except BaseException as error:
            transport.close(abort=True)
            if isinstance(error, TransportBroken):
                raise explained(error, edge) from error
            raise
        return transport

    return dial


def _plain(poller: Poller, inner: Transport, edge: EdgeUrl, context: ssl.SSLContext) -> Transport:
    return WebSocketTransport.client(poller, inner, host=edge.authority, path=edge.path or LINK_PATH)


def _tls(poller: Poller, inner: Transport, edge: EdgeUrl, context: ssl.SSLContext) -> Transport:
    return TlsTransport.client(poller, inner, context, server_name=edge.host)


def _wss(poller: Poller, inner: Transport, edge: EdgeUrl, context: ssl.SSLContext) -> Transport:
    return _plain(poller, _tls(poller, inner, edge, context), edge, context)


_CARRIERS: Final[dict[str, Callable[[Poller, Transport, EdgeUrl, ssl.SSLContext], Transport]]] = {
    "https": _wss,
    "http": _plain,
    "tls": _tls,
}


def _check(transport: Transport, edge: EdgeUrl) -> None:
    """Over TLS alone nothing but ALPN says that an Edge is there. Raises VersionMismatch."""
    if edge.scheme == "tls" and transport.facts.alpn != ALPN:
        raise no_edge(edge)


def explained(error: TransportBroken, edge: EdgeUrl) -> Exception:
    """The final error that a failed dial stands for, or the failure itself when it may be tried again."""
    if error.kind == "untrusted":
        return EdgeUntrusted(f"the Edge's certificate is not trusted: {error.reason}")
    if isinstance(error, UpgradeRefused) and error.answer.status == 426:
        spoken = ", ".join(error.answer.supported) or "other versions"
        return VersionMismatch(f"the Edge speaks {spoken}, and this Agent {SUBPROTOCOL}: update the older one")
    if edge.scheme == "tls" and error.kind == "tls" and NO_PROTOCOL in error.reason.upper().replace(" ", "_"):
        return no_edge(edge)
    return error


def no_edge(edge: EdgeUrl) -> VersionMismatch:
    """What answers at a tls:// URL does not speak the Link protocol."""
    return VersionMismatch(
        f"what answers at {edge.authority} does not speak {ALPN} in TLS: a web server, a proxy before the Edge, "
        f"or an Edge of another version; use https://{edge.authority}"
    )
