"""The Pipe: one reliable byte sequence per direction, over transports that come and go (docs/protocol.md sections 3 and 7).

Theory of operation. The Pipe knows nothing of what the sequence says. It pulls new bytes from above when they can be
sent, and delivers what it receives there in order; everything about transports, acknowledging and liveness stays in
here.

- **Sending.** `parts_to_send` makes one flush: ACK, PONG and PING, then what a new transport has to be sent again,
  then new bytes, pulled at that moment. New bytes are pulled only when nothing has to be sent again and the replay
  has room for whatever the source cannot split (PULL_LEAST). Less room than that counts as none, so whoever has
  something to send and `can_pull` does move.
- **Receiving.** `received` counts a piece *before* it is delivered: whatever the delivery does, even end the
  transport, the next resume states the right offset. The rest of the buffer is decoded only while we are still
  attached.
- **Acknowledging.** An ACK is owed from the first unacknowledged byte on. It rides on the next flush that carries
  anything, and is output of its own only once it is forced, by bytes or by time.
- **An exception in `deliver` or `pull`** is our own bug and passes through, except RemoteProtocolError: the peer
  broke the rules of the layer above, which ends the Link just as a broken rule of this one.
- **Fence, then count.** The Pipe cannot tell which transport its bytes came from. `received` is true for a resume
  only while DETACHED: detach first, then state it, and give nothing more of the old transport to `receive_data`.
- Timers that have fired become output and leave the deadline, so a transport that takes nothing cannot make the
  driver spin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from netbore.proto.errors import LocalProtocolError, RemoteProtocolError
from netbore.proto.heartbeat import Heartbeat
from netbore.proto.parts import pack, size
from netbore.proto.pipe_state import TRANSITIONS, Closed, Failed, Input, PipeEvent, PipeState, TransportDead
from netbore.proto.rate import Allowance
from netbore.proto.records import (
    HEADER,
    NUMBER_RECORD,
    SEQ,
    RecordDecoder,
    decode_close,
    decode_number,
    encode_close,
    encode_number,
    encode_seq_header,
)
from netbore.proto.replay import Replay
from netbore.proto.stream import Data
from netbore.proto.window import Budget, Growth, first_room
from netbore.proto.wire import (
    ACK_BYTES,
    ACK_SECONDS,
    DEAD_SECONDS,
    FIRST_ROOM,
    MAX_ROOM,
    MAX_SEQ,
    SKIPPABLE,
    STALL_SECONDS,
    Code,
    Record,
)

__all__ = ["PULL_LEAST", "Closed", "Failed", "Pipe", "PipeEvent", "PipeState", "TransportDead"]

#: The source is never asked for less: nothing it cannot split (an OPEN with all its facts) is longer.
PULL_LEAST: Final = 4116

#: PINGs of the peer that wait for their answer to leave. A peer that does not read gets the newest only.
PONGS_MOST: Final = 16

# As globals: to read a member of an enumeration costs ten times as much.
_DETACHED, _ATTACHED, _CLOSED = PipeState
_CLOSE: Final = int(Record.CLOSE)


class Pipe:
    """Both directions of one Link, sans-IO.

    `pull(limit, now)` returns new bytes of the sequence, parts of at most `limit` (at least PULL_LEAST) bytes
    together. `deliver(data, now)` takes received bytes, in order. `on_output()` is called when `data_to_send` may
    give something that it would not have given before; it is never called from inside `data_to_send`. Room is taken
    from `budget` and returned at the end. `allowance` is shared with the layer above, whose traffic earns.

    Raises LocalProtocolError (limit_exceeded) when the budget has no place for the first room.
    """

    __slots__ = (
        "_ack_at",
        "_ack_forced",
        "_acknowledged",
        "_allowance",
        "_budget",
        "_decoder",
        "_deliver",
        "_farewell",
        "_full_since",
        "_heartbeat",
        "_on_output",
        "_pongs",
        "_pull",
        "_replay",
        "received",
        "state",
    )

    def __init__(
        self,
        *,
        pull: Callable[[int, float], Sequence[Data | bytearray]],
        deliver: Callable[[Data, float], None],
        budget: Budget,
        on_output: Callable[[], None],
        allowance: Allowance | None = None,
    ) -> None:
        room = first_room(budget, FIRST_ROOM)
        if not room:
            raise LocalProtocolError(Code.LIMIT_EXCEEDED, "no budget for another Link's replay")
        self._pull = pull
        self._deliver = deliver
        self._budget = budget
        self._on_output = on_output
        self._allowance = allowance if allowance is not None else Allowance()
        self._replay = Replay(Growth(room, MAX_ROOM, budget))
        self._heartbeat = Heartbeat()
        self._decoder = RecordDecoder()
        self._pongs: deque[int] = deque(maxlen=PONGS_MOST)
        self._farewell = b""
        self._acknowledged = 0  # of what we received, as far as the peer was told
        self._ack_at: float | None = None
        self._ack_forced = False
        self._full_since: float | None = None
        self.state = _DETACHED
        self.received = 0

    # What it knows

    @property
    def sent(self) -> int:
        """Bytes of our sequence that ever left."""
        return self._replay.end

    @property
    def acked(self) -> int:
        """Bytes of our sequence that the peer has."""
        return self._replay.acked

    @property
    def room(self) -> Growth:
        """How much of our sequence may be unacknowledged."""
        return self._replay.room

    @property
    def rtt(self) -> float | None:
        """The smallest round trip of the last 300 s in seconds; None before the first."""
        return self._heartbeat.rtt

    @property
    def has_output(self) -> bool:
        """Whether `data_to_send` would give something without pulling."""
        if self.state is _ATTACHED:
            replay = self._replay
            return self._ack_forced or self._heartbeat.ping_owed or bool(self._pongs) or replay.next < replay.end
        return bool(self._farewell)

    @property
    def can_pull(self) -> bool:
        """Whether `data_to_send` would pull, given a limit that leaves PULL_LEAST for it."""
        replay = self._replay
        return self.state is _ATTACHED and replay.next == replay.end and replay.free >= PULL_LEAST

    def accepts(self, peer_received: int) -> bool:
        """Whether a peer can have that many bytes of our sequence. An acceptor asks before it fences."""
        return self._replay.acked <= peer_received <= self._replay.end

    # Commands

    def attach(self, peer_received: int, now: float, decoder: RecordDecoder | None = None) -> None:
        """Go on over a new transport; the peer has everything before `peer_received`, and knows our `received`.

        `decoder` is that of the handshake, with the bytes it still holds: call `receive_data(b"", now)` next. Raises
        RemoteProtocolError (corrupt_sequence), and changes nothing, for an impossible offset.
        """
        state = self._next_state(Input.ATTACH)
        if not self.accepts(peer_received):
            raise RemoteProtocolError(Code.CORRUPT_SEQUENCE, f"a resume from {peer_received}")
        self.state = state
        if decoder is not None:
            self._decoder = decoder
        self._acknowledged = self.received
        self._replay.rewind(peer_received)
        self._heartbeat.attach(now)
        self._note_room(now)
        self._on_output()

    def detach(self, now: float) -> None:
        """The transport is gone. What was received of the sequence stays; all else of the transport is forgotten."""
        self.state = self._next_state(Input.DETACH)
        self._forget_transport()

    def close(self, code: int, text: str) -> None:
        """End the Link for good: a CLOSE is the last output, if there is a transport; nothing else is kept. Idempotent."""
        attached = self.state is _ATTACHED
        self._end(Input.CLOSE)
        if attached:
            self._farewell = encode_close(code, text)
            self._on_output()

    # From the transport

    def receive_data(self, data: Data, now: float) -> list[PipeEvent]:
        """Take bytes of the transport, deliver what they hold of the sequence. At most one event, Closed or Failed.

        Never raises for what the peer sent.
        """
        if self.state is not _ATTACHED:
            self._next_state(Input.RECEIVE)
            return []
        was_full = self._full_since is not None
        self._heartbeat.heard(now)
        try:
            event = self._decode(data, now)
        except RemoteProtocolError as error:
            self.close(error.code, error.text)
            return [Failed(error.code, error.text)]
        if event is not None:
            return [event]
        if self.has_output or (was_full and self._full_since is None):
            self._on_output()
        return []

    def _decode(self, data: Data, now: float) -> PipeEvent | None:
        decoder = self._decoder
        decoder.feed(data)
        # A delivery may close or detach: what follows in the buffer is then of a transport that is no longer ours.
        while self.state is _ATTACHED and (record := decoder.next()) is not None:
            kind, payload = record
            if kind == SEQ:
                self._receive_sequence(payload, now)
            elif kind == _CLOSE:
                self._end(Input.RECEIVE_CLOSE)
                return Closed(*decode_close(bytes(payload)))
            else:
                _RECEIVE.get(kind, Pipe._receive_other)(self, kind, payload, now)
        return None

    def _receive_sequence(self, data: Data, now: float) -> None:
        self.received += len(data)
        if self.received - self._acknowledged >= ACK_BYTES:
            self._ack_forced = True
            self._ack_at = None
        elif self._ack_at is None and not self._ack_forced:
            self._ack_at = now + ACK_SECONDS
        self._deliver(data, now)

    def _receive_ack(self, _kind: int, payload: Data, now: float) -> None:
        replay = self._replay
        offset = decode_number(payload)
        # Not beyond `next`: the peer stated what it has when it resumed, and got no more than that since.
        if not replay.acked <= offset <= replay.next:
            raise RemoteProtocolError(Code.CORRUPT_SEQUENCE, f"an ACK of {offset} outside {replay.acked} to {replay.next}")
        if moved := replay.acknowledge(offset):
            if replay.room.moved(moved, now, self._heartbeat.rtt):
                replay.room.grow()
            self._note_room(now)

    def _receive_ping(self, kind: int, payload: Data, now: float) -> None:
        self._spend(kind, now)
        self._pongs.append(decode_number(payload))

    def _receive_pong(self, _kind: int, payload: Data, now: float) -> None:
        self._heartbeat.pong(decode_number(payload), now)

    def _receive_other(self, kind: int, _payload: Data, now: float) -> None:
        if not (kind & SKIPPABLE or kind == Record.DATAGRAM):
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, f"a {Record(kind).name} after the handshake")
        self._spend(kind, now)

    def _spend(self, kind: int, now: float) -> None:
        if not self._allowance.spend(now):
            raise RemoteProtocolError(Code.LIMIT_EXCEEDED, f"too many records of type {kind:#04x}")

    # To the transport

    def data_to_send(self, limit: int, now: float) -> bytes:
        """The parts of `parts_to_send`, joined."""
        return b"".join(self.parts_to_send(limit, now))

    def parts_to_send(self, limit: int, now: float) -> list[Data]:
        """The next bytes for the transport, at most `limit` of them, in few parts; none when there is nothing to send.

        They must reach the transport, or it is lost. A limit of at least 8192 always makes progress when there is output or
        something to pull.
        """
        if self.state is not _ATTACHED:
            return self._take_farewell(limit)
        pieces: list[Data | bytearray] = []
        left = limit - NUMBER_RECORD  # for the ACK
        left = self._put_unsequenced(pieces, left, now)
        left = self._put_again(pieces, left)
        new = self._put_new(pieces, left, now)
        if limit >= NUMBER_RECORD and (self._ack_forced or (pieces and self.received > self._acknowledged)):
            pieces.insert(0, self._take_ack())
        parts = pack(pieces)
        if new:
            self._remember(parts, new)
            self._note_room(now)
        return parts

    def _remember(self, parts: list[Data], new: int) -> None:
        """The last `new` bytes of `parts` may have to be sent again."""
        before = size(parts) - new
        for part in parts:
            if before < len(part):
                self._replay.append(memoryview(part)[before:] if before else part)
            before = max(0, before - len(part))

    def _take_farewell(self, limit: int) -> list[Data]:
        if not 0 < len(self._farewell) <= limit:
            return []
        farewell, self._farewell = self._farewell, b""
        return [farewell]

    def _take_ack(self) -> bytes:
        self._acknowledged = self.received
        self._ack_at = None
        self._ack_forced = False
        return encode_number(Record.ACK, self.received)

    def _put_unsequenced(self, pieces: list[Data | bytearray], left: int, now: float) -> int:
        while self._pongs and left >= NUMBER_RECORD:
            pieces.append(encode_number(Record.PONG, self._pongs.popleft()))
            left -= NUMBER_RECORD
        if self._heartbeat.ping_owed and left >= NUMBER_RECORD:
            pieces.append(encode_number(Record.PING, self._heartbeat.ping(now)))
            left -= NUMBER_RECORD
        return left

    def _put_again(self, pieces: list[Data | bytearray], left: int) -> int:
        replay = self._replay
        if replay.next == replay.end or left <= HEADER:
            return left
        before = replay.next
        again = replay.again(min(left - HEADER, MAX_SEQ))
        count = replay.next - before
        pieces.append(encode_seq_header(count))
        pieces += again
        return left - HEADER - count

    def _put_new(self, pieces: list[Data | bytearray], left: int, now: float) -> int:
        """Pull; return how many new bytes now stand at the end of `pieces`."""
        if left < HEADER + PULL_LEAST or not self.can_pull:
            return 0
        limit = min(left - HEADER, self._replay.free, MAX_SEQ)
        pulled = self._pull(limit, now)
        count = size(pulled)
        if count > limit:
            raise LocalProtocolError(Code.INTERNAL_ERROR, f"pulled {count} bytes where {limit} were asked for")
        if count:
            pieces.append(encode_seq_header(count))
            pieces += pulled
        return count

    # Time

    def next_deadline(self) -> float | None:
        """When `handle_timeout` has something to do; None without a transport."""
        if self.state is not _ATTACHED:
            return None
        deadline = self._heartbeat.deadline
        if self._ack_at is not None and self._ack_at < deadline:
            deadline = self._ack_at
        if self._full_since is not None and self._full_since + STALL_SECONDS < deadline:
            deadline = self._full_since + STALL_SECONDS
        return deadline

    def handle_timeout(self, now: float) -> list[PipeEvent]:
        """Do what is due: owe a PING, force an ACK, declare the transport dead. Too early a call does nothing.

        What can be read must have been read before.
        """
        if self.state is not _ATTACHED:
            return []
        if self._heartbeat.due(now):
            return [TransportDead(f"nothing received for {DEAD_SECONDS} s")]
        if self._full_since is not None and now >= self._full_since + STALL_SECONDS:
            return [TransportDead(f"replay full and nothing acknowledged for {STALL_SECONDS} s")]
        if self._ack_at is not None and now >= self._ack_at:
            self._ack_at = None
            self._ack_forced = True
        if self.has_output:
            self._on_output()
        return []

    # Inside

    def audit(self) -> list[str]:
        """Broken invariants, in words; empty when all is well."""
        replay = self._replay
        full = replay.free < PULL_LEAST
        owed = self.received - self._acknowledged
        attached = self.state is _ATTACHED
        checks = (
            (replay.acked <= replay.next <= replay.end, "offsets of the replay are out of order"),
            (replay.free >= 0, "the replay is larger than its room"),
            (not attached or full == (self._full_since is not None), "a full replay and its timer disagree"),
            (not attached or (owed > 0) == (self._ack_forced or self._ack_at is not None), "an owed ACK has no timer"),
            (attached or not (self._pongs or self._ack_forced), "output is kept for a transport that is gone"),
        )
        return [text for holds, text in checks if not holds]

    def _next_state(self, happened: Input) -> PipeState:
        try:
            return TRANSITIONS[self.state, happened]
        except KeyError:
            raise LocalProtocolError(Code.INTERNAL_ERROR, f"{happened.name} while {self.state.name}") from None

    def _note_room(self, now: float) -> None:
        """Start the stall timer anew when the replay is full: called when it fills and when an ACK moves."""
        self._full_since = now if self._replay.free < PULL_LEAST else None

    def _forget_transport(self) -> None:
        self._decoder = RecordDecoder()
        self._pongs.clear()
        self._heartbeat.ping_owed = False
        self._ack_at = self._full_since = None
        self._ack_forced = False

    def _end(self, happened: Input) -> None:
        """To CLOSED: keep nothing and return the room."""
        before, self.state = self.state, self._next_state(happened)
        if before is not _CLOSED:
            self._forget_transport()
            self._replay.clear()
            self._budget.give(self.room.size)


_RECEIVE: Final = {
    int(Record.ACK): Pipe._receive_ack,
    int(Record.PING): Pipe._receive_ping,
    int(Record.PONG): Pipe._receive_pong,
}
