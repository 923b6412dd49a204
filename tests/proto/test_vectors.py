"""docs/protocol-vectors.json, which strangers read too: each vector is decoded and encoded with the code.

The conversation is held by two real Sessions. Each hears the bytes of the file, not those of the other; what it says itself
has to be the same sequence as in the file, while ACK, PING and PONG may come when they like.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netbore.proto import handshake
from netbore.proto.errors import RemoteProtocolError
from netbore.proto.events import GoAway, MessageReceived, PeerClosing, StreamOpened
from netbore.proto.frames import (
    FrameReader,
    decode_open,
    encode,
    encode_facts,
    encode_goaway,
    encode_max_streams,
    encode_move,
    encode_open,
    encode_reset,
    encode_stop,
    encode_window,
)
from netbore.proto.handshake import (
    FROM_ACCEPTOR,
    FROM_DIALLER,
    Handshake,
    Hello,
    Limits,
    Message,
    Reject,
    Resume,
    Resumed,
    Welcome,
    choose_minor,
    proves,
)
from netbore.proto.http.head import make_request, split_request
from netbore.proto.mux import Role
from netbore.proto.mux_stream import MuxStream
from netbore.proto.records import RecordDecoder, encode_close, encode_number, encode_seq_header
from netbore.proto.session import Ended, Session
from netbore.proto.websocket import accept_upgrade
from netbore.proto.websocket_pipe import WebSocketPipe
from netbore.proto.wire import FLUSH, FRAME_HEADER, RECORD_HEADER, RESET_BODY, SKIPPABLE, U16, U32, Code, Frame, Kind, Record

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs" / "protocol-vectors.json").read_text())
READERS = {"edge": Role.ACCEPTOR, "agent": Role.DIALLER}
HEARS = {"edge": FROM_DIALLER, "agent": FROM_ACCEPTOR}
CLOCK_STEP = 0.1
#: Members of a frame's vector that are not fields of its payload.
NOT_FIELDS = {"name", "text", "frame", "stream", "hex", "payload"}

Vector = dict[str, Any]


def of(section: str) -> Any:
    """Each vector of a section, as a test's parameter."""
    return pytest.mark.parametrize("vector", VECTORS[section], ids=lambda vector: vector["name"])


def raw(vector: Vector, member: str = "hex") -> bytes:
    return bytes.fromhex(vector[member]) * int(vector.get("times", 1))


def said(message: Message) -> dict[str, Any]:
    """The members of a message, as JSON has them."""
    members: dict[str, Any] = json.loads(json.dumps(message.to_json()))
    return members


# --- records and frames ---


def make_record(vector: Vector) -> bytes:
    match vector["record"]:
        case "SEQ":
            payload = raw(vector, "payload")
            return encode_seq_header(len(payload)) + payload
        case "ACK" | "PING" | "PONG" as name:
            return encode_number(Record[name], vector["number"])
        case "CLOSE":
            return encode_close(vector["code"], vector["text_of_close"])
        case name:
            kind = Record[name] if isinstance(name, str) else name
            payload = raw(vector, "payload")
            return RECORD_HEADER.pack(kind << 24 | len(payload)) + payload


@of("records")
def test_records(vector: Vector) -> None:
    data = raw(vector)
    assert make_record(vector) == data
    kind = Record[vector["record"]] if isinstance(vector["record"], str) else vector["record"]
    skipped = kind & SKIPPABLE or kind == Record.DATAGRAM
    for size in (1, len(data)):
        decoder = RecordDecoder()
        found = []
        for at in range(0, len(data), size):
            decoder.feed(data[at : at + size])
            while (record := decoder.next()) is not None:
                found.append(record)
        assert {each for each, _ in found} == {kind}
        assert b"".join(bytes(payload) for _, payload in found) == (b"" if skipped else data[RECORD_HEADER.size :])


def make_frame(vector: Vector) -> bytes:
    stream = vector["stream"]
    match vector["frame"]:
        case "OPEN":
            facts = encode_facts(vector.get("facts"))
            return encode_open(stream, vector["kind"], vector["hops"], vector["handle"], window=vector["window"], facts=facts)
        case "STOP":
            return encode_stop(stream, vector["code"])
        case "RESET":
            return encode_reset(stream, vector["code"], vector["delivered"])
        case "WINDOW":
            return encode_window(stream, vector["increment"])
        case "MAX_STREAMS":
            return encode_max_streams(vector["count"])
        case "GOAWAY":
            return encode_goaway(vector["last"])
        case "MOVE":
            return encode_move(vector["spread"])
        case str(name):
            return encode(Frame[name], stream, raw(vector, "payload"))
        case number:
            payload = raw(vector, "payload")
            return FRAME_HEADER.pack(number << 24 | len(payload), stream) + payload


def fields_of(kind: int, payload: bytes) -> dict[str, Any]:
    """What the payload of a frame says."""
    match kind:
        case Frame.OPEN:
            opened = decode_open(payload)
            members = {"kind": opened.kind, "hops": opened.hops, "handle": opened.handle, "window": opened.window}
            return members if opened.facts is None else {**members, "facts": opened.facts}
        case Frame.STOP:
            return {"code": U16.unpack(payload)[0]}
        case Frame.RESET:
            return dict(zip(("code", "delivered"), RESET_BODY.unpack(payload), strict=True))
        case Frame.WINDOW | Frame.MAX_STREAMS | Frame.GOAWAY:
            member = {Frame.WINDOW: "increment", Frame.MAX_STREAMS: "count", Frame.GOAWAY: "last"}[Frame(kind)]
            return {member: U32.unpack(payload)[0]}
        case Frame.MOVE:
            return {"spread": U16.unpack(payload)[0]}
        case _:
            return {}


@of("frames")
def test_frames(vector: Vector) -> None:
    data = raw(vector)
    assert make_frame(vector) == data
    kind = Frame[vector["frame"]] if isinstance(vector["frame"], str) else vector["frame"]
    for size in (1, len(data)):
        found: list[tuple[int, int, bytes]] = []
        admitted: list[tuple[int, int]] = []

        def admit(stream: int, length: int, admitted: list[tuple[int, int]] = admitted) -> None:
            admitted.append((stream, length))

        reader = FrameReader({}, admit, lambda *frame, found=found: found.append(frame), pytest.fail)
        for at in range(0, len(data), size):
            reader.feed(data[at : at + size])
        assert reader.under_way == (None, 0)
        if kind == Frame.DATA:
            assert (found, admitted) == ([], [(vector["stream"], len(raw(vector, "payload")))])
        else:
            ((got_kind, got_stream, payload),) = found
            assert (got_kind, got_stream, admitted) == (kind, vector["stream"], [])
            expected = {k: v for k, v in vector.items() if k not in NOT_FIELDS}
            assert fields_of(kind, payload) == expected


# --- the carrier ---


@of("upgrades")
def test_upgrades(vector: Vector) -> None:
    head = "".join(line + "\r\n" for line in [*vector["request"], ""])
    answer = accept_upgrade(make_request(*split_request(head.encode())))
    if vector["status"] == 101:
        assert isinstance(answer, bytes)
        lines = answer.decode().lower().split("\r\n")
        assert {line.lower() for line in vector["answer"]} <= set(lines)
    else:
        assert not isinstance(answer, bytes)
        assert answer.head.status == vector["status"]
        body = json.loads(answer.body)
        assert {name: body[name] for name in vector["problem"]} == vector["problem"]


def mask(data: bytes | memoryview, key: bytes) -> bytes:
    return bytes(byte ^ key[n % 4] for n, byte in enumerate(data))


@of("websocket")
def test_websocket(vector: Vector) -> None:
    pipe = WebSocketPipe(client=False, masker=mask, new_key=lambda: pytest.fail("a server masks nothing"))
    got = b"".join(bytes(piece) for piece in pipe.receive_data(raw(vector)))
    assert got == raw(vector, "payload")
    assert pipe.peer_end is None


# --- the handshake ---


def read_message(data: bytes, reader: str) -> Message:
    message = Handshake(HEARS[reader]).receive_data(data)
    assert message is not None
    return message


@of("handshake")
def test_handshake(vector: Vector) -> None:
    data = raw(vector)
    message = read_message(data, vector["reader"])
    assert message.record is Record[vector["record"]]
    members = said(message)
    assert {name: members.get(name, "not there") for name in vector["members"]} == vector["members"]
    if vector["ours"]:
        assert handshake.encode(message) == data
    slowly = Handshake(HEARS[vector["reader"]])
    assert [found for n in range(len(data)) if (found := slowly.receive_data(data[n : n + 1]))] == [message]


@of("versions")
def test_versions(vector: Vector) -> None:
    hello = read_message(raw(vector, "hello"), "edge")
    answer = read_message(raw(vector, "answer"), "agent")
    assert isinstance(hello, Hello)
    lowest, highest = vector["edge_minor"]
    minor = choose_minor(hello.minor, (lowest, highest))
    if minor is None:
        assert isinstance(answer, Reject)
        assert (answer.code, answer.minor) == (Code.VERSION_UNSUPPORTED, (lowest, highest))
    else:
        assert isinstance(answer, Welcome)
        assert answer.minor == minor


@of("proofs")
def test_proofs(vector: Vector) -> None:
    link = (vector["edge"], vector["link"], vector["epoch"], vector["received"])
    assert handshake.proof(vector["secret"], *link) == vector["proof"]
    mac = hmac.new(bytes.fromhex(vector["secret"]), raw(vector, "message"), hashlib.sha256)
    assert mac.hexdigest() == vector["proof"]


# --- sessions ---


class Side:
    """One side of a Link, with the calls that it posted."""

    def __init__(self, role: Role, ours: Limits, theirs: Limits) -> None:
        self._posted: deque[Callable[[], None]] = deque()
        self.session = Session(role, ours, theirs, post=self._post, on_output=lambda: None)
        self.events: list[Any] = []
        self.streams: list[Collector] = []

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        self._posted.append(lambda: call(*args))

    def hear(self, data: bytes, now: float = 0.0) -> None:
        self.take(self.session.receive_data(data, now))
        while self._posted:
            self._posted.popleft()()
        self.take(self.session.take_events(now))

    def take(self, events: list[Any]) -> None:
        self.events += events
        self.streams += [Collector(event.stream) for event in events if isinstance(event, StreamOpened)]

    def say(self, now: float = 0.0) -> bytes:
        """All that it has to say."""
        flushes = []
        while data := self.session.data_to_send(FLUSH, now):
            flushes.append(data)
        return b"".join(flushes)

    def messages(self) -> list[dict[str, Any]]:
        return [event.message for event in self.events if isinstance(event, MessageReceived)]


class Collector:
    """A sink that keeps what it gets."""

    def __init__(self, stream: MuxStream) -> None:
        self.stream = stream
        self.data = b""
        self.ends: list[Any] = []
        stream.sink = self

    def on_data(self, data: bytes | memoryview) -> None:
        self.data += data
        self.stream.consumed(len(data))

    def on_eof(self) -> None:
        self.ends.append("eof")

    def on_writable(self) -> None:
        pass

    def on_stop(self, code: int) -> None:
        self.ends.append(("stop", code))

    def on_reset(self, code: int, delivered: int = 0) -> None:
        self.ends.append(("reset", code))


def sequence(data: bytes) -> bytes:
    """What the records hold of the sequence."""
    return b"".join(bytes(payload) for kind, payload in records(data) if kind == Record.SEQ)


def records(data: bytes) -> list[tuple[int, bytes]]:
    decoder = RecordDecoder()
    decoder.feed(data)
    found = []
    while (record := decoder.next()) is not None:
        found.append((record[0], bytes(record[1])))
    return found


def fresh(reader: str) -> Side:
    """A side after WELCOME, with the limits that the file names."""
    limits = {who: Limits(**members) for who, members in VECTORS["limits"].items()}
    other = "agent" if reader == "edge" else "edge"
    side = Side(READERS[reader], limits[reader], limits[other])
    side.take(side.session.attach(0, 0.0))
    side.say()
    return side


def read_all(vector: Vector) -> None:
    """Every message of a handshake."""
    machine = Handshake(HEARS[vector["reader"]])
    data = raw(vector)
    while machine.receive_data(data) is not None:
        data = b""


@of("errors")
def test_errors(vector: Vector) -> None:
    if vector["where"] == "handshake":
        with pytest.raises(RemoteProtocolError) as caught:
            read_all(vector)
        assert caught.value.code == Code[vector["code"].upper()]
        return
    side = fresh(vector["reader"])
    side.hear(raw(vector))
    ends = [event for event in side.events if isinstance(event, Ended)]
    assert [(end.code, end.by_peer) for end in ends] == [(Code[vector["code"].upper()], False)]
    last = records(side.say())[-1]
    assert last[0] == Record.CLOSE
    assert U16.unpack_from(last[1])[0] == ends[0].code


@of("accepted")
def test_accepted(vector: Vector) -> None:
    side = fresh(vector["reader"])
    if vector.get("after") == "goaway":
        side.session.mux.goaway()
        side.say()
    side.hear(raw(vector))
    assert side.session.ended is None
    assert sequence(side.say()).hex() == vector["answer"]


class Conversation:
    """What each step of the conversation makes a side do, beyond hearing the step before."""

    def __init__(self, steps: list[Vector]) -> None:
        self.steps = {step["name"]: step for step in steps}
        hello, welcome = self.message("HELLO"), self.message("WELCOME")
        assert isinstance(hello, Hello)
        assert isinstance(welcome, Welcome)
        self.welcome = welcome
        self.sides = {
            "agent": Side(Role.DIALLER, hello.limits, welcome.limits),
            "edge": Side(Role.ACCEPTOR, welcome.limits, hello.limits),
        }
        self.viewer: Collector | None = None
        self.now = 0.0

    def message(self, name: str) -> Message:
        step = self.steps[name]
        return read_message(raw(step), "edge" if step["from"] == "agent" else "agent")

    def act(self, name: str) -> None:
        """The cause of a step."""
        agent, edge = self.sides["agent"], self.sides["edge"]
        step = self.steps[name]
        match name:
            case "bind" | "unbind":
                agent.session.mux.send_message(step["control"])
            case "bound" | "unbound":
                asked = {"bound": "bind", "unbound": "unbind"}[name]
                assert edge.messages()[-1] == self.steps[asked]["control"]
                edge.session.mux.send_message(step["control"])
            case "request":
                assert agent.messages() == [self.steps["bound"]["control"]]
                stream = edge.session.mux.open(Kind.HTTP, handle=1)
                assert stream is not None
                self.viewer = Collector(stream)
                assert stream.send_nowait(step["data"].encode()) == len(step["data"])
            case "response":
                (host,) = agent.streams
                assert host.data.decode() == self.steps["request"]["data"]
                assert host.stream.send_nowait(step["data"].encode()) == len(step["data"])
            case "FIN of the Edge":
                assert self.viewer is not None
                assert self.viewer.data.decode() == self.steps["response"]["data"]
                self.viewer.stream.send_eof()
            case "FIN of the Agent, cut":
                (host,) = agent.streams
                assert host.ends == ["eof"]
                host.stream.send_eof()
                agent.session.mux.goaway()
            case "CLOSE":
                assert any(isinstance(event, PeerClosing) for event in edge.events)
                edge.session.close(Code.NO_ERROR, step["text_of_close"])
            case "end of control":
                agent.session.mux.end_control()
            case _:
                pass


def test_the_conversation() -> None:
    steps: list[Vector] = VECTORS["conversation"]
    talk = Conversation(steps)
    for side in talk.sides.values():
        side.take(side.session.attach(0, 0.0))
    for step in steps:
        if step["name"] in ("HELLO", "WELCOME"):
            continue
        talk.now += CLOCK_STEP
        if step["name"] in ("RESUME", "RESUMED"):
            resumes(talk, step)
            continue
        mine, other = step["from"], "edge" if step["from"] == "agent" else "agent"
        side = talk.sides[mine]
        talk.act(step["name"])
        side.take(side.session.handle_timeout(talk.now))
        assert sequence(side.say(talk.now)).hex() == sequence(raw(step)).hex(), step["name"]
        talk.sides[other].hear(raw(step)[: step.get("arrives")], talk.now)
    agent, edge = talk.sides["agent"], talk.sides["edge"]
    assert agent.session.ended == Ended(Code.NO_ERROR, talk.steps["CLOSE"]["text_of_close"], by_peer=True)
    assert edge.session.ended == Ended(Code.NO_ERROR, talk.steps["CLOSE"]["text_of_close"], by_peer=False)
    assert talk.viewer is not None
    assert talk.viewer.ends == ["eof"]
    assert [event.last_id for event in edge.events if isinstance(event, GoAway)] == [2]
    assert edge.session.audit() == agent.session.audit() == []


def resumes(talk: Conversation, step: Vector) -> None:
    """RESUME and RESUMED: what they state is what the Sessions have, and both go on."""
    message = talk.message(step["name"])
    session = talk.sides[step["from"]].session
    session.detach(talk.now)
    assert isinstance(message, Resume | Resumed)
    assert message.received == session.pipe.received
    if isinstance(message, Resume):
        assert proves(message, talk.welcome.secret, talk.welcome.edge)
        return
    question = talk.message("RESUME")
    assert isinstance(question, Resume)
    talk.sides["edge"].take(session.attach(question.received, talk.now))
    agent = talk.sides["agent"]
    agent.take(agent.session.attach(message.received, talk.now))


@pytest.mark.parametrize("step", VECTORS["conversation"], ids=lambda step: step["name"])
def test_what_the_steps_consist_of(step: Vector) -> None:
    """The listing beside the bytes is right: each line is a record or a frame with its own bytes."""
    assert "".join(part["hex"] for part in step["parts"]) == step["hex"]


def test_names_are_unique() -> None:
    sections = {name: section for name, section in VECTORS.items() if name not in ("about", "limits")}
    assert len(sections) == 10
    for name, vectors in sections.items():
        names = [vector["name"] for vector in vectors]
        assert len(names) == len(set(names)), name
    assert VECTORS["handshake"][0]["name"] == VECTORS["versions"][0]["name"] == "an old HELLO to a new Edge"
