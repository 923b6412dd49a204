"""A keeper: one Link over many transports, and what ends it. The Edge's side is spoken by the test, record by record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from netbore.agent.connect import ConnectLimits, Identity, Way
from netbore.agent.keeper import Keeper
from netbore.errors import EdgeUnreachable, EdgeUntrusted, NetboreError, Unauthorized, VersionMismatch
from netbore.link.greeting import Greeting
from netbore.link.link import Link
from netbore.link.memory import memory_pair
from netbore.link.poller import Poller, open_poller
from netbore.link.transport import Transport, TransportBroken
from netbore.proto.handshake import Credential, Hello, Limits, Message, Reject, Resume, Resumed, Welcome
from netbore.proto.session import Ended
from netbore.proto.wire import Code

pytestmark = pytest.mark.seconds(300)


@attrs.define
class Edge:
    """Answers each handshake by `answer(message)`; dials fail while `failing` is set."""

    poller: Poller
    answer: Callable[[Message], Message | None]
    failing: Exception | None = None
    #: What was said on each transport.
    heard: list[list[Message]] = attrs.field(factory=list)
    far: list[Transport] = attrs.field(factory=list)
    nursery: trio.Nursery | None = None
    between: Callable[[Message], None] | None = None

    async def dial(self) -> Transport:
        await trio.lowlevel.checkpoint()
        if self.failing is not None:
            raise self.failing
        near, far = memory_pair(self.poller)
        self.far.append(far)
        assert self.nursery is not None
        self.nursery.start_soon(self._speak, far)
        return near

    async def _speak(self, far: Transport) -> None:
        greeting, heard = Greeting(far, dialler=False), list[Message]()
        self.heard.append(heard)
        while True:
            try:
                message = await greeting.hear()
            except TransportBroken:
                return
            heard.append(message)
            if self.between is not None:
                self.between(message)
            answer = self.answer(message)
            if answer is None:
                return
            try:
                await greeting.say(answer)
            except TransportBroken:
                return
            if not isinstance(answer, Reject):
                return


@attrs.define
class User:
    """Notes what the keeper says."""

    told: list[str] = attrs.field(factory=list)
    kept: tuple[str, ...] = ()

    def keeps(self) -> tuple[str, ...]:
        return self.kept

    def on_link(self, keeper: Keeper, link: Link, welcome: Welcome) -> None:
        self.told.append("link")

    def on_resumed(self, keeper: Keeper) -> None:
        self.told.append("resumed")

    def on_reconnecting(self, keeper: Keeper, reason: str, wait: float) -> None:
        self.told.append(reason)

    def on_message(self, keeper: Keeper, message: dict[str, Any]) -> None:
        self.told.append("message")

    def on_move(self, keeper: Keeper, spread: float) -> None:
        self.told.append(f"move {spread:g}")

    def on_link_ended(self, keeper: Keeper, ended: Ended) -> None:
        self.told.append("ended")


def welcome(message: Message, number: list[int] | None = None) -> Message:
    """The answer of an Edge that takes everything."""
    if isinstance(message, Resume):
        return Resumed(message.epoch, 0)
    return Welcome(minor=0, edge="e", link="e.1", secret="0" * 64, links=1, grace=60, limits=Limits())


@attrs.define
class Bench:
    edge: Edge
    user: User
    keeper: Keeper
    error: NetboreError | None = None

    async def run(self) -> None:
        try:
            await self.keeper.run()
        except NetboreError as error:
            self.error = error


async def bench(
    test: Callable[[Bench], Any],
    answer: Callable[[Message], Message | None] = welcome,
    *,
    patient: bool = True,
    failing: Exception | None = None,
) -> None:
    """Run `test` beside a keeper and its Edge."""
    async with trio.open_nursery() as nursery, open_poller() as poller:
        edge = Edge(poller, answer, failing, nursery=nursery)
        identity = Identity(Credential("operator", "t"), "0" * 32, "test")
        user = User()
        keeper = Keeper(poller, Way(edge.dial, identity, lambda: 0.5, ConnectLimits(), patient), user)
        one = Bench(edge, user, keeper)
        nursery.start_soon(one.run)
        await trio.sleep(1)
        await test(one)
        nursery.cancel_scope.cancel()


async def test_a_broken_link_is_resumed(autojump_clock: MockClock) -> None:
    async def test(one: Bench) -> None:
        one.edge.far[0].close(abort=True)
        await trio.sleep(1)
        assert one.user.told[0] == "link"
        assert one.user.told[-1] == "resumed"
        assert [type(messages[0]) for messages in one.edge.heard] == [Hello, Resume]

    await bench(test)


async def test_hello_says_which_links_are_kept(autojump_clock: MockClock) -> None:
    async def test(one: Bench) -> None:
        one.user.kept = ("e.7",)
        assert one.keeper.link is not None
        assert one.keeper.link_id == "e.1"
        one.keeper.link.close()
        assert one.keeper.link_id is None
        await trio.sleep(1)
        hello = one.edge.heard[-1][0]
        assert isinstance(hello, Hello)
        assert hello.keeps == ("e.7",)

    await bench(test)


@pytest.mark.parametrize("code", [Code.UNKNOWN_LINK, Code.CORRUPT_SEQUENCE])
async def test_a_link_that_the_edge_cannot_go_on_with_is_replaced_on_the_same_transport(
    autojump_clock: MockClock, code: Code
) -> None:
    def answer(message: Message) -> Message | None:
        return Reject(code, "no") if isinstance(message, Resume) else welcome(message)

    async def test(one: Bench) -> None:
        first = one.keeper.link
        one.edge.far[0].close(abort=True)
        await trio.sleep(10)
        assert one.keeper.link is not first
        assert [[type(message) for message in heard] for heard in one.edge.heard] == [[Hello], [Resume, Hello]]

    await bench(test, answer)


async def test_a_stale_epoch_is_overtaken(autojump_clock: MockClock) -> None:
    def answer(message: Message) -> Message | None:
        if isinstance(message, Resume) and message.epoch < 10:
            return Reject(Code.STALE_EPOCH, "stale", epoch=9)
        return welcome(message)

    async def test(one: Bench) -> None:
        one.edge.far[0].close(abort=True)
        await trio.sleep(1)
        assert [message.epoch for message in one.edge.heard[1] if isinstance(message, Resume)] == [1, 10]
        assert one.user.told[-1] == "resumed"

    await bench(test, answer)


@pytest.mark.parametrize("during", [Resume, Hello])
async def test_a_link_that_is_closed_during_a_handshake(autojump_clock: MockClock, during: type) -> None:
    """Its user closes it while the answer is on the way: nothing is attached, and the next attempt makes a new one."""
    closed = []

    async def test(one: Bench) -> None:
        first = one.keeper.link
        assert first is not None

        def between(message: Message) -> None:
            if isinstance(message, during) and not closed:
                closed.append(1)
                first.close()

        one.edge.between = between
        if during is Hello:
            first.close()
        else:
            one.edge.far[0].close(abort=True)
        await trio.sleep(30)
        assert closed
        assert one.error is None
        assert one.keeper.live
        assert one.keeper.link is not first

    await bench(test)


async def test_a_keeper_that_is_closed_during_hello_makes_no_link(autojump_clock: MockClock) -> None:
    async def test(one: Bench) -> None:
        assert one.keeper.link is not None
        one.edge.between = lambda message: one.keeper.close(Code.GOING_AWAY, "over")
        one.keeper.link.close()
        await trio.sleep(30)
        assert one.keeper.finished.is_set()
        assert one.user.told.count("link") == 1

    await bench(test)


async def test_a_retired_keeper_resumes_and_makes_no_other_link(autojump_clock: MockClock) -> None:
    async def test(one: Bench) -> None:
        one.keeper.retire()
        one.edge.far[0].close(abort=True)
        await trio.sleep(1)
        assert one.user.told[-1] == "resumed"
        assert one.keeper.link is not None
        one.keeper.link.close()
        await trio.sleep(30)
        assert one.keeper.finished.is_set()
        assert [type(message) for heard in one.edge.heard for message in heard] == [Hello, Resume]

    await bench(test)


async def test_a_retired_keeper_that_the_edge_does_not_know_ends(autojump_clock: MockClock) -> None:
    def answer(message: Message) -> Message | None:
        return Reject(Code.UNKNOWN_LINK, "no") if isinstance(message, Resume) else welcome(message)

    async def test(one: Bench) -> None:
        one.keeper.retire()
        one.edge.far[0].close(abort=True)
        await trio.sleep(30)
        assert one.keeper.finished.is_set()
        assert len(one.edge.heard) == 2

    await bench(test, answer)


@pytest.mark.parametrize("error", [EdgeUntrusted("a wrong certificate"), VersionMismatch("426")])
async def test_what_is_final_at_first_may_pass_later(
    autojump_clock: MockClock, error: NetboreError, caplog: pytest.LogCaptureFixture
) -> None:
    async def at_first(one: Bench) -> None:
        assert one.error is error

    async def later(one: Bench) -> None:
        one.edge.failing = error
        one.edge.far[0].close(abort=True)
        await trio.sleep(60)
        assert one.error is None
        assert str(error) in caplog.text
        one.edge.failing = None
        await trio.sleep(30)
        assert one.user.told[-1] == "resumed"

    await bench(at_first, failing=error)
    await bench(later)


@pytest.mark.parametrize("patient", [True, False])
async def test_an_edge_that_is_not_there_at_first(autojump_clock: MockClock, patient: bool) -> None:
    async def test(one: Bench) -> None:
        one.edge.failing = None
        await trio.sleep(60)
        assert (type(one.error) if one.error else None) is (None if patient else EdgeUnreachable)
        assert one.keeper.live == patient

    await bench(test, patient=patient, failing=TransportBroken("refused", "nobody there"))


async def test_a_final_rejection_is_raised(autojump_clock: MockClock) -> None:
    async def test(one: Bench) -> None:
        assert isinstance(one.error, Unauthorized)
        assert str(one.error) == "no such token"
        assert len(one.edge.heard) == 1

    await bench(test, lambda message: Reject(Code.UNAUTHORIZED, "no such token"))


async def test_a_silent_edge_is_tried_again(autojump_clock: MockClock) -> None:
    async def test(one: Bench) -> None:
        await trio.sleep(25)
        assert one.user.told[0] == "the Edge did not answer in time"
        assert len(one.edge.heard) > 1

    await bench(test, lambda message: None)


async def test_an_answer_that_was_not_asked_for(autojump_clock: MockClock) -> None:
    async def test(one: Bench) -> None:
        assert "broke the protocol" in one.user.told[0]

    await bench(test, lambda message: Resumed(1, 0))
