"""Every number of the wire, in the order of docs/protocol.md.

The page is the source; a test compares its tables with this module. Nothing here computes.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

SUBPROTOCOL: Final = "netbore.v1"
#: Where an Edge upgrades to a Link, on its API host, unless it was told otherwise.
LINK_PATH: Final = "/.netbore/link"
ALPN: Final = "netbore/1"
MINOR: Final = (0, 0)


class Record(IntEnum):
    """Types of the Pipe's records (section 2)."""

    SEQ = 0x01
    ACK = 0x02
    PING = 0x03
    PONG = 0x04
    CLOSE = 0x05
    DATAGRAM = 0x06
    HELLO = 0x10
    WELCOME = 0x11
    RESUME = 0x12
    RESUMED = 0x13
    REJECT = 0x14


class Frame(IntEnum):
    """Types of the Mux's frames (section 4)."""

    DATA = 0x01
    OPEN = 0x02
    FIN = 0x03
    STOP = 0x04
    RESET = 0x05
    WINDOW = 0x06
    MAX_STREAMS = 0x07
    GOAWAY = 0x08
    MOVE = 0x09
    RECALL = 0x0A
    RELEASE = 0x0B


class Kind(IntEnum):
    """What a Stream carries (section 4)."""

    HTTP = 1
    TCP = 2
    UDP = 3


class Code(IntEnum):
    """Why something ended (section 9)."""

    NO_ERROR = 0
    INTERNAL_ERROR = 1
    PROTOCOL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    CORRUPT_SEQUENCE = 4
    LIMIT_EXCEEDED = 5
    TIMEOUT = 6
    UNAUTHORIZED = 7
    REPLACED = 8
    UNKNOWN_LINK = 9
    STALE_EPOCH = 10
    VERSION_UNSUPPORTED = 11
    GOING_AWAY = 12
    GRACE_EXPIRED = 13
    UNSUPPORTED = 14
    NOT_PROCESSED = 16
    CANCELLED = 17
    HOST_REFUSED = 18
    HOST_UNREACHABLE = 19
    HOST_TIMEOUT = 20
    HOST_CLOSED = 21
    HOST_TLS = 22
    LINK_LOST = 23
    IDLE_TIMEOUT = 24
    UNBOUND = 25
    NAME_TAKEN = 32
    NAME_INVALID = 33
    NAME_FORBIDDEN = 34
    TUNNEL_LIMIT = 35
    HANDLE_TAKEN = 36


#: The Host's end: a RESET with one of these keeps its place behind the Stream's DATA (section 4.2).
HOST_ENDED: Final = frozenset(range(Code.HOST_REFUSED, Code.HOST_TLS + 1))

#: Rejections that a dialler does not try again.
FINAL: Final = frozenset({Code.UNAUTHORIZED, Code.REPLACED, Code.VERSION_UNSUPPORTED})

#: First word of a record: type << 24 | length.
RECORD_HEADER: Final = Struct(">I")
#: Two words of a frame: type << 24 | length, stream id.
FRAME_HEADER: Final = Struct(">II")
U16: Final = Struct(">H")
U32: Final = Struct(">I")
U64: Final = Struct(">Q")
OPEN_HEAD: Final = Struct(">BBHII")
RESET_BODY: Final = Struct(">HQ")

#: Record and frame types with this bit may be skipped by a reader that does not know them.
SKIPPABLE: Final = 0x80
MAX_SKIPPED: Final = 65536

#: Longest payload of each record.
RECORD_LENGTHS: Final = {
    Record.SEQ: 1048576,
    Record.ACK: 8,
    Record.PING: 8,
    Record.PONG: 8,
    Record.CLOSE: 1024,
    Record.DATAGRAM: 65536,
    Record.HELLO: 8192,
    Record.WELCOME: 8192,
    Record.RESUME: 8192,
    Record.RESUMED: 8192,
    Record.REJECT: 8192,
}

#: Shortest and longest payload of each frame.
FRAME_LENGTHS: Final = {
    Frame.DATA: (1, 262144),
    Frame.OPEN: (12, 4108),
    Frame.FIN: (0, 0),
    Frame.STOP: (2, 2),
    Frame.RESET: (10, 10),
    Frame.WINDOW: (4, 4),
    Frame.MAX_STREAMS: (4, 4),
    Frame.GOAWAY: (4, 4),
    Frame.MOVE: (2, 2),
    Frame.RECALL: (0, 64),
    Frame.RELEASE: (0, 64),
}

MAX_OFFSET: Final = 2**53
MAX_ID: Final = 2**32 - 1
MAX_CREDIT: Final = 2**31 - 1

# Limits (section 10).
HANDSHAKE_RECORDS: Final = 4
HANDSHAKE_LINKS_BROKEN: Final = 2
HANDSHAKE_SECONDS: Final = 10
MAX_SEQ: Final = 1048576
MAX_DATA: Final = 262144
MAX_FACTS: Final = 4096
MAX_MESSAGE: Final = 16384
MAX_UNANSWERED: Final = 32
CONTROL_WINDOW: Final = 65536
MAX_CONTROL_QUEUE: Final = 262144
MAX_STREAMS_OPEN: Final = 1024
STREAM_WINDOW: Final = 16384
FIRST_WINDOW: Final = 262144
LESSER_WINDOW: Final = 65536
MAX_WINDOW: Final = 67108864
LINK_BUDGET: Final = 67108864
FIRST_ROOM: Final = 262144
MAX_ROOM: Final = 67108864
STREAM_QUEUE: Final = 65536
STREAM_QUEUE_MOST: Final = 262144
FLUSH: Final = 65536
FLUSH_MOST: Final = 262144
QUANTUM: Final = 16384
ACK_BYTES: Final = 131072
ACK_SECONDS: Final = 0.025
SEND_SECONDS: Final = 5
DEAD_SECONDS: Final = 15
STALL_SECONDS: Final = 30
RTT_MEMORY_SECONDS: Final = 300
MIN_RTT_SECONDS: Final = 0.002
WINDOW_MEMORY_SECONDS: Final = 300
MINOR_FRAMES_PER_SECOND: Final = 200
MINOR_FRAMES_BURST: Final = 1000
GRACE_SECONDS: Final = 60
RETRY_FIRST_SECONDS: Final = 0.2
RETRY_MOST_SECONDS: Final = 30
RETRY_RESET_SECONDS: Final = 10
