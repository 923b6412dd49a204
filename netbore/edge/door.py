"""The door: lets Agents in. Handshakes, resume, and the Links that come of them.

Theory of operation. Each transport that an Agent opened has one task for the time of its handshake, with the limits of
a stranger (a deadline, few records, few at a time). HELLO is checked by the Authority and becomes an `AgentLink`.
RESUME finds one: *fence, then count* (docs/protocol.md section 6) is `_resume`, and nothing in it awaits between the
fence and the count. A Link that is broken is kept for a grace time.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

import attrs
import trio

from netbore.edge.agents import AgentLink
from netbore.edge.authority import Authority, Unauthorized
from netbore.edge.hub import Hub, LinkOpened
from netbore.edge.publisher import Publisher
from netbore.edge.registry import LEASE_SECONDS, Registry
from netbore.edge.tunnels import Tunnels
from netbore.link.greeting import Greeting
from netbore.link.poller import Poller
from netbore.link.transport import Transport, TransportBroken
from netbore.proto.errors import RemoteProtocolError
from netbore.proto.handshake import Hello, Limits, Reject, Resume, Resumed, Welcome, choose_minor, proves
from netbore.proto.window import Budget
from netbore.proto.wire import (
    GRACE_SECONDS,
    HANDSHAKE_LINKS_BROKEN,
    HANDSHAKE_SECONDS,
    LINK_BUDGET,
    MINOR,
    Code,
)

log = logging.getLogger("netbore.edge.door")


@attrs.frozen
class DoorLimits:
    """Of Agents. Seconds, counts and bytes."""

    handshake_seconds: float = HANDSHAKE_SECONDS
    pending: int = 256
    grace_seconds: float = GRACE_SECONDS
    broken: int = HANDSHAKE_LINKS_BROKEN
    links: int = 4096
    #: Links that ended by a takeover and are remembered, the newest.
    replaced: int = 1000
    link_budget: int = LINK_BUDGET
    lease_renew_seconds: float = LEASE_SECONDS / 3
    #: Streams that an Agent may open: none has a use yet, and each holds back a part of the budget.
    streams: int = 16


@attrs.frozen
class DoorParts:
    """What the door works with."""

    poller: Poller
    nursery: trio.Nursery
    authority: Authority
    tunnels: Tunnels
    publisher: Publisher
    hub: Hub
    budget: Budget
    edge_id: str


class Door:
    """All Links of this Edge, and the way to become one."""

    def __init__(self, parts: DoorParts, limits: DoorLimits | None = None) -> None:
        self.parts = parts
        self.limits = limits or DoorLimits()
        self.links: dict[str, AgentLink] = {}
        #: Links that ended by a takeover: whoever resumes one later has not heard of it, and must not come back by HELLO.
        self._replaced: dict[str, AgentLink] = {}
        self._pending = 0
        self._count = 0
        self.closed = False

    def accept(self, transport: Transport, leftover: bytes = b"") -> None:
        """Receive the Agent behind an open transport; `leftover` are bytes of it that were read already."""
        if self._pending >= self.limits.pending or self.closed:
            log.warning("an Agent was turned away: %d handshakes are pending", self._pending)
            transport.close(abort=True)
            return
        self._pending += 1
        self.parts.nursery.start_soon(self._receive, transport, leftover)

    def close(self, code: int = Code.GOING_AWAY, text: str = "the Edge is stopping") -> None:
        """End all Links."""
        self.closed = True
        for link in list(self.links.values()):
            link.link.close(code, text)

    async def keep_leases(self, registry: Registry) -> None:
        """Renew what our Links hold, broken ones too, until cancelled."""
        while True:
            await trio.sleep(self.limits.lease_renew_seconds)
            await registry.renew(list(self.links))

    # One handshake, in its task

    async def _receive(self, transport: Transport, leftover: bytes) -> None:
        kept = False
        try:
            greeting = Greeting(transport, dialler=False, leftover=leftover)
            with trio.move_on_after(self.limits.handshake_seconds):
                kept = await self._converse(greeting)
        except TransportBroken as error:
            log.debug("an Agent's handshake ended: %s", error.reason)
        finally:
            self._pending -= 1
            if not kept:
                transport.close()

    async def _converse(self, greeting: Greeting) -> bool:
        """Answer until there is a Link. False when the transport is of no use."""
        while True:
            try:
                message = await greeting.hear()
            except RemoteProtocolError as error:
                await greeting.refuse(Reject(error.code, error.text))
                return False
            if isinstance(message, Hello):
                return await self._welcome(greeting, message)
            assert isinstance(message, Resume)
            reject = self._objection(message)
            if reject is None:
                return await self._resume(greeting, message)
            await greeting.say(reject)

    async def _welcome(self, greeting: Greeting, hello: Hello) -> bool:
        minor = choose_minor(hello.minor, MINOR)
        if minor is None:
            text = f"this Edge speaks minor versions {MINOR[0]} to {MINOR[1]}"
            await greeting.refuse(Reject(Code.VERSION_UNSUPPORTED, text, minor=MINOR))
            return False
        try:
            grant = await self.parts.authority.check(hello.credential, hello.instance)
        except Unauthorized as error:
            await greeting.refuse(Reject(Code.UNAUTHORIZED, str(error)))
            return False
        if len(self.links) >= self.limits.links:
            await greeting.refuse(Reject(Code.LIMIT_EXCEEDED, "the Edge carries as many Links as it may"))
            return False
        self._count += 1
        link_id = f"{self.parts.edge_id}.{self._count}"
        secret = secrets.token_hex(32)
        ours = Limits(max_streams=self.limits.streams)
        welcome = Welcome(
            minor=minor,
            edge=self.parts.edge_id,
            link=link_id,
            secret=secret,
            links=1,
            grace=round(self.limits.grace_seconds),
            limits=ours,
        )
        await greeting.say(welcome)
        self._end_superseded(hello)
        agent = AgentLink(self, link_id=link_id, secret=secret, hello=hello, grant=grant, ours=ours)
        self.links[link_id] = agent
        agent.link.attach(greeting.transport, 0, greeting.decoder)
        agent.watch_grant()
        peer = greeting.transport.facts.peer
        self.parts.hub.emit(LinkOpened(link_id, grant.owner, hello.instance, hello.agent, peer))
        log.info("link %s is up: %s", link_id, hello.agent)
        return True

    def _end_superseded(self, hello: Hello) -> None:
        """A new HELLO of an instance ends its broken Links that it does not mean to keep."""
        for agent in list(self.links.values()):
            if agent.hello.instance == hello.instance and agent.link.broken and agent.id not in hello.keeps:
                agent.link.close(Code.NO_ERROR, "its Agent made a new Link")

    def _objection(self, resume: Resume) -> Reject | None:
        """Why `resume` cannot be had, in the order of docs/protocol.md section 6."""
        agent = self.links.get(resume.link) or self._replaced.get(resume.link)
        if agent is None or not proves(resume, agent.secret, self.parts.edge_id):
            return Reject(Code.UNKNOWN_LINK, "no such Link")
        if agent.link.ended is not None:
            return Reject(Code.REPLACED, agent.link.ended.text)
        if resume.epoch <= agent.epoch:
            return Reject(Code.STALE_EPOCH, "the epoch is not above the last one", epoch=agent.epoch)
        if not agent.link.session.pipe.accepts(resume.received):
            agent.link.close(Code.CORRUPT_SEQUENCE, "impossible offset in RESUME")
            return Reject(Code.CORRUPT_SEQUENCE, "impossible offset")
        return None

    async def _resume(self, greeting: Greeting, resume: Resume) -> bool:
        agent = self.links[resume.link]
        agent.epoch = resume.epoch
        agent.fence("the Agent resumes")
        received = agent.link.session.pipe.received
        await greeting.say(Resumed(resume.epoch, received))
        if agent.epoch != resume.epoch or agent.link.ended is not None:
            return False  # a newer transport came while we spoke
        agent.restore(greeting.transport, resume.received, greeting.decoder)
        log.info("link %s was resumed", agent.id)
        return True

    # What AgentLinks say

    def broken(self, agent: AgentLink) -> None:
        """One more broken Link: only so many are kept for one holder."""
        same = [one for one in self.links.values() if one.holder == agent.holder and one.link.broken]
        for oldest in same[: max(0, len(same) - self.limits.broken)]:
            oldest.link.close(Code.LIMIT_EXCEEDED, "too many broken Links")

    def ended(self, agent: AgentLink) -> None:
        """The Link is over: release what it held."""
        self.links.pop(agent.id, None)
        if agent.link.ended is not None and agent.link.ended.code == Code.REPLACED:
            self._replaced[agent.id] = agent
            if len(self._replaced) > self.limits.replaced:
                del self._replaced[next(iter(self._replaced))]
        if not self.closed:
            self.parts.nursery.start_soon(self.parts.tunnels.release_link, agent.id)

    def spawn(self, task: Callable[..., object], *args: object) -> None:
        """Run an async function of an AgentLink in the door's nursery."""
        if not self.closed:
            self.parts.nursery.start_soon(task, *args)  # type: ignore[arg-type]
