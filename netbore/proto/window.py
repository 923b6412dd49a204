"""Budgets and windows: how much may be on its way, and when that grows (docs/protocol.md section 4.4).

Receive windows of Streams and the replay room of the Pipe grow by one rule and out of one budget.
"""

from __future__ import annotations

from netbore.proto.wire import MIN_RTT_SECONDS


class Budget:
    """Bytes that may be promised at once. A budget may stand within a larger one (Link, holder, Edge)."""

    __slots__ = ("out", "parent", "total")

    def __init__(self, total: int, parent: Budget | None = None) -> None:
        self.total = total
        self.parent = parent
        self.out = 0

    def take(self, count: int) -> bool:
        """Promise `count` bytes here and in every enclosing budget; False, and nothing changed, where they do not fit."""
        if self.out + count > self.total or not (self.parent is None or self.parent.take(count)):
            return False
        self.out += count
        return True

    def give(self, count: int) -> None:
        """Take `count` bytes of the promise back."""
        assert 0 <= count <= self.out
        self.out -= count
        if self.parent is not None:
            self.parent.give(count)

    @property
    def used(self) -> float:
        """The share that is out, of whichever enclosing budget is fullest."""
        share = self.out / self.total
        return share if self.parent is None else max(share, self.parent.used)


class Growth:
    """The size of one window. It doubles when a full window moved within two round trips.

    `floor` is the size it starts with, already taken from the budget by the caller; what it adds, it takes itself.
    """

    __slots__ = ("budget", "limit", "moved_since", "size", "started")

    def __init__(self, size: int, limit: int, budget: Budget) -> None:
        self.size = size
        self.limit = limit
        self.budget = budget
        self.started = 0.0
        self.moved_since = 0

    def moved(self, count: int, now: float, rtt: float | None) -> int:
        """`count` bytes went through the window. Return by how many bytes it grew, mostly 0."""
        if self.moved_since == 0:
            self.started = now
        self.moved_since += count
        if self.moved_since < self.size:
            return 0
        self.moved_since = 0
        if rtt is None or now - self.started > 2 * max(rtt, MIN_RTT_SECONDS):
            return 0
        more = min(self.size, self.limit - self.size)
        if more <= 0 or not self.budget.take(more):
            return 0
        self.size += more
        return more
