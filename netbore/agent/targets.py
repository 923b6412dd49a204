"""Which Host a Tunnel leads to, and dialling it.

Theory of operation. A Stream is joined to its Host at once, before there is a connection: `Dialler.open` gives a
`TransportStream` over a `Dial`, a transport that never opens, takes nothing and gives nothing, so that bytes for the Host wait
at their source, inside its credit. The Dial tries addresses in order, a quarter of a second apart or as soon as one fails,
without a task; the first that opens (over TLS: whose TCP opens) takes its place in the Stream. Only a name that has to be
looked up costs a task, one for all who wait for it.

Addresses that worked are kept for a few seconds, the last one that opened first, so the usual case is one synchronous
connect. When the kept ones fail, the name is looked up anew, once.

`localhost` and names under it are this machine's loopback, whatever a resolver says (RFC 6761); development servers listen on
either of its addresses, so both are tried.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import attrs
import trio

from netbore.config import Address, check_host, is_numeric, parse_address, split_url
from netbore.errors import ConfigError
from netbore.link import dial
from netbore.link.base import Owned
from netbore.link.poller import Poller, Timer
from netbore.link.socket_stream import TransportStream
from netbore.link.tcp import TcpTransport, broken
from netbore.link.tls import TlsTransport
from netbore.link.transport import Owner, Transport, TransportBroken
from netbore.proto.stream import Data

#: From the first attempt, name look-up included, until the Host counts as one that does not answer (HOST_TIMEOUT).
DIAL_SECONDS: Final = 10.0
#: How long addresses that worked are used without asking again.
KEEP_SECONDS: Final = 10.0

LOOPBACK: Final = ("::1", "127.0.0.1")


class Dialled(Transport, Protocol):
    """A transport that can change hands before anything was watched (`netbore.link.base.Owned`)."""

    def give_to(self, owner: Owner | None) -> None: ...


#: Begins to connect to a numeric address; may raise OSError.
Connect = Callable[[Poller, tuple[str, int], Owner], Dialled]
#: The (family, address) pairs of a name. Raises TransportBroken.
Resolve = Callable[[str, int], Awaitable[Sequence[tuple[int, tuple[str, int]]]]]


@attrs.frozen
class HostAddress:
    """Where a Host is. `display` is what people and the Edge are told; `tls` means https, with the certificate verified."""

    host: str
    port: int
    tls: bool = False
    display: str = ""

    @classmethod
    def parse(cls, text: str) -> HostAddress:
        """PORT, HOST:PORT, [IPv6]:PORT, http://HOST[:PORT] or https://HOST[:PORT]. Raises ConfigError."""
        text = text.strip()
        if "://" not in text:
            address = parse_address(text, default_host="localhost")
            return cls(address.host, address.port, display=str(address))
        scheme, host, port, path = split_url(text, text)
        if path not in {"", "/"}:
            raise ConfigError(f"{text!r} has a path; a Host is {scheme}://HOST[:PORT], and paths are passed on as they come")
        tls = scheme == "https"
        port = port or (443 if tls else 80)
        usual = port == (443 if tls else 80)
        return cls(host, port, tls, f"{scheme}://{_authority(host, None if usual else port)}")

    def __attrs_post_init__(self) -> None:
        check_host(self.host, self.display or self.host)


def _authority(host: str, port: int | None) -> str:
    if port is not None:
        return str(Address(host, port))
    return f"[{host}]" if ":" in host else host


class Dialler:
    """Opens connections to one Host. `nursery` is where names are looked up."""

    def __init__(
        self,
        poller: Poller,
        nursery: trio.Nursery,
        address: HostAddress,
        *,
        context: ssl.SSLContext | None = None,
        connect: Connect | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        """`context` verifies an https Host, by default against the system's certificates.

        `connect` and `resolve` are for other networks.
        """
        self.address = address
        self.poller = poller
        self.connect = connect or TcpTransport.connect
        self._nursery = nursery
        self._resolve = resolve or dial.resolve
        self._context = _tls_context(context) if address.tls else None
        self._name = address.host.rstrip(".")
        self._fixed = _fixed(address.host)
        self._worked: str | None = None
        self._known: tuple[str, ...] = ()
        self._known_until = 0.0
        self._waiting: list[Dial] = []

    def open(self) -> TransportStream:
        """Begin to connect, and give the Stream at once; it takes bytes when the connection stands.

        A Host that cannot be reached resets it with HOST_REFUSED, HOST_UNREACHABLE, HOST_TIMEOUT or HOST_TLS.
        """
        attempt = Dial(self.poller, self)
        stream = attempt.stream = TransportStream(self.poller, attempt)
        if self._fixed:
            attempt.go(self._in_order(self._fixed), last=True)
        elif self._known and self.poller.now < self._known_until:
            attempt.go(self._in_order(self._known), last=False)
        else:
            self.look_up(attempt)
        return stream

    def look_up(self, attempt: Dial) -> None:
        """Have `attempt` go on with the addresses of the name, when they are known."""
        self._waiting.append(attempt)
        if len(self._waiting) == 1:
            self._nursery.start_soon(self._ask)

    def opened(self, address: str) -> None:
        """A connection to `address` stands."""
        self._worked = address
        self._known_until = self.poller.now + KEEP_SECONDS

    def forget(self) -> None:
        """None of the kept addresses works any more."""
        self._known = ()

    def over(self, attempt: Dial) -> None:
        """`attempt` waits no more."""
        if attempt in self._waiting:
            self._waiting.remove(attempt)

    def dress(self, transport: Dialled) -> Transport:
        """What bytes flow over, on the open connection `transport`."""
        transport.give_to(None)
        if self._context is None:
            return transport
        return TlsTransport.client(self.poller, transport, self._context, server_name=self._name)

    def _in_order(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """The one that worked last comes first."""
        worked = self._worked
        if worked is None or worked not in addresses:
            return addresses
        return (worked, *(one for one in addresses if one != worked))

    async def _ask(self) -> None:
        # The Dials have deadlines of their own; this one keeps a resolver that never answers from holding later ones.
        addresses: tuple[str, ...] = ()
        failure = TransportBroken("timeout", f"the name {self.address.host} was not found out in time")
        with trio.move_on_after(DIAL_SECONDS):
            try:
                found = await self._resolve(self.address.host, self.address.port)
                addresses = tuple(dict.fromkeys(address[0] for _, address in found))
                failure = TransportBroken("unreachable", f"{self.address.host} has no address")
            except TransportBroken as error:
                failure = error
        waiting, self._waiting = self._waiting, []
        self._known, self._known_until = addresses, self.poller.now + KEEP_SECONDS
        for attempt in waiting:
            self.poller.post(attempt.answered, self._in_order(addresses), failure)


class Dial(Owned):
    """One attempt to reach a Host: the transport of its Stream until there is a real one."""

    __slots__ = ("_dialler", "_errors", "_last", "_left", "_running", "_timer", "deadline", "stream")

    stream: TransportStream

    def __init__(self, poller: Poller, dialler: Dialler) -> None:
        super().__init__(poller, None)
        self._dialler = dialler
        self._left: list[str] = []
        self._running: list[_Attempt] = []
        self._errors: list[TransportBroken] = []
        self._timer: Timer | None = None
        self._last = True
        #: Swept: when the Host counts as silent.
        self.deadline: float | None = poller.now + DIAL_SECONDS
        poller.sweep(self)

    def go(self, addresses: Sequence[str], *, last: bool) -> None:
        """Try `addresses`. Unless these are the `last`, the name is looked up when all fail."""
        self._left, self._last = list(addresses), last
        self._next()

    def answered(self, addresses: Sequence[str], failure: TransportBroken) -> None:
        """The name was looked up; `failure` is why there are no `addresses`."""
        if self.closed:
            return
        if addresses:
            self.go(addresses, last=True)
        else:
            self._fail(failure)

    def _next(self) -> None:
        """Try the next address beside those that have not answered."""
        self._stop_timer()
        if self._left:
            address = self._left.pop(0)
            attempt = _Attempt(self, address)
            try:
                attempt.transport = self._dialler.connect(self._poller, (address, self._dialler.address.port), attempt)
            except OSError as error:
                self._poller.post(self.one_failed, attempt, broken(error))
            self._running.append(attempt)
        if self._left:
            self._timer = self._poller.call_at(self._poller.now + dial.STAGGER_SECONDS, self._next)

    def one_failed(self, attempt: _Attempt, error: TransportBroken) -> None:
        if self.closed:
            return
        self._running.remove(attempt)
        self._errors.append(error)
        if self._left:
            self._next()
        elif self._running:
            return
        elif self._last:
            self._fail(self._errors[0])
        else:
            self._dialler.forget()
            self._dialler.look_up(self)

    def one_opened(self, attempt: _Attempt, transport: Dialled) -> None:
        if not self.closed:
            self._running.remove(attempt)
            self._dialler.opened(attempt.address)
            self.close()
            self.stream.replace(self._dialler.dress(transport))

    def on_deadline(self, now: float) -> None:
        self._fail(TransportBroken("timeout", f"{self._dialler.address.display} did not answer in {DIAL_SECONDS:g} s"))

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    # The seam: nothing flows.

    @property
    def draining(self) -> bool:
        return False

    def try_recv(self, limit: int) -> bytes | None:
        return None

    def try_send(self, data: Data) -> int:
        return len(data) if self.closed else 0

    def send_eof(self) -> None:
        """The Stream tells the real transport when that is open."""

    def watch(self, readable: bool, writable: bool) -> None:
        """Chosen anew when the real transport takes over."""

    def close(self, abort: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        self.deadline = None
        self._stop_timer()
        self._poller.sweep_no_more(self)
        self._poller.let_go(self)
        self._dialler.over(self)
        for attempt in self._running:
            if attempt.transport is not None:
                attempt.transport.close(abort=True)
        self._running.clear()


class _Attempt:
    """Owner of one connection until it opens."""

    __slots__ = ("_dial", "address", "transport")

    def __init__(self, owner: Dial, address: str) -> None:
        self._dial = owner
        self.address = address
        self.transport: Dialled | None = None

    def on_open(self) -> None:
        if self.transport is not None:
            self._dial.one_opened(self, self.transport)

    def on_failed(self, error: TransportBroken) -> None:
        self._dial.one_failed(self, error)

    def on_readable(self) -> None: ...

    def on_writable(self) -> None: ...


def _fixed(host: str) -> tuple[str, ...]:
    """The addresses of a host that needs no look-up."""
    if is_numeric(host):
        return (host,)
    return LOOPBACK if dial.is_localhost(host) else ()


def _tls_context(context: ssl.SSLContext | None) -> ssl.SSLContext:
    if context is None:
        context = ssl.create_default_context()
        # The Edge speaks HTTP/1.1 through the Agent, so nothing else may be chosen.
        context.set_alpn_protocols(["http/1.1"])
    return context
