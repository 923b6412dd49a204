"""TCP: the transport and the listener; dialling by name is in `dial`.

Theory of operation. Sockets are non-blocking; a connect in progress is a state that ends with the first writable event. A
socket with nothing watched is not in the Poller's set at all: its error is learnt at the next watch, read or write. `close`
only forgets the socket; the descriptor is given back at the end of the turn.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence

import attrs
import trio

from netbore.link.base import Owned
from netbore.link.poller import Poller
from netbore.link.transport import Facts, Owner, TransportBroken
from netbore.link.turn import READABLE, TROUBLE, WRITABLE
from netbore.proto.parts import size
from netbore.proto.stream import Data
from netbore.proto.wire import DEAD_SECONDS

log = logging.getLogger("netbore.tcp")

NOTSENT_LOWAT = 32768
BACKLOG = 1024

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
KINDS = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EADDRNOTAVAIL: "unreachable",
}
ABORT = struct.pack("ii", 1, 0)
#: The first byte of Linux's TCP_INFO is the state of the connection: established, until the peer's FIN or RST has come.
TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)
TCP_LEVEL = socket.IPPROTO_TCP
ESTABLISHED = b"\x01"


@attrs.frozen
class TcpOptions:
    """Socket options. `user_timeout` is in seconds, None leaves the system's (Links set it)."""

    nodelay: bool = True
    notsent_lowat: int | None = NOTSENT_LOWAT
    user_timeout: float | None = None

    def apply(self, sock: socket.socket) -> None:
        """Set them, as far as the platform knows them."""
        if self.nodelay:
            _set_option(sock, "TCP_NODELAY", 1)
        if self.notsent_lowat is not None:
            _set_option(sock, "TCP_NOTSENT_LOWAT", self.notsent_lowat)
        if self.user_timeout is not None:
            _set_option(sock, "TCP_USER_TIMEOUT", int(self.user_timeout * 1000))


#: A Link's socket gives up at last when the peer's side has been dead for as long as a Link takes to notice.
LINK_OPTIONS = TcpOptions(user_timeout=DEAD_SECONDS)


def _set_option(sock: socket.socket, name: str, value: int) -> None:
    # Python 3.11 has no name for TCP_NOTSENT_LOWAT; on Linux it is 25.
    option = getattr(socket, name, 25 if name == "TCP_NOTSENT_LOWAT" and hasattr(socket, "TCP_USER_TIMEOUT") else None)
    if option is not None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        except OSError as error:
            log.debug("%s is not taken here: %s", name, error)


def broken(error: OSError) -> TransportBroken:
    """The seam's error for the system's."""
    return TransportBroken(KINDS.get(error.errno or 0, "reset"), error.strerror or str(error))


def _address(raw: object) -> tuple[str, int] | None:
    return (str(raw[0]), int(raw[1])) if isinstance(raw, tuple) else None


class TcpTransport(Owned):
    """One TCP connection. Made by `TcpListener`, `TcpTransport.connect` or `connect_tcp`."""

    __slots__ = ("_eof_sent", "_fd", "_info", "_listener", "_mask", "_recv", "_send", "_sock")

    def __init__(
        self, poller: Poller, sock: socket.socket, owner: Owner | None = None, listener: TcpListener | None = None
    ) -> None:
        """Take over a non-blocking socket."""
        self._sock = sock
        self._fd = sock.fileno()
        self._recv = sock.recv
        self._send = sock.send
        self._info = sock.getsockopt
        self._mask = 0
        self._eof_sent = False
        self._listener = listener
        super().__init__(poller, owner)
        poller.register(self._fd, self)

    @classmethod
    def connect(
        cls,
        poller: Poller,
        address: tuple[str, int],
        owner: Owner,
        *,
        family: int | None = None,
        options: TcpOptions | None = None,
    ) -> TcpTransport:
        """Begin to connect to a numeric address. `on_open` or `on_failed` follows. Raises OSError when no socket is to be had."""
        if family is None:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            (options or TcpOptions()).apply(sock)
            failure = sock.connect_ex(address)
            transport = cls(poller, sock, owner)
        except (OSError, RuntimeError, trio.ClosedResourceError):
            sock.close()
            raise
        if failure == errno.EINPROGRESS:
            transport._set_mask(WRITABLE)
        else:
            poller.post(transport._connected, failure)
        return transport

    def accepted(self, peer: object) -> None:
        """The socket is connected already."""
        self.facts = Facts(peer=_address(peer), local=_address(self._sock.getsockname()))
        self.opened = True

    def _connected(self, failure: int) -> None:
        if self.closed:
            return
        if failure:
            return self._fail(broken(OSError(failure, os.strerror(failure))))
        try:
            self.accepted(self._sock.getpeername())
        except OSError as error:
            return self._fail(broken(error))
        self._set_mask((READABLE if self.want_read else 0) | (WRITABLE if self.want_write else 0))
        self._announce()

    def on_ready(self, mask: int) -> None:
        if not self.opened:
            return self._connected(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        if mask & TROUBLE:
            mask |= READABLE | WRITABLE
        if mask & READABLE and self.want_read:
            self._owner.on_readable()
        if mask & WRITABLE and self.want_write:
            self._owner.on_writable()

    @property
    def draining(self) -> bool:
        return False

    def try_recv(self, limit: int) -> bytes | None:
        if not self.opened or self.closed:
            return None
        try:
            return self._recv(limit)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise broken(error) from None

    def try_send(self, data: Data) -> int:
        if self.closed:
            return len(data)
        if not self.opened:
            return 0
        try:
            return self._send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise broken(error) from None

    def try_send_parts(self, parts: Sequence[Data]) -> int:
        if len(parts) == 1:
            return self.try_send(parts[0])
        if self.closed:
            return size(parts)
        if not self.opened:
            return 0
        try:
            return self._sock.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise broken(error) from None

    def send_eof(self) -> None:
        if self.opened and not self.closed and not self._eof_sent:
            self._eof_sent = True
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                log.debug("the connection was gone before its end: %s", error)

    def watch(self, readable: bool, writable: bool) -> None:
        if self.closed:
            return
        self.want_read, self.want_write = readable, writable
        if self.opened:
            self._set_mask((READABLE if readable else 0) | (WRITABLE if writable else 0))

    def _set_mask(self, mask: int) -> None:
        if mask != self._mask:
            self._poller.interest(self._fd, self._mask, mask)
            self._mask = mask

    def carry_link(self) -> None:
        """Links have an option of their own, and are no Viewers: the listener gets its place back."""
        if not self.closed:
            LINK_OPTIONS.apply(self._sock)
        self._leave_listener()

    def _leave_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.one_gone()

    def unsent(self) -> bool | None:
        """Whether the kernel still has bytes that the peer did not acknowledge; None where it does not say."""
        return _unsent(self._fd) if not self.closed else False

    def quiet(self) -> bool:
        # A quarter of what a read costs that finds nothing.
        return self.opened and not self.closed and TCP_INFO is not None and self._info(TCP_LEVEL, TCP_INFO, 1) == ESTABLISHED

    def close(self, abort: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        self.want_read = self.want_write = False
        self._poller.unregister(self._fd, self._mask)
        self._mask = 0
        if abort:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            except OSError as error:
                log.debug("no abort: %s", error)
        self._poller.close_later(self._sock.close)
        self._poller.let_go(self)
        self._leave_listener()

    def audit(self) -> str | None:
        wanted = (READABLE if self.want_read else 0) | (WRITABLE if self.want_write else 0)
        if self.opened and wanted != self._mask:
            return f"a TCP transport waits for {wanted} but is registered for {self._mask}"
        return None


def _unsent(descriptor: int) -> bool | None:
    try:
        import fcntl  # noqa: PLC0415 - POSIX only
        import termios  # noqa: PLC0415

        answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0")
    except (ImportError, OSError):
        return None
    return bool(struct.unpack("i", answer)[0])


class TcpListener:
    """Accepts connections and hands each to `on_accept(transport)`, who gives it an owner."""

    __slots__ = (
        "_in_set",
        "_inherits",
        "_limit",
        "_on_accept",
        "_open",
        "_options",
        "_poller",
        "_sock",
        "_told",
        "closed",
    )

    def __init__(
        self, poller: Poller, sock: socket.socket, on_accept: Callable[[TcpTransport], None], options: TcpOptions, limit: int
    ) -> None:
        self._poller = poller
        self._sock = sock
        self._on_accept = on_accept
        self._options = options
        self._limit = limit
        self._open = 0
        self._in_set = False
        self._told = False
        self._inherits: bool | None = None
        options.apply(sock)
        self.closed = False
        poller.hold(self)
        poller.register(sock.fileno(), self)
        self._listen(True)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, with the real port."""
        return _address(self._sock.getsockname()) or ("", 0)

    @property
    def sock(self) -> socket.socket:
        """The listening socket, for handing over to another process."""
        return self._sock

    def _listen(self, on: bool) -> None:
        if on != self._in_set and not self.closed:
            self._poller.interest(self._sock.fileno(), READABLE * self._in_set, READABLE * on)
            self._in_set = on

    def on_ready(self, mask: int) -> None:
        while self._in_set and self._poller.take_accept():
            if not self._accept():
                return

    def _accept(self) -> bool:
        try:
            sock, peer = self._sock.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            # Anything else is the fault of one connection that went away before it was taken.
            if error.errno in EXHAUSTED:
                self._exhausted(error)
            return error.errno not in EXHAUSTED
        self._told = False
        self._hand_over(sock, peer)
        return True

    def _hand_over(self, sock: socket.socket, peer: object) -> None:
        try:
            sock.setblocking(False)
            if not self._inherited(sock):
                self._options.apply(sock)
            transport = TcpTransport(self._poller, sock, listener=self)
            transport.accepted(peer)
        except OSError as error:
            log.debug("a connection went away while it was accepted: %s", error)
            sock.close()
            return
        self._poller.counters.accepted += 1
        self._open += 1
        if self._open >= self._limit:
            self._listen(False)
        try:
            self._on_accept(transport)
        except Exception as error:
            log.error("a new connection could not be served", exc_info=error)
            self._poller.counters.crashes += 1
            transport.close(abort=True)

    def _inherited(self, sock: socket.socket) -> bool:
        """Whether accepted sockets have the listener's options already, which spares calls per connection; asked once."""
        if self._inherits is None:
            nodelay = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            self._inherits = sys.platform == "linux" and self._options.nodelay and nodelay != 0
        return self._inherits

    def _exhausted(self, error: OSError) -> None:
        self._poller.counters.accept_exhausted += 1
        if not self._told:
            self._told = True
            log.warning("cannot accept connections: %s; trying again every %s s", error, self._poller.limits.accept_pause_seconds)
        self._listen(False)
        self._poller.call_at(self._poller.now + self._poller.limits.accept_pause_seconds, self._try_again)

    def _try_again(self) -> None:
        if self._open < self._limit:
            self._listen(True)

    def one_gone(self) -> None:
        """A connection that was accepted here has been closed."""
        self._open -= 1
        if self._open == self._limit - 1:
            self._listen(True)

    def close(self, abort: bool = False) -> None:
        """Accept no more. Connections that were accepted live on. Idempotent."""
        if not self.closed:
            self._poller.unregister(self._sock.fileno(), READABLE * self._in_set)
            self.closed, self._in_set = True, False
            self._poller.close_later(self._sock.close)
            self._poller.let_go(self)

    def audit(self) -> str | None:
        return None


def listen(
    poller: Poller,
    host: str,
    port: int,
    on_accept: Callable[[TcpTransport], None],
    *,
    options: TcpOptions | None = None,
    limit: int | None = None,
    sock: socket.socket | None = None,
) -> TcpListener:
    """Listen on a numeric address; port 0 takes a free one. `sock`, when given, is bound and listening already.

    `limit` connections may be open at once (PollerLimits.viewers), more wait in the kernel. Raises OSError.
    """
    if sock is None:
        sock = bind(host, port)
    sock.setblocking(False)
    try:
        return TcpListener(poller, sock, on_accept, options or TcpOptions(), poller.limits.viewers if limit is None else limit)
    except (RuntimeError, trio.ClosedResourceError):
        sock.close()
        raise


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on a numeric address; port 0 takes a free one. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
