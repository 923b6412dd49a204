"""The states of a Stream's halves, as tables (docs/protocol.md section 4.2). Knows no role and no Stream."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeAlias

from netbore.proto.errors import LocalProtocolError, RemoteProtocolError
from netbore.proto.wire import Code


class Half(Enum):
    """How far one half of a Stream is."""

    OPEN = "OPEN"
    STOPPING = "STOPPING"
    ENDED = "ENDED"


class Input(Enum):
    """What can happen to a half."""

    SEND_DATA = "send DATA"
    SEND_FIN = "send FIN"
    SEND_STOP = "send STOP"
    SEND_RESET = "send RESET"
    SEND_WINDOW = "send WINDOW"
    RECEIVE_DATA = "receive DATA"
    RECEIVE_FIN = "receive FIN"
    RECEIVE_STOP = "receive STOP"
    RECEIVE_RESET = "receive RESET"
    RECEIVE_WINDOW = "receive WINDOW"


Table: TypeAlias = Mapping[tuple[Half, Input], Half]

SENDING: Final[Table] = {
    (Half.OPEN, Input.SEND_DATA): Half.OPEN,
    (Half.OPEN, Input.SEND_FIN): Half.ENDED,
    (Half.OPEN, Input.RECEIVE_STOP): Half.ENDED,
    (Half.OPEN, Input.RECEIVE_WINDOW): Half.OPEN,
    (Half.OPEN, Input.SEND_RESET): Half.ENDED,
    (Half.OPEN, Input.RECEIVE_RESET): Half.ENDED,
    (Half.ENDED, Input.RECEIVE_STOP): Half.ENDED,
    (Half.ENDED, Input.RECEIVE_WINDOW): Half.ENDED,
    (Half.ENDED, Input.SEND_RESET): Half.ENDED,
    (Half.ENDED, Input.RECEIVE_RESET): Half.ENDED,
}

RECEIVING: Final[Table] = {
    (Half.OPEN, Input.RECEIVE_DATA): Half.OPEN,
    (Half.OPEN, Input.RECEIVE_FIN): Half.ENDED,
    (Half.OPEN, Input.SEND_WINDOW): Half.OPEN,
    (Half.OPEN, Input.SEND_STOP): Half.STOPPING,
    (Half.OPEN, Input.SEND_RESET): Half.ENDED,
    (Half.OPEN, Input.RECEIVE_RESET): Half.ENDED,
    (Half.STOPPING, Input.RECEIVE_DATA): Half.STOPPING,
    (Half.STOPPING, Input.RECEIVE_FIN): Half.ENDED,
    (Half.STOPPING, Input.SEND_RESET): Half.ENDED,
    (Half.STOPPING, Input.RECEIVE_RESET): Half.ENDED,
    (Half.ENDED, Input.SEND_RESET): Half.ENDED,
    (Half.ENDED, Input.RECEIVE_RESET): Half.ENDED,
}


def step(table: Table, half: Half, happened: Input) -> Half:
    """The state after `happened`. What is absent raises RemoteProtocolError when the peer did it, else LocalProtocolError."""
    after = table.get((half, happened))
    if after is None:
        error = RemoteProtocolError if happened.value.startswith("receive") else LocalProtocolError
        raise error(Code.PROTOCOL_ERROR, f"{happened.value} in state {half.value}")
    return after
