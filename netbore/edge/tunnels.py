"""The Tunnels service: creates, binds, lists and deletes Tunnels, for the Agents' door and for the control API alike.

Theory of operation. A Tunnel's record is kept by `records`; who holds its name is in the Registry. Stopping deletes no name:
the record stays, and its name with its owner, until it is deleted, or forgotten because too many others went offline
later. A record that was forgotten, or lost with a restart, comes back with its id when its recreate token is presented.

A bind takes its place in the records before the Registry is asked, and leaves it if that fails: two binds at once cannot
both have the last place under a limit. When the answer comes, the place may be gone again (another instance took the name
over meanwhile, or it was deleted): then the bind is refused after all.

A Link's binds must have ended, or been cancelled, before `release_link` is called for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import attrs
import trio

from netbore.edge import names
from netbore.edge.authority import SERVE, Grant
from netbore.edge.hub import Hub, TunnelBound, TunnelUnbound
from netbore.edge.records import TARGET, Place, Records, Refused, Tunnel, TunnelLimits, host_of
from netbore.edge.registry import Claim, Holder, Holding, NameTaken, Registry
from netbore.edge.tokens import Ephemerals, RandomBytes, SigningKeys, TooManyTokens, mint_recreate
from netbore.proto.wire import MAX_ID, Code

__all__ = [
    "BindRequest",
    "Bound",
    "Created",
    "Minting",
    "PublicAddress",
    "Refused",
    "Tunnel",
    "TunnelLimits",
    "Tunnels",
]

#: Kinds of Tunnels that this Edge serves, and the modes of a takeover.
KINDS: Final = frozenset({"http"})
MODES: Final = frozenset({"crash", "handover"})
#: How often a random name is tried.
RANDOM_TRIES: Final = 16
TUNNEL_ID_BYTES: Final = 10
#: How long a deletion may take to release what was held, though it is cancelled.
RELEASE_SECONDS: Final = 5.0
TARGET_LENGTH: Final = 255

_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


@attrs.frozen
class PublicAddress:
    """Where Viewers find this Edge: Tunnels are `<name>.<domain>`. `port` is the one that Viewers use."""

    domain: str
    port: int
    scheme: str = "https"

    def hostname(self, name: str) -> str:
        """The host name of a Tunnel."""
        return f"{name}.{self.domain}"

    def url(self, name: str) -> str:
        """A Tunnel's public URL, without the port where it is the scheme's own."""
        port = "" if self.port == _DEFAULT_PORTS.get(self.scheme) else f":{self.port}"
        return f"{self.scheme}://{self.hostname(name)}{port}"


@attrs.frozen
class BindRequest:
    """What an Agent asks for (docs/protocol.md section 4.6). `name` None: the Edge chooses. `epoch`: that of the last BOUND."""

    handle: int
    name: str | None = None
    kind: str = "http"
    mode: str = "crash"
    host_header: str = "keep"
    target: str = ""
    pool: bool = True
    epoch: int | None = None


@attrs.frozen
class Bound:
    """A bind that was granted. `claim.previous` is the holding that it replaced: its Links are to be told."""

    tunnel: Tunnel
    recreate_token: str = attrs.field(repr=False)
    public_url: str
    hostname: str
    claim: Claim


@attrs.frozen
class Created:
    """A Tunnel that may be bound now with either token. `expires_at` is the ephemeral one's, wall time in seconds."""

    tunnel: Tunnel
    ephemeral_token: str = attrs.field(repr=False)
    recreate_token: str = attrs.field(repr=False)
    expires_at: float


@attrs.frozen
class Minting:
    """What tokens and ids are made of. `clock` is wall time in seconds."""

    keys: Callable[[], SigningKeys]
    ephemerals: Ephemerals
    random: RandomBytes
    below: names.Below
    clock: Callable[[], float]


class Tunnels:
    """All Tunnels of this Edge. Async methods are checkpoints; cancelled, they leave nothing half done in the records."""

    def __init__(
        self,
        registry: Registry,
        address: PublicAddress,
        minting: Minting,
        *,
        limits: TunnelLimits | None = None,
        reserved: frozenset[str] = names.RESERVED,
        hub: Hub | None = None,
    ) -> None:
        self.address = address
        self._registry = registry
        self._minting = minting
        self._reserved = reserved
        self._hub = hub or Hub()
        self._records = Records(limits or TunnelLimits(), self._forgotten)
        #: Called when a Tunnel was deleted, with its last holding (None: nobody served it) and whether to force its Streams'
        #: end. The publisher unbinds the holding's Links here, and the authority revokes the Tunnel's tokens.
        self.on_deleted: list[Callable[[Tunnel, Holding | None, bool], None]] = []
        #: Called when the record of a Tunnel that was offline was dropped for a limit: its name is nobody's now.
        self.on_forgotten: list[Callable[[Tunnel], None]] = []

    # The control API's side

    def get(self, tunnel: str) -> Tunnel | None:
        """A Tunnel by id."""
        return self._records.by_id.get(tunnel)

    def list(self, owner: str | None = None) -> tuple[Tunnel, ...]:
        """The Tunnels of an owner (None: of all), oldest first."""
        found = [tunnel for tunnel in self._records.by_id.values() if owner in (None, tunnel.owner)]
        return tuple(sorted(found, key=lambda tunnel: (tunnel.created_at, tunnel.id)))

    async def create(self, owner: str, *, name: str | None = None) -> Created:
        """Set a name aside for its owner (None: a random one). Raises Refused."""
        await trio.lowlevel.checkpoint()
        self._records.end_all_pending(self._minting.clock())
        if name is not None:
            self._check_name(name)
        tunnel, fresh = self._record(owner, name or self._free_name(), BindRequest(handle=0))
        if tunnel.state != "offline":
            raise Refused(Code.NAME_TAKEN, f"the name {tunnel.name} is in use")
        try:
            token, expires = self._ephemeral(tunnel)
            tunnel = self._records.set_aside(tunnel.id, expires)
            if await self._registry.lookup(tunnel.name) is not None:
                raise Refused(Code.NAME_TAKEN, f"the name {tunnel.name} is in use")
        except BaseException:
            self._minting.ephemerals.forget(tunnel.id)
            self._not_pending(tunnel.id)
            self._take_back(tunnel.id, fresh)
            raise
        return Created(tunnel, token, self._recreate_token(tunnel), expires)

    async def delete(self, tunnel: str, *, force: bool = False) -> bool:
        """Delete a Tunnel, its name and its tokens; whether there was one. `force`: its Streams do not come to their end."""
        known = self.get(tunnel)
        if known is None:
            await trio.lowlevel.checkpoint()
            return False
        holding = await self._registry.lookup(known.name)
        found = self._records.remove(tunnel)
        if found is None:
            return False  # somebody else deleted it meanwhile
        self._minting.ephemerals.forget(tunnel)
        if holding is not None and holding.holder.owner != found.owner:
            holding = None
        for callback in self.on_deleted:
            callback(found, holding, force)
        if holding is not None:
            await self._release_all(found, holding)
        return True

    async def _release_all(self, tunnel: Tunnel, holding: Holding) -> None:
        """Of a Tunnel that is gone from the records: nobody would try again, so being cancelled does not count at once."""
        if self._hub.active:
            for link, _ in sorted(holding.links):
                self._hub.emit(TunnelUnbound(tunnel.id, tunnel.name, link, offline=True))
        with trio.move_on_after(RELEASE_SECONDS, shield=True):
            for link, handle in holding.links:
                await self._registry.release(tunnel.name, link, handle)

    # The door's side

    async def bind(self, grants: Sequence[Grant], instance: str, link: str, request: BindRequest) -> Bound:
        """Serve a Tunnel over (link, request.handle), as the best of `grants` allows. Raises Refused."""
        await trio.lowlevel.checkpoint()
        self._check(request, link)
        grant, name = self._choose(grants, request.name)
        if name is None:
            return await self._bind_random(grant, instance, link, request)
        return await self._bind_name(grant, name, instance, link, request)

    async def release(self, link: str, handle: int) -> None:
        """(link, handle) serves its Tunnel no more. The name stays its owner's. Idempotent."""
        tunnel = self._unplace((link, handle))
        if tunnel is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._registry.release(tunnel.name, link, handle)

    async def release_link(self, link: str) -> None:
        """The Link serves nothing more. Idempotent."""
        for handle in self._records.handles(link):
            self._unplace((link, handle))
        # Also what the records do not know: a bind that was cancelled after the Registry had granted it.
        await self._registry.release_link(link)

    def served_by(self, link: str, handle: int) -> Tunnel | None:
        """The Tunnel that is bound to (link, handle) here."""
        return self._records.at((link, handle))

    # Checks: they ask nobody

    def _check(self, request: BindRequest, link: str) -> None:
        if request.kind not in KINDS:
            raise Refused(Code.UNSUPPORTED, f"this Edge has no tunnels of that kind, only {', '.join(sorted(KINDS))}")
        if request.mode not in MODES:
            raise Refused(Code.UNSUPPORTED, "the mode is neither crash nor handover")
        if not 1 <= request.handle <= MAX_ID:
            raise Refused(Code.UNSUPPORTED, f"a handle is a number from 1 to {MAX_ID}")
        target = TARGET.fullmatch(request.target) if len(request.target) <= TARGET_LENGTH else None
        if target is None:
            raise Refused(Code.UNSUPPORTED, f"the target is not an address of at most {TARGET_LENGTH} characters")
        host = host_of(request.target) if request.host_header == "target" else request.host_header
        if len(host) > TARGET_LENGTH or not _HOST.fullmatch(host):
            raise Refused(Code.UNSUPPORTED, "host_header is neither keep, target nor a host name with or without a port")
        if self._records.at((link, request.handle)) is not None:
            raise Refused(Code.HANDLE_TAKEN, "this handle already serves a tunnel of this Link")

    def _check_name(self, name: str, *, own: bool = False) -> None:
        """`own`: a token was made for this very name, so it is no longer anybody's to forbid."""
        fault = names.fault(name)
        if fault is not None:
            raise Refused(Code.NAME_INVALID, fault)
        if name in self._reserved and not own:
            raise Refused(Code.NAME_FORBIDDEN, f"nobody may take the name {name}")

    def _choose(self, grants: Sequence[Grant], name: str | None) -> tuple[Grant, str | None]:
        """The grant that reaches furthest, and the name it is used for (None: a random one). Raises Refused."""
        now = self._minting.clock()
        usable = [grant for grant in grants if grant.allows(SERVE, now)]
        if name is not None:
            own = any(grant.own_name == name for grant in usable)
            self._check_name(name, own=own)
            usable = [grant for grant in usable if grant.allows_name(name)]
        # One for the very name first: only that one may take it over.
        usable.sort(key=lambda grant: grant.own_name is None)
        if not usable:
            what = f"the name {name}" if name is not None else "any name"
            raise Refused(Code.NAME_FORBIDDEN, f"no credential that was shown allows {what}")
        grant = usable[0]
        chosen = name if name is not None else grant.own_name
        if chosen is None and grant.names is not None:
            raise Refused(Code.NAME_FORBIDDEN, "the credential allows several names: say which one")
        return grant, chosen

    # Binding

    async def _bind_random(self, grant: Grant, instance: str, link: str, request: BindRequest) -> Bound:
        for _ in range(RANDOM_TRIES):
            try:
                return await self._bind_name(grant, self._free_name(), instance, link, request)
            except Refused as refused:
                if refused.code != Code.NAME_TAKEN:
                    raise
        raise Refused(Code.NAME_TAKEN, "no free name was found: choose one")

    async def _bind_name(self, grant: Grant, name: str, instance: str, link: str, request: BindRequest) -> Bound:
        place = (link, request.handle)
        tunnel, fresh = self._record(grant.owner, name, request, grant.tunnel)
        try:
            self._records.place(tunnel.id, place)
            holder = Holder(grant.owner, instance)
            own = grant.own_name == name
            claim = await self._registry.claim(name, holder, link, request.handle, takeover=own, epoch=request.epoch)
        except BaseException as error:
            self._records.leave(place)
            self._take_back(tunnel.id, fresh)
            if isinstance(error, NameTaken):
                raise _taken(error.holding, grant, request) from None
            raise
        now_here = self._records.at(place)
        if now_here is None or now_here.id != tunnel.id:
            await self._registry.release(name, link, request.handle)
            raise Refused(Code.NAME_TAKEN, "the name was taken over, or the tunnel deleted, at this moment")
        tunnel = self._settle(now_here, request, claim, link)
        return Bound(tunnel, self._recreate_token(tunnel), self.address.url(name), tunnel.hostname, claim)

    def _settle(self, tunnel: Tunnel, request: BindRequest, claim: Claim, link: str) -> Tunnel:
        """The Registry said yes: the record becomes what was asked for, and those who were replaced lose their places."""
        replaced = claim.previous.links if claim.previous is not None else frozenset[Place]()
        for old in replaced:
            self._records.leave(old)
        tunnel = self._records.end_pending(tunnel.id)
        tunnel = self._records.update(
            attrs.evolve(tunnel, kind=request.kind, host_header=request.host_header, target=request.target, pool=request.pool)
        )
        if self._hub.active:
            for old_link, _ in sorted(replaced):
                self._hub.emit(TunnelUnbound(tunnel.id, tunnel.name, old_link, offline=False))
            self._hub.emit(TunnelBound(tunnel.id, tunnel.name, tunnel.owner, link, replaced=bool(replaced)))
        return tunnel

    def _unplace(self, place: Place) -> Tunnel | None:
        tunnel = self._records.leave(place)
        if tunnel is not None and self._hub.active:
            self._hub.emit(TunnelUnbound(tunnel.id, tunnel.name, place[0], tunnel.state != "online"))
        return tunnel

    # Making

    def _record(self, owner: str, name: str, request: BindRequest, tunnel: str | None = None) -> tuple[Tunnel, bool]:
        """The owner's record of that name, and whether it was made now. Raises Refused when the name is another owner's."""
        before = self._records.by_name.get(name)
        if before is not None:
            if before.owner != owner:
                raise Refused(Code.NAME_TAKEN, "the name belongs to another owner")
            return before, False
        fresh = Tunnel(
            id=self._free_id(tunnel),
            name=name,
            hostname=self.address.hostname(name),
            owner=owner,
            kind=request.kind,
            host_header=request.host_header,
            target=request.target,
            pool=request.pool,
            created_at=self._minting.clock(),
        )
        return self._records.add(fresh), True

    def _take_back(self, tunnel: str, fresh: bool) -> None:
        """What a create or bind that failed had made, unless somebody else uses it by now."""
        found = self._records.by_id.get(tunnel)
        if fresh and found is not None and found.state == "offline":
            self._records.remove(tunnel)

    def _forgotten(self, tunnel: Tunnel) -> None:
        for callback in self.on_forgotten:
            callback(tunnel)

    def _not_pending(self, tunnel: str) -> None:
        if tunnel in self._records.by_id:
            self._records.end_pending(tunnel)

    def _free_id(self, wanted: str | None) -> str:
        if wanted is not None and wanted not in self._records.by_id:
            return wanted
        return self._minting.random(TUNNEL_ID_BYTES).hex()

    def _free_name(self) -> str:
        for _ in range(RANDOM_TRIES):
            name = names.random_name(self._minting.below)
            if name not in self._records.by_name and name not in self._reserved:
                return name
        raise Refused(Code.NAME_TAKEN, "no free name was found: choose one")

    def _ephemeral(self, tunnel: Tunnel) -> tuple[str, float]:
        minting = self._minting
        try:
            return minting.ephemerals.mint(name=tunnel.name, owner=tunnel.owner, tunnel=tunnel.id, now=minting.clock())
        except TooManyTokens:
            raise Refused(Code.TUNNEL_LIMIT, "too many tunnels wait for their Agents") from None

    def _recreate_token(self, tunnel: Tunnel) -> str:
        minting = self._minting
        return mint_recreate(minting.keys(), name=tunnel.name, owner=tunnel.owner, tunnel=tunnel.id, now=minting.clock())


def _taken(holding: Holding, grant: Grant, request: BindRequest) -> Refused:
    if holding.holder.owner != grant.owner:
        return Refused(Code.NAME_TAKEN, "the name belongs to another owner")
    if not holding.not_after(request.epoch):
        return Refused(Code.REPLACED, "another Agent took this Tunnel over")
    return Refused(Code.NAME_TAKEN, "another Agent holds it; its recreate token is needed to take over")
