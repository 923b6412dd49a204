"""The WebSocket carrier's bytes after the upgrade: a pipe of binary messages (RFC 6455).

Theory of operation. A Link needs an ordered byte stream, so messages mean nothing here: `encode` makes one unfragmented
binary message of whatever is to go, and `receive_data` gives the payload of binary messages as it comes, in pieces,
however they were cut into frames. A message is never gathered, so its length needs no limit.

- Data frames have our own header code, around a masker and keys that are passed in; a key comes from `new_key` and
  nowhere else.
- Control frames go through wsproto: what came is checked and unmasked by it, what goes is serialised by its *server's* form
  and masked here, since its client's form would take a key from `os.urandom`.
- Nothing that the peer sends raises. The peer's direction ends by `peer_end`: its close frame, or its breach of the rules,
  which is answered by a close frame at once. Bytes behind either have no meaning and are dropped.
- A close frame ends one direction. It is answered when our own direction ends (`send_close`), which RFC 6455 section 5.5.1
  lets us delay while we have something to say. The answer repeats the peer's code.
- Of several pings the newest is answered (section 5.5.3), so unsent answers are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, TypeAlias

import attrs
from wsproto.frame_protocol import CloseReason, Frame, FrameProtocol, Opcode, ParseFailed

from netbore.proto.errors import LocalProtocolError
from netbore.proto.parts import pack, size
from netbore.proto.stream import Data
from netbore.proto.wire import U16, U64, Code

#: `masker(data, key)` is `data` XOR the repeated four bytes of `key`.
Masker: TypeAlias = Callable[[Data, bytes], bytes]

#: The longest header of a data frame: what a message adds to its payload at most.
MAX_HEADER: Final = 14

NORMAL: Final = int(CloseReason.NORMAL_CLOSURE)
NO_STATUS: Final = int(CloseReason.NO_STATUS_RCVD)

_FINAL_BINARY: Final = 0x80 | Opcode.BINARY
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_RESERVED: Final = 0x70
_OPCODE: Final = 0x0F
_CONTROL: Final = 0x08
_SHORT: Final = Struct(">BB")
_MEDIUM: Final = Struct(">BBH")
_LONG: Final = Struct(">BBQ")

#: (a message is open, first byte of a data frame) -> a message is open afterwards. What is absent breaks the rules.
_MESSAGES: Final = {
    (False, 0x80 | Opcode.BINARY): False,
    (False, int(Opcode.BINARY)): True,
    (True, 0x80 | Opcode.CONTINUATION): False,
    (True, int(Opcode.CONTINUATION)): True,
}

#: Serialises control frames without a mask; it keeps no state.
_WRITER: Final = FrameProtocol(client=False, extensions=[])


def _header_size(second: int) -> int:
    extended = {126: 2, 127: 8}.get(second & _LENGTH, 0)
    return 2 + extended + (4 if second & _MASKED else 0)


def _turned(key: bytes, count: int) -> bytes:
    """The key for what comes `count` bytes later in the same frame."""
    turn = count & 3
    return key[turn:] + key[:turn]


#: Size of a header by its second byte.
_SIZES: Final = tuple(map(_header_size, range(256)))


@attrs.frozen
class PeerEnd:
    """The peer's direction is over. `code` is the peer's (1005 when it gave none), or, when it `failed`, the one we answer with.

    `reason` is the peer's text in the first case, and our own fixed words in the second.
    """

    code: int
    reason: str
    failed: bool = False


class WebSocketPipe:
    """Bytes as payloads of binary messages, both directions, after the handshake."""

    __slots__ = (
        "_client",
        "_control",
        "_held",
        "_in_message",
        "_key",
        "_left",
        "_masker",
        "_new_key",
        "_owed",
        "_pong",
        "_reader",
        "close_sent",
        "peer_end",
    )

    def __init__(self, client: bool, masker: Masker, new_key: Callable[[], bytes]) -> None:
        """`new_key` gives four unpredictable bytes, fresh ones at every call; a server never asks for any."""
        self._client = client
        self._masker = masker
        self._new_key = new_key
        self._reader = FrameProtocol(client=client, extensions=[])
        self._held = b""  # the beginning of a header
        self._left = 0  # bytes of the frame in progress that are still to come
        self._control = False  # which is a control frame
        self._key = b""
        self._in_message = False
        self._pong: bytes | None = None
        self._owed = b""
        #: Our direction is over: nothing may be encoded any more.
        self.close_sent = False
        #: Why the peer's direction is over, or None while it is not.
        self.peer_end: PeerEnd | None = None

    # Sending

    def encode(self, payload: Sequence[Data]) -> list[Data]:
        """One binary message with the parts of `payload`, in few parts.

        Raises LocalProtocolError after `send_close`, and after a breach of the peer's.
        """
        if self.close_sent:
            raise LocalProtocolError(Code.INTERNAL_ERROR, "a message behind the close frame")
        length = size(payload)
        masked = _MASKED if self._client else 0
        if length < 126:
            header = _SHORT.pack(_FINAL_BINARY, masked | length)
        elif length < 65536:
            header = _MEDIUM.pack(_FINAL_BINARY, masked | 126, length)
        else:
            header = _LONG.pack(_FINAL_BINARY, masked | 127, length)
        if not masked:
            return pack((header, *payload))
        key = self._new_key()
        pieces: list[Data] = [header + key]
        for part in payload:
            pieces.append(self._masker(part, key))
            key = _turned(key, len(part))
        return pack(pieces)

    def send_close(self, code: int = NORMAL) -> None:
        """End our direction: a close frame becomes due, with the peer's code when it answers the peer's. Idempotent."""
        if self.close_sent:
            return
        self.close_sent = True
        end = self.peer_end
        if end is not None and not end.failed:
            code = end.code
        self._owed = self._answers() + self._masked(_WRITER.close(None if code == NO_STATUS else code))

    @property
    def has_output(self) -> bool:
        """Whether `parts_to_send` would give anything."""
        return self._pong is not None or bool(self._owed)

    def parts_to_send(self) -> list[Data]:
        """Control frames that are due, none or one part. They may stand between any two messages."""
        data = self._answers() + self._owed
        self._owed = b""
        return [data] if data else []

    def _answers(self) -> bytes:
        pong, self._pong = self._pong, None
        return b"" if pong is None else self._masked(_WRITER.pong(pong))

    def _masked(self, frame: bytearray) -> bytes:
        """A control frame in our role's form; its header has two bytes."""
        if not self._client:
            return bytes(frame)
        key = self._new_key()
        return bytes((frame[0], frame[1] | _MASKED)) + key + self._masker(bytes(frame[2:]), key)

    # Receiving

    def receive_data(self, data: Data) -> list[Data]:
        """The payload in `data`, in pieces of at least one byte. Afterwards look at `peer_end` and `has_output`."""
        pieces: list[Data] = []
        view = memoryview(data)
        at, stop = 0, len(view)
        while at < stop and self.peer_end is None:
            if not self._left:
                at = self._read_header(view, at)
                continue
            end = min(at + self._left, stop)
            self._left -= end - at
            if self._control:
                self._read_control(bytes(view[at:end]))
            else:
                pieces.append(self._unmasked(view[at:end]))
            at = end
        return pieces

    def _unmasked(self, piece: memoryview) -> Data:
        if self._client:
            return piece
        key = self._key
        self._key = _turned(key, len(piece))
        return self._masker(piece, key)

    def _read_header(self, view: memoryview, at: int) -> int:
        """Read a frame's header at `at`, or hold its beginning, and return where it ends."""
        held = self._held
        head = held + view[at : at + MAX_HEADER - len(held)]
        if len(head) < 2:
            self._held = head
            return len(view)
        if head[0] & _CONTROL:
            self._held = b""
            self._begin_control(head)
            return at + 2 - len(held)
        opened = self._check(head[0], head[1])
        size = _SIZES[head[1]]
        if len(head) < size:
            self._held = head
            return len(view)
        self._held = b""
        self._in_message = opened
        self._begin_data(head, size)
        return at + size - len(held)

    def _check(self, first: int, second: int) -> bool:
        """Whether a message is open behind the data frame that begins so; ends the peer's direction where none may."""
        opened = _MESSAGES.get((self._in_message, first))
        if bool(second & _MASKED) is self._client:
            self._fail(
                CloseReason.PROTOCOL_ERROR, "a masked frame of a server" if self._client else "an unmasked frame of a client"
            )
        elif opened is None:
            if first & _RESERVED:
                self._fail(CloseReason.PROTOCOL_ERROR, "a reserved bit")
            elif first & _OPCODE == Opcode.TEXT and not self._in_message:
                self._fail(CloseReason.UNSUPPORTED_DATA, "a text message")
            else:
                self._fail(CloseReason.PROTOCOL_ERROR, "a frame of unknown type or out of order")
        return bool(opened)

    def _begin_data(self, head: bytes, size: int) -> None:
        length = head[1] & _LENGTH
        least, most = 0, 125
        if length == 126:
            length, least, most = U16.unpack_from(head, 2)[0], 126, 65535
        elif length == 127:
            length, least, most = U64.unpack_from(head, 2)[0], 65536, 2**63 - 1
        if not least <= length <= most:
            return self._fail(CloseReason.PROTOCOL_ERROR, "a length that is too long or spelled too long")
        self._left = length
        self._control = False
        self._key = head[size - 4 : size]

    def _begin_control(self, head: bytes) -> None:
        """Leave the frame to wsproto, the two bytes of its header first, which are enough for most refusals."""
        self._left = (head[1] & _LENGTH) + (4 if head[1] & _MASKED else 0)
        self._control = True
        self._read_control(head[:2])

    def _read_control(self, data: bytes) -> None:
        self._reader.receive_bytes(data)
        try:
            for frame in self._reader.received_frames():
                self._take(frame)
        except ParseFailed as error:
            self._fail(error.code, "a control frame against the rules")

    def _take(self, frame: Frame) -> None:
        match frame:
            case Frame(opcode=Opcode.PING, payload=bytes(payload)) if not self.close_sent:
                self._pong = payload
            case Frame(opcode=Opcode.CLOSE, payload=(int(code), str(reason))):
                self.peer_end = PeerEnd(int(code), reason)

    def _fail(self, code: CloseReason, reason: str) -> None:
        if self.peer_end is None:
            self.peer_end = PeerEnd(int(code), reason, failed=True)
            self.send_close(int(code))
