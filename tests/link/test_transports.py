"""One suite for every transport: what the seam promises."""

from __future__ import annotations

import pytest
import trio

from netbore.link.poller import Poller
from netbore.link.transport import Transport, TransportBroken
from netbore.proto.parts import cut
from netbore.proto.stream import Data
from tests.link.support import KINDS, REAL, Recorder, poller_for, run, transport_pair, until

pytestmark = pytest.mark.parametrize("kind", KINDS)

BULK = bytes(range(256)) * 4096  # 1 MiB


async def open_pair(kind: str, poller: Poller, *, read: bool = True) -> tuple[Recorder, Recorder]:
    near, far = await transport_pair(kind, poller)
    ours, theirs = Recorder(near, read=read), Recorder(far, read=read)
    await until(lambda: ours.opened and theirs.opened)
    return ours, theirs


def test_data_goes_both_ways_and_open_is_told_once(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            a.send(b"question")
            await until(lambda: b.received == b"question")
            b.send(b"answer")
            await until(lambda: a.received == b"answer")
            poller.audit()
            assert (a.opened, b.opened) == (1, 1)
            assert a.transport.facts.peer == b.transport.facts.local

    run(kind, scenario)


def test_bulk_arrives_whole_against_a_slow_reader(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            b.limit = 5000
            for _ in range(4):
                a.send(BULK)
            assert a.unsent, "nothing bounds what a transport takes"
            await until(lambda: len(b.received) == 4 * len(BULK) or b.broken)
            assert b.received == BULK * 4
            assert not a.unsent
            poller.audit()

    run(kind, scenario)


def test_parts_arrive_as_if_they_were_joined(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            b.limit = 5000
            sizes = (1, 14, 70_000, 3, 5000, 300_000, 200, 4096)
            parts: list[Data] = [memoryview(BULK)[size : 2 * size] for size in sizes]
            joined = b"".join(parts)
            taken: list[int] = []
            while parts:
                taken.append(a.transport.try_send_parts(parts))
                parts = cut(parts, taken[-1])
                await until(lambda taken=taken: len(b.received) == sum(taken))  # type: ignore[misc]
            assert b.received == joined
            poller.audit()

    run(kind, scenario)


def test_bulk_in_both_directions_at_once(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            a.send(BULK)
            b.send(BULK)
            await until(lambda: len(a.received) == len(b.received) == len(BULK))
            assert a.received == b.received == BULK

    run(kind, scenario)


def test_a_reader_that_does_not_watch_stops_the_sender_and_starts_it_again(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            b.read(False)
            a.send(BULK * (12 if kind in REAL else 2))
            await settled(a)
            assert a.unsent
            assert not b.received
            left = len(a.unsent)
            b.read(True)
            await until(lambda: not a.unsent and len(b.received) == (12 if kind in REAL else 2) * len(BULK))
            assert left > 0
            assert b.received == BULK * (12 if kind in REAL else 2)

    run(kind, scenario)


async def settled(recorder: Recorder) -> None:
    """Wait until the transport takes no more."""
    same = before = 0
    while same < 50:
        await trio.lowlevel.checkpoint()
        same = same + 1 if len(recorder.unsent) == before else 0
        before = len(recorder.unsent)


def test_eof_comes_after_the_data_again_and_again_and_the_other_half_goes_on(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            a.send(b"the last words")
            a.transport.send_eof()
            a.transport.send_eof()
            await until(lambda: b.eof)
            assert b.received == b"the last words"
            assert b.transport.try_recv(10) == b""
            assert b.transport.try_recv(10) == b""
            b.send(BULK[:300000])
            await until(lambda: len(a.received) == 300000)
            assert not a.eof
            b.transport.send_eof()
            await until(lambda: a.eof)
            assert a.broken is None
            assert b.broken is None
            poller.audit()

    run(kind, scenario)


def test_eof_while_the_other_side_has_unread_data_loses_nothing(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            a.limit = 100
            b.send(BULK[:40000])
            await until(lambda: len(a.received) >= 100)
            a.transport.send_eof()
            await until(lambda: b.eof and len(a.received) == 40000)
            assert a.received == BULK[:40000]
            b.send(b"more")
            await until(lambda: a.received.endswith(b"more"))

    run(kind, scenario)


def test_close_is_an_eof_for_the_other_end(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            a.send(b"bye")
            a.transport.close()
            a.transport.close()
            await until(lambda: b.eof or b.broken)
            assert b.received == b"bye"
            assert b.broken is None

    run(kind, scenario)


def test_abort_is_an_error_for_the_other_end(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            a.transport.close(abort=True)
            await until(lambda: b.eof or b.broken)
            assert b.broken is not None
            assert b.broken.kind in {"reset", "truncated"}
            assert not b.eof

    run(kind, scenario)


def test_a_closed_transport_swallows_and_is_silent(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            b.send(b"unheard")
            a.transport.close()
            calls = a.readables
            assert a.transport.try_recv(10) is None
            assert a.transport.try_send(b"12345") == 5
            assert a.transport.try_send_parts([b"123", b"45"]) == 5
            a.transport.send_eof()
            a.transport.watch(True, True)
            await until(lambda: b.eof or b.broken)
            assert a.readables == calls
            assert not a.transport.draining

    run(kind, scenario)


def test_sending_to_an_end_that_closed_breaks(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            b.transport.close()

            def broken() -> bool:
                a.send(b"x" * 1000)
                return a.broken is not None

            await until(broken)
            assert a.broken is not None
            assert a.broken.kind == "reset"
            with pytest.raises(TransportBroken):
                a.transport.try_send_parts([b"x", b"y"])

    run(kind, scenario)


def test_writable_is_level_triggered_and_unwatched_silence(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            await until(lambda: True)
            before = a.writables
            a.transport.watch(False, True)
            await until(lambda: a.writables > before)
            # The recorder had nothing to send and unwatched itself.
            calls = a.writables
            b.send(b"later")
            a.read(True)
            await until(lambda: a.received == b"later")
            assert a.writables == calls

    run(kind, scenario)


def test_nothing_moves_before_open(kind: str) -> None:
    async def scenario() -> None:
        async with poller_for(kind) as poller:
            near, far = await transport_pair(kind, poller)
            if near.opened:  # type: ignore[attr-defined]
                return
            assert near.try_recv(10) is None
            assert near.try_send(b"early") == 0
            assert near.try_send_parts([b"ear", b"ly"]) == 0
            a, b = Recorder(near), Recorder(far)
            a.send(b"early")
            assert a.unsent == b"early"
            await until(lambda: b.received == b"early")

    run(kind, scenario)


def test_the_poller_s_end_closes_it(kind: str) -> None:
    held: list[Transport] = []

    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            held.extend([a.transport, b.transport])
        assert all(one.closed for one in held)  # type: ignore[attr-defined]
        assert held[0].try_recv(1) is None

    run(kind, scenario)


def test_a_crash_of_the_owner_costs_that_transport_only(kind: str) -> None:
    class Planted(Recorder):
        def on_readable(self) -> None:
            raise ZeroDivisionError("planted")

    async def scenario() -> None:
        async with poller_for(kind) as poller:
            a, b = await open_pair(kind, poller)
            c, d = await open_pair(kind, poller)
            planted = Planted(b.transport)
            a.send(b"boom")
            c.send(b"fine")
            await until(lambda: (a.broken or a.eof) and d.received == b"fine")
            assert poller.counters.crashes == 1
            assert planted.transport.try_recv(1) is None

    run(kind, scenario)
