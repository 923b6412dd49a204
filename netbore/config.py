"""What both programs and the library read from people: addresses, sizes, durations, URLs, secrets.

Everything is parsed once, here, into frozen values; what is wrong is told as a ConfigError that names the input and what
would be right. Nothing here reads the environment or a file unless it is called for that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs

from netbore.errors import ConfigError

#: Longest content of a secret's file, in bytes: a wrong path may name anything.
MAX_SECRET: Final = 65536

_SIZE: Final = re.compile(r"([0-9]+)\s*([A-Za-z]*)\Z")
_SIZES: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)\s*")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: The schemes of a Host's URL, and of an Edge's, each with the port that a URL without one means.
HOST_SCHEMES: Final = {"https": 443, "http": 80}
EDGE_SCHEMES: Final = {**HOST_SCHEMES, "tls": 443}
_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?\Z")


@attrs.frozen
class Secret:
    """A token or key. Its repr and str hide it; `reveal` gives the text."""

    _text: str = attrs.field(repr=False)

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__


@attrs.frozen
class Address:
    """A host (a name or a literal IP address, without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def numeric(self) -> bool:
        """The host is a literal IP address."""
        return is_numeric(self.host)


@attrs.frozen
class EdgeUrl:
    """Where an Edge is, and how a Link is carried there: by a WebSocket (scheme "https" or "http"), or in TLS alone ("tls").

    `str()` is its canonical text: the default port and a trailing slash are left out.
    """

    host: str
    port: int
    scheme: str = "https"
    path: str = ""

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL: the default port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == EDGE_SCHEMES[self.scheme] else f"{host}:{self.port}"

    @property
    def identity(self) -> str:
        """The same text for the same Edge, whichever of its carriers on one port is chosen."""
        return str(attrs.evolve(self, scheme="https") if self.scheme == "tls" else self)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def is_numeric(host: str) -> bool:
    """Whether `host` is a literal IP address, scoped ones included."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def parse_port(text: str, *, zero: bool = False) -> int:
    """A TCP port; 0 only where a free one may be chosen. Raises ConfigError."""
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{text!r} is not a port; give a number from {0 if zero else 1} to 65535")
    port = int(text) if len(text) <= 5 else 65536
    if port > 65535 or (port == 0 and not zero):
        raise ConfigError(f"port {text} is out of range; give a number from {0 if zero else 1} to 65535")
    return port


def parse_address(text: str, *, default_host: str = "127.0.0.1", zero: bool = False) -> Address:
    """ "HOST:PORT", "[IPv6]:PORT", ":PORT" or "PORT"; the last two mean `default_host`. Raises ConfigError."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return Address(default_host, parse_port(text, zero=zero))
    host, colon, port = text.rpartition(":")
    if not colon or not port:
        raise ConfigError(f"{text!r} has no port; give HOST:PORT, [IPv6]:PORT or PORT")
    if host.startswith("[") and host.endswith("]"):
        host = _bracketed(host, text)
    elif ":" in host:
        raise ConfigError(f"{text!r} is ambiguous; put an IPv6 address in brackets: [{host}]:{port}")
    elif host:
        check_host(host, text)
    return Address(host or default_host, parse_port(port, zero=zero))


def _bracketed(host: str, text: str) -> str:
    inner = host[1:-1]
    if ":" not in inner or not is_numeric(inner):
        raise ConfigError(f"{text!r} has no IPv6 address between its brackets")
    return inner


def check_host(host: str, text: str) -> None:
    """Raise ConfigError unless `host` may be a name or an address; `text` is the whole input."""
    if ":" in host and is_numeric(host):
        return
    if len(host) > 253 or not host.isascii() or not _NAME.match(host):
        raise ConfigError(f"{host!r} in {text!r} is not a host name; give a name of letters, digits and hyphens, or an address")


def parse_size(text: str) -> int:
    """Bytes: "65536", "64 KiB", "10MB" (KiB, MiB, GiB are powers of 1024, KB, MB, GB of 1000). Raises ConfigError."""
    found = _SIZE.match(text.strip())
    unit = _SIZES.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ConfigError(f"{text!r} is not a size; give a whole number and a unit, such as '64 KiB' or '10 MB'")
    return int(found[1]) * unit


def parse_duration(text: str) -> float:
    """Seconds: "10s", "5m", "1h30m", "250ms", "2d". Raises ConfigError."""
    seconds, at, text_ = 0.0, 0, text.strip()
    while at < len(text_) and (found := _DURATION.match(text_, at)):
        seconds += float(found[1]) * _SECONDS[found[2]]
        at = found.end()
    if not text_ or at < len(text_):
        raise ConfigError(f"{text!r} is not a duration; give a number and a unit (ms, s, m, h, d), such as '10s' or '5m'")
    return seconds


def parse_edge_url(text: str) -> EdgeUrl:
    """The URL of an Edge: "https://HOST[:PORT][/PATH]", "tls://HOST[:PORT]", or HOST[:PORT] for https. Raises ConfigError."""
    text = text.strip()
    url = text if "://" in text else f"https://{text}"
    scheme, host, port, path = split_url(url, text, EDGE_SCHEMES)
    path = path.rstrip("/")
    if scheme == "tls" and path:
        raise ConfigError(f"{text!r} has a path, which tls:// cannot have: give tls://HOST[:PORT], or https:// with the path")
    return EdgeUrl(host.removesuffix("."), port or EDGE_SCHEMES[scheme], scheme, path)


def split_url(url: str, text: str, schemes: Mapping[str, int] = HOST_SCHEMES) -> tuple[str, str, int | None, str]:
    """Scheme (one of `schemes`), host in lower case, port or None, and path of a URL that may have no more than these.

    `text` is what the person gave. Raises ConfigError.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a URL: {error}") from None
    if parts.scheme not in schemes:
        *others, last = (f"{scheme}://" for scheme in schemes)
        raise ConfigError(f"{text!r} begins with {parts.scheme}://; only {', '.join(others)} and {last} are known here")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{host!r} was given with a user or password; tokens go in a file or the environment, never in a URL")
    if parts.query or parts.fragment or not host:
        where = f"{parts.scheme}://{host or 'HOST'}"
        raise ConfigError(f"a URL that begins with {where} should be {parts.scheme}://HOST[:PORT], with no '?' or '#' behind it")
    check_host(host, text)
    if port == 0:
        raise ConfigError(f"port 0 in {text!r} is out of range; give a number from 1 to 65535")
    return parts.scheme, host, port, parts.path


def secret_from_file(path: Path) -> Secret:
    """The content of a file, without surrounding white space. Raises ConfigError when it cannot be read or is empty."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET + 1)
    except OSError as error:
        raise ConfigError(f"the secret in {path} cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_SECRET:
        raise ConfigError(f"{path} is too long to be a secret; is it the right file?")
    return _secret(content.decode("utf-8", "replace"), f"the file {path}")


def secret_from_environment(name: str, environment: Mapping[str, str]) -> Secret | None:
    """The variable `name` of `environment`, None when it is not set. Raises ConfigError when it is empty."""
    text = environment.get(name)
    return None if text is None else _secret(text, f"the environment variable {name}")


def _secret(text: str, origin: str) -> Secret:
    text = text.strip()
    if not text:
        raise ConfigError(f"{origin} is empty; it should hold one secret")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{origin} should hold one secret: a single line of visible ASCII characters")
    return Secret(text)
