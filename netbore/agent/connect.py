"""The connector: keeps one Link to an Edge, over one transport after another.

Theory of operation. `run` is a loop: dial, shake hands, wait until the transport breaks, again. A Link that is broken
is resumed, with a higher epoch each time, so that a lost answer locks nobody out; one that the Edge no longer knows is
replaced by a new one, by HELLO on the same transport. *Fence, then count*: the old transport is detached before
`received` is read. Waits between attempts grow with full jitter; the first comes at once, and the count starts again
only after a transport has stayed up for a while. What will never work is raised.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import attrs
import trio

from netbore.errors import EdgeUnreachable, NetboreError, Replaced, Unauthorized, VersionMismatch
from netbore.link.greeting import Greeting
from netbore.link.link import Link
from netbore.link.poller import Poller
from netbore.link.transport import Transport, TransportBroken
from netbore.proto.errors import RemoteProtocolError
from netbore.proto.handshake import Credential, Hello, Limits, Message, Reject, Resume, Resumed, Welcome, proof
from netbore.proto.mux import Role
from netbore.proto.session import Ended
from netbore.proto.wire import (
    FINAL,
    HANDSHAKE_SECONDS,
    MINOR,
    RETRY_FIRST_SECONDS,
    RETRY_MOST_SECONDS,
    RETRY_RESET_SECONDS,
    Code,
)

log = logging.getLogger("netbore.agent.connect")

#: Opens a transport to the Edge and waits until bytes may flow. Raises TransportBroken, or NetboreError for what will never work.
Dial = Callable[[], Awaitable[Transport]]


@attrs.frozen
class ConnectLimits:
    """Seconds."""

    dial_seconds: float = 10.0
    handshake_seconds: float = HANDSHAKE_SECONDS
    retry_first_seconds: float = RETRY_FIRST_SECONDS
    retry_most_seconds: float = RETRY_MOST_SECONDS
    retry_reset_seconds: float = RETRY_RESET_SECONDS


@attrs.frozen
class Identity:
    """Who we are to the Edge: the same through the life of the process."""

    credential: Credential
    instance: str
    agent: str
    limits: Limits = Limits()


class ConnectorUser(Protocol):
    """Who wants the Link. All calls are synchronous."""

    def on_link(self, link: Link, welcome: Welcome) -> None:
        """There is a new Link, and bytes flow: bind again."""

    def on_resumed(self, link: Link) -> None:
        """The Link goes on."""

    def on_reconnecting(self, reason: str, wait: float) -> None:
        """There is no transport; the next attempt begins after `wait` seconds."""

    def on_message(self, link: Link, message: dict[str, Any]) -> None:
        """A control message came."""

    def on_link_ended(self, link: Link, ended: Ended) -> None:
        """The Link is over; a new one will be made unless the end is final."""


#: Why a Reject or CLOSE with a final code cannot be mended by trying again.
FINAL_ERRORS: dict[int, type[NetboreError]] = {
    Code.UNAUTHORIZED: Unauthorized,
    Code.REPLACED: Replaced,
    Code.VERSION_UNSUPPORTED: VersionMismatch,
}


class Backoff:
    """Waits between attempts: none, then random below a ceiling that doubles."""

    def __init__(self, limits: ConnectLimits, jitter: Callable[[], float]) -> None:
        """`jitter()` is random in [0, 1)."""
        self._limits = limits
        self._jitter = jitter
        self.attempts = 0

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        self.attempts += 1
        if self.attempts == 1:
            return 0.0
        doublings = min(self.attempts - 2, 32)
        ceiling: float = min(self._limits.retry_first_seconds * 2**doublings, self._limits.retry_most_seconds)
        return self._jitter() * ceiling

    def stayed_up(self, seconds: float) -> None:
        """The last transport lived for so long."""
        if seconds >= self._limits.retry_reset_seconds:
            self.attempts = 0


class Connector:
    """One Link and the transports under it. The user of its Link."""

    def __init__(
        self,
        poller: Poller,
        dial: Dial,
        identity: Identity,
        user: ConnectorUser,
        *,
        jitter: Callable[[], float],
        limits: ConnectLimits | None = None,
        patient: bool = True,
    ) -> None:
        """`patient`: go on when the very first attempt fails, too. Otherwise that is EdgeUnreachable."""
        self._poller = poller
        self._dial = dial
        self._identity = identity
        self._user = user
        self._patient = patient
        self._limits = limits or ConnectLimits()
        self._backoff = Backoff(self._limits, jitter)
        self.link: Link | None = None
        self._welcome: Welcome | None = None
        self._epoch = 0
        self._broken = trio.Event()
        self._reason = ""
        self._final: NetboreError | None = None
        self._closed = False

    async def run(self) -> None:
        """Keep the Link until `close` or until cancelled. Raises NetboreError for an end that is final."""
        while not self._closed:
            started: float | None = None
            try:
                self._broken = trio.Event()
                await self._attempt()
                started = trio.current_time()
                await self._broken.wait()
            except TransportBroken as error:
                self._reason = error.reason
            except RemoteProtocolError as error:
                self._reason = f"the Edge broke the protocol: {error.text}"
            except trio.TooSlowError:
                self._reason = "the Edge did not answer in time"
            if self._is_closed():
                return
            if self._final is not None:
                raise self._final
            if self.link is None and not self._patient:
                raise EdgeUnreachable(f"the Edge cannot be reached: {self._reason}")
            if started is not None:
                self._backoff.stayed_up(trio.current_time() - started)
            wait = self._backoff.next()
            self._user.on_reconnecting(self._reason, wait)
            log.info("reconnecting in %.1f s: %s", wait, self._reason)
            await trio.sleep(wait)

    def close(self, code: Code, text: str) -> None:
        """End the Link for good; no other is made."""
        self._closed = True
        if self.link is not None:
            self.link.close(code, text)

    def _is_closed(self) -> bool:
        return self._closed

    # One transport

    async def _attempt(self) -> None:
        """Dial and shake hands; when this returns the Link has a transport."""
        with trio.fail_after(self._limits.dial_seconds):
            transport = await self._dial()
        kept = False
        try:
            with trio.fail_after(self._limits.handshake_seconds):
                await self._greet(Greeting(transport, dialler=True))
            kept = True
        finally:
            if not kept:
                transport.close(abort=True)

    async def _greet(self, greeting: Greeting) -> None:
        if self.link is not None and self.link.ended is None and await self._resume(greeting, self.link):
            return
        await self._hello(greeting)

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
            if isinstance(answer, Reject) and answer.code == Code.STALE_EPOCH and answer.epoch is not None:
                self._epoch = max(self._epoch, answer.epoch)
                continue
            if isinstance(answer, Reject) and answer.code in (Code.UNKNOWN_LINK, Code.CORRUPT_SEQUENCE):
                link.close(Code.LINK_LOST, "the Edge does not know the Link any more")
                return False
            raise self._refused(answer)

    def _go_on(self, greeting: Greeting, link: Link, answer: Resumed) -> None:
        try:
            link.attach(greeting.transport, answer.received, greeting.decoder)
        except RemoteProtocolError as error:
            link.close(error.code, error.text)
            raise
        self._user.on_resumed(link)

    async def _hello(self, greeting: Greeting) -> None:
        identity = self._identity
        await greeting.say(
            Hello(
                minor=MINOR,
                credential=identity.credential,
                instance=identity.instance,
                agent=identity.agent,
                limits=identity.limits,
            )
        )
        answer = await greeting.hear()
        if not isinstance(answer, Welcome):
            raise self._refused(answer)
        self._welcome = answer
        self._epoch = 0
        self.link = Link(self._poller, Role.DIALLER, identity.limits, answer.limits, self, name=answer.link)
        self.link.attach(greeting.transport, 0, greeting.decoder)
        self._user.on_link(self.link, answer)

    def _refused(self, answer: Message) -> Exception:
        """What to raise for an answer that is no welcome."""
        if not isinstance(answer, Reject):
            return RemoteProtocolError(Code.PROTOCOL_ERROR, f"{type(answer).__name__} was not asked for")
        if answer.code in FINAL:
            self._final = FINAL_ERRORS[answer.code](answer.text)
        return TransportBroken("refused", f"the Edge refused: {answer.text}")

    # The user of the Link

    def on_message(self, link: Link, message: dict[str, Any]) -> None:
        self._user.on_message(link, message)

    def on_broken(self, link: Link, reason: str) -> None:
        self._reason = reason
        self._broken.set()

    def on_move(self, link: Link, spread: float) -> None:
        """A second Link comes with the planned restart; until then the Edge's word is only noted."""
        log.info("the Edge asks to move within %.1f s", spread)

    def on_ended(self, link: Link, ended: Ended) -> None:
        if ended.by_peer and ended.code in FINAL_ERRORS:
            self._final = FINAL_ERRORS[ended.code](ended.text)
        self._reason = ended.text or "the Link ended"
        self._user.on_link_ended(link, ended)
        self._broken.set()
