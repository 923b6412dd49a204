"""The core of an Edge: everything but sockets, files and certificates.

It is given a Poller, an Authority and a `Tunnels` service, and is fed with accepted transports, so that a test can feed
it simulated ones. Shutdown order is nesting order: Links end when the nursery here is left, Viewers when the Poller of
the caller is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

import attrs
import trio

from netbore.edge.api import ApiTarget
from netbore.edge.authority import Authority
from netbore.edge.config import EdgeConfig
from netbore.edge.door import Door, DoorParts
from netbore.edge.front import Covers, Front, Gate, allow_all, one_certificate
from netbore.edge.hub import Hub
from netbore.edge.publisher import Publisher
from netbore.edge.registry import Registry
from netbore.edge.routes import Route, RouteTable
from netbore.edge.tunnels import Tunnels
from netbore.link.poller import Poller
from netbore.proto.http.codec import HeadMemo
from netbore.proto.window import Budget
from netbore.tasks import keep_running


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
    fronts: list[Front]
    _new_front: Callable[[Gate], Front]

    @property
    def front(self) -> Front:
        """The one that serves Tunnels."""
        return self.fronts[0]

    def add_front(self, gate: Gate) -> Front:
        """One more front, behind another gate. It is drained with the others, and the hub hears of it."""
        front = self._new_front(gate)
        self.fronts.append(front)
        return front

    async def drain(self) -> None:
        """Let what is in flight come to its end; those who come later are refused. Links live on, and resume. Cancel it to stop
        waiting."""
        for front in self.fronts:
            front.drain()
        for front in self.fronts:
            await front.drained()


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
    numbers, memo = count(1), HeadMemo()

    def new_front(gate: Gate) -> Front:
        return Front(
            poller,
            routes,
            edge_id=services.edge_id,
            hub=hub,
            gate=gate,
            covers=covers,
            limits=limits.front,
            numbers=numbers,
            memo=memo,
        )

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
        routes.put(Route(config.api.encode(), ApiTarget(poller, config.link_path, door.accept), always=True))
        # Before the tokens are revoked: who has been told of the deletion has nothing left that a revocation could cut.
        services.tunnels.on_deleted.insert(0, lambda tunnel, holding, force: publisher.unpublish(tunnel.name, force=force))
        services.tunnels.on_forgotten.append(lambda tunnel: publisher.unpublish(tunnel.name, force=False))
        nursery.start_soon(keep_running, publisher.run, services.registry)
        nursery.start_soon(door.keep_leases, services.registry)
        try:
            fronts = [new_front(allow_all)]
            yield Core(services.edge_id, poller, hub, routes, services.tunnels, publisher, door, fronts, new_front)
        finally:
            door.close()
            nursery.cancel_scope.cancel()
