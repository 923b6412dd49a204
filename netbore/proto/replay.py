"""The replay: the bytes of a sequence that the peer has not acknowledged (docs/protocol.md section 3).

Theory of operation. Three offsets, `acked <= next <= end`, and `room`, which bounds `end - acked`. Bytes enter at
`end` as they are sent; an acknowledgement lets go of them at the other side; on a new transport `next` goes back to
where the peer stands, and everything from there to `end` is sent again before anything new.

The parts of each flush are kept as they are: nothing is copied. Those below COPY_BELOW are copied into a growing tail
instead, because a small part costs more to keep than its bytes: a room full of one-byte parts would be fifty times the room.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from netbore.proto.stream import COPY_BELOW, Data
from netbore.proto.window import Growth

#: A tail that has grown to this is left alone.
_TAIL_MOST: Final = 4 * COPY_BELOW


class Replay:
    """What may have to be sent again."""

    __slots__ = ("_again", "_parts", "_skip", "_tail", "acked", "end", "next", "room")

    def __init__(self, room: Growth) -> None:
        self.room = room
        self.acked = 0
        self.next = 0
        self.end = 0
        self._parts: deque[Data | bytearray] = deque()
        self._skip = 0  # bytes of the first part that are acknowledged already
        self._again: deque[Data | bytearray] = deque()  # what `next` still has to pass again
        self._tail: bytearray | None = None  # the last part, while it may grow

    @property
    def free(self) -> int:
        """How many new bytes there is room for."""
        return self.room.size - (self.end - self.acked)

    def append(self, data: Data) -> None:
        """`data` is being sent for the first time. It must be immutable; everything before it must have been sent."""
        assert self.next == self.end
        count = len(data)
        self.end += count
        self.next = self.end
        if count >= COPY_BELOW:
            self._tail = None
            self._parts.append(data)
        elif self._tail is not None and len(self._tail) < _TAIL_MOST:
            self._tail += data
        else:
            self._tail = bytearray(data)
            self._parts.append(self._tail)

    def acknowledge(self, offset: int) -> int:
        """Let go of everything before `offset`, which lies in [acked, next]. Return how many bytes that was."""
        count = offset - self.acked
        self.acked = offset
        skip = self._skip + count
        parts = self._parts
        while parts and skip >= len(parts[0]):
            skip -= len(parts.popleft())
        self._skip = skip
        if not parts:
            self._tail = None
        return count

    def rewind(self, offset: int) -> None:
        """A new transport, whose peer has everything before `offset`, in [acked, end]: send again from there."""
        self.acknowledge(offset)
        self.next = offset
        self._tail = None  # views of it will be out
        self._again = deque(self._parts)
        if self._skip:
            self._again[0] = memoryview(self._again[0])[self._skip :]

    def again(self, limit: int) -> list[Data | bytearray]:
        """The next parts to be sent again, at most `limit` bytes."""
        taken = []
        while limit and self._again:
            part = self._again.popleft()
            if len(part) > limit:
                view = memoryview(part)
                self._again.appendleft(view[limit:])
                part = view[:limit]
            taken.append(part)
            limit -= len(part)
            self.next += len(part)
        return taken

    def clear(self) -> None:
        """Nothing will be sent again."""
        self._parts.clear()
        self._again.clear()
        self._tail = None
