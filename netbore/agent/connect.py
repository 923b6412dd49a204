"""What it takes to reach an Edge and to come back to it: who we are, how long we wait, what is final."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from netbore.errors import NetboreError, Replaced, Unauthorized, VersionMismatch
from netbore.link.transport import Transport
from netbore.proto.handshake import Credential, Limits
from netbore.proto.wire import (
    HANDSHAKE_SECONDS,
    RETRY_FIRST_SECONDS,
    RETRY_MOST_SECONDS,
    RETRY_RESET_SECONDS,
    Code,
)

#: Opens a transport to the Edge and waits until bytes may flow. Raises TransportBroken, or NetboreError for what will not
#: work by trying again.
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


@attrs.frozen
class Way:
    """How an Edge is reached. `jitter()` is random in [0, 1)."""

    dial: Dial
    identity: Identity
    jitter: Callable[[], float]
    limits: ConnectLimits = ConnectLimits()
    #: Go on when the very first attempt fails, too. Otherwise that is EdgeUnreachable.
    patient: bool = True


#: Why a Reject or CLOSE with a final code cannot be mended by trying again.
FINAL_ERRORS: dict[int, type[NetboreError]] = {
    Code.UNAUTHORIZED: Unauthorized,
    Code.REPLACED: Replaced,
    Code.VERSION_UNSUPPORTED: VersionMismatch,
}


#: Where the count of attempts stands at most after a transport that was up, however short: the wait that follows stays far
#: below the time for which an Edge holds Viewers, so a path that breaks often fails none of them.
ATTEMPTS_AFTER_UP = 5


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
        """The last transport was up for so long."""
        most = 0 if seconds >= self._limits.retry_reset_seconds else ATTEMPTS_AFTER_UP
        self.attempts = min(self.attempts, most)
