"""What can go wrong, for users of the library. Imports nothing of Netbore."""

from __future__ import annotations


class NetboreError(Exception):
    """Base of all errors that Netbore raises on purpose. The text says what was wrong and what can be done."""


class ConfigError(NetboreError):
    """A setting, an argument or a file cannot be used."""


class EdgeUnreachable(NetboreError):
    """The Edge cannot be reached: no such host, refused, timed out."""


class EdgeUntrusted(NetboreError):
    """The Edge's certificate is not one that we trust."""


class VersionMismatch(NetboreError):
    """The Edge speaks no version of the protocol that we speak."""


class Unauthorized(NetboreError):
    """The Edge does not take the token. Final."""


class Replaced(NetboreError):
    """Another Agent took over. Final."""


class BindRefused(NetboreError):
    """The Edge does not give a Tunnel of this kind or name. `code` is a name of docs/protocol.md section 9."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class NameTaken(BindRefused):
    """Another Agent holds the name."""


class TunnelClosed(NetboreError):
    """The Tunnel is gone: closed here, deleted at the Edge, or its Link is over."""
