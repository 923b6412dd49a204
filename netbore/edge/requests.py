"""What one Agent asks for on the control stream, answered in order.

Theory of operation. The requests of a Link wait in one queue and are answered by one task, one after another: an `unbind` that
follows its `bind` finds it done, whatever the Registry takes its time for. What the Edge itself has to give back (a Tunnel
that was revoked) goes through the same queue, so that a later `bind` of the same handle comes after it. Every message with an
id counts as a request until its answer is queued; MAX_UNANSWERED may wait.

The task is cancelled when the Link ends; only then is `Tunnels.release_link` called, by `AgentLink.serve`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import trio

from netbore.edge.authority import Authority, Grant, Unauthorized
from netbore.edge.publisher import Publisher
from netbore.edge.tunnels import BindRequest, Bound, Refused, Tunnels
from netbore.proto.errors import RemoteProtocolError
from netbore.proto.handshake import Credential
from netbore.proto.wire import MAX_ID, MAX_OFFSET, MAX_UNANSWERED, Code
from netbore.tasks import isolated

if TYPE_CHECKING:
    from netbore.edge.agents import AgentLink

Message: TypeAlias = dict[str, Any]
Job: TypeAlias = Callable[[], Awaitable[object]]

_BIND_TYPES: Final = {
    "handle": int,
    "name": str,
    "kind": str,
    "mode": str,
    "host_header": str,
    "target": str,
    "pool": bool,
    "epoch": int,
}


class Requests:
    """The requests of one Agent's Link."""

    def __init__(self, agent: AgentLink, authority: Authority, tunnels: Tunnels, publisher: Publisher) -> None:
        self._agent = agent
        self._authority = authority
        self._tunnels = tunnels
        self._publisher = publisher
        self._unanswered = 0
        self._put, self._jobs = trio.open_memory_channel[Job](inf)  # bounded by MAX_UNANSWERED and by what is bound
        self._answers: dict[str, Callable[[int, Message], Awaitable[None]]] = {"bind": self._bind, "unbind": self._unbind}

    def take(self, message: Message) -> None:
        """A message came. What breaks the protocol ends the Link."""
        link, number = self._agent.link, message.get("id")
        if type(number) is not int or not 0 <= number <= MAX_ID:
            if message.get("type") in self._answers:
                link.close(Code.PROTOCOL_ERROR, "a request without a proper id")
            return
        self._unanswered += 1
        if self._unanswered > MAX_UNANSWERED:
            link.close(Code.LIMIT_EXCEEDED, "too many unanswered requests")
            return
        self._put.send_nowait(partial(self._answer, number, message))

    def release(self, handle: int) -> None:
        """Give back what stood behind `handle`, after what was asked for before."""
        self._put.send_nowait(partial(self._tunnels.release, self._agent.id, handle))

    async def run(self) -> None:
        """Answer until cancelled. A bug, or a service that fails, ends the Link: its state is not known then."""
        async for job in self._jobs:
            await isolated(job, failed=self._crashed)

    def _crashed(self, error: Exception) -> None:
        self._agent.link.close(Code.INTERNAL_ERROR, "internal error")

    # Answers

    async def _answer(self, number: int, message: Message) -> None:
        try:
            await self._answer_for(message)(number, message)
        except Refused as error:
            self._say({"type": "refused", "id": number, "code": error.code.name.lower(), "text": error.text})
        except RemoteProtocolError as error:
            self._agent.link.close(error.code, error.text)
        finally:
            self._unanswered -= 1

    def _answer_for(self, message: Message) -> Callable[[int, Message], Awaitable[None]]:
        answer = self._answers.get(str(message.get("type")))
        if answer is None or any(name.endswith("!") for name in message):
            raise Refused(Code.UNSUPPORTED, "this Edge does not know such a message")
        return answer

    def _say(self, message: Message) -> None:
        if self._agent.link.ended is None:
            self._agent.link.send_message(message)

    async def _bind(self, number: int, message: Message) -> None:
        agent, request = self._agent, read_bind(message)
        if request.handle in agent.bound:
            raise Refused(Code.HANDLE_TAKEN, "the handle is in use on this Link")
        own = await self._own_grants(message)
        bound = await self._tunnels.bind([*agent.grants, *own], agent.hello.instance, agent.id, request)
        if agent.link.ended is not None:
            return  # what the Registry granted goes with the Link
        agent.bind(request.handle, bound, by_hello=not own)
        self._publisher.publish(agent, request.handle, bound.tunnel, crash=request.mode == "crash")
        self._say(_bound(number, request.handle, bound))
        agent.watch_binding(request.handle, own)  # the last thing: a grant may be revoked by now, and is then told of at once

    async def _own_grants(self, message: Message) -> list[Grant]:
        """What the credential in the message itself allows. A wrong one is refused, and harms nothing else."""
        if message.get("credential") is None:
            return []
        credential = Credential.from_json(message["credential"])
        try:
            return [await self._authority.check(credential, self._agent.hello.instance)]
        except Unauthorized as error:
            raise Refused(Code.UNAUTHORIZED, str(error)) from error

    async def _unbind(self, number: int, message: Message) -> None:
        agent, handle = self._agent, message.get("handle")
        if type(handle) is not int or handle not in agent.bound:
            raise Refused(Code.UNSUPPORTED, "the handle is not bound on this Link")
        agent.unbind(handle)
        self._publisher.withdraw(agent, handle)
        await self._tunnels.release(agent.id, handle)
        self._say({"type": "unbound", "id": number, "handle": handle, "code": "no_error", "text": ""})


def _bound(number: int, handle: int, bound: Bound) -> Message:
    return {
        "type": "bound",
        "id": number,
        "handle": handle,
        "tunnel": bound.tunnel.id,
        "name": bound.tunnel.name,
        "hostname": bound.tunnel.hostname,
        "public_url": bound.public_url,
        "recreate_token": bound.recreate_token,
        "epoch": bound.claim.epoch,
    }


def read_bind(message: Message) -> BindRequest:
    """The members of a `bind`, typed. What they say is for the Tunnels service to judge. Raises RemoteProtocolError."""
    values: dict[str, Any] = {}
    for field in attrs.fields(BindRequest):
        value = message.get(field.name)
        if value is None and field.default is not attrs.NOTHING:
            continue
        if type(value) is not _BIND_TYPES[field.name]:
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, f"bind: {field.name} is not a {_BIND_TYPES[field.name].__name__}")
        values[field.name] = value
    if not 0 <= values.get("epoch", 0) <= MAX_OFFSET:
        raise RemoteProtocolError(Code.PROTOCOL_ERROR, "bind: epoch is no epoch")
    return BindRequest(**values)
