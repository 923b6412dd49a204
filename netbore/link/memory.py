"""Transports in memory: two ends of one connection, no descriptor, any clock.

Theory of operation. Each end has an inbox with a bound, which the other end fills: a full inbox is all the back-pressure
there is. An end that has something to tell puts itself on its Poller's ready list, and again as long as it does: level-
triggered, like a socket.
"""

from __future__ import annotations

from netbore.link.base import Owned
from netbore.link.poller import Poller
from netbore.link.transport import Facts, Owner, TransportBroken
from netbore.proto.stream import Data

CAPACITY = 65536


class MemoryTransport(Owned):
    """One end. Made by `memory_pair`, or by a simulated network."""

    __slots__ = ("_broken", "_capacity", "_eof", "_eof_sent", "_inbox", "_peer")

    def __init__(self, poller: Poller, owner: Owner | None = None, capacity: int = CAPACITY) -> None:
        super().__init__(poller, owner)
        self._capacity = capacity
        self._inbox = bytearray()
        self._eof = False
        self._eof_sent = False
        self._broken: TransportBroken | None = None
        self._peer: MemoryTransport | None = None

    def join(self, peer: MemoryTransport, facts: Facts) -> None:
        """The connection exists; `opened` follows from it."""
        self._peer = peer
        self.facts = facts
        self.opened = True

    # What the other end, or the network, does to this one.

    def room(self) -> int:
        return self._capacity - len(self._inbox)

    def take_in(self, data: Data) -> None:
        if not (self.closed or self._eof or self._broken):
            self._inbox += data
            self._tell()

    def take_eof(self) -> None:
        self._eof = True
        self._tell()

    def break_off(self, error: TransportBroken) -> None:
        """The connection was reset: what waits in the inbox may still be read, then `error` is raised."""
        if self._broken is None and not self.closed:
            self._broken = error
            self._tell()

    # Readiness.

    def can_recv(self) -> bool:
        return bool(self._inbox or self._eof or self._broken)

    def can_send(self) -> bool:
        peer = self._peer
        return self._broken is not None or (peer is not None and (peer.closed or peer.room() > 0))

    def _wanted(self) -> bool:
        return self.opened and ((self.want_read and self.can_recv()) or (self.want_write and self.can_send()))

    def _tell(self) -> None:
        if self._wanted():
            self._poller.make_ready(self)

    def on_ready(self, mask: int) -> None:
        if self.opened and not self.closed:
            if self.want_read and self.can_recv():
                self._owner.on_readable()
            if self.want_write and self.can_send():
                self._owner.on_writable()
            self._tell()

    # The seam.

    @property
    def draining(self) -> bool:
        return False

    def try_recv(self, limit: int) -> bytes | None:
        if not self.opened or self.closed:
            return None
        if self._inbox:
            data = bytes(self._inbox[:limit])
            del self._inbox[:limit]
            if self._peer is not None:
                self._peer.room_made()
            return data
        if self._broken is not None:
            raise self._broken
        return b"" if self._eof else None

    def room_made(self) -> None:
        self._tell()

    def try_send(self, data: Data) -> int:
        if self.closed:
            return len(data)
        if not self.opened or self._peer is None:
            return 0
        if self._broken is not None:
            raise self._broken
        return self._pass_on(data, self._peer)

    def _pass_on(self, data: Data, peer: MemoryTransport) -> int:
        if peer.closed:
            # As TCP does: a send after the other end closed is what brings its reset.
            self.break_off(TransportBroken("reset", "the other end has closed"))
            return len(data)
        count = min(len(data), peer.room())
        if count:
            peer.take_in(data[:count])
        return count

    def send_eof(self) -> None:
        if self.opened and not self.closed and not self._eof_sent:
            self._eof_sent = True
            self._end(None)

    def _end(self, error: TransportBroken | None) -> None:
        if self._peer is not None:
            if error is not None:
                self._peer.break_off(error)
            else:
                self._peer.take_eof()

    def watch(self, readable: bool, writable: bool) -> None:
        if not self.closed:
            self.want_read, self.want_write = readable, writable
            self._tell()

    def close(self, abort: bool = False) -> None:
        if self.closed:
            return
        # Unread input at a close is a reset, as the kernel has it.
        unread = bool(self._inbox)
        self.closed = True
        self.want_read = self.want_write = False
        self._inbox.clear()
        self._poller.let_go(self)
        if abort or unread:
            self._end(TransportBroken("reset", "the other end aborted"))
        elif not self._eof_sent:
            self._end(None)
        if self._peer is not None:
            self._peer.room_made()

    def audit(self) -> str | None:
        if not self.closed and self._wanted() and not self._poller.is_ready(self):
            return "a memory transport has something to tell and is not on the ready list"
        return None


def memory_pair(
    poller: Poller, other: Poller | None = None, *, capacity: int = CAPACITY
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two open ends of one connection, on one Poller or two of the same Trio run. Each direction holds `capacity` bytes."""
    near = MemoryTransport(poller, capacity=capacity)
    far = MemoryTransport(other or poller, capacity=capacity)
    near.join(far, Facts(peer=("memory", 2), local=("memory", 1)))
    far.join(near, Facts(peer=("memory", 1), local=("memory", 2)))
    return near, far
