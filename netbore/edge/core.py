"""The core of an Edge: everything but sockets, files and certificates.

It is given a Poller, an Authority and a `Tunnels` service, and is fed with accepted transports, so that a test can feed
it simulated ones. Shutdown order is nesting order: Links end when the nursery here is left, Viewers when the Poller of
the caller is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from netbore.edge.api import ApiTarget
from netbore.edge.authority import Authority
from netbore.edge.config import EdgeConfig
from netbore.edge.door import Door, DoorParts
from netbore.edge.front import Covers, Front, one_certificate
from netbore.edge.hub import Hub
from netbore.edge.publisher import Publisher
from netbore.edge.registry import Registry
from netbore.edge.routes import Route, RouteTable
from netbore.edge.tunnels import Tunnels
from netbore.link.poller import Poller
from netbore.proto.window import Budget


@attrs.frozen
class Core:
    """The parts of a running Edge."""

    edge_id: str
    poller: Poller
    hub: Hub
    routes: RouteTable
    tunnels: Tunnels
    publisher: Publisher
    door: Door
    front: Front

    async def drain(self) -> None:
        """Accept no more, let what is in flight come to its end. Cancel it to stop waiting."""
        self.front.drain()
        await self.front.drained()


@attrs.frozen
class Services:
    """What outlives the Links: who may do what, and who holds which name."""

    edge_id: str
    authority: Authority
    registry: Registry
    tunnels: Tunnels
    hub: Hub


@asynccontextmanager
async def open_core(
    poller: Poller, config: EdgeConfig, services: Services, covers: Covers = one_certificate
) -> AsyncIterator[Core]:
    """A running Edge without listeners."""
    hub = services.hub
    routes = RouteTable()
    limits = config.limits
    publisher = Publisher(poller, routes, hub, apex=config.domain, limits=limits.host)
    front = Front(poller, routes, edge_id=services.edge_id, hub=hub, covers=covers, limits=limits.front)
    async with trio.open_nursery() as nursery:
        parts = DoorParts(
            poller=poller,
            nursery=nursery,
            authority=services.authority,
            tunnels=services.tunnels,
            publisher=publisher,
            hub=hub,
            budget=Budget(limits.budget),
            edge_id=services.edge_id,
        )
        door = Door(parts, limits.door)
        routes.put(Route(config.api.encode(), ApiTarget(poller, config.link_path, door.accept)))
        services.tunnels.on_deleted.append(lambda tunnel, holding, force: publisher.unpublish(tunnel.name, force=force))
        nursery.start_soon(publisher.run, services.registry)
        nursery.start_soon(door.keep_leases, services.registry)
        try:
            yield Core(services.edge_id, poller, hub, routes, services.tunnels, publisher, door, front)
        finally:
            door.close()
            nursery.cancel_scope.cancel()
