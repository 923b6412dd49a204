"""Deadlines without timers: an attribute that a sweep looks at, and that stands still while a Link is broken."""

from __future__ import annotations

from collections.abc import Callable
from math import inf


class Timed:
    """Something with one deadline at a time. `deadline` is in seconds on `clock`, `inf` when there is none."""

    __slots__ = ("_left", "clock", "deadline")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.deadline = inf
        #: Seconds that were left when it froze; None while it runs.
        self._left: float | None = None

    @property
    def frozen(self) -> bool:
        """Deadlines stand still."""
        return self._left is not None

    def _set(self, seconds: float) -> None:
        if self._left is None:
            self.deadline = self.clock() + seconds
        else:
            self._left = seconds

    def _unset(self) -> None:
        if self._left is None:
            self.deadline = inf
        else:
            self._left = inf

    def _freeze(self) -> None:
        self._left = self.deadline - self.clock()
        self.deadline = inf

    def _thaw(self, now: float) -> None:
        assert self._left is not None
        self.deadline = now + self._left
        self._left = None
