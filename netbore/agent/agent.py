"""An Agent: a connection to an Edge and the Tunnels on it. `netbore.connect` is its door.

Theory of operation. The Agent is the user of its *keepers*, each of which keeps one Link. There is one, but when the Edge asks
to move: then that one is retired, and a second is started. A Link that the Edge moved away from goes on with what it carries
until the Edge closes it.

Each Tunnel has a handle, the same on every Link, which is ready for Streams before BIND is sent. A new Link has every Tunnel
bound on it, by its recreate token. What is asked for on a Link, and what it has bound, is in its `Bindings`. A Stream goes by
its handle to its Tunnel, whichever Link it came over.

Everything here but `run` and what waits is synchronous, and called from the Poller's turn.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from netbore.agent.carrier import edge_dial, trust
from netbore.agent.connect import ConnectLimits, Dial, Identity, Way
from netbore.agent.keeper import Keeper
from netbore.agent.requests import Bindings
from netbore.agent.targets import Dialler, HostAddress
from netbore.agent.tunnel import Tunnel, TunnelOptions, ending, give_back, refusal
from netbore.changes import Changed
from netbore.config import parse_edge_url
from netbore.errors import NetboreError, TunnelClosed
from netbore.link.link import Link
from netbore.link.poller import Poller, open_poller
from netbore.proto.handshake import Credential, Limits, Welcome
from netbore.proto.mux_stream import MuxStream
from netbore.proto.session import Ended
from netbore.proto.wire import Code
from netbore.tasks import ungrouped

__all__ = ["Agent", "Tunnel", "TunnelOptions", "connect", "credential_of", "run_agent"]

log = logging.getLogger("netbore.agent")

USER_AGENT: Final = "netbore/0.1.0"

#: Makes what dials the Host of a Tunnel; names are looked up in the nursery.
NewDialler = Callable[[Poller, trio.Nursery, HostAddress], Dialler]

#: Links at once. An Edge that asks to move again while so many are still open is not followed.
MAX_LINKS: Final = 4


class Agent:
    """A connection to an Edge. Made by `connect`; the user of its keepers.

    `error` says why the connection is over for good, None while it is not. `on_event(kind, fields)` may be set to hear of
    "connected", "resumed", "reconnecting", "moving" and "bound".
    """

    def __init__(self, poller: Poller, way: Way, new_dialler: NewDialler = Dialler) -> None:
        self.poller = poller
        self.new_dialler = new_dialler
        self.on_event: Callable[[str, dict[str, Any]], None] | None = None
        self.error: NetboreError | None = None
        self.draining = False
        self._way = way
        self._tunnels: dict[int, Tunnel] = {}
        self._handles = 0
        #: Tunnels that were never bound, and the Link that was asked.
        self._opening: dict[Tunnel, Bindings] = {}
        self._bindings: dict[Keeper, Bindings] = {}
        #: Newest last. Each is started by `run`, after the other has ended or so many seconds.
        self._keepers: list[Keeper] = [Keeper(poller, way, self)]
        self._starting: deque[tuple[Keeper, Keeper | None, float]] = deque([(self._keepers[0], None, 0.0)])
        self._changed = Changed()
        self._failure: NetboreError = TunnelClosed("the Agent has left the Edge")

    @property
    def link(self) -> Link | None:
        """The newest Link, or None before the first one."""
        return next((keeper.link for keeper in reversed(self._keepers) if keeper.link is not None), None)

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

        `host_header` is "keep", "target" or a value that the Edge puts into requests. `mode` says what becomes of the Streams
        of another Agent that `recreate_token` takes the name from: "crash" resets them, "handover" lets them end. Raises
        NameTaken, BindRefused, and NetboreError when the Agent's connection is over for good. A checkpoint; cancelling it
        gives the Tunnel up.
        """
        if self.error is not None or self.draining:
            await trio.lowlevel.checkpoint()
            raise self.error or NetboreError("the Agent drains and opens no more tunnels")
        self._handles += 1
        tunnel = Tunnel(self, self._handles, TunnelOptions(name, recreate_token, host_header, target, pool, mode))
        self._tunnels[tunnel.handle] = tunnel
        bindings = self._newest()
        if bindings is not None:
            self._bind(bindings, tunnel)
        try:
            await tunnel.opened()
        except BaseException:
            self.give_up(tunnel)
            raise
        return tunnel

    async def drain(self) -> None:
        """Give all Tunnels up, and wait until the Streams that are open have ended and what was sent has arrived.

        Nothing else is made or taken afterwards: leave the block. A Link that is broken is waited for. A checkpoint; cancel it
        to stop waiting.
        """
        await trio.lowlevel.checkpoint()
        self.draining = True
        for keeper in self._keepers:
            keeper.retire()
        async with trio.open_nursery() as nursery:
            for bindings in self._bindings.values():
                nursery.start_soon(self._drain_link, bindings)

    async def _drain_link(self, bindings: Bindings) -> None:
        # Unbound first: the Edge then sends nothing more that GOAWAY would have to refuse.
        for handle in list(self._tunnels):
            bindings.unbind(handle)
        await bindings.settled()
        if bindings.link.ended is None:
            bindings.link.session.mux.goaway()
        await bindings.link.drained()

    # The Tunnels' side

    def give_up(self, tunnel: Tunnel) -> None:
        """A Tunnel is served from here no more: the Edge is told. Idempotent."""
        self._tunnels.pop(tunnel.handle, None)
        self._opening.pop(tunnel, None)
        for bindings in self._bindings.values():
            bindings.unbind(tunnel.handle)

    async def drained(self, tunnel: Tunnel) -> None:
        """Wait until no Stream of `tunnel` is left on any Link. Checkpoints only if there is a Link."""
        for bindings in list(self._bindings.values()):
            await bindings.link.drained(tunnel.handle)

    # Binding

    def _newest(self) -> Bindings | None:
        """Those of the newest Link that has not ended."""
        return next((self._bindings[keeper] for keeper in reversed(self._keepers) if keeper in self._bindings), None)

    def _bind(self, bindings: Bindings, tunnel: Tunnel) -> None:
        if not tunnel.id:
            self._opening[tunnel] = bindings
        bindings.bind(tunnel.handle, tunnel.bind_message(), partial(self._bound, bindings, tunnel))

    def _bound(self, bindings: Bindings, tunnel: Tunnel, answer: dict[str, Any] | None) -> None:
        """What came of a BIND; None when its Link ended before."""
        opening = self._opening.pop(tunnel, None) is not None
        if answer is not None and answer.get("type") == "bound":
            tunnel.bound(answer)
            self._tell("bound", name=tunnel.name)
        elif answer is not None and not self._bind_without_token(bindings, tunnel, answer):
            self._end(tunnel, refusal(answer))
        newest = self._newest()
        # A Link came, or went, while this one was asked: it left an unnamed Tunnel alone, lest it got two names.
        if opening and newest is not None and newest is not bindings and tunnel.error is None:
            self._bind(newest, tunnel)

    def _bind_without_token(self, bindings: Bindings, tunnel: Tunnel, answer: dict[str, Any]) -> bool:
        """Whether a Tunnel that was bound before may be so again without its token: the Edge may have lost the token's key."""
        if not (tunnel.id and tunnel.recreate_token and answer.get("code") == "unauthorized"):
            return False
        log.warning("the Edge takes the recreate token of %s no more; the name is asked for without it", tunnel.name)
        tunnel.recreate_token = None
        self._bind(bindings, tunnel)
        return True

    def _end(self, tunnel: Tunnel, error: NetboreError) -> None:
        self.give_up(tunnel)
        tunnel.end(error)

    # The keepers' user

    def keeps(self) -> tuple[str, ...]:
        return tuple(link for keeper in self._keepers if (link := keeper.link_id) is not None)

    def on_link(self, keeper: Keeper, link: Link, welcome: Welcome) -> None:
        link.on_stream = self._on_stream
        bindings = self._bindings[keeper] = Bindings(link)
        for tunnel in list(self._tunnels.values()):
            if tunnel not in self._opening:
                self._bind(bindings, tunnel)
        self._tell("connected", link=welcome.link, edge=welcome.edge)

    def on_resumed(self, keeper: Keeper) -> None:
        self._tell("resumed")

    def on_reconnecting(self, keeper: Keeper, reason: str, wait: float) -> None:
        self._tell("reconnecting", reason=reason, wait=wait)

    def on_message(self, keeper: Keeper, message: dict[str, Any]) -> None:
        bindings = self._bindings.get(keeper)
        if bindings is None:
            return
        match message.get("type"):
            case "unbound" if "id" not in message:
                self._unbound(keeper, bindings, message)
            case "bound" | "refused" | "unbound":
                bindings.receive(message)
            case _:
                pass

    def _unbound(self, keeper: Keeper, bindings: Bindings, message: dict[str, Any]) -> None:
        """The Edge took a Tunnel away. On a Link that it moved away from, that concerns this Link only."""
        handle = message.get("handle")
        tunnel = self._tunnels.get(handle) if type(handle) is int else None
        if tunnel is None:
            return
        bindings.taken(tunnel.handle)
        if not keeper.retired or self._keepers[-1] is keeper:
            self._end(tunnel, ending(message))

    def on_move(self, keeper: Keeper, spread: float) -> None:
        if keeper.retired:
            return
        if len(self._keepers) >= MAX_LINKS:
            log.warning("the Edge asks to move again while %d Links are still open: not followed", len(self._keepers))
            return
        keeper.retire()
        successor = Keeper(self.poller, self._way, self, proven=True)
        wait = self._way.jitter() * spread
        self._keepers.append(successor)
        self._starting.append((successor, keeper, wait))
        self._tell("moving", wait=wait)
        self._changed.set()

    def on_link_ended(self, keeper: Keeper, ended: Ended) -> None:
        bindings = self._bindings.pop(keeper, None)
        for tunnel in self._tunnels.values():
            tunnel.lose_streams()
        if bindings is not None:
            bindings.end()

    def _on_stream(self, stream: MuxStream) -> None:
        tunnel = self._tunnels.get(stream.handle)
        if tunnel is None:
            give_back(stream)
        else:
            tunnel.arrived(stream)

    # The keepers' tasks

    async def run(self) -> None:
        """Keep Links to the Edge until the last of them is over for good; `error` then says why. A checkpoint."""
        async with trio.open_nursery() as nursery:
            while self._keepers:
                while self._starting:
                    nursery.start_soon(self._keep, *self._starting.popleft())
                await self._changed.wait()
        self.fail(self._failure)

    async def _keep(self, keeper: Keeper, before: Keeper | None, wait: float) -> None:
        if before is not None:
            with trio.move_on_after(wait):
                await before.finished.wait()
        try:
            await keeper.run()
        except NetboreError as error:
            self._failure = error
            if len(self._keepers) > 1:
                log.warning("one of the Links to the Edge is over for good: %s", error)
        self._keepers.remove(keeper)
        self._changed.set()

    def close(self, code: Code, text: str) -> None:
        """End all Links at once."""
        for keeper in list(self._keepers):
            keeper.close(code, text)

    def fail(self, error: NetboreError) -> None:
        """The connection is over for good."""
        self.error = error
        for tunnel in list(self._tunnels.values()):
            self._end(tunnel, error)

    def _tell(self, kind: str, **fields: Any) -> None:
        if self.on_event is not None:
            self.on_event(kind, fields)


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
    new_dialler: NewDialler = Dialler,
) -> AsyncIterator[Agent]:
    """An Agent on a Poller of the caller's, dialling the Edge by `dial` and Hosts by what `new_dialler` makes.

    Leaving the block ends its Links at once. A NetboreError that leaves the block alone comes out as it is.
    """
    identity = Identity(credential, instance or secrets.token_hex(16), agent, limits or Limits())
    one = Agent(poller, Way(dial, identity, jitter, connect_limits or ConnectLimits(), patient), new_dialler)
    with ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            try:
                yield one
            finally:
                one.close(Code.GOING_AWAY, "the Agent stops")
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

    The URL chooses the carrier: https:// is a WebSocket over TLS, tls:// the same Link in TLS alone.
    `token` is the operator's, an ephemeral or a recreate token. `ca_file` is trusted in place of the system's
    authorities. Entering does not wait for the Edge; `open_tunnel` does. Without `patient`, an Edge that cannot be
    reached at first is an error and not waited for. Raises ConfigError for a wrong URL or file. A NetboreError that leaves the
    block alone comes out as it is, other errors in groups. Leaving the block ends everything that was opened in it, at once.
    """
    url = parse_edge_url(edge)
    context = await trio.to_thread.run_sync(trust, Path(ca_file) if ca_file is not None else None)
    with ungrouped():
        async with open_poller() as poller:
            dial = edge_dial(poller, url, context)
            async with run_agent(poller, dial, credential_of(token), agent=USER_AGENT, patient=patient) as agent:
                yield agent
