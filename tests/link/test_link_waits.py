"""What tasks wait for on a Link: Streams that arrive, and the end of those that are open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from netbore.link.link import Link
from netbore.link.memory import memory_pair
from netbore.link.poller import open_poller
from netbore.proto.handshake import Limits
from netbore.proto.mux import Role
from netbore.proto.wire import Kind
from tests.link.quiet import Quiet


@asynccontextmanager
async def links() -> AsyncIterator[tuple[Link, Link]]:
    async with open_poller() as poller:
        ends = []
        for role, transport in zip((Role.ACCEPTOR, Role.DIALLER), memory_pair(poller), strict=True):
            link = Link(poller, role, Limits(), Limits(), Quiet(), name=role.name)
            link.attach(transport, 0)
            ends.append(link)
        yield ends[0], ends[1]
        assert ends[0].session.audit() == ends[1].session.audit() == []


async def test_several_tasks_accept(autojump_clock: MockClock) -> None:
    accepted = []

    async def accept(link: Link) -> None:
        accepted.append(await link.accept())

    async with links() as (near, far), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(accept, far)
        await trio.sleep(1)
        for _ in range(3):
            near.open(Kind.HTTP, 1)
        await trio.sleep(1)
        assert len(accepted) == 3
        for stream in accepted:
            await stream.aclose()


async def test_several_tasks_wait_until_it_is_drained(autojump_clock: MockClock) -> None:
    drained = []

    async def wait(link: Link, handle: int | None) -> None:
        await link.drained(handle)
        drained.append(handle)

    async with links() as (near, far), trio.open_nursery() as nursery:
        one, two = await near.open_stream(Kind.HTTP, 1), await near.open_stream(Kind.HTTP, 2)
        theirs = [await far.accept() for _ in range(2)]
        for handle in (None, None, 1, 2, 3):
            nursery.start_soon(wait, near, handle)
        await trio.sleep(1)
        assert drained == [3]
        await one.aclose()
        await theirs[0].aclose()
        await trio.sleep(1)
        assert drained == [3, 1]
        await two.aclose()
        await theirs[1].aclose()
        await trio.sleep(1)
        assert sorted(map(str, drained)) == ["1", "2", "3", "None", "None"]


async def test_drained_means_that_the_peer_has_it(autojump_clock: MockClock) -> None:
    async with links() as (near, far):
        stream = await near.open_stream(Kind.HTTP, 1)
        other = await far.accept()
        await stream.send_all(bytes(100_000))
        await stream.aclose()
        await other.aclose()
        await near.drained()
        assert near.session.pipe.acked == near.session.pipe.sent


@pytest.mark.parametrize("broken", [True, False])
async def test_the_end_wakes_who_waits(autojump_clock: MockClock, broken: bool) -> None:
    async with links() as (near, far), trio.open_nursery() as nursery:
        await near.open_stream(Kind.HTTP, 1)
        nursery.start_soon(near.drained)
        nursery.start_soon(far.drained)
        await trio.sleep(1)
        if broken:
            near.detach("test")
            far.detach("test")
            await trio.sleep(1)
            assert len(nursery.child_tasks) == 2
        near.close()
        far.close()
