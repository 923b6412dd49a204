"""Exact deadlines: a heap of callbacks.

Theory of operation. Links and Pipes need deadlines that are exact; everything else is swept four times a second (`turn`). A
cancelled timer stays in the heap until it comes up, or until the dead outnumber the living, so cancelling costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count

#: Below this size a heap is not worth cleaning.
CLEAN_ABOVE = 64


class Timer:
    """A callback that waits for its deadline. `cancel` is idempotent and may come after it fired."""

    __slots__ = ("_timers", "callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], None], timers: Timers) -> None:
        self.deadline = deadline
        self.callback: Callable[[], None] | None = callback
        self._timers = timers

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._timers.one_cancelled()


class Timers:
    """The heap. Deadlines are in seconds of the Poller's clock; equal ones fire in the order in which they were set."""

    __slots__ = ("_cancelled", "_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._cancelled = 0

    def add(self, deadline: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(deadline, callback, self)
        heappush(self._heap, (deadline, next(self._order), timer))
        return timer

    def one_cancelled(self) -> None:
        self._cancelled += 1
        if len(self._heap) > CLEAN_ABOVE and self._cancelled > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapify(self._heap)
            self._cancelled = 0

    def next_deadline(self) -> float | None:
        """The earliest deadline, or None."""
        while self._heap and self._heap[0][2].callback is None:
            heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> Callable[[], None] | None:
        """The callback of the earliest timer whose deadline is not after `now`, taken out of the heap; else None."""
        deadline = self.next_deadline()
        if deadline is None or deadline > now:
            return None
        timer = heappop(self._heap)[2]
        callback, timer.callback = timer.callback, None
        return callback
