"""Who may do what: a credential is checked once per HELLO and once per BIND, and gives a Grant.

Everything behind `Authority` may be slow (a database, an identity provider), so `check` is async. Revoking is pushed: who
holds a Grant watches it, and is called when it is no longer worth anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import attrs
import trio

from netbore.edge.statedir import StateDirectory
from netbore.edge.tokens import Ephemerals, same, verify_recreate
from netbore.proto.handshake import Credential

OPERATOR: Final = "operator"
SERVE: Final = "serve"
MANAGE: Final = "manage"
#: Revoked Tunnels that are remembered, the newest.
MAX_REVOKED: Final = 10_000

#: Told why a Grant was revoked, and whether what it serves is to end by force: if not, its Streams come to their end.
Revoked: TypeAlias = Callable[[str, bool], None]

log = logging.getLogger("netbore.edge")


@attrs.frozen
class Grant:
    """What a checked credential allows.

    `names` None: any. `verbs`: "serve" (bind Tunnels), "manage" (call the control API). `until`: wall time in seconds after
    which it allows nothing new, None for ever; what was bound before stays. `tunnel`: the one Tunnel it is for, if it is.
    """

    owner: str
    names: frozenset[str] | None
    verbs: frozenset[str]
    until: float | None
    kind: str
    tunnel: str | None = None

    def allows(self, verb: str, now: float) -> bool:
        """Whether it allows `verb` at all at wall time `now`."""
        return verb in self.verbs and (self.until is None or now < self.until)

    def allows_name(self, name: str) -> bool:
        """Whether it reaches `name`."""
        return self.names is None or name in self.names

    @property
    def own_name(self) -> str | None:
        """The one name that it is for, if it is for exactly one."""
        return next(iter(self.names)) if self.names is not None and len(self.names) == 1 else None


class Unauthorized(Exception):
    """The credential is worth nothing here. Its text may be shown to the peer."""


class Authority(Protocol):
    """Checks credentials."""

    async def check(self, credential: Credential, instance: str) -> Grant:
        """What `credential` allows the Agent process `instance`. A checkpoint. Raises Unauthorized."""
        ...

    def watch(self, grant: Grant, revoked: Revoked) -> Callable[[], None]:
        """Call `revoked(why, force)` once, when `grant` is revoked, or at once when it is already.

        What is returned ends the watch.
        """
        ...


class OperatorAuthority:
    """The Authority of an Edge without accounts: the operator's token, and the tokens that this Edge made itself."""

    def __init__(self, state: StateDirectory, ephemerals: Ephemerals, clock: Callable[[], float]) -> None:
        """`clock` is wall time in seconds."""
        self._state = state
        self._ephemerals = ephemerals
        self._clock = clock
        self._revoked: dict[str, str] = {}
        self._watchers: dict[object, tuple[Grant, Revoked]] = {}
        self._checks: Final = {
            "operator": self._operator,
            "recreate": self._recreate,
            "ephemeral": self._ephemeral,
            "management": self._management,
        }

    async def check(self, credential: Credential, instance: str) -> Grant:
        """See `Authority.check`."""
        await trio.lowlevel.checkpoint()
        check = self._checks.get(credential.type)
        if check is None:
            raise Unauthorized("this kind of credential is not known here")
        grant = check(credential.token, instance)
        if grant.tunnel is not None and grant.tunnel in self._revoked:
            raise Unauthorized(self._revoked[grant.tunnel])
        return grant

    def watch(self, grant: Grant, revoked: Revoked) -> Callable[[], None]:
        """See `Authority.watch`."""
        why = self._revoked.get(grant.tunnel) if grant.tunnel is not None else None
        key = object()
        if why is not None:
            revoked(why, True)
        else:
            self._watchers[key] = (grant, revoked)

        def end() -> None:
            self._watchers.pop(key, None)

        return end

    def revoke(self, tunnel: str, why: str, *, force: bool = True) -> None:
        """All tokens of one Tunnel are worth nothing from now on; `why` is shown to those who present them. Without
        `force`, what they serve comes to its end.

        It is remembered until this Edge ends, and for the newest MAX_REVOKED Tunnels.
        """
        self._ephemerals.forget(tunnel)
        self._revoked[tunnel] = why
        if len(self._revoked) > MAX_REVOKED:
            del self._revoked[next(iter(self._revoked))]
        self._tell(lambda grant: grant.tunnel == tunnel, why, force)

    def revoke_operator(self, why: str) -> None:
        """Whoever came with the operator's token until now loses what it allowed. (The token itself is changed in its file.)"""
        self._tell(lambda grant: grant.kind == "operator", why, True)

    def _tell(self, concerned: Callable[[Grant], bool], why: str, force: bool) -> None:
        hit = [key for key, (grant, _) in self._watchers.items() if concerned(grant)]
        for key in hit:
            entry = self._watchers.pop(key, None)
            if entry is None:
                continue  # an earlier callback ended this watch
            try:
                entry[1](why, force)
            except Exception:
                log.exception("a watcher of a grant failed")

    # One check for each kind of credential

    def _operator(self, token: str, instance: str) -> Grant:
        if not same(token, self._state.operator_token):
            raise Unauthorized("the operator token is wrong")
        return Grant(OPERATOR, None, frozenset({SERVE, MANAGE}), None, "operator")

    def _recreate(self, token: str, instance: str) -> Grant:
        claims = verify_recreate(self._state.signing_keys, token)
        if claims is None:
            raise Unauthorized("the recreate token was not made by this Edge")
        return Grant(claims.owner, frozenset({claims.name}), frozenset({SERVE}), None, "recreate", claims.tunnel)

    def _ephemeral(self, token: str, instance: str) -> Grant:
        known = self._ephemerals.present(token, instance, self._clock())
        if known is None:
            raise Unauthorized("the ephemeral token is wrong, has expired or was used by another Agent")
        return Grant(known.owner, frozenset({known.name}), frozenset({SERVE}), known.expires, "ephemeral", known.tunnel)

    def _management(self, token: str, instance: str) -> Grant:
        raise Unauthorized("this Edge has no accounts: use its operator token")
