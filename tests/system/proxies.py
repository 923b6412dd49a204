"""A TCP proxy that misbehaves on demand: it cuts, falls silent, delays.

Theory of operation. One thread serves all connections of a proxy from one selector; commands reach it through a socket pair
and are done when they return. Each direction of a connection is a `Flow`: what it has read waits in a queue, each piece until
its time has come. With a window, a flow reads only as long as less than that is unacknowledged; a piece counts as
acknowledged one way's time after it was passed on, as on a real path of that length.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from types import TracebackType

#: Bytes of one read.
READ = 262144
#: Bytes that wait in one direction when there is no window.
MOST = 1024 * 1024

_RESET = struct.pack("ii", 1, 0)


class Flow:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, one_way: float, window: int | None) -> None:
        self.source = source
        self.sink = sink
        self._one_way = one_way
        self._window = window or MOST
        self._queue: deque[tuple[float, memoryview]] = deque()
        self._waiting = 0
        self._unacknowledged: deque[tuple[float, int]] = deque()
        self._flying = 0
        self.blocked = False  # the sink takes nothing now
        self.full = False  # the window is used up
        self.ended = False  # the source has said all
        self.closed = False  # and the sink was told
        self.passed = 0

    def room(self, now: float) -> int:
        """How many bytes may be read now."""
        while self._unacknowledged and self._unacknowledged[0][0] <= now:
            self._flying -= self._unacknowledged.popleft()[1]
        room = self._window - self._waiting - self._flying
        self.full = room <= 0
        return room

    def read(self, now: float, buffer: memoryview) -> None:
        """Take what there is. Raises OSError."""
        count = self.source.recv_into(buffer, min(len(buffer), self.room(now)))
        if count:
            self._queue.append((now + self._one_way, memoryview(bytes(buffer[:count]))))
            self._waiting += count
        else:
            self.ended = True

    def write(self, now: float) -> None:
        """Pass on what is due, as far as the sink takes it. Raises OSError."""
        self.blocked = False
        while self._queue and self._queue[0][0] <= now:
            at, data = self._queue[0]
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                sent = 0
            self._waiting -= sent
            self.passed += sent
            if self._one_way and sent:
                self._unacknowledged.append((now + self._one_way, sent))
                self._flying += sent
            if sent < len(data):
                self._queue[0] = (at, data[sent:])
                self.blocked = True
                return
            self._queue.popleft()

    def finish(self) -> None:
        """Tell the sink of the end, once all was passed on. Raises OSError."""
        if self.ended and not self._queue and not self.closed:
            self.closed = True
            self.sink.shutdown(socket.SHUT_WR)

    def deadline(self) -> float | None:
        """When something becomes due, or room comes back, as far as no socket will tell."""
        times = [self._queue[0][0]] if self._queue and not self.blocked else []
        if self._unacknowledged and self.full:
            times.append(self._unacknowledged[0][0])
        return min(times, default=None)


class Pair:
    """One connection through the proxy, and its two sockets."""

    def __init__(self, near: socket.socket, far: socket.socket, one_way: float, window: int | None) -> None:
        self.near = near
        self.far = far
        self.silent = False
        self.up = Flow(near, far, one_way, window)
        self.down = Flow(far, near, one_way, window)

    @property
    def flows(self) -> tuple[Flow, Flow]:
        return self.up, self.down


class Proxy:
    """A proxy to 127.0.0.1:`target`, on `port`. Use it with `with`.

    `one_way`: seconds that each byte takes in each direction. `window`: bytes per direction that may be unacknowledged.
    """

    def __init__(self, target: int, *, one_way: float = 0.0, window: int | None = None) -> None:
        self.target = target
        self._one_way = one_way
        self._window = window
        self._selector = selectors.DefaultSelector()
        self._pairs: list[Pair] = []
        self._buffer = memoryview(bytearray(READ))
        self._commands: deque[tuple[Callable[[], object], threading.Event]] = deque()
        self._stopped = False
        self._refusing = False
        self._passed = 0
        self.accepted = 0
        self.failure: Exception | None = None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # Commands, from any thread

    def cut(self) -> int:
        """Reset all connections. New ones pass. Return how many were cut."""
        cut: list[int] = []
        self._do(lambda: cut.append(self._cut()))
        return cut[0]

    def silence(self) -> None:
        """Half-open: from now on the present connections take bytes and pass on none; their sockets stay open. New ones pass."""
        self._do(self._silence)

    def refuse(self, refusing: bool = True) -> None:
        """Reset every new connection at once, or no longer."""
        self._do(lambda: setattr(self, "_refusing", refusing))

    def retarget(self, port: int) -> None:
        """Send new connections to another port."""
        self._do(lambda: setattr(self, "target", port))

    @property
    def connections(self) -> int:
        """How many are open, silent ones too."""
        return len(self._pairs)

    @property
    def passed(self) -> int:
        """Bytes passed on, both directions, ever."""
        return self._passed + sum(flow.passed for pair in list(self._pairs) for flow in pair.flows)

    def close(self) -> None:
        """Cut all and stop. Idempotent. Raises what broke the proxy itself."""
        if not self._stopped:
            self._do(self._stop)
            self._thread.join(10)
        if self.failure is not None:
            raise self.failure

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _do(self, command: Callable[[], object]) -> None:
        done = threading.Event()
        self._commands.append((command, done))
        self._wake.send(b"x")
        if not done.wait(10):
            raise AssertionError("the proxy does not answer") from self.failure

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._turn()
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._listener.close()
            self._selector.close()
            self._wake.close()
            self._woken.close()

    def _turn(self) -> None:
        now = monotonic()
        for key, _ in self._selector.select(self._timeout(now)):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._woken:
                self._obey()
        now = monotonic()
        for pair in list(self._pairs):
            try:
                self._serve(pair, now)
            except OSError:
                self._drop(pair, abort=True)

    def _timeout(self, now: float) -> float | None:
        deadline = None
        for pair in self._pairs:
            if pair.silent:
                continue
            for flow in pair.flows:
                at = flow.deadline()
                if at is not None and (deadline is None or at < deadline):
                    deadline = at
        return None if deadline is None else max(0.0, deadline - now)

    def _obey(self) -> None:
        self._woken.recv(4096)
        while self._commands:
            command, done = self._commands.popleft()
            command()
            done.set()

    def _accept(self) -> None:
        try:
            near, _ = self._listener.accept()
        except OSError:
            return
        self.accepted += 1
        if self._refusing:
            _abort(near)
            return
        try:
            far = socket.create_connection(("127.0.0.1", self.target), 5)
        except OSError:
            _abort(near)
            return
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.append(Pair(near, far, self._one_way, self._window))

    def _serve(self, pair: Pair, now: float) -> None:
        """Move what can be moved, and say what to wait for. Raises OSError when a side is gone."""
        for flow in pair.flows:
            if pair.silent:
                self._swallow(flow)
                continue
            if not flow.ended and flow.room(now) > 0:
                with suppress(BlockingIOError):
                    flow.read(now, self._buffer)
            flow.write(now)
            flow.finish()
        if pair.up.closed and pair.down.closed:
            self._drop(pair, abort=False)
            return
        now = monotonic()
        for flow, back in (pair.flows, pair.flows[::-1]):
            wanted = 0
            if not flow.ended and (pair.silent or flow.room(now) > 0):
                wanted |= selectors.EVENT_READ
            if not pair.silent and back.blocked:
                wanted |= selectors.EVENT_WRITE
            self._watch(flow.source, wanted)

    def _swallow(self, flow: Flow) -> None:
        """Silent: take the bytes, and hide the end as well."""
        try:
            if not flow.ended and not flow.source.recv_into(self._buffer):
                flow.ended = True
        except BlockingIOError:
            pass
        except OSError:
            flow.ended = True

    def _watch(self, sock: socket.socket, wanted: int) -> None:
        known = self._selector.get_map().get(sock)
        if known is None:
            if wanted:
                self._selector.register(sock, wanted)
        elif not wanted:
            self._selector.unregister(sock)
        elif known.events != wanted:
            self._selector.modify(sock, wanted)

    def _drop(self, pair: Pair, *, abort: bool) -> None:
        self._pairs.remove(pair)
        self._passed += pair.up.passed + pair.down.passed
        for sock in (pair.near, pair.far):
            self._watch(sock, 0)
            if abort:
                _abort(sock)
            else:
                sock.close()

    def _cut(self) -> int:
        count = len(self._pairs)
        for pair in list(self._pairs):
            self._drop(pair, abort=True)
        return count

    def _silence(self) -> None:
        for pair in self._pairs:
            pair.silent = True

    def _stop(self) -> None:
        self._cut()
        self._stopped = True


def _abort(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
