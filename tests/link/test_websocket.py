"""WebSocket as a transport: the upgrade, the ends, what is held; and both sides against an independent implementation."""

from __future__ import annotations

import hashlib
import json
import ssl
from functools import partial
from random import Random

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket, wrap_client_stream
from wsproto.frame_protocol import FrameProtocol, Opcode

from netbore.link.dial import connect_tcp
from netbore.link.memory import MemoryTransport, memory_pair
from netbore.link.poller import Poller, open_poller
from netbore.link.tcp import TcpTransport, listen
from netbore.link.tls import TlsTransport
from netbore.link.transport import Transport, TransportBroken
from netbore.link.websocket import DRAW, UpgradeRefused, WebSocketTransport, keys, masker, slow_masker
from netbore.proto.http.messages import RequestHead
from netbore.proto.websocket import Refusal, accept_upgrade
from netbore.proto.wire import FLUSH_MOST
from tests.link.support import NAME, Recorder, contexts, poller_for, run, until, upgraded

PATH = "/.netbore/link"
BULK = Random(7).randbytes(3_000_000)


class RawClient(Recorder):
    """A client's side that writes single frames, by wsproto, onto the inner transport of a server's form."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self.frames = FrameProtocol(client=True, extensions=[])

    def heard(self) -> list[tuple[Opcode, object]]:
        reader = FrameProtocol(client=True, extensions=[])
        reader.receive_bytes(bytes(self.received))
        return [(frame.opcode, frame.payload) for frame in reader.received_frames()]


async def raw_pair(
    poller: Poller, leftover: bytes = b"", *, read: bool = True, capacity: int = 65536
) -> tuple[RawClient, Recorder]:
    near, far = memory_pair(poller, capacity=capacity)
    client = RawClient(near)
    server = Recorder(WebSocketTransport.server(poller, far, b"", leftover), read=read)
    await until(lambda: server.opened)
    return client, server


async def client_of(poller: Poller) -> tuple[Recorder, Recorder, MemoryTransport]:
    """Our client's form, the raw server at its other end, and the transport inside the client's."""
    near, far = memory_pair(poller)
    client = Recorder(WebSocketTransport.client(poller, near, host=NAME, path=PATH))
    server = Recorder(far)
    await until(lambda: server.received.endswith(b"\r\n\r\n"))
    return client, server, near


# --- the upgrade ---


def test_a_refusal_is_told_with_what_the_edge_speaks() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server, near = await client_of(poller)
            answer = accept_upgrade(RequestHead(b"GET", b"/", 1, parsed(server.received)), ("netbore.v9",))
            assert isinstance(answer, Refusal)
            lines = [b"%s: %s" % pair for pair in answer.head.headers]
            server.send(b"\r\n".join([b"HTTP/1.1 426 Upgrade Required", *lines, b"", answer.body]))
            await until(lambda: client.failed)
            assert isinstance(client.failed, UpgradeRefused)
            assert client.failed.kind == "refused"
            assert client.failed.answer.status == 426
            assert client.failed.answer.supported == ("netbore.v9",)
            assert client.failed.answer.detail == json.loads(answer.body)["detail"]
            assert near.closed
            assert not client.opened

    run("memory", scenario)


def parsed(text: bytearray) -> tuple[tuple[bytes, bytes], ...]:
    lines = bytes(text).split(b"\r\n")[1:-2]
    return tuple((name, value) for name, _, value in (line.partition(b": ") for line in lines))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"SSH-2.0-x\r\n\r\n", "protocol"),
        (b"HTTP/1.1 101 Yes\r\n\r\n", "protocol"),
        (b"x" * 9000, "protocol"),
        (b"HTTP/1.1 1", "truncated"),
    ],
)
def test_a_bad_answer_or_none_fails(said: bytes, kind: str) -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server, near = await client_of(poller)
            server.send(said)
            server.transport.send_eof()
            await until(lambda: client.failed)
            assert client.failed is not None
            assert client.failed.kind == kind
            assert near.closed

    run("memory", scenario)


def test_a_refusal_that_ends_with_the_connection_is_a_refusal() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server, _ = await client_of(poller)
            server.send(b"HTTP/1.1 502 Bad Gateway\r\n\r\nsorry")
            await trio.sleep(0.1)
            assert client.failed is None
            server.transport.send_eof()
            await until(lambda: client.failed)
            assert isinstance(client.failed, UpgradeRefused)
            assert client.failed.answer.status == 502

    run("memory", scenario)


def test_a_reset_before_the_answer_fails() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server, _ = await client_of(poller)
            server.transport.close(abort=True)
            await until(lambda: client.failed)
            assert client.failed is not None
            assert client.failed.kind == "reset"

    run("memory", scenario)


def test_silence_fails_at_the_deadline() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, _, near = await client_of(poller)
            start = trio.current_time()
            await until(lambda: client.failed)
            assert client.failed is not None
            assert client.failed.kind == "timeout"
            assert near.closed
            assert 9.9 < trio.current_time() - start < 10.6

    run("memory", scenario)


def test_a_failure_inside_is_passed_on() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            near, far = memory_pair(poller)
            inner = TlsTransport.client(poller, near, contexts()[0], server_name=NAME)
            client = Recorder(WebSocketTransport.client(poller, inner, host=NAME, path=PATH))
            Recorder(far).send(b"no TLS at all, not a bit")
            await until(lambda: client.failed)
            assert client.failed is not None
            assert client.failed.kind == "tls"

    run("memory", scenario)


def test_a_host_that_http_does_not_allow_leaves_the_inner_transport_alone() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            near, far = memory_pair(poller)
            with pytest.raises(ValueError, match="upgrade request"):
                WebSocketTransport.client(poller, near, host=NAME, path="/a b")
            ours, theirs = Recorder(near), Recorder(far)
            ours.send(b"plain")
            await until(lambda: theirs.received == b"plain")

    run("memory", scenario)


def test_a_server_form_that_is_closed_at_once_never_opens() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            near, far = memory_pair(poller)
            client = Recorder(near)
            server = Recorder(WebSocketTransport.server(poller, far, b"HTTP/1.1 101"))
            server.transport.close()
            await until(lambda: client.eof)
            assert not client.received
            assert not server.opened

    run("memory", scenario)


def test_bytes_behind_the_upgrade_come_piece_by_piece_with_their_end() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            frames = FrameProtocol(client=True, extensions=[])
            leftover = bytes(frames.send_data(b"0123456789") + frames.close(1000))
            _, server = await raw_pair(poller, leftover, read=False)
            server.limit = 4
            before = server.readables
            server.read(True)
            await until(lambda: server.eof)
            assert server.received == b"0123456789"
            assert server.readables - before == 4
            poller.audit()

    run("memory", scenario)


# --- the ends ---


def test_an_end_without_a_close_frame_is_an_error() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server = await raw_pair(poller)
            client.send(bytes(client.frames.send_data(b"some")))
            client.transport.send_eof()
            await until(lambda: server.broken)
            assert server.received == b"some"
            assert server.broken is not None
            assert server.broken.kind == "truncated"
            assert not server.eof

    run("memory", scenario)


@pytest.mark.parametrize(("code", "clean"), [(1000, True), (1001, True), (None, True), (1011, False), (4000, False)])
def test_a_close_frame_is_an_end_when_its_code_says_so(code: int | None, clean: bool) -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server = await raw_pair(poller)
            client.send(bytes(client.frames.send_data(b"last") + client.frames.close(code)))
            await until(lambda: server.eof or server.broken)
            assert server.received == b"last"
            assert server.eof is clean
            assert (server.broken is None) is clean
            server.send(b"answer")
            server.transport.send_eof()
            await until(lambda: client.eof)
            assert client.heard() == [(Opcode.BINARY, b"answer"), (Opcode.CLOSE, (code or 1005, ""))]
            poller.audit()

    run("memory", scenario)


def test_a_breach_is_answered_and_ends_the_transport() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server = await raw_pair(poller)
            client.send(bytes(client.frames.send_data(b"good") + client.frames.send_data("a text")))
            await until(lambda: server.broken)
            assert server.received == b"good"
            assert server.broken is not None
            assert server.broken.kind == "protocol"
            assert "a text" not in server.broken.reason.replace("a text message", "")
            await until(lambda: client.received)
            assert client.heard() == [(Opcode.CLOSE, (1003, ""))]
            with pytest.raises(TransportBroken):
                server.transport.try_send(b"more")

    run("memory", scenario)


def test_a_plain_close_says_goodbye_and_an_abort_does_not() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server = await raw_pair(poller)
            server.transport.close()
            await until(lambda: client.eof)
            assert client.heard() == [(Opcode.CLOSE, (1000, ""))]
            client, server = await raw_pair(poller)
            server.transport.close(abort=True)
            await until(lambda: client.broken)
            assert not client.received

    run("memory", scenario)


def test_nothing_is_taken_behind_our_own_end() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server = await raw_pair(poller)
            server.transport.send_eof()
            with pytest.raises(TransportBroken):
                server.transport.try_send(b"more")
            client.send(bytes(client.frames.ping() + client.frames.send_data(b"still heard")))
            await until(lambda: server.received == b"still heard")
            assert client.heard() == [(Opcode.CLOSE, (1000, ""))]

    run("memory", scenario)


# --- what is held ---


def test_a_message_is_one_flush_at_most_and_never_torn_by_an_answer() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server = await raw_pair(poller, capacity=1000)
            client.read(False)
            data = bytes(range(256)) * 1100
            assert server.transport.try_send(data) == FLUSH_MOST
            assert server.transport.try_send(data) == 0
            assert server.transport.draining
            client.send(bytes(client.frames.ping(b"now?")))
            server.transport.send_eof()
            for _ in range(20):
                await trio.sleep(0.01)
            assert not client.received
            server.transport.watch(True, True)
            assert server.writables == 0
            client.read(True)
            await until(lambda: client.eof)
            assert not server.transport.draining
            await until(lambda: server.writables)
            heard = client.heard()
            payload = b"".join(part for opcode, part in heard if opcode is Opcode.BINARY and isinstance(part, bytes))
            assert payload == data[:FLUSH_MOST]
            assert heard[-1] == (Opcode.CLOSE, (1000, ""))
            poller.audit()

    run("memory", scenario)


def test_a_ping_is_answered_behind_the_message_that_is_held() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server = await raw_pair(poller, capacity=1000)
            client.read(False)
            server.send(bytes(5000))
            client.send(bytes(client.frames.ping(b"now?") + client.frames.send_data(b"x")))
            await until(lambda: server.received == b"x")
            client.read(True)
            await until(
                lambda: not server.transport.draining and not server.unsent and client.heard()[-1:] == [(Opcode.PONG, b"now?")]
            )

    run("memory", scenario)


def test_what_breaks_while_something_is_held_is_told_to_who_wants_to_write() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server = await raw_pair(poller, capacity=1000)
            server.send(bytes(200000))
            assert server.transport.draining
            client.transport.close(abort=True)
            await until(lambda: server.broken)
            assert server.broken is not None
            assert server.broken.kind == "reset"
            with pytest.raises(TransportBroken):
                server.transport.try_send(b"x")

    run("memory", scenario)


def test_the_compiled_masker_and_the_slow_one_agree() -> None:
    for size in (0, 1, 3, 4, 17, 1000):
        data = BULK[:size]
        assert masker()(memoryview(data), b"\x01\x80\xfe\x00") == slow_masker(memoryview(data), b"\x01\x80\xfe\x00")
    assert slow_masker(b"\x01\x02\x03\x04\x05", b"\x01\x02\x03\x04") == b"\x00\x00\x00\x00\x04"


def test_keys_are_fresh_over_several_draws() -> None:
    stream = keys()
    drawn = [next(stream) for _ in range(DRAW)]
    assert {len(key) for key in drawn} == {4}
    assert len(set(drawn)) > DRAW - 5


def test_unsent_counts_what_is_held_here_and_below() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server = await raw_pair(poller, capacity=1000)
            transport = server.transport
            assert isinstance(transport, WebSocketTransport)
            assert transport.unsent() is False
            client.read(False)
            server.send(bytes(5000))
            assert transport.unsent() is True
            client.read(True)
            await until(lambda: not transport.draining)
            assert transport.unsent() is False

    run("memory", scenario)


def test_what_arrives_for_an_owner_that_does_not_read_waits() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            leftover = bytes(FrameProtocol(client=True, extensions=[]).send_data(b"early"))
            _, server = await raw_pair(poller, leftover)
            await until(lambda: server.received == b"early")
            client, server = await raw_pair(poller, leftover, read=False)
            server.read(True)
            server.read(False)  # on the ready list already, and not wanted any more
            client.send(bytes(client.frames.send_data(b" and late")))
            await trio.sleep(0.1)
            assert not server.received
            assert server.transport.try_recv(100) == b"early"
            assert server.transport.try_recv(100) == b" and late"
            assert server.transport.try_recv(100) is None

    run("memory", scenario)


# --- an independent implementation ---


class Echo:
    """Sends back what comes, and ends when the peer does."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.waiting = b""
        self.eof = False
        self.done = False
        transport.owner = self

    def on_open(self) -> None:
        self.transport.watch(True, False)

    def on_failed(self, error: TransportBroken) -> None:
        raise AssertionError(error.reason)

    def on_readable(self) -> None:
        data = self.transport.try_recv(65536)
        if data == b"":
            self.eof = True
        self.waiting += data or b""
        self.on_writable()

    def on_writable(self) -> None:
        while self.waiting and (count := self.transport.try_send(self.waiting)):
            self.waiting = self.waiting[count:]
        self.transport.watch(not self.waiting and not self.eof, bool(self.waiting))
        if self.eof and not self.waiting and not self.done:
            self.done = True
            self.transport.send_eof()


async def trio_stream(address: tuple[str, int], secure: bool) -> trio.abc.Stream:
    stream: trio.abc.Stream = await trio.open_tcp_stream(*address)
    return trio.SSLStream(stream, contexts()[0], server_hostname=NAME) if secure else stream


async def send_in_pieces(connection: WebSocketConnection, data: bytes) -> None:
    random, at = Random(3), 0
    while at < len(data):
        size = random.choice([1, 100, 5000, 200000])
        await connection.send_message(data[at : at + size])
        at += size


async def receive_whole(connection: WebSocketConnection, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        message = await connection.get_message()
        assert isinstance(message, bytes)
        received += message
    return bytes(received)


@pytest.mark.seconds(30)
@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
async def test_an_independent_client_has_megabytes_echoed_by_our_server(secure: bool) -> None:
    accepted: list[TcpTransport] = []
    async with open_poller() as poller, trio.open_nursery() as nursery:
        listener = listen(poller, "127.0.0.1", 0, accepted.append)
        echoes: list[Echo] = []

        async def serve() -> None:
            await until(lambda: accepted)
            inner = TlsTransport.server(poller, accepted[0], contexts()[1]) if secure else accepted[0]
            echoes.append(Echo(await upgraded(poller, inner)))

        nursery.start_soon(serve)
        stream = await trio_stream(listener.address, secure)
        connection = await wrap_client_stream(nursery, stream, NAME, PATH, subprotocols=["netbore.v1"])
        assert connection.subprotocol == "netbore.v1"
        nursery.start_soon(send_in_pieces, connection, BULK)
        received = await receive_whole(connection, len(BULK))
        assert hashlib.sha256(received).digest() == hashlib.sha256(BULK).digest()
        await connection.ping(b"are you there")
        await connection.aclose(1001, "going")
        assert echoes[0].done
        assert connection.closed is not None
        assert connection.closed.code == 1001
        poller.audit()


async def echo_messages(request: WebSocketRequest) -> None:
    """Echo until the peer's end, which raises ConnectionClosed."""
    assert "netbore.v1" in request.proposed_subprotocols
    connection = await request.accept(subprotocol="netbore.v1")
    for _ in range(10):
        await connection.send_message(await connection.get_message())
        await connection.ping()
    while True:
        await connection.send_message(await connection.get_message())


@pytest.mark.seconds(30)
@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
async def test_our_client_has_megabytes_echoed_by_an_independent_server(secure: bool) -> None:
    context: ssl.SSLContext | None = contexts()[1] if secure else None
    async with open_poller() as poller, trio.open_nursery() as nursery:
        ends: list[int] = []

        async def handle(request: WebSocketRequest) -> None:
            with pytest.raises(ConnectionClosed) as closed:
                await echo_messages(request)
            assert closed.value.reason is not None
            ends.append(closed.value.reason.code)

        # A queue with room for all: its reader must come to the pongs that the echo waits for.
        serve = partial(serve_websocket, message_queue_size=1000)
        server = await nursery.start(serve, handle, "127.0.0.1", 0, context)
        inner: Transport = await connect_tcp(poller, "127.0.0.1", server.port)
        if secure:
            inner = TlsTransport.client(poller, inner, contexts()[0], server_name=NAME)
        transport = WebSocketTransport.client(poller, inner, host=f"{NAME}:{server.port}", path=PATH)
        client = Recorder(transport)
        await until(lambda: client.opened)
        client.send(BULK)
        await until(lambda: len(client.received) == len(BULK))
        assert hashlib.sha256(client.received).digest() == hashlib.sha256(BULK).digest()
        assert transport.facts.peer == ("127.0.0.1", server.port)
        transport.send_eof()
        await until(lambda: client.eof or client.broken)
        assert client.eof
        await until(lambda: ends)
        assert ends == [1000]
        transport.close()
        poller.audit()
        nursery.cancel_scope.cancel()
