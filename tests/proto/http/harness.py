"""Memory Streams with the face of `netbore.proto.stream`, and a small front and pool over them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from netbore.proto.errors import LocalProtocolError
from netbore.proto.http.codec import HeadMemo
from netbore.proto.http.exchange import Exchange
from netbore.proto.http.headers import Forwarding, to_host, to_viewer
from netbore.proto.http.host import HostConnection
from netbore.proto.http.messages import RequestHead, ResponseHead
from netbore.proto.http.sides import LIMITS, ExchangeLimits
from netbore.proto.http.viewer import ViewerConnection
from netbore.proto.stream import Data, Sink
from netbore.proto.wire import HOST_ENDED, Code

FORWARDING = Forwarding(b"192.0.2.7", b"http", b"e1")


class Loop:
    """The turn: its clock, and what was posted to it. Sees to it that no sink is called inside a command."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.posts: deque[Callable[[], None]] = deque()
        self.commands = 0

    def clock(self) -> float:
        return self.now

    @contextmanager
    def command(self) -> Iterator[None]:
        self.commands += 1
        yield
        self.commands -= 1

    def run(self) -> None:
        while self.posts:
            self.posts.popleft()()

    def sweep(self, seconds: float, *timed: ViewerConnection | HostConnection) -> None:
        """Let time pass, then do what the sweep does."""
        self.now += seconds
        for one in timed:
            if one.deadline <= self.now:
                one.on_deadline(self.now)
        self.run()


class MemoryStream:
    """One end of a Stream. Its peer is the test: what was sent stands in `sent`, `room` is how much more is accepted."""

    def __init__(self, loop: Loop, room: int = 1 << 40) -> None:
        self.loop = loop
        self.room = room
        self.sink: Sink | None = None
        self.sent = bytearray()
        #: Length of each part that `send_nowait` was given.
        self.sends: list[int] = []
        self.eof_sent = False
        self.stopped: int | None = None
        self.reset_code: int | None = None
        self.sending = True
        self.receiving = True
        self.writable = True
        self.begun = 0
        self.granted = 0
        self.suspended = False
        self.paused = False
        self.unconsumed = 0
        self.total_consumed = 0
        #: What the peer sent while paused.
        self.waiting: deque[Data | None] = deque()

    # --- the face ---

    def send_nowait(self, data: Data) -> int:
        with self.loop.command():
            if self.eof_sent:
                raise LocalProtocolError(Code.INTERNAL_ERROR, "sent after the end")
            assert len(data) > 0
            if not self.sending:
                return len(data)
            taken = min(len(data), self.room)
            self.sends.append(len(data))
            self.sent += data[:taken]
            self.room -= taken
            self.writable = taken == len(data)
            return taken

    def send_eof(self) -> None:
        if self.sending:
            self.sending, self.eof_sent = False, True

    def stop(self, code: int = 0) -> None:
        if self.receiving:
            self.receiving, self.stopped = False, code

    def reset(self, code: int, delivered: int = 0) -> None:
        if self.sending or self.receiving:
            self.sending = self.receiving = False
            self.reset_code = code

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.loop.posts.append(self._deliver)

    def consumed(self, count: int) -> None:
        assert 0 < count <= self.unconsumed, (count, self.unconsumed)
        self.unconsumed -= count
        self.total_consumed += count

    def release(self) -> None:
        self.reset(Code.CANCELLED)

    # --- the peer ---

    def feed(self, data: Data) -> None:
        self.waiting.append(data)
        self._deliver()
        self.loop.run()

    def feed_eof(self) -> None:
        self.waiting.append(None)
        self._deliver()
        self.loop.run()

    def peer_stops(self, code: int = Code.HOST_CLOSED) -> None:
        if self.sending:
            self.sending = False
            self._call().on_stop(code)
        self.loop.run()

    def peer_resets(self, code: int) -> None:
        if self.sending or self.receiving:
            if code not in HOST_ENDED:
                self.waiting.clear()
            self.sending = self.receiving = False
            self._call().on_reset(code)
        self.loop.run()

    def take(self, room: int) -> None:
        """Accept `room` bytes more."""
        self.room += room
        self.writable = True
        self._call().on_writable()
        self.loop.run()

    def got(self) -> bytes:
        """What was sent since the last call."""
        data = bytes(self.sent)
        self.sent.clear()
        return data

    @property
    def ended(self) -> bool:
        return not self.sending and not self.receiving

    def _deliver(self) -> None:
        while self.waiting and not self.paused:
            data = self.waiting.popleft()
            if not self.receiving:
                continue
            if data is None:
                self.receiving = False
                self._call().on_eof()
            else:
                self.unconsumed += len(data)
                self._call().on_data(data)

    def _call(self) -> Sink:
        assert self.loop.commands == 0, "a sink was called inside a command"
        assert self.sink is not None
        return self.sink


class World:
    """One Viewer connection, a front that forwards everything, and a pool that makes Streams to a Host as needed."""

    #: What both sides have read before.
    memo: HeadMemo | None = None

    def __init__(
        self, *, secure: bool = False, limits: ExchangeLimits = LIMITS, forward: bool = True, retry: bool = True
    ) -> None:
        self.loop = Loop()
        self.limits = limits
        self.retry = retry
        self.idle: list[HostConnection] = []
        self.closed: list[HostConnection] = []
        self.hosts: list[HostConnection] = []
        self.exchanges: list[Exchange] = []
        self.done: list[Exchange] = []
        self.viewers_closed: list[ViewerConnection] = []
        self.host_room = 1 << 40
        self.stream = MemoryStream(self.loop)
        self.viewer = ViewerConnection(
            self.stream,
            self.on_request if forward else self.note,
            self.loop.clock,
            on_closed=self.viewers_closed.append,
            secure=secure,
            limits=limits,
            memo=self.memo,
        )

    # --- the front ---

    def note(self, exchange: Exchange) -> None:
        exchange.on_done = self.done.append
        self.exchanges.append(exchange)

    def on_request(self, exchange: Exchange) -> None:
        self.note(exchange)
        self.send(exchange)

    def send(self, exchange: Exchange, head: RequestHead | None = None) -> None:
        head = head or to_host(exchange.request, FORWARDING)
        exchange.forward(self.take(), head, self.rewrite, self.send if self.retry else None)

    @staticmethod
    def rewrite(head: ResponseHead) -> ResponseHead:
        return to_viewer(head, apex=b"tunnel.test")

    # --- the pool ---

    def take(self) -> HostConnection:
        return self.idle.pop() if self.idle else self.new_host()

    def new_host(self) -> HostConnection:
        host = HostConnection(MemoryStream(self.loop, self.host_room), self, self.loop.clock, self.limits, memo=self.memo)
        self.hosts.append(host)
        return host

    def on_idle(self, host: HostConnection) -> None:
        assert not host.closed
        self.idle.append(host)

    def on_closed(self, host: HostConnection) -> None:
        self.closed.append(host)
        if host in self.idle:
            self.idle.remove(host)

    # --- the test ---

    @property
    def host(self) -> MemoryStream:
        """The Stream of the newest HostConnection."""
        return stream_of(self.hosts[-1])

    def sweep(self, seconds: float) -> None:
        self.loop.sweep(seconds, self.viewer, *self.hosts)

    def settled(self) -> None:
        """Nothing is owed on a Stream that lives."""
        for stream in (self.stream, *(stream_of(host) for host in self.hosts)):
            assert stream.ended or stream.unconsumed == 0, stream.unconsumed


def stream_of(host: HostConnection) -> MemoryStream:
    assert isinstance(host.stream, MemoryStream)
    return host.stream


def head_of(data: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """First line, headers by lower-case name, and what follows."""
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    return first, {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}, rest


def dechunked(data: bytes) -> bytes:
    """The body in a whole chunked coding without trailers."""
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        if not count:
            assert data == b"\r\n", data
            return body
        body, data = body + data[:count], data[count + 2 :]
