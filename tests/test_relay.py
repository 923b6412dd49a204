"""Relays between two Streams, over memory and over real sockets."""

from __future__ import annotations

import pytest
import trio

from netbore.link.memory import memory_pair
from netbore.link.poller import Poller
from netbore.link.socket_stream import TransportStream
from netbore.proto.wire import Code
from netbore.relay import Relay, relay
from tests.link.support import KINDS, REAL, Recorder, poller_for, run, tcp_pair, transport_pair, until

BULK = bytes(range(256)) * 4096


async def joined(kind: str, poller: Poller, done: list[Relay]) -> tuple[Recorder, Recorder, Relay]:
    """Two peers, each at the far end of a transport, with a relay between the near ends."""
    left, near = await transport_pair(kind, poller)
    far, right = await transport_pair(kind, poller)
    between = relay(TransportStream(poller, near), TransportStream(poller, far), done.append)
    a, b = Recorder(left), Recorder(right)
    await until(lambda: a.opened and b.opened)
    return a, b, between


@pytest.mark.parametrize("kind", KINDS)
def test_both_directions_to_their_own_end(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            done: list[Relay] = []
            a, b, between = await joined(kind, poller, done)
            a.send(b"question")
            a.transport.send_eof()
            await until(lambda: b.eof)
            assert b.received == b"question"
            assert not done
            b.limit = 10000
            b.send(BULK)
            await until(lambda: not b.unsent)
            b.transport.send_eof()
            await until(lambda: a.eof and done)
            assert a.received == BULK
            assert done == [between]
            assert (between.forth.moved, between.back.moved, between.code) == (8, len(BULK), None)

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_back_pressure_runs_through(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b, _ = await joined(kind, poller, [])
            b.read(False)
            total = BULK * (40 if kind in REAL else 3)
            a.send(total)
            before = -1
            for _ in range(300):
                before = len(a.unsent)
                await until(lambda: True)
                await _checkpoints()
                if len(a.unsent) == before:
                    break
            assert a.unsent, "something between buffers without a mark"
            b.read(True)
            await until(lambda: len(b.received) >= len(total))
            same = bytes(b.received) == total  # by itself: to show how 40 MiB differ would take minutes
            assert same

    run(kind, scenario)


async def _checkpoints() -> None:
    for _ in range(20):
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_of_one_is_a_reset_of_the_other(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            done: list[Relay] = []
            a, b, between = await joined(kind, poller, done)
            a.send(b"x")
            await until(lambda: b.received)
            a.transport.close(abort=True)
            await until(lambda: b.broken or b.eof)
            assert b.broken is not None
            assert done == [between]
            assert between.code == Code.HOST_CLOSED

    run(kind, scenario)


@pytest.mark.parametrize("kind", ["tcp", "memory"])
def test_an_early_response_survives_a_failed_write(kind: str) -> None:
    """A Host answers before it has read the request, and closes: the answer reaches the Viewer, and the cut is told."""

    async def scenario() -> None:
        async with poller_for(kind) as poller:
            done: list[Relay] = []
            viewer, host, between = await joined(kind, poller, done)
            host.read(False)
            host.send(b"413 too large")
            host.transport.close()  # FIN; what comes later is answered by RST

            def written() -> bool:
                viewer.send(b"y" * 1000)
                return viewer.broken is not None or between.forth.done

            await until(written)
            await until(lambda: viewer.received == b"413 too large")
            await until(lambda: between.over)

    run(kind, scenario)


def test_a_stopped_target_ends_one_direction_only() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            done: list[Relay] = []
            a, b, between = await joined("memory", poller, done)
            between.back.source.sink.on_stop(Code.HOST_CLOSED)  # type: ignore[union-attr]
            a.send(BULK)
            await until(lambda: not a.unsent)
            assert not b.received
            b.send(b"the answer")
            b.transport.send_eof()
            await until(lambda: a.eof)
            assert a.received == b"the answer"
            assert done == [between]

    run("memory", scenario)


def test_a_host_s_end_waits_behind_the_bytes_before_it() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            left, near = memory_pair(poller, capacity=1000)
            far, right = memory_pair(poller, capacity=100000)
            between = relay(TransportStream(poller, near), TransportStream(poller, far))
            viewer, host = Recorder(left), Recorder(right)
            await until(lambda: viewer.opened and host.opened)
            viewer.read(False)
            host.send(BULK[:50000])
            await until(lambda: between.back._kept)
            host.transport.close(abort=True)
            await until(lambda: between.back._verdict is not None)
            assert not between.over
            viewer.read(True)
            await until(lambda: viewer.broken or viewer.eof)
            assert viewer.broken is not None
            assert viewer.received == BULK[:50000]

    run("memory", scenario)


def test_a_reset_is_mapped_and_counts_what_reached_the_end() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            calls: list[tuple[int, int]] = []
            left, near = memory_pair(poller)
            far, right = memory_pair(poller)

            class Watched(TransportStream):
                def reset(self, code: int, delivered: int = 0) -> None:
                    calls.append((code, delivered))
                    super().reset(code, delivered)

            relay(TransportStream(poller, near), Watched(poller, far), map_code=lambda code: code + 1)
            a, b = Recorder(left), Recorder(right)
            await until(lambda: a.opened and b.opened)
            b.send(b"1234567")
            await until(lambda: a.received == b"1234567")
            a.transport.close(abort=True)
            await until(lambda: b.broken)
            assert calls[0] == (Code.HOST_CLOSED + 1, 7)

    run("memory", scenario)


def test_cancel_resets_both_once() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            done: list[Relay] = []
            a, b, between = await joined("memory", poller, done)
            between.cancel(Code.IDLE_TIMEOUT)
            between.cancel(Code.IDLE_TIMEOUT)
            await until(lambda: a.broken and b.broken)
            assert done == [between]
            assert between.code == Code.IDLE_TIMEOUT

    run("memory", scenario)


def test_a_tcp_peer_that_half_closes_gets_its_whole_answer() -> None:
    async def scenario() -> None:
        async with poller_for("tcp") as poller:
            left, near = await tcp_pair(poller)
            far, right = await tcp_pair(poller)
            relay(TransportStream(poller, near), TransportStream(poller, far))
            a, b = Recorder(left), Recorder(right)
            a.send(b"all there is")
            left.send_eof()
            await until(lambda: b.eof)
            b.send(BULK * 2)
            await until(lambda: not b.unsent)
            right.close()
            await until(lambda: a.eof)
            assert a.received == BULK * 2

    run("tcp", scenario)
