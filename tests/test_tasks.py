"""Supervision: errors stay where they belong, cancelling does not."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from netbore.tasks import RESTART_FIRST, RESTART_FORGIVEN, RESTART_MOST, isolated, keep_running


async def fail(error: Exception) -> None:
    await trio.lowlevel.checkpoint()
    raise error


async def test_an_isolated_task_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Exception] = []
    error = ValueError("planted")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(isolated, fail, error)
        await isolated(fail, error, failed=told.append)
    assert told == [error]
    assert [record.getMessage() for record in caplog.records] == ["fail failed"] * 2


async def test_an_isolated_group_of_errors_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def several() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, ValueError("one"))
            nursery.start_soon(fail, KeyError("two"))

    await isolated(several)
    assert "several failed" in caplog.text


async def test_cancelling_passes_through_an_isolated_task() -> None:
    with trio.move_on_after(0) as scope:
        await isolated(trio.sleep_forever)
    assert scope.cancelled_caught


async def test_a_task_is_kept_running_until_it_returns(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    began: list[float] = []

    async def task(failures: int) -> None:
        began.append(trio.current_time())
        if len(began) <= failures:
            await fail(ValueError("planted"))

    await keep_running(task, 3)
    assert [later - earlier for earlier, later in pairwise(began)] == pytest.approx(
        [RESTART_FIRST, 2 * RESTART_FIRST, 4 * RESTART_FIRST]
    )
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3


@pytest.mark.seconds(1000)
async def test_the_wait_ends_growing_and_a_long_run_is_forgiven(autojump_clock: MockClock) -> None:
    waits: list[float] = []
    failed_at = 0.0

    async def task() -> None:
        nonlocal failed_at
        waits.append(trio.current_time() - failed_at)
        if len(waits) == 12:
            await trio.sleep(RESTART_FORGIVEN)
        failed_at = trio.current_time()
        raise ValueError("planted")

    with trio.move_on_after(450):
        await keep_running(task)
    assert waits[11] == pytest.approx(RESTART_MOST)
    assert waits[12] == pytest.approx(RESTART_FIRST)
