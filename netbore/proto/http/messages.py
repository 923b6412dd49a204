"""HTTP/1.1 messages as values: heads, the end of a message, and what a head means.

Theory of operation. A message is a head, then slices of its body (`Data`), then an `End`. How a head is *spelled* is checked
in `head.py`; what it *means* is here: which framing its body has, whether its connection stays, what it wants to upgrade to.
Meanings come from `fields`, an index by lower-case name that is made once, at first use: a head that is only emitted
never pays for it.

In `fields` the lines of one name are joined by ", ". A repeated Content-Length or Host therefore has a comma in it and
fails the grammar of a single one, so repetition needs no rule of its own.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final, TypeAlias

import attrs

from netbore.proto.stream import Data

#: Names as received, with their values, in order. Values carry no blanks at their ends.
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]

#: One protocol of an Upgrade header; a list of them does not match.
_PROTOCOL: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++(?:/[!#$%&'*+\-.^_`|~0-9A-Za-z]++)?+")

_HINT: Final = re.compile(rb"(?:^|[,; \t])timeout[ \t]*=[ \t]*([0-9]{1,6})", re.IGNORECASE)
#: Authentication that belongs to a connection instead of a request (RFC 4559).
_BOUND: Final = (b"ntlm", b"negotiate")

#: 10^18 - 1 fits every peer's 64 signed bits.
LENGTH_DIGITS: Final = 18


class BadMessage(Exception):
    """The peer's message must not be served.

    `status` answers it: of the 4xx and 5xx families for requests, 502 for responses. `reason` is one of our own fixed phrases and
    never holds bytes of the peer.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


class Truncated(BadMessage):
    """The peer's bytes ended in the middle of a message."""


class Framing:
    """How long a body is: NONE, LENGTH(n), CHUNKED or UNTIL_CLOSE.

    `length` is the number of bytes of a LENGTH and None for all others. The three constants may be compared by identity.
    """

    __slots__ = ("length", "name")

    NONE: ClassVar[Framing]
    CHUNKED: ClassVar[Framing]
    UNTIL_CLOSE: ClassVar[Framing]

    def __init__(self, name: str, length: int | None = None) -> None:
        self.name = name
        self.length = length

    @staticmethod
    def LENGTH(length: int) -> Framing:
        """A body of exactly `length` bytes."""
        return Framing("LENGTH", length)

    @property
    def empty(self) -> bool:
        """No byte of body can come."""
        return self is Framing.NONE or self.length == 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Framing) and (self.name, self.length) == (other.name, other.length)

    def __hash__(self) -> int:
        return hash((self.name, self.length))

    def __repr__(self) -> str:
        return self.name if self.length is None else f"{self.name}({self.length})"


Framing.NONE = Framing("NONE")
Framing.CHUNKED = Framing("CHUNKED")
Framing.UNTIL_CLOSE = Framing("UNTIL_CLOSE")

_NO_TOKENS: Final[frozenset[bytes]] = frozenset()


def tokens(value: bytes) -> frozenset[bytes]:
    """The members of a comma-separated list, in lower case."""
    return frozenset(token for part in value.lower().split(b",") if (token := part.strip(b" \t")))


def index(headers: Headers) -> dict[bytes, bytes]:
    """Values by lower-case name; those of a repeated name are joined by ", " in their order."""
    fields = {name.lower(): value for name, value in headers}
    if len(fields) == len(headers):
        return fields
    lines: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        lines.setdefault(name.lower(), []).append(value)
    return {name: b", ".join(values) for name, values in lines.items()}


class _Head:
    """What request and response heads share.

    `framing` is how its body is framed. `keep_alive`: the sender would let the connection go on after this message, whatever the
    body's framing. `bound`: it authenticates its connection and not itself (RFC 4559), so nobody else may use that. What a head
    means is settled as it is made; one that was made of another, with its `framing`, has no other meaning: it only goes out.

    `derived` and `text` are for the modules that make other heads and bytes of this one: a head may come again and again
    (see `codec.HeadMemo`), and what follows from it stays the same.
    """

    __slots__ = ("_connection", "_fields", "bound", "derived", "framing", "headers", "keep_alive", "minor", "text")

    framing: Framing
    keep_alive: bool
    bound: bool

    def __init__(self, minor: int, headers: Headers) -> None:
        self.minor = minor
        self.headers = headers
        self._fields: dict[bytes, bytes] | None = None
        self._connection: frozenset[bytes] | None = None
        self.derived: tuple[object, Any] | None = None
        self.text: bytes | None = None

    @property
    def fields(self) -> dict[bytes, bytes]:
        """Values by lower-case name, see `index`. Not to be changed."""
        if self._fields is None:
            self._fields = index(self.headers)
        return self._fields

    def get(self, name: bytes) -> bytes | None:
        """The value of a header by lower-case name, repeated lines joined by ", "; None when there is none."""
        return self.fields.get(name)

    def get_all(self, name: bytes) -> list[bytes]:
        """The values of a header by lower-case name, one per line: for those that may not be joined, as Set-Cookie."""
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def connection(self) -> frozenset[bytes]:
        """The lower-case options of Connection."""
        if self._connection is None:
            value = self.fields.get(b"connection")
            self._connection = _NO_TOKENS if value is None else tokens(value)
        return self._connection

    def _settle(self, credentials: bytes | None) -> None:
        connection = self.connection
        self.keep_alive = (self.minor == 1 or b"keep-alive" in connection) and b"close" not in connection
        self.bound = credentials is not None and _is_bound(credentials)

    def _protocol(self) -> bytes | None:
        """The one protocol of Upgrade, lower-case. HTTP/2 is never offered, for its bytes could not be checked per request."""
        value = self.fields.get(b"upgrade")
        if value is None or self.minor == 0 or b"upgrade" not in self.connection or not _PROTOCOL.fullmatch(value):
            return None
        protocol = value.lower()
        return None if protocol.startswith((b"h2", b"http/")) else protocol


class RequestHead(_Head):
    """The head of a request.

    `method` is kept as received, `target` is in origin-form or `*`, `minor` is 0 or 1 (HTTP/1.minor). `authority` is the host
    that is asked for: lower-case, without trailing dot and port, b"" where an HTTP/1.0 request names none.
    `upgrade` is the protocol asked for, lower-case: exactly one, and only where no body stands before its first byte.
    A head made by hand has the same meanings as a parsed one, `authority` apart. Raises BadMessage for an ambiguous framing.
    """

    __slots__ = ("authority", "method", "target", "upgrade")

    upgrade: bytes | None

    def __init__(
        self,
        method: bytes,
        target: bytes,
        minor: int,
        headers: Headers,
        *,
        authority: bytes = b"",
        framing: Framing | None = None,
    ) -> None:
        super().__init__(minor, headers)
        self.method = method
        self.target = target
        self.authority = authority
        if framing is not None:
            self.framing = framing
            return
        self.framing = _declared(minor, self.fields) or Framing.NONE
        self.upgrade = self._protocol() if self.framing.empty else None
        self._settle(self.fields.get(b"authorization"))

    @property
    def expect_continue(self) -> bool:
        """The sender waits for 100 (Continue) before its body. HTTP/1.0 cannot (RFC 9110 section 10.1.1)."""
        return self.minor == 1 and self.fields.get(b"expect", b"").lower() == b"100-continue"

    def __repr__(self) -> str:
        return f"RequestHead({self.method!r}, {self.target!r}, {self.minor}, {self.headers!r})"


class ResponseHead(_Head):
    """The head of a response. `status` is 100 to 999, `reason` may be empty, `minor` is 0 or 1.

    `framing` depends on the `method` of the request too (RFC 9112 section 6.3). `patience` is for how many seconds the Host keeps
    the connection when idle, None where it does not say. `upgrade` is the protocol that a 101 switches to, lower-case; None for
    any other status. Raises BadMessage where two readers could differ, a body on a response that can have none included.
    """

    __slots__ = ("patience", "reason", "status", "upgrade")

    patience: int | None
    upgrade: bytes | None

    def __init__(
        self,
        status: int,
        reason: bytes,
        minor: int,
        headers: Headers,
        *,
        method: bytes = b"GET",
        framing: Framing | None = None,
    ) -> None:
        super().__init__(minor, headers)
        self.status = status
        self.reason = reason
        if framing is not None:
            self.framing = framing
            return
        self.framing = self._framed(method)
        self.upgrade = self._protocol() if status == 101 else None
        hint = _HINT.search(self.fields.get(b"keep-alive", b""))
        self.patience = int(hint[1]) if hint else None
        self._settle(self.fields.get(b"www-authenticate") if status == 401 else None)

    def _framed(self, method: bytes) -> Framing:
        declared = _declared(self.minor, self.fields)
        if self.status < 200 or self.status == 204:
            if declared is not None and declared.length != 0:
                raise BadMessage(502, "body on a response that has none")
            return Framing.NONE
        if self.status == 304 or method == b"HEAD":
            return Framing.NONE
        return declared or Framing.UNTIL_CLOSE

    @property
    def informational(self) -> bool:
        """A 1xx: a final response follows, except after 101."""
        return self.status < 200

    def __repr__(self) -> str:
        return f"ResponseHead({self.status}, {self.reason!r}, {self.minor}, {self.headers!r})"


@attrs.frozen
class End:
    """A message is complete. `trailers` are as received; `headers.trailers` says which may go on."""

    trailers: Headers = ()


Piece: TypeAlias = RequestHead | ResponseHead | Data | End


def _declared(minor: int, fields: dict[bytes, bytes]) -> Framing | None:
    """What Content-Length and Transfer-Encoding say, or None without either."""
    coding = fields.get(b"transfer-encoding")
    length = fields.get(b"content-length")
    if coding is None:
        return None if length is None else Framing("LENGTH", _number(length))
    if length is not None:
        raise BadMessage(400, "both Content-Length and Transfer-Encoding")
    if minor == 0:
        raise BadMessage(400, "Transfer-Encoding in HTTP/1.0")
    if coding.lower() != b"chunked":
        raise BadMessage(501, "unknown transfer coding")
    return Framing.CHUNKED


def _is_bound(value: bytes) -> bool:
    return any(part.strip().startswith(_BOUND) for part in value.lower().split(b","))


def _number(value: bytes) -> int:
    if len(value) > LENGTH_DIGITS or not value.isdigit():
        raise BadMessage(400, "bad Content-Length")
    return int(value)
