"""Hosts: what people may write, and dialling what they wrote."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import attrs
import pytest
import trio
import trio.testing
import trustme

from netbore.agent.targets import DIAL_SECONDS, KEEP_SECONDS, Dialler, HostAddress
from netbore.errors import ConfigError
from netbore.link.memory import MemoryTransport
from netbore.link.poller import Poller, open_poller
from netbore.link.simulated import Network
from netbore.link.socket_stream import TransportStream
from netbore.link.tcp import listen
from netbore.link.tls import TlsTransport
from netbore.link.transport import Owner, Transport, TransportBroken
from netbore.proto.wire import Code
from tests.link.support import Recorder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8000", HostAddress("localhost", 8000, False, "localhost:8000")),
        (" 8000 ", HostAddress("localhost", 8000, False, "localhost:8000")),
        ("app:3000", HostAddress("app", 3000, False, "app:3000")),
        ("127.0.0.1:3000", HostAddress("127.0.0.1", 3000, False, "127.0.0.1:3000")),
        ("[::1]:3000", HostAddress("::1", 3000, False, "[::1]:3000")),
        ("http://app", HostAddress("app", 80, False, "http://app")),
        ("http://App:80/", HostAddress("app", 80, False, "http://app")),
        ("http://app:81", HostAddress("app", 81, False, "http://app:81")),
        ("https://app", HostAddress("app", 443, True, "https://app")),
        ("https://[::1]:8443", HostAddress("::1", 8443, True, "https://[::1]:8443")),
        ("https://[::1]", HostAddress("::1", 443, True, "https://[::1]")),
    ],
)
def test_targets(text: str, expected: HostAddress) -> None:
    assert HostAddress.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no port"),
        ("app", "no port"),
        ("0", "out of range"),
        ("70000", "out of range"),
        ("::1:80", "brackets"),
        ("ftp://app", "ftp://"),
        ("http://app/path", "path"),
        ("http://user:secret@app", "never in a URL"),
        ("http://app?x", r"\?"),
        ("http://", "HOST"),
        ("http://a b", "host name"),
        ("a b:80", "host name"),
        ("http://app:x", "not a URL"),
    ],
)
def test_what_is_no_target(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        HostAddress.parse(text)
    assert "secret" not in str(caught.value)


class Sink:
    """The user of a Stream that is being dialled."""

    def __init__(self, stream: TransportStream) -> None:
        self.stream = stream
        self.received = b""
        self.code: int | None = None
        self.eof = False
        self.writable = trio.Event()
        self.over = trio.Event()
        stream.sink = self

    def on_data(self, data: bytes | memoryview) -> None:
        self.received += bytes(data)
        self.stream.consumed(len(data))

    def on_eof(self) -> None:
        self.eof = True

    def on_writable(self) -> None:
        self.writable.set()

    def on_stop(self, code: int) -> None: ...

    def on_reset(self, code: int, delivered: int = 0) -> None:
        self.code = code
        self.over.set()


@attrs.define
class World:
    """A simulated network, the addresses that were dialled, and names."""

    poller: Poller
    nursery: trio.Nursery
    network: Network
    dialled: list[str] = attrs.field(factory=list)
    asked: list[str] = attrs.field(factory=list)
    names: dict[str, Sequence[str]] = attrs.field(factory=dict)
    accepted: list[Recorder] = attrs.field(factory=list)
    #: Addresses that never answer.
    silent: set[str] = attrs.field(factory=set)

    def listen(self, host: str, port: int = 80) -> None:
        self.network.listen(self.poller, host, port, lambda transport: self.accepted.append(Recorder(transport)))

    def connect(self, poller: Poller, address: tuple[str, int], owner: Owner) -> Transport:
        self.dialled.append(address[0])
        if address[0] in self.silent:
            return MemoryTransport(poller, owner)
        return self.network.dial(poller, *address, owner)

    async def resolve(self, host: str, port: int) -> Sequence[tuple[int, tuple[str, int]]]:
        self.asked.append(host)
        if host not in self.names:
            raise TransportBroken("unreachable", f"{host} is not known")
        if not self.names[host]:
            await trio.sleep_forever()
        return [(0, (address, port)) for address in self.names[host]]

    def dialler(self, target: str) -> Dialler:
        return Dialler(self.poller, self.nursery, HostAddress.parse(target), connect=self.connect, resolve=self.resolve)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery, open_poller() as poller:
        yield World(poller, nursery, Network(Random(1)))
        poller.audit()
        nursery.cancel_scope.cancel()


async def test_bytes_wait_until_the_connection_stands(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as at:
        at.listen("192.0.2.1")
        stream = at.dialler("192.0.2.1:80").open()
        sink = Sink(stream)
        assert stream.send_nowait(b"hello") == 0
        assert not stream.writable
        await sink.writable.wait()
        assert stream.send_nowait(b"hello") == 5
        stream.send_eof()
        await trio.sleep(1)
        assert at.accepted[0].received == b"hello"
        assert at.accepted[0].eof
        at.accepted[0].send(b"hi")
        await trio.sleep(1)
        assert sink.received == b"hi"


async def test_an_end_before_the_connection_stands_is_told_then(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as at:
        at.listen("192.0.2.1")
        stream = at.dialler("192.0.2.1:80").open()
        Sink(stream)
        stream.send_eof()
        await trio.sleep(1)
        assert at.accepted[0].eof


async def test_a_refused_host(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as at:
        sink = Sink(at.dialler("192.0.2.1:80").open())
        await sink.over.wait()
        assert sink.code == Code.HOST_REFUSED


async def test_a_silent_host(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as at:
        at.silent.add("192.0.2.1")
        sink = Sink(at.dialler("192.0.2.1:80").open())
        started = trio.current_time()
        await sink.over.wait()
        assert sink.code == Code.HOST_TIMEOUT
        assert DIAL_SECONDS <= trio.current_time() - started <= DIAL_SECONDS + 0.5


async def test_no_socket_to_be_had(autojump_clock: trio.testing.MockClock) -> None:
    def connect(poller: Poller, address: tuple[str, int], owner: Owner) -> Transport:
        raise OSError(24, "Too many open files")

    async with world() as at:
        dialler = Dialler(at.poller, at.nursery, HostAddress("192.0.2.1", 80), connect=connect)
        sink = Sink(dialler.open())
        await sink.over.wait()
        assert sink.code == Code.HOST_CLOSED


async def test_localhost_is_both_loopbacks_and_the_one_that_worked_comes_first(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as at:
        at.listen("127.0.0.1", 8000)
        dialler = at.dialler("8000")
        for _ in range(2):
            sink = Sink(dialler.open())
            assert sink.stream.send_nowait(b"x") == 0
            await sink.writable.wait()
        assert at.dialled == ["::1", "127.0.0.1", "127.0.0.1"]
        assert not at.asked


async def test_a_name_is_asked_for_once_and_kept_for_a_while(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as at:
        at.names["app"] = ["192.0.2.1"]
        at.listen("192.0.2.1")
        dialler = at.dialler("app:80")
        sinks = [Sink(dialler.open()) for _ in range(3)]
        await trio.sleep(1)
        sinks.append(Sink(dialler.open()))
        assert at.dialled == ["192.0.2.1"] * 4, "a known address is dialled at once"
        await trio.sleep(1)
        assert len(at.accepted) == 4
        assert at.asked == ["app"]
        await trio.sleep(KEEP_SECONDS + 1)
        dialler.open()
        await trio.sleep(1)
        assert at.asked == ["app", "app"]


async def test_a_kept_address_that_fails_is_asked_for_anew(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as at:
        at.names["app"] = ["192.0.2.1"]
        at.listen("192.0.2.1")
        dialler = at.dialler("app:80")
        Sink(dialler.open())
        await trio.sleep(1)
        at.network.refuse("192.0.2.1", 80)
        at.names["app"] = ["192.0.2.2"]
        at.listen("192.0.2.2")
        sink = Sink(dialler.open())
        await trio.sleep(1)
        assert sink.code is None
        assert at.dialled == ["192.0.2.1", "192.0.2.1", "192.0.2.2"]
        assert len(at.accepted) == 2


async def test_a_silent_address_does_not_keep_the_next_one_waiting(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as at:
        at.names["app"] = ["192.0.2.1", "192.0.2.2"]
        at.silent.add("192.0.2.1")
        at.listen("192.0.2.2")
        sink = Sink(at.dialler("app:80").open())
        assert sink.stream.send_nowait(b"x") == 0
        await sink.writable.wait()
        assert trio.current_time() < 1
        assert sink.stream.send_nowait(b"x") == 1


async def test_an_unknown_name(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as at:
        sink = Sink(at.dialler("app:80").open())
        await sink.over.wait()
        assert sink.code == Code.HOST_UNREACHABLE


async def test_a_name_that_is_not_found_out_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as at:
        at.names["app"] = []
        dialler = at.dialler("app:80")
        sink = Sink(dialler.open())
        await sink.over.wait()
        assert sink.code == Code.HOST_TIMEOUT
        await trio.sleep(1)
        at.names["app"] = ["192.0.2.1"]
        at.listen("192.0.2.1")
        Sink(dialler.open())
        await trio.sleep(1)
        assert len(at.accepted) == 1


async def test_a_reset_while_dialling_leaves_nothing_open(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as at:
        at.names["app"] = ["192.0.2.1"]
        at.listen("192.0.2.1")
        for wait in (0.0, 0.0005, 0.0015):
            stream = at.dialler("app:80").open()
            sink = Sink(stream)
            await trio.sleep(wait)
            stream.reset(Code.CANCELLED)
            await trio.sleep(1)
            assert sink.code is None
        assert all(path.dialler.closed for path in at.network.paths)


# TLS, over real sockets: verification is on.


@attrs.frozen
class TlsHost:
    port: int
    trusting: ssl.SSLContext


@asynccontextmanager
async def tls_host(name: str) -> AsyncIterator[tuple[Poller, trio.Nursery, TlsHost]]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(name).configure_cert(server)
    authority.configure_trust(client)
    async with trio.open_nursery() as nursery, open_poller() as poller:
        held: list[TransportStream] = []

        def accept(transport: Transport) -> None:
            stream = TransportStream(poller, TlsTransport.server(poller, transport, server))
            stream.sink = Echo(stream)
            held.append(stream)

        listener = listen(poller, "127.0.0.1", 0, accept)
        yield poller, nursery, TlsHost(listener.address[1], client)
        poller.audit()
        nursery.cancel_scope.cancel()


class Echo:
    def __init__(self, stream: TransportStream) -> None:
        self._stream = stream

    def on_data(self, data: bytes | memoryview) -> None:
        self._stream.send_nowait(data)
        self._stream.consumed(len(data))

    def on_eof(self) -> None:
        self._stream.send_eof()

    def on_writable(self) -> None: ...

    def on_stop(self, code: int) -> None: ...

    def on_reset(self, code: int, delivered: int = 0) -> None: ...


async def test_an_https_host() -> None:
    async with tls_host("localhost") as (poller, nursery, host):
        dialler = Dialler(poller, nursery, HostAddress.parse(f"https://localhost:{host.port}"), context=host.trusting)
        sink = Sink(dialler.open())
        assert sink.stream.send_nowait(b"hello") == 0
        await sink.writable.wait()
        assert sink.stream.send_nowait(b"hello") == 5
        sink.stream.send_eof()
        while not sink.eof:
            await trio.lowlevel.checkpoint()
        assert sink.received == b"hello"


@pytest.mark.parametrize(("name", "trusted"), [("localhost", False), ("other.example", True)])
async def test_an_https_host_with_a_wrong_certificate(name: str, trusted: bool) -> None:
    async with tls_host(name) as (poller, nursery, host):
        context = host.trusting if trusted else None
        dialler = Dialler(poller, nursery, HostAddress.parse(f"https://localhost:{host.port}"), context=context)
        sink = Sink(dialler.open())
        await sink.over.wait()
        assert sink.code == Code.HOST_TLS


async def test_a_real_port_that_nobody_listens_on() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery, open_poller() as poller:
            sink = Sink(Dialler(poller, nursery, HostAddress.parse(f"localhost:{closed.getsockname()[1]}")).open())
            await sink.over.wait()
            assert sink.code in {Code.HOST_REFUSED, Code.HOST_UNREACHABLE}
            nursery.cancel_scope.cancel()
