"""The cut test once more, on real sockets: a proxy between Agent and Edge breaks the connection every 50 ms, on the real clock.

Theory of operation. Each connection that the proxy accepted is a `Line`: two tasks that copy, one for each direction. It can be
cut behind an exact byte, reset at both ends or at the Agent's only (then the Edge gets what was under way late), or stopped
without a word. The Link runs over plain TCP, and over WebSocket in TLS and in TLS alone as in production.
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from random import Random
from unittest.mock import patch

import pytest
import trio
import trustme

from netbore.agent.carrier import edge_dial
from netbore.agent.connect import ConnectLimits, Dial
from netbore.config import EdgeUrl
from netbore.edge.edge import Greeter
from netbore.link.dial import connect_tcp
from netbore.link.tcp import listen
from netbore.link.transport import Transport
from netbore.proto import heartbeat
from netbore.proto.wire import ALPN
from netbore.testing import DOMAIN, World, open_world
from tests.cuts import look_for_leaks
from tests.talkers import Traffic

SEED = 11
SECONDS = 4.0
EVERY = 0.05
#: Short, so that two silent breaks have room in a short test.
DEAD_SECONDS, SEND_SECONDS = 0.8, 0.2
CONNECT = ConnectLimits(
    dial_seconds=1, handshake_seconds=1, retry_first_seconds=0.002, retry_most_seconds=0.02, retry_reset_seconds=0
)
RESET = struct.pack("ii", 1, 0)


class Line:
    """One connection through the proxy."""

    def __init__(self, agent: trio.SocketStream, edge: trio.SocketStream) -> None:
        self.ends = (agent, edge)
        self.fuses: list[int | None] = [None, None]  # bytes until the cut, of each source
        self.late: bytearray | None = None  # what the Agent sent and the Edge gets later
        self.silent = trio.Event()
        self.broken = False

    async def copy(self, source: int) -> None:
        """Pass on what one end sends, until there is no more."""
        here, there = self.ends[source], self.ends[1 - source]
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await here.receive_some(16384):
                if self.silent.is_set():
                    await trio.sleep_forever()
                if self.late is not None:
                    self.late += data if source == 0 else b""
                    continue
                fuse = self.fuses[source]
                if fuse is not None and len(data) >= fuse:
                    await there.send_all(data[:fuse])
                    self.reset(0, 1)
                    return
                if fuse is not None:
                    self.fuses[source] = fuse - len(data)
                await there.send_all(data)
        if self.late is None:
            self.reset(0, 1)

    def reset(self, *which: int) -> None:
        """Close ends, so that their peers get a reset."""
        self.broken = True
        for end in which:
            sock = self.ends[end].socket
            if sock.fileno() >= 0:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()


class Proxy:
    """Accepts the Agent's connections, dials the Edge for each, and breaks the newest again and again."""

    def __init__(self, port: int, random: Random, nursery: trio.Nursery) -> None:
        self.edge_port = port
        self.random = random
        self.nursery = nursery
        self.lines: list[Line] = []
        self.breaks = self.late = 0
        self.ambush: tuple[int, int] | None = None  # of the next line: the source, and after how many bytes
        self.ambushes = 0

    async def serve(self, agent: trio.SocketStream) -> None:
        edge = await trio.open_tcp_stream("127.0.0.1", self.edge_port)
        line = Line(agent, edge)
        if self.ambush is not None:
            source, count = self.ambush
            line.fuses[source] = count
            self.ambush = None
            self.ambushes += 1
        self.lines.append(line)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.copy, 0)
                nursery.start_soon(line.copy, 1)
        finally:
            if line.late is None:
                line.reset(0, 1)

    async def run(self, seconds: float, upgrade: int) -> None:
        """Break for so long. `upgrade` bytes come before a handshake of ours, about."""
        count = int(seconds / EVERY)
        for number in range(count):
            await trio.sleep(EVERY)
            if not self.lines or self.lines[-1].broken:
                continue
            if number in (count // 3, count * 2 // 3):
                self.breaks += 1
                self.lines[-1].silent.set()
                await trio.sleep(DEAD_SECONDS)
                continue
            self._break(self.lines[-1])
            if self.random.random() < 0.4:
                self.ambush = self.random.randrange(2), self.random.randint(0, upgrade + 300)

    def _break(self, line: Line) -> None:
        self.breaks += 1
        roll = self.random.random()
        if roll < 0.5:
            line.fuses[self.random.randrange(2)] = int(200000 ** self.random.random())
        elif roll < 0.75:
            line.reset(0, 1)
        else:
            self.nursery.start_soon(self._break_agent, line)

    async def _break_agent(self, line: Line) -> None:
        """The Agent's end is reset; the Edge's gets the rest of what was under way, late."""
        line.late = late = bytearray()
        try:
            for _ in range(10):
                await trio.sleep(0.01)
                if late:
                    break
            line.reset(0)
            # At once, so that the Edge surely still has the old transport, or when a new one may have taken its place.
            await trio.sleep(self.random.choice((0.0, self.random.uniform(0, 0.01))))
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                sent = bytes(late)  # more of what the Agent sent may still be read meanwhile
                await line.ends[1].send_all(sent)
                self.late += len(sent)
                await trio.sleep(0.02)
        finally:
            line.reset(0, 1)


@pytest.fixture
def short_liveness() -> Iterator[None]:
    with patch.object(heartbeat, "DEAD_SECONDS", DEAD_SECONDS), patch.object(heartbeat, "SEND_SECONDS", SEND_SECONDS):
        yield


def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The Agent's context and the Edge's."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(DOMAIN).configure_cert(server)
    server.set_alpn_protocols([ALPN, "http/1.1"])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return client, server


def edge_port(world: World, carrier: str, context: ssl.SSLContext) -> int:
    """Where the Edge listens for the carrier."""
    poller, core = world.poller, world.core
    if carrier == "tcp":
        return listen(poller, "127.0.0.1", 0, core.door.accept).address[1]
    return listen(poller, "127.0.0.1", 0, lambda inner: Greeter(core, context, DOMAIN, inner) and None).address[1]


def dial_of(world: World, carrier: str, context: ssl.SSLContext, port: int) -> Dial:
    if carrier != "tcp":
        return edge_dial(world.poller, EdgeUrl(DOMAIN, port, {"wss": "https", "tls": "tls"}[carrier]), context)

    async def dial() -> Transport:
        return await connect_tcp(world.poller, "127.0.0.1", port)

    return dial


@pytest.mark.seconds(60)
@pytest.mark.usefixtures("short_liveness")
@pytest.mark.parametrize("carrier", ["tcp", "wss", "tls"])
async def test_every_byte_comes_over_real_sockets(carrier: str) -> None:
    client, server = certificates()
    resumed: list[str] = []
    async with trio.open_nursery() as nursery, open_world(SEED) as world:
        proxy = Proxy(edge_port(world, carrier, server), world.random, nursery)
        (listener,) = await nursery.start(partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        async with world.agent(limits=CONNECT, dial=dial_of(world, carrier, client, port)) as agent:
            tunnel = await agent.open_tunnel("demo")
            link = agent.link
            assert link is not None
            (edge,) = world.core.door.links.values()
            agent.on_event = lambda kind, fields: resumed.append(kind)
            traffic = Traffic(world.poller, edge.link, link, world.random, handle=tunnel.handle)
            traffic.largest = 1000000
            traffic.start()
            await proxy.run(SECONDS, upgrade=0 if carrier == "tcp" else 2000)
            traffic.stopping = True
            with trio.move_on_after(20):
                while not traffic.over and not traffic.errors:
                    await trio.sleep(0.05)
                    world.poller.audit()
                    assert edge.link.session.audit() == link.session.audit() == []
            if not traffic.over:
                print(*traffic.describe(), sep="\n", file=sys.stderr)  # noqa: T201 - what a hang needs to be understood
            assert traffic.errors == []
            assert traffic.over
            assert agent.link is link
            await trio.sleep(0.5)
            look_for_leaks(edge.link, link)
        assert world.poller.counters.crashes == 0
        nursery.cancel_scope.cancel()
    assert proxy.breaks > SECONDS / EVERY / 3
    assert resumed.count("resumed") > proxy.breaks / 2
    assert proxy.ambushes > proxy.breaks / 5
    assert proxy.late > 100
    assert traffic.wholes > 100
    assert traffic.heard > 1000000
