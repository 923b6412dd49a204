"""How much a Link hands to its transport at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, repeat

import pytest
import trio
from trio.testing import MockClock

from netbore.link.link import WRITE, WRITE_MOST, Link
from netbore.link.memory import MemoryTransport, memory_pair
from netbore.link.poller import open_poller
from netbore.link.transport import Facts
from netbore.proto.handshake import Limits
from netbore.proto.mux import Role
from netbore.proto.stream import Data
from netbore.proto.wire import Kind
from tests.link.quiet import Quiet

BULK = bytes(range(256)) * 8192


@asynccontextmanager
async def link_and_flushes(capacity: int) -> AsyncIterator[tuple[Link, list[int]]]:
    """A Link whose peer reads all, over a transport of `capacity` bytes; and the sizes of its flushes."""
    async with open_poller() as poller, trio.open_nursery() as nursery:
        near, far = (Link(poller, role, Limits(), Limits(), Quiet(), name=role.name) for role in (Role.ACCEPTOR, Role.DIALLER))
        for link, transport in zip((near, far), memory_pair(poller, capacity=capacity), strict=True):
            link.attach(transport, 0)
        flushes: list[int] = []
        chosen = near.session.parts_to_send

        def noted(limit: int, now: float) -> list[bytes | memoryview]:
            parts = chosen(limit, now)
            flushes.append(sum(map(len, parts)))
            return parts

        near.session.parts_to_send = noted  # type: ignore[method-assign]

        async def read() -> None:
            stream = await far.accept()
            async for _ in stream:
                pass

        nursery.start_soon(read)
        yield near, flushes
        nursery.cancel_scope.cancel()
        near.close()
        far.close()


async def say_all(link: Link) -> None:
    stream = await link.open_stream(Kind.HTTP, 1)
    await stream.send_all(BULK)
    await stream.send_eof()
    await link.drained()


async def test_a_transport_that_takes_full_flushes_gets_larger_ones(autojump_clock: MockClock) -> None:
    async with link_and_flushes(4 * WRITE_MOST) as (link, flushes):
        with trio.move_on_after(10):
            await say_all(link)
    full = [size for size in flushes if size > WRITE // 2]
    assert full[0] <= WRITE
    assert 2 * WRITE < max(full) <= WRITE_MOST


@pytest.mark.parametrize("capacity", [WRITE // 2, 5000])
async def test_a_slow_one_never_does(autojump_clock: MockClock, capacity: int) -> None:
    async with link_and_flushes(capacity) as (link, flushes):
        with trio.move_on_after(10):
            await say_all(link)
    assert sum(flushes) > len(BULK)
    assert max(flushes) <= WRITE


async def test_a_new_transport_begins_anew(autojump_clock: MockClock) -> None:
    async with link_and_flushes(4 * WRITE_MOST) as (link, flushes):
        with trio.move_on_after(10):
            await say_all(link)
        assert max(flushes) > WRITE
        link.detach("planted")
        assert link._limit == WRITE


class Uneven(MemoryTransport):
    """Takes part of a flush, then the rest of it; or all, and holds it back."""

    takes: Iterator[int] = repeat(0)
    holds = False

    def try_send_parts(self, parts: Sequence[Data]) -> int:
        most = next(self.takes)
        return self.try_send(b"".join(parts)[:most])

    @property
    def draining(self) -> bool:
        return self.holds


@asynccontextmanager
async def uneven_link() -> AsyncIterator[tuple[Link, Uneven, list[int]]]:
    async with open_poller() as poller:
        near, far = Uneven(poller, capacity=1 << 22), MemoryTransport(poller, capacity=1 << 22)
        near.join(far, Facts())
        far.join(near, Facts())
        link = Link(poller, Role.ACCEPTOR, Limits(), Limits(), Quiet(), name="near")
        link.attach(near, 0)
        chosen: list[int] = []
        parts_to_send = link.session.parts_to_send

        def noted(limit: int, now: float) -> list[Data]:
            chosen.append(limit)
            return parts_to_send(limit, now)

        link.session.parts_to_send = noted  # type: ignore[method-assign]
        yield link, near, chosen
        link.close()


@pytest.mark.parametrize("turns", [(25000, 42000), (32000, 34000), (60000, 60000)])
async def test_the_rest_of_a_flush_proves_nothing(autojump_clock: MockClock, turns: tuple[int, int]) -> None:
    async with uneven_link() as (link, near, chosen):
        near.takes = cycle(turns)
        for _ in range(3):
            stream = link.open(Kind.HTTP, 1)
            assert stream is not None
            stream.credit = 1 << 20
            stream.send_nowait(BULK)
        await trio.sleep(1)
        assert len(chosen) >= 4, "a room's worth"
        assert set(chosen) == {WRITE}


async def test_a_transport_that_holds_bytes_gets_small_flushes_again(autojump_clock: MockClock) -> None:
    async with uneven_link() as (link, near, _):
        near.takes = repeat(1 << 22)
        link._limit = WRITE_MOST
        stream = link.open(Kind.HTTP, 1)
        assert stream is not None
        stream.send_nowait(b"little")
        await trio.sleep(1)
        assert link._limit == WRITE_MOST
        near.holds = True
        stream.send_nowait(b"little")
        await trio.sleep(1)
        assert link._limit == WRITE
