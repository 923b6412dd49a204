"""The strict check of heads and trailers, in both directions.

Theory of operation. Whatever two parsers could read differently is refused here, before anything else reads it: RFC 9112
without its tolerances, but for one empty line before a request. One regular expression with possessive parts (so its time is
linear) accepts a head whole; a second takes it apart. Only a head that the first refuses is looked at again, to find
the status and words of its refusal.

Spelling is split from meaning (`split_*` from `make_*`), so that another parser's opinion can be compared in between.

Requests are answered with the status of the BadMessage; for responses the caller turns each into 502.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import attrs

from netbore.proto.http.messages import BadMessage, Headers, RequestHead, ResponseHead
from netbore.proto.stream import Data


@attrs.frozen
class HttpLimits:
    """The most that a message may spend on anything but its body, in bytes unless said otherwise."""

    start_line: int = 8192
    head: int = 65536
    header_line: int = 16384
    #: Number of header lines, and of trailer lines.
    headers: int = 128
    chunk_line: int = 256
    trailers: int = 16384
    #: A head up to this size is within all limits of size.
    least: int = attrs.field(init=False)

    @least.default
    def _least(self) -> int:
        return min(self.start_line, self.head, self.header_line)


LIMITS: Final = HttpLimits()

# --- the grammar (RFC 9110 section 5, RFC 9112 sections 2 to 5) ---

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_TEXT: Final = rb"[\t\x20-\x7e\x80-\xff]*+"
_REQUEST_START: Final = rb"(" + TOKEN + rb") ([\x21-\x7e]++) HTTP/1\.([01])"
_RESPONSE_START: Final = rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (" + _TEXT + rb"))?+"

# Nearly all headers are plain: a name of letters, digits and hyphens, one blank, a value without blanks at its ends. A plain head
# is taken apart in half the time, and cannot have a name that imitates another.
_PLAIN: Final = rb"\r\n(?:[0-9A-Za-z-]++: (?![ \t])" + _TEXT + rb"(?<![ \t])\r\n)*+\r\n"
_PLAIN_FIELD: Final = re.compile(rb"([^:]++): ([^\r]*+)\r\n")
_SOUND: Final = rb"\r\n(?:" + TOKEN + rb":" + _TEXT + rb"\r\n)*+\r\n"
_SOUND_FIELD: Final = re.compile(rb"([^:]++):([^\r]*+)\r\n")

_REQUEST: Final = (re.compile(_REQUEST_START + _PLAIN), re.compile(_REQUEST_START + _SOUND))
_RESPONSE: Final = (re.compile(_RESPONSE_START + _PLAIN), re.compile(_RESPONSE_START + _SOUND))
_SECTION: Final = (re.compile(_PLAIN), re.compile(_SOUND))

#: What stands nowhere in a head, finished or not: a control, LF without CR, CR without LF.
_BAD_OCTET: Final = re.compile(rb"[^\t\r\n\x20-\x7e\x80-\xff]|(?<!\r)\n|\r(?=[^\n])")
_REQUEST_LINE: Final = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]++) HTTP/([0-9])\.([0-9])")
_STATUS_LINE: Final = re.compile(rb"HTTP/([0-9])\.([0-9]) [1-9][0-9]{2}(?: .*+)?+", re.DOTALL)
_LINE: Final = re.compile(TOKEN + rb":" + _TEXT)

_LABEL: Final = rb"[0-9A-Za-z_-]++"
_HOST: Final = re.compile(
    rb"(?:(" + _LABEL + rb"(?:\." + _LABEL + rb")*+)\.?+|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?+",
)
_ABSOLUTE: Final = re.compile(rb"https?://([^/?]*+)(.*+)", re.IGNORECASE)
MAX_HOST: Final = 260

#: Methods that are refused whatever their target, in upper case.
REFUSED_METHODS: Final = {b"CONNECT": (501, "CONNECT is not served"), b"TRACE": (405, "TRACE is not served")}

#: Names by which we route, frame or vouch. A name that becomes one of these once each mark in it is read as "-", as CGI-like
#: Hosts read it, could stand beside the real one and be taken for it.
RESERVED: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"forwarded",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"via",
        b"x-real-ip",
    }
)
RESERVED_PREFIXES: Final = (b"netbore-", b"x-forwarded-")
_MARKS: Final = bytes.maketrans(b"!#$%&'*+.^_`|~", b"-" * 14)
_MARK: Final = re.compile(rb"[!#$%&'*+.^_`|~]")


def split_request(text: bytes, limits: HttpLimits = LIMITS) -> tuple[bytes, bytes, int, Headers]:
    """Method, target as received, minor version and headers of a whole head, its empty line included. Raises BadMessage."""
    if len(text) > limits.least:
        _check_lines(text, limits)
    match, headers = _split(text, _REQUEST, limits)
    if match is None:
        raise _diagnosed(text, _REQUEST_LINE)
    method, target, minor = match.groups()
    return method, target, int(minor), headers


def split_response(text: bytes, limits: HttpLimits = LIMITS) -> tuple[int, bytes, int, Headers]:
    """Status, reason, minor version and headers of a whole head, its empty line included. Raises BadMessage."""
    if len(text) > limits.least:
        _check_lines(text, limits)
    match, headers = _split(text, _RESPONSE, limits)
    if match is None:
        raise _diagnosed(text, _STATUS_LINE)
    minor, status, reason = match.groups()
    return int(status), reason or b"", int(minor), headers


def split_section(text: bytes, limits: HttpLimits = LIMITS) -> Headers:
    """The fields of a whole trailer section: CRLF of the line before it, its lines, the empty line. Raises BadMessage."""
    if len(text) > limits.trailers:
        raise BadMessage(431, "trailers too large")
    match, fields = _split(text, _SECTION, limits)
    if match is None:
        raise BadMessage(400, "bad trailer")
    return fields


def _split(
    text: bytes, grammars: tuple[re.Pattern[bytes], re.Pattern[bytes]], limits: HttpLimits
) -> tuple[re.Match[bytes] | None, Headers]:
    """Match `text` by the plain grammar or else by the sound one, and take its fields apart."""
    plain, sound = grammars
    start = text.find(b"\r\n") + 2
    match = plain.fullmatch(text)
    if match is not None:
        fields = _PLAIN_FIELD.findall(text, start)
    else:
        match = sound.fullmatch(text)
        if match is None:
            return None, ()
        fields = [(name, value.strip(b" \t")) for name, value in _SOUND_FIELD.findall(text, start)]
        if any(_is_twin(name) for name, _ in fields):
            raise BadMessage(400, "header name that imitates another")
    if len(fields) > limits.headers:
        raise BadMessage(431, "too many header lines")
    return match, tuple(fields)


def _is_twin(name: bytes) -> bool:
    if not _MARK.search(name):
        return False
    plain = name.lower().translate(_MARKS)
    return plain in RESERVED or plain.startswith(RESERVED_PREFIXES)


def make_request(method: bytes, target: bytes, minor: int, headers: Headers) -> RequestHead:
    """What the parts of a request head mean together.

    The target becomes origin-form, and the authority of an absolute-form replaces Host. Raises BadMessage.
    """
    refused = REFUSED_METHODS.get(method.upper())
    if refused:
        raise BadMessage(*refused)
    head = RequestHead(method, target, minor, headers)
    host = head.fields.get(b"host")
    if host is not None:
        head.authority = parse_host(host)
    elif minor == 1:
        raise BadMessage(400, "no Host")
    if not target.startswith(b"/") or b"#" in target:
        head = _resolved(head)
    if head.fields.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise BadMessage(417, "unknown expectation")
    return head


def _resolved(head: RequestHead) -> RequestHead:
    """A head whose target is not in origin-form (RFC 9112 section 3.2)."""
    if head.target == b"*" and head.method == b"OPTIONS":
        return head
    match = _ABSOLUTE.fullmatch(head.target)
    if match is None or b"#" in head.target:
        raise BadMessage(400, "bad target")
    host, path = match.groups()
    if not path.startswith(b"/"):
        path = b"*" if head.method == b"OPTIONS" and not path else b"/" + path
    headers = ((b"Host", host), *(pair for pair in head.headers if pair[0].lower() != b"host"))
    return RequestHead(head.method, path, head.minor, headers, authority=parse_host(host))


def parse_host(value: bytes) -> bytes:
    """The host of a Host value or of an authority: lower-case, no trailing dot, no port. Raises BadMessage."""
    match = _HOST.fullmatch(value)
    if match is None or len(value) > MAX_HOST:
        raise BadMessage(400, "bad Host")
    name, address, port = match.groups()
    if (port is not None and not 0 < int(port) < 65536) or (address is not None and not _is_ipv6(address)):
        raise BadMessage(400, "bad Host")
    return (name or b"[" + address + b"]").lower()


def _is_ipv6(text: bytes) -> bool:
    try:
        ipaddress.IPv6Address(text.decode("ascii"))
    except ValueError:
        return False
    return True


def make_response(status: int, reason: bytes, minor: int, headers: Headers, method: bytes) -> ResponseHead:
    """What the parts of a response head mean together, after a request by `method`. Raises BadMessage."""
    head = ResponseHead(status, reason, minor, headers, method=method)
    if status == 101 and head.upgrade is None:
        raise BadMessage(502, "switch to no known protocol")
    return head


# --- refusals ---


def _check_lines(text: bytes, limits: HttpLimits) -> None:
    """Raises BadMessage where a whole head is larger than allowed."""
    if text.find(b"\r\n") > limits.start_line:
        raise BadMessage(414, "start line too long")
    if len(text) > limits.head:
        raise BadMessage(431, "head too large")
    if len(text) > limits.header_line and any(len(line) > limits.header_line for line in text.split(b"\r\n")[1:]):
        raise BadMessage(431, "header line too long")


def check_octets(held: bytearray, start: int) -> None:
    """Raises BadMessage where an unfinished head or line has, from `start` on, what nothing that follows can mend."""
    # One octet earlier, for what came before may have ended in the CR that this now turns out to be wrong.
    if _BAD_OCTET.search(held, max(0, start - 1)):
        raise BadMessage(400, "control character or bare line end")


def check_partial(held: bytearray, start: int, limits: HttpLimits) -> None:
    """The same for an unfinished head, with its limits, so that neither waits for an end that may never come."""
    check_octets(held, start)
    # A line may be full with the CR of its end there and the LF still to come.
    if len(held) <= limits.least + 1:
        return
    if len(held) > limits.start_line + 1 and held.find(b"\r\n", 0, limits.start_line + 2) < 0:
        raise BadMessage(414, "start line too long")
    if len(held) > limits.head:
        raise BadMessage(431, "head too large")
    line = held.rfind(b"\r\n")
    if line >= 0 and len(held) - line - 3 > limits.header_line:
        raise BadMessage(431, "header line too long")


def _diagnosed(text: bytes, start_line: re.Pattern[bytes]) -> BadMessage:
    """Why the grammar refused a head."""
    if _BAD_OCTET.search(text):
        return BadMessage(400, "control character or bare line end")
    first, *lines = text[:-4].split(b"\r\n")
    match = start_line.fullmatch(first)
    if match is None:
        return BadMessage(400, "bad start line")
    if not all(_LINE.fullmatch(line) for line in lines):
        return BadMessage(400, "bad header line")
    return BadMessage(505, "HTTP version not served")


class Collector:
    """Bytes up to and including a terminator, over as many feeds as they take."""

    __slots__ = ("_pattern", "_terminator", "held", "scanned")

    def __init__(self, terminator: bytes) -> None:
        self._terminator = terminator
        self._pattern = re.compile(re.escape(terminator))
        self.held = bytearray()
        #: How much of `held` an earlier call has been over.
        self.scanned = 0

    def take(self, data: Data, at: int) -> tuple[bytes | None, int]:
        """The text once it is whole, else None; and the place in `data` up to which it was used."""
        if not self.held:
            stop = self._end(data, at)
            if stop >= 0:
                return bytes(data[at:stop]), stop
        before = self.scanned = len(self.held)
        self.held += data[at:]
        found = self.held.find(self._terminator, max(0, before - len(self._terminator) + 1))
        if found < 0:
            return None, len(data)
        stop = found + len(self._terminator)
        text = bytes(self.held[:stop])
        self.clear()
        return text, at + stop - before

    def _end(self, data: Data, at: int) -> int:
        if type(data) is bytes:
            found = data.find(self._terminator, at)
            return found if found < 0 else found + len(self._terminator)
        match = self._pattern.search(data, at)
        return -1 if match is None else match.end()

    def clear(self) -> None:
        """Forget what is held."""
        self.held = bytearray()
        self.scanned = 0
