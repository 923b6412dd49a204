"""The WebSocket pipe and upgrade, with wsproto as the oracle of what is right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsproto import WSConnection
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, Request
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from netbore.proto.errors import LocalProtocolError
from netbore.proto.http.codec import RequestReader
from netbore.proto.http.messages import End, RequestHead
from netbore.proto.stream import Data
from netbore.proto.websocket import (
    MAX_ANSWER,
    MOST_NAMES,
    MOST_TEXT,
    Answer,
    ClientHandshake,
    Opened,
    Refusal,
    Refused,
    Unusable,
    accept_upgrade,
)
from netbore.proto.websocket_pipe import MAX_HEADER, PeerEnd, WebSocketPipe

roles = pytest.mark.parametrize("client", [True, False], ids=["client", "server"])


def xor(data: Data, key: bytes) -> bytes:
    return bytes(byte ^ key[at % 4] for at, byte in enumerate(data))


def numbered() -> Callable[[], bytes]:
    numbers = count(0x01020304, 0x01010101)
    return lambda: (next(numbers) % 2**32).to_bytes(4, "big")


def pipe_of(client: bool) -> WebSocketPipe:
    return WebSocketPipe(client, xor, numbered())


def encode(pipe: WebSocketPipe, *payload: Data) -> bytes:
    """One message, as the bytes that go out."""
    return b"".join(pipe.encode(payload))


def control(pipe: WebSocketPipe) -> bytes:
    """The control frames that are due."""
    return b"".join(pipe.parts_to_send())


def feed(client: bool, pieces: list[bytes]) -> tuple[bytes, PeerEnd | None, bytes]:
    """What a pipe makes of these reads: payload, the peer's end, and what it says itself."""
    pipe = pipe_of(client)
    payload = b"".join(b"".join(pipe.receive_data(piece)) for piece in pieces)
    return payload, pipe.peer_end, control(pipe)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:stop] for start, stop in pairwise(edges)]


def frames_of(client: bool, data: bytes) -> list[Any]:
    """How wsproto, as the other side of a pipe, reads what the pipe sent."""
    reader = FrameProtocol(client=not client, extensions=[])
    reader.receive_bytes(data)
    return list(reader.received_frames())


places = st.lists(st.integers(0, 200000), max_size=12)
payloads = st.one_of(st.binary(max_size=20), st.integers(0, 70000).map(lambda size: bytes(range(256)) * (size // 256 + 1)))
controls = st.tuples(st.sampled_from(["ping", "pong"]), st.binary(max_size=125))
fragments = st.tuples(st.lists(controls, max_size=2), payloads)
messages = st.lists(st.lists(fragments, min_size=1, max_size=3), max_size=4)


def written(client: bool, script: list[list[tuple[list[tuple[str, bytes]], bytes]]]) -> tuple[bytes, bytes, bytes | None]:
    """The script as wsproto writes it for a pipe: bytes, payload, the last ping."""
    writer = FrameProtocol(client=not client, extensions=[])
    out, payload, ping = bytearray(), b"", None
    for message in script:
        for at, (between, data) in enumerate(message):
            for kind, text in between:
                out += getattr(writer, kind)(text)
                ping = text if kind == "ping" else ping
            out += writer.send_data(data, fin=at == len(message) - 1)
            payload += data
    return bytes(out), payload, ping


# --- receiving ---


@roles
@settings(max_examples=60)
@given(script=messages, where=places)
def test_messages_fragments_and_control_frames_of_the_oracle_are_read(client: bool, script: Any, where: list[int]) -> None:
    data, payload, ping = written(client, script)
    got, end, said = feed(client, cut(data, where))
    assert got == payload
    assert end is None
    answers = [frame.payload for frame in frames_of(client, said)]
    assert answers == ([] if ping is None else [ping])


@roles
@settings(max_examples=60)
@given(code=st.sampled_from([None, 1000, 1001, 1011, 1012, 3000, 4999]), reason=st.text(max_size=30), where=places)
def test_a_close_frame_of_the_oracle_ends_the_peer_s_direction(
    client: bool, code: int | None, reason: str, where: list[int]
) -> None:
    writer = FrameProtocol(client=not client, extensions=[])
    frame = bytes(writer.close(code, reason if code else None))
    got, end, said = feed(client, cut(frame + writer.send_data(b"behind it"), where))
    assert got == b""
    assert end == PeerEnd(code or 1005, reason if code else "")
    assert said == b"", "the answer waits for the end of our own direction"


def oracle(client: bool, data: bytes) -> tuple[bytes, int | None]:
    """What wsproto gets out of `data`, and the code by which it would end; text ends with 1003."""
    reader = FrameProtocol(client=client, extensions=[])
    reader.receive_bytes(data)
    payload = b""
    try:
        for frame in reader.received_frames():
            if frame.opcode is Opcode.TEXT:
                return payload, 1003
            if frame.opcode is Opcode.BINARY:
                payload += frame.payload  # type: ignore[operator]  # bytes, for it is binary
            elif frame.opcode is Opcode.CLOSE:
                return payload, int(frame.payload[0])
    except ParseFailed as error:
        return payload, int(error.code)
    return payload, None


def agree(client: bool, data: bytes) -> None:
    whole = feed(client, [data])
    assert feed(client, [data[at : at + 1] for at in range(len(data))]) == whole, "cuts change the meaning"
    payload, end, _ = whole
    expected, code = oracle(client, data)
    if end is None:
        assert (payload, None) == (expected, code)
    elif end.code == 1003:
        assert payload == expected  # text: the oracle reads on, or finds a second fault first
    else:
        # A bad beginning is refused here before the oracle has seen the whole header.
        assert payload == expected
        assert code in (end.code, None)


@roles
@settings(max_examples=300)
@given(data=st.binary(max_size=300))
@example(data=b"\x82\xfe")
@example(data=b"\x82\x7f\x80" + bytes(7))
def test_any_bytes_mean_what_the_oracle_says(client: bool, data: bytes) -> None:
    agree(client, data)


@roles
@settings(max_examples=200)
@given(
    script=st.lists(st.lists(st.tuples(st.lists(controls, max_size=1), st.binary(max_size=200)), min_size=1, max_size=2)),
    data=st.data(),
)
def test_mutated_traffic_means_what_the_oracle_says(client: bool, script: Any, data: st.DataObject) -> None:
    traffic = bytearray(written(client, script)[0])
    for _ in range(data.draw(st.integers(0, 3))):
        if traffic:
            traffic[data.draw(st.integers(0, len(traffic) - 1))] ^= data.draw(st.integers(1, 255))
    agree(client, bytes(traffic))


MASK = b"\x80"
TO_CLIENT = [
    (b"\x81\x02hi", 1003, "text"),
    (b"\x01\x02hi", 1003, "text"),
    (b"\x02\x00\x81\x00", 1002, "out of order"),
    (b"\x80\x00", 1002, "out of order"),
    (b"\x02\x00\x82\x00", 1002, "out of order"),
    (b"\x83\x00", 1002, "unknown type"),
    (b"\xc2\x00", 1002, "reserved"),
    (b"\xa2\x00", 1002, "reserved"),
    (b"\x92\x00", 1002, "reserved"),
    (b"\x82\x80\x00\x00\x00\x00", 1002, "masked frame of a server"),
    (b"\x82\x7e\x00\x7d", 1002, "length"),
    (b"\x82\x7f" + (65535).to_bytes(8, "big"), 1002, "length"),
    (b"\x82\x7f" + (2**63).to_bytes(8, "big"), 1002, "length"),
    (b"\x89\x7e\x00\x7e", 1002, "control"),
    (b"\x09\x00", 1002, "control"),
    (b"\xc9\x00", 1002, "control"),
    (b"\x8b\x00", 1002, "control"),
    (b"\x89\x80\x00\x00\x00\x00", 1002, "control"),
    (b"\x88\x01\x03", 1002, "control"),
    (b"\x88\x02\x03\xe7", 1002, "control"),
    (b"\x88\x02\x03\xed", 1002, "control"),
    (b"\x88\x02\x03\xee", 1002, "control"),
    (b"\x88\x03\x03\xe8\xff", 1007, "control"),
]


@pytest.mark.parametrize(("data", "code", "words"), TO_CLIENT)
def test_a_breach_ends_both_directions_with_its_code(data: bytes, code: int, words: str) -> None:
    pipe = pipe_of(True)
    assert b"".join(pipe.receive_data(b"\x82\x02ok" + data + b"\x82\x02no")) == b"ok"
    end = pipe.peer_end
    assert end is not None
    assert (end.code, end.failed) == (code, True)
    assert words in end.reason
    (answer,) = frames_of(True, control(pipe))
    assert (answer.opcode, answer.payload) == (Opcode.CLOSE, (code, ""))
    assert pipe.receive_data(b"\x82\x02no") == []
    assert not pipe.has_output
    with pytest.raises(LocalProtocolError):
        encode(pipe, b"more")


@pytest.mark.parametrize("frame", [b"\x82\x00", b"\x89\x00", b"\x82\x7e\x01\x00"])
def test_a_client_s_frame_without_a_mask_is_a_breach(frame: bytes) -> None:
    _, end, said = feed(False, [frame])
    assert end is not None
    assert (end.code, end.failed) == (1002, True)
    assert said == b"\x88\x02\x03\xea"


def test_a_breach_behind_our_own_close_frame_adds_nothing() -> None:
    pipe = pipe_of(False)
    pipe.send_close()
    first = control(pipe)
    pipe.receive_data(b"\x82\x00")
    assert pipe.peer_end is not None
    assert (first, control(pipe)) == (b"\x88\x02\x03\xe8", b"")


def test_a_server_s_payload_is_not_copied() -> None:
    data = b"\x82\x05hello"
    (piece,) = pipe_of(True).receive_data(data)
    assert isinstance(piece, memoryview)
    assert piece.obj is data


# --- sending ---


@roles
@settings(max_examples=60)
@given(sent=st.lists(payloads, max_size=4))
@example(sent=[bytes(size) for size in (0, 1, 125, 126, 127, 65535, 65536, 65537)])
def test_the_oracle_reads_what_is_encoded(client: bool, sent: list[bytes]) -> None:
    pipe = pipe_of(client)
    out = b"".join(encode(pipe, memoryview(data)) for data in sent)
    frames = frames_of(client, out)
    assert [frame.payload for frame in frames] == sent
    assert all(frame.opcode is Opcode.BINARY and frame.message_finished for frame in frames)
    assert len(out) <= sum(map(len, sent)) + MAX_HEADER * len(sent)


@roles
@given(parts=st.lists(payloads, min_size=1, max_size=5))
@settings(max_examples=60)
@example(parts=[bytes(size) for size in (1, 4097, 20000, 2, 3)])
def test_a_message_of_several_parts_is_that_of_their_join(client: bool, parts: list[bytes]) -> None:
    assert encode(pipe_of(client), *parts) == encode(pipe_of(client), b"".join(parts))


def test_a_large_part_of_a_server_is_not_copied() -> None:
    large = bytes(20000)
    header, part = pipe_of(False).encode([b"small", large])
    assert header == b"\x82\x7e\x4e\x25small"
    assert part is large


@roles
@given(sent=st.lists(payloads, max_size=4), where=places)
@settings(max_examples=30)
def test_two_pipes_make_a_byte_stream(client: bool, sent: list[bytes], where: list[int]) -> None:
    pipe = pipe_of(client)
    out = b"".join(encode(pipe, data) for data in sent)
    assert feed(not client, cut(out, where)) == (b"".join(sent), None, b"")


def test_keys_come_from_the_caller_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(size: int) -> bytes:
        raise AssertionError("randomness of its own")

    monkeypatch.setattr(os, "urandom", forbidden)
    keys = iter([b"abcd", b"efgh", b"ijkl"])
    pipe = WebSocketPipe(True, xor, keys.__next__)
    assert encode(pipe, b"\0\0\0\0\0") == b"\x82\x85abcdabcda"
    pipe.receive_data(b"\x89\x01\0")
    assert control(pipe) == b"\x8a\x81efghe"
    pipe.send_close()
    assert control(pipe) == b"\x88\x82ijkl" + xor(b"\x03\xe8", b"ijkl")


def test_a_server_asks_for_no_key() -> None:
    pipe = WebSocketPipe(False, xor, iter(()).__next__)
    assert encode(pipe, b"abc") == b"\x82\x03abc"
    pipe.send_close(1001)
    assert control(pipe) == b"\x88\x02\x03\xe9"


@roles
def test_only_the_newest_of_several_pings_is_answered(client: bool) -> None:
    writer = FrameProtocol(client=not client, extensions=[])
    pipe = pipe_of(client)
    pipe.receive_data(bytes(writer.ping(b"one") + writer.ping(b"two") + writer.pong(b"unasked")))
    assert pipe.has_output
    (answer,) = frames_of(client, control(pipe))
    assert (answer.opcode, answer.payload) == (Opcode.PONG, b"two")
    assert not pipe.has_output


@roles
@pytest.mark.parametrize("code", [1000, 1011, 4000, None])
def test_the_answer_to_a_close_frame_repeats_its_code_and_comes_behind_our_last_words(client: bool, code: int | None) -> None:
    writer = FrameProtocol(client=not client, extensions=[])
    pipe = pipe_of(client)
    pipe.receive_data(bytes(writer.ping(b"?") + writer.close(code)))
    out = encode(pipe, b"last words")
    pipe.send_close()
    pipe.send_close()
    out += control(pipe)
    frames = frames_of(client, out)
    assert [frame.opcode for frame in frames] == [Opcode.BINARY, Opcode.PONG, Opcode.CLOSE]
    assert frames[-1].payload == (code or 1005, "")
    assert control(pipe) == b""


@roles
def test_behind_our_close_frame_data_is_read_and_pings_go_unanswered(client: bool) -> None:
    writer = FrameProtocol(client=not client, extensions=[])
    pipe = pipe_of(client)
    pipe.send_close()
    control(pipe)
    assert b"".join(pipe.receive_data(bytes(writer.ping() + writer.send_data(b"still here")))) == b"still here"
    assert not pipe.has_output
    with pytest.raises(LocalProtocolError):
        encode(pipe, b"more")


# --- the upgrade: the client's side ---

HOST, PATH = "edge.example:8443", "/.netbore/link"


def request_head(data: bytes) -> RequestHead:
    head, end = RequestReader().feed(data)
    assert isinstance(head, RequestHead)
    assert isinstance(end, End)
    return head


def good_answer(handshake: ClientHandshake) -> bytes:
    answer = accept_upgrade(request_head(handshake.request))
    assert isinstance(answer, bytes)
    return answer


def answered(handshake: ClientHandshake, data: bytes, step: int = 1 << 20) -> Answer | None:
    """Feed in steps until there is an answer; the rest of `data` is then the leftover's."""
    for at in range(0, len(data), step):
        answer = handshake.receive_data(data[at : at + step])
        if isinstance(answer, Opened):
            return Opened(answer.subprotocol, answer.leftover + data[at + step :])
        if answer is not None:
            return answer
    return None


def test_the_request_says_all_that_the_page_asks_for() -> None:
    handshake = ClientHandshake(HOST, PATH, headers=((b"User-Agent", b"netbore"),))
    head = request_head(handshake.request)
    assert (head.method, head.target, head.authority) == (b"GET", b"/.netbore/link", b"edge.example")
    assert head.get(b"sec-websocket-protocol") == b"netbore.v1"
    assert head.get(b"user-agent") == b"netbore"
    assert head.get(b"sec-websocket-extensions") is None
    assert head.upgrade == b"websocket"


@pytest.mark.parametrize(
    ("host", "path", "headers"),
    [("a" * 70 + ".example", "/", ()), ("edge", "/a b", ()), ("edge", "/é", ()), ("edge", "/", ((b"X", b"a\r\nb"),))],
)
def test_a_request_that_http_does_not_allow_is_the_caller_s_error(host: str, path: str, headers: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are another library's
        ClientHandshake(host, path, headers=headers)


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_an_independent_server_agrees_and_what_follows_is_left_over(step: int) -> None:
    handshake = ClientHandshake(HOST, PATH)
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(handshake.request)
    (request,) = server.events()
    assert isinstance(request, Request)
    assert request.subprotocols == ["netbore.v1"]
    answer = server.send(AcceptConnection(subprotocol="netbore.v1"))
    assert answered(handshake, answer + b"\x82\x02hi", step) == Opened("netbore.v1", b"\x82\x02hi")


def test_interim_responses_are_passed_over() -> None:
    handshake = ClientHandshake(HOST, PATH)
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    assert answered(handshake, interim + good_answer(handshake)) == Opened("netbore.v1", b"")


REFUSAL = json.dumps(
    {"code": "upgrade_required", "detail": "No.", "offered": ["netbore.v1"], "supported": ["netbore.v2"]}
).encode()
HEAD_426 = b"HTTP/1.1 426 Upgrade Required\r\nContent-Type: application/problem+json\r\n"


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: %d\r\n\r\n" % len(REFUSAL) + REFUSAL,
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(REFUSAL), REFUSAL),
    ],
)
def test_a_refusal_is_told_with_what_the_server_supports(step: int, body: bytes) -> None:
    answer = answered(ClientHandshake(HOST, PATH), HEAD_426 + body, step)
    assert answer == Refused(426, "upgrade_required", "No.", ("netbore.v2",))


def test_a_refusal_to_the_connection_s_end_is_told_then() -> None:
    handshake = ClientHandshake(HOST, PATH)
    assert answered(handshake, HEAD_426 + b"\r\n" + REFUSAL, 50) is None
    assert handshake.receive_eof() == Refused(426, "upgrade_required", "No.", ("netbore.v2",))


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b"404 Not Found\r\nContent-Length: 0\r\n\r\n", 404),
        (b"302 Found\r\nLocation: /x\r\nContent-Length: 3\r\n\r\nabc", 302),
        (b"503 Busy\r\nContent-Length: 3\r\n\r\n[1]", 503),
        (b"503 Busy\r\nContent-Length: 99999\r\n\r\n" + b"x" * 9000, 503),
        (b"503 Busy\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 503),
        (b"500 Deep\r\nContent-Length: 8000\r\n\r\n" + b"[" * 8000, 500),
        (b'500 Odd\r\nContent-Length: 29\r\n\r\n{"supported":7,"code":["odd"]}'[:-1] + b"}", 500),
    ],
)
def test_other_answers_are_refusals_by_their_status(rest: bytes, status: int) -> None:
    assert answered(ClientHandshake(HOST, PATH), b"HTTP/1.1 " + rest) == Refused(status)


def test_an_old_interim_response_is_no_upgrade() -> None:
    assert answered(ClientHandshake(HOST, PATH), b"HTTP/1.0 103 Early\r\n\r\n") == Refused(103)


def test_what_a_refusal_says_is_fit_for_a_log() -> None:
    body = json.dumps({"code": "a\x1b[31m\nb", "detail": "x" * 999, "supported": ["v\0", 7, "", *map(str, range(99))]}).encode()
    answer = answered(ClientHandshake(HOST, PATH), HEAD_426 + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert isinstance(answer, Refused)
    assert answer.code == "a[31mb"
    assert answer.detail == "x" * MOST_TEXT
    assert answer.supported[:2] == ("v", "0")
    assert len(answer.supported) < MOST_NAMES


@pytest.mark.parametrize(
    "change",
    [
        (b"netbore.v1", b"netbore.v2"),
        (b"Sec-WebSocket-Protocol: netbore.v1\r\n", b""),
        (b"Sec-WebSocket-Protocol: netbore.v1", b"Sec-WebSocket-Protocol: netbor\xe9.v1"),
        (b"Sec-WebSocket-Accept: ", b"Sec-WebSocket-Accept: x"),
        (b"Upgrade: websocket", b"Upgrade: other"),
        (b"Connection: Upgrade\r\n", b""),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
        (b"HTTP/1.1 101", b"HTTP/1.1 1O1"),
        (b"\r\n\r\n", b"\r\nX: " + b"x" * MAX_ANSWER + b"\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nX: " + b"x" * MAX_ANSWER),
    ],
    ids=lambda change: change[1][:24].decode("latin-1"),
)
def test_an_answer_against_the_rules_is_unusable(change: tuple[bytes, bytes]) -> None:
    handshake = ClientHandshake(HOST, PATH)
    # Names of headers come in lower or mixed case, as the server's library likes it.
    answer = good_answer(handshake)
    assert change[0].lower() in answer.lower()
    at = answer.lower().index(change[0].lower())
    result = answered(handshake, answer[:at] + change[1] + answer[at + len(change[0]) :])
    assert isinstance(result, Unusable)
    assert "é" not in result.reason


def test_endless_interim_responses_come_to_an_end() -> None:
    result = answered(ClientHandshake(HOST, PATH), b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 100)
    assert isinstance(result, Unusable)


def test_an_end_before_the_answer_is_unusable() -> None:
    handshake = ClientHandshake(HOST, PATH)
    assert handshake.receive_data(b"HTTP/1.1 10") is None
    assert isinstance(handshake.receive_eof(), Unusable)


def mutated(data: st.DataObject, text: bytes) -> bytes:
    changed = bytearray(text)
    for _ in range(data.draw(st.integers(0, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


@settings(max_examples=300)
@given(data=st.data(), random=st.binary(max_size=60), step=st.integers(1, 300))
def test_any_answer_is_taken_without_an_exception(data: st.DataObject, random: bytes, step: int) -> None:
    handshake = ClientHandshake(HOST, PATH)
    good = data.draw(st.sampled_from([good_answer(handshake), HEAD_426 + b"Content-Length: %d\r\n\r\n" % len(REFUSAL) + REFUSAL]))
    sent = data.draw(st.sampled_from([random, mutated(data, good), b"HTTP/1.1 " + random + b"\r\n\r\n"]))
    if answered(handshake, sent, step) is None:
        assert isinstance(handshake.receive_eof(), Refused | Unusable)


# --- the upgrade: the server's side ---

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
GOOD = {
    b"Host": b"edge.example",
    b"Upgrade": b"websocket",
    b"Connection": b"keep-alive, Upgrade",
    b"Sec-WebSocket-Key": KEY,
    b"Sec-WebSocket-Version": b"13",
    b"Sec-WebSocket-Protocol": b"netbore.v2, netbore.v1",
}


def head_with(changes: dict[bytes, bytes | None], method: bytes = b"GET", version: bytes = b"1") -> RequestHead:
    lines = [name + b": " + value for name, value in {**GOOD, **changes}.items() if value is not None]
    text = b"\r\n".join([method + b" /.netbore/link HTTP/1." + version, *lines, b"", b""])
    head = RequestReader().feed(text)[0]
    assert isinstance(head, RequestHead)
    return head


def test_the_sample_of_the_rfc_is_accepted() -> None:
    answer = accept_upgrade(head_with({}))
    assert isinstance(answer, bytes)
    lines = answer.lower().split(b"\r\n")
    assert lines[0] == b"http/1.1 101 switching protocols"
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".lower() in lines
    assert b"sec-websocket-protocol: netbore.v1" in lines
    assert not any(line.startswith(b"sec-websocket-extensions") for line in lines)


def test_an_independent_client_is_answered() -> None:
    client = WSConnection(ConnectionType.CLIENT)
    request = client.send(Request(host="edge.example", target="/.netbore/link", subprotocols=["other", "netbore.v1"]))
    answer = accept_upgrade(request_head(request))
    assert isinstance(answer, bytes)
    client.receive_data(answer)
    (event,) = client.events()
    assert isinstance(event, AcceptConnection)
    assert event.subprotocol == "netbore.v1"


def test_the_client_s_order_decides_between_several() -> None:
    answer = accept_upgrade(head_with({}), ("netbore.v1", "netbore.v2"))
    assert isinstance(answer, bytes)
    assert b"netbore.v2" in answer


def lines_of(answer: Refusal) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in answer.head.headers}


@pytest.mark.parametrize(
    ("protocols", "offered"),
    [
        (b"netbore.v2", ["netbore.v2"]),
        (b"a, b,,c d, " + b"x" * 65, ["a", "b"]),
        (b", ".join(b"v%d" % number for number in range(40)), [f"v{number}" for number in range(MOST_NAMES)]),
        (None, []),
    ],
)
def test_nothing_in_common_is_426_and_names_both_sides(protocols: bytes | None, offered: list[str]) -> None:
    answer = accept_upgrade(head_with({b"Sec-WebSocket-Protocol": protocols, b"Accept": b"text/html"}))
    assert isinstance(answer, Refusal)
    assert answer.head.status == 426
    lines = lines_of(answer)
    assert lines[b"content-type"] == b"application/problem+json"
    assert lines[b"upgrade"] == b"websocket"
    assert lines[b"content-length"] == b"%d" % len(answer.body)
    problem = json.loads(answer.body)
    assert (problem["status"], problem["code"]) == (426, "upgrade_required")
    assert (problem["offered"], problem["supported"]) == (offered, ["netbore.v1"])


@pytest.mark.parametrize(
    "changes",
    [
        {b"Upgrade": None},
        {b"Upgrade": b"other"},
        {b"Upgrade": b"websocket, other"},
        {b"Connection": None},
        {b"Connection": b"close"},
        {b"Sec-WebSocket-Key": None},
        {b"Sec-WebSocket-Key": b"short"},
        {b"Sec-WebSocket-Key": KEY + b", " + KEY},
        {b"Sec-WebSocket-Version": None},
        {b"Sec-WebSocket-Version": b"12"},
        {b"Sec-WebSocket-Protocol": b"netbor\xe9.v1"},
        {b"Content-Length": b"5"},
    ],
    ids=str,
)
def test_what_is_no_upgrade_is_400(changes: dict[bytes, bytes | None]) -> None:
    refused(head_with(changes))


def refused(head: RequestHead) -> Refusal:
    answer = accept_upgrade(head)
    assert isinstance(answer, Refusal)
    assert answer.head.status == json.loads(answer.body)["status"] == 400
    return answer


def test_methods_and_versions_that_cannot_upgrade_are_400() -> None:
    refused(head_with({}, method=b"POST"))
    refused(head_with({}, version=b"0"))


def test_another_version_is_told_ours() -> None:
    assert lines_of(refused(head_with({b"Sec-WebSocket-Version": b"8"})))[b"sec-websocket-version"] == b"13"


def values() -> Iterator[tuple[bytes, st.SearchStrategy[bytes | None]]]:
    text = st.from_regex(rb"[\t\x20-\x7e\x80-\xff]{0,20}", fullmatch=True).map(lambda value: value.strip(b" \t"))
    for name, good in GOOD.items():
        if name != b"Host":
            yield name, st.one_of(st.just(good), text, st.none())


@settings(max_examples=200)
@given(st.fixed_dictionaries(dict(values())))
def test_any_request_that_the_strict_head_check_lets_through_is_answered(changes: dict[bytes, bytes | None]) -> None:
    answer = accept_upgrade(head_with(changes))
    assert isinstance(answer, bytes) or answer.head.status in (400, 426)
