"""A Host whose connections are served by a plain function each, in a thread; it keeps what every connection received."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from tests.system.http1 import Message, Wire


@attrs.define(eq=False)
class Connection:
    """One connection of a Host. `received` is everything that came; `end` is "", "eof" or "reset"."""

    sock: socket.socket
    number: int
    received: bytearray = attrs.field(factory=bytearray)
    end: str = ""
    #: Set when the peer's end was read.
    ended: threading.Event = attrs.field(factory=threading.Event)
    wire: Wire = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.wire = Wire(self.recv)

    def recv(self, limit: int) -> bytes:
        """What came; b"" at an end of either kind, which `end` tells apart."""
        try:
            data = self.sock.recv(limit)
        except OSError:
            self._over("reset")
            return b""
        if not data:
            self._over("eof")
        self.received += data
        return data

    def _over(self, how: str) -> None:
        self.end = self.end or how
        self.ended.set()

    def request(self) -> Message | None:
        return self.wire.request()

    def send(self, data: bytes) -> None:
        """Raises OSError when the peer is gone."""
        self.sock.sendall(data)

    def answer(self, body: bytes, *headers: str, status: str = "200 OK") -> None:
        lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + body)

    def abort(self) -> None:
        """End by RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class ThreadedHost:
    """`serve(connection)` runs in a thread of its own; what it raises is kept in `failures`, but for a peer that is gone."""

    def __init__(self, serve: Callable[[Connection], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.connections: list[Connection] = []
        self.failures: list[BaseException] = []

    def run(self) -> None:
        """Accept until the listener is closed."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, len(self.connections))
            self.connections.append(connection)
            thread = threading.Thread(target=self._one, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _one(self, connection: Connection) -> None:
        try:
            self._serve(connection)
        except OSError:
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            connection.sock.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5.0)


@contextmanager
def threaded_host(serve: Callable[[Connection], None]) -> Iterator[ThreadedHost]:
    """A running ThreadedHost."""
    host = ThreadedHost(serve)
    accepting = threading.Thread(target=host.run, daemon=True)
    accepting.start()
    try:
        yield host
    finally:
        host.close()
        accepting.join(5.0)
