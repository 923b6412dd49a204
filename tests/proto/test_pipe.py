"""The Pipe: what goes in comes out, once and in order, whatever happens to the transports."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from netbore.proto.errors import LocalProtocolError, RemoteProtocolError
from netbore.proto.pipe import PULL_LEAST, Closed, Failed, Pipe, PipeState, TransportDead
from netbore.proto.pipe_state import TRANSITIONS, Input
from netbore.proto.rate import Allowance
from netbore.proto.records import RecordDecoder, encode_close, encode_number, encode_record, encode_seq_header
from netbore.proto.stream import Data
from netbore.proto.window import Budget
from netbore.proto.wire import (
    ACK_BYTES,
    ACK_SECONDS,
    DEAD_SECONDS,
    FIRST_ROOM,
    FLUSH,
    LESSER_WINDOW,
    LINK_BUDGET,
    MAX_SEQ,
    MINOR_FRAMES_BURST,
    RTT_MEMORY_SECONDS,
    SEND_SECONDS,
    STALL_SECONDS,
    STREAM_WINDOW,
    Code,
    Record,
)
from tests.proto.wire import Network, Peer, joined


class Half:
    """A Pipe with a source above that has bytes to give, and a sink that collects."""

    def __init__(self, on_output: Any = lambda: None, seed: int = 0, allowance: Allowance | None = None) -> None:
        self.random = Random(seed)
        self.budget = Budget(LINK_BUDGET)
        self.marks = 0
        self._mark = on_output
        self.pipe = Pipe(pull=self.pull, deliver=self.deliver, budget=self.budget, on_output=self.on_output, allowance=allowance)
        self.to_send = bytearray()
        self.given = 0  # of `to_send`, to the Pipe
        self.got = bytearray()

    def on_output(self) -> None:
        self.marks += 1
        self._mark()

    def pull(self, limit: int, _now: float) -> list[Data]:
        assert limit >= PULL_LEAST
        parts: list[Data] = []
        while self.given < len(self.to_send) and limit:
            size = self.random.choice((1, 100, 5000, 65536))
            part = bytes(self.to_send[self.given : self.given + min(limit, size)])
            self.given += len(part)
            limit -= len(part)
            parts.append(part)
        return parts

    def deliver(self, data: Data, _now: float) -> None:
        self.got += data

    def write(self, data: bytes) -> None:
        self.to_send += data
        self._mark()

    @property
    def has_output(self) -> bool:
        return self.pipe.has_output or (self.pipe.can_pull and self.given < len(self.to_send))

    def attach(self, peer_received: int, now: float, decoder: RecordDecoder | None = None) -> list[Any]:
        self.pipe.attach(peer_received, now, decoder)
        return list(self.pipe.receive_data(b"", now))

    def detach(self, now: float) -> None:
        self.pipe.detach(now)

    def receive_data(self, data: bytes, now: float) -> list[Any]:
        return list(self.pipe.receive_data(data, now))

    def data_to_send(self, limit: int, now: float) -> bytes:
        return self.pipe.data_to_send(limit, now)

    def next_deadline(self) -> float | None:
        return self.pipe.next_deadline()

    def handle_timeout(self, now: float) -> list[Any]:
        return list(self.pipe.handle_timeout(now))

    def audit(self) -> list[str]:
        return self.pipe.audit()


def attached(received: int = 0, now: float = 0.0) -> Half:
    """A Half on a transport, whose first PING has left."""
    half = Half()
    half.attach(received, now)
    assert half.data_to_send(FLUSH, now) == encode_number(Record.PING, 1)
    half.marks = 0
    return half


def ping_pong(half: Half, number: int, rtt: float) -> None:
    """Answer the PING that left at 0 after `rtt`."""
    assert half.receive_data(encode_number(Record.PONG, number), rtt) == []


def seq(data: bytes) -> bytes:
    return encode_seq_header(len(data)) + data


def ack(offset: int) -> bytes:
    return encode_number(Record.ACK, offset)


def pattern(count: int, seed: int = 1) -> bytes:
    return Random(seed).randbytes(count)


# States


def stated(state: PipeState) -> Half:
    half = Half()
    if state is not PipeState.DETACHED:
        half.attach(0, 0.0)
    if state is PipeState.CLOSED:
        half.pipe.close(0, "")
    return half


GIVE: dict[Input, Any] = {
    Input.ATTACH: lambda half: half.attach(0, 0.0),
    Input.DETACH: lambda half: half.detach(0.0),
    Input.CLOSE: lambda half: half.pipe.close(0, ""),
    Input.RECEIVE: lambda half: half.receive_data(seq(b"x") + encode_number(Record.PING, 1), 0.0),
    Input.RECEIVE_CLOSE: lambda half: half.receive_data(encode_close(0, ""), 0.0),
}


@given(st.lists(st.sampled_from(list(Input)), max_size=8))
def test_every_state_and_input(inputs: list[Input]) -> None:
    """The Pipe goes where the table says, and what is absent from it raises and changes nothing."""
    half = Half()
    state = PipeState.DETACHED
    for given_input in inputs:
        following = TRANSITIONS.get((state, given_input))
        if following is None:
            with pytest.raises(LocalProtocolError):
                GIVE[given_input](half)
        else:
            GIVE[given_input](half)
            state = following
        assert half.pipe.state is state
        assert half.audit() == []


@pytest.mark.parametrize("state", list(PipeState))
@pytest.mark.parametrize("given_input", list(Input))
def test_each_state_and_input(state: PipeState, given_input: Input) -> None:
    half = stated(state)
    if (state, given_input) in TRANSITIONS:
        GIVE[given_input](half)
        assert half.pipe.state is TRANSITIONS[state, given_input]
    else:
        with pytest.raises(LocalProtocolError, match=f"while {state.name}"):
            GIVE[given_input](half)
        assert half.pipe.state is state


def test_the_table_is_that_of_the_page() -> None:
    """docs/protocol.md section 3 names the same states, and where CLOSE and the end of the transport lead."""
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    rows = {
        cells[0]: cells[1:]
        for line in page.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 7 and cells[0] in PipeState.__members__
    }
    assert set(rows) == set(PipeState.__members__)
    for name, (_, sequence, _, _, close, ends) in rows.items():
        state = PipeState[name]
        for given_input, cell in ((Input.RECEIVE, sequence), (Input.RECEIVE_CLOSE, close), (Input.DETACH, ends)):
            following = TRANSITIONS.get((state, given_input))
            if cell == "-":
                assert following is None
            elif re.fullmatch("[A-Z]+", cell):
                assert following is PipeState[cell]
            else:
                assert following is state


# Sending


def test_order_of_a_flush() -> None:
    """ACK rides in front, PONG and PING follow, then what must be sent again, then new bytes."""
    half = attached()
    half.write(b"old")
    assert half.data_to_send(FLUSH, 0.0) == seq(b"old")
    half.detach(0.0)
    half.attach(1, 1.0)
    half.receive_data(seq(b"theirs") + encode_number(Record.PING, 99), 1.0)
    half.write(b"new")
    expected = ack(6) + encode_number(Record.PONG, 99) + encode_number(Record.PING, 2) + seq(b"ld") + seq(b"new")
    assert half.data_to_send(FLUSH, 1.0) == expected
    assert half.data_to_send(FLUSH, 1.0) == b""


@given(st.integers(0, 9000), st.integers(0, 40), st.integers(0, 10000))
def test_limit_counts_encoded_bytes(limit: int, pings: int, again: int) -> None:
    """No flush is longer than its limit, and from 8192 on every flush makes progress."""
    half = attached()
    half.write(bytes(again))
    while half.has_output:
        half.data_to_send(FLUSH, 0.0)
    half.detach(0.0)
    half.attach(0, 0.0)
    half.receive_data(seq(b"x") + encode_number(Record.PING, 1) * pings, 0.0)
    half.write(bytes(20000))
    assert len(half.data_to_send(limit, 0.0)) <= limit
    while half.has_output:
        assert 0 < len(half.data_to_send(max(limit, 8192), 0.0)) <= max(limit, 8192)
    assert half.pipe.sent == again + 20000


def test_a_sequence_record_has_a_most() -> None:
    """A limit above what one record holds is used by one record's worth."""
    half = attached()
    half.pipe.room.size = 4 * MAX_SEQ
    half.write(bytes(2 * MAX_SEQ))
    assert len(half.data_to_send(3 * MAX_SEQ, 0.0)) == 4 + MAX_SEQ
    half.data_to_send(3 * MAX_SEQ, 0.0)
    half.detach(0.0)
    half.attach(0, 0.0)
    assert not half.pipe.can_pull
    half.write(b"new")
    again = half.data_to_send(4 * MAX_SEQ, 0.0)
    assert again == encode_number(Record.PING, 2) + seq(bytes(MAX_SEQ)), "nothing new before all is sent again"
    assert half.data_to_send(4 * MAX_SEQ, 0.0) == seq(bytes(MAX_SEQ)) + seq(b"new")


def test_a_large_flush_is_kept_by_reference() -> None:
    half = attached()
    half.write(pattern(60000))
    header, body = half.pipe.parts_to_send(FLUSH, 0.0)
    assert header == encode_seq_header(60000)
    half.detach(0.0)
    half.attach(0, 0.0)
    [part] = half.pipe._replay.again(FLUSH)
    assert part is body
    assert part == pattern(60000)


def test_small_parts_of_a_flush_leave_as_one_and_are_kept_without_its_records() -> None:
    half = attached()
    half.write(b"new")
    half.receive_data(seq(b"theirs"), 0.0)
    [flush] = half.pipe.parts_to_send(FLUSH, 0.0)
    assert flush == ack(6) + seq(b"new")
    half.detach(0.0)
    half.attach(0, 0.0)
    assert half.pipe._replay.again(FLUSH) == [b"new"]


def test_full_room_is_not_output_until_an_ack() -> None:
    half = attached()
    half.write(bytes(2 * FIRST_ROOM))
    while half.has_output:
        half.data_to_send(FLUSH, 0.0)
    full = half.pipe.sent
    assert FIRST_ROOM - PULL_LEAST < full <= FIRST_ROOM
    assert half.data_to_send(FLUSH, 0.0) == b""
    half.receive_data(ack(0), 0.1)
    assert not half.has_output
    assert half.marks == 0
    half.receive_data(ack(100000), 0.1)
    assert half.has_output
    assert half.marks == 1


def test_a_source_that_overruns_its_limit_is_a_bug() -> None:
    pipe = Pipe(
        pull=lambda limit, _: [bytes(limit + 1)], deliver=lambda *_: None, budget=Budget(LINK_BUDGET), on_output=lambda: None
    )
    pipe.attach(0, 0.0)
    with pytest.raises(LocalProtocolError, match="pulled"):
        pipe.data_to_send(FLUSH, 0.0)


# Acknowledging


def test_ack_waits_25_ms_and_then_goes_alone() -> None:
    half = attached()
    half.receive_data(seq(b"abc"), 1.0)
    half.receive_data(seq(b"d"), 1.02)
    assert not half.has_output
    assert half.data_to_send(FLUSH, 1.02) == b""
    deadline = half.next_deadline()
    assert deadline == 1.0 + ACK_SECONDS
    assert half.handle_timeout(deadline - 0.001) == []
    assert not half.has_output
    half.handle_timeout(deadline)
    assert half.marks == 1
    half.receive_data(seq(b"e"), 1.03)
    assert half.next_deadline() == SEND_SECONDS, "a forced ACK has no timer"
    assert half.data_to_send(5, 1.03) == b""
    assert half.data_to_send(FLUSH, 1.03) == ack(5)
    assert not half.has_output


def test_ack_is_forced_by_bytes() -> None:
    half = attached()
    half.receive_data(seq(bytes(ACK_BYTES - 1)), 0.0)
    assert not half.has_output
    half.receive_data(seq(b"x"), 0.0)
    assert half.has_output
    assert half.marks == 1
    assert half.next_deadline() == SEND_SECONDS
    assert half.data_to_send(FLUSH, 0.0) == ack(ACK_BYTES)


@pytest.mark.parametrize("offset", [0, 9, 2**53, 2**64 - 1])
def test_impossible_ack_ends_the_link(offset: int) -> None:
    half = attached()
    half.write(b"12345678")
    half.data_to_send(FLUSH, 0.0)
    half.receive_data(ack(4), 0.0)
    [event] = half.receive_data(ack(offset) + seq(b"never seen"), 0.0)
    assert isinstance(event, Failed)
    assert event.code is Code.CORRUPT_SEQUENCE
    assert half.got == b""
    assert half.pipe.state is PipeState.CLOSED
    assert half.data_to_send(FLUSH, 0.0) == encode_close(event.code, event.text)
    assert not half.has_output
    assert half.budget.out == 0


def test_an_ack_cannot_pass_what_this_transport_was_sent() -> None:
    """After a resume the peer has what it said, and no more until it is sent again."""
    half = attached()
    half.write(b"12345678")
    half.data_to_send(FLUSH, 0.0)
    half.detach(0.0)
    half.attach(2, 0.0)
    [event] = half.receive_data(ack(8), 0.0)
    assert event.code is Code.CORRUPT_SEQUENCE


def test_audit_speaks() -> None:
    """A full replay without its timer, and an owed ACK without its own, are found."""
    half = attached()
    half.receive_data(seq(b"x"), 0.0)
    half.pipe._ack_at = None
    half.pipe._full_since = 1.0
    assert half.audit() == ["a full replay and its timer disagree", "an owed ACK has no timer"]


# Resume


@pytest.mark.parametrize("offset", [-1, 3, 9])
def test_impossible_resume_offset(offset: int) -> None:
    """It raises and changes nothing."""
    half = attached()
    half.write(b"12345678")
    half.data_to_send(FLUSH, 0.0)
    half.receive_data(ack(4), 0.0)
    half.detach(0.0)
    assert not half.pipe.accepts(offset)
    with pytest.raises(RemoteProtocolError) as caught:
        half.attach(offset, 0.0)
    assert caught.value.code is Code.CORRUPT_SEQUENCE
    assert half.pipe.state is PipeState.DETACHED
    half.attach(8, 0.0)
    assert half.pipe.acked == 8


@given(st.integers(0, 20000), st.integers(0, 20000), st.integers(0, 20000), st.integers(20, 5000))
def test_sent_again_from_any_offset(acked: int, resumed: int, partly: int, limit: int) -> None:
    """Everything from the peer's offset on is sent again, also when the first attempt was cut short."""
    acked, resumed = sorted((acked, resumed))
    half = attached()
    data = pattern(20000)
    half.write(data)
    while half.has_output:
        half.data_to_send(9000, 0.0)
    half.receive_data(ack(acked), 0.0)
    half.detach(0.0)
    half.attach(acked, 0.0)
    while half.pipe._replay.next < min(partly, 20000):
        half.data_to_send(limit, 0.0)
    half.detach(0.0)
    half.attach(resumed, 0.0)
    peer = Half()
    peer.attach(0, 0.0)
    half.write(b"and new")
    while half.has_output:
        peer.receive_data(half.data_to_send(8192, 0.0), 0.0)
    assert peer.got == data[resumed:] + b"and new"


def test_bytes_behind_the_handshake() -> None:
    """The decoder of the handshake is taken over with what it still holds."""
    decoder = RecordDecoder()
    answer = encode_record(Record.RESUMED, b"{}")
    assert decoder.receive_one(answer + seq(b"early") + b"\x01\x00", frozenset({Record.RESUMED})) == (Record.RESUMED, b"{}")
    half = Half()
    half.attach(0, 0.0, decoder)
    assert half.got == b"early"
    half.receive_data(b"\x00\x01!", 0.0)
    assert half.got == b"early!"


def test_a_partial_record_stays_received() -> None:
    half = attached()
    half.receive_data(seq(b"abcdef")[:7], 0.0)
    half.detach(0.0)
    assert half.pipe.received == 3
    half.attach(0, 1.0)
    assert half.data_to_send(FLUSH, 1.0) == encode_number(Record.PING, 2), "the resume has told what was received"
    half.receive_data(seq(b"def"), 1.0)
    assert half.got == b"abcdef"
    assert half.next_deadline() == 1.0 + ACK_SECONDS


# Liveness


def test_round_trip_is_the_smallest_of_five_minutes() -> None:
    half = attached()
    assert half.pipe.rtt is None
    ping_pong(half, 1, 0.2)
    assert half.pipe.rtt == pytest.approx(0.2)
    for now, rtt, smallest in ((5.0, 0.1, 0.1), (10.0, 0.3, 0.1), (20.0, 0.2, 0.1), (6 + RTT_MEMORY_SECONDS, 0.4, 0.2)):
        half.receive_data(ack(0), now)
        half.handle_timeout(now)
        [number] = re.findall(rb"\x03\x00\x00\x08(.{8})", half.data_to_send(FLUSH, now), re.DOTALL)
        half.receive_data(b"\x04\x00\x00\x08" + number, now + rtt)
        assert half.pipe.rtt == pytest.approx(smallest)


def test_pong_to_no_ping_is_ignored() -> None:
    half = attached()
    ping_pong(half, 2, 0.1)
    ping_pong(half, 0, 0.1)
    assert half.pipe.rtt is None
    half.detach(1.0)
    half.attach(0, 1.0)
    ping_pong(half, 1, 1.1)
    assert half.pipe.rtt is None, "the answer of an earlier transport"


def test_late_pong_answers_its_own_ping() -> None:
    """Eight PINGs are remembered, each until it is answered."""
    half = attached()
    for now in range(5, 45, 5):
        half.receive_data(ack(0), float(now))
        half.handle_timeout(float(now))
        half.data_to_send(FLUSH, float(now))
    ping_pong(half, 1, 50.0)
    assert half.pipe.rtt is None
    ping_pong(half, 2, 50.0)
    assert half.pipe.rtt == pytest.approx(45.0)
    ping_pong(half, 9, 50.5)
    assert half.pipe.rtt == pytest.approx(10.5)
    ping_pong(half, 9, 40.1)
    assert half.pipe.rtt == pytest.approx(10.5)


def test_ping_every_five_seconds() -> None:
    half = attached()
    assert half.next_deadline() == SEND_SECONDS
    half.handle_timeout(4.999)
    assert not half.has_output
    half.handle_timeout(5.0)
    assert half.has_output
    assert half.next_deadline() == DEAD_SECONDS, "a PING that waits for the transport has no timer"
    half.handle_timeout(6.0)
    assert half.data_to_send(FLUSH, 7.0) == encode_number(Record.PING, 2)
    assert half.next_deadline() == 12.0


def test_silence_of_15_seconds_is_death() -> None:
    half = attached()
    half.receive_data(b"\x01", 3.0)
    assert half.handle_timeout(17.999) == []
    assert half.next_deadline() == 18.0
    for _ in range(2):
        [event] = half.handle_timeout(18.0)
        assert isinstance(event, TransportDead)
    half.detach(18.0)
    assert half.next_deadline() is None
    assert half.handle_timeout(19.0) == []


def test_no_progress_of_30_seconds_is_death() -> None:
    """A peer that sends, but acknowledges nothing while the replay is full."""
    half = attached()
    half.write(bytes(2 * FIRST_ROOM))
    while half.has_output:
        half.data_to_send(FLUSH, 1.0)
    for now in range(2, 11):
        half.receive_data(encode_number(Record.PONG, 0), float(now))
    half.receive_data(ack(1), 11.0)
    for now in range(12, 41):
        half.receive_data(ack(1), float(now))
        assert half.handle_timeout(float(now)) == []
        half.data_to_send(FLUSH, float(now))
    assert half.next_deadline() == 11.0 + STALL_SECONDS
    [event] = half.handle_timeout(41.0)
    assert event == TransportDead("replay full and nothing acknowledged for 30 s")
    half.detach(41.0)
    half.attach(half.pipe.sent, 42.0)
    assert half.handle_timeout(42.0 + 14) == []


def test_room_doubles_when_it_is_used_up_quickly() -> None:
    half = attached()
    ping_pong(half, 1, 0.1)
    for _ in range(8):
        half.write(bytes(FIRST_ROOM))
        while half.has_output:
            half.data_to_send(FLUSH, 0.2)
        half.receive_data(ack(half.pipe.sent), 0.2)
    assert half.pipe.room.size == 8 * FIRST_ROOM
    assert half.budget.out == half.pipe.room.size
    half.pipe.close(0, "")
    assert half.budget.out == 0


def test_no_budget_for_a_link() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        Pipe(pull=lambda *_: [], deliver=lambda *_: None, budget=Budget(STREAM_WINDOW - 1), on_output=lambda: None)
    assert caught.value.code is Code.LIMIT_EXCEEDED


@pytest.mark.parametrize(
    ("out", "room"),
    [
        (0, FIRST_ROOM),
        (FIRST_ROOM, LESSER_WINDOW),
        (FIRST_ROOM * 3 // 2, STREAM_WINDOW),
        (2 * FIRST_ROOM - STREAM_WINDOW, STREAM_WINDOW),
    ],
)
def test_the_first_room_is_smaller_in_a_fuller_budget(out: int, room: int) -> None:
    budget = Budget(2 * FIRST_ROOM)
    assert budget.take(out)
    pipe = Pipe(pull=lambda *_: [], deliver=lambda *_: None, budget=budget, on_output=lambda: None)
    assert pipe.room.size == room
    assert budget.out == out + room
    pipe.close(0, "")
    assert budget.out == out


# Peers that do what they should not


def test_ping_flood_ends_the_link() -> None:
    half = attached()
    ping = encode_number(Record.PING, 1)
    assert half.receive_data(ping * MINOR_FRAMES_BURST, 0.0) == []
    assert len(half.data_to_send(FLUSH, 0.0)) == 16 * len(ping), "only the newest are answered"
    [event] = half.receive_data(ping, 0.0)
    assert event == Failed(Code.LIMIT_EXCEEDED, "too many records of type 0x03")


def test_skipped_records_count_too() -> None:
    half = Half(allowance=Allowance(rate=1.0, burst=2))
    half.attach(0, 0.0)
    new = bytes.fromhex("90000002") + b"??"
    assert half.receive_data(new + encode_record(Record.DATAGRAM, b"!") + seq(b"ok"), 0.0) == []
    assert half.got == b"ok"
    assert half.receive_data(new, 1.0) == []
    [event] = half.receive_data(new, 1.0)
    assert event.code is Code.LIMIT_EXCEEDED


@pytest.mark.parametrize("kind", [Record.HELLO, Record.WELCOME, Record.RESUME, Record.RESUMED, Record.REJECT])
def test_handshake_is_over(kind: Record) -> None:
    [event] = attached().receive_data(encode_record(kind, b"{}"), 0.0)
    assert event == Failed(Code.PROTOCOL_ERROR, f"a {kind.name} after the handshake")


def test_peer_closes() -> None:
    """A CLOSE ends everything, and nothing behind it counts."""
    half = attached()
    half.write(bytes(10000))
    half.data_to_send(8192, 0.0)
    events = half.receive_data(seq(b"last") + encode_close(999, "why") + seq(b"beyond") + b"\x00rubbish", 0.0)
    assert events == [Closed(999, "why")]
    assert half.got == b"last"
    assert not half.has_output
    assert half.data_to_send(FLUSH, 0.0) == b""
    assert half.receive_data(b"\x00rubbish", 0.0) == []
    assert half.next_deadline() is None
    assert half.budget.out == 0
    assert not half.pipe._replay._parts


def test_close_is_the_last_output() -> None:
    half = attached()
    half.write(b"dropped")
    half.pipe.close(Code.GOING_AWAY, "bye")
    half.pipe.close(Code.INTERNAL_ERROR, "the first counts")
    assert half.marks == 1
    assert half.data_to_send(3, 0.0) == b""
    assert half.has_output
    assert half.data_to_send(FLUSH, 0.0) == encode_close(Code.GOING_AWAY, "bye")
    assert not half.has_output


def test_close_without_a_transport_says_nothing() -> None:
    half = Half()
    half.pipe.close(Code.GRACE_EXPIRED, "")
    assert not half.has_output
    assert half.data_to_send(FLUSH, 0.0) == b""


# Deliveries that do things


class Reacting(Half):
    """A sink that does `react` with each piece."""

    react: Any = None

    def deliver(self, data: Data, now: float) -> None:
        super().deliver(data, now)
        self.react(self)


def reacting(react: Any) -> Reacting:
    half = Reacting()
    half.react = react
    half.attach(0, 0.0)
    return half


def test_the_layer_above_refuses() -> None:
    """A broken rule of the layer above ends the Link like one of this layer."""

    def refuse(_: Half) -> None:
        raise RemoteProtocolError(Code.FLOW_CONTROL_ERROR, "too much")

    half = reacting(refuse)
    assert half.receive_data(seq(b"x") + seq(b"y"), 0.0) == [Failed(Code.FLOW_CONTROL_ERROR, "too much")]
    assert half.got == b"x"


def test_a_bug_above_passes_through() -> None:
    """It is the driver's to end the Link, and the Pipe lets it."""

    def crash(_: Half) -> None:
        raise ZeroDivisionError

    half = reacting(crash)
    with pytest.raises(ZeroDivisionError):
        half.receive_data(seq(b"x"), 0.0)
    half.pipe.close(Code.INTERNAL_ERROR, "")
    assert half.data_to_send(FLUSH, 0.0) == encode_close(Code.INTERNAL_ERROR, "")


def test_a_delivery_may_end_the_transport() -> None:
    """What follows in the buffer belongs to a transport that is gone; what was delivered is counted."""
    half = reacting(lambda half: half.detach(0.0))
    assert half.receive_data(seq(b"abc") + seq(b"def"), 0.0) == []
    assert half.pipe.received == 3
    assert half.got == b"abc"
    assert half.audit() == []


def test_a_delivery_may_close() -> None:
    half = reacting(lambda half: half.pipe.close(Code.REPLACED, ""))
    assert half.receive_data(seq(b"abc") + b"\x00rubbish", 0.0) == []
    assert half.data_to_send(FLUSH, 0.0) == encode_close(Code.REPLACED, "")


# Anything at all


def traffic(seed: int) -> bytes:
    """What an honest peer with a mind of its own might send."""
    random = Random(seed)
    half = Half(seed=seed)
    half.attach(0, 0.0)
    half.write(random.randbytes(random.choice((10, 3000, 30000))))
    half.receive_data(seq(b"x") * random.randint(0, 3) + encode_number(Record.PING, 5) * random.randint(0, 3), 0.0)
    out = b""
    while half.has_output:
        out += half.data_to_send(random.randint(8192, 9000), 0.0)
    half.pipe.close(0, "bye")
    return out + bytes.fromhex("90000001aa") + (half.data_to_send(FLUSH, 0.0) if random.random() < 0.5 else b"")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(traffic(draw(st.integers(0, 30))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 2)):
            case 0:
                data[at] = draw(st.integers(0, 255))
            case 1 if len(data) > 1:
                del data[at : at + draw(st.integers(1, 10))]
                data = data or bytearray(b"\x01")
            case _:
                data[at:at] = draw(st.binary(max_size=10))
    return bytes(data)


@given(st.one_of(st.binary(max_size=300), mutated()), st.lists(st.integers(1, 2000), max_size=20))
@settings(deadline=None)
def test_nothing_a_peer_sends_raises(data: bytes, sizes: list[int]) -> None:
    """Any bytes give events or the end of the Link, and the same ones for every split."""

    def outcome(pieces: list[int]) -> tuple[list[Any], bytes, int, PipeState]:
        half = attached()
        half.write(bytes(1000))
        half.data_to_send(FLUSH, 0.0)
        events: list[Any] = []
        at = 0
        for size in [*pieces, len(data)]:
            events += half.receive_data(data[at : at + size], 0.0)
            at += size
            assert half.audit() == []
        assert len(events) <= 1
        return events, bytes(half.got), half.pipe.received, half.pipe.state

    whole = outcome([])
    assert outcome(sizes) == whole
    assert outcome([1] * min(len(data), 3000)) == whole


def test_memory_is_bounded() -> None:
    """A peer that sends all sorts and reads nothing makes the Pipe hold next to nothing."""
    pipe = Pipe(pull=lambda *_: [], deliver=lambda *_: None, budget=Budget(LINK_BUDGET), on_output=lambda: None)
    pipe.attach(0, 0.0)
    flood = seq(bytes(3000)) + encode_number(Record.PING, 1) + ack(0) + bytes.fromhex("90001000") + bytes(4096)
    flood += encode_record(Record.DATAGRAM, bytes(65536)) + encode_number(Record.PONG, 3)
    pipe.receive_data(flood, 0.0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for turn in range(300):
        assert pipe.receive_data(flood, float(turn)) == []
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20000


# Two of them


def pair(network: Network) -> tuple[Peer, Peer, Half, Half]:
    seeds = iter((1, 2))
    dialler, acceptor = joined(network, lambda peer: Half(on_output=peer.mark, seed=next(seeds)))
    assert isinstance(dialler.core, Half)
    assert isinstance(acceptor.core, Half)
    return dialler, acceptor, dialler.core, acceptor.core


def whole(here: Half, there: Half) -> bool:
    return here.to_send == there.got and there.to_send == here.got


def check(here: Half, there: Half) -> None:
    for giver, taker in ((here, there), (there, here)):
        assert giver.to_send.startswith(taker.got), "lost, repeated or reordered"
        assert len(taker.got) == taker.pipe.received
        assert giver.pipe.acked <= taker.pipe.received <= giver.pipe.sent
        assert giver.pipe.sent - giver.pipe.acked <= giver.pipe.room.size


@given(st.integers(0, 2**32), st.integers(0, 12), st.sampled_from((0.001, 0.05, 0.4)), st.sampled_from((5000, 65536)))
@settings(deadline=None, max_examples=60)
def test_whatever_the_cuts(seed: int, cuts: int, latency: float, capacity: int) -> None:
    """Both sequences arrive whole, however often the transport is cut, loses answers or falls silent."""
    network = Network(seed, latency, capacity)
    dialler, acceptor, here, there = pair(network)
    random = network.random
    here.write(random.randbytes(random.randint(0, 600000)))
    there.write(random.randbytes(random.randint(0, 600000)))
    dialler.dial()
    for _ in range(cuts):
        network.run(random.uniform(0, 20 * latency))
        acceptor.lose_answers = random.randint(0, 2)
        random.choice((here, there)).write(random.randbytes(random.choice((1, 100, 3000))))
        match random.randint(0, 3):
            case 0:
                dialler.dial()
            case 1:
                dialler.cables[-1].cut(silent=True)
            case _:
                dialler.cables[-1].cut()
        check(here, there)
    assert network.run_until(lambda: whole(here, there))
    assert not [event for event in dialler.events + acceptor.events if not isinstance(event, TransportDead)]
    network.run(20.0)
    assert here.pipe.acked == here.pipe.sent
    assert there.pipe.acked == there.pipe.sent


def test_without_the_fence_bytes_are_lost_or_repeated() -> None:
    """The wire does show it when a side counts before it fences: late bytes of the old transport enter twice."""

    def holds(fences: bool, seed: int) -> bool:
        network = Network(seed)
        dialler, _, here, there = pair(network)
        dialler.fences = fences
        there.write(pattern(300000))
        dialler.dial()
        network.run(0.2)
        dialler.dial()
        network.run(60.0)
        return bool(there.to_send == here.got)

    assert all(holds(True, seed) for seed in range(10))
    assert not any(holds(False, seed) for seed in range(10))


def full(half: Half) -> bool:
    return half.pipe.sent - half.pipe.acked > FIRST_ROOM - PULL_LEAST and not half.has_output


def test_both_rooms_full_is_no_deadlock() -> None:
    """Both sides wait for room at once, with far more to say: ACKs need no room, so both go on."""
    network = Network(3, 2.0, 10**7)
    dialler, _, here, there = pair(network)
    here.write(pattern(6 * FIRST_ROOM, 1))
    there.write(pattern(6 * FIRST_ROOM, 2))
    dialler.dial()
    network.run(5.0)
    assert full(here)
    assert full(there)
    assert network.run_until(lambda: whole(here, there))
    assert dialler.events == []


def test_rooms_filled_by_a_transport_that_is_silently_gone() -> None:
    """The next transport empties them."""
    network = Network(4, 0.05, 10**7)
    dialler, acceptor, here, there = pair(network)
    dialler.dial()
    network.run(0.5)
    dialler.cables[-1].cut(silent=True)
    here.write(pattern(2 * FIRST_ROOM, 1))
    there.write(pattern(2 * FIRST_ROOM, 2))
    network.run(2.0)
    assert full(here)
    assert full(there)
    assert network.run_until(lambda: whole(here, there))
    assert [type(event) for event in dialler.events + acceptor.events] == [TransportDead] * 2


def test_idle_links_stay_alive() -> None:
    network = Network(5)
    dialler, acceptor, here, there = pair(network)
    dialler.dial()
    network.run(1000.0)
    assert dialler.events == acceptor.events == []
    assert here.pipe.rtt is not None
    assert 0.1 <= here.pipe.rtt <= 0.13
    assert there.pipe.rtt is not None


def test_throughput_grows_with_the_room() -> None:
    """On a long path the room grows until the path is the limit."""
    network = Network(6, 0.05, 10**7)
    dialler, _, here, there = pair(network)
    dialler.dial()
    network.run(1.0)
    here.write(pattern(8_000_000))
    start = network.now
    assert network.run_until(lambda: whole(here, there))
    assert network.now - start < 1.0
    assert here.pipe.room.size > FIRST_ROOM


class Cuts(RuleBasedStateMachine):
    """Writing, waiting and breaking in any order; at the end, everything arrives."""

    @initialize(seed=st.integers(0, 1000), latency=st.sampled_from((0.01, 0.2)), capacity=st.sampled_from((2000, 65536)))
    def start(self, seed: int, latency: float, capacity: int) -> None:
        self.network = Network(seed, latency, capacity)
        self.dialler, self.acceptor, self.here, self.there = pair(self.network)
        self.dialler.dial()

    @rule(count=st.one_of(st.integers(1, 300), st.integers(1, 100000)), ours=st.booleans())
    def write(self, count: int, ours: bool) -> None:
        (self.here if ours else self.there).write(self.network.random.randbytes(count))

    @rule(seconds=st.sampled_from((0.001, 0.03, 0.3, 6.0)))
    def wait(self, seconds: float) -> None:
        self.network.run(seconds)

    @rule(silent=st.booleans())
    def cut(self, silent: bool) -> None:
        self.dialler.cables[-1].cut(silent)

    @rule()
    def dial(self) -> None:
        self.dialler.dial()

    @rule()
    def lose_an_answer(self) -> None:
        self.acceptor.lose_answers += 1

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "network"):
            check(self.here, self.there)
            assert self.here.audit() == self.there.audit() == []

    def teardown(self) -> None:
        if hasattr(self, "network"):
            assert self.network.run_until(lambda: whole(self.here, self.there))
            check(self.here, self.there)


Cuts.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestCuts = Cuts.TestCase
