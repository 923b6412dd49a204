"""The rules of forwarding: which headers go on, which end here, and which are ours (RFC 9110 section 7.6).

Theory of operation. Everything is a table and a pure function from head to head. Names go out as they came in. Two kinds of
rule are apart because different parts know what they need:

- `to_host` and `to_viewer` know the Tunnel: what a Host may learn and what it may say. What they return has no
  connection-level fields but those of an upgrade and, towards the Host, those of the body's framing.
- `framed` knows one Viewer connection: HTTP version, framing, keep-alive. It is the last thing done to a response head.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from netbore.proto.http.head import parse_host
from netbore.proto.http.messages import BadMessage, Framing, Headers, RequestHead, ResponseHead, tokens

#: Of one connection only, nominated or not (RFC 9110 section 7.6.1).
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)

#: Fields for every recipient: nominating one in Connection does not remove it, else a Viewer could have us drop what
#: frames, routes, authenticates or vouches.
END_TO_END: Final = frozenset(
    {
        b"age",
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"date",
        b"etag",
        b"expect",
        b"expires",
        b"host",
        b"location",
        b"origin",
        b"range",
        b"set-cookie",
        b"trailer",
        b"vary",
        b"www-authenticate",
    }
)

#: What only a proxy may say of a Viewer; taken out unless the Viewer is one that we trust.
VOUCHED: Final = frozenset({b"forwarded", b"x-real-ip"})
VOUCHED_PREFIX: Final = b"x-forwarded-"
#: What every forwarded request says anew, built on what came.
REPLACED: Final = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})

#: Ours alone, in both directions and in trailers.
PRIVATE_PREFIX: Final = b"netbore-"

#: What a Host may not say of its Edge: another way to the origin.
HOST_DROPPED: Final = HOP_BY_HOP | {b"alt-svc"}

#: Fields that have a meaning only before the body: they frame, route, authenticate or steer (RFC 9110 section 6.5.1).
NO_TRAILERS: Final = (
    HOP_BY_HOP
    | END_TO_END
    | VOUCHED
    | frozenset(
        {
            b"accept-ranges",
            b"alt-svc",
            b"authentication-info",
            b"if-match",
            b"if-modified-since",
            b"if-none-match",
            b"if-range",
            b"if-unmodified-since",
            b"max-forwards",
            b"pragma",
            b"proxy-authentication-info",
            b"retry-after",
            b"te",
            b"via",
            b"warning",
        }
    )
)
_NO_TRAILER_PREFIXES: Final = (PRIVATE_PREFIX, VOUCHED_PREFIX, b"access-control-")

#: How often our own id may stand in Via before the request is going in circles.
MAX_VISITS: Final = 3

_TARGET_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Forwarding:
    """What an Edge says of one Viewer connection in each request that it forwards. Made once per connection.

    `client` is the Viewer's address as text, IPv6 without brackets; `scheme` is b"http" or b"https"; `edge_id` goes into
    Via. With `trusted`, the Viewer is a proxy whose own statements are kept and built upon; else they are replaced.
    """

    __slots__ = ("client", "for_element", "pseudonym", "scheme", "trusted", "via")

    def __init__(self, client: bytes, scheme: bytes, edge_id: bytes, *, trusted: bool = False) -> None:
        self.client = client
        self.scheme = scheme
        self.trusted = trusted
        self.pseudonym = b"netbore-" + edge_id
        self.via = (b"1.0 " + self.pseudonym, b"1.1 " + self.pseudonym)
        node = b'"[%b]"' % client if b":" in client else client
        self.for_element = b"for=%b;proto=%b" % (node, scheme)


def to_host(head: RequestHead, forwarding: Forwarding, *, host: bytes | None = None) -> RequestHead:
    """The request as the Host gets it: HTTP/1.1, with the same framing.

    `host` replaces the Host header (see `host_rule`); None keeps it. Raises BadMessage(508) where the request has come through
    this Edge too often.
    """
    fields = head.fields
    original = fields.get(b"host", head.authority)
    ended, prefixes = _ENDED[forwarding.trusted]
    if head.connection:
        ended |= head.connection - END_TO_END
    headers = [(b"Host", original if host is None else host)]
    headers += _without(head.headers, fields, ended, prefixes)
    headers += _statements(head, forwarding, original)
    headers += _connection_fields(head)
    if head.minor == 0:
        headers = [pair for pair in headers if pair[0].lower() != b"expect"]
    return RequestHead(head.method, head.target, 1, tuple(headers), authority=head.authority, framing=head.framing)


#: Names and prefixes that a request loses, by whether its sender is trusted.
_ENDED: Final = (
    (HOP_BY_HOP | REPLACED | VOUCHED | {b"host"}, (PRIVATE_PREFIX, VOUCHED_PREFIX)),
    (HOP_BY_HOP | REPLACED | {b"host"}, (PRIVATE_PREFIX,)),
)


def _without(
    headers: Headers, fields: dict[bytes, bytes], ended: frozenset[bytes], prefixes: tuple[bytes, ...]
) -> list[tuple[bytes, bytes]]:
    names = fields if len(fields) == len(headers) else [name.lower() for name, _ in headers]
    return [pair for name, pair in zip(names, headers, strict=True) if name not in ended and not name.startswith(prefixes)]


def _statements(head: RequestHead, forwarding: Forwarding, original: bytes) -> list[tuple[bytes, bytes]]:
    """Via, Forwarded and the X-Forwarded ones."""
    fields = head.fields
    via = forwarding.via[head.minor]
    if b"via" in fields:
        if visits(head, forwarding.pseudonym) >= MAX_VISITS:
            raise BadMessage(508, "the request has come through here before")
        via = fields[b"via"] + b", " + via
    client, proto, host = forwarding.client, forwarding.scheme, original
    element = b'%b;host="%b"' % (forwarding.for_element, original) if original else forwarding.for_element
    if forwarding.trusted:
        client = _appended(fields.get(b"x-forwarded-for"), client)
        element = _appended(fields.get(b"forwarded"), element)
        proto = fields.get(b"x-forwarded-proto", proto)
        host = fields.get(b"x-forwarded-host", host)
    statements = [(b"X-Forwarded-For", client), (b"X-Forwarded-Proto", proto), (b"Forwarded", element), (b"Via", via)]
    return [*statements, (b"X-Forwarded-Host", host)] if host else statements


def _appended(before: bytes | None, ours: bytes) -> bytes:
    return before + b", " + ours if before else ours


def _connection_fields(head: RequestHead) -> list[tuple[bytes, bytes]]:
    """What the next connection needs: the coding of a chunked body, an upgrade, the wish for trailers."""
    fields = head.fields
    added = [(b"Transfer-Encoding", b"chunked")] if head.framing is Framing.CHUNKED else []
    if head.upgrade is not None:
        added += ((b"Connection", b"upgrade"), (b"Upgrade", fields[b"upgrade"]))
    elif b"te" in fields and head.minor == 1 and b"trailers" in tokens(fields[b"te"]):
        added += ((b"Connection", b"TE"), (b"TE", b"trailers"))
    return added


def visits(head: RequestHead, pseudonym: bytes) -> int:
    """How often `pseudonym` has passed the request on, by its Via."""
    entries = [entry.split() for entry in head.fields.get(b"via", b"").split(b",")]
    return sum(len(words) > 1 and words[1] == pseudonym for words in entries)


def to_viewer(head: ResponseHead, *, apex: bytes) -> ResponseHead:
    """The response as a Viewer may have it; `framed` has to follow. The framing of its body is unchanged.

    `apex` is the Edge's domain, lower-case: a Host sets no cookie for it or above, since its siblings would get it.
    """
    derived = head.derived
    if derived is not None and derived[0] is apex:
        known: ResponseHead = derived[1]
        return known
    made = _to_viewer(head, apex)
    head.derived = (apex, made)
    return made


def _to_viewer(head: ResponseHead, apex: bytes) -> ResponseHead:
    fields = head.fields
    ended = HOST_DROPPED if not head.connection else HOST_DROPPED | (head.connection - END_TO_END)
    headers = _without(head.headers, fields, ended, (PRIVATE_PREFIX,))
    if b"set-cookie" in fields:
        headers = [pair for pair in headers if pair[0].lower() != b"set-cookie" or not _is_shared(pair[1], apex)]
    if head.status == 101:
        headers += ((b"Connection", b"upgrade"), (b"Upgrade", fields[b"upgrade"]))
    elif head.status < 200 or head.status == 204:
        # A length of 0 may have come; such a response must not have any (RFC 9110 section 8.6).
        headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
    return ResponseHead(head.status, head.reason, 1, tuple(headers), framing=head.framing)


def _is_shared(cookie: bytes, apex: bytes) -> bool:
    """A cookie's Domain is the apex or above it, so that other Tunnels would get it."""
    for attribute in cookie.lower().split(b";")[1:]:
        name, _, value = attribute.partition(b"=")
        if name.strip(b" \t") == b"domain":
            domain = value.strip(b' \t"').strip(b".")
            if domain and (b"." + apex).endswith(b"." + domain):
                return True
    return False


#: How a framing reaches a Viewer of HTTP/1.0 and of HTTP/1.1: what has no length is chunked or ends with the connection.
_REFRAMED: Final = (
    {Framing.CHUNKED: Framing.UNTIL_CLOSE, Framing.UNTIL_CLOSE: Framing.UNTIL_CLOSE},
    {Framing.CHUNKED: Framing.CHUNKED, Framing.UNTIL_CLOSE: Framing.CHUNKED},
)


#: One object for each kind of Viewer connection, to know again what was derived for it: by minor version, then by keep-alive.
_CONNECTIONS: Final = (("1.0", "1.0 kept"), ("1.1", "1.1 kept"))


def framed(head: ResponseHead, *, viewer_minor: int, keep_alive: bool) -> ResponseHead:
    """A head without connection-level fields, made ready for one Viewer connection.

    The result's `framing` is how the body must be sent, and its `connection` has b"close" where the connection cannot go
    on, because `keep_alive` is False or because only its end can end the body.
    """
    key = _CONNECTIONS[viewer_minor][keep_alive]
    derived = head.derived
    if derived is not None and derived[0] is key:
        known: ResponseHead = derived[1]
        return known
    made = _framed(head, viewer_minor, keep_alive)
    head.derived = (key, made)
    return made


def _framed(head: ResponseHead, viewer_minor: int, keep_alive: bool) -> ResponseHead:
    framing = _REFRAMED[viewer_minor].get(head.framing, head.framing)
    headers = head.headers
    if framing is Framing.CHUNKED:
        headers += ((b"Transfer-Encoding", b"chunked"),)
    if head.status >= 200:
        if not keep_alive or framing is Framing.UNTIL_CLOSE:
            headers += ((b"Connection", b"close"),)
        elif viewer_minor == 0:
            headers += ((b"Connection", b"keep-alive"),)
    return ResponseHead(head.status, head.reason, 1, headers, framing=framing)


def trailers(fields: Headers) -> Headers:
    """The trailers that may go on, in either direction."""
    return tuple(pair for pair in fields if _may_trail(pair[0].lower()))


def _may_trail(name: bytes) -> bool:
    return name not in NO_TRAILERS and not name.startswith(_NO_TRAILER_PREFIXES)


def host_rule(rule: str, target: str) -> bytes | None:
    """The Host header that a Tunnel asks for.

    `rule` is "keep" (None: the Viewer's), "target" (that of `target`, which is HOST:PORT or a URL), or the value itself.
    Raises ValueError where that is no Host.
    """
    if rule == "keep":
        return None
    value = (_host_of(target) if rule == "target" else rule).encode("ascii", "replace")
    try:
        parse_host(value)
    except BadMessage:
        raise ValueError("not a Host header") from None
    return value


def _host_of(target: str) -> str:
    """Host and port of a target; the port is left out where the scheme implies it."""
    if not _TARGET_URL.match(target):
        return target
    parts = urlsplit(target)
    host = parts.netloc.rpartition("@")[2]
    default = _DEFAULT_PORTS.get(parts.scheme)
    return host.removesuffix(f":{default}")
