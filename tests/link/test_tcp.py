"""TCP: dialling, options and what the system says."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trio

from netbore.link import dial
from netbore.link.dial import connect_tcp, is_localhost
from netbore.link.poller import Poller
from netbore.link.tcp import TcpOptions, TcpTransport, listen
from netbore.link.transport import TransportBroken
from tests.link.support import Recorder, poller_for, run, tcp_pair, until


async def free_port(poller: Poller) -> int:
    """A port where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_names_of_this_machine() -> None:
    assert is_localhost("localhost")
    assert is_localhost("Demo.Tunnel.LOCALHOST.")
    assert not is_localhost("localhost.example")
    assert not is_localhost("notlocalhost")


def test_a_localhost_name_reaches_loopback_without_a_resolver() -> None:
    async def scenario() -> None:
        async with poller_for("tcp") as poller:
            accepted: list[TcpTransport] = []
            listener = listen(poller, "127.0.0.1", 0, accepted.append)
            transport = await connect_tcp(poller, "demo.tunnel.localhost", listener.address[1])
            a = Recorder(transport)
            await until(lambda: a.opened and accepted)
            assert transport.facts.peer == listener.address
            assert accepted[0].facts.peer == transport.facts.local

    run("tcp", scenario)


def test_the_second_address_is_tried_when_the_first_refuses() -> None:
    async def scenario() -> None:
        async with poller_for("tcp") as poller:
            try:
                listener = listen(poller, "::1", 0, lambda transport: None)
            except OSError:
                pytest.skip("no IPv6 here")
            transport = await connect_tcp(poller, "localhost", listener.address[1])
            assert transport.facts.peer == ("::1", listener.address[1])

    run("tcp", scenario)


@contextmanager
def silent_address() -> Iterator[tuple[str, int]]:
    """An address that answers nobody: its queue of connections is full, so the kernel drops whoever asks."""
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(sock.getsockname())
        yield sock.getsockname()


def test_a_silent_address_does_not_keep_the_next_one_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with poller_for("tcp") as poller:
            listener = listen(poller, "127.0.0.1", 0, TcpTransport.close)

            async def both(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
                return [(socket.AF_INET, silent), (socket.AF_INET, listener.address)]

            monkeypatch.setattr(dial, "resolve", both)
            transport = await connect_tcp(poller, "edge.example", 443)
            assert transport.facts.peer == listener.address
            transport.close()
            # The attempt that was still waiting is given up.
            await until(lambda: list(poller._resources) == [listener])

    monkeypatch.setattr(dial, "STAGGER_SECONDS", 0.01)
    with silent_address() as silent:
        run("tcp", scenario)


def test_a_refusal_is_said_and_leaves_nothing_open() -> None:
    async def scenario() -> None:
        async with poller_for("tcp") as poller:
            with pytest.raises(TransportBroken) as info:
                await connect_tcp(poller, "127.0.0.1", await free_port(poller))
            assert info.value.kind == "refused"
            assert not poller._resources

    run("tcp", scenario)


def test_an_owner_given_to_the_dialler_is_told_once() -> None:
    class Owner(Recorder):
        def __init__(self) -> None:
            self.opened = 0

    async def scenario() -> None:
        async with poller_for("tcp") as poller:
            listener = listen(poller, "127.0.0.1", 0, lambda transport: None)
            owner = Owner()
            transport = await connect_tcp(poller, *listener.address, owner)
            await until(lambda: owner.opened)
            assert transport.owner is owner
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            assert owner.opened == 1

    run("tcp", scenario)


def test_a_cancelled_dial_leaves_nothing_open() -> None:
    async def scenario() -> None:
        async with poller_for("tcp") as poller:
            listener = listen(poller, "127.0.0.1", 0, lambda transport: None)
            with trio.CancelScope() as scope:
                scope.cancel()
                await connect_tcp(poller, *listener.address)
            assert scope.cancelled_caught
            assert list(poller._resources) == [listener]

    run("tcp", scenario)


def test_options_are_set_on_both_ends() -> None:
    async def scenario() -> None:
        async with poller_for("tcp") as poller:
            near, far = await tcp_pair(poller)
            for transport in (near, far):
                assert transport._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                    transport._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                TcpOptions(user_timeout=15.0).apply(near._sock)
                assert near._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15000

    run("tcp", scenario)


def test_a_closed_listener_refuses() -> None:
    async def scenario() -> None:
        async with poller_for("tcp") as poller:
            listener = listen(poller, "127.0.0.1", 0, lambda transport: None)
            address = listener.address
            listener.close()
            listener.close()
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            with pytest.raises(TransportBroken):
                await connect_tcp(poller, *address)

    run("tcp", scenario)
