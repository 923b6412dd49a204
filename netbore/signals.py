"""What both programs do about signals: the first asks to stop gently, the second ends at once."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import trio

STOPPING = (signal.SIGINT, signal.SIGTERM)

#: Exit code of a program that a second signal ended.
INTERRUPTED = 130


async def until_signalled(
    drain: Callable[[], Awaitable[None]], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> bool:
    """Wait for SIGINT or SIGTERM, then drain. True when that came to its end, False when a second signal cut it short."""
    with trio.open_signal_receiver(*STOPPING) as signals:
        task_status.started()
        await anext(signals)
        async with trio.open_nursery() as nursery:
            drained = False

            async def finish() -> None:
                nonlocal drained
                await drain()
                drained = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(finish)
            await anext(signals)
            nursery.cancel_scope.cancel()
    return drained
