"""The services of an Edge without accounts: one operator, names in memory, tokens signed by keys in the state directory."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from netbore.edge.authority import OperatorAuthority
from netbore.edge.core import Services
from netbore.edge.hub import Hub
from netbore.edge.names import RESERVED
from netbore.edge.records import TunnelLimits
from netbore.edge.registry import MemoryRegistry
from netbore.edge.statedir import StateDirectory
from netbore.edge.tokens import Ephemerals, RandomBytes
from netbore.edge.tunnels import Minting, PublicAddress, Tunnels


def operator_services(
    state: StateDirectory,
    address: PublicAddress,
    *,
    clock: Callable[[], float],
    random: RandomBytes = secrets.token_bytes,
    below: Callable[[int], int] = secrets.randbelow,
    api_host: str = "",
    limits: TunnelLimits | None = None,
) -> Services:
    """All of them, made of one state directory. `clock` is wall time in seconds; nobody gets the name of `api_host`."""
    hub = Hub()
    ephemerals = Ephemerals(random)
    authority = OperatorAuthority(state, ephemerals, clock)
    registry = MemoryRegistry()
    minting = Minting(lambda: state.signing_keys, ephemerals, random, below, clock)
    reserved = RESERVED | {api_host.removesuffix(f".{address.domain}")}
    tunnels = Tunnels(registry, address, minting, limits=limits, reserved=reserved, hub=hub)
    tunnels.on_deleted.append(lambda tunnel, holding, force: authority.revoke(tunnel.id, "the Tunnel was deleted", force=force))
    return Services(state.edge_id, authority, registry, tunnels, hub)
