"""What stands on either side of an Exchange, how far an Exchange can be, and its limits.

The two sides are protocols, so that an HTTP/2 codec or a target inside the process can stand where the connections of
`viewer` and `host` do. The phases are a table: an input that is absent is a bug of the caller.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from netbore.proto.http.messages import Headers, RequestHead, ResponseHead
from netbore.proto.stream import Data

if TYPE_CHECKING:
    from netbore.proto.http.exchange import Exchange


@attrs.frozen
class ExchangeLimits:
    """What an Exchange and its connections may hold and how long they may wait, in bytes and seconds (docs/http.md section 7)."""

    head_seconds: float = 15.0
    idle_seconds: float = 75.0
    body_seconds: float = 60.0
    send_seconds: float = 300.0
    early_seconds: float = 1.0
    early_bytes: int = 65536
    response_seconds: float = 300.0
    opaque_seconds: float = 3600.0
    verdict_seconds: float = 2.0  # the verdict comes one round trip behind the request
    replay_bytes: int = 65536
    pipelined_bytes: int = 65536
    informational: int = 64
    pooled_credit: int = 262144


LIMITS: Final = ExchangeLimits()


class ViewerSide(Protocol):
    """Where an Exchange's request comes from and its response goes."""

    @property
    def minor(self) -> int:
        """The Viewer's HTTP/1 minor version. Of a later version, 1."""

    @property
    def drained(self) -> bool:
        """All of the response so far has been accepted."""

    @property
    def ended(self) -> bool:
        """No more input will come, and none of it is missing."""

    def send_head(self, head: ResponseHead, early: bool) -> None:
        """A response head, informational ones included, with no field about the connection but those of a 101.

        `early`: a final head that came before the request's end.
        """

    def send_whole(self, head: ResponseHead, body: Data, early: bool) -> int:
        """As `send_head`, `send_body`, `send_end` and `flush`, for a body of known length when nothing was sent before."""

    def send_body(self, data: Data) -> None:
        """Bytes of the response's body."""

    def send_end(self, trailers: Headers) -> None:
        """The response is whole."""

    def flush(self) -> int:
        """Offer what was sent. Return how many bytes of body may be consumed at their source."""

    def consumed(self, count: int) -> None:
        """`count` bytes of the request's body have left."""

    def expect_rest(self, seconds: float) -> None:
        """The response is whole: call `exchange.spent` if the request does not end within so long."""

    def go_opaque(self) -> Data:
        """After the head of a 101: bytes both ways from now on. Returns what came after the request."""

    def stop_reading(self, code: int) -> None:
        """Nobody takes more of what the Viewer sends."""

    def finish(self) -> None:
        """The Exchange is over, and the response whole."""

    def abort(self, code: int) -> None:
        """The response will never be whole: end visibly."""

    def freeze(self) -> None:
        """The Link behind this Exchange is broken: deadlines stand still and nothing is read."""

    def thaw(self, now: float) -> None:
        """It goes on."""


class HostSide(Protocol):
    """Where an Exchange's request goes and its response comes from."""

    @property
    def drained(self) -> bool:
        """All of the request so far has been accepted."""

    def start(self, exchange: Exchange, head: RequestHead) -> None:
        """Carry this Exchange, from its head on."""

    def send_body(self, data: Data) -> None:
        """Bytes of the request's body."""

    def send_end(self, trailers: Headers) -> None:
        """The request is whole."""

    def flush(self) -> int:
        """Offer what was sent. Return how many bytes of body may be consumed at their source."""

    def consumed(self, count: int) -> None:
        """`count` bytes of the response's body have left."""

    def go_opaque(self) -> None:
        """Bytes both ways from now on."""

    def stop_reading(self, code: int) -> None:
        """Nobody takes more of what the Host sends."""

    def finish(self) -> None:
        """The Exchange is over, both messages whole."""

    def cancel(self, code: int) -> None:
        """The Exchange is over in the middle. No call to it follows."""

    def unused(self) -> None:
        """The Exchange ended before it could start here."""


class Phase(IntEnum):
    """How far an Exchange is."""

    ASKED = 0
    FORWARDED = 1
    ANSWERING = 2
    EARLY = 3
    OPAQUE = 4
    DONE = 5


class Input(IntEnum):
    """What moves it."""

    FORWARD = 0
    ANSWER = 1
    RETRY = 2
    UPGRADE = 3
    EARLY = 4
    WHOLE = 5
    SPENT = 6
    ABORT = 7


TRANSITIONS: Final[dict[tuple[int, int], Phase]] = {
    (Phase.ASKED, Input.FORWARD): Phase.FORWARDED,
    (Phase.ASKED, Input.ANSWER): Phase.ANSWERING,
    (Phase.ASKED, Input.ABORT): Phase.DONE,
    (Phase.FORWARDED, Input.ANSWER): Phase.ANSWERING,
    (Phase.FORWARDED, Input.RETRY): Phase.ASKED,
    (Phase.FORWARDED, Input.UPGRADE): Phase.OPAQUE,
    (Phase.FORWARDED, Input.ABORT): Phase.DONE,
    (Phase.ANSWERING, Input.WHOLE): Phase.DONE,
    (Phase.ANSWERING, Input.EARLY): Phase.EARLY,
    (Phase.ANSWERING, Input.ABORT): Phase.DONE,
    (Phase.EARLY, Input.WHOLE): Phase.DONE,
    (Phase.EARLY, Input.SPENT): Phase.DONE,
    (Phase.EARLY, Input.ABORT): Phase.DONE,
    (Phase.OPAQUE, Input.WHOLE): Phase.DONE,
    (Phase.OPAQUE, Input.ABORT): Phase.DONE,
}
