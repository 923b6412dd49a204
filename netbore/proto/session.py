"""One Link's Pipe and Mux, joined. What a driver in `netbore.link` holds of the protocol.

Theory of operation. The Pipe asks the Mux for frames at the moment it can send them, and gives it the sequence as it arrives;
neither knows the other. Whatever is fatal on either side becomes one `Ended` event, and the other half is closed with the
same code. A Session outlives its transports: `attach` and `detach` come and go, `close` is for good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from netbore.proto import events, pipe
from netbore.proto.errors import LocalProtocolError
from netbore.proto.handshake import Limits
from netbore.proto.mux import Mux, Role
from netbore.proto.pipe import Pipe, PipeState
from netbore.proto.rate import Allowance
from netbore.proto.records import RecordDecoder
from netbore.proto.stream import Data
from netbore.proto.window import Budget
from netbore.proto.wire import LINK_BUDGET, MAX_ID, Code


@attrs.frozen
class Ended:
    """The Link is over. `by_peer` tells who said so."""

    code: int
    text: str
    by_peer: bool


Event: TypeAlias = events.Event | pipe.TransportDead | Ended


class Session:
    """The protocol of one Link, sans-IO. Every method is synchronous; time is passed in.

    Making one raises LocalProtocolError (limit_exceeded), and leaves the budget as it was, when there is no room for it.
    """

    def __init__(
        self,
        role: Role,
        ours: Limits,
        theirs: Limits,
        *,
        post: Callable[..., None],
        on_output: Callable[[], None],
        budget: Budget | None = None,
        max_id: int = MAX_ID,
    ) -> None:
        self.budget = budget if budget is not None else Budget(LINK_BUDGET)
        minor = Allowance()
        self.mux = Mux(role, ours, theirs, budget=self.budget, post=post, on_output=on_output, max_id=max_id, minor=minor)
        try:
            self.pipe = Pipe(
                pull=self.mux.data_to_send,
                deliver=self._deliver,
                budget=self.budget,
                on_output=on_output,
                allowance=minor,
            )
        except LocalProtocolError:
            self.mux.close(Code.LIMIT_EXCEEDED)  # gives its reserve back
            raise
        self._delivered: list[Any] = []
        self.ended: Ended | None = None

    # From and to the transport

    def attach(self, peer_received: int, now: float, decoder: RecordDecoder | None = None) -> list[Event]:
        """Go on over a new transport, whose handshake said that the peer has `peer_received` bytes.

        `decoder` may hold bytes behind the handshake. Raises RemoteProtocolError for an impossible offset.
        """
        self.pipe.attach(peer_received, now, decoder)
        self.mux.thaw()
        return self.receive_data(b"", now)

    def detach(self, now: float) -> None:
        """The transport is gone, and nothing that it may still deliver counts: Streams stand still until `attach`."""
        if self.pipe.state is PipeState.ATTACHED:
            self.pipe.detach(now)
            self.mux.freeze()

    def receive_data(self, data: Data, now: float) -> list[Event]:
        """Take bytes of the transport. Stream data has gone to its sinks when this returns. Never raises for peer input."""
        happened: list[Any] = self._delivered
        mine = self.pipe.receive_data(data, now)
        self.mux.rtt = self.pipe.rtt
        self._delivered = []
        return self._settle([*happened, *mine], now) if happened or mine else []

    def parts_to_send(self, limit: int, now: float) -> list[Data]:
        """The next bytes for the transport, at most `limit`, in few parts: they must reach it, or the transport is lost."""
        return self.pipe.parts_to_send(limit, now)

    def data_to_send(self, limit: int, now: float) -> bytes:
        """The parts of `parts_to_send`, joined."""
        return b"".join(self.parts_to_send(limit, now))

    @property
    def has_output(self) -> bool:
        """Whether `data_to_send` would give anything."""
        return self.pipe.has_output or (self.mux.has_output and self.pipe.can_pull)

    def next_deadline(self) -> float | None:
        """When `handle_timeout` wants to be called."""
        mine, other = self.pipe.next_deadline(), self.mux.next_deadline()
        if mine is None or other is None:
            return other if mine is None else mine
        return min(mine, other)

    def handle_timeout(self, now: float) -> list[Event]:
        """Do what is due. What can be read should have been read before."""
        self.mux.handle_timeout(now)
        return self._settle(list(self.pipe.handle_timeout(now)), now)

    # Commands

    def take_events(self, now: float) -> list[Event]:
        """What has happened in calls posted since, and was not told yet."""
        return self._settle(list(self.mux.take_events()), now)

    def close(self, code: int, text: str) -> Ended:
        """End the Link: its Streams are reset, CLOSE is the last thing sent. Idempotent."""
        if self.ended is None:
            self.ended = Ended(code, text, by_peer=False)
            self.pipe.close(code, text)
            self.mux.close(code if code in (Code.REPLACED, Code.GOING_AWAY) else Code.LINK_LOST)
        return self.ended

    def audit(self) -> list[str]:
        """Broken invariants, in words."""
        return [*self.pipe.audit(), *self.mux.audit()]

    # Inside

    def _deliver(self, data: Data, now: float) -> None:
        happened = self.mux.receive_data(data, now)
        if happened:
            self._delivered += happened

    def _settle(self, happened: list[Any], now: float) -> list[Event]:
        """Turn what ends one half into the end of both, and stop there: a closed Pipe tells nothing more."""
        settled: list[Event] = []
        for event in happened:
            match event:
                case events.Failed(code, text) | pipe.Failed(code, text):
                    settled.append(self.close(code, text))
                    break
                case pipe.Closed(code, text):
                    self.ended = Ended(code, text, by_peer=True)
                    self.mux.close(Code.LINK_LOST)
                    settled.append(self.ended)
                    break
                case _:
                    settled.append(event)
        return settled
