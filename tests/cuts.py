"""A simulated world whose network breaks the Link every 50 ms, by seed.

Theory of operation. `Breaker` breaks the newest transport again and again, each time in another way: at an exact byte of either
direction, in the middle of the next handshake, for one end only, with bytes of the old transport held back until the new one is
being attached, or silently. `run_seed` has `Traffic` go through it, and looks at every invariant at each break and at the
end. What really happened is counted in `Counts`, so that a test can see that it was not spared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from random import Random
from typing import Any
from unittest.mock import patch

import attrs
import trio
from trio.testing import MockClock

from netbore.agent.agent import Agent
from netbore.agent.connect import ConnectLimits
from netbore.edge.agents import AgentLink
from netbore.edge.config import EdgeConfig, EdgeLimits
from netbore.edge.door import DoorLimits
from netbore.link.link import Link
from netbore.link.poller import Poller
from netbore.link.simulated import Conditions, Path, SimulatedTransport
from netbore.proto import pipe
from netbore.proto.wire import FIRST_ROOM, STREAM_WINDOW
from netbore.testing import DOMAIN, World, open_world
from tests.talkers import Traffic

#: Seconds between two breaks.
EVERY = 0.05
#: Seconds between the moments at which anything arrives; no divisor of EVERY.
TICK = 0.0043
#: Turns of the Poller in EVERY seconds that are too many.
SPIN = 500
STREAMS = 16
CONNECT = ConnectLimits(
    dial_seconds=0.3, handshake_seconds=0.3, retry_first_seconds=0.002, retry_most_seconds=0.02, retry_reset_seconds=0.0
)


@attrs.frozen
class Flavour:
    """One kind of world."""

    name: str
    #: First and largest replay room, bytes.
    room: tuple[int, int] = (16384, 16384)
    #: Beyond the reserve and the room, bytes.
    budget: int = 64 * 1024 * 1024
    websocket: bool = False
    conditions: Conditions = Conditions(latency=(0.0005, 0.008), tick=TICK, segment=5000, capacity=12000)
    largest: int = 40000

    def config(self) -> EdgeConfig:
        budget = self.room[0] + STREAMS * STREAM_WINDOW + self.budget
        door = DoorLimits(handshake_seconds=0.3, streams=STREAMS, link_budget=budget)
        return EdgeConfig(state_dir=FilePath("unused"), domain=DOMAIN, limits=EdgeLimits(door=door))


TIGHT = Flavour("tight")
FLAVOURS = (
    TIGHT,
    Flavour("websocket", websocket=True, conditions=Conditions(latency=(0.0005, 0.006), tick=TICK, capacity=20000)),
    Flavour(
        "wide",
        room=(FIRST_ROOM // 2, FIRST_ROOM * 2),
        conditions=Conditions(latency=(0.0005, 0.018), tick=TICK, capacity=1024 * 1024),
        largest=800000,
    ),
    Flavour("poor", budget=6 * STREAM_WINDOW, conditions=Conditions(latency=(0.0005, 0.008), tick=TICK, segment=3000)),
)


@attrs.define
class Counts:
    """What happened."""

    breaks: int = 0
    #: Streams in the middle of something, summed over the breaks; breaks at which bytes were unacknowledged in both directions.
    busy: int = 0
    loaded: int = 0
    dials: int = 0
    resumes: int = 0
    #: Cut on the way, by direction.
    cut_asking: int = 0
    cut_answering: int = 0
    #: The Edge had resumed, and the Agent never heard.
    lost_answers: int = 0
    #: Bytes that an older transport delivered while a newer one was there; those that found their end open.
    late: int = 0
    late_open: int = 0
    full_rooms: int = 0
    silent: int = 0
    in_header: int = 0
    conversations: int = 0
    wholes: int = 0
    heard: int = 0

    def add(self, other: Counts) -> None:
        for name, value in attrs.asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class FrameWalker:
    """Follows one direction of a WebSocket: does what came so far end inside a frame's header?"""

    def __init__(self) -> None:
        self._head: bytes | None = b""  # of HTTP, until it is over
        self._header = b""
        self.left = 0

    @property
    def inside(self) -> bool:
        return bool(self._header)

    def feed(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            self._head = None if end else head
            if not end:
                return
        while data:
            step = min(self.left, len(data))
            self.left -= step
            data = data[step:]
            if data:
                self._header += data[:1]
                data = data[1:]
                self._read_header(self._header)

    def _read_header(self, header: bytes) -> None:
        if len(header) < 2:
            return
        length = header[1] & 127
        size = 2 + {126: 2, 127: 8}.get(length, 0) + (4 if header[1] & 128 else 0)
        if len(header) == size:
            self.left = int.from_bytes(header[2 : size - (4 if header[1] & 128 else 0)], "big") if length > 125 else length
            self._header = b""


class Turns:
    """Calls back after a number of turns of the Poller, without time going on."""

    def __init__(self, poller: Poller, turns: int, call: Callable[[], None]) -> None:
        self._poller = poller
        self._turns = turns
        self._call = call
        poller.make_ready(self)

    def on_ready(self, mask: int) -> None:
        self._turns -= 1
        if self._turns > 0:
            self._poller.make_ready(self)
        else:
            self._call()


class Breaker:
    """Breaks transports, looks at invariants, counts."""

    def __init__(self, world: World, flavour: Flavour, random: Random) -> None:
        self.world = world
        self.flavour = flavour
        self.random = random
        self.counts = Counts()
        self.newest: Path | None = None
        self._ambush: tuple[bool, int] | None = None  # of the next dial: at its acceptor, after how many bytes
        self._ambushed: dict[Path, bool] = {}
        self._held: Path | None = None
        self._walkers: dict[SimulatedTransport, FrameWalker] = {}
        self._full = [False, False]
        self.edge: AgentLink | None = None
        self.agent: Link | None = None
        self.traffic: Traffic | None = None
        self._looked = world.poller.now, 0  # when, and after how many turns, `audit` looked last
        world.on_dial = self._on_dial

    def watch(self, edge: AgentLink, agent: Agent, traffic: Traffic | None = None) -> None:
        """From now on the Link is up."""
        self.edge, self.agent, self.traffic = edge, agent.link, traffic
        restore = edge.restore
        self.counts.dials = 0

        def restored(*args: Any) -> None:
            self.counts.lost_answers += 1  # until the Agent has it
            restore(*args)

        edge.restore = restored  # type: ignore[method-assign]
        agent.on_event = self._on_event

    def _on_event(self, kind: str, fields: dict[str, Any]) -> None:
        if kind == "resumed":
            self.counts.resumes += 1
            self.counts.lost_answers -= 1

    # The network's side

    def _on_dial(self, path: Path) -> None:
        self.counts.dials += 1
        self.newest = path
        path.on_arrival = self._on_arrival
        if self.flavour.websocket:
            for end in (path.dialler, path.acceptor):
                self._walkers[end] = FrameWalker()
        if self._ambush is not None:
            at_acceptor, count = self._ambush
            self._ambush = None
            self._ambushed[path] = at_acceptor
            (path.acceptor if at_acceptor else path.dialler).cut_at(count)

    def _on_arrival(self, end: SimulatedTransport, data: bytes) -> None:
        path = end.path
        if path is not self.newest:
            self.counts.late += len(data)
            self.counts.late_open += 0 if end.closed else len(data)
        elif self._held is not None and end is path.acceptor:
            held, self._held = self._held, None
            Turns(self.world.poller, self.random.randint(1, 8), held.let_go)
        walker = self._walkers.get(end)
        if walker is not None:
            walker.feed(data)
        self._note_rooms()

    def _note_rooms(self) -> None:
        if self.edge is None or self.agent is None:
            return
        for side, link in enumerate((self.edge.link, self.agent)):
            one = link.session.pipe
            full = one.room.size - (one.sent - one.acked) < pipe.PULL_LEAST
            self.counts.full_rooms += full and not self._full[side]
            self._full[side] = full

    def _note_traffic(self) -> None:
        assert self.edge is not None
        assert self.agent is not None
        self.counts.busy += self.traffic.busy if self.traffic is not None else 0
        self.counts.loaded += all(one.sent > one.acked for one in (self.edge.link.session.pipe, self.agent.session.pipe))

    # Breaking

    async def run(self, seconds: float, patient: bool) -> None:
        """Break the newest transport every 50 ms for `seconds`. In the second half of a `patient` run a few breaks are silent."""
        number_of_breaks = int(seconds / EVERY)
        second_half = range(number_of_breaks // 2, number_of_breaks)
        silent = self.random.sample(second_half, 3 + number_of_breaks // 400) if patient else []
        silences = {number: place % 3 < 2 for place, number in enumerate(silent)}
        for number in range(number_of_breaks):
            self.audit()
            self._note_traffic()
            if number in silences:
                await self._break_silently(stall=silences[number])
            else:
                self._break(self.newest)
            await trio.sleep(EVERY)
            self._finish(self.newest)
        self._release()

    def _break(self, path: Path | None) -> None:
        assert path is not None
        self.counts.breaks += 1
        roll = self.random.random()
        if roll < 0.5:
            self._light_fuse(path)
        elif roll < 0.8:
            self._break_dialler(path)
        elif roll < 0.9:
            self._break_acceptor(path)
        else:
            path.cut()
        if self.random.random() < 0.6:
            self._lay_ambush()

    def _light_fuse(self, path: Path) -> None:
        """The path is cut behind a random byte, often one inside a WebSocket's header."""
        end = self.random.choice((path.dialler, path.acceptor))
        walker = self._walkers.get(end)
        if walker is not None and self.random.random() < 0.7:
            end.cut_at(walker.left + self.random.randint(1, 7))
        else:
            end.cut_at(int(30000 ** self.random.random()) - 1)

    def _break_dialler(self, path: Path) -> None:
        """The Agent is told, the Edge is not, and what was under way arrives late: when the next transport begins, or by time."""
        self._release()
        path.hold()
        path.dialler.reset()
        if self.random.random() < 0.7:
            self._held = path
        else:
            poller = self.world.poller
            poller.call_at(poller.now + self.random.uniform(0, 0.03), path.let_go)

    def _break_acceptor(self, path: Path) -> None:
        """The Edge is told, and the Agent later."""
        path.silence()
        path.acceptor.reset()
        poller = self.world.poller
        poller.call_at(poller.now + self.random.uniform(0, 0.02), path.dialler.reset)

    def _lay_ambush(self) -> None:
        """The next handshake is cut, or what follows right behind it."""
        at_acceptor = self.random.random() < 0.4
        upgrade = (204 if at_acceptor else 165) if self.flavour.websocket and self.random.random() < 0.7 else 0
        self._ambush = at_acceptor, upgrade + self.random.randint(0, 350 if at_acceptor else 70)

    async def _break_silently(self, stall: bool) -> None:
        """Half-open until both sides have noticed; after a `stall` what was under way arrives in the next handshake."""
        assert self.edge is not None
        assert self.agent is not None
        while self.edge.link.broken or self.agent.broken:  # noqa: ASYNC110 - on a clock that jumps
            await trio.sleep(TICK)
        path = self.newest
        assert path is not None
        self.counts.silent += 1
        self._release()
        path.hold()
        if stall:
            self._held = path
        else:
            path.silence()
        while self.newest is path:  # noqa: ASYNC110 - on a clock that jumps
            await trio.sleep(0.5)

    def _finish(self, path: Path | None) -> None:
        """A fuse that did not burn down in time."""
        if path is not None and not path.was_cut and self.random.random() < 0.3:
            path.cut()

    def _release(self) -> None:
        if self._held is not None:
            self._held.let_go()
            self._held = None

    # Looking

    def audit(self) -> None:
        """Raise AssertionError for any invariant that does not hold."""
        assert self.edge is not None
        assert self.agent is not None
        self.world.poller.audit()
        wrong = [f"Edge: {text}" for text in self.edge.link.session.audit()]
        wrong += [f"Agent: {text}" for text in self.agent.session.audit()]
        assert not wrong, wrong
        assert self.agent.ended is None, f"the Link has ended: {self.agent.ended}"
        assert self.world.poller.counters.crashes == 0, "a callback of the Poller raised"
        self._look_for_spinning(self.world.poller.now, self.world.poller.counters.turns)

    def _look_for_spinning(self, now: float, turns: int) -> None:
        """Between two breaks there are 25 turns or so, at most 60; who has output and never gets it off makes thousands."""
        (before, turns_before), self._looked = self._looked, (now, turns)
        most = SPIN * (1 + int((now - before) / EVERY))
        assert turns - turns_before <= most, f"{turns - turns_before} turns in {now - before:.3f} s: somebody spins"

    def count_paths(self) -> None:
        """What can be counted when all is over."""
        for path, at_acceptor in self._ambushed.items():
            if path.was_cut:
                self.counts.cut_asking += at_acceptor
                self.counts.cut_answering += not at_acceptor
        self.counts.in_header = sum(walker.inside and end.path.was_cut for end, walker in self._walkers.items())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Have all of Trio's scheduling follow from `seed`: with Hypothesis imported nothing else does."""
    trio._core._run._r.seed(seed)  # type: ignore[attr-defined]
    yield


@contextmanager
def small_rooms(flavour: Flavour) -> Iterator[None]:
    """Replay rooms of the flavour's size, both sides."""
    with patch.object(pipe, "FIRST_ROOM", flavour.room[0]), patch.object(pipe, "MAX_ROOM", flavour.room[1]):
        yield


async def scenario(seed: int, flavour: Flavour, seconds: float) -> Counts:
    """One world from its first byte to its last."""
    random = Random(seed)
    async with open_world(seed, conditions=flavour.conditions, config=flavour.config()) as world:
        breaker = Breaker(world, flavour, random)
        dial = world.dial_websocket if flavour.websocket else world.dial_edge
        async with world.agent(limits=CONNECT, dial=dial) as agent:
            tunnel = await agent.open_tunnel("demo")
            (edge,) = world.core.door.links.values()
            assert agent.link is not None
            traffic = Traffic(world.poller, edge.link, agent.link, random, handle=tunnel.handle)
            traffic.largest = flavour.largest
            breaker.watch(edge, agent, traffic)
            traffic.start()
            await breaker.run(seconds, patient=seed % 3 == 0)
            await _come_to_an_end(breaker, traffic)
            look_for_leaks(edge.link, agent.link)
        await trio.sleep(1)
        _look_for_the_rest(world)
    breaker.count_paths()
    counts = breaker.counts
    counts.conversations, counts.wholes, counts.heard = traffic.finished, traffic.wholes, traffic.heard
    return counts


async def _come_to_an_end(breaker: Breaker, traffic: Traffic) -> None:
    traffic.stopping = True
    with trio.move_on_after(60):
        while not traffic.over:
            await trio.sleep(0.1)
            breaker.audit()
    assert not traffic.errors, traffic.errors
    assert traffic.over, [*traffic.describe(), breaker.counts]
    await trio.sleep(2)
    breaker.audit()


def look_for_leaks(edge: Link, agent: Link) -> None:
    """All Streams have ended: nothing of them is left."""
    wrong = []
    for name, link, other in (("Edge", edge, agent), ("Agent", agent, edge)):
        mux, one, peer = link.session.mux, link.session.pipe, other.session.pipe
        checks = (
            (one.acked == one.sent == peer.received, f"sent {one.sent}, acked {one.acked}, received {peer.received}"),
            (list(mux._streams) == [0], f"Streams {list(mux._streams)}"),
            (not mux._unopened, f"{len(mux._unopened)} Streams unopened"),
            (not mux._lingering, f"{len(mux._lingering)} Streams hold budget"),
            (mux.budget.out == one.room.size + mux._reserve, f"{mux.budget.out} bytes of the budget are out"),
            (not link.session.has_output, "output that nobody sends"),
        )
        wrong += [f"{name}: {text}" for holds, text in checks if not holds]
    assert not wrong, wrong


def _look_for_the_rest(world: World) -> None:
    """The Agent has left: the Edge holds nothing of it."""
    door = world.core.door
    left = [path.facts for path in world.network.paths if not (path.dialler.closed and path.acceptor.closed)]
    checks = (
        (door.links == {}, f"Links {list(door.links)}"),
        (door.parts.budget.out == 0, f"{door.parts.budget.out} bytes of the Edge's budget are out"),
        (door.pending == 0, f"{door.pending} handshakes are pending"),
        (not left, f"{len(left)} transports are open: {left[:3]}"),
    )
    wrong = [text for holds, text in checks if not holds]
    assert not wrong, wrong
    world.poller.audit()


def run_seed(seed: int, flavour: Flavour, seconds: float) -> Counts:
    """One run; raises AssertionError that names the seed. The same seed gives the same run."""

    async def limited() -> Counts:
        with trio.fail_after(seconds * 2 + 300):
            return await scenario(seed, flavour, seconds)

    with seeded(seed), small_rooms(flavour):
        try:
            return trio.run(limited, clock=MockClock(autojump_threshold=0))
        except BaseException as error:
            text = _inner(error)
            raise AssertionError(f"seed {seed}, {flavour.name}, {seconds} s: {type(text).__name__}: {text}") from error


def _inner(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
