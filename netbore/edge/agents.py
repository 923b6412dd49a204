"""One Agent's Link, as the Edge sees it: its transports, what it has bound, and how that is taken away.

Theory of operation. An `AgentLink` is the user of its `Link`. What the Agent asks for is answered by its `Requests`, in the one
task that `serve` is, from WELCOME to the end of the Link. Tunnels are published by the `Publisher`; this module only says
which Link stands behind which handle.

A Link is *broken* from the moment its transport dies, or is fenced by a RESUME, until it has the next: both go the same way,
and only `restore` ends the grace time. So a RESUMED that cannot be said leaves a broken Link like any other.

What a Tunnel was bound by is watched for as long as it is bound. A Tunnel is taken away by force (its Streams are reset) or
gently (they come to their end); a Link that lost its last Tunnel to a gentle takeover lives until they have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from netbore.edge.authority import Grant
from netbore.edge.hub import LinkBroken, LinkEnded, LinkResumed
from netbore.edge.registry import Holder
from netbore.edge.requests import Requests
from netbore.edge.tunnels import Bound
from netbore.link.link import Link
from netbore.link.poller import Timer
from netbore.link.transport import Transport
from netbore.proto.handshake import Hello, Limits
from netbore.proto.mux import Role
from netbore.proto.mux_stream import MuxStream
from netbore.proto.records import RecordDecoder
from netbore.proto.session import Ended
from netbore.proto.window import Budget
from netbore.proto.wire import Code
from netbore.tasks import isolated

if TYPE_CHECKING:
    from netbore.edge.door import Door

log = logging.getLogger("netbore.edge.agents")


@attrs.define(eq=False)
class Binding:
    """What stands behind one handle. `by_hello`: no credential of its own was shown for it. `watches` end the watches of those
    that were."""

    name: str
    holder: Holder
    epoch: int
    by_hello: bool
    watches: list[Callable[[], None]] = attrs.field(factory=list)


class AgentLink:
    """A Link with an Agent behind it."""

    def __init__(self, door: Door, *, link_id: str, secret: str, hello: Hello, grant: Grant, budget: Budget) -> None:
        """Raises LocalProtocolError (limit_exceeded) when there is no room for another Link within `budget`."""
        parts, limits = door.parts, door.limits
        self._door = door
        self._parts = parts
        self.id = link_id
        self.secret = secret
        self.epoch = 0
        self.hello = hello
        self.holder = Holder(grant.owner, hello.instance)
        self.bound: dict[int, Binding] = {}
        #: What HELLO's credential allows, until it is revoked.
        self.grants: tuple[Grant, ...] = (grant,)
        self._unwatch: Callable[[], None] | None = None
        self._handing_over = False
        self._grace: Timer | None = None
        self._broken_at: float | None = None
        self._life = trio.CancelScope()
        self._requests = Requests(self, parts.authority, parts.tunnels, parts.publisher)
        self.ours = Limits(max_streams=limits.streams)
        self.link = Link(
            parts.poller, Role.ACCEPTOR, self.ours, hello.limits, self, name=link_id, budget=budget, max_id=limits.max_id
        )
        self.link.on_stream = _refuse

    async def serve(self) -> None:
        """Answer the Agent until the Link has ended, then give back what it held. A checkpoint."""
        with self._life:
            await self._requests.run()
        await isolated(self._parts.tunnels.release_link, self.id)

    # Grants

    def watch_grant(self) -> None:
        """Fall with the credential of HELLO when it is revoked, which may be now."""
        self._unwatch = self._parts.authority.watch(self.grants[0], self._revoked)

    def _revoked(self, why: str, force: bool = True) -> None:
        """The credential of HELLO is worth nothing any more. One that was for a single Tunnel gave no more than that."""
        (grant,), self.grants = self.grants, ()
        if grant.tunnel is None:
            self.link.close(Code.UNAUTHORIZED, why)
            return
        for handle in [handle for handle, binding in self.bound.items() if binding.by_hello]:
            self.take_away(handle, Code.UNBOUND, why, gentle=not force)
        if not self.bound:
            self.close_when_idle(Code.UNAUTHORIZED, why)

    # What is bound

    def bind(self, handle: int, bound: Bound, *, by_hello: bool) -> None:
        """The Agent serves a Tunnel as `handle`."""
        holding = bound.claim.holding
        self.bound[handle] = Binding(bound.tunnel.name, holding.holder, holding.epoch, by_hello)

    def watch_binding(self, handle: int, grants: Iterable[Grant]) -> None:
        """Take the Tunnel away when what it was bound by is revoked, which may be now."""
        for grant in grants:
            unwatch = self._parts.authority.watch(grant, partial(self._binding_revoked, handle, self.bound[handle]))
            binding = self.bound.get(handle)
            if binding is None:
                unwatch()
                return
            binding.watches.append(unwatch)

    def _binding_revoked(self, handle: int, binding: Binding, why: str, force: bool = True) -> None:
        if self.bound.get(handle) is binding:
            self.take_away(handle, Code.UNBOUND, why, gentle=not force)

    def unbind(self, handle: int) -> None:
        """Nothing stands behind `handle` any more. Idempotent."""
        binding = self.bound.pop(handle, None)
        for unwatch in binding.watches if binding is not None else ():
            unwatch()

    def take_away(self, handle: int, code: Code, text: str, *, gentle: bool) -> None:
        """The Agent serves this Tunnel no more: take its way away, tell the Agent, release the name. Nothing if not bound."""
        if handle in self.bound:
            self._parts.publisher.withdraw(self, handle)
            if not gentle:
                self.link.session.mux.abandon(handle, code)
            self._requests.release(handle)
            self.unbound(handle, code, text, gentle=gentle)

    def unbound(self, handle: int, code: Code, text: str, *, gentle: bool = False) -> None:
        """The Tunnel behind `handle` was taken away: tell the Agent. Nothing if it is not bound.

        A Link that loses its last one to a takeover ends: at once, or after a gentle takeover when its last Stream has ended.
        """
        if handle not in self.bound or self.link.ended is not None:
            return
        self.unbind(handle)
        self._handing_over = self._handing_over or gentle
        last = code is Code.REPLACED and not self.bound
        if last and not self._handing_over:
            self.link.close(Code.REPLACED, text)
            return
        self.link.send_message({"type": "unbound", "handle": handle, "code": code.name.lower(), "text": text})
        if last:
            self._door.spawn(self._close_later, code, text, True)

    def close_when_idle(self, code: Code, text: str) -> None:
        """End the Link when its last Stream has ended, or after `handover_seconds`."""
        if self.link.session.mux.idle:
            self.link.close(code, text)
        else:
            self._door.spawn(self._close_later, code, text, False)

    async def _close_later(self, code: Code, text: str, unless_bound: bool) -> None:
        with trio.move_on_after(self._door.limits.handover_seconds):
            await self.link.drained()
        if not (unless_bound and self.bound):
            self.link.close(code, text)

    # Transports

    def begin(self, transport: Transport, decoder: RecordDecoder) -> None:
        """Carry frames: WELCOME was said."""
        self.link.attach(transport, 0, decoder)

    def fence(self, reason: str) -> None:
        """The present transport is dead: what it still delivers does not count. `restore` follows, or the end of grace."""
        self.link.detach(reason)
        self._suspend(reason)

    def restore(self, transport: Transport, peer_received: int, decoder: RecordDecoder) -> None:
        """Go on over a new transport."""
        now, since = self._parts.poller.now, self._broken_at
        assert since is not None
        self._broken_at = None
        self._stop_grace()
        self._door.restored(self)
        self._parts.hub.emit(LinkResumed(self.id, self.epoch, now - since))
        self.link.attach(transport, peer_received, decoder)
        self._parts.publisher.restore(self)

    def on_broken(self, link: Link, reason: str) -> None:
        self._suspend(reason)

    def _suspend(self, reason: str) -> None:
        """There is no transport: Streams stand still, and the grace time begins, again if it had begun."""
        poller = self._parts.poller
        self._stop_grace()
        self._grace = poller.call_at(poller.now + self._door.limits.grace_seconds, self._expire)
        if self._broken_at is not None:
            return
        log.info("link %s is broken: %s", self.id, reason)
        self._broken_at = poller.now
        self._parts.publisher.suspend(self)
        self._parts.hub.emit(LinkBroken(self.id, reason))
        self._door.broken(self)

    def _expire(self) -> None:
        self.link.close(Code.GRACE_EXPIRED, "the Agent did not come back in time")

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    # The user of the Link

    def on_ended(self, link: Link, ended: Ended) -> None:
        log.info("link %s has ended: %s %s", self.id, ended.code, ended.text)
        self._parts.hub.emit(LinkEnded(self.id, ended.code, ended.text))
        self._stop_grace()
        if self._unwatch is not None:
            self._unwatch()
        for handle in list(self.bound):
            self.unbind(handle)
        self._parts.publisher.forget(self)
        self._life.cancel()
        self._door.ended(self, ended)

    def on_open_allowed(self, link: Link) -> None:
        self._parts.publisher.on_open_allowed(self)

    def on_move(self, link: Link, spread: float) -> None:
        """MOVE is for Agents."""
        link.close(Code.PROTOCOL_ERROR, "MOVE from an Agent")

    def on_message(self, link: Link, message: dict[str, Any]) -> None:
        if link.ended is None:
            self._requests.take(message)


def _refuse(stream: MuxStream) -> None:
    """An Agent has nothing to open Streams for, so far."""
    stream.reset(Code.UNSUPPORTED)
    stream.release()
