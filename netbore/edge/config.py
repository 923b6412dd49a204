"""What an Edge is told: one frozen record, checked when it is made."""

from __future__ import annotations

from pathlib import Path

import attrs

from netbore.edge.door import DoorLimits
from netbore.edge.front import FrontLimits
from netbore.edge.records import TunnelLimits
from netbore.edge.targets import HostLimits
from netbore.errors import ConfigError
from netbore.link.poller import PollerLimits
from netbore.proto.wire import LINK_PATH


@attrs.frozen
class EdgeLimits:
    """All limits of an Edge. See docs/config.md."""

    poller: PollerLimits = PollerLimits()
    front: FrontLimits = FrontLimits()
    host: HostLimits = HostLimits()
    door: DoorLimits = DoorLimits()
    tunnels: TunnelLimits = TunnelLimits()
    #: Bytes that all Links together may have promised.
    budget: int = 512 * 1024 * 1024
    drain_seconds: float = 30.0


@attrs.frozen
class EdgeConfig:
    """Settings of one Edge.

    `domain` is the apex: Tunnels are `<name>.<domain>`. `api_host` defaults to it. `listen` and `http_listen` are
    (host, port), port 0 takes a free one; `http` is "redirect" or "serve". Without `cert_file` and `key_file` the Edge
    makes its own CA and certificate in `state_dir`. `public_port` and `public_url_scheme` are what Viewers see when
    something stands before the Edge.
    """

    state_dir: Path = attrs.field(converter=Path)
    domain: str = "tunnel.localhost"
    listen: tuple[str, int] = ("127.0.0.1", 8443)
    http_listen: tuple[str, int] | None = None
    http: str = "redirect"
    api_host: str | None = None
    link_path: str = LINK_PATH
    public_port: int | None = None
    public_url_scheme: str = "https"
    cert_file: Path | None = None
    key_file: Path | None = None
    limits: EdgeLimits = EdgeLimits()

    def __attrs_post_init__(self) -> None:
        if self.http not in ("redirect", "serve"):
            raise ConfigError(f"http is {self.http!r}; it is 'redirect' or 'serve'")
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError("a certificate needs both its file and its key's file")
        if self.public_url_scheme not in ("http", "https"):
            raise ConfigError(f"the public URL's scheme is {self.public_url_scheme!r}; it is 'http' or 'https'")
        if not self.link_path.startswith("/"):
            raise ConfigError(f"the link path is {self.link_path!r}; it begins with '/'")

    @property
    def api(self) -> str:
        """The API host."""
        return self.api_host or self.domain
