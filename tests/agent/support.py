"""A whole path in memory: Viewers, the Edge, a Link, the Agent's relay, and a Host that closes when it likes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import attrs
import trio

from netbore.agent.host_relay import serve
from netbore.agent.targets import Dialler, HostAddress
from netbore.edge.front import Front
from netbore.edge.pool import PoolLimits
from netbore.edge.routes import Route, RouteTable
from netbore.edge.targets import HostLimits, HostTarget, link_opener
from netbore.link.link import Link
from netbore.link.memory import memory_pair
from netbore.link.poller import Poller, Timer, open_poller
from netbore.link.simulated import Conditions, Network
from netbore.link.socket_stream import TransportStream
from netbore.link.stream import StreamAdapter
from netbore.link.transport import Owner, Transport, TransportBroken
from netbore.proto.handshake import Limits
from netbore.proto.mux import Role
from netbore.proto.mux_stream import MuxStream
from netbore.proto.wire import Kind
from netbore.relay import Relay
from tests.link.quiet import Quiet
from tests.link.support import Recorder, until

TARGET = HostAddress("192.0.2.1", 80)


class Host:
    """A Host that reads requests with a Content-Length, echoes their bodies, and closes what is idle after `keep` seconds.

    `closing` chooses how it closes; by default in an orderly way.
    """

    def __init__(self, poller: Poller, keep: float, closing: Callable[[], str] = lambda: "fin") -> None:
        self._poller = poller
        self.keep = keep
        self.closing = closing
        self.connections = 0
        self.idle_closes = 0
        #: Bodies of the requests that were read whole, in order.
        self.served: list[bytes] = []

    def accept(self, transport: Transport) -> None:
        self.connections += 1
        HostConnection(self, self._poller, transport)


class HostConnection:
    def __init__(self, host: Host, poller: Poller, transport: Transport) -> None:
        self._host = host
        self._poller = poller
        self._transport = transport
        self._buffer = b""
        self._timer: Timer | None = None
        transport.owner = self
        transport.watch(True, False)
        self._idle()

    def on_open(self) -> None: ...

    def on_failed(self, error: TransportBroken) -> None: ...

    def on_writable(self) -> None: ...

    def on_readable(self) -> None:
        try:
            data = self._transport.try_recv(65536)
        except TransportBroken:
            data = b""
        if not data:
            if data is not None:
                self._busy()
                self._transport.close()
            return
        self._busy()
        self._buffer += data
        self._answer()

    def _answer(self) -> None:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        lengths = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = lengths[0] if lengths else 0
        if len(rest) < length:
            return
        body, self._buffer = rest[:length], rest[length:]
        self._host.served.append(body)
        self._transport.try_send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (length, body))
        self._idle()

    def _busy(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _idle(self) -> None:
        self._busy()
        self._timer = self._poller.call_at(self._poller.now + self._host.keep, self._close)

    def _close(self) -> None:
        self._host.idle_closes += 1
        how = self._host.closing()
        if how == "half":
            self._transport.send_eof()
        else:
            self._transport.close(abort=how == "abort")


@attrs.define
class Path:
    poller: Poller
    front: Front
    target: HostTarget
    host: Host
    edge: Link
    agent: Link
    done: list[Relay]

    def view(self) -> StreamAdapter:
        """A Viewer's connection."""
        near, far = memory_pair(self.poller)
        self.front.accept(far, secure=False)
        return StreamAdapter(TransportStream(self.poller, near))


async def simulated_links(poller: Poller, random: Random, latency: tuple[float, float]) -> tuple[Link, Link]:
    """An Edge's and an Agent's end of one Link over a simulated network."""
    network = Network(random, Conditions(latency=latency, segment=3000))
    accepted: list[Transport] = []
    network.listen(poller, "edge", 443, accepted.append)
    near = network.dial(poller, "edge", 443)
    await until(lambda: accepted and near.opened)
    ends = []
    for role, transport in ((Role.ACCEPTOR, accepted[0]), (Role.DIALLER, near)):
        link = Link(poller, role, Limits(), Limits(), Quiet(), name=role.name)
        link.attach(transport, 0)
        ends.append(link)
    return ends[0], ends[1]


def memory_connect(accept: Callable[[Transport], None]) -> Callable[[Poller, tuple[str, int], Owner], Transport]:
    """Dials that open at once; what one end sends is with the other end then."""

    def connect(poller: Poller, address: tuple[str, int], owner: Owner) -> Transport:
        near, far = memory_pair(poller)
        accept(far)
        near.owner = owner
        return near

    return connect


def network_connect(network: Network) -> Callable[[Poller, tuple[str, int], Owner], Transport]:
    def connect(poller: Poller, address: tuple[str, int], owner: Owner) -> Transport:
        return network.dial(poller, *address, owner)

    return connect


@asynccontextmanager
async def whole_path(
    random: Random,
    *,
    keep: float = 1.0,
    closing: Callable[[], str] = lambda: "fin",
    link_latency: tuple[float, float] = (0.01, 0.08),
    host_latency: tuple[float, float] | None = None,
) -> AsyncIterator[Path]:
    """`host_latency` None: what the Host does is with the Agent's kernel at once.

    The pool uses connections for longer than it has seen the Host keep them, so that awkward moments are met.
    """
    async with trio.open_nursery() as nursery, open_poller() as poller:
        host = Host(poller, keep, closing)
        edge, agent = await simulated_links(poller, random, link_latency)
        if host_latency is None:
            connect = memory_connect(host.accept)
        else:
            network = Network(random, Conditions(latency=host_latency))
            network.listen(poller, TARGET.host, TARGET.port, host.accept)
            connect = network_connect(network)
        dialler = Dialler(poller, nursery, TARGET, connect=connect)
        done: list[Relay] = []
        agent.on_stream = lambda stream: serve(poller, dialler, stream, done.append)
        target = HostTarget(poller, apex=b"tunnel.localhost", limits=HostLimits(pool=PoolLimits(patience=1000)))
        target.add(link_opener(edge, 1))
        routes = RouteTable()
        routes.put(Route(b"demo.tunnel.localhost", target))
        yield Path(poller, Front(poller, routes, edge_id="e1"), target, host, edge, agent, done)
        poller.audit()
        assert edge.session.audit() == agent.session.audit() == []
        nursery.cancel_scope.cancel()


class Told:
    """The Edge's end of one Stream: a sink that writes down what it is told."""

    def __init__(self, stream: MuxStream) -> None:
        self.stream = stream
        self.received = bytearray()
        self.events: list[str] = []
        self.code: int | None = None
        self.delivered = 0
        stream.sink = self

    def on_data(self, data: bytes | memoryview) -> None:
        self.received += data
        self.stream.consumed(len(data))

    def on_eof(self) -> None:
        self.events.append("eof")

    def on_writable(self) -> None: ...

    def on_stop(self, code: int) -> None:
        self.events.append("stop")

    def on_reset(self, code: int, delivered: int = 0) -> None:
        self.events.append("reset")
        self.code, self.delivered = code, delivered


@attrs.define
class Joined:
    """One Stream from an Edge's end to a Host's: `edge` is told what arrives there, `host` records at the far end."""

    poller: Poller
    edge: Told
    host: Recorder
    done: list[Relay]
    links: tuple[Link, Link]

    async def settle(self, seconds: float = 1.0) -> None:
        """Let everything that is under way arrive."""
        await trio.sleep(seconds)
        self.poller.audit()


@asynccontextmanager
async def one_stream(
    dress: Callable[[Poller, Transport, Transport], tuple[Transport, Transport]] | None = None,
) -> AsyncIterator[Joined]:
    """A Link in memory and a Stream on it, whose Host is a Recorder in memory, reached over what `dress` makes of it."""
    async with trio.open_nursery() as nursery, open_poller() as poller:
        hosts: list[Recorder] = []

        def connect(poller: Poller, address: tuple[str, int], owner: Owner) -> Transport:
            near, far = memory_pair(poller)
            if dress is not None:
                near, far = dress(poller, near, far)
            hosts.append(Recorder(far))
            near.owner = owner
            return near

        ends = []
        for role, transport in zip((Role.ACCEPTOR, Role.DIALLER), memory_pair(poller), strict=True):
            link = Link(poller, role, Limits(), Limits(), Quiet(), name=role.name)
            link.attach(transport, 0)
            ends.append(link)
        done: list[Relay] = []
        dialler = Dialler(poller, nursery, TARGET, connect=connect)
        ends[1].on_stream = lambda stream: serve(poller, dialler, stream, done.append)
        stream = ends[0].open(Kind.HTTP, 1)
        assert stream is not None
        told = Told(stream)
        await trio.sleep(0.1)
        yield Joined(poller, told, hosts[0], done, (ends[0], ends[1]))
        poller.audit()
        assert ends[0].session.audit() == ends[1].session.audit() == []
        nursery.cancel_scope.cancel()
