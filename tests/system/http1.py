"""A strict HTTP/1.1 reader and a raw Viewer for the system tests, independent of the product's own parser.

It reads one way only, and raises Ambiguous where a message could be read in two; so what passes it on either side of the
tunnel has one meaning.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from types import TracebackType

import attrs

_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_REQUEST = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/1\.1")
_STATUS = re.compile(rb"HTTP/1\.1 ([1-9][0-9][0-9]) [\t\x20-\x7e\x80-\xff]*")
_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(;[\t\x20-\x7e]+)?")
_FRAMING = (b"content-length", b"transfer-encoding")

Fields = tuple[tuple[bytes, bytes], ...]


class Ambiguous(AssertionError):
    """What was read has more than one meaning, or none."""


class CutShort(Exception):
    """The bytes ended in the middle of a message."""


@attrs.frozen
class Head:
    """A start line and fields. Lookup is by lower-case name."""

    start: bytes
    fields: Fields

    def all(self, name: str) -> list[str]:
        """The values of every line of this name."""
        return [value.decode("latin-1") for key, value in self.fields if key.lower() == name.encode()]

    def get(self, name: str) -> str | None:
        """The value of the only line of this name."""
        values = self.all(name)
        if len(values) > 1:
            raise Ambiguous(f"{name} stands {len(values)} times in {self}")
        return values[0] if values else None

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    @property
    def method(self) -> str:
        return self.start.split(b" ")[0].decode()

    @property
    def target(self) -> str:
        return self.start.split(b" ")[1].decode()

    @property
    def closing(self) -> bool:
        return "close" in (self.get("connection") or "").lower()


@attrs.frozen
class Message:
    """A whole message."""

    head: Head
    body: bytes
    trailers: Fields = ()

    @property
    def status(self) -> int:
        return self.head.status

    def get(self, name: str) -> str | None:
        return self.head.get(name)


class Wire:
    """Messages out of a byte stream. `recv(limit)` gives at least one byte, or b"" at the end."""

    def __init__(self, recv: Callable[[int], bytes]) -> None:
        self._recv = recv
        self.held = b""

    def fill(self) -> bool:
        """Read once more. False at the end."""
        data = self._recv(65536)
        self.held += data
        return bool(data)

    def line(self) -> bytes:
        """One line, without its CRLF. Raises CutShort and Ambiguous."""
        while b"\n" not in self.held:
            if not self.fill():
                raise CutShort(f"in a line, after {self.held[:80]!r}")
        line, _, self.held = self.held.partition(b"\n")
        if not line.endswith(b"\r") or b"\r" in line[:-1] or b"\0" in line:
            raise Ambiguous(f"bad line end or octet: {line!r}")
        return line[:-1]

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises CutShort."""
        parts = [self.held[:count]]
        self.held = self.held[count:]
        missing = count - len(parts[0])
        while missing:
            data = self._recv(65536)
            if not data:
                raise CutShort(f"{missing} of {count} bytes are missing")
            parts.append(data[:missing])
            self.held = data[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def to_end(self) -> bytes:
        """Everything up to the end of the stream."""
        while self.fill():
            pass
        data, self.held = self.held, b""
        return data

    def head(self, start: re.Pattern[bytes]) -> Head | None:
        """A head whose first line is `start`; None at the end of the stream before it."""
        if not self.held and not self.fill():
            return None
        first = self.line()
        if not start.fullmatch(first):
            raise Ambiguous(f"bad start line: {first!r}")
        return Head(first, self.fields())

    def fields(self) -> Fields:
        """Field lines up to the empty line."""
        fields = []
        while line := self.line():
            found = _FIELD.fullmatch(line)
            if found is None:
                raise Ambiguous(f"bad field line: {line!r}")
            fields.append((found[1], found[2]))
        return tuple(fields)

    def chunk(self) -> bytes:
        """One chunk's data; b"" for the last, whose trailers follow."""
        line = self.line()
        found = _SIZE.fullmatch(line)
        if found is None:
            raise Ambiguous(f"bad chunk line: {line!r}")
        data = self.take(int(found[1], 16))
        if data and self.take(2) != b"\r\n":
            raise Ambiguous("a chunk is longer than its size")
        return data

    def framed(self, head: Head) -> Message | None:
        """The message whose framing `head` states; None when it states none."""
        length, coding = (head.get(name.decode()) for name in _FRAMING)
        if length is not None and coding is not None:
            raise Ambiguous(f"two framings: {head}")
        if coding is not None:
            if coding != "chunked":
                raise Ambiguous(f"unknown coding: {coding}")
            parts = []
            while data := self.chunk():
                parts.append(data)
            return Message(head, b"".join(parts), self.fields())
        if length is None:
            return None
        if not re.fullmatch("[0-9]{1,18}", length):
            raise Ambiguous(f"bad length: {length}")
        return Message(head, self.take(int(length)))

    def request(self) -> Message | None:
        """The next request, None at the end of the stream."""
        head = self.head(_REQUEST)
        return None if head is None else self.framed(head) or Message(head, b"")

    def response_head(self) -> Head | None:
        """The head of the next response, informational ones included."""
        return self.head(_STATUS)

    def response(self, method: str = "GET") -> Message | None:
        """The next final response, None at the end of the stream."""
        head = self.response_head()
        while head is not None and head.status < 200:
            head = self.response_head()
        if head is None:
            return None
        if method == "HEAD" or head.status in (204, 304):
            return Message(head, b"")
        message = self.framed(head)
        if message is None:
            if not head.closing:
                raise Ambiguous(f"no framing: {head}")
            message = Message(head, self.to_end())
        return message


class Viewer(Wire):
    """One connection to an Edge. `name` is both SNI and the Host of `get`; None as `ca_file` speaks plain HTTP."""

    def __init__(self, port: int, name: str, ca_file: Path | None, *, timeout: float = 10.0, buffer: int = 0) -> None:
        """`buffer` is the size of the kernel's receive buffer, 0 for its own choice. Raises OSError."""
        self.name = name
        self.sock = socket.socket()
        try:
            if buffer:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self.sock.settimeout(timeout)
            self.sock.connect(("127.0.0.1", port))
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if ca_file is not None:
                self.sock = ssl.create_default_context(cafile=ca_file).wrap_socket(
                    self.sock, server_hostname=name, suppress_ragged_eofs=False
                )
        except BaseException:
            self.sock.close()
            raise
        super().__init__(self.sock.recv)

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def ask(self, method: str, target: str, *headers: str, body: bytes = b"", host: str | None = None) -> None:
        """Send a request; a body needs its framing in `headers`."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host or self.name}", *headers, "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + body)

    def get(self, target: str, *headers: str, method: str = "GET", body: bytes = b"", host: str | None = None) -> Message:
        """Ask, and read the final response. Raises CutShort when there is none."""
        if body:
            headers = (*headers, f"Content-Length: {len(body)}")
        self.ask(method, target, *headers, body=body, host=host)
        message = self.response(method)
        if message is None:
            raise CutShort("no response")
        return message

    def pour(self, pieces: Iterable[bytes], stubborn: float = 0.2, seconds: float = 20.0) -> int:
        """Send `pieces`, and read up to the peer's end when nothing could be sent for `stubborn` seconds.

        What came is in `held`. Returns how many bytes were sent. Raises TimeoutError.
        """
        until = monotonic() + seconds
        self.sock.settimeout(0)
        sent = 0
        for piece in pieces:
            view = memoryview(piece)
            while view:
                if not select.select([], [self.sock], [], stubborn)[1] and not self._read_some():
                    return sent
                count = self._send_some(view)
                if count is None:
                    break
                sent += count
                view = view[count:]
                if monotonic() > until:
                    raise TimeoutError(f"{sent} bytes were sent in {seconds} s")
        while self._read_some():
            if not select.select([self.sock], [], [], max(0, until - monotonic()))[0]:
                raise TimeoutError(f"no end after {seconds} s")
        return sent

    def _send_some(self, piece: memoryview) -> int | None:
        """None when nobody takes more."""
        try:
            return self.sock.send(piece)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0
        except OSError:
            return None

    def _read_some(self) -> bool:
        """False at the end, clean or not."""
        try:
            return self.fill()
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False

    def ended(self) -> bool:
        """Read to the end; True when nothing came before a clean one."""
        return self.to_end() == b""

    def close(self) -> None:
        self.sock.close()
