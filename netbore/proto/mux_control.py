"""The reader of the control stream (docs/protocol.md section 4.6): bytes to messages, whatever they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netbore.proto.errors import RemoteProtocolError
from netbore.proto.events import MessageReceived, PeerClosing
from netbore.proto.frames import parse_object
from netbore.proto.stream import Data
from netbore.proto.wire import MAX_MESSAGE, Code

if TYPE_CHECKING:
    from netbore.proto.mux import Mux


class ControlSink:
    """The control stream's sink: JSON objects, one a line. Raises RemoteProtocolError to the Mux, which ends the Link with it."""

    def __init__(self, mux: Mux) -> None:
        self._mux = mux
        self._line = bytearray()

    def on_data(self, data: Data) -> None:
        self._mux.control.consumed(len(data))
        *lines, rest = bytes(data).split(b"\n")
        for line in lines:
            self._line += line
            self._check()
            self._mux.happened(MessageReceived(parse_object(self._line)))
            self._line.clear()
        self._line += rest
        self._check()

    def _check(self) -> None:
        if len(self._line) > MAX_MESSAGE:
            raise RemoteProtocolError(Code.LIMIT_EXCEEDED, "control message too long")

    def on_eof(self) -> None:
        if self._line:
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, "control stream ended within a message")
        self._mux.happened(PeerClosing())

    def on_writable(self) -> None:
        """Messages are queued without asking."""

    def on_stop(self, code: int) -> None:
        """Cannot come: it is refused as a frame."""

    def on_reset(self, code: int, delivered: int = 0) -> None:
        """The Mux was closed."""
