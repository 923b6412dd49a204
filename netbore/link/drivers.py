"""What feeds the turn: three ways to learn that descriptors are ready.

Theory of operation. The *nested epoll* costs Trio one task and one wait for any number of sockets: an epoll descriptor is
itself readable when anything in it is ready. *A task per socket* uses only Trio's portable waits. *Simulated* has no
descriptors at all; it serves transports that put themselves on the ready list, under any clock.

Interest is level-triggered. A descriptor with no interest is not registered, since errors and hang-ups cannot be masked.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from netbore.link.turn import READABLE, WRITABLE

HAS_EPOLL = sys.platform == "linux"


class Driver(Protocol):
    """How the Poller waits. Only `wait` and `settle` are asynchronous."""

    def change(self, descriptor: int, old: int, new: int) -> None:
        """The interest in a descriptor goes from one mask to another; 0 is none."""

    def forget(self, descriptor: int) -> None:
        """The descriptor, which has no interest left, is about to be closed."""

    def poll(self, limit: int) -> list[tuple[int, int]]:
        """What is ready now, without waiting."""

    def wake(self) -> None:
        """Have `wait` return. May be called when nobody waits."""

    async def wait(self) -> None:
        """Wait until something is ready or `wake` was called. Always a checkpoint."""

    async def settle(self) -> None:
        """Make sure that the next `poll` knows all that is ready at this moment."""

    def start(self, nursery: trio.Nursery) -> None:
        """Called once, in the Trio run."""

    def close(self) -> None:
        """Wake who waits, with ClosedResourceError, and give everything back."""


if sys.platform == "linux":

    class EpollDriver:
        """One Trio task waits for an epoll that holds every socket; an eventfd in it is the bell."""

        __slots__ = ("_bell", "_epoll")

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._epoll.register(self._bell, READABLE)

        def start(self, nursery: trio.Nursery) -> None:
            pass

        def change(self, descriptor: int, old: int, new: int) -> None:
            if not new:
                self._epoll.unregister(descriptor)
            elif old:
                self._epoll.modify(descriptor, new)
            else:
                self._epoll.register(descriptor, new)

        def forget(self, descriptor: int) -> None:
            pass

        def poll(self, limit: int) -> list[tuple[int, int]]:
            return self._epoll.poll(0, limit)

        def wake(self) -> None:
            os.eventfd_write(self._bell, 1)

        async def wait(self) -> None:
            await trio.lowlevel.wait_readable(self._epoll.fileno())

        async def settle(self) -> None:
            pass

        @property
        def bell(self) -> int:
            return self._bell

        def on_ready(self, mask: int) -> None:
            os.eventfd_read(self._bell)

        def close(self) -> None:
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
            os.close(self._bell)


class _Bell:
    """An event that can be rung again and again."""

    __slots__ = ("_event", "_rung")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._rung = False

    def ring(self) -> None:
        self._rung = True
        self._event.set()

    async def wait(self) -> None:
        if self._rung:
            await trio.lowlevel.checkpoint()
        else:
            await self._event.wait()
        if self._rung:
            self._rung = False
            self._event = trio.Event()


class SimulatedDriver:
    """No descriptors: whoever is ready says so itself."""

    __slots__ = ("_bell",)

    def __init__(self) -> None:
        self._bell = _Bell()

    def start(self, nursery: trio.Nursery) -> None:
        pass

    def change(self, descriptor: int, old: int, new: int) -> None:
        raise RuntimeError("a simulated Poller takes no real descriptor")

    def forget(self, descriptor: int) -> None:
        pass

    def poll(self, limit: int) -> list[tuple[int, int]]:
        return []

    def wake(self) -> None:
        self._bell.ring()

    async def wait(self) -> None:
        await self._bell.wait()

    async def settle(self) -> None:
        pass

    def close(self) -> None:
        self._bell.ring()


class TaskDriver:
    """A task for each descriptor and direction that is waited for.

    Such a task lives for one event. One whose interest is withdrawn is left to wait: when its event comes it finds that nobody
    wants it, and ends; so interest may come and go within a turn without two tasks waiting for the same thing.
    """

    __slots__ = ("_batch", "_bell", "_interest", "_nursery", "_waiting")

    def __init__(self) -> None:
        self._bell = _Bell()
        self._batch: dict[int, int] = {}
        self._interest: dict[int, int] = {}
        self._waiting: dict[tuple[int, int], object] = {}
        self._nursery: trio.Nursery | None = None

    def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def change(self, descriptor: int, old: int, new: int) -> None:
        self._interest[descriptor] = new
        self._await(descriptor, READABLE, trio.lowlevel.wait_readable)
        self._await(descriptor, WRITABLE, trio.lowlevel.wait_writable)

    def _await(self, descriptor: int, bit: int, wait: Callable[[int], Awaitable[None]]) -> None:
        if self._interest.get(descriptor, 0) & bit and (descriptor, bit) not in self._waiting and self._nursery is not None:
            ticket = self._waiting[descriptor, bit] = object()
            self._nursery.start_soon(self._wait_once, descriptor, bit, wait, ticket)

    async def _wait_once(self, descriptor: int, bit: int, wait: Callable[[int], Awaitable[None]], ticket: object) -> None:
        if self._waiting.get((descriptor, bit)) is not ticket:
            return
        try:
            await wait(descriptor)
        except trio.ClosedResourceError:
            return
        if self._waiting.get((descriptor, bit)) is not ticket:
            return
        del self._waiting[descriptor, bit]
        if self._interest.get(descriptor, 0) & bit:
            self._batch[descriptor] = self._batch.get(descriptor, 0) | bit
            self._bell.ring()

    def forget(self, descriptor: int) -> None:
        self._interest.pop(descriptor, None)
        self._batch.pop(descriptor, None)
        for bit in (READABLE, WRITABLE):
            self._waiting.pop((descriptor, bit), None)
        trio.lowlevel.notify_closing(descriptor)

    def poll(self, limit: int) -> list[tuple[int, int]]:
        taken = list(self._batch.items())[:limit]
        for descriptor, _ in taken:
            del self._batch[descriptor]
            # Wait anew at once: interest is level-triggered, and the turn comes before that task runs.
            self._await(descriptor, READABLE, trio.lowlevel.wait_readable)
            self._await(descriptor, WRITABLE, trio.lowlevel.wait_writable)
        if self._batch:
            self._bell.ring()
        return taken

    def wake(self) -> None:
        self._bell.ring()

    async def wait(self) -> None:
        await self._bell.wait()

    async def settle(self) -> None:
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        for descriptor in list(self._interest):
            self.forget(descriptor)
        self._bell.ring()
