"""Supervision of tasks: what an unexpected error may end, and what goes on.

An exception that leaves a task ends the whole nursery. Where many peers share one nursery, a task that serves one of them runs
in `isolated`, so that a bug, or a service that fails, costs that peer only; a task that serves all of them runs in
`keep_running` and begins again. Both log what they caught. Cancelling passes through.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVarTuple

import trio

from netbore.errors import NetboreError

log = logging.getLogger("netbore.tasks")

Args = TypeVarTuple("Args")

#: How long a task that failed waits before it begins again, in seconds: first, and at most. The wait doubles.
RESTART_FIRST: Final = 0.5
RESTART_MOST: Final = 30.0
#: A task that ran for so long before it failed begins with the first wait again.
RESTART_FORGIVEN: Final = 60.0


async def isolated(
    task: Callable[[*Args], Awaitable[object]], *args: *Args, failed: Callable[[Exception], object] | None = None
) -> None:
    """Run `task(*args)`; an exception that leaves it is logged, given to `failed`, and goes no further. As cancellable as the
    task is."""
    try:
        await task(*args)
    except Exception as error:
        log.exception("%s failed", _name(task))
        if failed is not None:
            failed(error)


async def keep_running(task: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
    """Run `task(*args)` until it returns; where it fails instead, that is logged and it begins again after a while. A
    checkpoint."""
    wait = RESTART_FIRST
    while True:
        began = trio.current_time()
        try:
            await task(*args)
        except Exception:
            if trio.current_time() - began >= RESTART_FORGIVEN:
                wait = RESTART_FIRST
            log.exception("%s failed, and begins again in %s s", _name(task), wait)
        else:
            return
        await trio.sleep(wait)
        wait = min(2 * wait, RESTART_MOST)


def _name(task: object) -> str:
    return str(getattr(task, "__qualname__", task))


# Groups


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, however deep; of any other error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def first(error: BaseException) -> BaseException:
    """The first error in a group, for a place that can tell of one only."""
    return next(leaves(error))


@contextmanager
def ungrouped() -> Iterator[None]:
    """Let a NetboreError that is the only error in a group out of it, so that `except` finds it.

    Nurseries inside the library are no concern of its users. The same error from several tasks is one error. Groups of
    anything else, or of several errors, pass as they are: who reads only the first of them would lose the others.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        alone, *others = {id(error): error for error in leaves(group)}.values()
        if others or not isinstance(alone, NetboreError):
            raise
        raise alone from alone.__cause__
