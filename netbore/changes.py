"""Telling tasks that something changed."""

from __future__ import annotations

import trio


class Changed:
    """Wakes every task that waits for a change; what changed, each looks up for itself.

    Waiters only read the event and the setter replaces it, so no waiter can take another's away:

        while not self._ready:
            await self._changed.wait()

    The condition has to be looked at right before `wait`, with no checkpoint in between.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Wake those who wait now."""
        event, self._event = self._event, trio.Event()
        event.set()

    async def wait(self) -> None:
        """Wait for the next `set`. A checkpoint; cancelling it has no effect on others."""
        await self._event.wait()
