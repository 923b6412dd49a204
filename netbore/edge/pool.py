"""Idle connections to one Host, through one Link.

Theory of operation. Newest first, so that what is not needed grows old and goes. How long a Host keeps idle connections
is learned: from `Keep-Alive: timeout`, and from each idle connection that it closed (a reset by the Link or by us says
nothing). A connection that has been idle for 80 % of that is not used again, for the Host's FIN may be under way. What
was learned belongs to the Tunnel (`Patience`), so it outlives a Link.
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


#: How long an idle time counts that was not seen again, in seconds.
REMEMBERED = 300.0
#: An idle time of up to so many times the shortest confirms it.
ALIKE = 1.25
#: A shorter idle time, in seconds, says nothing about a Host's patience: it had other reasons to close.
LEAST = 0.05


class Patience:
    """The shortest idle time after which one Tunnel's Host is known to close, in seconds.

    A Host with a limit shows it again and again; one that restarts closes connections of any age, once. So what is not
    confirmed is forgotten, lest one such close end all reuse for good.
    """

    __slots__ = ("_seconds", "_until")

    def __init__(self) -> None:
        self._seconds = inf
        self._until = 0.0

    def at(self, now: float) -> float:
        """What is known at `now`; inf when nothing is."""
        return self._seconds if now < self._until else inf

    def learn(self, seconds: float, now: float) -> None:
        """The Host closed after `seconds`, or says that it will."""
        known = self.at(now)
        if LEAST <= seconds <= known * ALIKE:
            self._seconds = min(seconds, known)
            self._until = now + REMEMBERED

    def forget(self) -> None:
        """It is another Host's now."""
        self._until = 0.0


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
        idle = self._idle
        if not idle:
            return None
        now = self._clock()
        oldest = now - min(self._limits.idle_seconds, self._limits.patience * self._patience.at(now))
        for at in range(len(idle) - 1, -1, -1):
            host = idle[at]
            if host.idle_since < oldest:
                break
            if host.bound_to is None or host.bound_to is viewer:
                del idle[at]
                return host
        return None

    def on_idle(self, host: HostConnection) -> None:
        """`host` finished an Exchange and may be used again; or not, when its Host says that it keeps it for no time."""
        if host.hinted_timeout == 0:
            host.close()
            return
        if host.hinted_timeout is not None:
            self._patience.learn(host.hinted_timeout, host.idle_since)
        self._idle.append(host)
        if len(self._idle) > self._limits.idle:
            self._close(self._idle[0])
        if self.deadline is None:
            self.deadline = host.idle_since + self._limits.idle_seconds

    def on_closed(self, host: HostConnection) -> None:
        """`host` is of no more use. If it was idle and the Host closed it, that says something of the Host."""
        if host in self._idle:
            self._idle.remove(host)
            if host.closed_by_host:
                now = self._clock()
                self._patience.learn(now - host.idle_since, now)

    def on_deadline(self, now: float) -> None:
        """Close what has been idle for too long."""
        while self._idle and self._idle[0].idle_since + self._limits.idle_seconds <= now:
            self._close(self._idle[0])
        self.deadline = self._idle[0].idle_since + self._limits.idle_seconds if self._idle else None

    def on_crash(self, error: Exception) -> None:
        """Second ring: the idle connections are lost, those in use are not."""
        self.deadline = None
        self.close()

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._close(self._idle[-1])

    def _close(self, host: HostConnection) -> None:
        self._idle.remove(host)
        host.close()
