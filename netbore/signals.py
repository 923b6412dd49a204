"""What both programs do about signals: the first asks to stop gently, the second ends at once."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import trio

from netbore.errors import NetboreError
from netbore.tasks import first

STOPPING = (signal.SIGINT, signal.SIGTERM)

#: Exit code of a program that a signal ended before it was up, or a second one while it drained.
INTERRUPTED = 130

#: Lets what is in flight come to its end.
Drain = Callable[[], Awaitable[None]]
#: What a program does. It calls the function that it is given, with its drain, once it is up: whoever then reads what it prints
#: may send a signal at once.
Serve = Callable[[Callable[[Drain], None]], Awaitable[None]]


def run_until_signalled(serve: Serve) -> bool:
    """`until_signalled` as a whole program. Raises NetboreError, the first where there are several, in no group."""
    gentle = False
    failed: BaseException | None = None
    try:
        gentle = trio.run(until_signalled, serve)
    except* NetboreError as group:
        failed = first(group)
    except* KeyboardInterrupt:
        pass  # before signals were caught: there was nothing to drain
    if failed is not None:
        raise failed from failed.__cause__
    return gentle


async def until_signalled(serve: Serve) -> bool:
    """Run `serve` until SIGINT or SIGTERM, then its drain, then end it.

    False when a signal cut something short: a second one, or one that came before `serve` was up. True when the drain, or
    `serve` by itself, came to its end. Errors of `serve` come out in groups. Signals are caught before anything else begins.
    """
    with trio.open_signal_receiver(*STOPPING) as signals:
        async with trio.open_nursery() as nursery:
            program = _Program(serve, nursery.cancel_scope)
            nursery.start_soon(program.run)
            await anext(signals)
            if program.drain is not None:
                nursery.start_soon(program.finish, program.drain)
                await anext(signals)
            nursery.cancel_scope.cancel()
    return program.gentle


class _Program:
    """`serve` as it runs, and how it came to its end."""

    def __init__(self, serve: Serve, scope: trio.CancelScope) -> None:
        self._serve = serve
        self._scope = scope
        self.drain: Drain | None = None
        self.gentle = False

    async def run(self) -> None:
        await self._serve(self._up)
        self._end()

    def _up(self, drain: Drain) -> None:
        self.drain = drain

    async def finish(self, drain: Drain) -> None:
        await drain()
        self._end()

    def _end(self) -> None:
        self.gentle = True
        self._scope.cancel()
