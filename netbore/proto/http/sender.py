"""What both sides of an Exchange share: they send bodies through an Outbox on a Stream, chunked or not, or opaque bytes."""

from __future__ import annotations

from collections.abc import Callable

from netbore.proto.http.codec import emit_chunk
from netbore.proto.http.outbox import Outbox
from netbore.proto.http.timed import Timed
from netbore.proto.stream import Data, Stream


class Sender(Timed):
    """A connection with something to send. Base of `ViewerConnection` and `HostConnection`."""

    __slots__ = ("_chunked", "_end_due", "_opaque", "outbox", "stream")

    def __init__(self, stream: Stream, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.stream = stream
        self.outbox = Outbox()
        #: The body under way is sent in chunks.
        self._chunked = False
        #: After an upgrade: our half ends once the Outbox is empty.
        self._end_due = False
        self._opaque = False

    @property
    def drained(self) -> bool:
        """All of the message so far has been accepted."""
        return not self.outbox.size

    def send_body(self, data: Data) -> None:
        """Bytes of the message's body."""
        outbox = self.outbox
        if self._chunked:
            for part in emit_chunk(data):
                outbox.put(part)
            outbox.cost += len(data)
        else:
            outbox.put_body(data)

    def stop_reading(self, code: int) -> None:
        """Nobody takes more of what the peer sends."""
        self.stream.stop(code)
