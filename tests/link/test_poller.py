"""The Poller's rules, one by one."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from netbore.link.dial import connect_tcp
from netbore.link.drivers import HAS_EPOLL
from netbore.link.memory import memory_pair
from netbore.link.poller import Parked, Poller, PollerLimits, open_poller
from netbore.link.tcp import TcpTransport, listen
from netbore.link.turn import Turn
from tests.link.support import Recorder, poller_for, run, tcp_pair, until

DRIVERS = ["tasks", "epoll"] if HAS_EPOLL else ["tasks"]


def make_turn(limits: PollerLimits | None = None) -> tuple[Turn, list[str]]:
    woken: list[str] = []
    return Turn(limits or PollerLimits(), lambda: 0.0, lambda: woken.append("woken")), woken


class Dirty:
    def __init__(self, name: str, log: list[str], again: Callable[[], None] = lambda: None) -> None:
        self.name, self.log, self.again = name, log, again

    def flush(self) -> None:
        self.log.append(self.name)
        self.again()


# The turn, without a loop.


def test_posted_calls_come_later_and_in_order() -> None:
    turn, _ = make_turn()
    log: list[str] = []

    def outer() -> None:
        turn.post(log.append, "inner")
        log.append("outer")

    turn.post(outer)
    turn.post(log.append, "second")
    assert log == []
    turn.run((), 0.0)
    assert log == ["outer", "second", "inner"]


def test_links_are_flushed_last_in_every_round() -> None:
    turn, _ = make_turn()
    log: list[str] = []
    link = Dirty("link", log)
    turn.mark(link, last=True)
    turn.mark(Dirty("viewer", log, lambda: turn.mark(link, last=True)))
    turn.mark(Dirty("host", log))
    turn.run((), 0.0)
    assert log == ["viewer", "host", "link"]


def test_four_rounds_at_most_and_the_rest_makes_the_next_turn_start_at_once() -> None:
    turn, _ = make_turn()
    log: list[str] = []
    restless = Dirty("x", log)
    restless.again = lambda: turn.mark(restless)
    turn.mark(restless)
    turn.run((), 0.0)
    assert len(log) == 4
    assert turn.pending


def test_the_first_mark_outside_a_turn_wakes_and_only_the_first() -> None:
    turn, woken = make_turn()
    turn.mark(Dirty("a", []))
    turn.mark(Dirty("b", []))
    turn.post(lambda: None)
    assert woken == ["woken"]
    turn.run((), 0.0)
    turn.post(lambda: turn.post(lambda: None))
    assert woken == ["woken"] * 2
    turn.run((), 0.0)
    assert woken == ["woken"] * 2


def test_a_turn_takes_a_limited_number_from_the_ready_list() -> None:
    turn, _ = make_turn(PollerLimits(events=3))
    seen: list[int] = []

    class One:
        def __init__(self, number: int) -> None:
            self.number = number

        def on_ready(self, mask: int) -> None:
            seen.append(self.number)
            turn.make_ready(self)

    ones = [One(number) for number in range(5)]
    for one in ones:
        turn.make_ready(one)
    turn.run((), 0.0)
    assert seen == [0, 1, 2]
    turn.run((), 0.0)
    assert seen == [0, 1, 2, 3, 4, 0]


def test_a_planted_exception_stays_with_its_culprit(caplog: pytest.LogCaptureFixture) -> None:
    turn, _ = make_turn()
    crashes: list[Exception] = []

    class Culprit:
        def on_crash(self, error: Exception) -> None:
            crashes.append(error)

        def fail(self) -> None:
            raise ZeroDivisionError("planted")

        flush = fail

        def on_ready(self, mask: int) -> None:
            self.fail()

    culprit, log = Culprit(), list[str]()
    turn.post(culprit.fail)
    turn.post(log.append, "posted")
    turn.mark(culprit)
    turn.mark(Dirty("flushed", log))
    turn.make_ready(culprit)
    turn.timers.add(0.0, culprit.fail)
    turn.timers.add(0.0, lambda: log.append("timer"))
    turn.run((), 1.0)
    assert len(crashes) == 4 == turn.counters.crashes
    assert log == ["posted", "timer", "flushed"]
    assert "planted" in caplog.text


def test_timers_fire_in_order_not_early_and_not_when_cancelled() -> None:
    turn, _ = make_turn()
    log: list[str] = []
    for name, deadline in [("c", 3.0), ("a", 1.0), ("b", 2.0), ("a2", 1.0)]:
        turn.timers.add(deadline, lambda name=name: log.append(name))  # type: ignore[misc]
    cancelled = turn.timers.add(1.5, lambda: log.append("never"))
    cancelled.cancel()
    cancelled.cancel()
    turn.run((), 2.0)
    assert log == ["a", "a2", "b"]
    assert turn.timers.next_deadline() == 3.0


def test_many_cancelled_timers_do_not_pile_up() -> None:
    turn, _ = make_turn()
    for number in range(10000):
        turn.timers.add(1000.0 + number, lambda: None).cancel()
    assert len(turn.timers._heap) < 200


def test_timers_wait_while_not_all_that_is_readable_was_read_but_not_for_ever() -> None:
    turn, _ = make_turn(PollerLimits(full_batches=3))
    log: list[str] = []
    turn.timers.add(1.0, lambda: log.append("fired"))
    for _ in range(3):
        turn.run((), 2.0, everything=False)
        assert log == []
    turn.run((), 2.0, everything=False)
    assert log == ["fired"]


def test_descriptors_are_closed_at_the_end_of_the_turn() -> None:
    turn, _ = make_turn()
    log: list[str] = []
    turn.post(lambda: turn.close_later(lambda: log.append("closed")))
    turn.post(lambda: log.append("still in the turn"))
    turn.run((), 0.0)
    assert log == ["still in the turn", "closed"]


# Drivers and the Poller.


@pytest.mark.parametrize("kind", [*DRIVERS, "simulated"])
def test_a_post_from_a_task_wakes_the_driver(kind: str) -> None:
    async def scenario() -> None:
        async with open_poller(kind) as poller:
            await trio.testing.wait_all_tasks_blocked()
            turns = poller.counters.turns
            log: list[str] = []
            poller.post(log.append, "posted")
            poller.mark(Dirty("flushed", log))
            poller.audit()
            await until(lambda: len(log) == 2)
            assert poller.counters.turns == turns + 1
            await trio.testing.wait_all_tasks_blocked()
            assert poller.counters.turns == turns + 1, "the driver spins"

    run("tcp", scenario)


@pytest.mark.parametrize("kind", [*DRIVERS, "simulated"])
def test_idle_sockets_cost_no_turns(kind: str) -> None:
    async def scenario() -> None:
        async with open_poller(kind) as poller:
            near, far = memory_pair(poller) if kind == "simulated" else await tcp_pair(poller)
            a, b = Recorder(near), Recorder(far)
            a.send(b"x")
            await until(lambda: b.received)
            await trio.testing.wait_all_tasks_blocked()
            turns = poller.counters.turns
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert poller.counters.turns <= turns + 1

    run("tcp", scenario)


def test_a_call_from_another_thread_raises_and_harms_nothing() -> None:
    async def scenario() -> None:
        async with open_poller() as poller:
            errors: list[str] = []

            def foreign() -> None:
                for call in (
                    lambda: poller.post(print),
                    lambda: poller.mark(Dirty("x", [])),
                    lambda: poller.call_at(0.0, lambda: None),
                    lambda: poller.register(0, Dirty("x", [])),  # type: ignore[arg-type]
                ):
                    try:
                        call()
                    except RuntimeError as error:
                        errors.append(str(error))

            poller.post(lambda: None)
            thread = threading.Thread(target=foreign)
            thread.start()
            thread.join()
            assert len(errors) == 4

    run("tcp", scenario)


def test_a_poller_of_a_finished_run_is_dead_in_the_next() -> None:
    kept: list[Poller] = []

    async def first() -> None:
        async with open_poller() as poller:
            kept.append(poller)

    async def second() -> None:
        kept[0].post(pytest.fail, "a dead Poller ran something")
        with pytest.raises(RuntimeError):
            kept[0].call_at(0.0, lambda: None)

    run("tcp", first)
    run("tcp", second)


def test_no_real_descriptor_under_a_fake_clock() -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeError, match="fake clock"):
            async with open_poller("tasks"):
                pass
        async with open_poller() as poller:
            with pytest.raises(RuntimeError, match="no real descriptor"):
                listen(poller, "127.0.0.1", 0, print)

    run("memory", scenario)


def test_exact_timers_and_an_earlier_one_set_later() -> None:
    async def scenario() -> None:
        async with open_poller() as poller:
            log: list[tuple[str, float]] = []
            start = trio.current_time()

            def note(name: str) -> Callable[[], None]:
                return lambda: log.append((name, round(trio.current_time() - start, 9)))

            poller.call_at(start + 5, note("late"))
            await trio.sleep(1)
            poller.call_at(start + 2.025, note("early"))
            never = poller.call_at(start + 3, note("never"))
            never.cancel()
            await trio.sleep(6)
            assert log == [("early", 2.025), ("late", 5.0)]

    run("memory", scenario)


def test_what_is_readable_is_read_before_a_deadline_fires() -> None:
    async def scenario() -> None:
        async with open_poller() as poller:
            near, far = await tcp_pair(poller)
            b = Recorder(far)
            await until(lambda: b.opened)
            heard: list[bytes] = []
            # Both are true before the Poller can look: the deadline has passed, and bytes are there.
            near.try_send(b"alive")
            poller.call_at(trio.current_time() - 1, lambda: heard.append(bytes(b.received)))
            await until(lambda: heard)
            assert heard == [b"alive"]

    run("tcp", scenario)


def test_a_timer_s_turn_that_leaves_work_wakes_the_driver() -> None:
    async def scenario() -> None:
        async with open_poller() as poller:
            near, far = memory_pair(poller)
            a, b = Recorder(near), Recorder(far, limit=1)
            await until(lambda: a.opened and b.opened)
            poller.call_at(trio.current_time() + 1, lambda: a.send(b"12345"))
            await trio.sleep(1)
            await until(lambda: b.received == b"12345")

    run("memory", scenario)


def test_coarse_deadlines_are_swept_four_times_a_second() -> None:
    class Swept:
        deadline: float | None = None

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_deadline(self, now: float) -> None:
            self.times.append(now)
            self.deadline = None

    async def scenario() -> None:
        async with open_poller() as poller:
            one, other = Swept(), Swept()
            start = trio.current_time()
            one.deadline = start + 1.01
            poller.sweep(one)
            poller.sweep(other)
            await trio.sleep(3)
            assert len(one.times) == 1
            assert 1.01 <= one.times[0] - start <= 1.01 + 0.25 + 1e-6
            assert other.times == []
            poller.sweep_no_more(one)
            poller.sweep_no_more(other)
            await trio.sleep(1)
            turns = poller.counters.turns
            await trio.sleep(10)
            assert poller.counters.turns == turns, "nothing to sweep, yet it sweeps"

    run("memory", scenario)


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_turn_accepts_a_limited_number(kind: str) -> None:
    async def scenario() -> None:
        async with open_poller(kind, PollerLimits(accepts=2, polls=1)) as poller:
            per_turn: dict[int, int] = {}

            def accept(transport: TcpTransport) -> None:
                turn = poller.counters.turns
                per_turn[turn] = per_turn.get(turn, 0) + 1

            listener = listen(poller, "127.0.0.1", 0, accept)
            clients = [socket.create_connection(listener.address) for _ in range(7)]
            await until(lambda: sum(per_turn.values()) == 7)
            assert max(per_turn.values()) == 2
            for client in clients:
                client.close()

    run("tcp", scenario)


def test_a_listener_at_its_limit_waits_until_one_has_gone() -> None:
    async def scenario() -> None:
        async with open_poller() as poller:
            accepted: list[TcpTransport] = []
            listener = listen(poller, "127.0.0.1", 0, accepted.append, limit=2)
            clients = [socket.create_connection(listener.address) for _ in range(3)]
            await until(lambda: len(accepted) == 2)
            await trio.testing.wait_all_tasks_blocked()
            assert len(accepted) == 2
            accepted[0].close()
            await until(lambda: len(accepted) == 3)
            for client in clients:
                client.close()

    run("tcp", scenario)


def test_a_handler_that_raises_costs_its_connection_only() -> None:
    async def scenario() -> None:
        async with open_poller() as poller:
            accepted: list[TcpTransport] = []

            def accept(transport: TcpTransport) -> None:
                accepted.append(transport)
                if len(accepted) == 1:
                    raise ZeroDivisionError("planted")

            listener = listen(poller, "127.0.0.1", 0, accept)
            first = await connect_tcp(poller, *listener.address)
            second = await connect_tcp(poller, *listener.address)
            a, b = Recorder(first), Recorder(second)
            await until(lambda: len(accepted) == 2 and (a.eof or a.broken))
            c = Recorder(accepted[1])
            b.send(b"fine")
            await until(lambda: c.received == b"fine")

    run("tcp", scenario)


def test_without_descriptors_the_listener_pauses_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with open_poller(limits=PollerLimits(accept_pause_seconds=0.02)) as poller:
            accepted: list[TcpTransport] = []
            listener = listen(poller, "127.0.0.1", 0, accepted.append)
            client = socket.create_connection(listener.address)
            await until(lambda: accepted)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            late = socket.socket()
            late.setblocking(False)
            probe = os.dup(0)
            os.close(probe)
            resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
            try:
                late.connect_ex(listener.address)
                await until(lambda: poller.counters.accept_exhausted >= 2)
                turns = poller.counters.turns
                await until(lambda: poller.counters.accept_exhausted >= 4)
                assert poller.counters.turns - turns <= 8, "the listener spins"
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await until(lambda: len(accepted) == 2)
            client.close()
            late.close()

    run("tcp", scenario)
    assert caplog.text.count("cannot accept connections") == 1


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_closed_descriptor_that_is_reused_gets_no_old_event(kind: str) -> None:
    async def scenario() -> None:
        async with open_poller(kind) as poller:
            pairs = [await tcp_pair(poller) for _ in range(8)]
            fresh: list[Recorder] = []
            calls: list[str] = []

            class Replacer(Recorder):
                def on_readable(self) -> None:
                    # Close all that are ready in this batch, and open others that would get their numbers.
                    calls.append("called")
                    for reader in readers:
                        reader.transport.close()
                    for _ in range(8):
                        sock = socket.socket()
                        sock.setblocking(False)
                        transport = TcpTransport(poller, sock)
                        transport.opened = True
                        fresh.append(Recorder(transport, read=False))

            readers = [Replacer(far) for _, far in pairs]
            await until(lambda: all(reader.opened for reader in readers))
            for near, _ in pairs:
                near.try_send(b"ready")
            await until(lambda: fresh)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            assert calls == ["called"]
            assert not any(one.readables for one in fresh)

    run("tcp", scenario)


def test_a_paused_socket_is_out_of_the_set_even_when_its_peer_is_gone() -> None:
    async def scenario() -> None:
        async with open_poller() as poller:
            near, far = await tcp_pair(poller)
            b = Recorder(far)
            await until(lambda: b.opened)
            b.read(False)
            near.close(abort=True)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            turns = poller.counters.turns
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            assert poller.counters.turns <= turns + 1, "an error that cannot be masked makes the Poller spin"
            b.read(True)
            await until(lambda: b.broken)

    run("tcp", scenario)


def test_an_interrupt_does_not_tear_a_turn() -> None:
    async def scenario() -> None:
        async with open_poller() as poller:
            log: list[str] = []

            def interrupted() -> None:
                log.append("begun")
                signal.raise_signal(signal.SIGINT)
                log.append("ended")

            poller.post(interrupted)
            poller.post(log.append, "next")
            try:
                await trio.sleep_forever()
            finally:
                assert log == ["begun", "ended", "next"]

    with pytest.raises(BaseExceptionGroup) as info:
        trio.run(scenario)
    assert info.value.subgroup(KeyboardInterrupt) is not None


@pytest.mark.parametrize("how", ["exit", "cancel"])
def test_the_end_tells_closes_and_wakes(how: str) -> None:
    async def scenario() -> None:
        log: list[str] = []

        async def parked(place: Parked[None], task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            with pytest.raises(trio.ClosedResourceError):
                await place.wait()
            log.append("woken")

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with open_poller() as poller:
                    near, far = memory_pair(poller)
                    ours, theirs = Recorder(near), Recorder(far)
                    await until(lambda: ours.opened and theirs.opened)
                    poller.at_end(lambda: log.append(f"told, open: {not near.closed}"))
                    poller.at_end(lambda: ours.send(b"last words"))
                    await nursery.start(parked, poller.park())
                    if how == "cancel":
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
            assert near.closed
            assert far.closed
            await until(lambda: "woken" in log)
        assert log == ["told, open: True", "woken"]
        assert theirs.received == b"last words"

    run("memory", scenario)


def test_commands_after_the_end_mean_nothing_and_new_transports_are_refused() -> None:
    async def scenario() -> None:
        async with open_poller() as poller:
            pass
        poller.post(pytest.fail, "ran after the end")
        poller.mark(Dirty("x", []))
        with pytest.raises(trio.ClosedResourceError):
            memory_pair(poller)
        with pytest.raises(trio.ClosedResourceError):
            await poller.park().wait()

    run("memory", scenario)


def test_a_second_waiter_is_refused_and_an_early_answer_is_kept() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller, trio.open_nursery() as nursery:
            place = poller.park()
            place.wake("early")
            place.fail(ValueError("the first answer counts"))
            assert await place.wait() == "early"
            nursery.start_soon(place.wait)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await place.wait()
            place.wake()

    run("memory", scenario)


def test_audit_names_a_lost_wake_up() -> None:
    async def scenario() -> None:
        async with poller_for("memory") as poller:
            near, far = memory_pair(poller)
            Recorder(near)
            await trio.testing.wait_all_tasks_blocked()
            poller.audit()
            near._inbox += b"nobody was told"
            with pytest.raises(AssertionError, match="ready list"):
                poller.audit()
            near._inbox.clear()
            far.close()

    run("memory", scenario)


def test_a_poller_that_is_closed_from_one_of_its_turns_ends_quietly() -> None:
    async def scenario() -> None:
        for kind in DRIVERS:
            async with open_poller(kind) as poller:
                done: list[bool] = []

                def end(poller: Poller = poller, done: list[bool] = done) -> None:
                    done.append(True)
                    trio.lowlevel.current_trio_token().run_sync_soon(poller.close)

                poller.post(end)
                await until(lambda done=done: done)  # type: ignore[misc]
                for _ in range(10):
                    await trio.lowlevel.checkpoint()

    run("tcp", scenario)


def test_a_timer_that_is_due_with_the_ready_list_never_empty_still_fires() -> None:
    async def scenario() -> None:
        async with open_poller() as poller:
            near, far = memory_pair(poller)
            Recorder(near)
            busy = Recorder(far)
            await until(lambda: busy.opened)

            class Restless:
                def on_ready(self, mask: int) -> None:
                    if not fired:
                        poller.make_ready(self)

            fired: list[bool] = []
            poller.call_at(trio.current_time(), lambda: fired.append(True))
            poller.make_ready(Restless())
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert fired

    run("tcp", scenario)


class Tireless:
    """Ready again in every turn, each of which takes `seconds`."""

    def __init__(self, poller: Poller, clock: trio.testing.MockClock, seconds: float) -> None:
        self.poller, self.clock, self.seconds = poller, clock, seconds

    def on_ready(self, mask: int) -> None:
        self.clock.jump(self.seconds)
        self.poller.make_ready(self)


class TurnsOfOneStep(trio.abc.Instrument):
    """The most turns that were made before another task could run."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.before = 0
        self.most = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.before = self.poller.counters.turns

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.most = max(self.most, self.poller.counters.turns - self.before)


@pytest.mark.parametrize(("seconds", "most"), [(0.0, 3), (0.002, 2), (0.004, 1)])
async def test_long_turns_let_other_tasks_run_sooner(mock_clock: trio.testing.MockClock, seconds: float, most: int) -> None:
    limits = PollerLimits(polls=3, awake_seconds=0.003, sweep_seconds=1000)
    async with open_poller(limits=limits) as poller:
        poller.make_ready(Tireless(poller, mock_clock, seconds))
        steps = TurnsOfOneStep(poller)
        trio.lowlevel.add_instrument(steps)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(steps)
    assert steps.most == most
