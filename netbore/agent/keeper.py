"""The keeper: keeps one Link to an Edge, over one transport after another.

Theory of operation. `run` is a loop: dial, shake hands, wait until the transport breaks, again. A Link that is broken
is resumed, with a higher epoch each time, so that a lost answer locks nobody out; one that the Edge no longer knows is
replaced by a new one, by HELLO on the same transport. *Fence, then count*: the old transport is detached before
`received` is read. Waits between attempts grow with full jitter; the first comes at once, and the count starts again
only after a transport has stayed up for a while. What will never work is raised.

What the loop waits for is always the state of the *present* Link, never a note that something happened: a Link that was
given up says so too, and must not cost its successor the transport. A Link can end during any await of a handshake (its
user may close it), so each answer is followed by a look at it before anything is attached.

A keeper that was *retired* (the Edge asked to move, or the Agent drains) keeps the Link it has, and resumes it; it makes no
other. Its run returns when that Link has ended.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import trio

from netbore.agent.connect import FINAL_ERRORS, Backoff, Way
from netbore.changes import Changed
from netbore.errors import EdgeUnreachable, EdgeUntrusted, NetboreError, VersionMismatch
from netbore.link.greeting import Greeting
from netbore.link.link import Link
from netbore.link.poller import Poller
from netbore.link.transport import TransportBroken
from netbore.proto.errors import RemoteProtocolError
from netbore.proto.handshake import Hello, Message, Reject, Resume, Resumed, Welcome, proof
from netbore.proto.mux import Role
from netbore.proto.session import Ended
from netbore.proto.wire import FINAL, MINOR, Code

log = logging.getLogger("netbore.agent.keeper")


class KeeperUser(Protocol):
    """Who wants the Link. All calls are synchronous."""

    def keeps(self) -> tuple[str, ...]:
        """Ids of the Links that this Agent still means to resume."""

    def on_link(self, keeper: Keeper, link: Link, welcome: Welcome) -> None:
        """There is a new Link, and bytes flow: bind again."""

    def on_resumed(self, keeper: Keeper) -> None:
        """The Link goes on."""

    def on_reconnecting(self, keeper: Keeper, reason: str, wait: float) -> None:
        """There is no transport; the next attempt begins after `wait` seconds."""

    def on_message(self, keeper: Keeper, message: dict[str, Any]) -> None:
        """A control message came."""

    def on_move(self, keeper: Keeper, spread: float) -> None:
        """The Edge wants a second Link, dialled after a random part of `spread` seconds."""

    def on_link_ended(self, keeper: Keeper, ended: Ended) -> None:
        """The Link is over; a new one will be made unless the end is final or the keeper retired."""


class Keeper:
    """One Link and the transports under it. The user of its Link."""

    def __init__(self, poller: Poller, way: Way, user: KeeperUser, *, proven: bool = False) -> None:
        """`proven`: the Edge has given us a Link before, so what looks final may pass."""
        self._poller = poller
        self._way = way
        self._user = user
        self._backoff = Backoff(way.limits, way.jitter)
        self._proven = proven
        self._welcome: Welcome | None = None
        self._epoch = 0
        self._changed = Changed()
        self._reason = ""
        self._final: NetboreError | None = None
        self._closed = False
        self.link: Link | None = None
        self.retired = False
        #: Set when `run` has come to its end.
        self.finished = trio.Event()

    @property
    def link_id(self) -> str | None:
        """The id of the Link while it may still be resumed."""
        link, welcome = self.link, self._welcome
        return welcome.link if link is not None and welcome is not None and link.ended is None else None

    @property
    def live(self) -> bool:
        """There is a Link that has not ended; it may be broken."""
        return self.link is not None and self.link.ended is None

    @property
    def over(self) -> bool:
        """No further Link is to be made, and there is none."""
        return self._closed or (self.retired and not self.live)

    async def run(self) -> None:
        """Keep the Link until `close`, until it has ended after `retire`, or until cancelled.

        Raises NetboreError for an end that is final.
        """
        try:
            while not self.over:
                await self._once()
        finally:
            self.finished.set()

    async def _once(self) -> None:
        """One transport, and the wait after it."""
        if await self._brought_up():
            started = trio.current_time()
            while self.live and self.link is not None and not self.link.broken:
                await self._changed.wait()
            self._backoff.stayed_up(trio.current_time() - started)
        if self._final is not None:
            raise self._final
        if self.over:
            return
        if not (self._proven or self._way.patient):
            raise EdgeUnreachable(f"the Edge cannot be reached: {self._reason}")
        wait = self._backoff.next()
        self._user.on_reconnecting(self, self._reason, wait)
        log.debug("reconnecting in %.1f s: %s", wait, self._reason)
        await trio.sleep(wait)

    def retire(self) -> None:
        """Make no other Link when this one has ended. Idempotent."""
        self.retired = True
        self._changed.set()

    def close(self, code: Code, text: str) -> None:
        """End the Link for good; no other is made."""
        self._closed = True
        if self.link is not None:
            self.link.close(code, text)
        self._changed.set()

    # One transport

    async def _brought_up(self) -> bool:
        """Try once. False when it did not work and may be tried again; `_reason` says why."""
        try:
            await self._attempt()
        except TransportBroken as error:
            self._reason = error.reason
        except RemoteProtocolError as error:
            self._reason = f"the Edge broke the protocol: {error.text}"
        except trio.TooSlowError:
            self._reason = "the Edge did not answer in time"
        except (EdgeUntrusted, VersionMismatch) as error:
            if not self._proven:
                raise
            # It was right before: a certificate being renewed, an Edge being replaced, somebody else's network.
            log.warning("the Edge cannot be used now, and is tried again: %s", error)
            self._reason = str(error)
        else:
            return True
        return False

    async def _attempt(self) -> None:
        """Dial and shake hands; when this returns the Link has a transport."""
        with trio.fail_after(self._way.limits.dial_seconds):
            transport = await self._way.dial()
        kept = False
        try:
            with trio.fail_after(self._way.limits.handshake_seconds):
                await self._greet(Greeting(transport, dialler=True))
            kept = True
        finally:
            if not kept:
                transport.close(abort=True)

    async def _greet(self, greeting: Greeting) -> None:
        if self.link is not None and self.live and await self._resume(greeting, self.link):
            return
        self._still_wanted()
        await self._hello(greeting)

    def _still_wanted(self) -> None:
        if self.over:
            raise TransportBroken("reset", "the Link is not wanted any more")

    async def _resume(self, greeting: Greeting, link: Link) -> bool:
        """Go on with `link`. False when the Edge has no use for it: then HELLO may follow on the same transport."""
        welcome = self._welcome
        assert welcome is not None
        while True:
            self._epoch += 1
            link.detach("a new transport takes over")
            received = link.session.pipe.received
            evidence = proof(welcome.secret, welcome.edge, welcome.link, self._epoch, received)
            await greeting.say(Resume(welcome.link, self._epoch, received, evidence))
            answer = await greeting.hear()
            if isinstance(answer, Resumed):
                self._go_on(greeting, link, answer)
                return True
            if not isinstance(answer, Reject):
                raise self._refused(answer)
            if answer.code == Code.STALE_EPOCH and answer.epoch is not None and link.ended is None:
                self._epoch = max(self._epoch, answer.epoch)
            elif answer.code in (Code.UNKNOWN_LINK, Code.CORRUPT_SEQUENCE, Code.STALE_EPOCH):
                link.close(Code.LINK_LOST, "the Edge does not know the Link any more")
                return False
            else:
                raise self._refused(answer)

    def _go_on(self, greeting: Greeting, link: Link, answer: Resumed) -> None:
        if link.ended is not None:
            raise TransportBroken("reset", "the Link was closed while it was resumed")
        try:
            link.attach(greeting.transport, answer.received, greeting.decoder)
        except RemoteProtocolError as error:
            link.close(error.code, error.text)
            raise
        self._user.on_resumed(self)

    async def _hello(self, greeting: Greeting) -> None:
        identity = self._way.identity
        await greeting.say(
            Hello(
                minor=MINOR,
                credential=identity.credential,
                instance=identity.instance,
                agent=identity.agent,
                keeps=self._user.keeps(),
                limits=identity.limits,
            )
        )
        answer = await greeting.hear()
        if not isinstance(answer, Welcome):
            raise self._refused(answer)
        self._still_wanted()
        self._welcome, self._epoch, self._proven = answer, 0, True
        self.link = link = Link(self._poller, Role.DIALLER, identity.limits, answer.limits, self, name=answer.link)
        link.attach(greeting.transport, 0, greeting.decoder)
        if link.ended is None:
            self._user.on_link(self, link, answer)

    def _refused(self, answer: Message) -> Exception:
        """What to raise for an answer that is no welcome."""
        if not isinstance(answer, Reject):
            return RemoteProtocolError(Code.PROTOCOL_ERROR, f"{type(answer).__name__} was not asked for")
        if answer.code in FINAL:
            self._final = FINAL_ERRORS[answer.code](answer.text)
        return TransportBroken("refused", f"the Edge refused: {answer.text}")

    # The user of the Link; one that was given up has nothing to say any more

    def on_message(self, link: Link, message: dict[str, Any]) -> None:
        if link is self.link:
            self._user.on_message(self, message)

    def on_broken(self, link: Link, reason: str) -> None:
        if link is self.link:
            self._reason = reason
            self._changed.set()

    def on_move(self, link: Link, spread: float) -> None:
        if link is self.link:
            self._user.on_move(self, spread)

    def on_open_allowed(self, link: Link) -> None:
        """An Agent opens no Streams yet."""

    def on_ended(self, link: Link, ended: Ended) -> None:
        if link is not self.link:
            return
        if ended.by_peer and ended.code in FINAL_ERRORS:
            self._final = FINAL_ERRORS[ended.code](ended.text)
        self._reason = ended.text or "the Link ended"
        self._user.on_link_ended(self, ended)
        self._changed.set()
