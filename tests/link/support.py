"""Pairs of transports of every kind, an owner that writes everything down, and waiting without sleeping."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from random import Random

import trio
import trio.testing
import trustme

from netbore.link.dial import connect_tcp
from netbore.link.memory import memory_pair
from netbore.link.poller import Poller, PollerLimits, open_poller
from netbore.link.simulated import Conditions, Network
from netbore.link.tcp import TcpTransport, listen
from netbore.link.tls import TlsTransport
from netbore.link.transport import Transport, TransportBroken
from netbore.link.waiter import TransportWaiter
from netbore.link.websocket import WebSocketTransport
from netbore.proto.http.codec import RequestReader
from netbore.proto.http.messages import Piece, RequestHead
from netbore.proto.websocket import accept_upgrade

KINDS = ["tcp", "tcp-tasks", "tls-tcp", "tls-memory", "tls-tls", "memory", "simulated"]
KINDS += ["ws-memory", "ws-tcp", "ws-tls-tcp", "ws-tls-memory", "ws-simulated"]
REAL = {"tcp", "tcp-tasks", "tls-tcp", "ws-tcp", "ws-tls-tcp"}
NAME = "demo.tunnel.localhost"


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(server)
    server.set_alpn_protocols(["netbore/1"])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    client.set_alpn_protocols(["netbore/1"])
    return client, server


def run(kind: str, scenario: Callable[..., Awaitable[None]], *args: object) -> None:
    """Run `scenario(*args)` under the clock that fits the kind, for at most ten seconds of it."""

    async def limited() -> None:
        with trio.fail_after(300 if kind not in REAL else 10):
            await scenario(*args)

    clock = None if kind in REAL else trio.testing.MockClock(autojump_threshold=0)
    trio.run(limited, clock=clock)


async def until(condition: Callable[[], object]) -> None:
    """Let others run until `condition()` holds; the clock of the run limits it."""
    fake = isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock)
    while not condition():
        if fake:
            await trio.sleep(0.001)
        else:
            await trio.lowlevel.checkpoint()


class Recorder:
    """An owner that reads what it can and writes down what happens."""

    def __init__(self, transport: Transport, *, read: bool = True, limit: int = 65536) -> None:
        self.transport = transport
        self.limit = limit
        self.received = bytearray()
        self.opened = self.eofs = self.writables = self.readables = 0
        self.eof = False
        self.failed: TransportBroken | None = None
        self.broken: TransportBroken | None = None
        self.unsent: bytes | memoryview = b""
        self._reading = read
        transport.owner = self
        transport.watch(read, False)

    def on_open(self) -> None:
        self.opened += 1

    def on_failed(self, error: TransportBroken) -> None:
        self.failed = error

    def on_readable(self) -> None:
        assert self.opened
        self.readables += 1
        try:
            data = self.transport.try_recv(self.limit)
        except TransportBroken as error:
            self.broken = error
            self.read(False)
            return
        if data:
            self.received += data
        elif data is not None:
            self.eof = True
            self.read(False)

    def on_writable(self) -> None:
        self.writables += 1
        self.push()

    def read(self, on: bool) -> None:
        self._reading = on
        self.transport.watch(on, bool(self.unsent))

    def send(self, data: bytes) -> None:
        self.unsent = memoryview(bytes(self.unsent) + data)
        self.push()

    def push(self) -> None:
        try:
            while self.unsent:
                count = self.transport.try_send(self.unsent)
                self.unsent = self.unsent[count:]
                if not count:
                    break
        except TransportBroken as error:
            self.broken = error
            self.unsent = b""
        self.transport.watch(self._reading, bool(self.unsent))


@asynccontextmanager
async def poller_for(kind: str, limits: PollerLimits | None = None) -> AsyncIterator[Poller]:
    async with open_poller("tasks" if kind == "tcp-tasks" else None, limits) as poller:
        yield poller


async def tcp_pair(poller: Poller) -> tuple[TcpTransport, TcpTransport]:
    accepted: list[TcpTransport] = []
    listener = listen(poller, "127.0.0.1", 0, accepted.append)
    near = await connect_tcp(poller, *listener.address)
    await until(lambda: accepted)
    listener.close()
    return near, accepted[0]


async def inner_pair(kind: str, poller: Poller) -> tuple[Transport, Transport]:
    if kind in {"tcp", "tcp-tasks", "tls-tcp"}:
        return await tcp_pair(poller)
    if kind in {"memory", "tls-memory", "tls-tls"}:
        return memory_pair(poller)
    network = Network(Random(1), Conditions(latency=(0.001, 0.02), segment=4000))
    accepted: list[Transport] = []
    network.listen(poller, "edge", 443, accepted.append)
    near = network.dial(poller, "edge", 443)
    await until(lambda: accepted and near.opened)
    return near, accepted[0]


def tls_over(poller: Poller, near: Transport, far: Transport) -> tuple[Transport, Transport]:
    client, server = contexts()
    far = TlsTransport.server(poller, far, server)
    return TlsTransport.client(poller, near, client, server_name=NAME), far


async def transport_pair(kind: str, poller: Poller) -> tuple[Transport, Transport]:
    near, far = await inner_pair(kind.removeprefix("ws-"), poller)
    for _ in range(kind.count("tls")):
        near, far = tls_over(poller, near, far)
    return await websocket_over(poller, near, far) if kind.startswith("ws-") else (near, far)


async def websocket_over(poller: Poller, near: Transport, far: Transport) -> tuple[WebSocketTransport, WebSocketTransport]:
    client = WebSocketTransport.client(poller, near, host=NAME, path="/.netbore/link")
    return client, await upgraded(poller, far)


async def upgraded(poller: Poller, inner: Transport) -> WebSocketTransport:
    """The server's form over `inner`, whose client asks for it."""
    waiter, reader = TransportWaiter(inner), RequestReader()
    await waiter.opened()
    pieces: list[Piece] = []
    while not pieces:
        pieces = reader.feed(await waiter.receive_some())
    head = pieces[0]
    assert isinstance(head, RequestHead)
    response = accept_upgrade(head)
    assert isinstance(response, bytes)
    return WebSocketTransport.server(poller, inner, response, reader.leftover())
