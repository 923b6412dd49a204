"""The publisher: makes the RouteTable follow what Links have bound.

Theory of operation. The Registry says who holds which name; this Edge can reach a holder only through its own Links. So
a name's route exists here while its record does, and its `HostTarget` has one way for each (Link, handle) that has bound it.
`publish` and its opposites are called by the AgentLinks themselves, at once, so that an Agent that was told BOUND can be
reached; `run` follows the Registry for what happened elsewhere.

Everything that concerns one Link goes by `_links`, and never walks the names. There a Link's ways stay after they were taken
away, until their last exchange has ended: they break and come back with their Link like the others.

A Link that has used up its Stream ids is *retired* (docs/protocol.md section 4.7): its Agent is told MOVE, and its ways
are taken away once each has another beside it, or after RETIRE_SECONDS; then it is closed when its last Stream has ended.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from netbore.edge.held import HeldRoom
from netbore.edge.hub import Hub
from netbore.edge.registry import Change, Registry
from netbore.edge.routes import Route, RouteTable
from netbore.edge.targets import HostLimits, HostTarget, Refused, Way, link_opener
from netbore.edge.tunnels import Tunnel
from netbore.link.poller import Poller
from netbore.proto.http.codec import HeadMemo
from netbore.proto.mux import Refusal
from netbore.proto.stream import Stream
from netbore.proto.wire import Code

if TYPE_CHECKING:
    from netbore.edge.agents import AgentLink

log = logging.getLogger("netbore.edge.publisher")

#: How long a Link that can open no more Streams waits for its Agent to bind elsewhere. Shorter than requests are held.
RETIRE_SECONDS: Final = 5.0

_REPLACED: Final = "another Agent took this Tunnel over"
_DELETED: Final = "the Tunnel was deleted"


@attrs.define(eq=False)
class Published:
    """One name and the ways to it, by Link and handle."""

    tunnel: Tunnel
    target: HostTarget
    ways: dict[tuple[str, int], tuple[AgentLink, Way]] = attrs.field(factory=dict)


@attrs.define(eq=False)
class LinkWays:
    """What goes through one Link: by handle what is published, and the ways that were taken away and are still in use."""

    agent: AgentLink
    live: dict[int, tuple[Published, Way]] = attrs.field(factory=dict)
    retired: set[Way] = attrs.field(factory=set)
    #: Its Agent was told to move; and it has no way any more, and is closed when it is empty.
    retiring: bool = False
    left: bool = False

    def all(self) -> list[Way]:
        return [*(way for _, way in self.live.values()), *self.retired]


class Publisher:
    """All published Tunnels of this Edge."""

    def __init__(self, poller: Poller, routes: RouteTable, hub: Hub, *, apex: str, limits: HostLimits | None = None) -> None:
        self._poller = poller
        self._routes = routes
        self._hub = hub
        self._apex = apex.encode()
        self._limits = limits or HostLimits()
        self._room = HeldRoom(self._limits.held_in_all)
        self._memo = HeadMemo()
        self._published: dict[str, Published] = {}
        self._links: dict[str, LinkWays] = {}

    def publish(self, agent: AgentLink, handle: int, tunnel: Tunnel, *, crash: bool) -> None:
        """`agent` has bound `tunnel`: open a way. Another instance's ways are taken away, its Streams too after a `crash`."""
        entry = self._entry(tunnel)
        losers = [(key, one) for key, (one, _) in entry.ways.items() if one.holder != agent.holder]
        self._add(entry, agent, handle)
        self._routes.put(Route(tunnel.hostname.encode(), entry.target, tunnel.host, tunnel.id))
        for key, loser in losers:
            self._remove(entry, key)
            if crash:
                loser.link.session.mux.abandon(key[1], Code.REPLACED)
            loser.unbound(key[1], Code.REPLACED, _REPLACED, gentle=not crash)
        self._look_at_retiring(entry)

    def withdraw(self, agent: AgentLink, handle: int) -> None:
        """`agent` serves the Tunnel behind `handle` no more; its exchanges come to their end."""
        links = self._links.get(agent.id)
        if links is not None and handle in links.live:
            self._remove(links.live[handle][0], (agent.id, handle))

    def suspend(self, agent: AgentLink) -> None:
        """The Link of `agent` is broken."""
        for way in self._ways_of(agent):
            way.suspend()

    def restore(self, agent: AgentLink) -> None:
        """The Link of `agent` is back."""
        for way in self._ways_of(agent):
            way.restore()

    def on_open_allowed(self, agent: AgentLink) -> None:
        """The Link of `agent` takes Streams again."""
        links = self._links.get(agent.id)
        if links is not None:
            for entry, _ in list(links.live.values()):
                entry.target.release_held()

    def forget(self, agent: AgentLink) -> None:
        """The Link of `agent` has ended."""
        links = self._links.get(agent.id)
        if links is not None:
            self._withdraw_all(links)
            self._links.pop(agent.id, None)

    def unpublish(self, name: str, *, force: bool) -> None:
        """The name is gone: nobody serves it any more."""
        entry = self._published.pop(name, None)
        if entry is None:
            return
        self._routes.remove(entry.tunnel.hostname.encode())
        for key, (agent, _) in list(entry.ways.items()):
            self._remove(entry, key)
            if force:
                agent.link.session.mux.abandon(key[1], Code.UNBOUND)
            agent.unbound(key[1], Code.UNBOUND, _DELETED, gentle=not force)
        entry.target.close()

    async def run(self, registry: Registry) -> None:
        """Follow the Registry until cancelled."""
        with registry.watch() as changes:
            async for change in changes:
                self._follow(change)

    def _follow(self, change: Change) -> None:
        """Take away the ways of Links that hold the name no more, whoever decided that."""
        entry = self._published.get(change.name)
        if entry is None or change.holding is None:
            return
        for key, (agent, _) in list(entry.ways.items()):
            if agent.holder != change.holding.holder:
                self._remove(entry, key)
                agent.unbound(key[1], Code.REPLACED, _REPLACED, gentle=True)

    # Names and ways

    def _entry(self, tunnel: Tunnel) -> Published:
        """What is published under the Tunnel's name, as the Tunnel is now."""
        entry = self._published.get(tunnel.name)
        if entry is None:
            target = HostTarget(
                self._poller, apex=self._apex, limits=self._limits, pooled=tunnel.pool, room=self._room, memo=self._memo
            )
            entry = self._published[tunnel.name] = Published(tunnel, target)
            return entry
        before, entry.tunnel = entry.tunnel, tunnel
        if (before.owner, before.target) != (tunnel.owner, tunnel.target):
            entry.target.other_host()
        if before.pool != tunnel.pool:
            entry.target.set_pooled(tunnel.pool)
        return entry

    def _add(self, entry: Published, agent: AgentLink, handle: int) -> None:
        links = self._links.get(agent.id)
        if links is None:
            links = self._links[agent.id] = LinkWays(agent)
        elif handle in links.live:
            self._remove(links.live[handle][0], (agent.id, handle))
            self._links[agent.id] = links
        way = entry.target.add(partial(self._open, links, handle), suspended=agent.link.broken)
        entry.ways[agent.id, handle] = (agent, way)
        links.live[handle] = (entry, way)

    def _remove(self, entry: Published, key: tuple[str, int]) -> None:
        pair = entry.ways.pop(key, None)
        if pair is None:
            return
        links, way = self._links[key[0]], pair[1]
        del links.live[key[1]]
        entry.target.remove(way)
        if len(way):
            links.retired.add(way)
            way.on_empty = partial(self._emptied, links)
        self._tidy(links)

    def _emptied(self, links: LinkWays, way: Way) -> None:
        links.retired.discard(way)
        self._tidy(links)

    def _tidy(self, links: LinkWays) -> None:
        if not links.live and not links.retired and not links.retiring:
            self._links.pop(links.agent.id, None)

    def _withdraw_all(self, links: LinkWays) -> None:
        for handle, (entry, _) in list(links.live.items()):
            self._remove(entry, (links.agent.id, handle))

    def _ways_of(self, agent: AgentLink) -> list[Way]:
        links = self._links.get(agent.id)
        return links.all() if links is not None else []

    # Opening Streams, and Links that open no more

    def _open(self, links: LinkWays, handle: int) -> Stream:
        """A Stream for the Tunnel that the Agent knows by `handle`. Raises Refused."""
        link = links.agent.link
        try:
            return link_opener(link, handle)()
        except Refused:
            if link.refusal is Refusal.MAX_STREAMS:
                self._make_room(links)
            raise
        finally:
            if link.refusal is Refusal.IDS:
                self._retire(links)  # at once, though it may have been the last Stream: requests need not wait for a new Link

    def _make_room(self, links: LinkWays) -> None:
        """The Agent allows no more Streams: idle ones are in the way of others. Those of all Tunnels of the Link count."""
        for _, way in links.live.values():
            way.pool.close()

    def _retire(self, links: LinkWays) -> None:
        if not links.retiring:
            links.retiring = True
            log.info("link %s has used up its Stream ids: its Agent is told to move", links.agent.id)
            links.agent.link.session.mux.move(0)
            self._poller.call_at(self._poller.now + RETIRE_SECONDS, partial(self._retired, links))
            self._poller.post(self._retire_if_left, links)  # not now: a Stream is being opened

    def _look_at_retiring(self, entry: Published) -> None:
        """There is one more way to a name."""
        for agent, _ in list(entry.ways.values()):
            links = self._links.get(agent.id)
            if links is not None and links.retiring:
                self._retire_if_left(links)

    def _retire_if_left(self, links: LinkWays) -> None:
        """A retiring Link whose names can all be reached elsewhere is of no more use."""
        if all(self._has_other(entry) for entry, _ in links.live.values()):
            self._retired(links)

    def _has_other(self, entry: Published) -> bool:
        return any(not self._links[link].retiring for link, _ in entry.ways)

    def _retired(self, links: LinkWays) -> None:
        """Its Agent has bound elsewhere, or had the time for it. Idempotent."""
        if links.agent.link.ended is None and not links.left:
            links.left = True
            self._withdraw_all(links)
            links.agent.close_when_idle(Code.GOING_AWAY, "the Link has used up its Stream ids")
