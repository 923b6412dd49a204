"""A Viewer that keeps a WebSocket open: wsproto over a blocking TLS socket."""

from __future__ import annotations

import socket
import ssl
from types import TracebackType

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Request

from tests.system.processes import DOMAIN, EdgeProgram


def tls_socket(the_edge: EdgeProgram, name: str, seconds: float = 30.0) -> ssl.SSLSocket:
    """A TLS connection to Tunnel `name`, for raw Viewers. Each call on it may take `seconds`."""
    context = ssl.create_default_context(cafile=str(the_edge.ca))
    sock = socket.create_connection(("127.0.0.1", the_edge.port), seconds)
    return context.wrap_socket(sock, server_hostname=f"{name}.{DOMAIN}")


class WebSocketViewer:
    """An open WebSocket to Tunnel `name`. Use it with `with`. Raises AssertionError when the upgrade is refused."""

    def __init__(self, the_edge: EdgeProgram, name: str, path: str = "/", seconds: float = 30.0) -> None:
        self._sock = tls_socket(the_edge, name, seconds)
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._messages: list[bytes] = []
        self._part = bytearray()
        self._open = False
        self._sock.sendall(self._ws.send(Request(host=f"{name}.{DOMAIN}:{the_edge.port}", target=path)))
        while not self._open:
            self._read()

    def send(self, message: bytes) -> None:
        self._sock.sendall(self._ws.send(BytesMessage(data=message)))

    def receive(self, count: int) -> list[bytes]:
        """The next `count` messages."""
        while len(self._messages) < count:
            self._read()
        taken, self._messages = self._messages[:count], self._messages[count:]
        return taken

    def _read(self) -> None:
        data = self._sock.recv(65536)
        assert data, "the WebSocket has ended"
        self._ws.receive_data(data)
        for event in self._ws.events():
            match event:
                case AcceptConnection():
                    self._open = True
                case BytesMessage(data=octets):
                    self._part += octets
                    if event.message_finished:
                        self._messages.append(bytes(self._part))
                        self._part.clear()
                case _:
                    raise AssertionError(f"not expected: {event!r}")

    def __enter__(self) -> WebSocketViewer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._sock.close()
