"""A bare Agent that says to the Edge's door exactly what a test wants, and hears what the Edge answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import trio

from netbore.changes import Changed
from netbore.edge.agents import AgentLink
from netbore.edge.config import EdgeConfig, EdgeLimits
from netbore.edge.door import DoorLimits
from netbore.link.greeting import Greeting
from netbore.link.link import Link
from netbore.link.simulated import SimulatedTransport
from netbore.proto.handshake import Credential, Hello, Limits, Message, Reject, Resume, Resumed, Welcome, proof
from netbore.proto.mux import Role
from netbore.proto.session import Ended
from netbore.proto.wire import MINOR
from netbore.testing import DOMAIN, World

INSTANCE = "a" * 32
OTHER = "b" * 32


def config(tmp_path: Path, **door: Any) -> EdgeConfig:
    """An Edge with these limits of the door; `budget` is the Edge's own."""
    budget = door.pop("budget", EdgeLimits().budget)
    limits = EdgeLimits(budget=budget, door=DoorLimits(**door))
    return EdgeConfig(state_dir=tmp_path, domain=DOMAIN, limits=limits)


@attrs.define(eq=False)
class BareAgent:
    """One instance and its Link. The user of the Link: it notes what happens, and answers nothing."""

    world: World
    instance: str = INSTANCE
    link: Link | None = None
    welcome: Welcome | None = None
    greeting: Greeting | None = None
    epoch: int = 0
    messages: list[dict[str, Any]] = attrs.field(factory=list)
    changed: Changed = attrs.field(factory=Changed)
    ended: Ended | None = None

    # Handshakes

    async def dial(self) -> SimulatedTransport:
        """A new transport for the next handshake."""
        transport = await self.world.dial_edge()
        self.greeting = Greeting(transport, dialler=True)
        return transport

    async def ask(self, message: Message, *, dial: bool = True) -> Message:
        """The Edge's answer."""
        if dial or self.greeting is None:
            await self.dial()
        assert self.greeting is not None
        await self.greeting.say(message)
        return await self.greeting.hear()

    def hello(self, credential: Credential | None = None, **members: Any) -> Hello:
        credential = credential or Credential("operator", self.world.state.operator_token)
        return Hello(minor=MINOR, credential=credential, instance=self.instance, agent="bare", limits=Limits(16), **members)

    async def connect(self, credential: Credential | None = None, **members: Any) -> BareAgent:
        """Have a Link."""
        answer = await self.ask(self.hello(credential, **members))
        assert isinstance(answer, Welcome), answer
        assert self.greeting is not None
        self.welcome, self.epoch = answer, 0
        self.link = Link(self.world.poller, Role.DIALLER, Limits(16), answer.limits, self, name=answer.link)
        self.link.attach(self.greeting.transport, 0, self.greeting.decoder)
        return self

    def resume_of(self, *, epoch: int | None = None, received: int | None = None) -> Resume:
        """A RESUME of the Link, with the next epoch and the true offset unless told otherwise. Fences first."""
        welcome, link = self.welcome, self.link
        assert welcome is not None
        assert link is not None
        link.detach("a test resumes")
        self.epoch = self.epoch + 1 if epoch is None else epoch
        offset = link.session.pipe.received if received is None else received
        return Resume(welcome.link, self.epoch, offset, proof(welcome.secret, welcome.edge, welcome.link, self.epoch, offset))

    async def resume(self, **members: Any) -> None:
        """Go on over a new transport."""
        self.go_on(await self.ask(self.resume_of(**members)))

    def go_on(self, answer: Message) -> None:
        """Take what RESUME was answered with."""
        assert isinstance(answer, Resumed), answer
        assert self.link is not None
        assert self.greeting is not None
        self.link.attach(self.greeting.transport, answer.received, self.greeting.decoder)

    # The control stream

    def send(self, **message: Any) -> None:
        assert self.link is not None
        self.link.send_message(message)

    def bind(self, number: int, name: str | None = None, *, handle: int | None = None, token: str = "", **members: Any) -> None:
        """Ask for a Tunnel; the handle is the number unless told otherwise."""
        if name is not None:
            members["name"] = name
        if token:
            members["credential"] = {"type": "recreate", "token": token}
        self.send(type="bind", id=number, handle=number if handle is None else handle, **members)

    async def bound(self, number: int, name: str | None = None, **members: Any) -> dict[str, Any]:
        """Have a Tunnel; what the Edge said of it."""
        self.bind(number, name, **members)
        answer = await self.answer(number)
        assert answer["type"] == "bound", answer
        return answer

    async def answer(self, number: int) -> dict[str, Any]:
        """The answer to a request, as soon as it is there."""
        with trio.fail_after(20):
            while not (found := [message for message in self.messages if message.get("id") == number]):
                await self.changed.wait()
        return found[0]

    def kinds(self) -> list[tuple[str, Any]]:
        """What came on the control stream: types, with ids or handles."""
        return [(message["type"], message.get("id", message.get("handle"))) for message in self.messages]

    # The user of the Link

    def on_message(self, link: Link, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self.changed.set()

    def on_broken(self, link: Link, reason: str) -> None:
        pass

    def on_move(self, link: Link, spread: float) -> None:
        pass

    def on_open_allowed(self, link: Link) -> None:
        pass

    def on_ended(self, link: Link, ended: Ended) -> None:
        self.ended = ended

    # The Edge's side

    @property
    def at_edge(self) -> AgentLink:
        """Its Link, as the Edge has it."""
        assert self.welcome is not None
        return self.world.core.door.links[self.welcome.link]


def code(message: Message) -> int:
    """That of a REJECT."""
    assert isinstance(message, Reject), message
    return message.code
