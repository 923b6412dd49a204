"""Who goes first (docs/protocol.md section 4.5).

Theory of operation. Nothing is encoded before the transport can take it: commands leave marks, and `take` turns them into
frames. Of the marks, short frames (`_urgent`) are encoded at once, since they say what was true then; a WINDOW and MAX_STREAMS
say what is true when they leave, so many become one. Streams with something to send stand in `_ready`, each once, `scheduled`
says so. A Stream whose turn comes too late for its mark (reset meanwhile) is passed over. Streams whose OPEN finds no budget
stand in `_starved`.

Round robin is by bytes: the first of `_ready` keeps its place until it has had its quantum, over several calls if need be;
alone it may have MAX_DATA at a time. A frame that does not fit in `limit` is cut, and its rest is the first to leave in the
next call: every call makes progress, whatever the limit.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from netbore.proto.frames import encode, encode_max_streams, encode_reset, encode_stop, encode_window
from netbore.proto.mux_stream import MuxStream
from netbore.proto.parts import cut, size
from netbore.proto.state import SENDING, Half, Input, step
from netbore.proto.stream import Data
from netbore.proto.wire import FRAME_HEADER, MAX_DATA, QUANTUM, Frame

if TYPE_CHECKING:
    from netbore.proto.mux import Mux

_HEADER: Final = FRAME_HEADER.size
_DATA: Final = Frame.DATA << 24
#: A DATA frame that would be cut to less than this waits for the next call, unless it is the only one.
_SCRAP: Final = 256


class Scheduler:
    """What may leave, and in which order."""

    __slots__ = ("_left", "_marked", "_mux", "_pieces", "_ready", "_rest", "_starved", "_urgent", "_windows", "control")

    def __init__(self, mux: Mux) -> None:
        self._mux = mux
        self.control: MuxStream | None = None  # set once by the Mux; scheduled apart from the others
        self._rest: list[Data] = []  # of what was encoded last
        self._urgent: list[Data] = []
        self._windows: list[MuxStream] = []
        self._ready: deque[MuxStream] = deque()
        self._starved: list[MuxStream] = []
        self._left = QUANTUM  # what the first of `_ready` may still send in its turn
        self._marked = False
        self._pieces: list[Data | bytearray] = []

    # Marks

    @property
    def has_output(self) -> bool:
        """Whether `take` would give anything; may be True in vain when Streams were reset, once."""
        return self._marked

    def mark(self) -> None:
        """There is output."""
        if not self._marked:
            self._marked = True
            self._mux.on_output()

    def add(self, stream: MuxStream) -> None:
        """`stream` is ready and not scheduled yet."""
        stream.scheduled = True
        if stream is not self.control:
            self._ready.append(stream)
        if not self._marked:
            self.mark()

    def consider(self, stream: MuxStream) -> None:
        """Something about `stream` has changed."""
        if not stream.scheduled and stream.ready:
            self.add(stream)

    def window(self, stream: MuxStream) -> None:
        """Return the credit of `stream`."""
        stream.window_due = True
        self._windows.append(stream)
        self.mark()

    def urgent(self, frame: bytes) -> None:
        """A short frame that waits for no Stream."""
        self._urgent.append(frame)
        self.mark()

    def stop(self, stream_id: int, code: int) -> None:
        self.urgent(encode_stop(stream_id, code))

    def reset(self, stream_id: int, code: int, delivered: int) -> None:
        self.urgent(encode_reset(stream_id, code, delivered))

    def feed_starved(self) -> None:
        """The budget has changed: Streams that could not open may try again."""
        if self._starved:
            self._ready.extend(self._starved)
            self._starved.clear()
            self.mark()

    @property
    def starved(self) -> bool:
        """Some OPEN waits for the budget."""
        return bool(self._starved)

    def clear(self) -> None:
        """Nothing leaves any more."""
        for each in (self._rest, self._urgent, self._windows, self._ready, self._starved):
            each.clear()
        self._marked = False

    # Frames

    def take(self, limit: int, now: float) -> list[Data | bytearray]:
        """The next frames, in pieces of at most `limit` bytes together."""
        pieces = self._pieces = [*self._rest]
        self._rest = []
        room = limit - size(pieces)
        room = self._short_frames(room, now)
        control = self.control
        if control is not None and control.scheduled:
            room = self._control_data(control, room)
        if self._ready:
            room = self._streams(room, now)
        if room < 0:
            self._rest = cut(pieces, limit)
        if not (self._ready or self._rest or self._urgent or self._windows or self._mux.max_streams_due):
            self._marked = control is not None and control.scheduled
        return pieces

    def _short_frames(self, room: int, now: float) -> int:
        pieces = self._pieces
        windows = self._windows
        for done, stream in enumerate(windows):
            if room <= 0:
                self._windows = windows[done:]
                return room
            increment = stream.return_credit()
            if increment:
                pieces.append(encode_window(stream.id, increment))
                room -= len(pieces[-1])
        self._windows = []
        done = 0
        while room > 0 and done < len(self._urgent):
            pieces.append(self._urgent[done])
            room -= len(pieces[-1])
            done += 1
        del self._urgent[:done]
        if room > 0 and self._mux.max_streams_due:
            pieces.append(encode_max_streams(self._mux.announce_max_streams()))
            room -= len(pieces[-1])
        return room

    def _control_data(self, control: MuxStream, room: int) -> int:
        while room > 0 and control.queued and control.credit:
            room -= self._data(control, max(1, min(room - _HEADER, MAX_DATA)))
        if room > 0 and control.ready:
            room -= self._end(control)
        control.scheduled = control.ready
        return room

    def _streams(self, room: int, now: float) -> int:
        ready = self._ready
        while ready and room > 0:
            stream = ready[0]
            if 0 < stream.queued <= min(stream.credit, room - _HEADER, self._left) and stream.simple():
                room -= self._whole(stream)
                continue
            if not stream.opened:
                room -= self._open(stream, now)
            if stream.queued and stream.credit and stream.opened:
                if room < _SCRAP and self._pieces and room - _HEADER < min(stream.queued, stream.credit):
                    break
                alone = len(ready) == 1
                sent = self._data(stream, max(1, min(room - _HEADER, MAX_DATA if alone else self._left)))
                room -= sent
                self._left -= sent - _HEADER
                if stream.queued and stream.credit and self._left > 0 and not alone:
                    continue
            if not stream.queued and (stream.eof_queued or stream.reset_queued is not None) and stream.opened:
                room -= self._end(stream)
            self._rotate(stream)
        return room

    def _whole(self, stream: MuxStream) -> int:
        """The way of most Streams, the first of `_ready`: all that it has in one DATA frame, whose length is returned.

        It has too little to be blocked."""
        count = stream.queued
        pieces = self._pieces
        pieces.append(FRAME_HEADER.pack(_DATA | count, stream.id))
        pieces += stream.queue
        stream.drop_queue()
        stream.credit -= count
        stream.scheduled = False
        self._mux.data_sent += 1
        self._left = QUANTUM
        self._ready.popleft()
        return count + _HEADER

    def _rotate(self, stream: MuxStream) -> None:
        """The turn of `stream`, the first of `_ready`, is over."""
        self._left = QUANTUM
        self._ready.popleft()
        if not stream.ready:
            stream.scheduled = False
        elif stream.opened:
            self._ready.append(stream)
        else:
            self._starved.append(stream)

    def _open(self, stream: MuxStream, now: float) -> int:
        """OPEN, if the Stream still wants it and the budget allows it, and a STOP that waited for it."""
        frame = self._mux.encode_open(stream, now) if stream.ready else b""
        if not frame:
            return 0
        if stream.stop_queued is not None:
            frame += encode_stop(stream.id, stream.stop_queued)
        self._pieces.append(frame)
        return len(frame)

    def _data(self, stream: MuxStream, most: int) -> int:
        """One DATA frame of at most `most` bytes of payload. Return its length, header included."""
        most = min(most, stream.queued, stream.credit)
        pieces = self._pieces
        pieces.append(FRAME_HEADER.pack(_DATA | most, stream.id))
        queue = stream.queue
        left = most
        while left:
            head = queue[0]
            count = len(head)
            if count <= left:
                pieces.append(queue.popleft())
                left -= count
            else:
                view = memoryview(head)
                pieces.append(view[:left])
                queue[0] = view[left:]
                left = 0
        stream.queued -= most
        stream.credit -= most
        self._mux.data_sent += 1
        if stream.blocked:
            stream.unblock_if_low()
        return most + _HEADER

    def _end(self, stream: MuxStream) -> int:
        """FIN or RESET behind the last DATA."""
        if stream.reset_queued is not None:
            frame = encode_reset(stream.id, *stream.reset_queued)
            stream.end_by_reset(Input.SEND_RESET)
            self._mux.forget(stream)
        else:
            frame = encode(Frame.FIN, stream.id)
            stream.eof_queued = False
            if stream.sending_half is Half.OPEN:
                stream.sending_half = step(SENDING, stream.sending_half, Input.SEND_FIN)
            self._mux.forget_if_over(stream)
        self._pieces.append(frame)
        return len(frame)

    # Invariants

    def audit(self, streams: list[MuxStream]) -> list[str]:
        """Broken invariants, in words."""
        wrong = []
        standing = [*self._ready, *self._starved]
        if len(set(map(id, standing))) != len(standing):
            wrong.append("a Stream is scheduled twice")
        for stream in streams:
            if stream is not self.control and stream.scheduled != (stream in standing):
                wrong.append(f"Stream {stream.id}: scheduled is {stream.scheduled}")
            if stream.ready and not stream.scheduled:
                wrong.append(f"Stream {stream.id}: ready, but not in the scheduler")
            if stream.window_due != (stream in self._windows):
                wrong.append(f"Stream {stream.id}: window_due is {stream.window_due}")
        control = self.control is not None and self.control.scheduled
        waits = self._rest or self._urgent or self._windows or self._ready or control or self._mux.max_streams_due
        if waits and not self._marked:
            wrong.append("output, but not marked")
        return wrong
