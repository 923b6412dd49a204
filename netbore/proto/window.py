"""Budgets and windows: how much may be on its way, and when that grows (docs/protocol.md section 4.4).

Receive windows of Streams and the replay room of the Pipe grow by one rule and out of one budget.
"""

from __future__ import annotations

from typing import Final

from netbore.proto.wire import FIRST_WINDOW, LESSER_WINDOW, MIN_RTT_SECONDS, STREAM_WINDOW, WINDOW_MEMORY_SECONDS

#: The span in which a full window has to move is never shorter, in seconds.
MIN_SPAN: Final = 2 * MIN_RTT_SECONDS


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
        return self.share()

    def share(self, more: int = 0) -> float:
        """What `used` would be with `more` bytes out."""
        share = (self.out + more) / self.total
        return share if self.parent is None else max(share, self.parent.share(more))


class Growth:
    """The size of one window. It doubles when a full window moved within two round trips, or goes at once to what is remembered.

    Seven eighths count as full. The rest may hang behind another limit that is as tight: frame headers make a room of the same
    size run out first, and an ACK or WINDOW is not sent for every byte.

    `size` is what it starts with, already taken from the budget by the caller; what it adds, it takes itself.
    """

    __slots__ = ("budget", "limit", "moved_since", "size", "started")

    def __init__(self, size: int, limit: int, budget: Budget) -> None:
        self.size = size
        self.limit = limit
        self.budget = budget
        self.started = 0.0
        self.moved_since = 0

    def moved(self, count: int, now: float, rtt: float | None) -> bool:
        """`count` bytes went through the window: whether that completed a full window in time, so that it should `grow`.

        What moved longer ago than two round trips does not count: a pause must not cost a window its next chance.
        """
        if self.moved_since == 0 or (rtt is not None and now - self.started > 2 * rtt and now - self.started > MIN_SPAN):
            self.started = now
            self.moved_since = count
        else:
            self.moved_since += count
        if self.moved_since * 8 < self.size * 7:
            return False
        self.moved_since = 0
        return rtt is not None

    def grow(self, known: int = 0) -> int:
        """Return by how many bytes it grew, 0 where the limit or the budget forbids it.

        `known` is the size that another window of the Link is known to have used to the full: a window that proves too
        small grows to it at once, while less than half the budget is out with it.
        """
        more = self.size
        if known > 2 * self.size and self.budget.share(known - self.size) < 0.5:
            more = known - self.size
        more = min(more, self.limit - self.size)
        if more <= 0 or not self.budget.take(more):
            return 0
        self.size += more
        return more


class WindowMemory:
    """The largest window that was used to the full of late: others of the Link need not find it out step by step."""

    __slots__ = ("_at", "_size")

    def __init__(self) -> None:
        self._size = 0
        self._at = 0.0

    def note(self, size: int, now: float) -> None:
        """A window of `size` bytes was used to the full."""
        if size >= self._size or now - self._at > WINDOW_MEMORY_SECONDS:
            self._size = size
            self._at = now

    def known(self, now: float) -> int:
        """Its size in bytes; 0 when nothing is remembered. A new Stream begins with half of it."""
        return self._size if now - self._at <= WINDOW_MEMORY_SECONDS else 0


def first_window(budget: Budget, offer: int = 0, have: int = 0) -> int:
    """Choose the size of a new window, and take it from the budget, except for `have` bytes that are taken already.

    `offer` is what the Link's memory proposes. It counts only as long as less than half the budget is out with it, so that one
    fast Stream does not push every later one down. Return `have` when nothing larger fits.
    """
    used = budget.used
    sizes = [FIRST_WINDOW] if used < 0.5 else []
    if offer > FIRST_WINDOW and budget.share(offer) < 0.5:
        sizes.insert(0, offer)
    if used < 0.75:
        sizes.append(LESSER_WINDOW)
    for size in (*sizes, STREAM_WINDOW):
        if size > have and budget.take(size - have):
            return size
    return have


def first_room(budget: Budget, most: int) -> int:
    """Choose the size of a new replay room, and take it from the budget: `most` bytes, or less as the budget fills, as
    windows do. Return 0 when nothing fits."""
    used = budget.used
    for below, size in ((0.5, most), (0.75, LESSER_WINDOW), (1.0, STREAM_WINDOW)):
        if used < below and budget.take(min(most, size)):
            return min(most, size)
    return 0
