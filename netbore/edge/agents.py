"""One Agent's Link, as the Edge sees it: what it may do, what it has bound, and what it asks for.

Theory of operation. An `AgentLink` is the user of its `Link`. Control messages that need the Registry are answered by
tasks in the door's nursery, at most MAX_UNANSWERED at a time. Tunnels are published by the `Publisher`; this module
only says which Link stands behind which handle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from netbore.edge.authority import Grant, Unauthorized
from netbore.edge.hub import LinkBroken, LinkEnded, LinkResumed
from netbore.edge.registry import Holder
from netbore.edge.tunnels import BindRequest, Refused
from netbore.link.link import Link
from netbore.link.poller import Timer
from netbore.link.transport import Transport
from netbore.proto.errors import RemoteProtocolError
from netbore.proto.handshake import Credential, Hello, Limits
from netbore.proto.mux import Role
from netbore.proto.records import RecordDecoder
from netbore.proto.session import Ended
from netbore.proto.window import Budget
from netbore.proto.wire import MAX_ID, MAX_UNANSWERED, Code

if TYPE_CHECKING:
    from netbore.edge.door import Door

log = logging.getLogger("netbore.edge.agents")

_BIND_TYPES = {
    "handle": int,
    "name": str,
    "kind": str,
    "mode": str,
    "host_header": str,
    "target": str,
    "pool": bool,
}


class AgentLink:
    """A Link with an Agent behind it."""

    def __init__(self, door: Door, *, link_id: str, secret: str, hello: Hello, grant: Grant, ours: Limits) -> None:
        self._door = door
        self._parts = door.parts
        self.id = link_id
        self.secret = secret
        self.epoch = 0
        self.hello = hello
        self.grant = grant
        self.holder = Holder(grant.owner, hello.instance)
        self.bound: dict[int, str] = {}
        self._unanswered = 0
        self._grace: Timer | None = None
        self._broken_at = self._parts.poller.now
        self._unwatch: list[Callable[[], None]] = []
        budget = Budget(door.limits.link_budget, door.parts.budget)
        self.link = Link(door.parts.poller, Role.ACCEPTOR, ours, hello.limits, self, name=link_id, budget=budget)

    def watch_grant(self) -> None:
        """Fall with the Grant when it is revoked."""
        self._unwatch.append(self._parts.authority.watch(self.grant, self._revoked))

    def _revoked(self, why: str) -> None:
        self.link.close(Code.UNAUTHORIZED, why)

    def _bind_revoked(self, handle: int, why: str) -> None:
        """The token that one Tunnel was bound by is worth nothing any more."""
        if handle in self.bound:
            self._parts.publisher.withdraw(self, handle)
            self.link.session.mux.abandon(handle, Code.UNBOUND)
            self.unbound(handle, Code.UNBOUND, why)
            self._door.spawn(self._parts.tunnels.release, self.id, handle)

    # Transports

    def fence(self, reason: str) -> None:
        """The present transport is dead: nothing that it still delivers counts."""
        if not self.link.broken:
            self._broken_at = self._parts.poller.now
        self.link.detach(reason)
        self._parts.publisher.suspend(self)

    def restore(self, transport: Transport, peer_received: int, decoder: RecordDecoder) -> None:
        """Go on over a new transport."""
        self._stop_grace()
        self.link.attach(transport, peer_received, decoder)
        self._parts.publisher.restore(self)
        self._parts.hub.emit(LinkResumed(self.id, self.epoch, self._parts.poller.now - self._broken_at))

    def on_broken(self, link: Link, reason: str) -> None:
        log.info("link %s is broken: %s", self.id, reason)
        self._broken_at = self._parts.poller.now
        self._parts.hub.emit(LinkBroken(self.id, reason))
        self._parts.publisher.suspend(self)
        poller = self._parts.poller
        self._stop_grace()
        self._grace = poller.call_at(poller.now + self._door.limits.grace_seconds, self._expire)
        self._door.broken(self)

    def _expire(self) -> None:
        self.link.close(Code.GRACE_EXPIRED, "the Agent did not come back in time")

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def on_ended(self, link: Link, ended: Ended) -> None:
        log.info("link %s has ended: %s %s", self.id, ended.code, ended.text)
        self._parts.hub.emit(LinkEnded(self.id, ended.code, ended.text))
        self._stop_grace()
        for unwatch in self._unwatch:
            unwatch()
        self._parts.publisher.forget(self)
        self._door.ended(self)

    def on_move(self, link: Link, spread: float) -> None:
        """MOVE is for Agents."""
        link.close(Code.PROTOCOL_ERROR, "MOVE from an Agent")

    # Messages

    def on_message(self, link: Link, message: dict[str, Any]) -> None:
        answer = {"bind": self._bind, "unbind": self._unbind}.get(str(message.get("type")))
        number = message.get("id")
        if type(number) is not int or not 0 <= number <= MAX_ID:
            if answer is not None:
                link.close(Code.PROTOCOL_ERROR, "a request without a proper id")
            return
        if answer is None:
            self._refuse(number, Code.UNSUPPORTED, "this Edge does not know such a message")
            return
        self._unanswered += 1
        if self._unanswered > MAX_UNANSWERED:
            link.close(Code.LIMIT_EXCEEDED, "too many unanswered requests")
            return
        self._door.spawn(self._answer, answer, number, message)

    async def _answer(self, answer: Callable[..., Any], number: int, message: dict[str, Any]) -> None:
        try:
            await answer(number, message)
        except Refused as error:
            self._refuse(number, error.code, error.text)
        except RemoteProtocolError as error:
            self.link.close(error.code, error.text)
        finally:
            self._unanswered -= 1

    def _refuse(self, number: int, code: Code, text: str) -> None:
        if self.link.ended is None:
            self.link.send_message({"type": "refused", "id": number, "code": code.name.lower(), "text": text})

    async def _bind(self, number: int, message: dict[str, Any]) -> None:
        request = read_bind(message)
        if request.handle in self.bound:
            raise Refused(Code.HANDLE_TAKEN, "the handle is in use on this Link")
        more = await self._more_grants(message)
        grants = [self.grant, *more]
        bound = await self._parts.tunnels.bind(grants, self.hello.instance, self.id, request)
        if self.link.ended is not None:
            await self._parts.tunnels.release(self.id, request.handle)
            return
        for grant in more:
            self._unwatch.append(self._parts.authority.watch(grant, partial(self._bind_revoked, request.handle)))
        self.bound[request.handle] = bound.tunnel.name
        self._parts.publisher.publish(self, request.handle, bound.tunnel, crash=request.mode == "crash")
        self.link.send_message(
            {
                "type": "bound",
                "id": number,
                "handle": request.handle,
                "tunnel": bound.tunnel.id,
                "name": bound.tunnel.name,
                "hostname": bound.tunnel.hostname,
                "public_url": bound.public_url,
                "recreate_token": bound.recreate_token,
            }
        )

    async def _more_grants(self, message: dict[str, Any]) -> list[Grant]:
        """What the credential in the message itself allows. A wrong one is refused, and harms nothing else."""
        if message.get("credential") is None:
            return []
        credential = Credential.from_json(message["credential"])
        try:
            return [await self._parts.authority.check(credential, self.hello.instance)]
        except Unauthorized as error:
            raise Refused(Code.UNAUTHORIZED, str(error)) from error

    async def _unbind(self, number: int, message: dict[str, Any]) -> None:
        handle = message.get("handle")
        if type(handle) is not int or handle not in self.bound:
            raise Refused(Code.UNSUPPORTED, "the handle is not bound on this Link")
        del self.bound[handle]
        self._parts.publisher.withdraw(self, handle)
        await self._parts.tunnels.release(self.id, handle)
        if self.link.ended is None:
            self.link.send_message({"type": "unbound", "id": number, "handle": handle, "code": "no_error", "text": ""})

    def unbound(self, handle: int, code: Code, text: str) -> None:
        """The Tunnel behind `handle` was taken away. A Link that loses its last one to a takeover ends."""
        self.bound.pop(handle, None)
        if self.link.ended is not None:
            return
        if code is Code.REPLACED and not self.bound:
            self.link.close(Code.REPLACED, text)
        else:
            self.link.send_message({"type": "unbound", "handle": handle, "code": code.name.lower(), "text": text})


def read_bind(message: dict[str, Any]) -> BindRequest:
    """The members of a `bind`, typed. What they say is for the Tunnels service to judge. Raises RemoteProtocolError."""
    values: dict[str, Any] = {}
    for field in attrs.fields(BindRequest):
        value = message.get(field.name)
        if value is None and field.default is not attrs.NOTHING:
            continue
        if type(value) is not _BIND_TYPES[field.name]:
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, f"bind: {field.name} is not a {_BIND_TYPES[field.name].__name__}")
        values[field.name] = value
    return BindRequest(**values)
