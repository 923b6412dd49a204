"""The Agent's relay and its verdict: what the Edge is told when a Host ends at an awkward moment."""

from __future__ import annotations

import socket
import struct
from random import Random

import pytest
import trio
import trio.lowlevel
import trio.testing

from netbore.agent.host_relay import HostRelay, serve
from netbore.agent.targets import Dialler, HostAddress
from netbore.link.memory import MemoryTransport
from netbore.link.poller import Poller, open_poller
from netbore.link.simulated import Network
from netbore.link.stream import StreamAdapter
from netbore.link.transport import Facts, Transport, TransportBroken
from netbore.proto.stream import Data
from netbore.proto.wire import Code, Kind
from tests.agent.support import Joined, Path, Told, one_stream, whole_path
from tests.edge.test_tunnel_path import link_pair
from tests.link.support import tls_over, until

SEEDS = range(12)


# One Stream, event by event.


async def test_a_question_and_an_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream() as joined:
        joined.edge.stream.send_nowait(b"question")
        await joined.settle()
        assert joined.host.received == b"question"
        joined.host.send(b"answer")
        await joined.settle()
        assert joined.edge.received == b"answer"
        joined.edge.stream.send_eof()
        joined.host.transport.send_eof()
        await joined.settle()
        assert joined.edge.events == ["eof"]
        assert [(one.forth.moved, one.back.moved, one.code) for one in joined.done] == [(8, 6, None)]


async def answered(joined: Joined) -> None:
    joined.edge.stream.send_nowait(b"one")
    await joined.settle()
    joined.host.send(b"first")
    await joined.settle()
    assert joined.edge.received == b"first"


async def test_the_end_of_an_idle_host_is_passed_on_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream() as joined:
        await answered(joined)
        joined.host.transport.close()
        await joined.settle()
        assert joined.edge.events == ["eof"]
        joined.edge.stream.send_eof()
        joined.edge.stream.stop()
        await joined.settle()
        assert [one.code for one in joined.done] == [None]


@pytest.mark.parametrize("abort", [False, True])
async def test_data_after_the_end_is_not_processed(abort: bool, autojump_clock: trio.testing.MockClock) -> None:
    """Link first: the Host's end and the Link's DATA are ready in the same turn, and the Link is read before the Host."""
    async with one_stream() as joined:
        await answered(joined)
        joined.edge.stream.send_nowait(b"two")
        # The Link's far end has the bytes when the Edge's Link has flushed; the Host ends in that very turn.
        joined.poller.post(joined.host.transport.close, abort)
        await joined.settle()
        assert joined.edge.events[-1] == "reset"
        assert (joined.edge.code, joined.edge.delivered) == (Code.NOT_PROCESSED, 3)
        assert joined.host.received == b"one"
        assert [one.code for one in joined.done] == [Code.NOT_PROCESSED]


async def test_data_after_a_half_close_is_not_processed(autojump_clock: trio.testing.MockClock) -> None:
    """Host first: the FIN has gone to the Edge already, whose DATA was under way."""
    async with one_stream() as joined:
        await answered(joined)
        joined.host.transport.send_eof()
        await joined.settle()
        joined.edge.stream.send_nowait(b"two")
        await joined.settle()
        assert joined.edge.events == ["eof", "reset"]
        assert (joined.edge.code, joined.edge.delivered) == (Code.NOT_PROCESSED, 3)
        assert joined.host.received == b"one"
        assert joined.host.eof


async def test_an_end_after_bytes_were_given_is_host_closed(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream() as joined:
        await answered(joined)
        joined.edge.stream.send_nowait(b"two")
        await joined.settle()
        assert joined.host.received == b"onetwo"
        joined.host.transport.close(abort=True)
        await joined.settle()
        assert (joined.edge.code, joined.edge.delivered) == (Code.HOST_CLOSED, 6)


async def test_an_idle_reset_is_not_processed(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream() as joined:
        await answered(joined)
        joined.host.transport.close(abort=True)
        await joined.settle()
        assert (joined.edge.events, joined.edge.code) == (["reset"], Code.NOT_PROCESSED)


async def test_a_reset_right_behind_an_answer_does_not_pass_it(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream() as joined:
        joined.edge.stream.send_nowait(b"one")
        await joined.settle()
        joined.host.send(b"a" * 50000)
        joined.host.transport.close(abort=True)
        await joined.settle()
        assert len(joined.edge.received) == 50000
        assert (joined.edge.events, joined.edge.code) == (["reset"], Code.NOT_PROCESSED)


async def test_an_early_answer_is_not_destroyed_by_the_rest_of_the_request(autojump_clock: trio.testing.MockClock) -> None:
    """The Host says no in the middle of a body, ends its half, and the body goes on: answer and end arrive."""
    async with one_stream() as joined:
        joined.edge.stream.send_nowait(b"head")
        await joined.settle()
        joined.host.send(b"no " * 10000)
        joined.host.transport.send_eof()
        for _ in range(20):
            joined.edge.stream.send_nowait(b"b" * 1000)
            await trio.lowlevel.checkpoint()
        await joined.settle()
        assert joined.edge.received == b"no " * 10000
        assert joined.edge.events[0] == "eof"


async def test_a_host_that_ends_without_a_word_is_not_processed(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream() as joined:
        joined.host.transport.close()
        await joined.settle()
        assert (joined.edge.events, joined.edge.code) == (["reset"], Code.NOT_PROCESSED)
        assert len(joined.done) == 1


async def test_the_end_of_the_stream_closes_the_host(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream() as joined:
        await answered(joined)
        joined.edge.stream.reset(Code.CANCELLED)
        await joined.settle()
        assert joined.host.broken is not None
        assert [one.code for one in joined.done] == [Code.CANCELLED]


async def test_the_end_of_the_link_closes_the_host(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream() as joined:
        await answered(joined)
        joined.links[1].close(Code.GOING_AWAY)
        await joined.settle()
        assert joined.host.broken is not None
        assert len(joined.done) == 1


async def test_a_stopped_answer_is_no_end_of_the_host(autojump_clock: trio.testing.MockClock) -> None:
    """The Edge reads no more, but goes on sending: that is not a Host that ended."""
    async with one_stream() as joined:
        await answered(joined)
        joined.edge.stream.stop()
        await joined.settle()
        joined.edge.stream.send_nowait(b"two")
        await joined.settle()
        assert joined.host.received == b"onetwo"
        assert joined.edge.events == []


async def test_back_pressure_of_the_host_reaches_the_edge(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream() as joined:
        joined.host.read(False)
        stream, sent, idle = joined.edge.stream, 0, 0
        while idle < 20:
            count = stream.send_nowait(b"x" * 10000)
            sent += count
            idle = 0 if count else idle + 1
            await trio.sleep(0.1)
        assert sent < 1_000_000
        joined.host.read(True)
        stream.send_eof()
        await joined.settle(5)
        assert len(joined.host.received) == sent
        assert joined.host.eof


class Brittle(MemoryTransport):
    """The Host is gone between a read, which finds nothing, and the write behind it."""

    __slots__ = ()

    def try_send(self, data: Data) -> int:
        peer = self._peer
        if data == b"two" and peer is not None:
            peer.close(abort=True)
            raise TransportBroken("reset", "gone in between")
        return super().try_send(data)


def brittle(poller: Poller, near: Transport, far: Transport) -> tuple[Transport, Transport]:
    near, other = Brittle(poller), MemoryTransport(poller)
    near.join(other, Facts())
    other.join(near, Facts())
    return near, other


async def test_a_write_that_fails_as_a_whole_gave_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream(brittle) as joined:
        await answered(joined)
        joined.edge.stream.send_nowait(b"two")
        await joined.settle()
        assert joined.edge.events == ["reset"], "STOP would forbid a second try"
        assert (joined.edge.code, joined.edge.delivered) == (Code.NOT_PROCESSED, 3)


async def test_a_host_that_cannot_be_dialled(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream(refusing) as joined:
        joined.edge.stream.send_nowait(b"one")
        await joined.settle()
        assert (joined.edge.events, joined.edge.code, joined.edge.delivered) == (["reset"], Code.HOST_REFUSED, 0)
        assert [one.code for one in joined.done] == [Code.HOST_REFUSED]


def refusing(poller: Poller, near: Transport, far: Transport) -> tuple[Transport, Transport]:
    network = Network(Random(1))
    return network.dial(poller, "nowhere", 80), far


def over_tls(poller: Poller, near: Transport, far: Transport) -> tuple[Transport, Transport]:
    return tls_over(poller, near, far)


async def test_a_tls_host_that_ends_while_idle(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream(over_tls) as joined:
        await answered(joined)
        joined.edge.stream.send_nowait(b"two")
        joined.poller.post(joined.host.transport.close)
        await joined.settle()
        assert (joined.edge.events[-1], joined.edge.code, joined.edge.delivered) == ("reset", Code.NOT_PROCESSED, 3)


async def test_a_tls_host_that_goes_without_goodbye_while_idle(autojump_clock: trio.testing.MockClock) -> None:
    async with one_stream(over_tls) as joined:
        await answered(joined)
        joined.host.transport.close(abort=True)
        await joined.settle()
        assert (joined.edge.events, joined.edge.code) == (["reset"], Code.NOT_PROCESSED)


# Requests through everything, by seed.


async def exchange(viewer: StreamAdapter, body: bytes) -> tuple[int, bytes]:
    """POST `body`; the status and body of the response."""
    await viewer.send_all(b"POST / HTTP/1.1\r\nHost: demo.tunnel.localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    buffer = b""
    while b"\r\n\r\n" not in buffer:
        data = await viewer.receive_some()
        assert data, "the Viewer was cut off"
        buffer += data
    head, _, rest = buffer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    while len(rest) < length:
        rest += await viewer.receive_some()
    return int(lines[0].split()[1]), rest


async def ask(path: Path, random: Random, who: int, statuses: list[int], gap: float) -> None:
    viewer = path.view()
    for number in range(40):
        await trio.sleep(random.choice((random.uniform(0, 3 * gap), random.uniform(0.9 * gap, 1.1 * gap), 0.0)))
        body = b"%d/%d " % (who, number) + b"x" * random.choice((0, 10, 3000, 40000))
        status, answer = await exchange(viewer, body)
        statuses.append(status)
        if status == 200:
            assert answer == body
        else:
            await viewer.aclose()
            viewer = path.view()
    await viewer.aclose()


async def ask_many(path: Path, random: Random, keep: float, viewers: int = 6) -> list[int]:
    statuses: list[int] = []
    async with trio.open_nursery() as nursery:
        for who in range(viewers):
            nursery.start_soon(ask, path, Random(random.random()), who, statuses, keep)
    return statuses


@pytest.mark.seconds(2000)
@pytest.mark.parametrize("seed", SEEDS)
async def test_no_post_fails_at_a_host_that_closes_idle_connections(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """What the Host does is in the Agent's kernel at once, so no request is ever given to a Host that has closed."""
    random = Random(seed)
    async with whole_path(random, keep=1.0, closing=lambda: random.choice(("fin", "half", "abort"))) as path:
        statuses = await ask_many(path, random, keep=1.0)
        assert statuses == [200] * 240
        assert len(path.host.served) == 240, "a request was served twice"
        assert path.host.idle_closes > 5
        assert any(one.code == Code.NOT_PROCESSED for one in path.done), "no awkward moment was met"


@pytest.mark.seconds(2000)
@pytest.mark.parametrize("seed", SEEDS)
async def test_only_what_was_given_can_fail(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """A Host behind a network: a request that was under way to it when it closed was given, and fails, and no other."""
    random = Random(seed)
    async with whole_path(random, keep=1.0, host_latency=(0.001, 0.03)) as path:
        statuses = await ask_many(path, random, keep=1.0)
        await trio.sleep(1)  # until the Agent has heard of the last end
        failed = sum(status != 200 for status in statuses)
        given = sum(isinstance(one, HostRelay) and not one.spoke_last for one in path.done)
        assert failed <= given
        assert len(set(path.host.served)) == len(path.host.served), "a request was served twice"
        assert statuses.count(200) == len(path.host.served)


async def test_each_stream_has_a_connection_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    """A second Stream has a Host connection of its own."""
    async with one_stream() as joined:
        second = joined.links[0].open(Kind.HTTP, 1)
        assert second is not None
        second.send_nowait(b"two")
        await joined.settle()
        assert joined.host.received == b""
        second.reset(Code.CANCELLED)
        await joined.settle()
        assert len(joined.done) == 1


# Real sockets: what the kernel knows and the Poller has not delivered.


@pytest.mark.parametrize("abort", [False, True])
async def test_an_end_that_only_the_kernel_knows(abort: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with trio.open_nursery() as nursery, open_poller() as poller:
            edge, agent = link_pair(poller)
            dialler = Dialler(poller, nursery, HostAddress("127.0.0.1", server.getsockname()[1]))
            agent.on_stream = lambda stream: serve(poller, dialler, stream)
            stream = edge.open(Kind.HTTP, 1)
            assert stream is not None
            told = Told(stream)
            stream.send_nowait(b"one")
            connection, _ = await trio.to_thread.run_sync(server.accept)
            with connection:
                assert await trio.to_thread.run_sync(connection.recv, 10) == b"one"
                connection.sendall(b"first")
                await until(lambda: told.received == b"first")
                if abort:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.send_nowait(b"two")
            await until(lambda: told.code is not None)
            assert (told.code, told.delivered) == (Code.NOT_PROCESSED, 3)
            assert edge.session.audit() == agent.session.audit() == []
            nursery.cancel_scope.cancel()
