"""A Tunnel of an Agent: one public name, and the Streams that its Viewers cause.

Theory of operation. Streams come from whichever Link of the Agent the Edge chose; the Tunnel does not care. It hands each to a
synchronous handler while `forward` runs, or keeps it for `accept`. A Tunnel that ends takes no new Streams, but those in flight
go on to their end (a takeover in mode `handover` and a gentle deletion promise that): so `forward` and `accept` raise only
when no Stream of the Tunnel is left on any Link and all that was said on them has arrived: whoever waits in them takes the
handlers, and often the Agent, down with the error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import trio

from netbore.agent.host_relay import serve
from netbore.agent.targets import Dialler, HostAddress
from netbore.changes import Changed
from netbore.errors import BindRefused, NameTaken, NetboreError, Replaced, TunnelClosed
from netbore.link.poller import Poller
from netbore.link.stream import StreamAdapter
from netbore.proto.handshake import Credential
from netbore.proto.mux_stream import MuxStream
from netbore.proto.wire import Code
from netbore.relay import Relay
from netbore.tasks import ungrouped

if TYPE_CHECKING:
    from netbore.agent.agent import Agent


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

    `public_url`, `name`, `hostname` and `id` are the Edge's answer and stay as they are through reconnects. `error` says why the
    Tunnel has ended, None while it has not.
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
        #: The Registry's number of this holding, as the Edge last told it.
        self.epoch: int | None = None
        self.error: NetboreError | None = None
        self._closed_here = False
        self._on_stream: Callable[[MuxStream], None] | None = None
        self._arrived: deque[MuxStream] = deque()
        self._changed = Changed()

    async def accept(self) -> StreamAdapter:
        """The next Stream. A checkpoint; cancelling it loses no Stream.

        Raises trio.ClosedResourceError once the Tunnel has ended: at once if it was closed here, else when all Streams that
        were accepted have been closed and have ended. `error` then says why it ended.
        """
        await trio.lowlevel.checkpoint()
        while not self._arrived:
            if self.error is not None:
                if not self._closed_here:
                    await self._agent.drained(self)
                raise trio.ClosedResourceError(str(self.error)) from self.error
            await self._changed.wait()
        return StreamAdapter(self._arrived.popleft())

    async def forward(self, target: str | int) -> None:
        """Serve the Tunnel from a Host: PORT, HOST:PORT or URL. Returns only by cancellation or by an error.

        Raises ConfigError for a target that is none; TunnelClosed, Replaced or another NetboreError when the Tunnel has ended
        and what was in flight has come to its end. Cancelling it cuts what is in flight.
        """
        address = HostAddress.parse(str(target))
        with ungrouped():
            async with trio.open_nursery() as nursery:
                forwarding = Forwarding(self._agent.poller, self._agent.new_dialler(self._agent.poller, nursery, address))
                self._on_stream = forwarding.serve
                try:
                    while self._arrived:
                        forwarding.serve(self._arrived.popleft())
                    await self._ended()
                    await self._agent.drained(self)
                finally:
                    self._on_stream = None
                    # Before the nursery closes: a relay that still dials may want to look its Host's name up.
                    forwarding.cancel()
                raise self._why()

    async def wait_closed(self) -> None:
        """Wait until the Tunnel ends. Raises its error."""
        await self._ended()
        raise self._why()

    async def aclose(self) -> None:
        """Give the Tunnel up: the Edge is told, Streams come to their end, the name stays ours. A checkpoint."""
        if self.error is None:
            self._closed_here = True
            self._agent.give_up(self)
            self.end(TunnelClosed("the tunnel was closed"))
        await trio.lowlevel.checkpoint()

    async def _ended(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.error is None:
            await self._changed.wait()

    def _why(self) -> NetboreError:
        assert self.error is not None
        return self.error

    # The Agent's side

    async def opened(self) -> None:
        """Wait for the Edge's first answer. Raises the error of a Tunnel that ended before. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while not self.id:
            if self.error is not None:
                raise self.error
            await self._changed.wait()

    def arrived(self, stream: MuxStream) -> None:
        """The peer opened a Stream for this Tunnel."""
        if self._on_stream is not None:
            self._on_stream(stream)
        else:
            self._arrived.append(stream)
            self._changed.set()

    def end(self, error: NetboreError) -> None:
        """The Tunnel is over: Streams that nobody has accepted are given back, those in flight go on."""
        if self.error is None:
            self.error = error
            while self._arrived:
                give_back(self._arrived.popleft())
            self._changed.set()

    def bind_message(self) -> dict[str, Any]:
        """What asks the Edge for this Tunnel: the first time, or again on a further Link."""
        options = self.options
        message: dict[str, Any] = {
            "type": "bind",
            "handle": self.handle,
            "kind": "http",
            # The second time there is nobody to be pushed aside, and a newer holder is told to us by `epoch`.
            "mode": "handover" if self.id else options.mode,
            "host_header": options.host_header,
            "target": options.target,
            "pool": options.pool,
        }
        if self.name:
            message["name"] = self.name
        if self.recreate_token:
            message["credential"] = Credential("recreate", self.recreate_token).to_json()
        if self.epoch is not None:
            message["epoch"] = self.epoch
        return message

    def bound(self, message: dict[str, Any]) -> None:
        """The Edge's answer to BIND."""
        self.id = str(message.get("tunnel", ""))
        self.name = str(message.get("name", ""))
        self.hostname = str(message.get("hostname", ""))
        self.public_url = str(message.get("public_url", ""))
        self.recreate_token = str(message.get("recreate_token", ""))
        epoch = message.get("epoch")
        self.epoch = epoch if type(epoch) is int else None
        self._changed.set()

    def lose_streams(self) -> None:
        """A Link is over: its Streams that nobody accepted are gone."""
        waiting = [stream for stream in self._arrived if not stream.over]
        for stream in self._arrived:
            if stream.over:
                stream.release()
        self._arrived = deque(waiting)


class Forwarding:
    """The relays of one `forward`."""

    def __init__(self, poller: Poller, dialler: Dialler) -> None:
        self._poller = poller
        self._dialler = dialler
        self._relays: set[Relay] = set()

    def serve(self, stream: MuxStream) -> None:
        """Join `stream` with a new connection to the Host."""
        relay = serve(self._poller, self._dialler, stream, self._relays.discard)
        if not relay.over:
            self._relays.add(relay)

    def cancel(self) -> None:
        """Cut what is in flight: this Host is served no more."""
        for relay in list(self._relays):
            relay.cancel(Code.UNBOUND)


def give_back(stream: MuxStream) -> None:
    """Nothing of `stream` reached a Host: the Edge may try it elsewhere."""
    stream.reset(Code.NOT_PROCESSED)
    stream.release()


def refusal(message: dict[str, Any]) -> NetboreError:
    """The error that a `refused` stands for."""
    code, text = str(message.get("code")), str(message.get("text"))
    if code == "replaced":
        return Replaced(text)
    return (NameTaken if code == "name_taken" else BindRefused)(code, text)


def ending(message: dict[str, Any]) -> NetboreError:
    """The error that an `unbound`, unasked, stands for."""
    text = str(message.get("text", ""))
    return Replaced(text) if message.get("code") == "replaced" else TunnelClosed(text)
