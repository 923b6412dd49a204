"""The hub: typed events at the six hands, for metrics, the log and whatever else looks on.

Listeners are called at once, in the call that made the event, and never change what happens: what they raise is logged.
Where events are frequent, ask `hub.active` before making one, so that it costs nothing when nobody listens:

    if hub.active:
        hub.emit(RequestEnded(...))
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

import attrs

log = logging.getLogger("netbore.edge")


@attrs.frozen
class ViewerOpened:
    """Hand 1: a Viewer's connection may carry requests. `secure`: over TLS."""

    viewer: int
    peer: tuple[str, int] | None
    secure: bool


@attrs.frozen
class ViewerClosed:
    """Hand 1: it is gone, after so many requests."""

    viewer: int
    requests: int


@attrs.frozen
class RequestHeadRead:
    """Hands 1 and 2: a request's head was read. `tunnel` is its Tunnel's id, None when the name leads nowhere."""

    request: int
    viewer: int
    hostname: str
    method: str
    path: str
    tunnel: str | None = None


@attrs.frozen
class RequestRefused:
    """Hand 3: the Edge answers by itself, with the problem of that code."""

    request: int
    code: str
    status: int


@attrs.frozen
class FirstByte:
    """Hand 4 to 6: the first byte of the Host's response arrived, so many seconds after the head."""

    request: int
    seconds: float


@attrs.frozen
class RequestEnded:
    """Hand 6: nothing of the exchange moves any more. Bytes are of bodies, `status` None when there was no response."""

    request: int
    status: int | None
    seconds: float
    received: int
    sent: int
    complete: bool


@attrs.frozen
class LinkOpened:
    """Hand 4: an Agent has a Link."""

    link: str
    owner: str
    instance: str
    agent: str
    peer: tuple[str, int] | None


@attrs.frozen
class LinkBroken:
    """Its transport died; it waits to be resumed."""

    link: str
    reason: str


@attrs.frozen
class LinkResumed:
    """It goes on over a new transport, its `epoch`th, after so many seconds."""

    link: str
    epoch: int
    seconds: float


@attrs.frozen
class LinkEnded:
    """It is over, with a code of the wire."""

    link: str
    code: int
    text: str


@attrs.frozen
class TunnelBound:
    """A Link serves a Tunnel now. `replaced`: another instance served it until now."""

    tunnel: str
    name: str
    owner: str
    link: str
    replaced: bool


@attrs.frozen
class TunnelUnbound:
    """A Link serves it no more. `offline`: no other one does."""

    tunnel: str
    name: str
    link: str
    offline: bool


Event: TypeAlias = (
    ViewerOpened
    | ViewerClosed
    | RequestHeadRead
    | RequestRefused
    | FirstByte
    | RequestEnded
    | LinkOpened
    | LinkBroken
    | LinkResumed
    | LinkEnded
    | TunnelBound
    | TunnelUnbound
)
E = TypeVar("E")

EVENTS: Final[tuple[type, ...]] = (
    ViewerOpened,
    ViewerClosed,
    RequestHeadRead,
    RequestRefused,
    FirstByte,
    RequestEnded,
    LinkOpened,
    LinkBroken,
    LinkResumed,
    LinkEnded,
    TunnelBound,
    TunnelUnbound,
)


class Hub:
    """Takes events to those who listen. Belongs to one Edge; not for other threads."""

    __slots__ = ("_listeners", "active")

    def __init__(self) -> None:
        #: Somebody listens to something.
        self.active = False
        self._listeners: dict[type, tuple[Callable[[Any], None], ...]] = {}

    def listen(self, kind: type[E], listener: Callable[[E], None]) -> Callable[[], None]:
        """Call `listener` with every event of that class, until the returned function is called (idempotent)."""
        if kind not in EVENTS:
            raise TypeError(f"{kind.__name__} is not an event of the hub")

        def entry(event: E) -> None:
            listener(event)

        self._listeners[kind] = (*self._listeners.get(kind, ()), entry)
        self.active = True
        return lambda: self._leave(kind, entry)

    def listen_to_all(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` with every event, until the returned function is called."""
        leave = [self.listen(kind, listener) for kind in EVENTS]

        def leave_all() -> None:
            for one in leave:
                one()

        return leave_all

    def emit(self, event: Event) -> None:
        """Tell the listeners, in the order in which they came. Never raises what they raise."""
        for listener in self._listeners.get(type(event), ()):
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed at %s", type(event).__name__)

    def _leave(self, kind: type, entry: Callable[[Any], None]) -> None:
        left = tuple(other for other in self._listeners.get(kind, ()) if other is not entry)
        if left:
            self._listeners[kind] = left
        else:
            self._listeners.pop(kind, None)
        self.active = bool(self._listeners)
