"""A Host that does exactly what a test tells it, byte by byte.

Theory of operation. A thread accepts, and one thread per connection runs the test's script with a `Connection`. The script
reads and writes with blocking calls; when it returns, the connection is closed. What a script raises is kept and raised again
when the Host is closed, except the errors of a peer that went away and of a connection that was idle for too long.

    def script(connection):
        request = connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    with RawHost(script) as host: ...          # or RawHost(serve(lambda request: ok(request.body)))
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType

import attrs
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.events import Request as Handshake

#: Seconds after which a script that waits for the peer gives up, unless the Host has an idle time.
PATIENCE = 60.0


class IdleTimeout(Exception):
    """Nothing came for the Host's idle time."""


@attrs.frozen
class Request:
    """One HTTP/1.1 request. Header names are in lower case; `raw` is the head as it came, `trailers` what followed the chunks."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    raw: bytes
    trailers: bytes = b""


class Connection:
    """One accepted connection. Reads return b"" or None at the peer's end; OSError when it was reset."""

    def __init__(self, host: RawHost, sock: socket.socket) -> None:
        self._host = host
        self.sock = sock
        self._buffer = bytearray()
        self.requests = 0

    def receive(self, most: int = 65536) -> bytes:
        """What is there, waiting for one byte at least; b"" at the end. Raises IdleTimeout."""
        if self._buffer:
            data = bytes(self._buffer[:most])
            del self._buffer[:most]
            return data
        return self._fill(most)

    def _fill(self, most: int = 65536) -> bytes:
        try:
            data = self.sock.recv(most)
        except TimeoutError:
            raise IdleTimeout from None
        self._host.received += len(data)
        return data

    def read_until(self, mark: bytes) -> bytes | None:
        """Up to and with `mark`; None when the peer ended before any byte. Raises EOFError when it ended in between."""
        while (at := self._buffer.find(mark)) < 0:
            data = self._fill()
            if not data:
                if self._buffer:
                    raise EOFError(f"the peer ended in {bytes(self._buffer[-80:])!r}")
                return None
            self._buffer += data
        at += len(mark)
        found = bytes(self._buffer[:at])
        del self._buffer[:at]
        return found

    def read_exactly(self, count: int) -> bytes:
        """`count` bytes. Raises EOFError."""
        while len(self._buffer) < count:
            data = self._fill(max(65536, min(count - len(self._buffer), 1 << 20)))
            if not data:
                raise EOFError(f"{len(self._buffer)} of {count} bytes came")
            self._buffer += data
        found = bytes(self._buffer[:count])
        del self._buffer[:count]
        return found

    def read_head(self) -> Request | None:
        """A request's head, its body unread; None at a clean end."""
        raw = self.read_until(b"\r\n\r\n")
        if raw is None:
            return None
        self.requests += 1
        self._host.requests += 1
        lines = raw.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        fields = (line.partition(":") for line in lines[1:] if line)
        return Request(method, target, {name.lower(): value.strip() for name, _, value in fields}, b"", raw)

    def chunks(self) -> Iterator[bytes]:
        """The chunks of a chunked body, then its raw trailers, b"" when there are none, as the last item."""
        while size := int((self.read_until(b"\r\n") or b"0").split(b";")[0], 16):
            yield self.read_exactly(size)
            self.read_exactly(2)
        trailers = b""
        while (line := self.read_until(b"\r\n")) not in (b"\r\n", None):
            trailers += line
        yield trailers

    def read_body(self, head: Request) -> Request:
        """`head` with its body."""
        if "chunked" in head.headers.get("transfer-encoding", ""):
            *pieces, trailers = self.chunks()
            return attrs.evolve(head, body=b"".join(pieces), trailers=trailers)
        return attrs.evolve(head, body=self.read_exactly(int(head.headers.get("content-length", "0"))))

    def read_request(self) -> Request | None:
        """A whole request; None at a clean end."""
        head = self.read_head()
        return None if head is None else self.read_body(head)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)
        self._host.sent += len(data)

    def send_eof(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Script = Callable[[Connection], object]


class RawHost:
    """A Host on `port` that runs `script` for each connection. Use it with `with`.

    `idle`: seconds without a byte after which it closes a connection. Counters: connections, requests, received and sent bytes,
    idle_closes; `seen` is for the scripts.
    """

    def __init__(self, script: Script, *, idle: float | None = None) -> None:
        self._script = script
        self._idle = idle
        self.connections = 0
        self.open = 0
        self.requests = 0
        self.received = 0
        self.sent = 0
        self.idle_closes = 0
        self.seen: list[object] = []
        self.errors: list[Exception] = []
        self._live: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self._closing:
                sock.close()
                return
            sock.settimeout(self._idle or PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                self.open += 1
                self._live.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            self._script(Connection(self, sock))
        except IdleTimeout:
            self.idle_closes += 1
        except (OSError, EOFError):
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            with self._lock:
                self.open -= 1
                self._live.discard(sock)
            sock.close()

    def close(self) -> None:
        """Stop listening and drop all connections. Raises what a script raised. Idempotent."""
        if not self._closing:
            self._closing = True
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()  # wake the accept
            self._thread.join(10)
            self._listener.close()
            with self._lock:
                for sock in self._live:
                    with suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
        if self.errors:
            raise self.errors[0]

    def __enter__(self) -> RawHost:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            with suppress(Exception):
                self.close()


# Scripts


def ok(body: bytes = b"", *fields: str, status: str = "200 OK") -> bytes:
    """A response framed by its length; `fields` are whole lines."""
    lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def serve(answer: Callable[[Request], bytes]) -> Script:
    """Keep-alive: each request gets `answer(request)`, until the peer ends."""

    def script(connection: Connection) -> None:
        while (request := connection.read_request()) is not None:
            connection.send(answer(request))

    return script


def canned(*answers: bytes) -> Script:
    """One answer for each request of a connection, in turn, whatever it asks; then close."""

    def script(connection: Connection) -> None:
        for answer in answers:
            if connection.read_request() is None:
                return
            connection.send(answer)

    return script


def websocket_echo(connection: Connection) -> None:
    """Accept a WebSocket and send every message back."""
    ws = WSConnection(ConnectionType.SERVER)
    while True:
        data = connection.receive()
        ws.receive_data(data or None)
        for event in ws.events():
            match event:
                case Handshake():
                    connection.send(ws.send(AcceptConnection()))
                case TextMessage(data=text):
                    connection.send(ws.send(TextMessage(data=text, message_finished=event.message_finished)))
                case BytesMessage(data=octets):
                    connection.send(ws.send(BytesMessage(data=bytes(octets), message_finished=event.message_finished)))
                case Ping():
                    connection.send(ws.send(event.response()))
                case CloseConnection():
                    with suppress(Exception):
                        connection.send(ws.send(event.response()))
                    return
        if not data:
            return
