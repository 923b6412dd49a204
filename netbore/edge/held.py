"""Requests that wait for a way to their Host.

Theory of operation. A request is held when its Tunnel has ways and none of them takes a Stream now: a Link is broken, full,
or on its way out. It goes on when that changes, is refused when its time is up, and is dropped when its exchange ends
first, because its Viewer went away. So how many wait is always how many still want an answer: that is what is limited, for
each Tunnel and for all of an Edge together.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from netbore.link.poller import Poller
from netbore.proto.http.exchange import Exchange
from netbore.proto.http.messages import RequestHead
from netbore.proto.http.pages import PROBLEMS, Problem

#: Sends a request on its way; None, or why it has to go on waiting.
Forward = Callable[[Exchange, RequestHead], Problem | None]


@attrs.define(eq=False)
class HeldRoom:
    """How many more requests may wait in the whole Edge."""

    left: int


@attrs.frozen(eq=False)
class Held:
    """One request that waits until `until`, and the `on_done` that its exchange had before."""

    head: RequestHead
    until: float
    problem: Problem
    on_done: Callable[[Exchange], None] | None


class HeldRequests:
    """Those of one Tunnel, oldest first. Swept."""

    def __init__(self, poller: Poller, room: HeldRoom, *, seconds: float, limit: int) -> None:
        self._poller = poller
        self._room = room
        self._seconds = seconds
        self._limit = limit
        self._held: dict[Exchange, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def deadline(self) -> float | None:
        """When the oldest has waited for long enough."""
        return next(iter(self._held.values())).until if self._held else None

    def hold(self, exchange: Exchange, head: RequestHead, problem: Problem) -> None:
        """Have it wait, and answer it by `problem` if it waits in vain."""
        if len(self._held) >= self._limit or self._room.left <= 0:
            exchange.refuse(PROBLEMS["limit_reached"])
            return
        if not self._held:
            self._poller.sweep(self)
        self._room.left -= 1
        self._held[exchange] = Held(head, self._poller.now + self._seconds, problem, exchange.on_done)
        exchange.on_done = self._ended

    def release(self, forward: Forward) -> None:
        """Something has changed: let them go on, in their order, until one cannot."""
        for exchange, one in list(self._held.items()):
            if exchange in self._held:
                if forward(exchange, one.head) is not None:
                    return
                self._drop(exchange)

    def refuse_all(self, problem: Problem) -> None:
        """There is nothing to wait for any more."""
        while self._held:
            self._refuse(next(iter(self._held)), problem)

    def on_deadline(self, now: float) -> None:
        """Refuse those whose time is up."""
        while self._held:
            exchange, one = next(iter(self._held.items()))
            if one.until > now:
                return
            self._refuse(exchange, one.problem)

    def on_crash(self, error: Exception) -> None:
        """Second ring: whoever waits here is told, and nobody else notices."""
        self.refuse_all(PROBLEMS["internal_error"])

    def _refuse(self, exchange: Exchange, problem: Problem) -> None:
        self._drop(exchange)
        exchange.refuse(problem)

    def _ended(self, exchange: Exchange) -> None:
        """Its exchange is over."""
        on_done = self._drop(exchange)
        if on_done is not None:
            on_done(exchange)

    def _drop(self, exchange: Exchange) -> Callable[[Exchange], None] | None:
        """It waits no more. Returns what is to be told of its end; nothing when it had been dropped before."""
        one = self._held.pop(exchange, None)
        if one is None:
            return None
        self._room.left += 1
        exchange.on_done = one.on_done
        if not self._held:
            self._poller.sweep_no_more(self)
        return one.on_done
