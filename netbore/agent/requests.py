"""What an Agent asks of the Edge over one Link, and what it has bound there.

Theory of operation. `Requests` is one queue: at most MAX_UNANSWERED messages are under way, the others wait for an answer to
make room, whatever they ask for. `Bindings` stands on it and knows of each handle whether its bind waits, is under way, or
was granted; so giving a handle up is always right: a bind that waits is taken back, one under way is undone by its answer.
Both end with their Link. Nothing here is asynchronous but waiting for the queue to be empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from netbore.changes import Changed
from netbore.link.link import Link
from netbore.proto.wire import MAX_UNANSWERED

Message = dict[str, Any]
#: Called with the answer to a request; with None when the Link ended before it.
Answered = Callable[[Message | None], None]


class Request:
    """One question."""

    __slots__ = ("answered", "message")

    def __init__(self, message: Message, answered: Answered) -> None:
        self.message = message
        self.answered = answered


def ignore(answer: Message | None) -> None:
    """For requests whose answer does not matter."""


class Requests:
    """The queue of one Link. `send(message)` queues a control message."""

    def __init__(self, send: Callable[[Message], None], most: int = MAX_UNANSWERED) -> None:
        self._send = send
        self._most = most
        self._numbers = 0
        self._waiting: deque[Request] = deque()
        self._under_way: dict[int, Request] = {}
        self._changed = Changed()

    def ask(self, message: Message, answered: Answered) -> Request:
        """Send `message` with a number of its own as soon as there is room."""
        request = Request(message, answered)
        self._waiting.append(request)
        self._go_on()
        return request

    def take_back(self, request: Request) -> bool:
        """Whether `request` was still waiting: then it is never sent, and its `answered` not called."""
        if request not in self._waiting:
            return False
        self._waiting.remove(request)
        self._changed.set()
        return True

    def receive(self, message: Message) -> None:
        """The Edge answered. An answer that nobody waits for is ignored."""
        number = message.get("id")
        request = self._under_way.pop(number, None) if type(number) is int else None
        if request is not None:
            request.answered(message)
            self._go_on()

    def end(self) -> None:
        """The Link is over: nobody will answer."""
        left = [*self._under_way.values(), *self._waiting]
        self._under_way.clear()
        self._waiting.clear()
        self._changed.set()
        for request in left:
            request.answered(None)

    async def settled(self) -> None:
        """Wait until everything was answered, or the Link has ended. Checkpoints only if it has to wait."""
        while self._waiting or self._under_way:
            await self._changed.wait()

    def _go_on(self) -> None:
        while self._waiting and len(self._under_way) < self._most:
            request = self._waiting.popleft()
            self._numbers += 1
            self._under_way[self._numbers] = request
            self._send({**request.message, "id": self._numbers})
        self._changed.set()


class Bindings:
    """The handles of one Link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._requests = Requests(link.send_message)
        self._asked: dict[int, Request] = {}
        self._bound: set[int] = set()

    def bind(self, handle: int, message: Message, answered: Answered) -> None:
        """Ask for a Tunnel at `handle`. `answered` is not called when the handle was given up meanwhile."""
        self._asked[handle] = self._requests.ask(message, partial(self._answered, handle, answered))

    def unbind(self, handle: int) -> None:
        """Give `handle` up, however far its bind has come. Idempotent."""
        request = self._asked.pop(handle, None)
        if request is not None:
            self._requests.take_back(request)
        elif handle in self._bound:
            self._bound.discard(handle)
            self._requests.ask({"type": "unbind", "handle": handle}, ignore)

    def taken(self, handle: int) -> None:
        """The Edge took `handle` away by itself."""
        self._bound.discard(handle)

    def receive(self, message: Message) -> None:
        """An answer of the Edge."""
        self._requests.receive(message)

    def end(self) -> None:
        """The Link is over."""
        self._requests.end()

    async def settled(self) -> None:
        """Wait until the Edge has answered everything."""
        await self._requests.settled()

    def _answered(self, handle: int, answered: Answered, answer: Message | None) -> None:
        wanted = self._asked.pop(handle, None) is not None
        if answer is not None and answer.get("type") == "bound":
            self._bound.add(handle)
        if wanted:
            answered(answer)
        else:
            self.unbind(handle)
