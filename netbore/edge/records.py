"""The records of Tunnels: what the Tunnels service remembers, and the counting.

Theory of operation. A record's state follows from two facts: a *place*, a (link id, handle) pair, serves it: online; else it
is set aside until some time: pending; else offline. Every change of a fact goes through `_refresh`, which sets the state and
moves the record between the counts: pending and online ones count against their owner, offline ones are kept in the order
in which they went offline, and the oldest goes when there are too many.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import attrs

from netbore.proto.wire import Code

State: TypeAlias = Literal["pending", "online", "offline"]
#: (link id, handle)
Place: TypeAlias = tuple[str, int]

#: An address for display, from which a Host header can be taken: host and port, or a URL without user and password.
TARGET: Final = re.compile(r"(?:https?://)?(?P<host>(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])?(?::[0-9]{1,5})?)(?:[/?#][!-~]*)?")


class Refused(Exception):
    """The Tunnels service will not; `code` stands in the answer, `text` is for a person."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(f"{code.name.lower()}: {text}")
        self.code = code
        self.text = text


@attrs.frozen
class TunnelLimits:
    """`per_owner` counts pending and online Tunnels, `per_link` those that one Link serves, `offline` the records of others."""

    per_owner: int = 1000
    per_link: int = 100
    offline: int = 10_000


@attrs.frozen
class Tunnel:
    """What is known of one Tunnel. `created_at` is wall time in seconds."""

    id: str
    name: str
    hostname: str
    owner: str
    kind: str
    host_header: str
    target: str
    pool: bool
    created_at: float
    state: State = "offline"

    @property
    def host(self) -> bytes | None:
        """What replaces the Host header of its requests; None keeps it."""
        if self.host_header == "keep":
            return None
        return (host_of(self.target) if self.host_header == "target" else self.host_header).encode()


def host_of(target: str) -> str:
    """Host and port of a target like `http://127.0.0.1:8000/x` or `127.0.0.1:8000`; a port alone is localhost's; else empty."""
    found = TARGET.fullmatch(target)
    host = found["host"] if found is not None else ""
    return f"localhost:{host}" if host.isascii() and host.isdigit() else host


class Records:
    """All records, by id and by name, with the places that serve them."""

    def __init__(self, limits: TunnelLimits, on_forgotten: Callable[[Tunnel], None] | None = None) -> None:
        """`on_forgotten(tunnel)` is called when a record goes because there are too many; it must not change any."""
        self._on_forgotten = on_forgotten
        self.by_id: dict[str, Tunnel] = {}
        self.by_name: dict[str, Tunnel] = {}
        self._limits = limits
        self._places: dict[Place, str] = {}
        self._handles: dict[str, set[int]] = {}
        self._serving: Counter[str] = Counter()
        self._pending: dict[str, float] = {}
        self._active: Counter[str] = Counter()
        self._offline: dict[str, None] = {}

    # What is there

    def at(self, place: Place) -> Tunnel | None:
        """The Tunnel that a place serves."""
        tunnel = self._places.get(place)
        return self.by_id[tunnel] if tunnel is not None else None

    def handles(self, link: str) -> tuple[int, ...]:
        """The handles by which a Link serves something."""
        return tuple(self._handles.get(link, ()))

    def served(self, tunnel: str) -> bool:
        """Whether any place serves it."""
        return self._serving[tunnel] > 0

    # Changes

    def add(self, tunnel: Tunnel) -> Tunnel:
        """A new record, offline. The caller gives it a place or sets it aside."""
        self._offline[tunnel.id] = None
        return self.update(attrs.evolve(tunnel, state="offline"))

    def update(self, tunnel: Tunnel) -> Tunnel:
        """Keep what was said of it anew; its state, name and owner are as they were."""
        self.by_id[tunnel.id] = self.by_name[tunnel.name] = tunnel
        return tunnel

    def place(self, tunnel: str, place: Place) -> Tunnel:
        """A free place serves it now. Raises Refused at a limit, with nothing changed."""
        if len(self._handles.get(place[0], ())) >= self._limits.per_link:
            raise Refused(Code.TUNNEL_LIMIT, f"a Link serves at most {self._limits.per_link} tunnels")
        self._check_room(tunnel)
        self._places[place] = tunnel
        self._handles.setdefault(place[0], set()).add(place[1])
        self._serving[tunnel] += 1
        return self._refresh(tunnel)

    def leave(self, place: Place) -> Tunnel | None:
        """The place serves nothing now; the Tunnel that it served, as it is now."""
        tunnel = self._places.pop(place, None)
        if tunnel is None:
            return None
        handles = self._handles[place[0]]
        handles.discard(place[1])
        if not handles:
            del self._handles[place[0]]
        self._serving[tunnel] -= 1
        return self._refresh(tunnel)

    def set_aside(self, tunnel: str, until: float) -> Tunnel:
        """It waits for its first bind. `until` never lies before that of an earlier call. Raises Refused at a limit."""
        self._check_room(tunnel)
        self._pending[tunnel] = until
        return self._refresh(tunnel)

    def end_pending(self, tunnel: str) -> Tunnel:
        """It was bound, or will not be. The record must be there."""
        self._pending.pop(tunnel, None)
        return self._refresh(tunnel)

    def end_all_pending(self, now: float) -> None:
        """End those whose time is over."""
        while self._pending:
            oldest = next(iter(self._pending))
            if self._pending[oldest] > now:
                return
            self.end_pending(oldest)

    def remove(self, tunnel: str) -> Tunnel | None:
        """Forget it, with its places; what it was."""
        found = self.by_id.get(tunnel)
        if found is None:
            return None
        for place in [place for place, served in self._places.items() if served == tunnel]:
            self.leave(place)
        self.end_pending(tunnel)
        self._forget(tunnel)
        return found

    # Counting

    def _check_room(self, tunnel: str) -> None:
        found = self.by_id[tunnel]
        if found.state == "offline" and self._active[found.owner] >= self._limits.per_owner:
            raise Refused(Code.TUNNEL_LIMIT, f"an owner has at most {self._limits.per_owner} tunnels at once")

    def _refresh(self, tunnel: str) -> Tunnel:
        found = self.by_id[tunnel]
        state: State = "online" if self.served(tunnel) else "pending" if tunnel in self._pending else "offline"
        if state == found.state:
            return found
        self._active[found.owner] += (state != "offline") - (found.state != "offline")
        if not self._active[found.owner]:
            del self._active[found.owner]
        found = self.update(attrs.evolve(found, state=state))
        if state == "offline":
            del self._serving[tunnel]
            self._offline[tunnel] = None
            if len(self._offline) > self._limits.offline:
                self._evict(next(iter(self._offline)))
        else:
            self._offline.pop(tunnel, None)
        return found

    def _evict(self, tunnel: str) -> None:
        gone = self._forget(tunnel)
        if self._on_forgotten is not None:
            self._on_forgotten(gone)

    def _forget(self, tunnel: str) -> Tunnel:
        """Of one that is offline."""
        found = self.by_id.pop(tunnel)
        del self.by_name[found.name]
        del self._offline[tunnel]
        return found
