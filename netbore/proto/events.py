"""What a Mux tells its session. The bytes of Streams are not among it: they go straight to their sinks."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs

from netbore.proto.mux_stream import MuxStream
from netbore.proto.wire import Code


@attrs.frozen
class StreamOpened:
    """The peer opened a Stream. It waits, without a sink, inside the credit given; facts, kind and handle are its attributes."""

    stream: MuxStream


@attrs.frozen
class MessageReceived:
    """One message of the control stream."""

    message: dict[str, Any]


@attrs.frozen
class OpenAllowed:
    """An `open` that the peer's MAX_STREAMS refused may be tried again."""


@attrs.frozen
class GoAway:
    """The peer accepts no Stream above `last_id`; those that were under way will be reset with not_processed."""

    last_id: int


@attrs.frozen
class Move:
    """The peer wants a second Link, dialled after a random part of `spread` milliseconds."""

    spread: int


@attrs.frozen
class PeerClosing:
    """The peer ended the control stream: it will close the Link."""


@attrs.frozen
class SinkFailed:
    """A sink raised. Its Stream was reset with internal_error; nothing else is harmed."""

    stream: MuxStream
    error: Exception


@attrs.frozen
class Failed:
    """The peer broke the protocol. The last event: the Link is to be closed with `code`."""

    code: Code
    text: str


Event: TypeAlias = StreamOpened | MessageReceived | OpenAllowed | GoAway | Move | PeerClosing | SinkFailed | Failed
