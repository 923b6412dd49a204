"""A transport as a Stream: what the face promises."""

from __future__ import annotations

import pytest
import trio

from netbore.link.base import READ, READ_MOST
from netbore.link.memory import memory_pair
from netbore.link.poller import Poller
from netbore.link.socket_stream import TransportStream
from netbore.link.tcp import TcpTransport
from netbore.link.transport import Transport, TransportBroken
from netbore.proto.errors import LocalProtocolError
from netbore.proto.stream import SOCKET_WINDOW, Data, Stream
from netbore.proto.wire import Code
from tests.link.support import KINDS, REAL, Recorder, poller_for, run, tcp_pair, transport_pair, until

BULK = bytes(range(256)) * 4096


class Notes:
    """A sink that writes everything down, and consumes unless told not to."""

    def __init__(self, stream: Stream, *, consume: bool = True) -> None:
        self.stream = stream
        self.consume = consume
        self.received = bytearray()
        self.eof = False
        self.writables = 0
        self.stops: list[int] = []
        self.resets: list[tuple[int, int]] = []
        stream.sink = self

    def on_data(self, data: Data) -> None:
        assert not (self.eof)
        assert not (self.resets)
        self.received += data
        if self.consume:
            self.stream.consumed(len(data))

    def on_eof(self) -> None:
        assert not (self.eof)
        assert not (self.resets)
        self.eof = True

    def on_writable(self) -> None:
        assert not self.resets
        self.writables += 1

    def on_stop(self, code: int) -> None:
        assert not self.resets
        self.stops.append(code)

    def on_reset(self, code: int, delivered: int = 0) -> None:
        assert not self.resets
        self.resets.append((code, delivered))


async def stream_and_peer(kind: str, poller: Poller, *, consume: bool = True) -> tuple[TransportStream, Notes, Recorder]:
    near, far = await transport_pair(kind, poller)
    stream = TransportStream(poller, near)
    notes, peer = Notes(stream, consume=consume), Recorder(far)
    await until(lambda: near.opened and peer.opened)  # type: ignore[attr-defined]
    return stream, notes, peer


def closed(transport: Transport) -> bool:
    return bool(transport.closed)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_data_and_both_ends(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            gone: list[TransportStream] = []
            stream, notes, peer = await stream_and_peer(kind, poller)
            stream.on_closed = gone.append
            assert stream.send_nowait(b"question") == 8
            stream.send_eof()
            assert not stream.sending
            await until(lambda: peer.eof)
            assert peer.received == b"question"
            peer.send(b"answer")
            peer.transport.send_eof()
            await until(lambda: notes.eof)
            assert notes.received == b"answer"
            await until(lambda: gone)
            assert gone == [stream]
            assert closed(stream.transport)
            assert notes.resets == notes.stops == []

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_accepted_stays_and_is_offered_again(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            stream, notes, peer = await stream_and_peer(kind, poller)
            peer.read(False)
            total = left = BULK * (8 if kind in REAL else 2)

            def push() -> None:
                nonlocal left
                while left and (count := stream.send_nowait(left)):
                    left = left[count:]

            push()
            assert not stream.writable
            peer.read(True)
            while left:
                before = notes.writables
                await until(lambda before=before: notes.writables > before)  # type: ignore[misc]
                push()
            await until(lambda: len(peer.received) == len(total))
            assert peer.received == total
            assert stream.sent == len(total)

    run(kind, scenario)


def test_a_peer_that_fills_its_reads_gets_larger_ones_until_it_does_not() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            near, far = memory_pair(poller, capacity=2 * READ_MOST)
            stream, peer = TransportStream(poller, near), Recorder(far)
            sizes: list[int] = []

            class Sizes(Notes):
                def on_data(self, data: Data) -> None:
                    sizes.append(len(data))
                    super().on_data(data)

            notes = stream.sink = Sizes(stream)
            for end in (7 * READ + 10, 14 * READ + 20):
                sizes.clear()
                peer.send(BULK[: 7 * READ + 10])
                await until(lambda end=end: len(notes.received) == end)  # type: ignore[misc]
                assert sizes == [READ, 2 * READ, READ_MOST, 10]

    run("memory", scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unread_window_stops_the_reading_and_consuming_starts_it(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            stream, notes, peer = await stream_and_peer(kind, poller, consume=False)
            peer.send(BULK * 2)
            await until(lambda: len(notes.received) >= SOCKET_WINDOW)
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            held = len(notes.received)
            assert held < SOCKET_WINDOW + READ_MOST
            poller.audit()
            stream.consumed(held // 4)
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            assert len(notes.received) == held, "it resumes above the low mark"
            notes.consume = True
            stream.consumed(held - held // 4)
            await until(lambda: len(notes.received) == 2 * len(BULK))
            assert notes.received == BULK * 2

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_pause_holds_data_and_end_back(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            stream, notes, peer = await stream_and_peer(kind, poller)
            stream.pause()
            peer.send(b"later")
            peer.transport.send_eof()
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            assert not (notes.received)
            assert not (notes.eof)
            stream.resume()
            await until(lambda: notes.eof)
            assert notes.received == b"later"

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_of_the_peer_ends_both_halves(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            stream, notes, peer = await stream_and_peer(kind, poller)
            stream.send_nowait(b"12345")
            await until(lambda: peer.received)
            peer.transport.close(abort=True)
            await until(lambda: notes.resets)
            assert notes.resets == [(Code.HOST_CLOSED, 5)]
            assert not (stream.sending)
            assert not (stream.receiving)
            assert stream.send_nowait(b"more") == 4
            assert closed(stream.transport)

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_our_reset_is_silent_here_and_an_error_there(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            stream, notes, peer = await stream_and_peer(kind, poller)
            stream.reset(Code.CANCELLED)
            stream.reset(Code.CANCELLED)
            await until(lambda: peer.broken or peer.eof)
            assert peer.broken is not None
            assert notes.resets == notes.stops == []
            stream.send_eof()
            stream.stop()

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_that_stands_for_the_host_s_end_lets_accepted_bytes_go_first(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            stream, _, peer = await stream_and_peer(kind, poller)
            sent = stream.send_nowait(BULK[:200000])
            stream.reset(Code.HOST_CLOSED)
            await until(lambda: peer.broken or peer.eof)
            assert peer.broken is not None, "a cut answer looks whole"
            assert peer.received == BULK[:sent]

    run(kind, scenario)


def test_the_end_after_a_failed_send_is_a_reset_and_the_answer_is_not_lost() -> None:
    async def scenario() -> None:
        async with poller_for("tcp") as poller:
            near, far = await tcp_pair(poller)
            stream = TransportStream(poller, near)
            notes = Notes(stream)
            await until(lambda: near.opened and far.opened)
            stream.pause()
            far.try_send(b"early answer")
            far.close()  # nothing unread there: FIN, and RST only for what comes later
            await until(lambda: stream.send_nowait(b"x") and not stream.sending)
            await until(lambda: notes.stops)
            assert notes.stops == [Code.HOST_CLOSED]
            assert stream.receiving
            stream.resume()
            await until(lambda: notes.resets)
            assert not notes.eof
            assert notes.resets[0][0] == Code.HOST_CLOSED

    run("tcp", scenario)


def test_the_answer_before_a_failed_send_arrives() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            near, far = memory_pair(poller)
            stream = TransportStream(poller, near)
            notes = Notes(stream)
            peer = Recorder(far)
            await until(lambda: peer.opened)
            stream.pause()
            peer.send(b"early answer")
            far.close()
            stream.send_nowait(b"x")
            stream.send_nowait(b"x")
            await until(lambda: notes.stops)
            stream.resume()
            await until(lambda: notes.resets or notes.eof)
            assert notes.received == b"early answer"
            assert notes.resets == [(Code.HOST_CLOSED, 1)]

    run("memory", scenario)


def test_sending_after_our_end_is_a_bug() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            stream, _, _ = await stream_and_peer("memory", poller)
            stream.send_eof()
            with pytest.raises(LocalProtocolError):
                stream.send_nowait(b"x")

    run("memory", scenario)


def test_a_stopped_reader_drops_and_lingers_for_two_seconds() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            stream, notes, peer = await stream_and_peer("memory", poller)
            stream.stop()
            peer.send(BULK)
            await until(lambda: not peer.unsent)
            assert not notes.received
            start = trio.current_time()
            stream.send_nowait(b"answer")
            stream.send_eof()
            await until(lambda: peer.eof)
            assert peer.received == b"answer"
            assert not closed(stream.transport)
            await until(lambda: closed(stream.transport))
            assert 2.0 <= trio.current_time() - start <= 2.3
            assert notes.resets == []

    run("memory", scenario)


def test_lingering_ends_with_the_peer_s_end() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            stream, _, peer = await stream_and_peer("memory", poller)
            stream.stop()
            stream.send_eof()
            start = trio.current_time()
            peer.transport.send_eof()
            await until(lambda: closed(stream.transport))
            assert trio.current_time() - start < 0.5

    run("memory", scenario)


def test_a_flood_is_left_unread_when_much_of_it_was_dropped() -> None:
    """Closing on it would destroy what the peer has not read yet."""

    async def scenario() -> None:
        async with poller_for("memory") as poller:
            stream, _, peer = await stream_and_peer("memory", poller)
            stream.stop()
            stream.send_eof()
            start = trio.current_time()
            peer.send(BULK * 4)
            await trio.sleep(1.0)
            assert peer.unsent
            assert not closed(stream.transport)
            await until(lambda: closed(stream.transport))
            assert 2.0 <= trio.current_time() - start <= 2.3

    run("memory", scenario)


def test_without_a_sink_nothing_is_read_and_what_happened_is_told_to_the_next() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            near, far = memory_pair(poller)
            stream, peer = TransportStream(poller, near), Recorder(far)
            await until(lambda: peer.opened)
            peer.send(b"early")
            far.close()
            await until(lambda: stream.send_nowait(b"x") and not stream.sending)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            notes = Notes(stream)
            await until(lambda: notes.resets)
            assert notes.received == b"early"
            assert notes.stops == [Code.HOST_CLOSED]

    run("memory", scenario)


def test_a_sink_that_raises_loses_its_connection_only() -> None:
    class Planted(Notes):
        def on_data(self, data: Data) -> None:
            raise ZeroDivisionError("planted")

    async def scenario() -> None:
        async with poller_for("memory") as poller:
            stream, _, peer = await stream_and_peer("memory", poller)
            other, other_notes, other_peer = await stream_and_peer("memory", poller)
            planted = Planted(stream)
            peer.send(b"boom")
            other_peer.send(b"fine")
            await until(lambda: peer.broken and other_notes.received)
            assert planted.resets == [(Code.INTERNAL_ERROR, 0)]
            assert other.receiving

    run("memory", scenario)


def test_a_connection_that_is_refused_is_a_reset_that_says_so() -> None:
    async def scenario() -> None:
        async with poller_for("tcp") as poller:
            near, far = await tcp_pair(poller)
            address = far.facts.local
            assert address is not None
            near.close()
            far.close()
            for _ in range(10):
                await trio.lowlevel.checkpoint()  # the listener's descriptor is closed at the end of a turn
            transport = TcpTransport.connect(poller, address, Recorder(near))
            notes = Notes(TransportStream(poller, transport))
            await until(lambda: notes.resets)
            assert notes.resets == [(Code.HOST_REFUSED, 0)]

    run("tcp", scenario)


def test_release_cancels_what_is_open_and_leaves_an_ended_stream_its_tail() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            stream, _, peer = await stream_and_peer("memory", poller)
            stream.release()
            await until(lambda: peer.broken)
            stream, _, peer = await stream_and_peer("memory", poller)
            stream.stop()
            stream.send_nowait(b"answer")
            stream.send_eof()
            stream.release()
            await until(lambda: peer.eof)
            assert peer.received == b"answer"
            assert peer.broken is None

    run("memory", scenario)


def test_the_poller_s_end_is_told_as_a_reset() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            _, notes, _ = await stream_and_peer("memory", poller)
        assert notes.resets == [(Code.GOING_AWAY, 0)]

    run("memory", scenario)


def test_a_failed_transport_s_kind_becomes_a_code() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            for kind, code in [("unreachable", Code.HOST_UNREACHABLE), ("untrusted", Code.HOST_TLS), ("reset", Code.HOST_CLOSED)]:
                near, _ = memory_pair(poller)
                stream = TransportStream(poller, near)
                notes = Notes(stream)
                stream.on_failed(TransportBroken(kind, "said the test"))
                assert notes.resets == [(code, 0)]

    run("memory", scenario)
