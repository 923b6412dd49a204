"""Broken rules of the protocol, each with the code that the wire has for it (docs/protocol.md section 9)."""

from __future__ import annotations

from netbore.proto.wire import Code


class ProtocolError(Exception):
    """A rule of the protocol was broken. `code` is what the peer is told, `text` what a person is told."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code.name.lower()}: {self.text}"


class RemoteProtocolError(ProtocolError):
    """The peer broke it. Never leaves the one method that takes the peer's bytes: it becomes an event there."""


class LocalProtocolError(ProtocolError):
    """Our own code broke it: a bug of the caller."""
