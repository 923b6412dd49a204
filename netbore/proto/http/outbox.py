"""What a Stream has not accepted yet, and how much its source may be told is consumed.

Theory of operation. Parts are put in one after another and offered by `flush`. As long as the Stream takes everything, the parts
of one flush leave as one `send_nowait`. What it does not take waits: short parts are gathered into one buffer, so that a thousand
little pieces for a slow reader stay one piece, and long ones are kept by reference.

`cost` is how many of the bytes here came out of a source that is owed `consumed` for them; the rest is framing. The two are not
told apart by position: after a flush the source is owed for at most as many bytes as are left. So it is told of all of them when
the Outbox is empty, and before that at most the framing's size too late.
"""

from __future__ import annotations

from collections import deque

from netbore.proto.stream import COPY_BELOW, Data, Stream, kept

#: Parts that together are no longer than this are joined: one full read with its framing.
JOIN_MOST = 262144 + 4096


class Outbox:
    """Bytes for one Stream, in order. `size` is how many."""

    __slots__ = ("cost", "fresh", "size", "tail", "waiting")

    def __init__(self) -> None:
        self.fresh: list[Data] = []
        self.waiting: deque[Data] = deque()
        self.tail = bytearray()
        self.size = 0
        self.cost = 0

    def put(self, data: Data) -> None:
        """Add framing, or anything that no source waits for."""
        self.fresh.append(data)
        self.size += len(data)

    def put_body(self, data: Data) -> None:
        """Add bytes of a source, which is owed `consumed` for them."""
        self.fresh.append(data)
        self.size += len(data)
        self.cost += len(data)

    def offer(self, stream: Stream, data: Data, cost: int) -> int:
        """Offer `data` when nothing is here; `cost` of its bytes came from a source. Return what it may be told as consumed."""
        size = len(data)
        sent = stream.send_nowait(data)
        if sent == size:
            return cost
        self.size = size
        self._offered(data, sent)
        self.cost = min(cost, self.size)
        return cost - self.cost

    def flush(self, stream: Stream) -> int:
        """Offer what is here, at least one byte; return how many bytes of the source may be told as consumed now."""
        if not (self.waiting or self.tail) and self.size <= JOIN_MOST:
            fresh = self.fresh
            data = fresh[0] if len(fresh) == 1 else b"".join(fresh)
            fresh.clear()
            sent = stream.send_nowait(data)
            if sent == self.size:
                left, self.size, self.cost = self.cost, 0, 0
                return left
            self._offered(data, sent)
        else:
            self._settle()
            if stream.writable:
                self._send(stream)
        left = self.cost - min(self.cost, self.size)
        self.cost -= left
        return left

    def clear(self) -> None:
        """Drop everything; nothing more is told as consumed."""
        self.fresh = []
        self.waiting.clear()
        self.tail.clear()
        self.size = self.cost = 0

    def _offered(self, data: Data, sent: int) -> None:
        self.size -= sent
        if sent < len(data):
            self.waiting.appendleft(kept(memoryview(data)[sent:]))

    def _settle(self) -> None:
        for part in self.fresh:
            if len(part) < COPY_BELOW:
                self.tail += part
            else:
                self._seal()
                self.waiting.append(part)
        self.fresh = []

    def _seal(self) -> None:
        if self.tail:
            self.waiting.append(bytes(self.tail))
            self.tail.clear()

    def _send(self, stream: Stream) -> None:
        self._seal()
        while self.waiting:
            data = self.waiting.popleft()
            sent = stream.send_nowait(data)
            self._offered(data, sent)
            if sent < len(data):
                return
