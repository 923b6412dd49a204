"""Liveness of one transport, and the round trip (docs/protocol.md section 7).

Theory of operation. A PING is owed when a transport is attached and 5 s after each PING that left. That alone also
keeps the promise to send something every 5 s, so there is no timer for that promise. A PING that is owed has no
deadline: it waits for the transport to take it. The smallest of the last samples is kept as a rising row: a sample
hides every older one that is not smaller.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from netbore.proto.wire import DEAD_SECONDS, RTT_MEMORY_SECONDS, SEND_SECONDS

#: PINGs whose answer is still awaited; of an older one no answer is wanted any more.
_AWAITED: Final = 8


class Heartbeat:
    """When to PING, and when to give up. Times are seconds of the caller's clock."""

    __slots__ = ("_awaited", "_ping_at", "_samples", "_sent", "dead_at", "ping_owed")

    def __init__(self) -> None:
        self.ping_owed = False
        self.dead_at = 0.0
        self._ping_at = 0.0
        self._sent = 0
        self._awaited: dict[int, float] = {}  # number -> when it left, oldest first
        self._samples: deque[tuple[float, float]] = deque()  # (when, round trip), both rising

    @property
    def rtt(self) -> float | None:
        """The smallest round trip of the last 300 s in seconds; None before the first."""
        return self._samples[0][1] if self._samples else None

    @property
    def deadline(self) -> float:
        """When `due` has something to say."""
        return self.dead_at if self.ping_owed else min(self._ping_at, self.dead_at)

    def attach(self, now: float) -> None:
        """A new transport."""
        self._awaited.clear()
        self.ping_owed = True
        self.heard(now)

    def heard(self, now: float) -> None:
        """Something, anything, was received."""
        self.dead_at = now + DEAD_SECONDS

    def ping(self, now: float) -> int:
        """The number of the PING that leaves now."""
        self.ping_owed = False
        self._ping_at = now + SEND_SECONDS
        self._sent += 1
        self._awaited[self._sent] = now
        self._awaited.pop(self._sent - _AWAITED, None)
        return self._sent

    def pong(self, number: int, now: float) -> None:
        """The answer to a PING; an answer to none is ignored."""
        sent_at = self._awaited.pop(number, None)
        if sent_at is not None:
            self._sample(now - sent_at, now)

    def due(self, now: float) -> bool:
        """Owe a PING if it is time for one. Return whether the transport is dead."""
        if not self.ping_owed and now >= self._ping_at:
            self.ping_owed = True
        return now >= self.dead_at

    def _sample(self, rtt: float, now: float) -> None:
        samples = self._samples
        while samples and samples[-1][1] >= rtt:
            samples.pop()
        samples.append((now, rtt))
        while samples[0][0] < now - RTT_MEMORY_SECONDS:
            samples.popleft()
