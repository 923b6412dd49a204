"""What two sides say before a Link carries frames (docs/protocol.md sections 5 and 6).

Theory of operation. Every transport begins with one question of the dialler, HELLO or RESUME, and one answer. This module has the
messages, and one small machine for each side that turns bytes into them while it holds the peer to the limits of a
stranger. What the messages *mean* (is the token good, which Link is it, fence and count) is decided by the drivers in
`netbore.link`. When a handshake is done, its decoder is handed to the Pipe with whatever bytes it already holds.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Final, TypeAlias

import attrs

from netbore.proto.errors import RemoteProtocolError
from netbore.proto.records import RecordDecoder, encode_record
from netbore.proto.stream import Data
from netbore.proto.wire import (
    HANDSHAKE_RECORDS,
    MAX_CREDIT,
    MAX_ID,
    MAX_OFFSET,
    MAX_STREAMS_OPEN,
    STREAM_WINDOW,
    Code,
    Record,
)

CREDENTIALS: Final = frozenset({"operator", "management", "ephemeral", "recreate"})

Json: TypeAlias = Mapping[str, Any]


class _Reader:
    """Takes typed members out of a JSON object; whatever does not fit is the peer's protocol error."""

    def __init__(self, record: str, members: Json) -> None:
        self.record = record
        self.members = members

    def refuse(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(Code.PROTOCOL_ERROR, f"{self.record}: {what}")

    def text(self, name: str, most: int = 4096) -> str:
        value = self.members.get(name)
        if not isinstance(value, str) or len(value) > most:
            raise self.refuse(f"{name} is not a text of at most {most} characters")
        return value

    def hexadecimal(self, name: str, digits: int) -> str:
        value = self.text(name, digits)
        if len(value) != digits or not set(value) <= set("0123456789abcdef"):
            raise self.refuse(f"{name} is not {digits} hex digits")
        return value

    def number(self, name: str, most: int, least: int = 0) -> int:
        value = self.members.get(name)
        if type(value) is not int or not least <= value <= most:
            raise self.refuse(f"{name} is not a number from {least} to {most}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.members.get(name, [])
        if not isinstance(value, list) or len(value) > 64 or not all(isinstance(text, str) for text in value):
            raise self.refuse(f"{name} is not a list of at most 64 texts")
        return tuple(value)

    def object(self, name: str) -> _Reader:
        value = self.members.get(name)
        if not isinstance(value, dict):
            raise self.refuse(f"{name} is not an object")
        return _Reader(f"{self.record} {name}", value)

    def range(self, name: str) -> tuple[int, int]:
        value = self.members.get(name)
        if not (isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 <= n <= 65535 for n in value)):
            raise self.refuse(f"{name} is not [lowest, highest]")
        return value[0], value[1]


def _limits(reader: _Reader) -> Limits:
    limits = reader.object("limits")
    return Limits(limits.number("max_streams", MAX_ID), limits.number("stream_window", MAX_CREDIT))


@attrs.frozen
class Limits:
    """What a side lets the other's Streams do before any WINDOW or MAX_STREAMS: how many Streams, bytes of credit each."""

    max_streams: int = MAX_STREAMS_OPEN
    stream_window: int = STREAM_WINDOW

    def to_json(self) -> Json:
        return attrs.asdict(self)


@attrs.frozen
class Credential:
    """One typed token. Its text is never shown."""

    type: str
    token: str = attrs.field(repr=False)

    def to_json(self) -> Json:
        return {"type": self.type, "token": self.token}

    @classmethod
    def read(cls, reader: _Reader) -> Credential:
        kind = reader.text("type", 32)
        if kind not in CREDENTIALS:
            raise reader.refuse("type is not a known kind of credential")
        return cls(kind, reader.text("token"))

    @classmethod
    def from_json(cls, members: Any) -> Credential:
        """Read one that stands in a control message. Raises RemoteProtocolError."""
        if not isinstance(members, dict):
            raise RemoteProtocolError(Code.PROTOCOL_ERROR, "credential is not an object")
        return cls.read(_Reader("credential", members))


@attrs.frozen
class Hello:
    """The dialler wants a new Link."""

    record: ClassVar = Record.HELLO
    minor: tuple[int, int]
    credential: Credential
    instance: str
    agent: str
    limits: Limits
    capabilities: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()

    def to_json(self) -> Json:
        return {
            "minor": list(self.minor),
            "capabilities": list(self.capabilities),
            "credential": self.credential.to_json(),
            "instance": self.instance,
            "agent": self.agent,
            "keeps": list(self.keeps),
            "limits": self.limits.to_json(),
        }

    @classmethod
    def read(cls, reader: _Reader) -> Hello:
        return cls(
            minor=reader.range("minor"),
            capabilities=reader.texts("capabilities"),
            credential=Credential.read(reader.object("credential")),
            instance=reader.hexadecimal("instance", 32),
            agent=reader.text("agent", 256),
            keeps=reader.texts("keeps"),
            limits=_limits(reader),
        )


@attrs.frozen
class Welcome:
    """The acceptor has made the Link."""

    record: ClassVar = Record.WELCOME
    minor: int
    edge: str
    link: str
    secret: str = attrs.field(repr=False)
    links: int
    grace: int
    limits: Limits
    capabilities: tuple[str, ...] = ()

    def to_json(self) -> Json:
        return {
            "minor": self.minor,
            "capabilities": list(self.capabilities),
            "edge": self.edge,
            "link": self.link,
            "secret": self.secret,
            "links": self.links,
            "grace": self.grace,
            "limits": self.limits.to_json(),
        }

    @classmethod
    def read(cls, reader: _Reader) -> Welcome:
        return cls(
            minor=reader.number("minor", 65535),
            capabilities=reader.texts("capabilities"),
            edge=reader.text("edge", 64),
            link=reader.text("link", 128),
            secret=reader.hexadecimal("secret", 64),
            links=reader.number("links", 64, 1),
            grace=reader.number("grace", 86400),
            limits=_limits(reader),
        )


@attrs.frozen
class Resume:
    """The dialler goes on with a Link it has."""

    record: ClassVar = Record.RESUME
    link: str
    epoch: int
    received: int
    proof: str

    def to_json(self) -> Json:
        return attrs.asdict(self)

    @classmethod
    def read(cls, reader: _Reader) -> Resume:
        return cls(
            link=reader.text("link", 128),
            epoch=reader.number("epoch", MAX_OFFSET, 1),
            received=reader.number("received", MAX_OFFSET),
            proof=reader.hexadecimal("proof", 64),
        )


@attrs.frozen
class Resumed:
    """The acceptor goes on too."""

    record: ClassVar = Record.RESUMED
    epoch: int
    received: int

    def to_json(self) -> Json:
        return attrs.asdict(self)

    @classmethod
    def read(cls, reader: _Reader) -> Resumed:
        return cls(epoch=reader.number("epoch", MAX_OFFSET, 1), received=reader.number("received", MAX_OFFSET))


@attrs.frozen
class Reject:
    """The acceptor will not, and says why."""

    record: ClassVar = Record.REJECT
    code: int
    text: str
    epoch: int | None = None
    minor: tuple[int, int] | None = None

    def to_json(self) -> Json:
        members: dict[str, Any] = {"code": int(self.code), "text": self.text}
        if self.epoch is not None:
            members["epoch"] = self.epoch
        if self.minor is not None:
            members["minor"] = list(self.minor)
        return members

    @classmethod
    def read(cls, reader: _Reader) -> Reject:
        return cls(
            code=reader.number("code", 65535),
            text=reader.text("text", 1024),
            epoch=reader.number("epoch", MAX_OFFSET) if "epoch" in reader.members else None,
            minor=reader.range("minor") if "minor" in reader.members else None,
        )


Message: TypeAlias = Hello | Welcome | Resume | Resumed | Reject
MESSAGES: Final[Mapping[Record, Any]] = {kind.record: kind for kind in (Hello, Welcome, Resume, Resumed, Reject)}

#: What each side may hear.
FROM_DIALLER: Final = frozenset({Record.HELLO, Record.RESUME})
FROM_ACCEPTOR: Final = frozenset({Record.WELCOME, Record.RESUMED, Record.REJECT})


def encode(message: Message) -> bytes:
    """The record that says `message`."""
    return encode_record(message.record, json.dumps(message.to_json(), separators=(",", ":")).encode())


def decode(record: Record, payload: bytes) -> Message:
    """The message that a handshake record says. Raises RemoteProtocolError."""
    members = parse_object(payload, record.name)
    message: Message = MESSAGES[record].read(_Reader(record.name, members))
    return message


def parse_object(payload: bytes, what: str) -> Json:
    """One JSON object with no member that we would have to understand and do not. Raises RemoteProtocolError."""
    try:
        members = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(Code.PROTOCOL_ERROR, f"{what} is not JSON") from error
    if not isinstance(members, dict):
        raise RemoteProtocolError(Code.PROTOCOL_ERROR, f"{what} is not an object")
    if any(name.endswith("!") for name in members):
        raise RemoteProtocolError(Code.UNSUPPORTED, f"{what} asks for something that this version does not know")
    return members


def proof(secret: str, edge: str, link: str, epoch: int, received: int) -> str:
    """What RESUME proves: the dialler knows the Link's secret and means this epoch and offset (section 6)."""
    parts = ("netbore resume", edge, link, str(epoch), str(received))
    return hmac.new(bytes.fromhex(secret), b"\0".join(part.encode() for part in parts), hashlib.sha256).hexdigest()


def proves(resume: Resume, secret: str, edge: str) -> bool:
    """Whether `resume` was made with the secret; takes the same time either way."""
    return hmac.compare_digest(resume.proof, proof(secret, edge, resume.link, resume.epoch, resume.received))


def choose_minor(theirs: tuple[int, int], ours: tuple[int, int]) -> int | None:
    """The highest minor version in both ranges, or None."""
    highest = min(theirs[1], ours[1])
    return highest if highest >= max(theirs[0], ours[0]) else None


class Handshake:
    """One side's reading of one transport's handshake: whole records in, messages out, a stranger's limits kept.

    `hears` are the records that this side may get. `receive_data` returns the messages that are complete, and stops at the
    first, so that bytes behind an answer stay in the decoder for the Pipe; it raises RemoteProtocolError.
    """

    def __init__(self, hears: frozenset[Record]) -> None:
        self.decoder = RecordDecoder()
        self._hears = hears
        self._taken = 0

    def receive_data(self, data: Data) -> Message | None:
        """Take bytes (or b"" to look at what is left), return the next message or None when it is not whole yet."""
        record = self.decoder.receive_one(data, self._hears)
        if record is None:
            return None
        self._taken += 1
        if self._taken > HANDSHAKE_RECORDS:
            raise RemoteProtocolError(Code.LIMIT_EXCEEDED, f"more than {HANDSHAKE_RECORDS} handshake records")
        return decode(*record)
