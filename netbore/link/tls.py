"""TLS over any transport.

Theory of operation. An `ssl.SSLObject` stands between two memory BIOs: ciphertext that came is written into one, ciphertext
to go is read out of the other and offered to the inner transport at once. What the inner one does not take is *held*, at
most one flush of it, and nothing more is encrypted until it is gone. The inner transport is watched for reading when the
owner wants to read, and for writing while something is held, or the owner wants to write.

Bytes that were taken from the inner transport make no event there: when a read ends because its limit was reached, the
transport puts itself on the ready list as long as plaintext may be left. The handshake is a state with a deadline of its
own; handshakes of servers are few per turn, and when too many wait the oldest one goes.

An end without close_notify is an error ("truncated"), for it may be an attacker's cut, unless `lenient_eof` says that any
will do.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress

import attrs

from netbore.link.base import Owned
from netbore.link.poller import Poller
from netbore.link.transport import Owner, Transport, TransportBroken
from netbore.proto.parts import size
from netbore.proto.stream import Data
from netbore.proto.wire import FLUSH

#: What is read from the inner transport at once during the handshake; later as much as the owner wants.
FEED = 16384
#: Plaintext of one record. A larger buffer than its record would be allocated, and given back, for each.
RECORD = 16384


class ServerObject(ssl.SSLObject):
    """Remembers the name that the client asked for; see `choose_by_name`."""

    asked: str | None = None


def choose_by_name(context: ssl.SSLContext, choose: Callable[[str | None], ssl.SSLContext | None]) -> None:
    """Have `choose(server name)` pick the context (certificate) for each handshake of `context`, and the name stand in the facts.

    None refuses the name with the alert unrecognized_name.
    """

    def callback(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        chosen = choose(name)
        if chosen is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        if isinstance(tls, ServerObject):
            tls.asked = name
        if chosen is not context:
            tls.context = chosen
        return None

    context.sslobject_class = ServerObject
    context.sni_callback = callback


class TlsTransport(Owned):
    """TLS over `inner`, whose owner it becomes. Made by `TlsTransport.client` and `TlsTransport.server`."""

    __slots__ = (
        "_eof",
        "_eof_sent",
        "_held",
        "_incoming",
        "_inner",
        "_last",
        "_left",
        "_lenient",
        "_outgoing",
        "_plain",
        "_send_error",
        "_server",
        "_tls",
        "deadline",
    )

    def __init__(
        self,
        poller: Poller,
        inner: Transport,
        context: ssl.SSLContext,
        owner: Owner | None,
        *,
        server: bool,
        server_name: str | None,
        lenient_eof: bool,
    ) -> None:
        super().__init__(poller, owner)
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server, server_hostname=server_name)
        self._server = server
        self._lenient = lenient_eof
        self._held: bytes | memoryview = b""
        self._plain = bytearray()
        self._left = False  # plaintext that no event will tell of
        self._eof = False
        self._eof_sent = False
        self._last: ssl.SSLError | None = None
        self._send_error: TransportBroken | None = None
        self.deadline: float | None = poller.now + poller.limits.handshake_seconds
        poller.sweep(self)
        if server:
            self._queue_up()
        inner.owner = self

    @classmethod
    def client(
        cls,
        poller: Poller,
        inner: Transport,
        context: ssl.SSLContext,
        owner: Owner | None = None,
        *,
        server_name: str | None,
    ) -> TlsTransport:
        """Begin the client's side. The context says what is verified and which ALPN is offered."""
        return cls(poller, inner, context, owner, server=False, server_name=server_name, lenient_eof=False)

    @classmethod
    def server(
        cls,
        poller: Poller,
        inner: Transport,
        context: ssl.SSLContext,
        owner: Owner | None = None,
        *,
        lenient_eof: bool = False,
    ) -> TlsTransport:
        """Begin the server's side. `lenient_eof` is for HTTPS Viewers, where any EOF means gone."""
        return cls(poller, inner, context, owner, server=True, server_name=None, lenient_eof=lenient_eof)

    def carry_link(self) -> None:
        self._lenient = False
        if isinstance(self._inner, Owned):
            self._inner.carry_link()

    # The handshake.

    def _queue_up(self) -> None:
        pending = self._poller.handshakes
        if len(pending) >= self._poller.limits.pending_handshakes:
            oldest = next(iter(pending))
            del pending[oldest]
            self._poller.counters.handshakes_evicted += 1
            if isinstance(oldest, TlsTransport):
                self._poller.post(
                    oldest._fail, TransportBroken("timeout", "too many handshakes at once, and this was the oldest")
                )
        pending[self] = None

    def _handshake_over(self) -> None:
        self.deadline = None
        self._poller.sweep_no_more(self)
        self._poller.handshakes.pop(self, None)

    def on_deadline(self, now: float) -> None:
        self._fail(TransportBroken("timeout", "the TLS handshake took too long"))

    def on_open(self) -> None:
        """The inner transport is open."""
        self._inner.watch(True, False)
        if not self._server:
            self._shake()

    def on_failed(self, error: TransportBroken) -> None:
        self._fail(error)

    def _shake_hands(self) -> None:
        """Something can be read during the handshake."""
        if self._server and not self._poller.take_handshake():
            return  # still readable in the next turn
        try:
            if not self._take_in(FEED):
                return
        except TransportBroken as error:
            return self._fail(error)
        self._shake()

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._push()
        except ssl.SSLCertVerificationError as error:
            self._push()
            self._fail(TransportBroken("untrusted", error.verify_message))
        except ssl.SSLEOFError:
            self._fail(TransportBroken("truncated", "the connection ended during the TLS handshake"))
        except ssl.SSLError as error:
            self._push()
            self._fail(TransportBroken("tls", error.reason or str(error)))
        else:
            self._push()
            self._shaken()

    def _shaken(self) -> None:
        self._handshake_over()
        self._left = True  # the peer's first data may have come with the end of the handshake
        name = self._tls.server_hostname if not self._server else getattr(self._tls, "asked", None)
        alpn = self._tls.selected_alpn_protocol()
        self.facts = attrs.evolve(self._inner.facts, server_name=name, alpn=alpn, tls_version=self._tls.version())
        self._open()
        if not self.closed:
            self._rewatch()
            self._more()

    # Readiness.

    def on_readable(self) -> None:
        if not self.opened:
            self._shake_hands()
        elif self.want_read:
            self._owner.on_readable()
            self._more()

    def on_writable(self) -> None:
        if self._held:
            self._push()
        if self.opened and self.want_write and (not self._held or self._send_error is not None):
            self._owner.on_writable()
        if not self.closed:
            self._rewatch()

    def on_ready(self, mask: int) -> None:
        """From the ready list: plaintext may be left over."""
        if self.want_read and self._left_over():
            self._owner.on_readable()
            self._more()

    def _left_over(self) -> bool:
        return bool(self._left or self._plain or self._eof or self._last is not None)

    def _more(self) -> None:
        if self.want_read and self._left_over():
            self._poller.make_ready(self)

    def watch(self, readable: bool, writable: bool) -> None:
        if self.closed or (readable == self.want_read and writable == self.want_write):
            return
        self.want_read, self.want_write = readable, writable
        if self.opened:
            self._rewatch()
            self._more()

    def _rewatch(self) -> None:
        if self.opened:
            self._inner.watch(self.want_read and not self._eof, self.want_write or bool(self._held))
        else:
            self._inner.watch(True, bool(self._held))

    # Receiving.

    def _take_in(self, limit: int) -> bool:
        """Move ciphertext from the inner transport into the BIO; whether there was any, or its end. Raises TransportBroken."""
        data = self._inner.try_recv(limit)
        if data is None:
            return False
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return True

    def try_recv(self, limit: int) -> bytes | None:
        if not self.opened or self.closed:
            return None
        if self._plain:
            kept = bytes(self._plain[:limit])
            del self._plain[:limit]
            return kept
        if self._eof:
            return b""
        data = self._read(limit) if self._left_over() else None
        if data is None and self._take_in(limit):
            data = self._read(limit)
        if data == b"":
            self._eof = True
            self._rewatch()
        if self._outgoing.pending and not self.closed:
            self._push_quietly()
        if self._left or self._last is not None:
            self._more()
        return data

    def _read(self, limit: int) -> bytes | None:
        """Plaintext of what is in the BIO: up to `limit` bytes, b"" at the end, None when a whole record is not there yet."""
        tls, incoming = self._tls, self._incoming
        parts: list[bytes] = []
        try:
            while limit > 0 and self._last is None and (incoming.pending or tls.pending() or incoming.eof):
                part = tls.read(min(limit, RECORD))
                if part:
                    parts.append(part)
                    limit -= len(part)
                else:
                    self._last = ssl.SSLZeroReturnError()
        except ssl.SSLWantReadError:
            pass  # asked for only where a record is not whole: what is pending is looked at first
        except ssl.SSLError as error:
            self._last = error
        self._left = limit <= 0 and (incoming.pending > 0 or tls.pending() > 0)
        if parts:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        return None if self._last is None else self._read_end(self._last)

    def _read_end(self, error: ssl.SSLError) -> bytes:
        if isinstance(error, ssl.SSLZeroReturnError):
            return b""
        if isinstance(error, ssl.SSLEOFError):
            if self._lenient:
                return b""
            raise TransportBroken("truncated", "the TLS stream ended without close_notify")
        self._push_quietly()
        raise TransportBroken("tls", error.reason or str(error))

    # Sending.

    @property
    def draining(self) -> bool:
        return bool(self._held) or (not self.closed and self._inner.draining)

    def try_send(self, data: Data) -> int:
        return self.try_send_parts((data,))

    def try_send_parts(self, parts: Sequence[Data]) -> int:
        if self.closed:
            return size(parts)
        if self._send_error is not None:
            raise self._send_error
        sent = 0
        if self.opened and not self._held:
            try:
                for part in parts:
                    count = self._encrypt(part)
                    sent += count
                    if count < len(part):
                        break
            except ssl.SSLError as error:
                raise TransportBroken("tls", error.reason or str(error)) from None
            self._push_quietly()
            if self._send_error is not None:
                raise self._send_error
        return sent

    def _encrypt(self, part: Data) -> int:
        """Encrypt `part`, and offer ciphertext as soon as it makes a FLUSH: what is held is hardly more.

        Return how much of it: less than all where a flush was not taken whole, or TLS has to read first.
        """
        done, total, outgoing = 0, len(part), self._outgoing
        while done < total and not self._held and self._send_error is None:
            try:
                done += self._tls.write(memoryview(part)[done : done + FLUSH - outgoing.pending])
            except ssl.SSLWantReadError:
                break
            if outgoing.pending >= FLUSH:
                self._push()
        return done

    def _push(self) -> None:
        """Offer ciphertext to the inner transport; hold what it does not take, and what made it fail in `_send_error`."""
        held = bool(self._held)
        data: bytes | memoryview = self._held or self._outgoing.read()
        try:
            while len(data) > 0:
                count = self._inner.try_send(data)
                if count < len(data):
                    data = memoryview(data)[count:]
                    break
                data = self._outgoing.read()
        except TransportBroken as error:
            self._send_error = error
            data = b""
        self._held = data
        if held != bool(self._held):
            self._rewatch()

    def _push_quietly(self) -> None:
        """For what TLS itself has to say; when something is held it goes behind that."""
        if not self._held:
            self._push()

    def send_eof(self) -> None:
        if not self.opened or self.closed or self._eof_sent:
            return
        self._eof_sent = True
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        self._keep_plaintext()
        # The peer's close_notify is not awaited, and a broken peer needs none of ours.
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        self._push_quietly()

    def _keep_plaintext(self) -> None:
        """Decrypt what was taken in: data in the BIO would make `unwrap` fail, and be lost. An error comes again at a read."""
        with suppress(TransportBroken):
            while data := self._read(FEED):
                self._plain += data

    def close(self, abort: bool = False) -> None:
        if self.closed:
            return
        if self.opened and not abort and not self._eof_sent and self._send_error is None:
            self._say_goodbye()
            self._push()
        self.closed = True
        self.want_read = self.want_write = False
        self._handshake_over()
        self._held = b""
        self._plain.clear()
        self._poller.let_go(self)
        self._inner.close(abort)

    def unsent(self) -> bool | None:
        return bool(self._held) or (self._inner.unsent() if isinstance(self._inner, Owned) else None)

    def audit(self) -> str | None:
        if self.closed or not self.opened:
            return None
        if self.want_read and self._left_over() and not self._poller.is_ready(self):
            return "a TLS transport has plaintext left over and is not on the ready list"
        return None
