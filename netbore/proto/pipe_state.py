"""The states of a Pipe and what it tells its driver (docs/protocol.md section 3)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeAlias

import attrs

from netbore.proto.wire import Code


class PipeState(IntEnum):
    """Whether the sequence has a transport."""

    DETACHED = 0
    ATTACHED = 1
    CLOSED = 2


class Input(IntEnum):
    """What can happen to a Pipe. DETACH is the command and the end of the transport alike."""

    ATTACH = 0
    DETACH = 1
    CLOSE = 2
    RECEIVE = 3
    RECEIVE_CLOSE = 4


#: (state, input) -> state. Whatever is absent is a bug of the caller.
TRANSITIONS: Final = {
    (PipeState.DETACHED, Input.ATTACH): PipeState.ATTACHED,
    (PipeState.DETACHED, Input.CLOSE): PipeState.CLOSED,
    (PipeState.ATTACHED, Input.RECEIVE): PipeState.ATTACHED,
    (PipeState.ATTACHED, Input.RECEIVE_CLOSE): PipeState.CLOSED,
    (PipeState.ATTACHED, Input.DETACH): PipeState.DETACHED,
    (PipeState.ATTACHED, Input.CLOSE): PipeState.CLOSED,
    (PipeState.CLOSED, Input.RECEIVE): PipeState.CLOSED,
    (PipeState.CLOSED, Input.RECEIVE_CLOSE): PipeState.CLOSED,
    (PipeState.CLOSED, Input.DETACH): PipeState.CLOSED,
    (PipeState.CLOSED, Input.CLOSE): PipeState.CLOSED,
}


@attrs.frozen
class Closed:
    """The peer ended the Link. `code` may be one that is not in our table."""

    code: int
    text: str


@attrs.frozen
class Failed:
    """We end the Link, because the peer broke a rule; a CLOSE that says so is the last output."""

    code: Code
    text: str


@attrs.frozen
class TransportDead:
    """The transport is no longer of use: detach, abandon it, resume on another. Told again at each timeout until then."""

    reason: str


PipeEvent: TypeAlias = Closed | Failed | TransportDead
