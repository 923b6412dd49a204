"""The RouteTable: from a host name to where its requests go. Sync, local, all that the hot path asks.

It knows names and nothing else knows them. It is filled by whoever watches the Registry, and by settings for what is
not a Tunnel.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from netbore.proto.http.exchange import Exchange
from netbore.proto.http.messages import RequestHead


class Target(Protocol):
    """Where the requests of a route go."""

    def carry(self, exchange: Exchange, head: RequestHead) -> None:
        """Take `exchange` on, with `head` for the Host, or refuse it; now or later."""


@attrs.frozen
class Route:
    """One public host name. `host` replaces the Host header of its requests; None keeps it.

    `always`: served to those who come during a drain, too.
    """

    hostname: bytes
    target: Target
    host: bytes | None = None
    tunnel: str | None = None
    always: bool = False


class RouteTable:
    """All routes of this Edge by host name (lower-case, without port or trailing dot)."""

    __slots__ = ("_routes",)

    def __init__(self) -> None:
        self._routes: dict[bytes, Route] = {}

    def find(self, hostname: bytes) -> Route | None:
        """The route of a host name, or None."""
        return self._routes.get(hostname)

    def put(self, route: Route) -> None:
        """Add a route, or replace the one of its name."""
        self._routes[route.hostname] = route

    def remove(self, hostname: bytes) -> None:
        """Forget a name. Idempotent."""
        self._routes.pop(hostname, None)

    def __len__(self) -> int:
        return len(self._routes)
