"""The publisher: makes the RouteTable follow what Links have bound.

Theory of operation. The Registry says who holds which name; this Edge can reach a holder only through its own Links. So
a name's route exists here while the Registry knows the name, and its `HostTarget` has one way for each local Link that
has bound it. `publish` and its opposites are called by the AgentLinks themselves, at once, so that an Agent that was
told BOUND can be reached; `run` follows the Registry for what happened elsewhere.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs

from netbore.edge.hub import Hub
from netbore.edge.registry import Change, Registry
from netbore.edge.routes import Route, RouteTable
from netbore.edge.targets import HostLimits, HostTarget, Way, link_opener
from netbore.edge.tunnels import Tunnel
from netbore.link.poller import Poller
from netbore.proto.wire import Code

if TYPE_CHECKING:
    from netbore.edge.agents import AgentLink

log = logging.getLogger("netbore.edge.publisher")


@attrs.define(eq=False)
class Published:
    """One name and the ways to it, by Link and handle."""

    tunnel: Tunnel
    target: HostTarget
    ways: dict[tuple[str, int], tuple[AgentLink, Way]] = attrs.field(factory=dict)


class Publisher:
    """All published Tunnels of this Edge."""

    def __init__(self, poller: Poller, routes: RouteTable, hub: Hub, *, apex: str, limits: HostLimits | None = None) -> None:
        self._poller = poller
        self._routes = routes
        self._hub = hub
        self._apex = apex.encode()
        self._limits = limits or HostLimits()
        self._published: dict[str, Published] = {}

    def publish(self, agent: AgentLink, handle: int, tunnel: Tunnel, *, crash: bool) -> None:
        """`agent` has bound `tunnel`: open a way. Another instance's ways are taken away, its Streams too after a `crash`."""
        entry = self._published.get(tunnel.name)
        if entry is None:
            target = HostTarget(self._poller, apex=self._apex, limits=self._limits, pooled=tunnel.pool)
            entry = self._published[tunnel.name] = Published(tunnel, target)
        entry.tunnel = tunnel
        old = [(key, one) for key, (one, _) in entry.ways.items() if one.holder != agent.holder]
        entry.ways[agent.id, handle] = (agent, entry.target.add(link_opener(agent.link, handle)))
        self._routes.put(Route(tunnel.hostname.encode(), entry.target, tunnel.host, tunnel.id))
        for key, loser in old:
            self._remove(entry, key)
            if crash:
                loser.link.session.mux.abandon(key[1], Code.REPLACED)
            loser.unbound(key[1], Code.REPLACED, "another Agent took this Tunnel over")

    def withdraw(self, agent: AgentLink, handle: int) -> None:
        """`agent` serves the Tunnel behind `handle` no more; its exchanges come to their end."""
        for entry in self._published.values():
            self._remove(entry, (agent.id, handle))

    def suspend(self, agent: AgentLink) -> None:
        """The Link of `agent` is broken."""
        for way in self._ways_of(agent):
            way.suspend()

    def restore(self, agent: AgentLink) -> None:
        """The Link of `agent` is back."""
        for way in self._ways_of(agent):
            way.restore()

    def forget(self, agent: AgentLink) -> None:
        """The Link of `agent` has ended."""
        for entry in self._published.values():
            for key in [key for key, (one, _) in entry.ways.items() if one is agent]:
                self._remove(entry, key)

    def unpublish(self, name: str, *, force: bool) -> None:
        """The name is gone: nobody serves it any more."""
        entry = self._published.pop(name, None)
        if entry is None:
            return
        self._routes.remove(entry.tunnel.hostname.encode())
        for (_, handle), (agent, _) in list(entry.ways.items()):
            if force:
                agent.link.session.mux.abandon(handle, Code.UNBOUND)
            agent.unbound(handle, Code.UNBOUND, "the Tunnel was deleted")
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
                agent.unbound(key[1], Code.REPLACED, "another Agent took this Tunnel over")

    def _ways_of(self, agent: AgentLink) -> list[Way]:
        return [way for entry in self._published.values() for one, way in entry.ways.values() if one is agent]

    def _remove(self, entry: Published, key: tuple[str, int]) -> None:
        pair = entry.ways.pop(key, None)
        if pair is not None:
            entry.target.remove(pair[1])
