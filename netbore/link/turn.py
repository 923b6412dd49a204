"""One turn of the Poller: dispatch, posted calls, deadlines, flush. Nothing here waits.

Theory of operation. A turn takes what is ready and calls whoever waits for it. Those calls run down to the other side's
`try_send` at once; what has to go up (writable again, stopped, reset) is posted and drained afterwards, so no command
ever re-enters its caller. Then due timers fire, and then whoever was marked is flushed: Viewers and Hosts first, Links
last, because the first often cause work for the last. Descriptors that were closed are given back to the kernel only at
the end, so that an event that waits in the same batch cannot meet a new socket with an old number.

An exception goes to the owner of the transport or call that raised it (`on_crash`), or aborts the transport, and never
further.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any, Protocol

import attrs

from netbore.link.timers import Timers

log = logging.getLogger("netbore.poller")

#: Bits of readiness; the numbers are epoll's and poll's.
READABLE = 1
WRITABLE = 4
TROUBLE = 8 | 16


@attrs.frozen
class PollerLimits:
    """How much one turn may do, and how much may be open. Seconds and counts."""

    events: int = 256
    accepts: int = 64
    handshakes: int = 8
    flush_rounds: int = 4
    #: Posted calls drained at one go; more wait for the next turn.
    calls: int = 16384
    #: Turns made at one awakening while something is ready, before other Trio tasks run again.
    polls: int = 3
    #: No further turn is made at the same awakening once so much time has passed.
    awake_seconds: float = 0.003
    #: Full batches after which due timers fire although not everything that is readable has been read.
    full_batches: int = 8
    sweep_seconds: float = 0.25
    accept_pause_seconds: float = 0.1
    handshake_seconds: float = 10.0
    pending_handshakes: int = 256
    viewers: int = 20000


@attrs.define
class Counters:
    """What happened so far; for metrics and tests."""

    turns: int = 0
    crashes: int = 0
    accepted: int = 0
    accept_exhausted: int = 0
    handshakes_evicted: int = 0


class Pollable(Protocol):
    """What the turn dispatches to: a descriptor's transport or listener, or one that put itself on the ready list."""

    def on_ready(self, mask: int) -> None: ...


class Flushable(Protocol):
    """Who has something to send. `flush` may mark again."""

    def flush(self) -> None: ...


class Swept(Protocol):
    """Who has a coarse deadline, in seconds of the Poller's clock; None is no deadline."""

    @property
    def deadline(self) -> float | None: ...

    def on_deadline(self, now: float) -> None: ...

    def on_crash(self, error: Exception) -> None:
        """`on_deadline` raised: end what it was about, and nothing else."""


class Turn:
    """The synchronous heart of the Poller. See the module's text."""

    __slots__ = (
        "_first",
        "_last",
        "_posted",
        "_queue",
        "_queued",
        "_thread",
        "_wake",
        "accepts",
        "clock",
        "closed",
        "closers",
        "counters",
        "full",
        "handshakes",
        "limits",
        "moment",
        "pollables",
        "running",
        "swept",
        "timers",
        "woken",
    )

    def __init__(self, limits: PollerLimits, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        """`wake` makes sure that a turn comes soon; it is called outside turns only, and raises in a foreign thread or run."""
        self.limits = limits
        self.clock = clock
        self._wake = wake
        self._thread = get_ident()
        self.counters = Counters()
        self.timers = Timers()
        self.moment = clock()
        self.running = self.woken = self.closed = False
        self.accepts = self.handshakes = self.full = 0
        self.pollables: dict[int, Pollable] = {}
        self.swept: dict[Swept, None] = {}
        self.closers: list[Callable[[], object]] = []
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._queue: deque[Pollable] = deque()
        self._queued: set[Pollable] = set()
        self._first: dict[Flushable, None] = {}
        self._last: dict[Flushable, None] = {}

    def now(self) -> float:
        """This turn's reading of the clock; outside a turn, the clock itself. Seconds."""
        return self.moment if self.running else self.clock()

    # What others ask of the turn.

    def post(self, call: Callable[..., object], *args: Any) -> None:
        """Have `call(*args)` made from the turn, after the calls in progress. Never re-enters the caller."""
        if (self.running and get_ident() == self._thread) or self._outside():
            self._posted.append((call, args))

    def mark(self, flushable: Flushable, last: bool = False) -> None:
        """Have `flushable.flush()` called before the turn ends. `last` is for Links: after all others of the round."""
        if (self.running and get_ident() == self._thread) or self._outside():
            (self._last if last else self._first)[flushable] = None

    def make_ready(self, pollable: Pollable) -> None:
        """Have `pollable.on_ready` called in the next turn, which then starts at once."""
        if pollable not in self._queued and (self.running or self._outside()):
            self._queued.add(pollable)
            self._queue.append(pollable)

    def is_ready(self, pollable: Pollable) -> bool:
        return pollable in self._queued

    def close_later(self, closer: Callable[[], object]) -> None:
        """Have a descriptor closed at the end of the turn."""
        if self.running or self._outside():
            self.closers.append(closer)
        else:
            closer()

    def _outside(self) -> bool:
        """A call outside a turn: wake the driver once. False when the Poller has ended, and then the call means nothing."""
        self.check_thread()
        if self.closed:
            return False
        self.ring()
        return True

    def ring(self) -> None:
        """Have another turn made soon."""
        if not self.woken:
            self._wake()
            self.woken = True

    def check_thread(self) -> None:
        """Raise RuntimeError in any thread but the Poller's own."""
        if get_ident() != self._thread:
            raise RuntimeError("a Poller must be used from the thread and the Trio run that opened it")

    @property
    def pending(self) -> bool:
        """Something waits for the next turn, which must not wait for events first."""
        return bool(self._posted or self._queue or self._first or self._last or self.closers)

    # The turn itself.

    def run(self, ready: Iterable[tuple[int, int]], now: float, everything: bool = True) -> None:
        """Do one turn. `ready` holds (descriptor, mask) pairs, polled *after* the clock said `now`.

        `everything` says that `ready` holds all that is ready: only then are deadlines compared with what was heard.
        """
        self.moment = now
        self.running, self.woken = True, False
        self.accepts, self.handshakes = self.limits.accepts, self.limits.handshakes
        self.counters.turns += 1
        try:
            queued = min(len(self._queue), self.limits.events)
            if self._posted:
                self._drain()
            self._dispatch(ready)
            if queued:
                self._dispatch_queue(queued)
            if self._posted:
                self._drain()
            self._fire(now, everything and not self._queue)
            self._flush()
        finally:
            if self.closers:
                self.close_descriptors()
            self.running = False

    def _dispatch(self, ready: Iterable[tuple[int, int]]) -> None:
        pollables = self.pollables
        for descriptor, mask in ready:
            pollable = pollables.get(descriptor)
            if pollable is not None:
                try:
                    pollable.on_ready(mask)
                except Exception as error:
                    self.crashed(pollable, error)

    def _dispatch_queue(self, count: int) -> None:
        for _ in range(count):
            pollable = self._queue.popleft()
            self._queued.discard(pollable)
            try:
                pollable.on_ready(0)
            except Exception as error:
                self.crashed(pollable, error)

    def _drain(self) -> None:
        posted = self._posted
        left = self.limits.calls
        while posted and left:
            left -= 1
            call, args = posted.popleft()
            try:
                call(*args)
            except Exception as error:
                self.crashed(getattr(call, "__self__", call), error)

    def _fire(self, now: float, everything: bool) -> None:
        """Fire due timers, once all that is readable was read, or soon enough under a flood."""
        due = self.timers.next_deadline()
        if due is None or due > now:
            self.full = 0
            return
        if not everything and self.full < self.limits.full_batches:
            self.full += 1
            return
        self.full = 0
        while (callback := self.timers.pop_due(now)) is not None:
            try:
                callback()
            except Exception as error:
                self.crashed(getattr(callback, "__self__", callback), error)
        self._drain()

    def sweep(self) -> None:
        """Tell everyone whose coarse deadline has passed."""
        now = self.moment
        late = [one for one in self.swept if (deadline := one.deadline) is not None and deadline <= now]
        for one in late:
            if one in self.swept:
                try:
                    one.on_deadline(now)
                except Exception as error:
                    self.crashed(one, error)

    def _flush(self) -> None:
        for _ in range(self.limits.flush_rounds):
            if not (self._first or self._last):
                return
            first, self._first = self._first, {}
            self._flush_each(first)
            last, self._last = self._last, {}
            self._flush_each(last)

    def _flush_each(self, dirty: dict[Flushable, None]) -> None:
        for flushable in dirty:
            try:
                flushable.flush()
            except Exception as error:
                self.crashed(flushable, error)
        if self._posted:
            self._drain()

    def close_descriptors(self) -> None:
        closers, self.closers = self.closers, []
        for closer in closers:
            try:
                closer()
            except OSError as error:
                log.warning("closing a descriptor failed: %s", error)

    def crashed(self, culprit: object, error: Exception) -> None:
        """The rings of errors: `culprit` deals with what it raised, or is closed; nobody else notices."""
        self.counters.crashes += 1
        log.error("a callback of %s failed", type(culprit).__name__, exc_info=error)
        remedy = getattr(culprit, "on_crash", None)
        try:
            if remedy is not None:
                remedy(error)
            elif (close := getattr(culprit, "close", None)) is not None:
                close(abort=True)
        except Exception as second:
            log.error("%s could not even be closed", type(culprit).__name__, exc_info=second)
