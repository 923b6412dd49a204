"""A Stream as a Trio stream: the outer dress, for library users, `trio.serve_listeners` and Trio's conformance suite.

Theory of operation. The adapter is the Stream's sink. Received data waits in it, bounded by the credit given, and is
consumed as the task takes it. One task may wait for each direction; it is parked by `wait_task_rescheduled` and woken
from the Poller's turn.
"""

from __future__ import annotations

from collections import deque
from operator import index

import trio
import trio.lowlevel

from netbore.proto.stream import Data, Stream, kept
from netbore.proto.wire import Code

#: What `receive_some` gives at most when it is not told.
RECEIVE = 65536


class StreamAdapter(trio.abc.HalfCloseableStream):
    """A HalfCloseableStream over any Stream face.

    Every method is a checkpoint. Cancelling `receive_some` loses nothing; cancelling `send_all` may have sent a part. A peer that
    reset the Stream, or a Link that ended, is BrokenResourceError; a second task in one direction is BusyResourceError.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._received: deque[Data] = deque()
        self._ended = False
        self._closed = False
        self._eof_sent = False
        self._stopped = False
        self._broken: int | None = None
        self._reader: trio.lowlevel.Task | None = None
        self._writer: trio.lowlevel.Task | None = None
        self._sending = _Conflict("sending")
        self._receiving = _Conflict("receiving")
        stream.sink = self
        stream.resume()

    # The Stream's sink

    def on_data(self, data: Data) -> None:
        self._received.append(kept(data))
        self._wake_reader()

    def on_eof(self) -> None:
        self._ended = True
        self._wake_reader()

    def on_writable(self) -> None:
        self._wake_writer()

    def on_stop(self, code: int) -> None:
        self._stopped = True
        self._wake_writer()

    def on_reset(self, code: int, delivered: int = 0) -> None:
        self._broken = code
        self._wake_reader()
        self._wake_writer()

    # Trio's side

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; waits for credit and for room."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            rest = memoryview(_immutable(data))
            self._check_send()
            while rest:
                rest = rest[self.stream.send_nowait(rest) :]
                if rest:
                    await self._wait_writable()
                    self._check_send()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` could send something at once, or would raise."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            while not (self._closed or self._stopped or self._broken is not None or self.stream.writable):
                await self._wait_writable()
            if self._closed:
                raise trio.ClosedResourceError

    async def send_eof(self) -> None:
        """End our half. Idempotent."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError
            if not self._eof_sent:
                self._eof_sent = True
                self.stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most `max_bytes`; b"" at the peer's end."""
        if max_bytes is not None and index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receiving:
            await trio.lowlevel.checkpoint()
            while not self._received:
                if self._closed:
                    raise trio.ClosedResourceError
                if self._broken is not None:
                    raise trio.BrokenResourceError(f"the stream was reset: {code_name(self._broken)}")
                if self._ended:
                    return b""
                await self._wait_readable()
            if self._closed:
                raise trio.ClosedResourceError
            return self._take(max_bytes or RECEIVE)

    async def aclose(self) -> None:
        """End our half and stop the peer's. What was sent still arrives. Idempotent."""
        if not self._closed:
            self._closed = True
            self._received.clear()
            if not self._eof_sent:
                self.stream.send_eof()
            self.stream.stop()
            self.stream.release()
            self._wake_reader()
            self._wake_writer()
        await trio.lowlevel.checkpoint()

    # Inside

    def _take(self, limit: int) -> bytes:
        data = self._received.popleft()
        if len(data) > limit:
            self._received.appendleft(data[limit:])
            data = data[:limit]
        self.stream.consumed(len(data))
        return bytes(data)

    def _check_send(self) -> None:
        if self._closed or self._eof_sent:
            raise trio.ClosedResourceError("the stream was closed for sending")
        if self._broken is not None:
            raise trio.BrokenResourceError(f"the stream was reset: {code_name(self._broken)}")
        if self._stopped:
            raise trio.BrokenResourceError("the peer reads no more")

    async def _wait_readable(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._reader = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _wait_writable(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake_reader(self) -> None:
        task, self._reader = self._reader, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _wake_writer(self) -> None:
        task, self._writer = self._writer, None
        if task is not None:
            trio.lowlevel.reschedule(task)


class _Conflict:
    """Raises BusyResourceError when two tasks use one direction at once: hiding that behind a lock would interleave them."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(f"another task is {self._doing}")
        self._busy = True

    def __exit__(self, *exc: object) -> None:
        self._busy = False


def code_name(code: int) -> str:
    """The name of a code of docs/protocol.md section 9, or its number."""
    try:
        return Code(code).name.lower()
    except ValueError:
        return f"code {code}"


def _immutable(data: bytes | bytearray | memoryview) -> Data:
    """What the Link may hold on to until the peer has it: the caller's own buffer will change."""
    whole = data.obj if isinstance(data, memoryview) else data
    return data if isinstance(whole, bytes) else bytes(data)  # type: ignore[return-value]  # no bytearray is left
