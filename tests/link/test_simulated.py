"""The simulated network: chance by seed, and faults on demand."""

from __future__ import annotations

from random import Random

import pytest
import trio

from netbore.link.poller import open_poller
from netbore.link.simulated import Conditions, Network, SimulatedTransport
from tests.link.support import Recorder, poller_for, run, until


async def connected(network: Network, poller: object, other: object) -> tuple[Recorder, Recorder, SimulatedTransport]:
    accepted: list[SimulatedTransport] = []
    listener = network.listen(other, "edge", 443, accepted.append)  # type: ignore[arg-type]
    ours = Recorder(network.dial(poller, "edge", 443))  # type: ignore[arg-type]
    await until(lambda: accepted)
    theirs = Recorder(accepted[0])
    await until(lambda: ours.opened and theirs.opened)
    listener.close()
    assert isinstance(ours.transport, SimulatedTransport)
    return ours, theirs, ours.transport


def test_latency_each_way_and_a_round_trip_to_open() -> None:
    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            network = Network(Random(1), Conditions(latency=(0.5, 0.5)))
            start = trio.current_time()
            ours, theirs, _ = await connected(network, poller, poller)
            assert trio.current_time() - start == pytest.approx(1.0, abs=0.01)
            sent = trio.current_time()
            ours.send(b"x")
            await until(lambda: theirs.received)
            assert trio.current_time() - sent == pytest.approx(0.5, abs=0.01)

    run("simulated", scenario)


def test_two_pollers_and_segments_in_order() -> None:
    async def scenario() -> None:
        async with open_poller() as one, open_poller() as other:
            network = Network(Random(7), Conditions(latency=(0.001, 0.3), segment=10))
            ours, theirs, _ = await connected(network, one, other)
            data = bytes(range(256))
            ours.send(data)
            await until(lambda: len(theirs.received) == 256)
            assert theirs.received == data
            assert theirs.readables > 3
            one.audit()
            other.audit()

    run("simulated", scenario)


def test_the_same_seed_gives_the_same_run() -> None:
    traces: list[list[tuple[float, int]]] = []

    class Timed(Recorder):
        def on_readable(self) -> None:
            super().on_readable()
            traces[-1].append((round(trio.current_time(), 9), len(self.received)))

    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            start = trio.current_time()
            assert start == 0.0
            network = Network(Random(3), Conditions(latency=(0.001, 0.1), segment=50))
            ours, theirs, _ = await connected(network, poller, poller)
            timed = Timed(theirs.transport)
            timed.opened = 1
            ours.send(b"x" * 2000)
            await until(lambda: len(timed.received) == 2000)

    for _ in range(2):
        traces.append([])
        run("simulated", scenario)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 2


def test_without_latency_what_is_sent_at_one_moment_arrives_at_it() -> None:
    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            network = Network(Random(1), Conditions(latency=(0.0, 0.0), segment=2))
            ours, theirs, _ = await connected(network, poller, poller)
            moment = trio.current_time()
            for number in range(3):
                ours.send(b"abcdef")
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
                assert len(theirs.received) == 6 * (number + 1)
            assert trio.current_time() == moment

    run("simulated", scenario)


def test_with_a_tick_everything_arrives_at_its_multiples() -> None:
    moments: set[float] = set()

    class Timed(Recorder):
        def on_readable(self) -> None:
            super().on_readable()
            moments.add(trio.current_time())

    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            network = Network(Random(3), Conditions(latency=(0.001, 0.1), segment=50, tick=0.03))
            ours, theirs, _ = await connected(network, poller, poller)
            timed = Timed(theirs.transport)
            timed.opened = 1
            for _ in range(20):
                ours.send(b"x" * 200)
                await trio.sleep(0.007)
            await until(lambda: len(timed.received) == 4000)

    run("simulated", scenario)
    assert len(moments) > 3
    assert all(moment / 0.03 == pytest.approx(round(moment / 0.03)) for moment in moments), moments


def test_refusals() -> None:
    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            network = Network(Random(1))
            listener = network.listen(poller, "edge", 443, lambda transport: None)
            with pytest.raises(ValueError, match="taken"):
                network.listen(poller, "edge", 443, lambda transport: None)
            network.refuse("edge", 443)
            failed = [Recorder(network.dial(poller, "edge", 443)), Recorder(network.dial(poller, "nowhere", 1))]
            await until(lambda: all(one.failed for one in failed))
            assert {one.failed.kind for one in failed if one.failed} == {"refused"}
            network.refuse("edge", 443, False)
            ours = Recorder(network.dial(poller, "edge", 443))
            await until(lambda: ours.opened)
            listener.close()
            late = Recorder(network.dial(poller, "edge", 443))
            await until(lambda: late.failed)

    run("simulated", scenario)


def test_a_cut_is_told_to_both_and_loses_what_is_under_way() -> None:
    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            ours, theirs, transport = await connected(Network(Random(1)), poller, poller)
            ours.send(b"under way")
            transport.path.cut()
            await until(lambda: ours.broken and theirs.broken)
            assert not theirs.received
            assert ours.broken is not None
            assert ours.broken.kind == "reset"

    run("simulated", scenario)


def test_silence_is_told_to_nobody_and_the_sender_fills_up() -> None:
    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            ours, theirs, transport = await connected(Network(Random(1), Conditions(capacity=1000)), poller, poller)
            transport.path.silence()
            ours.send(b"x" * 5000)
            theirs.transport.close(abort=True)
            await trio.sleep(100)
            assert len(ours.unsent) == 4000
            assert not (ours.broken)
            assert not (ours.eof)
            assert not (theirs.received)

    run("simulated", scenario)


def test_late_bytes() -> None:
    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            ours, theirs, transport = await connected(Network(Random(1)), poller, poller)
            transport.path.hold()
            ours.send(b"late")
            await trio.sleep(50)
            assert not theirs.received
            transport.path.let_go()
            await until(lambda: theirs.received == b"late")
            ours.send(b" and on time")
            await until(lambda: theirs.received == b"late and on time")

    run("simulated", scenario)


def test_a_dialler_that_closed_meanwhile_is_not_accepted() -> None:
    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            network = Network(Random(1))
            network.listen(poller, "edge", 443, lambda transport: pytest.fail("accepted"))
            network.dial(poller, "edge", 443).close()
            await trio.sleep(1)

    run("simulated", scenario)


@pytest.mark.parametrize("after", [0.005, 0.015])
def test_a_path_cut_while_dialling_fails_the_dial(after: float) -> None:
    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            network = Network(Random(1), Conditions(latency=(0.01, 0.01)))
            network.listen(poller, "edge", 443, Recorder)
            ours = Recorder(network.dial(poller, "edge", 443))
            poller.call_at(poller.now + after, network.paths[0].cut)
            await until(lambda: ours.failed)
            assert not ours.opened
            assert ours.transport.closed  # type: ignore[attr-defined]

    run("simulated", scenario)


def test_a_path_silenced_while_dialling_never_opens() -> None:
    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            network = Network(Random(1), Conditions(latency=(0.01, 0.01)))
            network.listen(poller, "edge", 443, Recorder)
            ours = Recorder(network.dial(poller, "edge", 443))
            network.paths[0].silence()
            await trio.sleep(1)
            assert not ours.opened
            assert ours.failed is None
            ours.transport.close(abort=True)

    run("simulated", scenario)


@pytest.mark.parametrize("count", [0, 1, 5, 9, 10])
def test_a_path_is_cut_at_an_exact_byte(count: int) -> None:
    async def scenario() -> None:
        async with poller_for("simulated") as poller:
            network = Network(Random(3), Conditions(segment=4))
            ours, theirs, path_end = await connected(network, poller, poller)
            path_end.path.acceptor.cut_at(count)
            ours.send(b"0123456789")
            await until(lambda: ours.broken and theirs.broken)
            assert theirs.received == b"0123456789"[:count]

    run("simulated", scenario)
