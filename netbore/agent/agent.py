"""An Agent: one connection to an Edge and the Tunnels on it. `netbore.connect` is its door.

Theory of operation. The Agent is the user of its connector. Each Tunnel has a handle, which is ready for Streams before
BIND is sent; after a new Link each Tunnel is bound again under the same handle, by its recreate token. A Stream goes by
its handle to its Tunnel, which hands it to a synchronous handler (`forward`) or to whoever waits in `accept`.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from netbore.agent.carrier import trust, wss_dial
from netbore.agent.connect import ConnectLimits, Connector, Dial, Identity
from netbore.agent.host_relay import serve
from netbore.agent.targets import Dialler, HostAddress
from netbore.config import parse_edge_url
from netbore.errors import BindRefused, NameTaken, NetboreError, Replaced, TunnelClosed
from netbore.link.link import Link
from netbore.link.poller import Poller, open_poller
from netbore.link.stream import StreamAdapter
from netbore.proto.handshake import Credential, Limits, Welcome
from netbore.proto.mux_stream import MuxStream
from netbore.proto.session import Ended
from netbore.proto.wire import MAX_UNANSWERED, Code

log = logging.getLogger("netbore.agent")

USER_AGENT = "netbore/0.1.0"


@attrs.frozen
class TunnelOptions:
    """What a Tunnel is to be. `name` None lets the Edge choose; `recreate_token` gets an earlier name back."""

    name: str | None = None
    recreate_token: str | None = attrs.field(default=None, repr=False)
    host_header: str = "keep"
    target: str = ""
    pool: bool = True
    mode: str = "crash"


class Tunnel(trio.abc.Listener[StreamAdapter]):
    """One public name, served from here. A Trio Listener of the Streams that Viewers cause; each carries one HTTP/1.1 connection.

    `public_url`, `name`, `hostname` and `id` are the Edge's answer and stay as they are through reconnects.
    """

    def __init__(self, agent: Agent, handle: int, options: TunnelOptions) -> None:
        self._agent = agent
        self.handle = handle
        self.options = options
        self.id = ""
        self.name = options.name or ""
        self.hostname = ""
        self.public_url = ""
        self.recreate_token = options.recreate_token
        self.error: NetboreError | None = None
        self._on_stream: Callable[[MuxStream], None] | None = None
        self._arrived: deque[MuxStream] = deque()
        self._changed = trio.Event()

    async def accept(self) -> StreamAdapter:
        """The next Stream. A checkpoint; cancelling it loses no Stream.

        Raises trio.ClosedResourceError once the Tunnel is closed; `error` then says why if it was not closed here.
        """
        await trio.lowlevel.checkpoint()
        while not self._arrived:
            if self.error is not None:
                raise trio.ClosedResourceError(str(self.error)) from self.error
            self._changed = trio.Event()
            await self._changed.wait()
        return StreamAdapter(self._arrived.popleft())

    async def forward(self, target: str | int) -> None:
        """Serve the Tunnel from a Host: PORT, HOST:PORT or URL. Returns only by cancellation or by an error.

        Raises ConfigError for a target that is none, TunnelClosed or another NetboreError when the Tunnel ends.
        """
        address = HostAddress.parse(str(target))
        async with trio.open_nursery() as nursery:
            dialler = Dialler(self._agent.poller, nursery, address)
            self._on_stream = lambda stream: serve(self._agent.poller, dialler, stream)
            while self._arrived:
                self._on_stream(self._arrived.popleft())
            try:
                await self.wait_closed()
            finally:
                self._on_stream = None

    async def wait_closed(self) -> None:
        """Wait until the Tunnel ends. Raises its error."""
        while self.error is None:
            self._changed = trio.Event()
            await self._changed.wait()
        raise self.error

    async def aclose(self) -> None:
        """Give the Tunnel up: the Edge is told, Streams come to their end, the name stays ours. A checkpoint."""
        if self.error is None:
            self._agent.unbind(self)
            self.end(TunnelClosed("the tunnel was closed"))
        await trio.lowlevel.checkpoint()

    # The Agent's side

    def arrived(self, stream: MuxStream) -> None:
        """The peer opened a Stream for this Tunnel."""
        if self._on_stream is not None:
            self._on_stream(stream)
        else:
            self._arrived.append(stream)
            self._wake()

    def end(self, error: NetboreError) -> None:
        """The Tunnel is over."""
        if self.error is None:
            self.error = error
            while self._arrived:
                self._arrived.popleft().reset(Code.NOT_PROCESSED)
            self._wake()

    def bound(self, message: dict[str, Any]) -> None:
        """The Edge's answer to BIND."""
        self.id = str(message.get("tunnel", ""))
        self.name = str(message.get("name", ""))
        self.hostname = str(message.get("hostname", ""))
        self.public_url = str(message.get("public_url", ""))
        self.recreate_token = str(message.get("recreate_token", ""))

    def lose_streams(self) -> None:
        """The Link is over: Streams that nobody accepted are gone."""
        self._arrived.clear()

    def _wake(self) -> None:
        self._changed.set()


class Agent:
    """A connection to an Edge. Made by `connect`; the user of its connector."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.on_event: Callable[[str, dict[str, Any]], None] | None = None
        self._tunnels: dict[int, Tunnel] = {}
        self._handles = 0
        self._requests: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._numbers = 0
        self._link: Link | None = None
        self._linked = trio.Event()
        self._slots = trio.CapacityLimiter(MAX_UNANSWERED)
        self.connector: Connector | None = None
        self.error: NetboreError | None = None

    @property
    def link(self) -> Link | None:
        """The present Link, or None before the first one."""
        return self._link

    async def open_tunnel(
        self,
        name: str | None = None,
        *,
        recreate_token: str | None = None,
        host_header: str = "keep",
        target: str = "",
        pool: bool = True,
        mode: str = "crash",
    ) -> Tunnel:
        """Create and bind a Tunnel: it can be reached when this returns.

        `host_header` is "keep", "target" or a value that the Edge puts into requests. Raises NameTaken, BindRefused,
        and NetboreError when the Agent's connection is over for good. Cancelling it gives the Tunnel up.
        """
        self._handles += 1
        options = TunnelOptions(name, recreate_token, host_header, target, pool, mode)
        tunnel = Tunnel(self, self._handles, options)
        self._tunnels[tunnel.handle] = tunnel
        try:
            async with self._slots:
                message = await self._request(self._bind_message(tunnel))
        except BaseException:
            self._tunnels.pop(tunnel.handle, None)
            self.unbind(tunnel)
            raise
        tunnel.bound(message)
        return tunnel

    async def drain(self) -> None:
        """Accept no more Streams and wait until those that are open have ended. Cancel it to stop waiting. A checkpoint."""
        link = self._link
        await trio.lowlevel.checkpoint()
        if link is None or link.ended is not None:
            return
        link.session.mux.goaway()
        for tunnel in list(self._tunnels.values()):
            link.send_message({"type": "unbind", "id": self._number(), "handle": tunnel.handle})
        await link.drained()

    def unbind(self, tunnel: Tunnel) -> None:
        """Tell the Edge that a Tunnel is served from here no more."""
        self._tunnels.pop(tunnel.handle, None)
        if self._link is not None and self._link.ended is None:
            self._link.send_message({"type": "unbind", "id": self._number(), "handle": tunnel.handle})

    # Requests

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _bind_message(self, tunnel: Tunnel) -> dict[str, Any]:
        options = tunnel.options
        message: dict[str, Any] = {
            "type": "bind",
            "handle": tunnel.handle,
            "kind": "http",
            "mode": options.mode,
            "host_header": options.host_header,
            "target": options.target,
            "pool": options.pool,
        }
        if tunnel.name:
            message["name"] = tunnel.name
        if tunnel.recreate_token:
            message["credential"] = Credential("recreate", tunnel.recreate_token).to_json()
        return message

    async def _request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Ask the Edge, again on each new Link until there is an answer. Raises BindRefused, or the Agent's final error."""
        while True:
            link = await self._wait_linked()
            answer: dict[str, Any] | None = None
            done = trio.Event()

            def answered(reply: dict[str, Any] | None, done: trio.Event = done) -> None:
                nonlocal answer
                answer = reply
                done.set()

            number = self._number()
            self._requests[number] = answered
            try:
                link.send_message({**message, "id": number})
                await done.wait()
            finally:
                self._requests.pop(number, None)
            if answer is not None:
                return _accepted(answer)

    async def _wait_linked(self) -> Link:
        while self._link is None or self._link.ended is not None:
            if self.error is not None:
                raise self.error
            self._linked = trio.Event()
            await self._linked.wait()
        return self._link

    # The connector's user

    def on_link(self, link: Link, welcome: Welcome) -> None:
        self._link = link
        link.on_stream = self._on_stream
        for tunnel in list(self._tunnels.values()):
            if tunnel.id:
                self._rebind(link, tunnel)
        self._linked.set()
        self._tell("connected", link=welcome.link, edge=welcome.edge)

    def _rebind(self, link: Link, tunnel: Tunnel) -> None:
        number = self._number()

        def answered(reply: dict[str, Any] | None) -> None:
            self._requests.pop(number, None)
            if reply is None:
                return
            try:
                tunnel.bound(_accepted(reply))
            except NetboreError as error:
                self._end(tunnel, error)

        self._requests[number] = answered
        link.send_message({**self._bind_message(tunnel), "id": number})

    def on_resumed(self, link: Link) -> None:
        self._tell("resumed")

    def on_reconnecting(self, reason: str, wait: float) -> None:
        self._tell("reconnecting", reason=reason, wait=wait)

    def on_message(self, link: Link, message: dict[str, Any]) -> None:
        match message.get("type"):
            case "bound" | "refused":
                answered = self._requests.get(message.get("id", 0))
                if answered is not None:
                    answered(message)
            case "unbound" if "id" not in message:
                self._unbound(message)
            case _:
                pass

    def _unbound(self, message: dict[str, Any]) -> None:
        tunnel = self._tunnels.get(message.get("handle", 0))
        if tunnel is not None:
            text = str(message.get("text", ""))
            self._end(tunnel, Replaced(text) if message.get("code") == "replaced" else TunnelClosed(text))

    def on_link_ended(self, link: Link, ended: Ended) -> None:
        requests, self._requests = self._requests, {}
        for answered in requests.values():
            answered(None)  # type: ignore[arg-type]
        for tunnel in self._tunnels.values():
            tunnel.lose_streams()

    # Inside

    def _on_stream(self, stream: MuxStream) -> None:
        tunnel = self._tunnels.get(stream.handle)
        if tunnel is None:
            stream.reset(Code.NOT_PROCESSED)
            stream.release()
        else:
            tunnel.arrived(stream)

    def _end(self, tunnel: Tunnel, error: NetboreError) -> None:
        self._tunnels.pop(tunnel.handle, None)
        tunnel.end(error)

    def fail(self, error: NetboreError) -> None:
        """The connection is over for good."""
        self.error = error
        for tunnel in list(self._tunnels.values()):
            self._end(tunnel, error)
        self._linked.set()

    def _tell(self, kind: str, **fields: Any) -> None:
        if self.on_event is not None:
            self.on_event(kind, fields)


def _accepted(message: dict[str, Any]) -> dict[str, Any]:
    """`message`, unless it is a refusal: then its error is raised."""
    if message.get("type") == "refused":
        code, text = str(message.get("code")), str(message.get("text"))
        raise (NameTaken if code == "name_taken" else BindRefused)(code, text)
    return message


@asynccontextmanager
async def run_agent(
    poller: Poller,
    dial: Dial,
    credential: Credential,
    *,
    agent: str,
    instance: str | None = None,
    limits: Limits | None = None,
    connect_limits: ConnectLimits | None = None,
    jitter: Callable[[], float] = random.random,
    patient: bool = True,
) -> AsyncIterator[Agent]:
    """An Agent on a Poller of the caller's, dialling by `dial`. Leaving the block ends its Link at once."""
    identity = Identity(credential, instance or secrets.token_hex(16), agent, limits or Limits())
    one = Agent(poller)
    one.connector = connector = Connector(poller, dial, identity, one, jitter=jitter, limits=connect_limits, patient=patient)

    async def keep() -> None:
        try:
            await connector.run()
        except NetboreError as error:
            one.fail(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        try:
            yield one
        finally:
            connector.close(Code.GOING_AWAY, "the Agent stops")
            nursery.cancel_scope.cancel()


#: Kinds of credentials by the beginning of a token.
_KINDS = {"nbr_": "recreate", "nbe_": "ephemeral", "nbm_": "management"}


def credential_of(token: str) -> Credential:
    """The typed credential that a token's text stands for; one without a known prefix is the operator's."""
    return Credential(_KINDS.get(token[:4], "operator"), token)


@asynccontextmanager
async def connect(edge: str, *, token: str, ca_file: str | Path | None = None, patient: bool = True) -> AsyncIterator[Agent]:
    """Connect to the Edge at a URL and keep the connection, for as long as the block lasts.

        async with netbore.connect("https://tunnel.example.com", token=...) as agent:
            tunnel = await agent.open_tunnel("demo")

    `token` is the operator's, an ephemeral or a recreate token. `ca_file` is trusted in place of the system's
    authorities. Entering does not wait for the Edge; `open_tunnel` does. Without `patient`, an Edge that cannot be
    reached at first is an error and not waited for. Raises ConfigError for a wrong URL or file. Leaving the block ends
    everything that was opened in it, at once.
    """
    url = parse_edge_url(edge)
    context = await trio.to_thread.run_sync(trust, Path(ca_file) if ca_file is not None else None)
    async with open_poller() as poller:
        dial = wss_dial(poller, url, context)
        async with run_agent(poller, dial, credential_of(token), agent=USER_AGENT, patient=patient) as agent:
            yield agent
