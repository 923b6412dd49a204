"""A Session: what ends one half ends both, and Streams outlive transports."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from netbore.proto import pipe
from netbore.proto.errors import LocalProtocolError, RemoteProtocolError
from netbore.proto.events import GoAway, MessageReceived, StreamOpened
from netbore.proto.frames import encode_message
from netbore.proto.handshake import Limits
from netbore.proto.mux import Role
from netbore.proto.mux_stream import MuxStream
from netbore.proto.records import encode_record, encode_seq_header
from netbore.proto.session import Ended, Session
from netbore.proto.window import Budget
from netbore.proto.wire import DEAD_SECONDS, FLUSH, FRAME_HEADER, STREAM_WINDOW, Code, Frame, Kind, Record


class End:
    """One side, with the calls that it posted."""

    def __init__(self, role: Role, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        self.posted: deque[Callable[[], None]] = deque()
        self.outputs = 0
        self.session = Session(role, limits, limits, post=self.post, on_output=self.on_output)

    def post(self, call: Callable[..., None], *args: Any) -> None:
        self.posted.append(lambda: call(*args))

    def on_output(self) -> None:
        self.outputs += 1

    def turn(self) -> None:
        while self.posted:
            self.posted.popleft()()


class Collector:
    """A sink that consumes all it gets."""

    def __init__(self, stream: MuxStream) -> None:
        self.stream = stream
        self.data = b""
        self.ends: list[Any] = []
        stream.sink = self
        stream.resume()

    def on_data(self, data: bytes | memoryview) -> None:
        self.data += data
        self.stream.consumed(len(data))

    def on_eof(self) -> None:
        self.ends.append("eof")

    def on_writable(self) -> None:
        self.ends.append("writable")

    def on_stop(self, code: int) -> None:
        self.ends.append(("stop", code))

    def on_reset(self, code: int, delivered: int = 0) -> None:
        self.ends.append(("reset", code))


def pass_on(source: End, target: End, now: float = 0.0) -> list[Any]:
    """All that `source` has to say, to `target`."""
    happened: list[Any] = []
    while data := source.session.data_to_send(FLUSH, now):
        happened += target.session.receive_data(data, now)
        target.turn()
    return happened


@pytest.fixture
def ends() -> tuple[End, End]:
    edge, agent = End(Role.ACCEPTOR), End(Role.DIALLER)
    for end in (edge, agent):
        assert end.session.attach(0, 0.0) == []
    return edge, agent


def test_a_stream_outlives_its_transport(ends: tuple[End, End]) -> None:
    edge, agent = ends
    stream = edge.session.mux.open(Kind.HTTP, 1)
    assert stream is not None
    assert edge.session.has_output
    stream.send_nowait(b"before")
    (opened,) = [event for event in pass_on(edge, agent) if isinstance(event, StreamOpened)]
    collector = Collector(opened.stream)
    agent.turn()
    stream.send_nowait(b" lost")
    edge.session.data_to_send(FLUSH, 1.0)  # chosen, and never delivered
    edge.session.detach(1.0)
    edge.session.detach(1.0)
    assert stream.send_nowait(b" while broken") == 0
    agent.session.detach(1.0)
    assert edge.session.attach(agent.session.pipe.received, 2.0) == []
    assert agent.session.attach(edge.session.pipe.received, 2.0) == []
    edge.turn()
    stream.send_nowait(b" after")
    pass_on(edge, agent, 2.0)
    assert collector.data == b"before lost after"
    assert edge.session.audit() == agent.session.audit() == []


def test_messages_cross(ends: tuple[End, End]) -> None:
    edge, agent = ends
    agent.session.mux.send_message({"type": "bind", "id": 1})
    assert MessageReceived({"type": "bind", "id": 1}) in pass_on(agent, edge)


def test_close_tells_the_peer_and_resets_the_streams(ends: tuple[End, End]) -> None:
    edge, agent = ends
    stream = edge.session.mux.open(Kind.HTTP, 1)
    assert stream is not None
    mine = Collector(stream)
    (opened,) = [event for event in pass_on(edge, agent) if isinstance(event, StreamOpened)]
    theirs = Collector(opened.stream)
    ended = edge.session.close(Code.REPLACED, "another came")
    assert ended == Ended(Code.REPLACED, "another came", by_peer=False)
    assert edge.session.close(Code.NO_ERROR, "again") is ended
    edge.turn()
    assert mine.ends == [("reset", Code.REPLACED)]
    assert pass_on(edge, agent) == [Ended(Code.REPLACED, "another came", by_peer=True)]
    agent.turn()
    assert theirs.ends == [("reset", Code.LINK_LOST)]
    assert agent.session.ended == Ended(Code.REPLACED, "another came", by_peer=True)


def frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    data = FRAME_HEADER.pack(kind << 24 | len(payload), stream) + payload
    return encode_seq_header(len(data)) + data


@pytest.mark.parametrize("wrong", [frame(Frame.FIN, 99), encode_record(Record.HELLO, b"{}"), b"\x01\xff\xff\xff"])
def test_a_wrong_peer_ends_the_link_once(ends: tuple[End, End], wrong: bytes) -> None:
    edge, agent = ends
    first = edge.session.receive_data(wrong + wrong, 0.0)
    assert [type(event) for event in first] == [Ended]
    assert first[0].code is Code.PROTOCOL_ERROR
    assert edge.session.receive_data(wrong, 0.0) == []
    (told,) = pass_on(edge, agent)
    assert (told.code, told.by_peer) == (Code.PROTOCOL_ERROR, True)


def test_what_came_before_the_error_is_still_told(ends: tuple[End, End]) -> None:
    edge, _ = ends
    message = encode_message({"type": "note"})
    happened = edge.session.receive_data(frame(Frame.DATA, 0, message) + frame(Frame.FIN, 99), 0.0)
    assert happened[0] == MessageReceived({"type": "note"})
    assert isinstance(happened[1], Ended)


def test_a_close_that_crosses_ours_is_told_once(ends: tuple[End, End]) -> None:
    edge, agent = ends
    agent.session.close(Code.NO_ERROR, "bye")
    edge.session.close(Code.NO_ERROR, "bye")
    assert pass_on(agent, edge) == []


def test_an_impossible_offset_is_refused() -> None:
    edge = End(Role.ACCEPTOR)
    with pytest.raises(RemoteProtocolError) as caught:
        edge.session.attach(5, 0.0)
    assert caught.value.code is Code.CORRUPT_SEQUENCE


def test_silence_is_a_dead_transport(ends: tuple[End, End]) -> None:
    edge, _ = ends
    edge.session.data_to_send(FLUSH, 0.0)
    happened: list[Any] = []
    while not happened:
        deadline = edge.session.next_deadline()
        assert deadline is not None
        assert deadline <= DEAD_SECONDS
        happened = edge.session.handle_timeout(deadline)
        edge.session.data_to_send(FLUSH, deadline)
    assert isinstance(happened[0], pipe.TransportDead)
    assert deadline == DEAD_SECONDS


def test_the_earlier_deadline_of_the_two_counts(ends: tuple[End, End]) -> None:
    session = ends[0].session
    mine = session.pipe.next_deadline()
    assert session.next_deadline() == mine
    session.mux._retry_at = 0.5
    assert session.next_deadline() == 0.5
    session.detach(0.0)
    assert session.next_deadline() == 0.5


def test_events_of_posted_calls_are_told_later(ends: tuple[End, End]) -> None:
    edge, agent = ends
    agent.session.mux.goaway()
    assert pass_on(agent, edge) == [GoAway(0)]
    assert edge.session.take_events(0.0) == []


@pytest.mark.parametrize("room", [0, STREAM_WINDOW, 5 * STREAM_WINDOW - 1])
def test_a_session_that_does_not_fit_leaves_the_budget_as_it_was(room: int) -> None:
    """Neither the Mux's reserve nor the Pipe's room, whichever found no place."""
    edge = Budget(10 * STREAM_WINDOW)
    assert edge.take(10 * STREAM_WINDOW - room)
    budget = Budget(10 * STREAM_WINDOW, edge)
    with pytest.raises(LocalProtocolError) as caught:
        Session(Role.ACCEPTOR, Limits(4), Limits(), post=lambda *_: None, on_output=lambda: None, budget=budget)
    assert caught.value.code is Code.LIMIT_EXCEEDED
    assert (budget.out, edge.out) == (0, 10 * STREAM_WINDOW - room)


def test_all_of_the_budget_comes_back_at_the_end() -> None:
    edge = Budget(10 * STREAM_WINDOW)
    budget = Budget(10 * STREAM_WINDOW, edge)
    session = Session(Role.ACCEPTOR, Limits(4), Limits(), post=lambda *_: None, on_output=lambda: None, budget=budget)
    assert edge.out > 4 * STREAM_WINDOW
    session.close(Code.NO_ERROR, "")
    assert (budget.out, edge.out) == (0, 0)
