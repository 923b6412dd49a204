"""Idle connections to one Host, through one Link.

Theory of operation. Newest first, so that what is not needed grows old and goes. How long a Host keeps idle connections
is learned: from `Keep-Alive: timeout`, and from each idle connection that it closed. A connection that has been idle
for 80 % of that is not used again, for the Host's FIN may be under way. What was learned belongs to the Tunnel
(`Patience`), so it outlives a Link.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import attrs

from netbore.proto.http.host import HostConnection
from netbore.proto.http.sides import ViewerSide


@attrs.frozen
class PoolLimits:
    """Idle connections per Tunnel and Link, and for how many seconds."""

    idle: int = 256
    idle_seconds: float = 60.0
    #: The share of a Host's patience that is used.
    patience: float = 0.8


class Patience:
    """The shortest idle time after which one Tunnel's Host is known to close, in seconds."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = inf

    def learn(self, seconds: float) -> None:
        self.seconds = min(self.seconds, seconds)


class HostPool:
    """Gives connections to one Host, and owns them while they are idle."""

    __slots__ = ("_clock", "_idle", "_limits", "_patience", "deadline")

    def __init__(self, clock: Callable[[], float], patience: Patience, limits: PoolLimits) -> None:
        self._clock = clock
        self._patience = patience
        self._limits = limits
        #: Oldest first.
        self._idle: list[HostConnection] = []
        self.deadline: float | None = None

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, viewer: ViewerSide) -> HostConnection | None:
        """An idle connection that may carry a request of `viewer`, or None."""
        oldest = self._clock() - min(self._limits.idle_seconds, self._limits.patience * self._patience.seconds)
        for at in range(len(self._idle) - 1, -1, -1):
            host = self._idle[at]
            if host.idle_since < oldest:
                break
            if host.bound_to is None or host.bound_to is viewer:
                del self._idle[at]
                return host
        return None

    def on_idle(self, host: HostConnection) -> None:
        """`host` finished an Exchange and may be used again."""
        if host.hinted_timeout is not None:
            self._patience.learn(host.hinted_timeout)
        self._idle.append(host)
        if len(self._idle) > self._limits.idle:
            self._close(self._idle[0])
        if self.deadline is None:
            self.deadline = host.idle_since + self._limits.idle_seconds

    def on_closed(self, host: HostConnection) -> None:
        """`host` is of no more use; if it was idle, the Host closed it."""
        if host in self._idle:
            self._idle.remove(host)
            self._patience.learn(self._clock() - host.idle_since)

    def on_deadline(self, now: float) -> None:
        """Close what has been idle for too long."""
        while self._idle and self._idle[0].idle_since + self._limits.idle_seconds <= now:
            self._close(self._idle[0])
        self.deadline = self._idle[0].idle_since + self._limits.idle_seconds if self._idle else None

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._close(self._idle[-1])

    def _close(self, host: HostConnection) -> None:
        self._idle.remove(host)
        host.close()
