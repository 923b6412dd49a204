"""How often a peer may do what costs it nothing (docs/protocol.md section 10, MINOR_FRAMES)."""

from __future__ import annotations

from netbore.proto.wire import MINOR_FRAMES_BURST, MINOR_FRAMES_PER_SECOND


class Allowance:
    """A count of things that may still happen: it refills with time up to `burst`, and honest traffic earns more.

    What was earned is not cut to `burst`: a thousand Streams that carried data may all be reset at once. It is at most twice
    the traffic, so whoever saves it up has paid for it.
    """

    __slots__ = ("_at", "burst", "left", "rate")

    def __init__(self, rate: float = MINOR_FRAMES_PER_SECOND, burst: float = MINOR_FRAMES_BURST) -> None:
        self.rate = rate
        self.burst = burst
        self.left: float = burst
        self._at = 0.0

    def earn(self, count: int) -> None:
        """Traffic that justifies `count` more."""
        self.left += count

    def spend(self, now: float) -> bool:
        """One happened at `now` (seconds). False, and nothing is spent, when that is one too many."""
        if self.left < self.burst:
            self.left = min(self.burst, self.left + (now - self._at) * self.rate)
        self._at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True
