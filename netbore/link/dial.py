"""Dialling TCP by name: addresses in order, a quarter of a second apart, the first that opens wins."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import trio

from netbore.link.poller import Parked, Poller
from netbore.link.tcp import TcpOptions, TcpTransport, broken
from netbore.link.transport import Owner, TransportBroken

#: Before the next address is tried beside one that has not answered (RFC 8305 section 5).
STAGGER_SECONDS = 0.25


class _Race:
    """Connection attempts under way; the first that opens wins and the others are closed."""

    def __init__(self, poller: Poller, owner: Owner | None) -> None:
        self.owner = owner
        self.parked: Parked[None] = poller.park()
        self.running: list[TcpTransport] = []
        self.winner: TcpTransport | None = None
        self.errors: list[TransportBroken] = []

    def opened(self, transport: TcpTransport) -> None:
        if self.winner is None:
            self.winner = transport
            self.running.remove(transport)
            self.stop()
            self.parked.wake()

    def failed(self, transport: TcpTransport, error: TransportBroken) -> None:
        self.errors.append(error)
        if transport in self.running:
            self.running.remove(transport)
        self.parked.wake()

    def stop(self) -> None:
        for transport in self.running:
            transport.close(abort=True)
        self.running.clear()


class _Attempt:
    """Owner of one attempt, until it opens."""

    def __init__(self, race: _Race) -> None:
        self._race = race
        self.transport: TcpTransport | None = None

    def on_open(self) -> None:
        if self.transport is not None:
            self._race.opened(self.transport)

    def on_failed(self, error: TransportBroken) -> None:
        if self.transport is not None:
            self._race.failed(self.transport, error)

    def on_readable(self) -> None: ...

    def on_writable(self) -> None: ...


async def connect_tcp(
    poller: Poller, host: str, port: int, owner: Owner | None = None, *, options: TcpOptions | None = None
) -> TcpTransport:
    """Resolve `host`, try its addresses in order, a quarter of a second apart, and return the first transport that opens.

    `owner.on_open` is posted; without an owner it waits for whoever is set as the transport's `owner`. Raises TransportBroken
    when no address can be reached. A checkpoint; cancelling leaves nothing open.
    """
    addresses = await resolve(host, port)
    race = _Race(poller, owner)
    try:
        for family, address in addresses:
            _begin(poller, race, family, address, options)
            with trio.move_on_after(STAGGER_SECONDS):
                await race.parked.wait()
            if race.winner is not None:
                break
        while race.winner is None and race.running:
            await race.parked.wait()
    except BaseException:
        if race.winner is not None:
            race.winner.close(abort=True)
        raise
    finally:
        race.stop()
    if race.winner is None:
        raise race.errors[0] if race.errors else TransportBroken("unreachable", f"{host} has no address")
    race.winner.give_to(owner)
    return race.winner


def _begin(poller: Poller, race: _Race, family: int, address: tuple[str, int], options: TcpOptions | None) -> None:
    attempt = _Attempt(race)
    try:
        attempt.transport = TcpTransport.connect(poller, address, attempt, family=family, options=options)
    except OSError as error:
        race.errors.append(broken(error))
        race.parked.wake()
    else:
        race.running.append(attempt.transport)


def is_localhost(host: str) -> bool:
    """Whether the name means this machine whatever the resolver says (RFC 6761 section 6.3)."""
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


async def resolve(host: str, port: int) -> Sequence[tuple[int, tuple[str, int]]]:
    """The (family, address) pairs of a name, best first.

    Raises TransportBroken("unreachable") for a name that is not known.
    """
    if is_localhost(host):
        await trio.lowlevel.checkpoint()
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TransportBroken("unreachable", f"{host}: {error.strerror or error}") from None
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]  # type: ignore[misc]  # scoped IPv6 addresses are longer
