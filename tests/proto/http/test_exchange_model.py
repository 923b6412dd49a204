"""Random sequences of requests and responses against a model that another HTTP implementation reads at both ends.

Bytes come and go in random slices, Streams accept little, credit is small. Whatever the order of events, the Host must have got
each request and the Viewer each response, once, in order, whole, and at the end nothing may be owed.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbore.proto.http.host import HostConnection
from tests.proto.http.harness import MemoryStream, World, stream_of

pytestmark = pytest.mark.usefixtures("messages")

WINDOW = 3000


@attrs.frozen
class Asked:
    method: bytes
    minor: int
    framing: str
    body: tuple[bytes, ...]
    trailer: bool
    close: bool

    @property
    def payload(self) -> bytes:
        return b"".join(self.body) if self.framing != "none" else b""

    @property
    def last(self) -> bool:
        return self.close or self.minor == 0

    def encode(self, number: int) -> bytes:
        head = b"%b /%d HTTP/1.%d\r\nHost: a\r\n" % (self.method, number, self.minor)
        if self.close:
            head += b"Connection: close\r\n"
        return head + encoded(self.framing, self.body, self.trailer)


@attrs.frozen
class Answer:
    status: int
    informational: int
    framing: str
    body: tuple[bytes, ...]
    trailer: bool
    close: bool

    def payload(self, method: bytes) -> bytes:
        return b"" if self.bodiless(method) else b"".join(self.body)

    def bodiless(self, method: bytes) -> bool:
        return method == b"HEAD" or self.status in {204, 304}

    def encode(self, method: bytes) -> bytes:
        head = b"HTTP/1.1 103 Hints\r\n\r\n" * self.informational + b"HTTP/1.1 %d Status\r\n" % self.status
        if self.close or self.framing == "eof":
            head += b"Connection: close\r\n"
        if self.bodiless(method):
            return head + b"\r\n"
        return head + encoded(self.framing, self.body, self.trailer)


def encoded(framing: str, body: tuple[bytes, ...], trailer: bool) -> bytes:
    """The framing field, the empty line and the body."""
    if framing == "length":
        return b"Content-Length: %d\r\n\r\n" % sum(map(len, body)) + b"".join(body)
    if framing != "chunked":
        return b"\r\n" + (b"".join(body) if framing == "eof" else b"")
    chunks = b"".join(b"%X;x=y\r\n%b\r\n" % (len(data), data) for data in body if data)
    return b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + b"X-Sum: 1\r\n" * trailer + b"\r\n"


BODY = st.lists(
    st.one_of(st.binary(max_size=40), st.integers(0, 9000).map(lambda size: b"%d " % size * (size // 5))), max_size=4
).map(tuple)
ASKED = st.builds(
    Asked,
    st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT"]),
    st.sampled_from([1, 1, 1, 0]),
    st.sampled_from(["none", "length", "chunked"]),
    BODY,
    st.booleans(),
    st.sampled_from([False, False, False, True]),
).map(lambda asked: attrs.evolve(asked, framing="length") if asked.minor == 0 and asked.framing == "chunked" else asked)
ANSWER = st.builds(
    Answer,
    st.sampled_from([200, 200, 404, 204, 304]),
    st.sampled_from([0, 0, 1, 2]),
    st.sampled_from(["length", "chunked", "eof"]),
    BODY,
    st.booleans(),
    st.sampled_from([False, False, True]),
)


class Peer:
    """What the test has still to send on a Stream, within its credit."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self.data = b""
        self.eof = False

    def send(self, most: int) -> bool:
        """Send a slice; True when something happened."""
        size = min(most, len(self.data), WINDOW - self.stream.unconsumed)
        if size > 0 and self.stream.receiving:
            part, self.data = self.data[:size], self.data[size:]
            self.stream.feed(memoryview(part) if size % 2 else part)
            return True
        if self.eof and not self.data and self.stream.receiving:
            self.eof = False
            self.stream.feed_eof()
            return True
        return False


class ModelHost:
    """A Host on one connection: reads requests by h11 and answers from the script."""

    def __init__(self, host: HostConnection, model: Model) -> None:
        self.peer = Peer(stream_of(host))
        self.model = model
        self.reader = h11.Connection(h11.SERVER)
        self.request: h11.Request | None = None
        self.body = b""

    def read(self) -> None:
        if not self.peer.stream.sent:
            return
        self.reader.receive_data(self.peer.stream.got())
        while True:
            event = self.reader.next_event()
            if isinstance(event, h11.Request):
                self.request, self.body = event, b""
            elif isinstance(event, h11.Data):
                self.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self.answer(event)
            else:
                return

    def answer(self, end: h11.EndOfMessage) -> None:
        assert self.request is not None
        trailers = [(name, value) for name, value in end.headers]
        number = len(self.model.asked)
        self.model.asked.append((self.request.method, self.request.target, self.body, trailers))
        answer = self.model.answers[number]
        self.peer.data += answer.encode(self.request.method)
        self.peer.eof = answer.framing == "eof" or answer.close
        if not self.peer.eof:
            self.reader.send(h11.Response(status_code=204, headers=[]))
            self.reader.send(h11.EndOfMessage())
            self.reader.start_next_cycle()


class Model:
    """The world, its peers, and what they saw."""

    def __init__(self, script: list[tuple[Asked, Answer]]) -> None:
        self.script = script
        self.answers = [answer for _, answer in script]
        self.asked: list[tuple[bytes, bytes, bytes, list[tuple[bytes, bytes]]]] = []
        self.world = World()
        self.world.host_room = self.world.stream.room = 700
        self.viewer = Peer(self.world.stream)
        self.viewer.data = b"".join(asked.encode(number) for number, (asked, _) in enumerate(script))
        self.hosts: list[ModelHost] = []

    def meet(self) -> None:
        """Serve new connections, read what came on the old, and look at what is held."""
        for host in self.world.hosts[len(self.hosts) :]:
            self.hosts.append(ModelHost(host, self))
        for one in self.hosts:
            one.read()
        for held in (self.world.viewer, *self.world.hosts):
            assert held.outbox.size < 12 * WINDOW

    def actions(self, size: int) -> list[Callable[[], object]]:
        """What may happen next, each with room or slices of `size`."""
        streams = [self.world.stream, *(one.peer.stream for one in self.hosts)]
        takes = [lambda stream=stream: stream.take(size) for stream in streams if stream.sending]
        sends = [lambda one=one: one.peer.send(size) for one in self.hosts]
        return [lambda: self.viewer.send(size), *takes, *sends]

    def drain(self) -> None:
        """Everybody reads and sends what is left, until nothing moves."""
        moved = True
        while moved:
            moved = False
            for stream in (self.world.stream, *(one.peer.stream for one in self.hosts)):
                if stream.sending:
                    stream.take(1 << 30)
            self.meet()
            for peer in (self.viewer, *(one.peer for one in self.hosts)):
                moved = peer.send(1 << 20) or moved
            self.meet()

    def check_asked(self) -> None:
        """The Host saw each request, whole and in order."""
        expected = [
            (
                asked.method,
                b"/%d" % number,
                asked.payload,
                [(b"x-sum", b"1")] if asked.framing == "chunked" and asked.trailer else [],
            )
            for number, (asked, _) in enumerate(self.script)
        ]
        assert self.asked == expected

    def check_answered(self) -> None:
        """The Viewer saw each response, whole and in order."""
        reader = h11.Connection(h11.CLIENT)
        reader.receive_data(bytes(self.world.stream.sent))
        if self.world.stream.eof_sent:
            reader.receive_data(b"")
        for asked, answer in self.script:
            reader.send(h11.Request(method=asked.method, target="/", headers=[("Host", "a")]))
            reader.send(h11.EndOfMessage())
            informational, status, body, trailers = response(reader)
            assert informational == (answer.informational if asked.minor else 0)
            assert status == answer.status
            assert body == answer.payload(asked.method)
            chunked = answer.framing == "chunked" and not answer.bodiless(asked.method) and asked.minor == 1
            assert trailers == ([(b"x-sum", b"1")] if chunked and answer.trailer else [])
            if not asked.last:
                reader.start_next_cycle()


def response(reader: h11.Connection) -> tuple[int, int, bytes, list[tuple[bytes, bytes]]]:
    """The next response: how many informational heads, status, body, trailers."""
    informational, status, body = 0, 0, b""
    while True:
        event = reader.next_event()
        if isinstance(event, h11.InformationalResponse):
            informational += 1
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        else:
            assert isinstance(event, h11.EndOfMessage), event
            return informational, status, body, [(name, value) for name, value in event.headers]


def until_last(script: list[tuple[Asked, Answer]]) -> list[tuple[Asked, Answer]]:
    """A script ends with the first request after which the connection cannot go on."""
    for number, (asked, _) in enumerate(script):
        if asked.last:
            return script[: number + 1]
    return script


SCRIPT = st.lists(st.tuples(ASKED, ANSWER), min_size=1, max_size=5).map(until_last)
#: Which of the actions that are possible, and how much.
MOVES = st.lists(st.tuples(st.integers(0, 11), st.sampled_from([1, 2, 7, 60, 500, 3000])), max_size=60)


@settings(max_examples=100, deadline=None)
@given(SCRIPT, MOVES)
def test_every_message_arrives_whole_and_in_order(script: list[tuple[Asked, Answer]], moves: list[tuple[int, int]]) -> None:
    model = Model(script)
    for which, size in moves:
        actions = model.actions(size)
        actions[which % len(actions)]()
        model.meet()
    model.drain()
    model.check_asked()
    model.check_answered()
    world = model.world
    assert len(world.done) == len(script)
    assert world.viewer.closed is script[-1][0].last
    assert world.stream.reset_code is None
    assert sorted(map(id, world.idle + world.closed)) == sorted(map(id, world.hosts))
    world.settled()


@settings(max_examples=100, deadline=None)
@given(SCRIPT, MOVES, st.sampled_from(["viewer eof", "viewer reset", "host eof", "host reset", "host stop", "close"]))
def test_any_end_at_any_time_ends_everything(script: list[tuple[Asked, Answer]], moves: list[tuple[int, int]], end: str) -> None:
    """Whenever a peer leaves, each Exchange comes to its end, nothing raises, and no half of a body looks whole."""
    model = Model(script)
    world = model.world
    for which, size in moves:
        actions = model.actions(size)
        actions[which % len(actions)]()
        model.meet()
    if end == "close":
        world.viewer.close()
    elif end.startswith("viewer"):
        world.stream.peer_resets(21) if end.endswith("reset") else world.stream.feed_eof()
    elif world.hosts:
        stream = world.host
        if end.endswith("stop"):
            stream.peer_stops()
        elif end.endswith("reset"):
            stream.peer_resets(21)
        else:
            model.hosts[-1].peer.data = b""
            stream.feed_eof()
    # Each of the pipelined requests has timeouts of its own.
    for _ in range(20):
        for stream in (world.stream, *(one.peer.stream for one in model.hosts)):
            if stream.sending:
                stream.take(1 << 30)
        world.sweep(400)
    assert world.done == world.exchanges
    assert world.viewer.closed
    assert all(host.closed or host in world.idle for host in world.hosts)
    world.settled()
