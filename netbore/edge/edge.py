"""An Edge: its state directory, certificates and listeners around the core.

    async with netbore.Edge(EdgeConfig(state_dir=...)) as edge:
        print(edge.url)

The composition root: everything an Edge owns is opened here, nested, and closed in the reverse order. Listening sockets are
bound first, in one table, because the public address needs their ports; nothing is accepted until all else is ready.
"""

from __future__ import annotations

import logging
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from types import TracebackType

import attrs
import trio

from netbore.edge.certificates import CertificateError, Certificates, embedded, given
from netbore.edge.config import EdgeConfig
from netbore.edge.core import Core, open_core
from netbore.edge.front import redirect_to
from netbore.edge.services import operator_services
from netbore.edge.statedir import StateDirectory, StateError
from netbore.edge.tunnels import PublicAddress
from netbore.errors import ConfigError
from netbore.link.poller import open_poller
from netbore.link.tcp import TcpListener, TcpTransport, bind, listen
from netbore.link.tls import TlsTransport
from netbore.link.transport import TransportBroken
from netbore.proto.wire import ALPN

log = logging.getLogger("netbore.edge")


class Greeter:
    """The owner of a TLS transport until its handshake is done; then the protocol that was negotiated decides who gets it.

    Agents are received at the API host, or where no name was given (who dials an address sends none). The other names belong
    to Tunnels, and there only HTTP is spoken.
    """

    __slots__ = ("_api_host", "_core", "transport")

    def __init__(self, core: Core, context: ssl.SSLContext, api_host: str, inner: TcpTransport) -> None:
        self._core = core
        self._api_host = api_host.lower()
        self.transport = TlsTransport.server(core.poller, inner, context, self, lenient_eof=True)

    def on_open(self) -> None:
        facts = self.transport.facts
        if facts.alpn in (None, "http/1.1"):
            self._core.front.accept(self.transport, secure=True)
        elif facts.alpn == ALPN and (facts.server_name or self._api_host).lower() == self._api_host:
            self.transport.carry_link()
            self._core.door.accept(self.transport)
        else:
            log.debug("%s was asked for at %s, which is not the API host", facts.alpn, facts.server_name)
            self.transport.close()

    def on_failed(self, error: TransportBroken) -> None:
        log.debug("a TLS handshake failed: %s", error.reason)

    def on_readable(self) -> None:
        """Not watched for."""

    def on_writable(self) -> None:
        """Not watched for."""


@attrs.frozen
class Running:
    """What a running Edge consists of."""

    core: Core
    listeners: dict[str, TcpListener]
    certificates: Certificates
    url: str
    http_url: str | None


class Edge:
    """An Edge in this process. Use it with `async with`; leaving the block ends it at once, `drain` before that is gentle.

    Raises ConfigError when the state directory, a certificate or an address cannot be used.
    """

    def __init__(self, config: EdgeConfig) -> None:
        self.config = config
        self._manager: AbstractAsyncContextManager[Running] | None = None
        self._running: Running | None = None

    async def __aenter__(self) -> Edge:
        self._manager = _run(self.config)
        self._running = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._manager is not None
        self._running = None
        return await self._manager.__aexit__(kind, error, traceback)

    @property
    def running(self) -> Running:
        """The parts; only inside the `async with` block."""
        if self._running is None:
            raise RuntimeError("the Edge is not running: use `async with`")
        return self._running

    @property
    def url(self) -> str:
        """Where Agents connect: https://API-HOST:PORT."""
        return self.running.url

    @property
    def http_url(self) -> str | None:
        """The plain listener, if there is one."""
        return self.running.http_url

    @property
    def port(self) -> int:
        """The TLS listener's port."""
        return self.running.listeners["https"].address[1]

    def audit(self) -> None:
        """Raise AssertionError when something waits for a call that will never come."""
        core = self.running.core
        core.poller.audit()
        broken = [text for agent in core.door.links.values() for text in agent.link.session.audit()]
        assert not broken, "; ".join(broken)

    async def drain(self) -> None:
        """Wait until what is in flight has come to its end, at most `drain_seconds`, and then accept no more. A checkpoint.

        Until then connections are still accepted, because a Link that breaks has to be resumed; Viewers who come are refused.
        """
        running = self.running
        with trio.move_on_after(self.config.limits.drain_seconds):
            await running.core.drain()
        for listener in running.listeners.values():
            listener.close()


def _certificates(config: EdgeConfig, state: StateDirectory) -> Certificates:
    also = () if config.api == config.domain else (config.api,)
    if config.cert_file is not None and config.key_file is not None:
        return given(config.cert_file, config.key_file, config.domain, time.time, also)
    return embedded(state, config.domain, time.time, also)


def _open_state(config: EdgeConfig) -> tuple[StateDirectory, Certificates]:
    """What is on disk. Blocks. Raises ConfigError."""
    try:
        state = StateDirectory(config.state_dir, secrets.token_bytes)
        return state, _certificates(config, state)
    except (StateError, CertificateError) as error:
        raise ConfigError(str(error)) from error


def _bind(config: EdgeConfig, stack: ExitStack) -> dict[str, socket.socket]:
    """The listening sockets. Raises ConfigError."""
    wanted = {"https": config.listen, "http": config.http_listen}
    sockets = {}
    for name, address in wanted.items():
        if address is None:
            continue
        try:
            sockets[name] = stack.enter_context(bind(*address))
        except OSError as error:
            raise ConfigError(f"cannot listen on {address[0]}:{address[1]}: {error.strerror or error}") from error
    return sockets


@asynccontextmanager
async def _run(config: EdgeConfig) -> AsyncIterator[Running]:
    state, certificates = await trio.to_thread.run_sync(_open_state, config)
    with ExitStack() as stack:
        sockets = _bind(config, stack)
        port = sockets["https"].getsockname()[1]
        public = PublicAddress(config.domain, config.public_port or port, config.public_url_scheme)
        services = operator_services(state, public, clock=time.time, api_host=config.api, limits=config.limits.tunnels)
        limits = config.limits.poller
        async with (
            open_poller(limits=limits) as poller,
            open_core(poller, config, services, certificates.covers) as core,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(certificates.keep_fresh)
            stack.pop_all()  # the listeners own the sockets from here on
            listeners = _listen(sockets, config, core, certificates, public.port)
            yield Running(core, listeners, certificates, f"https://{config.api}:{port}", _http_url(config, sockets))
            nursery.cancel_scope.cancel()


def _http_url(config: EdgeConfig, sockets: dict[str, socket.socket]) -> str | None:
    return f"http://{config.api}:{sockets['http'].getsockname()[1]}" if "http" in sockets else None


def _listen(
    sockets: dict[str, socket.socket],
    config: EdgeConfig,
    core: Core,
    certificates: Certificates,
    public_port: int,
) -> dict[str, TcpListener]:
    """Begin to accept."""
    poller = core.poller
    plain = core.front
    if config.http == "redirect":
        plain = core.add_front(redirect_to(config.public_url_scheme, public_port))
    accept: dict[str, Callable[[TcpTransport], object]] = {
        "https": partial(Greeter, core, certificates.server_context(), config.api),
        "http": lambda transport: plain.accept(transport, secure=False),
    }
    return {name: listen(poller, "", 0, accept[name], sock=sock) for name, sock in sockets.items()}  # type: ignore[arg-type]
