"""Waiting for changes."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from netbore.changes import Changed


async def test_every_waiter_is_woken(autojump_clock: MockClock) -> None:
    changed, woken = Changed(), []

    async def wait(name: str) -> None:
        await changed.wait()
        woken.append(name)

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(wait, name)
        await wait_all_tasks_blocked()
        changed.set()
    assert sorted(woken) == ["a", "b", "c"]


async def test_a_change_is_over_once_it_was_told(autojump_clock: MockClock) -> None:
    changed = Changed()
    changed.set()
    with trio.move_on_after(1) as scope:
        await changed.wait()
    assert scope.cancelled_caught


async def test_a_cancelled_waiter_takes_nobody_along(autojump_clock: MockClock) -> None:
    changed, woken = Changed(), []

    async def wait() -> None:
        await changed.wait()
        woken.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        with trio.move_on_after(1):
            await changed.wait()
        changed.set()
    assert woken == [1]
