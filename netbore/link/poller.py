"""The Poller: the one place where sockets meet Trio.

Theory of operation. Two Trio tasks serve any number of transports: the driver task waits until something is ready and runs
turns (`turn`); the timer task sleeps to the earliest deadline and then runs a turn too, so what is readable is read before
a deadline fires. A turn has no wait in it, and is protected from KeyboardInterrupt. Waiting for other things than bytes is
for tasks, which may park on the Poller (`Parked`) and are woken with ClosedResourceError when it ends.

The order of the end: who asked with `at_end` is told (it may send once more), transports are closed, parked tasks are
woken, the driver is closed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

import trio

from netbore.link.drivers import HAS_EPOLL, Driver, SimulatedDriver, TaskDriver
from netbore.link.timers import Timer
from netbore.link.turn import Counters, Pollable, PollerLimits, Swept, Turn

__all__ = ["Counters", "Parked", "Poller", "PollerLimits", "Timer", "open_poller"]

log = logging.getLogger("netbore.poller")

T = TypeVar("T")


class Resource(Protocol):
    """What a Poller holds open: transports and listeners."""

    def close(self, abort: bool = False) -> None: ...

    def audit(self) -> str | None:
        """A broken wake-up invariant in words, or None."""


class Poller:
    """Serves transports, posted calls, marks and timers. Made by `open_poller`; belongs to one thread and one Trio run."""

    def __init__(self, driver: Driver, limits: PollerLimits, real: bool) -> None:
        self._driver = driver
        self._real = real
        self._token = trio.lowlevel.current_trio_token()
        self._turn = Turn(limits, trio.lowlevel.current_clock().current_time, self._wake)
        self._resources: dict[Resource, None] = {}
        self._parked: dict[Parked[Any], None] = {}
        self._endings: dict[Callable[[], object], None] = {}
        self._sleep = trio.CancelScope()
        self._waiting = False
        self._sweeping: Timer | None = None
        self.limits = limits
        self.counters: Counters = self._turn.counters
        #: Pending server handshakes, oldest first; see `tls`.
        self.handshakes: dict[Resource, None] = {}
        #: `now`, as a function.
        self.clock = self._turn.now
        self.post = self._turn.post
        self.mark = self._turn.mark
        self.make_ready = self._turn.make_ready
        self.close_later = self._turn.close_later

    # Time.

    @property
    def now(self) -> float:
        """This turn's reading of the clock; outside a turn, the clock itself. Seconds."""
        return self._turn.now()

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        """Have `callback()` called from a turn when the clock has passed `deadline`, exactly, after what is readable was read."""
        self._check()
        timer = self._turn.timers.add(deadline, callback)
        if deadline < self._sleep.deadline:  # noqa: PLR1730 - setting it costs much more than asking
            self._sleep.deadline = deadline
        return timer

    def sweep(self, swept: Swept) -> None:
        """Watch `swept.deadline` every 250 ms from now on; `on_deadline(now)` is called in each sweep that finds it passed."""
        self._check()
        self._turn.swept[swept] = None
        if self._sweeping is None and not self._turn.closed:
            self._sweeping = self.call_at(self.now + self.limits.sweep_seconds, self._sweep)

    def sweep_no_more(self, swept: Swept) -> None:
        self._turn.swept.pop(swept, None)

    def _sweep(self) -> None:
        self._turn.sweep()
        again = self._turn.swept and not self._turn.closed
        self._sweeping = self.call_at(self._turn.moment + self.limits.sweep_seconds, self._sweep) if again else None

    # Descriptors and resources.

    def register(self, descriptor: int, pollable: Pollable) -> None:
        """Tie a real descriptor to who is told of its readiness. Raises RuntimeError under a fake clock."""
        self._check()
        if not self._real:
            raise RuntimeError("a simulated Poller takes no real descriptor")
        if self._turn.closed:
            raise trio.ClosedResourceError("the Poller has ended")
        self._turn.pollables[descriptor] = pollable

    def interest(self, descriptor: int, old: int, new: int) -> None:
        """The readiness wanted of a registered descriptor goes from the mask `old` to `new`."""
        self._check()
        self._driver.change(descriptor, old, new)

    def unregister(self, descriptor: int, old: int) -> None:
        """Forget the descriptor, whose interest was `old`. It may be closed with `close_later`."""
        if old:
            self._driver.change(descriptor, old, 0)
        self._turn.pollables.pop(descriptor, None)
        self._driver.forget(descriptor)

    def hold(self, resource: Resource) -> None:
        """Close `resource` when the Poller ends. Raises ClosedResourceError when it has ended already."""
        self._check()
        if self._turn.closed:
            raise trio.ClosedResourceError("the Poller has ended")
        self._resources[resource] = None

    def let_go(self, resource: Resource) -> None:
        self._resources.pop(resource, None)

    def at_end(self, callback: Callable[[], object]) -> None:
        """Have `callback()` called when the Poller ends, before any transport is closed: it may still send."""
        self._check()
        self._endings[callback] = None

    def not_at_end(self, callback: Callable[[], object]) -> None:
        self._endings.pop(callback, None)

    def is_ready(self, pollable: Pollable) -> bool:
        """Whether `pollable` is on the ready list."""
        return self._turn.is_ready(pollable)

    def take_accept(self) -> bool:
        """Whether this turn may accept one more connection."""
        self._turn.accepts -= 1
        return self._turn.accepts >= 0

    def take_handshake(self) -> bool:
        """Whether this turn may do one more server handshake."""
        self._turn.handshakes -= 1
        return self._turn.handshakes >= 0

    # Waking and running.

    def _wake(self) -> None:
        self._check()
        self._driver.wake()

    def _check(self) -> None:
        self._turn.check_thread()
        if not self._turn.running and trio.lowlevel.current_trio_token() is not self._token:
            raise RuntimeError("a Poller must be used from the Trio run that opened it")

    @trio.lowlevel.enable_ki_protection
    def _step(self, always: bool = False) -> bool:
        """One turn with what is ready now; none, and False, when nothing is and none is wanted `always`."""
        turn, limit = self._turn, self.limits.events
        if turn.closed:
            return False
        now = turn.clock()
        ready = self._driver.poll(limit)
        if not (ready or always or turn.pending):
            return False
        turn.run(ready, now, len(ready) < limit)
        return True

    async def run_driver(self) -> None:
        """Serve until cancelled, or until `close` shuts the driver."""
        while not self._turn.closed:
            if self._turn.pending:
                await trio.lowlevel.checkpoint()
            else:
                self._waiting = True
                try:
                    await self._driver.wait()
                except trio.ClosedResourceError:
                    return
                self._waiting = False
            self._run_turns()

    def _run_turns(self, always: bool = False) -> None:
        """A few turns, as long as there is something to do."""
        enough = self._turn.clock() + self.limits.awake_seconds
        for _ in range(self.limits.polls):
            if not self._step(always) or self._turn.clock() >= enough:
                break
            always = False

    async def run_timers(self) -> None:
        """Sleep to the earliest deadline and have a turn then, until cancelled."""
        while True:
            deadline = self._turn.timers.next_deadline()
            # Who sets an earlier deadline shortens this sleep, with no step of this task.
            self._sleep = trio.CancelScope(deadline=float("inf") if deadline is None else deadline)
            with self._sleep:
                await trio.sleep_forever()
            await self._driver.settle()
            self._run_turns(always=True)
            if self._turn.pending:
                self._turn.ring()

    # Parked tasks.

    def park(self) -> Parked[Any]:
        """A place for one task to wait until `wake` or `fail` is called, or the Poller ends."""
        return Parked(self)

    def add_parked(self, parked: Parked[Any]) -> None:
        self._check()
        if self._turn.closed:
            raise trio.ClosedResourceError("the Poller has ended")
        self._parked[parked] = None

    def remove_parked(self, parked: Parked[Any]) -> None:
        self._parked.pop(parked, None)

    # The end and the truth.

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """Close everything that is open. Idempotent; afterwards commands mean nothing."""
        if self._turn.closed:
            return
        self._turn.run((), self._turn.clock(), everything=False)
        for ending in list(self._endings):
            try:
                ending()
            except Exception as error:
                self._turn.crashed(getattr(ending, "__self__", ending), error)
        self._turn.run((), self._turn.clock(), everything=False)
        for resource in list(self._resources):
            try:
                resource.close()
            except Exception as error:
                log.error("%s could not be closed", type(resource).__name__, exc_info=error)
        self._turn.closed = True
        for parked in list(self._parked):
            parked.fail(trio.ClosedResourceError("the Poller has ended"))
        self._turn.close_descriptors()
        self._driver.close()

    def audit(self) -> None:
        """Raise AssertionError when something waits for a call that will never come. To be called between turns."""
        complaints = [text for one in self._resources if (text := one.audit()) is not None]
        if self._turn.pending and self._waiting and not self._turn.woken:
            complaints.append("work is pending and nobody was woken")
        if complaints:
            raise AssertionError("; ".join(complaints))


class Parked(Generic[T]):
    """One task that waits for one answer. A second task raises BusyResourceError."""

    __slots__ = ("_outcome", "_poller", "_task")

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._task: trio.lowlevel.Task | None = None
        self._outcome: tuple[T | None, Exception | None] | None = None

    async def wait(self) -> T | None:
        """Wait for the answer and return it. Raises what `fail` was given, ClosedResourceError at the Poller's end."""
        if self._task is not None:
            raise trio.BusyResourceError("another task waits here")
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._outcome is None:
            await self._block()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        assert self._outcome is not None
        (value, error), self._outcome = self._outcome, None
        if error is not None:
            raise error
        return value

    async def _block(self) -> None:
        self._poller.add_parked(self)
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            self._task = None
            self._poller.remove_parked(self)

    def wake(self, value: T | None = None) -> None:
        """Give the waiter its answer, or the next one that comes. The first answer counts."""
        self._settle((value, None))

    def fail(self, error: Exception) -> None:
        self._settle((None, error))

    def _settle(self, outcome: tuple[T | None, Exception | None]) -> None:
        if self._outcome is None:
            self._outcome = outcome
            if self._task is not None:
                trio.lowlevel.reschedule(self._task)


def _clock_is_fake() -> bool:
    testing = sys.modules.get("trio.testing")
    return testing is not None and isinstance(trio.lowlevel.current_clock(), testing.MockClock)


def _make_driver(kind: str | None, fake: bool) -> Driver:
    if kind is None:
        kind = "simulated" if fake else "epoll" if HAS_EPOLL else "tasks"
    if kind == "simulated":
        return SimulatedDriver()
    if fake:
        raise RuntimeError("real descriptors and a fake clock do not go together; use the simulated driver")
    if kind == "tasks":
        return TaskDriver()
    if kind == "epoll" and sys.platform == "linux":
        from netbore.link.drivers import EpollDriver  # noqa: PLC0415 - exists on this platform only

        return EpollDriver()
    raise ValueError(f"no such driver here: {kind}")


@asynccontextmanager
async def open_poller(kind: str | None = None, limits: PollerLimits | None = None) -> AsyncIterator[Poller]:
    """A running Poller. `kind` is "epoll", "tasks" or "simulated"; by default what fits the clock and the platform.

    Leaving the block, by exit, error or cancellation, closes all that it holds. Errors come out in an ExceptionGroup, as from a
    nursery.
    """
    fake = _clock_is_fake()
    driver = _make_driver(kind, fake)
    poller = Poller(driver, limits or PollerLimits(), real=not isinstance(driver, SimulatedDriver))
    if sys.platform == "linux":
        from netbore.link.drivers import EpollDriver  # noqa: PLC0415

        if isinstance(driver, EpollDriver):
            poller.register(driver.bell, driver)
    try:
        async with trio.open_nursery() as nursery:
            driver.start(nursery)
            nursery.start_soon(poller.run_driver)
            nursery.start_soon(poller.run_timers)
            try:
                yield poller
            finally:
                poller.close()
                nursery.cancel_scope.cancel()
    finally:
        poller.close()
