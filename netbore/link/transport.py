"""The transport seam: one byte stream under a Link or a connection, in five methods.

Theory of operation. A transport is non-blocking and synchronous; TCP, TLS, WebSocket, memory and the simulator
implement it, and may stand on one another. It is made by a dialler or a listener, given its `owner`, and belongs to
one Poller.

- The owner hears of readiness by `on_readable` and `on_writable`, only for what it asked with `watch`, only from the
  Poller's turn, and then calls `try_recv` or `try_send` itself, as often as it likes. Readiness is level-triggered:
  an owner that reads too little is called again in the next turn. Bytes that a layer has already taken from the one
  below make no event there; such a transport puts itself on the Poller's ready list.
- `try_send` takes what it takes; it keeps at most one flush that it has already transformed (TLS records, a
  WebSocket frame), and reports those bytes as accepted. Held bytes are pushed by the transport itself, which watches
  the layer below for that, whatever the owner watches.
- Connecting and handshakes are states inside: `on_open` comes when bytes may flow, or `on_failed` instead. After
  `on_open` errors are raised by the calls, as `TransportBroken`.
- In a stack, the outer transport is the inner's owner. An error or hang-up comes as whichever call is watched; a
  transport that watches neither is not registered, and learns of it when it next watches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from netbore.proto.stream import Data


class TransportBroken(Exception):
    """The transport ended by error: reset, timed out, cut short of its close_notify, or a failed handshake.

    `reason` says what happened in words for a log; it never holds data of the peer. `kind` is one of "refused",
    "unreachable", "timeout", "reset", "truncated", "tls", "untrusted", "protocol".
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


@attrs.frozen
class Facts:
    """What is known of a transport once it is open."""

    peer: tuple[str, int] | None = None
    local: tuple[str, int] | None = None
    server_name: str | None = None
    alpn: str | None = None
    tls_version: str | None = None


class Owner(Protocol):
    """Who uses a transport. Calls come from the Poller's turn only."""

    def on_open(self) -> None:
        """Bytes may flow; the transport's `facts` are set. Called once, before any other."""

    def on_readable(self) -> object:
        """`try_recv` will give bytes, the end or an error."""

    def on_writable(self) -> None:
        """`try_send` may accept bytes, or will raise."""

    def on_failed(self, error: TransportBroken) -> None:
        """The transport never opened; it is closed already. Called instead of `on_open`."""


class Transport(Protocol):
    """One ordered, reliable byte stream. No method blocks or awaits.

    On a closed transport `try_recv` returns None, `try_send` the length of its data, and the others do nothing.
    Before `on_open`, `try_recv` returns None and `try_send` 0.
    """

    owner: Owner
    facts: Facts

    @property
    def draining(self) -> bool:
        """Accepted bytes, or the end, are not with the kernel yet.

        When it becomes False, an owner that watches writable gets one more `on_writable`.
        """

    def try_recv(self, limit: int) -> bytes | None:
        """Up to `limit` bytes; b"" at the peer's EOF (again and again); None when nothing is there yet.

        Raises TransportBroken when the peer's direction ended by error. On TLS an EOF without close_notify is such an error,
        unless the transport was made with `lenient_eof`.
        """

    def try_send(self, data: Data) -> int:
        """Take a prefix of `data` and return its length, 0 when nothing can be taken now.

        Raises TransportBroken when the peer takes no more. Reading may still give what the peer had sent.
        """

    def try_send_parts(self, parts: Sequence[Data]) -> int:
        """As `try_send` of all `parts`, in their order, together."""

    def quiet(self) -> bool:
        """Surely neither an end nor an error of the peer is here at this moment; False where that cannot be told."""

    def send_eof(self) -> None:
        """End our direction after everything that was accepted. Reading goes on."""

    def watch(self, readable: bool, writable: bool) -> None:
        """Choose the calls that the owner gets. A new transport watches neither; a choice before `on_open` is kept
        for then."""

    def close(self, abort: bool = False) -> None:
        """Close both directions; no call to the owner follows. Idempotent.

        A plain close offers what is still held to the kernel once and does not wait for the peer: an owner that cares
        for the tail calls `send_eof`, waits until `draining` is False, with a deadline, and then closes. `abort`
        tells the peer of an unclean end where the transport can: RST on TCP, no close_notify on TLS.
        """
