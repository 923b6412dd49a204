"""The Mux, rule by rule (docs/protocol.md section 4)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbore.proto import frames
from netbore.proto.errors import LocalProtocolError
from netbore.proto.events import (
    Failed,
    GoAway,
    MessageReceived,
    Move,
    OpenAllowed,
    PeerClosing,
    SinkFailed,
    StreamOpened,
)
from netbore.proto.handshake import Limits
from netbore.proto.mux import STARVED_SECONDS, Mux, Refusal, Role
from netbore.proto.mux_stream import QUEUE_LOW
from netbore.proto.rate import Allowance
from netbore.proto.stream import Data
from netbore.proto.window import Budget
from netbore.proto.wire import (
    CONTROL_WINDOW,
    FIRST_WINDOW,
    LESSER_WINDOW,
    LINK_BUDGET,
    MAX_CREDIT,
    MAX_DATA,
    MAX_MESSAGE,
    MINOR_FRAMES_BURST,
    QUANTUM,
    STREAM_QUEUE,
    STREAM_QUEUE_MOST,
    STREAM_WINDOW,
    Code,
    Frame,
    Kind,
)
from tests.proto.mux_pair import Pair, Recorder, Side

SMALL = Limits(max_streams=4, stream_window=STREAM_WINDOW)


def cut(data: bytes) -> list[tuple[int, int, int]]:
    """The frames in `data`: type, stream id, length."""
    found = []
    while data:
        length = int.from_bytes(data[1:4], "big")
        found.append((data[0], int.from_bytes(data[4:8], "big"), length))
        data = data[8 + length :]
    return found


def failure(side: Side, data: bytes) -> Code:
    """The code with which `side` ends the Link for `data`, which is the last it hears."""
    events = side.receive(data)
    assert isinstance(events[-1], Failed)
    assert events[-1].text
    assert side.mux.refusal is Refusal.CLOSED
    assert side.receive(data) == []
    side.audit()
    return events[-1].code


def peer_open(stream_id: int = 1, kind: int = Kind.HTTP, window: int = 65536, facts: bytes = b"") -> bytes:
    return frames.encode_open(stream_id, kind, 0, 7, window=window, facts=facts)


def accepting(ours: Limits = SMALL) -> Side:
    """An acceptor whose Stream 1 is open, with a greedy sink."""
    side = Side(Role.ACCEPTOR, ours, SMALL)
    side.receive(peer_open())
    side.run()
    side.flush()
    return side


# Opening


def test_a_stream_carries_bytes_both_ways_to_its_end() -> None:
    pair = Pair()
    stream, here, other, there = pair.opened()
    assert (stream.id, other.id, other.kind, other.handle, other.facts) == (1, 1, Kind.HTTP, 7, None)
    assert stream.send_nowait(b"question") == 8
    stream.send_eof()
    assert not stream.sending
    stream.send_eof()
    pair.drive()
    assert (bytes(there.data), there.calls) == (b"question", ["eof"])
    assert not other.receiving
    other.send_nowait(b"answer")
    other.send_eof()
    pair.drive()
    assert (bytes(here.data), here.calls) == (b"answer", ["eof"])
    assert stream.over
    assert other.over
    assert stream.granted == 0
    other.release()
    stream.release()
    pair.drive()
    assert pair.dialler.budget.out == 1024 * STREAM_WINDOW


def test_ids_grow_by_two_in_the_order_in_which_opens_leave() -> None:
    pair = Pair()
    first, second = pair.dialler.open(), pair.dialler.open()
    theirs = pair.acceptor.open()
    assert (first.id, second.id) == (0, 0)
    first.reset(Code.CANCELLED)
    pair.drive()
    assert (first.id, second.id, theirs.id) == (0, 1, 2)
    assert list(pair.acceptor.sinks) == [1]


def test_facts_travel() -> None:
    pair = Pair()
    pair.dialler.mux.open(Kind.TCP, 9, hops=3, facts={"viewer": "192.0.2.1:5"})
    pair.drive()
    (event,) = pair.acceptor.events
    assert isinstance(event, StreamOpened)
    stream = event.stream
    assert (stream.kind, stream.handle, stream.hops, stream.facts) == (Kind.TCP, 9, 3, {"viewer": "192.0.2.1:5"})


def test_facts_that_are_too_long_are_refused_at_once() -> None:
    with pytest.raises(LocalProtocolError):
        Pair().dialler.mux.open(Kind.TCP, 9, facts={"viewer": "x" * 5000})


def test_max_streams_is_cumulative_and_raised_by_release() -> None:
    pair = Pair(SMALL, SMALL)
    streams = [pair.dialler.open() for _ in range(4)]
    mux = pair.dialler.mux
    assert mux.refusal is Refusal.MAX_STREAMS
    assert mux.open(Kind.HTTP, 1) is None
    pair.drive()
    for stream in streams:
        stream.reset(Code.CANCELLED)
    pair.drive()
    assert mux.refusal is Refusal.MAX_STREAMS, "a reset alone raises nothing"
    pair.acceptor.sinks[1].stream.release()
    pair.acceptor.sinks[1].stream.release()
    pair.drive()
    assert mux.refusal is None, "one is told at once when none is left"
    assert pair.dialler.events == [OpenAllowed()]
    for number in (3, 5):
        pair.acceptor.sinks[number].stream.release()
    pair.drive()
    for _ in range(3):
        assert mux.open(Kind.HTTP, 1) is not None
    assert mux.open(Kind.HTTP, 1) is None


def test_max_streams_is_told_when_half_have_ended_or_when_none_is_left() -> None:
    pair = Pair(SMALL, SMALL)
    mux = pair.dialler.mux
    first, second = pair.dialler.open(), pair.dialler.open()
    pair.drive()
    first.reset(Code.CANCELLED)
    pair.drive()
    pair.acceptor.sinks[1].stream.release()
    pair.drive()
    streams = [second, pair.dialler.open(), pair.dialler.open()]
    assert mux.refusal is Refusal.MAX_STREAMS, "one of four waits for a second"
    pair.drive()
    assert mux.refusal is None, "but not once all four have been opened"
    assert pair.acceptor.mux.audit() == []
    streams.append(pair.dialler.open())
    pair.drive()
    for stream in streams[1:]:
        stream.reset(Code.CANCELLED)
    pair.drive()
    for number in (3, 5, 7):
        pair.acceptor.sinks[number].stream.release()
        pair.drive()
        assert mux.refusal is None, "Streams that stay open for long take no place from the others"


def test_a_place_is_free_again_when_a_stream_is_reset_before_its_open_left() -> None:
    side = Side(Role.DIALLER, SMALL, Limits(max_streams=1))
    stream = side.open()
    assert side.mux.open(Kind.HTTP, 1) is None
    stream.reset(Code.CANCELLED)
    side.run()
    assert side.events == [OpenAllowed()]
    assert side.flush() == b""
    assert not side.mux.has_output


def test_a_max_streams_that_raises_nothing_is_ignored() -> None:
    side = Side(Role.DIALLER, SMALL, Limits(max_streams=1))
    side.open()
    assert side.mux.open(Kind.HTTP, 1) is None
    assert side.receive(frames.encode_max_streams(1)) == []
    assert side.mux.refusal is Refusal.MAX_STREAMS


def test_the_last_id_is_the_limit() -> None:
    side = Side(Role.ACCEPTOR, SMALL, SMALL, max_id=4)
    side.open()
    assert side.mux.refusal is None
    side.open()
    assert side.mux.refusal is Refusal.IDS
    assert side.mux.open(Kind.HTTP, 1) is None
    side.flush()
    assert side.mux.refusal is Refusal.IDS


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (peer_open(2), Code.PROTOCOL_ERROR),
        (peer_open(0), Code.PROTOCOL_ERROR),
        (peer_open(3) + peer_open(3), Code.PROTOCOL_ERROR),
        (peer_open(3) + peer_open(1), Code.PROTOCOL_ERROR),
        (b"".join(peer_open(n) for n in (1, 3, 5, 7, 9)), Code.LIMIT_EXCEEDED),
        (peer_open(window=MAX_CREDIT + 1), Code.FLOW_CONTROL_ERROR),
        (peer_open(facts=b"[]"), Code.PROTOCOL_ERROR),
        (frames.encode(Frame.DATA, 1, b"x"), Code.PROTOCOL_ERROR),
        (frames.encode(Frame.DATA, 2, b"x"), Code.PROTOCOL_ERROR),
        (frames.encode(Frame.FIN, 1), Code.PROTOCOL_ERROR),
        (frames.encode_stop(0, 1), Code.PROTOCOL_ERROR),
        (frames.encode_reset(0, 1, 0), Code.PROTOCOL_ERROR),
        (frames.encode_window(0, 0), Code.PROTOCOL_ERROR),
        (frames.encode_window(0, MAX_CREDIT), Code.FLOW_CONTROL_ERROR),
        (frames.encode(Frame.MAX_STREAMS, 1, bytes(4)), Code.PROTOCOL_ERROR),
        (frames.encode(Frame.GOAWAY, 1, bytes(4)), Code.PROTOCOL_ERROR),
        (frames.encode(Frame.MOVE, 1, bytes(2)), Code.PROTOCOL_ERROR),
        (frames.encode(Frame.DATA, 0, b"{}\n[]\n"), Code.PROTOCOL_ERROR),
        (frames.encode(Frame.DATA, 0, b"x" * (MAX_MESSAGE + 1)), Code.LIMIT_EXCEEDED),
        (frames.encode(Frame.DATA, 0, b"x" * (MAX_MESSAGE + 1) + b"\n"), Code.LIMIT_EXCEEDED),
        (frames.encode(Frame.DATA, 0, b"{") + frames.encode(Frame.FIN, 0), Code.PROTOCOL_ERROR),
        (frames.encode(Frame.FIN, 0) * 2, Code.PROTOCOL_ERROR),
        (frames.encode(Frame.FIN, 0) + frames.encode(Frame.DATA, 0, b"{}\n"), Code.PROTOCOL_ERROR),
    ],
)
def test_what_ends_the_link(data: bytes, code: Code) -> None:
    assert failure(Side(Role.ACCEPTOR, SMALL, SMALL), data) is code
    side = Side(Role.ACCEPTOR, SMALL, SMALL)
    events = [event for n in range(len(data)) for event in side.receive(data[n : n + 1])]
    assert isinstance(events[-1], Failed)
    assert events[-1].code is code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frames.encode(Frame.FIN, 1) * 2, Code.PROTOCOL_ERROR),
        (frames.encode(Frame.FIN, 1) + frames.encode(Frame.DATA, 1, b"x"), Code.PROTOCOL_ERROR),
        (frames.encode_window(1, MAX_CREDIT), Code.FLOW_CONTROL_ERROR),
    ],
)
def test_what_a_stream_may_not_get(data: bytes, code: Code) -> None:
    assert failure(accepting(), data) is code


def test_frames_for_an_ended_stream_are_dropped() -> None:
    side = accepting()
    side.sinks[1].stream.reset(Code.CANCELLED)
    late = [
        frames.encode(Frame.DATA, 1, b"x" * 65536),
        frames.encode_window(1, 5),
        frames.encode_stop(1, 1),
        frames.encode_reset(1, 1, 1),
        frames.encode(Frame.FIN, 1),
    ]
    assert side.receive(b"".join(late)) == []
    assert side.sinks[1].calls == []
    side.audit()


def test_unknown_kinds_are_reset_and_leave_their_place() -> None:
    side = Side(Role.ACCEPTOR, Limits(max_streams=1), SMALL)
    assert side.receive(peer_open(1, kind=200)) == []
    assert cut(side.flush()) == [(Frame.RESET, 1, 10), (Frame.MAX_STREAMS, 0, 4)]


# Credit


def test_the_acceptor_tops_up_at_once() -> None:
    side = Side(Role.ACCEPTOR, SMALL, SMALL)
    side.receive(peer_open())
    assert side.sinks[1].stream.granted == FIRST_WINDOW
    assert side.flush() == frames.encode_window(1, FIRST_WINDOW - STREAM_WINDOW)


def test_windows_wait_for_room_one_by_one() -> None:
    side = Side(Role.ACCEPTOR, SMALL, SMALL)
    side.receive(peer_open(1) + peer_open(3) + peer_open(5))
    side.sinks[5].stream.stop()
    assert cut(side.flush(12)) == [(Frame.WINDOW, 1, 4)]
    side.audit()
    assert cut(side.flush(12)) == [(Frame.WINDOW, 3, 4)]
    assert cut(side.flush(12)) == [(Frame.STOP, 5, 2)]
    assert not side.mux.has_output


def test_an_acceptor_without_budget_gives_what_it_reserved() -> None:
    side = Side(Role.ACCEPTOR, SMALL, SMALL, total=4 * STREAM_WINDOW)
    side.receive(peer_open())
    assert side.sinks[1].stream.granted == STREAM_WINDOW
    assert not side.mux.has_output


def test_the_reserve_must_fit() -> None:
    with pytest.raises(LocalProtocolError):
        Side(Role.ACCEPTOR, SMALL, SMALL, total=4 * STREAM_WINDOW - 1)


def test_data_beyond_the_credit_ends_the_link() -> None:
    side = Side(Role.ACCEPTOR, SMALL, SMALL, total=4 * STREAM_WINDOW)
    side.greedy = False
    side.receive(peer_open())
    side.run()
    assert side.receive(frames.encode(Frame.DATA, 1, b"x" * STREAM_WINDOW)) == []
    assert failure(side, frames.encode(Frame.DATA, 1, b"x")) is Code.FLOW_CONTROL_ERROR


def test_credit_returns_at_a_quarter_of_a_window() -> None:
    pair = Pair()
    pair.acceptor.greedy = False
    stream, _, other, there = pair.opened()
    sent = 0
    while (taken := stream.send_nowait(bytes(65536))) or not stream.blocked or sent < FIRST_WINDOW:
        sent += taken
        pair.drive()
    assert len(there.data) == FIRST_WINDOW
    assert other.granted == 0
    there.consume(FIRST_WINDOW // 4 - 1)
    assert other.granted == FIRST_WINDOW // 4 - 1
    assert not pair.acceptor.mux.has_output
    there.consume(1)
    assert pair.acceptor.flush() == frames.encode_window(1, FIRST_WINDOW // 4)


def test_consuming_too_much_is_a_bug() -> None:
    side = accepting()
    sink = side.sinks[1]
    sink.greedy = False
    side.receive(frames.encode(Frame.DATA, 1, b"abc"))
    with pytest.raises(LocalProtocolError):
        sink.stream.consumed(4)
    with pytest.raises(LocalProtocolError):
        sink.stream.consumed(-1)
    sink.stream.pause()
    side.receive(frames.encode(Frame.DATA, 1, b"def"))
    with pytest.raises(LocalProtocolError):
        sink.stream.consumed(4)
    sink.stream.consumed(3)
    side.audit()


def fill(side: Side, count: int, now: float) -> None:
    """Have Stream 1 take `count` bytes in pieces, at `now`."""
    while count:
        piece = min(count, MAX_DATA)
        side.receive(frames.encode(Frame.DATA, 1, bytes(piece)), now)
        side.flush(now=now)
        count -= piece


def test_a_window_grows_and_is_remembered() -> None:
    side = accepting()
    stream = side.sinks[1].stream
    fill(side, FIRST_WINDOW, 1.0)
    assert stream.growth.size == FIRST_WINDOW, "no round trip is known"
    side.mux.rtt = 0.1
    fill(side, FIRST_WINDOW, 2.0)
    fill(side, 2 * FIRST_WINDOW, 3.0)
    assert stream.growth.size == stream.granted == 4 * FIRST_WINDOW
    side.audit()
    fill(side, 4 * FIRST_WINDOW, 3.1)
    side.receive(peer_open(3), 10.0)
    assert side.sinks[3].stream.granted == 2 * FIRST_WINDOW
    side.receive(peer_open(5), 400.0)
    assert side.sinks[5].stream.granted == FIRST_WINDOW
    stream.reset(Code.CANCELLED)
    side.audit()


def test_a_slow_reader_does_not_grow_its_window() -> None:
    side = accepting()
    side.mux.rtt = 0.1
    fill(side, FIRST_WINDOW // 2, 1.0)
    fill(side, FIRST_WINDOW // 2, 1.3)
    assert side.sinks[1].stream.growth.size == FIRST_WINDOW


def test_an_open_waits_for_the_budget() -> None:
    parent = Budget(STREAM_WINDOW * 6)
    side = Side(Role.DIALLER, SMALL, SMALL)
    side.budget.give(side.budget.out)
    side.budget.parent = parent
    assert side.budget.take(4 * STREAM_WINDOW)
    first, second, third = side.open(), side.open(), side.open()
    third.send_nowait(b"hello")
    side.flush()
    assert (first.opened, second.opened, third.opened) == (True, True, False)
    assert not side.mux.has_output
    assert side.mux.next_deadline() == STARVED_SECONDS
    third.send_nowait(b" there")
    side.audit()
    side.mux.handle_timeout(STARVED_SECONDS / 2)
    assert not side.mux.has_output
    side.mux.handle_timeout(STARVED_SECONDS)
    assert side.flush(now=1.0) == b""
    assert side.mux.next_deadline() == 1.0 + STARVED_SECONDS
    first.reset(Code.CANCELLED)
    assert [frame[0] for frame in cut(side.flush(now=1.0))] == [Frame.RESET, Frame.OPEN, Frame.DATA]
    side.mux.handle_timeout(2.0)
    assert side.mux.next_deadline() is None


def test_windows_shrink_as_the_budget_fills() -> None:
    total = 4 * STREAM_WINDOW + 2 * FIRST_WINDOW
    side = Side(Role.DIALLER, SMALL, Limits(), total)
    sizes = []
    for _ in range(4):
        stream = side.open()
        side.flush()
        sizes.append(stream.granted)
    assert sizes == [FIRST_WINDOW, LESSER_WINDOW, LESSER_WINDOW, STREAM_WINDOW]


def test_what_is_unconsumed_stays_on_the_budget_until_it_is_consumed() -> None:
    side = accepting()
    sink = side.sinks[1]
    sink.greedy = False
    sink.stream.send_eof()
    side.flush()
    reserve = 4 * STREAM_WINDOW
    side.receive(frames.encode(Frame.DATA, 1, bytes(50_000)) + frames.encode(Frame.FIN, 1))
    assert side.budget.out == reserve + 50_000 - STREAM_WINDOW
    side.audit()
    sink.consume(10_000)
    assert side.budget.out == reserve + 40_000 - STREAM_WINDOW
    sink.consume()
    assert side.budget.out == reserve
    side.audit()


@pytest.mark.parametrize("end", ["stop", "release", "reset"])
def test_a_user_who_is_done_holds_no_budget(end: str) -> None:
    side = accepting()
    sink = side.sinks[1]
    sink.greedy = False
    sink.stream.send_eof()
    side.flush()
    if end == "stop":
        sink.stream.pause()
    side.receive(frames.encode(Frame.DATA, 1, bytes(50_000)) + frames.encode(Frame.FIN, 1))
    getattr(sink.stream, end)(*[1] * (end == "reset"))
    assert side.budget.out == 4 * STREAM_WINDOW
    sink.stream.consumed(50_000)
    side.audit()


def test_a_closed_mux_holds_no_budget() -> None:
    side = accepting()
    sink = side.sinks[1]
    sink.greedy = False
    sink.stream.send_eof()
    side.flush()
    side.receive(frames.encode(Frame.DATA, 1, bytes(50_000)) + frames.encode(Frame.FIN, 1))
    side.mux.close(Code.LINK_LOST)
    assert side.budget.out == 0
    sink.consume()
    side.run()
    assert side.budget.out == 0
    assert sink.calls == ["eof"]
    side.audit()


# Sending


def test_the_queue_is_bounded_and_says_when_there_is_room() -> None:
    pair = Pair()
    stream, here, _, there = pair.opened()
    room = stream.credit
    assert STREAM_QUEUE < room <= STREAM_QUEUE_MOST
    assert stream.writable
    assert stream.send_nowait(b"") == 0
    assert stream.send_nowait(bytes(room)) == room
    assert not stream.writable
    assert stream.send_nowait(b"x") == 0
    pair.dialler.flush(room - QUEUE_LOW - 100)
    assert not pair.dialler.posted
    pair = Pair()
    stream, here, _, there = pair.opened()
    assert stream.send_nowait(bytes(room + 5)) == room
    pair.drive()
    assert here.calls == ["writable"]
    assert stream.writable
    assert len(there.data) == room


@pytest.mark.parametrize(
    ("credit", "most"),
    [
        (0, STREAM_QUEUE),
        (STREAM_QUEUE, STREAM_QUEUE),
        (STREAM_QUEUE + 1, STREAM_QUEUE + 1),
        (STREAM_QUEUE_MOST, STREAM_QUEUE_MOST),
        (STREAM_QUEUE_MOST + 1, STREAM_QUEUE_MOST),
    ],
)
def test_a_stream_queues_what_it_has_credit_for_within_limits(credit: int, most: int) -> None:
    pair = Pair()
    stream, _, _, _ = pair.opened()
    stream.credit = credit
    assert stream.send_nowait(bytes(2 * STREAM_QUEUE_MOST)) == most
    assert stream.audit(0) == []
    assert stream.send_nowait(b"x") == 0


def test_many_small_sends_are_cheap_to_hold_and_leave_in_one_frame() -> None:
    pair = Pair()
    stream, _, _, there = pair.opened()
    message = bytes(n % 251 for n in range(9000))
    for n in range(0, 9000, 3):
        stream.send_nowait(memoryview(message)[n : n + 3])
    assert len(stream.queue) < 24
    data = pair.dialler.flush()
    assert cut(data) == [(Frame.DATA, 1, 9000)]
    pair.acceptor.receive(data)
    assert bytes(there.data) == message


def test_small_sends_cut_in_the_middle_arrive_whole() -> None:
    pair = Pair()
    stream, _, _, there = pair.opened()
    for n in range(200):
        stream.send_nowait(bytes([n]) * 60)
        if n % 3 == 0:
            pair.acceptor.receive(pair.dialler.flush(50))
    pair.drive()
    assert bytes(there.data) == b"".join(bytes([n]) * 60 for n in range(200))


def test_sending_after_send_eof_is_a_bug_until_the_stream_is_stopped() -> None:
    pair = Pair()
    stream, here, other, _ = pair.opened()
    stream.send_eof()
    with pytest.raises(LocalProtocolError):
        stream.send_nowait(b"x")
    pair.drive()
    with pytest.raises(LocalProtocolError):
        stream.send_nowait(b"x")
    other.reset(Code.CANCELLED)
    pair.drive()
    assert stream.send_nowait(b"x") == 1
    assert here.calls == [("reset", Code.CANCELLED, 0)]


def test_any_limit_makes_progress_and_is_kept() -> None:
    pair = Pair()
    stream, _, _, there = pair.opened()
    other = pair.dialler.open()
    other.send_nowait(b"y" * 300)
    stream.send_nowait(b"x" * 300)
    pair.dialler.mux.send_message({"type": "unbind"})
    pair.dialler.mux.move(5)
    while pair.dialler.mux.has_output:
        data = pair.dialler.flush(1)
        assert len(data) == 1
        pair.acceptor.receive(data)
        pair.acceptor.run()
        pair.dialler.audit()
    assert bytes(there.data) == b"x" * 300
    assert bytes(pair.acceptor.sinks[3].data) == b"y" * 300
    told = [event for event in pair.acceptor.events if not isinstance(event, StreamOpened)]
    assert told == [Move(5), MessageReceived({"type": "unbind"})]
    assert pair.dialler.flush(0) == b""


def test_a_scrap_waits_for_the_next_call() -> None:
    pair = Pair()
    stream, _, _, _ = pair.opened()
    other = pair.dialler.open()
    pair.drive()
    stream.send_nowait(bytes(1000))
    other.send_nowait(bytes(1000))
    assert cut(pair.dialler.flush(1100)) == [(Frame.DATA, 1, 1000)]
    assert cut(pair.dialler.flush(50)) == [(Frame.DATA, 3, 42)]
    assert cut(pair.dialler.flush()) == [(Frame.DATA, 3, 958)]


def test_what_is_large_is_not_copied() -> None:
    pair = Pair()
    stream, _, _, _ = pair.opened()
    large = bytes(20_000)
    stream.send_nowait(large)
    header, body = pair.dialler.mux.data_to_send(65536, 0)
    assert len(header) == 8
    assert body is large


def test_streams_take_turns_by_bytes() -> None:
    pair = Pair()
    one, two = pair.dialler.open(), pair.dialler.open()
    pair.drive()
    one.send_nowait(bytes(50_000))
    two.send_nowait(bytes(20_000))
    sent = cut(pair.dialler.flush())
    assert sent == [
        (Frame.DATA, 1, QUANTUM),
        (Frame.DATA, 3, QUANTUM),
        (Frame.DATA, 1, QUANTUM),
        (Frame.DATA, 3, 20_000 - QUANTUM),
        (Frame.DATA, 1, 65536 - 5 * 8 - 2 * QUANTUM - 20_000),
    ]


def test_a_turn_goes_on_over_several_calls() -> None:
    pair = Pair()
    one, two = pair.dialler.open(), pair.dialler.open()
    pair.drive()
    one.send_nowait(bytes(40_000))
    two.send_nowait(bytes(40_000))
    sent: list[tuple[int, int]] = []
    for _ in range(8):
        sent += [(stream_id, length) for _, stream_id, length in cut(pair.dialler.flush(8192 + 8))]
    assert sent == [(1, 8192), (1, 8192), (3, 8192), (3, 8192)] * 2


def test_short_frames_go_first_then_control_then_streams() -> None:
    pair = Pair()
    stream, _, other, _ = pair.opened()
    second = pair.dialler.open()
    pair.drive()
    stream.send_nowait(b"data")
    mux = pair.dialler.mux
    mux.send_message({"type": "x"})
    second.stop(3)
    mux.goaway()
    mux.goaway()
    other.send_nowait(bytes(STREAM_QUEUE))
    pair.acceptor.run()
    for _ in range(3):
        pair.dialler.receive(pair.acceptor.flush(70_000))
        other.send_nowait(bytes(STREAM_QUEUE))
    kinds = [Frame(frame[0]) for frame in cut(pair.dialler.flush())]
    assert kinds == [Frame.WINDOW, Frame.STOP, Frame.GOAWAY, Frame.DATA, Frame.DATA]


def test_control_data_waits_for_its_credit_and_short_frames_do_not() -> None:
    side = Side(Role.DIALLER, SMALL, SMALL)
    for n in range(6):
        side.mux.send_message({"n": n, "x": "x" * 16000})
    side.flush(10)
    assert len(side.flush(10**6)) > 60_000
    assert not side.mux.has_output
    side.mux.move(9)
    assert cut(side.flush()) == [(Frame.MOVE, 0, 2)]
    side.receive(frames.encode_window(0, CONTROL_WINDOW))
    assert sum(frame[2] for frame in cut(side.flush(10**6))) > 16000
    side.audit()


def test_output_is_marked_once() -> None:
    side = Side(Role.DIALLER, SMALL, SMALL)
    stream = side.open()
    assert side.marks == 1
    stream.send_nowait(b"x")
    stream.send_eof()
    side.mux.move(1)
    assert side.marks == 1
    side.flush()
    assert not side.mux.has_output
    side.mux.move(1)
    assert side.marks == 2


# Receiving


def test_a_new_stream_waits_for_its_sink_within_its_credit() -> None:
    side = Side(Role.ACCEPTOR, SMALL, SMALL)
    data = peer_open() + frames.encode(Frame.DATA, 1, b"early") + frames.encode(Frame.FIN, 1)
    (event,) = side.mux.receive_data(data, 0.0)
    assert isinstance(event, StreamOpened)
    assert event.stream.receiving
    sink = Recorder(event.stream)
    assert sink.data == b""
    side.audit()
    side.run()
    assert (bytes(sink.data), sink.calls) == (b"early", ["eof"])
    assert not event.stream.receiving


def test_pause_keeps_the_order() -> None:
    side = accepting()
    sink = side.sinks[1]
    stream = sink.stream
    stream.pause()
    for n in range(40):
        side.receive(frames.encode(Frame.DATA, 1, bytes([n])))
    stream.resume()
    side.receive(frames.encode(Frame.DATA, 1, b"last"))
    assert sink.data == b""
    side.audit()
    side.run()
    assert bytes(sink.data) == bytes(range(40)) + b"last"
    side.receive(frames.encode(Frame.DATA, 1, b"direct"))
    assert sink.data.endswith(b"direct")
    stream.pause()
    side.receive(frames.encode(Frame.FIN, 1))
    side.run()
    assert sink.calls == []
    stream.resume()
    side.run()
    assert sink.calls == ["eof"]


class PausingSink(Recorder):
    def on_data(self, data: Data) -> None:
        super().on_data(data)
        self.stream.pause()


def test_pausing_within_on_data_stops_what_waits() -> None:
    side = accepting()
    stream = side.sinks[1].stream
    stream.sink = None
    side.receive(frames.encode(Frame.DATA, 1, b"a" * 2000) + frames.encode(Frame.DATA, 1, b"b" * 2000))
    sink = PausingSink(stream)
    side.run()
    assert sink.data == b"a" * 2000
    side.audit()
    stream.resume()
    side.run()
    assert len(sink.data) == 4000


def test_an_exchanged_sink_gets_what_comes_next() -> None:
    side = accepting()
    old = side.sinks[1]
    side.receive(frames.encode(Frame.DATA, 1, b"one"))
    new = Recorder(old.stream)
    side.receive(frames.encode(Frame.DATA, 1, b"two"))
    assert (bytes(old.data), bytes(new.data)) == (b"one", b"two")


def test_ends_wait_for_the_next_sink() -> None:
    for code in (Code.CANCELLED, Code.HOST_CLOSED):
        side = accepting()
        stream = side.sinks[1].stream
        stream.sink = None
        stop = frames.encode_stop(1, 4)
        side.receive(stop + frames.encode(Frame.DATA, 1, b"answer"))
        side.run()
        sink = Recorder(stream)
        side.run()
        assert (bytes(sink.data), sink.calls) == (b"answer", [("stop", 4)])
        stream.sink = None
        side.receive(frames.encode_reset(1, code, 3))
        side.run()
        side.audit()
        stream.sink = sink
        side.run()
        assert sink.calls == [("stop", 4), ("reset", code, 3)]
        stream.sink = sink
        stream.resume()
        assert not side.posted


# Stop and reset


def test_stop_ends_one_direction_only() -> None:
    pair = Pair()
    stream, here, other, there = pair.opened()
    other.stop(4)
    other.stop(5)
    assert not other.receiving
    stream.send_nowait(b"for nobody")
    pair.acceptor.receive(pair.dialler.flush())
    pair.dialler.receive(pair.acceptor.flush())
    assert not stream.sending
    assert stream.send_nowait(b"lost") == 4
    stream.send_eof()
    assert stream.writable
    assert here.calls == []
    pair.drive()
    assert here.calls == [("stop", 4)]
    assert (bytes(there.data), there.calls) == (b"", [])
    assert other.granted == 0, "FIN has come"
    other.send_nowait(b"answer")
    other.send_eof()
    pair.drive()
    assert (bytes(here.data), here.calls) == (b"answer", [("stop", 4), "eof"])
    assert stream.over
    assert other.over


def test_a_stop_drops_what_is_queued_and_sends_fin_at_once() -> None:
    side = accepting()
    stream = side.sinks[1].stream
    stream.send_nowait(bytes(30_000))
    stream.send_eof()
    side.receive(frames.encode_stop(1, 0))
    assert cut(side.flush()) == [(Frame.FIN, 1, 0)]
    side.receive(frames.encode_stop(1, 9))
    side.run()
    assert side.sinks[1].calls == [("stop", 0)]


def test_a_stop_takes_the_place_of_room() -> None:
    side = accepting()
    side.sinks[1].stream.send_nowait(bytes(STREAM_QUEUE))
    side.flush(10**6)
    side.receive(frames.encode_stop(1, 0))
    side.run()
    assert side.sinks[1].calls == [("stop", 0)]


def test_a_stop_before_our_open_follows_it() -> None:
    side = Side(Role.DIALLER, SMALL, SMALL)
    stream = side.open()
    stream.stop(3)
    assert cut(side.flush()) == [(Frame.OPEN, 1, 12), (Frame.STOP, 1, 2)]
    side.audit()


def test_a_stop_after_fin_drops_what_waits() -> None:
    side = accepting()
    stream = side.sinks[1].stream
    stream.pause()
    side.receive(frames.encode(Frame.DATA, 1, b"x") + frames.encode(Frame.FIN, 1))
    stream.stop()
    stream.resume()
    side.run()
    assert side.sinks[1].calls == []
    assert not side.mux.has_output


def test_reset_passes_data() -> None:
    pair = Pair()
    stream, here, other, there = pair.opened()
    other.pause()
    stream.send_nowait(b"first")
    pair.drive()
    stream.send_nowait(b"second")
    stream.reset(Code.CANCELLED, 3)
    stream.reset(Code.CANCELLED, 3)
    assert cut(pair.dialler.flush()) == [(Frame.RESET, 1, 10)]
    pair.acceptor.receive(frames.encode_reset(1, Code.CANCELLED, 3))
    assert (bytes(there.data), there.calls) == (b"", [("reset", Code.CANCELLED, 3)])
    assert not other.receiving
    assert other.send_nowait(b"x") == 1
    other.consumed(100)
    other.stop()
    pair.drive()
    assert here.calls == []


def test_a_reset_of_the_hosts_end_keeps_its_place() -> None:
    pair = Pair()
    stream, _, other, there = pair.opened()
    other.pause()
    stream.send_nowait(b"early ")
    pair.drive()
    stream.send_nowait(b"answer")
    stream.reset(Code.HOST_CLOSED, 77)
    assert stream.send_nowait(b"more") == 4
    assert not stream.receiving
    other.send_nowait(b"for nobody")
    pair.drive()
    assert there.calls == []
    assert not other.sending
    assert other.receiving
    other.resume()
    pair.drive()
    assert bytes(there.data) == b"early answer"
    assert there.calls == [("reset", Code.HOST_CLOSED, 77)]


def test_a_verdict_of_the_agent_comes_behind_the_answer_before_it() -> None:
    pair = Pair()
    stream, _, _, there = pair.opened()
    stream.send_nowait(b"answer")
    stream.reset(Code.NOT_PROCESSED, 7)
    pair.drive()
    assert bytes(there.data) == b"answer"
    assert there.calls == [("reset", Code.NOT_PROCESSED, 7)]


def test_a_reset_of_the_hosts_end_comes_behind_an_eof_that_waits() -> None:
    side = accepting()
    stream = side.sinks[1].stream
    stream.pause()
    side.receive(frames.encode(Frame.FIN, 1) + frames.encode_reset(1, Code.HOST_CLOSED, 0))
    side.run()
    assert side.sinks[1].calls == []
    stream.resume()
    side.run()
    assert side.sinks[1].calls == ["eof", ("reset", Code.HOST_CLOSED, 0)]


def test_a_stop_lets_a_waiting_reset_go_at_once() -> None:
    side = accepting()
    stream = side.sinks[1].stream
    stream.send_nowait(bytes(30_000))
    stream.reset(Code.HOST_CLOSED, 7)
    side.receive(frames.encode_stop(1, 0))
    side.run()
    assert side.flush() == frames.encode_reset(1, Code.HOST_CLOSED, 7)
    assert side.sinks[1].calls == []
    side.audit()


def test_a_peers_reset_ends_one_that_waits() -> None:
    side = accepting()
    stream = side.sinks[1].stream
    stream.send_nowait(bytes(30_000))
    stream.reset(Code.HOST_CLOSED, 7)
    side.receive(frames.encode(Frame.FIN, 1) + frames.encode_reset(1, 17, 0))
    side.run()
    assert side.flush() == b""
    assert side.sinks[1].calls == []
    side.audit()


def test_a_reset_before_any_data_of_the_host_leaves_at_once() -> None:
    side = accepting()
    side.sinks[1].stream.reset(Code.HOST_REFUSED)
    assert side.flush() == frames.encode_reset(1, Code.HOST_REFUSED, 0)


def test_release_after_an_answer_lets_it_drain() -> None:
    pair = Pair()
    stream, here, other, there = pair.opened()
    other.send_nowait(b"answer")
    other.send_eof()
    other.release()
    pair.drive()
    assert (bytes(here.data), here.calls) == (b"answer", ["eof", ("stop", Code.CANCELLED)])
    assert there.calls == []
    stream.send_nowait(b"x")
    assert stream.over


def test_release_resets_what_is_open() -> None:
    pair = Pair()
    stream, _, _, there = pair.opened()
    stream.release()
    pair.drive()
    assert there.calls == [("reset", Code.CANCELLED, 0)]


# The first ring


class Bad(Recorder):
    """A sink that fails in one of its calls."""

    def __init__(self, stream: Any, where: str) -> None:
        super().__init__(stream)
        self.where = where

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") and name == super().__getattribute__("where"):
            raise ZeroDivisionError
        return super().__getattribute__(name)


@pytest.mark.parametrize("where", ["on_data", "on_eof", "on_reset", "on_stop", "on_writable"])
@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_a_failing_sink_harms_its_stream_only(where: str, pieces: bool, late: bool) -> None:
    side = accepting()
    side.receive(peer_open(3))
    side.run()
    side.flush()
    stream, good = side.sinks[1].stream, side.sinks[3]
    bad = Bad(stream, where)
    if late:
        stream.sink = None
    stream.send_nowait(bytes(STREAM_QUEUE))
    side.receive(frames.encode_window(1, STREAM_QUEUE))
    side.flush(10**6)
    frame = {
        "on_data": frames.encode(Frame.DATA, 1, b"x" * 20),
        "on_eof": frames.encode(Frame.FIN, 1),
        "on_reset": frames.encode_reset(1, 17, 0),
        "on_stop": frames.encode_stop(1, 1),
        "on_writable": b"",
    }[where]
    data = frame + frames.encode(Frame.DATA, 3, b"fine")
    for piece in [data[n : n + 1] for n in range(len(data))] if pieces else [data]:
        side.receive(piece)
    stream.sink = bad
    side.run()
    failed = [event for event in side.events if isinstance(event, SinkFailed)]
    assert [(event.stream, type(event.error)) for event in failed] == [(stream, ZeroDivisionError)]
    assert good.data == b"fine"
    assert not stream.sending
    sent = side.flush(10**6)
    assert (frames.encode_reset(1, Code.INTERNAL_ERROR, 0) in sent) == (where != "on_reset")
    side.audit()


def test_a_bug_in_the_control_reader_is_not_hidden() -> None:
    side = Side(Role.ACCEPTOR, SMALL, SMALL)
    side.mux.control.sink = Bad(side.mux.control, "on_data")
    with pytest.raises(ZeroDivisionError):
        side.receive(frames.encode(Frame.DATA, 0, b"{}\n"))


# Control stream, going away, freezing, closing


def test_messages_arrive_in_order_however_they_are_split() -> None:
    messages = [{"type": "bind", "id": n, "x": "y" * 900} for n in range(150)]
    data = b"".join(map(frames.encode_message, messages))
    side = Side(Role.ACCEPTOR, SMALL, SMALL)
    for n in range(0, len(data), 777):
        side.receive(frames.encode(Frame.DATA, 0, data[n : n + 777]))
        side.flush()
    assert side.events == [MessageReceived(message) for message in messages]
    side.audit()


def test_the_control_streams_end_means_closing() -> None:
    pair = Pair()
    pair.dialler.mux.send_message({"type": "unbind"})
    pair.dialler.mux.end_control()
    pair.dialler.mux.end_control()
    pair.drive()
    assert pair.acceptor.events == [MessageReceived({"type": "unbind"}), PeerClosing()]
    with pytest.raises(LocalProtocolError):
        pair.dialler.mux.send_message({})


def test_goaway_refuses_what_comes_after() -> None:
    pair = Pair(SMALL, SMALL)
    pair.opened()
    under_way = pair.dialler.open(sink=False)
    sink = Recorder(under_way)
    data = pair.dialler.flush()
    pair.acceptor.mux.goaway()
    unopened = pair.dialler.open(sink=False)
    unopened_sink = Recorder(unopened)
    pair.dialler.receive(pair.acceptor.flush())
    assert pair.dialler.events == [GoAway(1)]
    assert pair.dialler.mux.refusal is Refusal.GOAWAY
    pair.dialler.run()
    assert unopened_sink.calls == [("reset", Code.NOT_PROCESSED, 0)]
    assert sink.calls == []
    pair.acceptor.receive(data)
    pair.drive()
    assert sink.calls == [("reset", Code.NOT_PROCESSED, 0)]
    assert under_way.over
    assert unopened.over
    assert list(pair.acceptor.sinks) == [1]
    theirs = pair.acceptor.open()
    pair.drive()
    assert theirs.id == 2, "who goes away may still open"


def test_move() -> None:
    pair = Pair()
    pair.acceptor.mux.move(500)
    pair.drive()
    assert pair.dialler.events == [Move(500)]


def test_a_frozen_link_takes_nothing() -> None:
    pair = Pair()
    stream, here, _, there = pair.opened()
    full = pair.dialler.open()
    full.send_nowait(bytes(STREAM_QUEUE))
    mux = pair.dialler.mux
    mux.freeze()
    assert stream.suspended
    assert not stream.writable
    assert stream.send_nowait(b"x") == 0
    newborn = pair.dialler.open()
    assert not newborn.writable
    mux.thaw()
    assert stream.writable
    assert newborn.writable
    assert not full.writable
    assert not stream.suspended
    pair.drive()
    assert here.calls == ["writable"]
    assert full.writable
    assert stream.send_nowait(b"x") == 1
    mux.thaw()
    assert not pair.dialler.posted
    pair.drive()
    assert there.data == b"x"


def test_close_tells_every_stream() -> None:
    pair = Pair()
    stream, here, _, _ = pair.opened()
    unopened = pair.dialler.open()
    silent = pair.dialler.open()
    silent.reset(17)
    waiting = unopened.sink
    stream.send_nowait(b"x")
    mux = pair.dialler.mux
    mux.close(Code.LINK_LOST)
    mux.close(Code.LINK_LOST)
    assert pair.dialler.budget.out == 0
    assert here.calls == []
    pair.dialler.run()
    assert here.calls == [("reset", Code.LINK_LOST, 0)]
    assert isinstance(waiting, Recorder)
    assert waiting.calls == [("reset", Code.LINK_LOST, 0)]
    assert not mux.has_output
    assert mux.refusal is Refusal.CLOSED
    assert mux.open(Kind.HTTP, 1) is None
    for command in (mux.goaway, lambda: mux.move(1), lambda: mux.send_message({}), mux.end_control, stream.release):
        command()
    assert not mux.has_output
    assert pair.dialler.receive(peer_open(2)) == []
    pair.dialler.audit()


def test_closing_passes_by_a_reset_that_waits() -> None:
    side = accepting()
    side.sinks[1].stream.send_nowait(b"x")
    side.sinks[1].stream.reset(Code.HOST_CLOSED)
    side.mux.close(Code.LINK_LOST)
    side.run()
    assert side.sinks[1].calls == []
    side.sinks[1].stream.release()
    assert not side.mux.has_output


class Closer(Recorder):
    """A sink that ends the whole Link."""

    def on_data(self, data: Data) -> None:
        self.stream.mux.close(Code.GOING_AWAY)
        self.stream.mux.frozen = False


@pytest.mark.parametrize("rest", [peer_open(3), frames.encode(Frame.DATA, 99, b"x"), b"\x00" * 8, frames.encode_stop(1, 0)])
def test_the_link_may_be_closed_from_within_a_sink(rest: bytes) -> None:
    side = accepting()
    Closer(side.sinks[1].stream)
    assert side.receive(frames.encode(Frame.DATA, 1, b"x") + rest) == []
    side.audit()


# Rates and rubbish


def test_idle_frames_are_limited_and_traffic_pays_for_them() -> None:
    side = accepting()
    idle = frames.encode_window(1, 1)
    assert side.receive(idle * MINOR_FRAMES_BURST) == []
    side.receive(frames.encode(Frame.DATA, 1, b"x"), 0.0)
    assert side.receive(idle * 2) == []
    assert failure(side, idle * 5) is Code.LIMIT_EXCEEDED


def test_sent_data_pays_too_and_the_allowance_may_be_shared() -> None:
    minor = Allowance(1, 1)
    mux = Mux(Role.DIALLER, SMALL, SMALL, budget=Budget(LINK_BUDGET), post=lambda *a: None, on_output=lambda: None, minor=minor)
    stream = mux.open(Kind.HTTP, 1)
    assert stream is not None
    stream.send_nowait(b"x")
    mux.data_to_send(65536, 0.0)
    assert minor.left == 5
    assert mux.receive_data(b"\x80\x00\x00\x00\x00\x00\x00\x00", 0.0) == []
    assert minor.left == 4


def sample() -> bytes:
    """Valid traffic of a dialler."""
    pair = Pair(SMALL, SMALL)
    one, two = pair.dialler.open(), pair.dialler.open()
    one.send_nowait(bytes(700))
    two.send_nowait(b"abc" * 30)
    two.send_eof()
    pair.dialler.mux.send_message({"type": "bind", "id": 1})
    data = pair.dialler.flush()
    one.stop(4)
    two.reset(17, 1)
    pair.dialler.open().reset(Code.HOST_CLOSED)
    pair.dialler.mux.move(7)
    return data + pair.dialler.flush() + frames.encode_window(1, 5) + frames.encode_max_streams(9)


SAMPLE = sample()


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=4), st.integers(1, 400))
def test_mutated_traffic_never_raises(changes: list[tuple[int, int]], size: int) -> None:
    data = bytearray(SAMPLE)
    for at, byte in changes:
        data[at] = byte
    side = Side(Role.ACCEPTOR, SMALL, SMALL)
    for n in range(0, len(data), size):
        side.receive(bytes(data[n : n + size]))
        side.run()
        side.audit()
        side.flush()
    assert changes or not any(isinstance(event, Failed) for event in side.events)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_random_bytes_never_raise(pieces: list[bytes]) -> None:
    side = Side(Role.ACCEPTOR, SMALL, SMALL)
    for piece in pieces:
        side.receive(piece)
        side.run()
        side.audit()


@given(st.integers(1, 50))
def test_pieces_equal_the_whole(size: int) -> None:
    def outcome(step: int) -> Any:
        side = Side(Role.ACCEPTOR, SMALL, SMALL)
        for n in range(0, len(SAMPLE), step):
            side.receive(SAMPLE[n : n + step])
        side.run()
        told = [event for event in side.events if not isinstance(event, StreamOpened)]
        calls = {n: [call for call in sink.calls if call != "eof"] for n, sink in side.sinks.items()}  # a reset may pass it
        return told, calls, side.sinks[1].data, side.flush(10**6)

    assert outcome(size) == outcome(len(SAMPLE))


def test_an_unread_stream_delays_nobody() -> None:
    pair = Pair()
    pair.acceptor.greedy = False
    stream, _, _, there = pair.opened()
    for _ in range(20):
        stream.send_nowait(bytes(65536))
        pair.drive()
    assert len(there.data) == FIRST_WINDOW
    pair.acceptor.greedy = True
    other = pair.dialler.open()
    other.send_nowait(b"quick")
    data = pair.dialler.flush()
    pair.acceptor.receive(data)
    pair.drive()
    assert pair.acceptor.sinks[3].data == b"quick"


def test_the_audit_sees_what_is_wrong() -> None:
    def broken(change: Any) -> list[str]:
        side = accepting()
        side.receive(peer_open(3))
        change(side, side.sinks[1].stream)
        return side.mux.audit()

    def scheduled_twice(side: Side, stream: Any) -> None:
        stream.send_nowait(b"x")
        side.mux.scheduler.add(stream)

    def unmarked(side: Side, stream: Any) -> None:
        stream.send_nowait(b"x")
        side.mux.scheduler._marked = False

    def out_of_the_scheduler(side: Side, stream: Any) -> None:
        stream.send_nowait(b"x")
        side.mux.scheduler._ready.clear()

    def unscheduled(side: Side, stream: Any) -> None:
        stream.eof_queued = True

    def passes(side: Side, stream: Any) -> None:
        stream._paused = True

    fields = {"owed": 1, "credit": -1, "queued": 5, "_waiting_bytes": 3, "_stop_due": 3, "blocked": True, "held": 0}
    assert broken(lambda side, stream: None) == []
    for field, value in fields.items():
        assert broken(lambda side, stream, field=field, value=value: setattr(stream, field, value)), field
    for change in (scheduled_twice, unmarked, out_of_the_scheduler, unscheduled, passes):
        assert broken(change), change
    assert broken(lambda side, stream: setattr(stream, "window_due", True))


def test_a_mux_is_busy_while_streams_are_open_for_all_or_for_one_handle() -> None:
    pair = Pair()
    mux = pair.dialler.mux
    assert not mux.busy()
    assert not mux.busy(0), "the control stream is no Tunnel's"
    stream = mux.open(Kind.HTTP, 7)
    assert stream is not None
    assert mux.busy()
    assert mux.busy(7)
    assert not mux.busy(8)
    stream.reset(Code.CANCELLED)
    assert not mux.busy()
    assert not mux.busy(7)


def test_a_tunnel_that_is_gone_takes_its_streams_along() -> None:
    """The Edge abandons what it opened for one handle: both ends are told, other handles go on."""
    pair = Pair()
    mine = pair.acceptor.mux.open(Kind.HTTP, 1)
    other = pair.acceptor.mux.open(Kind.HTTP, 2)
    unopened = None
    assert mine is not None
    assert other is not None
    ends = [Recorder(mine), Recorder(other)]
    pair.drive()
    unopened = pair.acceptor.mux.open(Kind.HTTP, 1)
    assert unopened is not None
    ends.append(Recorder(unopened))
    pair.acceptor.mux.abandon(1, Code.REPLACED)
    pair.drive()
    assert [end.calls for end in ends] == [[("reset", Code.REPLACED, 0)], [], [("reset", Code.REPLACED, 0)]]
    assert [sink.calls for sink in pair.dialler.sinks.values() if sink.calls] == [[("reset", Code.REPLACED, 0)]]
