"""An Edge, Agents, Hosts and Viewers in one process, on a fake clock and a simulated network.

    async def test_something(autojump_clock):
        async with open_world() as world:
            async with world.agent() as agent:
                tunnel = await agent.open_tunnel("demo")
                ...

Everything is the code that runs in production; only sockets, the clock and randomness are replaced. The network can cut,
silence and hold connections (`world.network`, and `path` of each transport). One `seed` gives one course of events.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import TypeVar

import attrs
import trio

from netbore.agent.agent import Agent, run_agent
from netbore.agent.connect import ConnectLimits, Dial
from netbore.agent.targets import Dialler, HostAddress
from netbore.edge.config import EdgeConfig
from netbore.edge.core import Core, open_core
from netbore.edge.services import operator_services
from netbore.edge.statedir import StateDirectory
from netbore.edge.tunnels import PublicAddress
from netbore.link.poller import Poller, open_poller
from netbore.link.simulated import Conditions, Network, Path, SimulatedTransport
from netbore.link.socket_stream import TransportStream
from netbore.link.stream import StreamAdapter
from netbore.link.transport import Owner, Transport
from netbore.link.waiter import TransportWaiter
from netbore.link.websocket import WebSocketTransport
from netbore.proto.handshake import Credential
from netbore.proto.wire import LINK_PATH

EDGE = "edge"
VIEWER_PORT = 80
LINK_PORT = 7
DOMAIN = "tunnel.localhost"


@attrs.define
class World:
    """One simulated world. `dialled` are the Agents' transports, newest last, for whoever wants to cut them."""

    poller: Poller
    network: Network
    core: Core
    state: StateDirectory
    random: Random
    dialled: list[SimulatedTransport] = attrs.field(factory=list)
    #: Told of the path of each dial of an Agent before anything is sent on it.
    on_dial: Callable[[Path], None] | None = None

    @asynccontextmanager
    async def agent(
        self,
        credential: Credential | None = None,
        *,
        instance: str | None = None,
        limits: ConnectLimits | None = None,
        dial: Dial | None = None,
    ) -> AsyncIterator[Agent]:
        """An Agent with the operator's token, or another credential. It dials by `dial_edge`, or by another `dial`."""
        credential = credential or Credential("operator", self.state.operator_token)
        instance = instance or self.random.randbytes(16).hex()
        async with run_agent(
            self.poller,
            dial or self.dial_edge,
            credential,
            agent="netbore-testing",
            instance=instance,
            connect_limits=limits,
            jitter=self.random.random,
            new_dialler=self._dialler,
        ) as agent:
            yield agent

    def _dialler(self, poller: Poller, nursery: trio.Nursery, address: HostAddress) -> Dialler:
        """Hosts are on the simulated network too, under their names."""

        def connect(poller: Poller, to: tuple[str, int], owner: Owner) -> SimulatedTransport:
            return self.network.dial(poller, *to, owner)

        async def resolve(name: str, port: int) -> list[tuple[int, tuple[str, int]]]:
            await trio.lowlevel.checkpoint()
            return [(0, (name, port))]

        return Dialler(poller, nursery, address, connect=connect, resolve=resolve)

    async def dial_edge(self) -> SimulatedTransport:
        """A transport to the Edge's door. Raises TransportBroken."""
        transport = await _opened(self._begin(LINK_PORT))
        self.dialled.append(transport)
        return transport

    async def dial_websocket(self) -> WebSocketTransport:
        """The same by an upgrade at the API host, through the front. Raises TransportBroken."""
        inner = self._begin(VIEWER_PORT)
        transport = WebSocketTransport.client(self.poller, inner, host=DOMAIN, path=LINK_PATH)
        await _opened(transport)
        self.dialled.append(inner)
        return transport

    def _begin(self, port: int) -> SimulatedTransport:
        transport = self.network.dial(self.poller, EDGE, port)
        if self.on_dial is not None:
            self.on_dial(transport.path)
        return transport

    async def dial(self, host: str, port: int) -> SimulatedTransport:
        """Any transport of the simulated network, open. Raises TransportBroken."""
        return await _opened(self.network.dial(self.poller, host, port))

    async def view(self) -> StreamAdapter:
        """A Viewer's connection to the Edge, in plain HTTP."""
        return StreamAdapter(TransportStream(self.poller, await self.dial(EDGE, VIEWER_PORT)))

    def host(self, name: str, port: int, serve: Callable[[StreamAdapter], None]) -> None:
        """A Host on the simulated network; `serve(stream)` is called for each connection."""
        self.network.listen(
            self.poller, name, port, lambda transport: serve(StreamAdapter(TransportStream(self.poller, transport)))
        )


T = TypeVar("T", bound=Transport)


async def _opened(transport: T) -> T:
    """`transport`, once bytes may flow; closed when they never will."""
    try:
        await TransportWaiter(transport).opened()
    except BaseException:
        transport.close(abort=True)
        raise
    return transport


@asynccontextmanager
async def open_world(
    seed: int = 0, *, conditions: Conditions | None = None, config: EdgeConfig | None = None
) -> AsyncIterator[World]:
    """A world with an Edge in it. Needs a MockClock, such as pytest-trio's `autojump_clock`."""
    random = Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        config = config or EdgeConfig(state_dir=pathlib.Path(folder), domain=DOMAIN)
        state = StateDirectory(pathlib.Path(folder) / "state", random.randbytes)
        services = operator_services(
            state,
            PublicAddress(config.domain, VIEWER_PORT, "http"),
            clock=trio.current_time,
            random=random.randbytes,
            below=random.randrange,
            limits=config.limits.tunnels,
        )
        network = Network(random, conditions)
        async with open_poller() as poller, open_core(poller, config, services) as core:
            network.listen(poller, EDGE, VIEWER_PORT, lambda transport: core.front.accept(transport, secure=False))
            network.listen(poller, EDGE, LINK_PORT, core.door.accept)
            yield World(poller, network, core, state, random)
