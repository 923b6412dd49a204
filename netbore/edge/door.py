"""The door: lets Agents in. Handshakes, resume, and the Links that come of them.

Theory of operation. Each transport that an Agent opened has one task for the time of its handshake, with the limits of
a stranger (a deadline, few records, few at a time: the oldest goes when another comes). HELLO is checked by the Authority
and becomes an `AgentLink`, which has its place and its share of the budget before WELCOME is said: who hears WELCOME has a
Link. RESUME finds one: *fence, then count* (docs/protocol.md section 6) is `_resume`, and nothing in it awaits between the
fence and the count. A Link that is broken is kept for a grace time.

An unexpected error costs what it happened in: a handshake its transport, an answer its Link, a round of leases that round.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import attrs
import trio

from netbore.edge.agents import AgentLink
from netbore.edge.authority import Authority, Grant, Unauthorized
from netbore.edge.hub import Hub, LinkOpened
from netbore.edge.leases import renew_leases
from netbore.edge.owners import BrokenLinks, OwnerBudgets
from netbore.edge.publisher import Publisher
from netbore.edge.registry import LEASE_SECONDS, Holder, Registry
from netbore.edge.tunnels import Tunnels
from netbore.link.greeting import Greeting
from netbore.link.poller import Poller
from netbore.link.transport import Transport, TransportBroken
from netbore.proto.errors import LocalProtocolError, RemoteProtocolError
from netbore.proto.handshake import Hello, Reject, Resume, Resumed, Welcome, choose_minor, proves
from netbore.proto.session import Ended
from netbore.proto.window import Budget
from netbore.proto.wire import (
    GRACE_SECONDS,
    HANDSHAKE_LINKS_BROKEN,
    HANDSHAKE_SECONDS,
    LINK_BUDGET,
    MAX_ID,
    MINOR,
    Code,
)
from netbore.tasks import isolated, keep_running

log = logging.getLogger("netbore.edge.door")

Args = TypeVarTuple("Args")


@attrs.frozen
class DoorLimits:
    """Of Agents. Seconds, counts and bytes."""

    handshake_seconds: float = HANDSHAKE_SECONDS
    pending: int = 256
    grace_seconds: float = GRACE_SECONDS
    #: Broken Links that are kept for one Agent, and for all Agents of one owner.
    broken: int = HANDSHAKE_LINKS_BROKEN
    owner_broken: int = 1024
    links: int = 4096
    #: Links that ended by a takeover and are remembered: the newest, for so long.
    replaced: int = 1000
    replaced_seconds: float = 86400.0
    #: How long the Streams of a Link may go on that serves nothing any more.
    handover_seconds: float = 3600.0
    link_budget: int = LINK_BUDGET
    owner_budget: int = 384 * 1024 * 1024
    lease_renew_seconds: float = LEASE_SECONDS / 3
    #: Streams that an Agent may open: none has a use yet, and each holds back a part of the budget.
    streams: int = 1
    #: The last id of a Stream; a Link that comes there is retired.
    max_id: int = MAX_ID


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


@attrs.frozen
class ReplacedLink:
    """A Link that ended by a takeover: whoever resumes it later has not heard of that, and must not come back by HELLO."""

    secret: str = attrs.field(repr=False)
    text: str
    until: float


class Door:
    """All Links of this Edge, and the way to become one."""

    def __init__(self, parts: DoorParts, limits: DoorLimits | None = None) -> None:
        self.parts = parts
        self.limits = limits or DoorLimits()
        self.links: dict[str, AgentLink] = {}
        self._broken = BrokenLinks(self.limits.broken, self.limits.owner_broken)
        self._budgets = OwnerBudgets(self.limits.owner_budget, parts.budget)
        self._replaced: dict[str, ReplacedLink] = {}
        #: Handshakes, oldest first.
        self._pending: dict[Transport, trio.CancelScope] = {}
        self._count = 0
        self.closed = False

    @property
    def pending(self) -> int:
        """How many handshakes are under way."""
        return len(self._pending)

    def accept(self, transport: Transport, leftover: bytes = b"") -> None:
        """Receive the Agent behind an open transport; `leftover` are bytes of it that were read already."""
        if self.closed:
            transport.close(abort=True)
            return
        if len(self._pending) >= self.limits.pending:
            self._turn_away_oldest()
        scope = self._pending[transport] = trio.CancelScope()
        self.parts.nursery.start_soon(isolated, self._receive, transport, leftover, scope)

    def _turn_away_oldest(self) -> None:
        """Whoever is slow makes room: a flood of connections that say nothing must not keep Agents out."""
        oldest = next(iter(self._pending))
        log.warning("%d handshakes are pending: the oldest is given up", len(self._pending))
        self._pending.pop(oldest).cancel()
        oldest.close(abort=True)

    def close(self, code: int = Code.GOING_AWAY, text: str = "the Edge is stopping") -> None:
        """End all Links."""
        self.closed = True
        for link in list(self.links.values()):
            link.link.close(code, text)

    async def keep_leases(self, registry: Registry) -> None:
        """Renew what our Links hold, until cancelled. A Registry that fails is asked again."""
        await keep_running(self._keep_leases, registry)

    async def _keep_leases(self, registry: Registry) -> None:
        while True:
            await renew_leases(registry, list(self.links.values()))
            await trio.sleep(self.limits.lease_renew_seconds)

    # One handshake, in its task

    async def _receive(self, transport: Transport, leftover: bytes, scope: trio.CancelScope) -> None:
        kept = False
        try:
            greeting = Greeting(transport, dialler=False, leftover=leftover)
            with scope, trio.move_on_after(self.limits.handshake_seconds) as time:
                kept = await self._converse(greeting)
            if time.cancelled_caught:
                greeting.give_up(Reject(Code.TIMEOUT, "the handshake took too long"))
        except TransportBroken as error:
            log.debug("an Agent's handshake ended: %s", error.reason)
        finally:
            self._pending.pop(transport, None)
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

    # HELLO

    async def _welcome(self, greeting: Greeting, hello: Hello) -> bool:
        minor = choose_minor(hello.minor, MINOR)
        if minor is None:
            text = f"this Edge speaks minor versions {MINOR[0]} to {MINOR[1]}"
            await greeting.refuse(Reject(Code.VERSION_UNSUPPORTED, text, minor=MINOR))
            return False
        agent = await self._admit(hello, greeting.transport.facts.peer)
        if isinstance(agent, Reject):
            await greeting.refuse(agent)
            return False
        begun = False
        try:
            await greeting.say(self._welcome_to(agent, minor))
            if agent.link.ended is None:
                agent.begin(greeting.transport, greeting.decoder)
                begun = True
        finally:
            if not begun:
                agent.link.close(Code.LINK_LOST, "its Agent did not hear WELCOME")
        return begun

    async def _admit(self, hello: Hello, peer: tuple[str, int] | None) -> AgentLink | Reject:
        """The new Link, which has its place already; or why there is none."""
        try:
            grant = await self.parts.authority.check(hello.credential, hello.instance)
        except Unauthorized as error:
            return Reject(Code.UNAUTHORIZED, str(error))
        self._end_superseded(hello, Holder(grant.owner, hello.instance))
        if len(self.links) >= self.limits.links:
            return Reject(Code.LIMIT_EXCEEDED, "the Edge carries as many Links as it may")
        try:
            agent = self._make(hello, grant)
        except LocalProtocolError as error:
            log.warning("an Agent of %s was turned away: %s", grant.owner, error.text)
            return Reject(Code.LIMIT_EXCEEDED, "the Edge has no room for another Link now")
        self.parts.hub.emit(LinkOpened(agent.id, grant.owner, hello.instance, hello.agent, peer))
        agent.watch_grant()
        if agent.link.ended is not None:
            return Reject(agent.link.ended.code, agent.link.ended.text)
        log.info("link %s is made: %s", agent.id, hello.agent)
        return agent

    def _make(self, hello: Hello, grant: Grant) -> AgentLink:
        """Raises LocalProtocolError when the budget has no room for it."""
        self._count += 1
        link_id = f"{self.parts.edge_id}.{self._count}"
        budget = Budget(self.limits.link_budget, self._budgets.of(grant.owner))
        try:
            agent = AgentLink(self, link_id=link_id, secret=secrets.token_hex(32), hello=hello, grant=grant, budget=budget)
        except LocalProtocolError:
            self._budgets.tidy(grant.owner)
            raise
        self.links[link_id] = agent
        self.spawn(agent.serve)
        return agent

    def _welcome_to(self, agent: AgentLink, minor: int) -> Welcome:
        return Welcome(
            minor=minor,
            edge=self.parts.edge_id,
            link=agent.id,
            secret=agent.secret,
            links=1,
            grace=round(self.limits.grace_seconds),
            limits=agent.ours,
        )

    def _end_superseded(self, hello: Hello, holder: Holder) -> None:
        """A new HELLO of an instance ends its broken Links that it does not mean to keep."""
        for agent in self._broken.of(holder):
            if agent.id not in hello.keeps:
                agent.link.close(Code.NO_ERROR, "its Agent made a new Link")

    # RESUME

    def _objection(self, resume: Resume) -> Reject | None:
        """Why `resume` cannot be had, in the order of docs/protocol.md section 6."""
        agent = self.links.get(resume.link)
        known = agent or self._replaced_link(resume.link)
        if known is None or not proves(resume, known.secret, self.parts.edge_id):
            return Reject(Code.UNKNOWN_LINK, "no such Link")
        if isinstance(known, ReplacedLink):
            return Reject(Code.REPLACED, known.text)
        if resume.epoch <= known.epoch:
            return Reject(Code.STALE_EPOCH, "the epoch is not above the last one", epoch=known.epoch)
        if not known.link.session.pipe.accepts(resume.received):
            known.link.close(Code.CORRUPT_SEQUENCE, "impossible offset in RESUME")
            return Reject(Code.CORRUPT_SEQUENCE, "impossible offset")
        return None

    async def _resume(self, greeting: Greeting, resume: Resume) -> bool:
        agent = self.links[resume.link]
        agent.epoch = resume.epoch
        agent.fence("the Agent resumes")
        await greeting.say(Resumed(resume.epoch, agent.link.session.pipe.received))
        if agent.epoch != resume.epoch or agent.link.ended is not None:
            return False  # a newer transport came while we spoke, or the end
        agent.restore(greeting.transport, resume.received, greeting.decoder)
        log.info("link %s was resumed", agent.id)
        return True

    def _replaced_link(self, link: str) -> ReplacedLink | None:
        self._forget_replaced()
        return self._replaced.get(link)

    def _forget_replaced(self) -> None:
        """Those that are too many or too old; they stand in the order of their ends."""
        now = self.parts.poller.now
        while self._replaced:
            oldest = next(iter(self._replaced))
            if len(self._replaced) <= self.limits.replaced and now < self._replaced[oldest].until:
                break
            del self._replaced[oldest]

    # What AgentLinks say

    def broken(self, agent: AgentLink) -> None:
        """One more broken Link: only so many are kept."""
        oldest = self._broken.add(agent)
        if oldest is not None:
            oldest.link.close(Code.LIMIT_EXCEEDED, "too many broken Links")

    def restored(self, agent: AgentLink) -> None:
        """It is not broken any more."""
        self._broken.discard(agent)

    def ended(self, agent: AgentLink, ended: Ended) -> None:
        """The Link is over. What it held in the Registry is given back by its own task."""
        self.links.pop(agent.id, None)
        self._broken.discard(agent)
        self._budgets.tidy(agent.holder.owner)
        if ended.code == Code.REPLACED:
            until = self.parts.poller.now + self.limits.replaced_seconds
            self._replaced[agent.id] = ReplacedLink(agent.secret, ended.text, until)
            self._forget_replaced()

    def spawn(self, task: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
        """Run an async function of an AgentLink in the door's nursery. It fails alone."""
        if not self.closed:
            self.parts.nursery.start_soon(isolated, task, *args)
