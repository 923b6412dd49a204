"""Deadlines without timers: an attribute that a sweep looks at, and that stands still while a Link is broken."""

from __future__ import annotations

from collections.abc import Callable
from math import inf


class Timed:
    """Something with one deadline at a time. `deadline` is in seconds on `clock`, `inf` when there is none."""

    __slots__ = ("_left", "clock", "deadline", "frozen")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.deadline = inf
        #: Deadlines stand still.
        self.frozen = False
        self._left = inf  # seconds, when it froze

    def _set(self, seconds: float) -> None:
        if self.frozen:
            self._left = seconds
        else:
            self.deadline = self.clock() + seconds

    def _unset(self) -> None:
        self.deadline = self._left = inf

    def _freeze(self) -> None:
        self.frozen = True
        self._left = self.deadline - self.clock()
        self.deadline = inf

    def _thaw(self, now: float) -> None:
        self.frozen = False
        self.deadline = now + self._left
