"""Handshake messages and the reading of them (docs/protocol.md sections 5 and 6)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbore.proto import handshake
from netbore.proto.errors import RemoteProtocolError
from netbore.proto.handshake import (
    FROM_ACCEPTOR,
    FROM_DIALLER,
    Credential,
    Handshake,
    Hello,
    Limits,
    Message,
    Reject,
    Resume,
    Resumed,
    Welcome,
    encode,
)
from netbore.proto.records import encode_number, encode_record
from netbore.proto.wire import HANDSHAKE_RECORDS, Code, Record

SECRET = "5e" * 32
HELLO = Hello(
    minor=(0, 0),
    credential=Credential("operator", "op-secret"),
    instance="0123456789abcdef0123456789abcdef",
    agent="netbore/0.1.0",
    limits=Limits(),
    capabilities=("datagrams",),
    keeps=("e1.7",),
)
WELCOME = Welcome(minor=0, edge="e1", link="e1.8", secret=SECRET, links=1, grace=60, limits=Limits(10, 20), capabilities=())
RESUME = Resume("e1.8", 3, 1234, handshake.proof(SECRET, "e1", "e1.8", 3, 1234))
MESSAGES: list[Message] = [
    HELLO,
    WELCOME,
    RESUME,
    Resumed(3, 77),
    Reject(Code.UNAUTHORIZED, "no such token"),
    Reject(Code.STALE_EPOCH, "too old", epoch=4),
    Reject(Code.VERSION_UNSUPPORTED, "too new", minor=(0, 3)),
]


def reader_for(message: Message) -> Handshake:
    return Handshake(FROM_DIALLER if message.record in FROM_DIALLER else FROM_ACCEPTOR)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_there_and_back(message: Message) -> None:
    data = encode(message)
    whole = reader_for(message)
    assert whole.receive_data(data + b"rest") == message
    assert whole.decoder.leftover() == b"rest"
    bytewise = reader_for(message)
    assert [bytewise.receive_data(data[n : n + 1]) for n in range(len(data))] == [None] * (len(data) - 1) + [message]


def test_two_messages_in_one_read_come_one_by_one() -> None:
    both = Handshake(FROM_DIALLER)
    assert both.receive_data(encode(RESUME) + encode(HELLO)) == RESUME
    assert both.receive_data(b"") == HELLO


def test_secrets_are_not_shown() -> None:
    assert "op-secret" not in repr(HELLO)
    assert SECRET not in repr(WELCOME)


def test_what_a_stranger_may_not_say() -> None:
    for data in (encode_number(Record.PING, 1), encode(WELCOME), b"\x7f\x00\x00\x00", b"\x90\x00\x00\x02hi", b"\x10\xff\xff\xff"):
        with pytest.raises(RemoteProtocolError) as caught:
            Handshake(FROM_DIALLER).receive_data(data)
        assert caught.value.code is Code.PROTOCOL_ERROR


def test_a_stranger_gets_few_attempts() -> None:
    stranger = Handshake(FROM_DIALLER)
    for _ in range(HANDSHAKE_RECORDS):
        assert stranger.receive_data(encode(RESUME)) == RESUME
    with pytest.raises(RemoteProtocolError) as caught:
        stranger.receive_data(encode(RESUME))
    assert caught.value.code is Code.LIMIT_EXCEEDED


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"\xff", b"[" * 8000, b"null"])
def test_not_a_json_object(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        Handshake(FROM_DIALLER).receive_data(encode_record(Record.HELLO, payload))
    assert caught.value.code is Code.PROTOCOL_ERROR


def test_a_member_that_must_be_understood() -> None:
    payload = json.dumps(dict(HELLO.to_json()) | {"quantum!": 1, "harmless": 2}).encode()
    with pytest.raises(RemoteProtocolError) as caught:
        Handshake(FROM_DIALLER).receive_data(encode_record(Record.HELLO, payload))
    assert caught.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize(
    ("message", "member", "value"),
    [
        (HELLO, "minor", [0]),
        (HELLO, "minor", [0, True]),
        (HELLO, "minor", "0"),
        (HELLO, "credential", "operator"),
        (HELLO, "credential", {"type": "root", "token": "t"}),
        (HELLO, "credential", {"type": "operator"}),
        (HELLO, "credential", {"type": "operator", "token": "t" * 4097}),
        (HELLO, "instance", "xyz"),
        (HELLO, "instance", "X" * 32),
        (HELLO, "agent", None),
        (HELLO, "capabilities", ["a"] * 65),
        (HELLO, "capabilities", [1]),
        (HELLO, "keeps", "e1.7"),
        (HELLO, "limits", None),
        (HELLO, "limits", {"max_streams": -1, "stream_window": 0}),
        (HELLO, "limits", {"max_streams": 1, "stream_window": 2**31}),
        (WELCOME, "links", 0),
        (WELCOME, "secret", "00"),
        (RESUME, "epoch", 0),
        (RESUME, "epoch", 1.5),
        (RESUME, "epoch", True),
        (RESUME, "received", 2**53 + 1),
        (Resumed(1, 1), "received", None),
        (MESSAGES[4], "code", 65536),
        (MESSAGES[5], "epoch", "4"),
    ],
)
def test_members_of_the_wrong_shape(message: Message, member: str, value: object) -> None:
    payload = json.dumps(dict(message.to_json()) | {member: value}).encode()
    with pytest.raises(RemoteProtocolError) as caught:
        reader_for(message).receive_data(encode_record(Record(message.record), payload))
    assert caught.value.code is Code.PROTOCOL_ERROR


def test_a_credential_in_a_control_message() -> None:
    assert Credential.from_json({"type": "recreate", "token": "t"}) == Credential("recreate", "t")
    for wrong in (None, "t", {"type": "x", "token": "t"}):
        with pytest.raises(RemoteProtocolError):
            Credential.from_json(wrong)


def test_the_proof_covers_all_that_it_stands_for() -> None:
    assert handshake.proves(RESUME, SECRET, "e1")
    for resume in (
        Resume("e1.9", 3, 1234, RESUME.proof),
        Resume("e1.8", 4, 1234, RESUME.proof),
        Resume("e1.8", 3, 1235, RESUME.proof),
        Resume("e1.8", 3, 1234, "00" * 32),
    ):
        assert not handshake.proves(resume, SECRET, "e1")
    assert not handshake.proves(RESUME, "00" * 32, "e1")
    assert not handshake.proves(RESUME, SECRET, "e2")


@pytest.mark.parametrize(
    ("theirs", "ours", "chosen"),
    [((0, 0), (0, 0), 0), ((0, 5), (2, 3), 3), ((2, 9), (0, 4), 4), ((3, 4), (0, 2), None), ((0, 1), (2, 2), None)],
)
def test_the_highest_common_minor_is_chosen(theirs: tuple[int, int], ours: tuple[int, int], chosen: int | None) -> None:
    assert handshake.choose_minor(theirs, ours) == chosen


def heard(data: bytes, message: Message) -> Message | Code | int | None:
    """What comes of `data` where `message` is expected."""
    try:
        return reader_for(message).receive_data(data)
    except RemoteProtocolError as error:
        return error.code


@given(st.binary(max_size=400), st.sampled_from(MESSAGES), st.integers(0, 300))
def test_nonsense_is_refused_by_name(noise: bytes, message: Message, at: int) -> None:
    """Random bytes, and valid ones with a hole, give a message, a wait for more, or a code: nothing else."""
    data = encode(message)
    outcomes = [heard(noise, message), heard(data[:at] + noise + data[at + len(noise) :], message)]
    assert all(isinstance(outcome, type(message) | int | None) for outcome in outcomes)
