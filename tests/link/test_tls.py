"""TLS: what it checks, what it says of its end, and how many handshakes there may be."""

from __future__ import annotations

import ssl

import pytest
import trio
import trustme

from netbore.link.memory import CAPACITY, MemoryTransport, memory_pair
from netbore.link.poller import Poller, PollerLimits
from netbore.link.tls import TlsTransport, choose_by_name
from tests.link.support import NAME, Recorder, contexts, poller_for, run, tls_over, until


async def opened(
    poller: Poller, *, capacity: int = CAPACITY, **options: bool
) -> tuple[Recorder, Recorder, MemoryTransport, MemoryTransport]:
    client, server = contexts()
    near, far = memory_pair(poller, capacity=capacity)
    theirs = Recorder(TlsTransport.server(poller, far, server, **options))
    ours = Recorder(TlsTransport.client(poller, near, client, server_name=NAME))
    await until(lambda: ours.opened and theirs.opened)
    return ours, theirs, near, far


def test_tls_1_2_is_spoken_too() -> None:
    """Its session tickets and its renegotiation are others, and its end comes without a round trip."""

    async def scenario() -> None:
        async with poller_for("memory") as poller:
            client, server = contexts.__wrapped__()  # its own: they are changed
            client.maximum_version = ssl.TLSVersion.TLSv1_2
            near, far = memory_pair(poller)
            theirs = Recorder(TlsTransport.server(poller, far, server))
            ours = Recorder(TlsTransport.client(poller, near, client, server_name=NAME))
            await until(lambda: ours.opened and theirs.opened)
            assert ours.transport.facts.tls_version == "TLSv1.2"
            question, answer = bytes(range(256)) * 2000, bytes(range(255)) * 3000
            ours.send(question)
            theirs.send(answer)
            await until(lambda: len(theirs.received) == len(question) and len(ours.received) == len(answer))
            assert (theirs.received, ours.received) == (question, answer)
            ours.transport.send_eof()
            await until(lambda: theirs.eof)
            theirs.send(b"after your end")
            theirs.transport.send_eof()
            await until(lambda: ours.eof)
            assert ours.received == answer + b"after your end"
            poller.audit()

    run("memory", scenario)


def test_facts_are_known_when_it_opens() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            ours, theirs, near, _ = await opened(poller)
            for facts in (ours.transport.facts, theirs.transport.facts):
                assert facts.tls_version == "TLSv1.3"
                assert facts.alpn == "netbore/1"
            assert ours.transport.facts.server_name == NAME
            assert ours.transport.facts.peer == near.facts.peer

    run("memory", scenario)


def test_the_certificate_is_chosen_by_name_and_the_name_is_a_fact() -> None:
    authority = trustme.CA()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    chosen, base = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("custom.example").configure_cert(chosen)
    authority.issue_cert("apex.example").configure_cert(base)
    choose_by_name(base, {"custom.example": chosen, "apex.example": base}.get)

    async def scenario() -> None:
        async with poller_for("memory") as poller:
            for name, known in [("custom.example", True), ("apex.example", True), ("other.example", False)]:
                near, far = memory_pair(poller)
                theirs = Recorder(TlsTransport.server(poller, far, base))
                ours = Recorder(TlsTransport.client(poller, near, client, server_name=name))
                if known:
                    await until(lambda ours=ours, theirs=theirs: ours.opened and theirs.opened)  # type: ignore[misc]
                    assert theirs.transport.facts.server_name == name
                else:
                    await until(lambda ours=ours, theirs=theirs: ours.failed and theirs.failed)  # type: ignore[misc]
                    assert ours.failed is not None
                    assert ours.failed.kind == "tls"

    run("memory", scenario)


def test_an_untrusted_certificate_fails_on_both_sides() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            near, far = memory_pair(poller)
            theirs = Recorder(TlsTransport.server(poller, far, contexts()[1]))
            ours = Recorder(TlsTransport.client(poller, near, ssl.create_default_context(), server_name=NAME))
            await until(lambda: ours.failed and (theirs.failed or theirs.broken))
            assert ours.failed is not None
            assert ours.failed.kind == "untrusted"
            assert not ours.opened
            assert near.closed

    run("memory", scenario)


def test_garbage_and_an_early_end_fail_the_handshake() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            for data, kind in [(b"GET / HTTP/1.1\r\n\r\n", "tls"), (b"", "truncated")]:
                near, far = memory_pair(poller)
                theirs = Recorder(TlsTransport.server(poller, far, contexts()[1]))
                peer = Recorder(near)
                await until(lambda peer=peer: peer.opened)  # type: ignore[misc]
                peer.send(data)
                near.send_eof()
                await until(lambda theirs=theirs: theirs.failed)  # type: ignore[misc]
                assert theirs.failed is not None
                assert theirs.failed.kind == kind
                assert not poller.handshakes

    run("memory", scenario)


@pytest.mark.parametrize("lenient", [False, True])
def test_an_end_without_close_notify_is_an_error_unless_lenient(lenient: bool) -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            ours, theirs, near, _ = await opened(poller, lenient_eof=lenient)
            ours.send(b"before")
            near.send_eof()
            await until(lambda: theirs.eof or theirs.broken)
            assert theirs.received == b"before"
            assert theirs.eof is lenient
            if not lenient:
                assert theirs.broken is not None
                assert theirs.broken.kind == "truncated"

    run("memory", scenario)


def test_forged_ciphertext_is_an_error_and_stays_one() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            ours, theirs, near, _ = await opened(poller)
            ours.send(b"good")
            near.try_send(b"\x17\x03\x03\x00\x20" + b"x" * 32)
            await until(lambda: theirs.broken)
            assert theirs.received == b"good"
            assert theirs.broken is not None
            assert theirs.broken.kind == "tls"
            with pytest.raises(type(theirs.broken)):
                theirs.transport.try_recv(10)

    run("memory", scenario)


def test_a_close_notify_right_behind_data_is_seen_without_any_more_bytes() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            ours, theirs, _, far = await opened(poller)
            theirs.read(False)
            ours.send(b"data")
            ours.transport.send_eof()
            await trio.sleep(1)
            theirs.read(True)
            await until(lambda: theirs.eof)
            assert theirs.received == b"data"
            assert not far.can_recv()

    run("memory", scenario)


@pytest.mark.parametrize("parts", [[16384] * 16, [65000, 65536], [14, 262144], [1] * 100])
def test_nothing_is_encrypted_behind_a_flush_that_is_held(parts: list[int]) -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            ours, theirs, _, _ = await opened(poller, capacity=4096)
            theirs.read(False)
            tls = ours.transport
            assert isinstance(tls, TlsTransport)
            accepted = tls.try_send_parts([bytes(size) for size in parts])
            assert accepted <= 65536
            assert len(tls._held) + tls._outgoing.pending < 65536 + 1024  # what records add
            theirs.read(True)
            await until(lambda: len(theirs.received) == accepted)

    run("memory", scenario)


def test_at_most_one_flush_is_held_and_draining_ends_with_a_call() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            ours, theirs, _, _ = await opened(poller, capacity=4096)
            theirs.read(False)
            accepted = ours.transport.try_send(b"z" * 1000000)
            assert accepted == 65536
            assert ours.transport.try_send(b"z") == 0
            assert ours.transport.draining
            before = ours.writables
            ours.transport.watch(False, True)
            theirs.read(True)
            await until(lambda: ours.writables > before)
            assert not ours.transport.draining
            await until(lambda: len(theirs.received) == 65536)

    run("memory", scenario)


def test_a_handshake_has_ten_seconds() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            start = trio.current_time()
            near, far = memory_pair(poller)
            theirs = Recorder(TlsTransport.server(poller, far, contexts()[1]))
            await until(lambda: theirs.failed)
            assert theirs.failed is not None
            assert theirs.failed.kind == "timeout"
            assert 10 <= trio.current_time() - start <= 10.3
            assert far.closed
            near.close()

    run("memory", scenario)


def test_too_many_pending_handshakes_cost_the_oldest() -> None:
    async def scenario() -> None:
        async with poller_for("memory", PollerLimits(pending_handshakes=3)) as poller:
            waiting = [Recorder(TlsTransport.server(poller, memory_pair(poller)[1], contexts()[1])) for _ in range(4)]
            await until(lambda: waiting[0].failed)
            assert [one.failed is None for one in waiting] == [False, True, True, True]
            assert poller.counters.handshakes_evicted == 1
            assert len(poller.handshakes) == 3

    run("memory", scenario)


def test_few_server_handshakes_in_one_turn() -> None:
    async def scenario() -> None:
        async with poller_for("memory", PollerLimits(handshakes=2)) as poller:
            turns: list[int] = []

            class Opened(Recorder):
                def on_open(self) -> None:
                    super().on_open()
                    turns.append(poller.counters.turns)

            for _ in range(7):
                near, far = memory_pair(poller)
                a, b = tls_over(poller, near, far)
                Opened(b), Recorder(a)
            await until(lambda: len(turns) == 7)
            assert max(turns.count(turn) for turn in turns) <= 2

    run("memory", scenario)
