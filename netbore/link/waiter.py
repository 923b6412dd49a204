"""Waiting on a transport from a task: for dialling and handshakes, never for the bytes of Streams.

The data path has no await; a handshake has time to spend and reads better as a coroutine.
"""

from __future__ import annotations

import trio

from netbore.link.transport import Transport, TransportBroken
from netbore.proto.stream import Data


class TransportWaiter:
    """The owner of a transport on behalf of one task.

    Every method is a checkpoint. Cancelling one leaves the transport as it was, but may leave part of a `send_all` sent: then
    the transport is good for nothing but `close`.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._changed = trio.Event()
        self._open = False
        self._failed: TransportBroken | None = None
        transport.owner = self

    # The transport's owner

    def on_open(self) -> None:
        self._open = True
        self._changed.set()

    def on_readable(self) -> None:
        self._changed.set()

    def on_writable(self) -> None:
        self._changed.set()

    def on_failed(self, error: TransportBroken) -> None:
        self._failed = error
        self._changed.set()

    # The task's side

    async def opened(self) -> None:
        """Wait until bytes may flow. Raises TransportBroken when they never will."""
        while not self._open:
            if self._failed is not None:
                raise self._failed
            await self._change(False, False)
        await trio.lowlevel.checkpoint()

    async def receive_some(self, limit: int = 65536) -> bytes:
        """Wait for bytes; b"" is the peer's end. Raises TransportBroken."""
        await trio.lowlevel.checkpoint()
        while (data := self.transport.try_recv(limit)) is None:
            await self._change(True, False)
        return data

    async def send_all(self, data: Data) -> None:
        """Hand over all of `data`. Raises TransportBroken."""
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while sent := self.transport.try_send(view):
            view = view[sent:]
            if not view:
                return
        while view:
            await self._change(False, True)
            view = view[self.transport.try_send(view) :]

    async def _change(self, readable: bool, writable: bool) -> None:
        self._changed = trio.Event()
        self.transport.watch(readable, writable)
        try:
            await self._changed.wait()
        finally:
            self.transport.watch(False, False)
