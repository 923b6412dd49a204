"""The WebSocket upgrade that makes a connection a Link's carrier, both sides (RFC 6455 section 4, docs/protocol.md section 1).

Theory of operation. wsproto makes and checks both sides' heads. It is shown heads only, one at a time: what stands behind
them stays here, and so does what it does not look at (interim responses, the key's form, a second protocol, a body).
What a peer sends never raises; it becomes one of the answers below.

wsproto takes the client's Sec-WebSocket-Key from `os.urandom` (inside `ClientHandshake`). This is the one place of
the carrier where randomness is not passed in; the key's length is constant, and nothing is derived from it later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final, TypeAlias

import attrs
import h11
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

from netbore.proto.http.head import Collector
from netbore.proto.http.messages import BadMessage, Headers, RequestHead, ResponseHead
from netbore.proto.http.pages import PROBLEMS, problem_of, render
from netbore.proto.wire import SUBPROTOCOL

#: The most that the answer to an upgrade may be, interim responses included, and the most of its body that is read.
MAX_ANSWER: Final = 8192
#: The most names of subprotocols that are taken from a peer's list, and characters of its texts.
MOST_NAMES: Final = 16
MOST_TEXT: Final = 200

#: A 1xx other than the answer (RFC 9110 section 15.2).
_INTERIM: Final = re.compile(rb"HTTP/1\.1 1(?!01)[0-9]{2}[ \r]")


# --- the client's side of the upgrade ---


@attrs.frozen
class Opened:
    """The server agreed. `leftover` are bytes behind its answer: the pipe's first."""

    subprotocol: str
    leftover: bytes


@attrs.frozen
class Refused:
    """The server answered something other than 101. What it says is cleaned for a log: printable and short, or empty."""

    status: int
    #: Members of a problem+json body.
    code: str = ""
    detail: str = ""
    #: The subprotocols that the server speaks, when it said so.
    supported: tuple[str, ...] = ()


@attrs.frozen
class Unusable:
    """The answer is none that RFC 6455 knows, too long, or cut short. `reason` is in our own words."""

    reason: str


Answer: TypeAlias = Opened | Refused | Unusable


class ClientHandshake:
    """The client's side: send `request`, then feed what comes until there is an Answer."""

    __slots__ = ("_body", "_collector", "_handshake", "_seen", "_status", "request")

    def __init__(self, host: str, path: str, *, headers: Headers = (), subprotocols: Sequence[str] = (SUBPROTOCOL,)) -> None:
        """`host` is the value of Host, `headers` are added. Raises ValueError for one that HTTP does not allow."""
        self._handshake = H11Handshake(ConnectionType.CLIENT)
        request = Request(host=host, target=path, subprotocols=list(subprotocols), extra_headers=list(headers))
        try:
            self.request: bytes = self._handshake.send(request)
        except h11.LocalProtocolError as error:
            raise ValueError(f"no such upgrade request: {error}") from error
        self._collector = Collector(b"\r\n\r\n")
        self._seen = 0
        self._status = 0
        self._body = bytearray()

    def receive_data(self, data: bytes) -> Answer | None:
        """Take what the server sent, at least one byte. None while more is needed."""
        at = 0
        while not self._status:
            start = at
            text, at = self._collector.take(data, start)
            self._seen += at - start
            if self._seen > MAX_ANSWER:
                return Unusable("the answer to the upgrade is too long")
            if text is None:
                return None
            answer = None if _INTERIM.match(text) else self._read(text)
            if answer is not None:
                return attrs.evolve(answer, leftover=data[at:]) if isinstance(answer, Opened) else answer
        return self._read_body(data[at:])

    def receive_eof(self) -> Refused | Unusable:
        """The server's bytes have ended before there was an Answer."""
        return self._refused() if self._status else Unusable("the connection ended before the upgrade was answered")

    def _read(self, data: bytes) -> Answer | None:
        try:
            self._handshake.receive_data(data)
        except (RemoteProtocolError, ValueError):
            return self._refused() if self._status else Unusable("the answer to the upgrade is against the rules")
        for event in self._handshake.events():
            match event:
                case AcceptConnection(subprotocol=None):
                    return Unusable("the server chose no subprotocol")
                case AcceptConnection(subprotocol=str(name)):
                    return Opened(name, b"")
                case RejectConnection(status_code=status, has_body=body):
                    self._status = status
                    if not body:
                        return self._refused()
                case RejectData(data=piece, body_finished=finished):  # pragma: no branch - there is no other event
                    self._body += piece
                    if finished:
                        return self._refused()
        return None

    def _read_body(self, data: bytes) -> Answer | None:
        """Nobody waits for more of a refusal than MAX_ANSWER."""
        self._seen += len(data)
        answer = self._read(data) if data else None
        return self._refused() if answer is None and self._seen > MAX_ANSWER else answer

    def _refused(self) -> Refused:
        try:
            problem = json.loads(self._body)
        except (ValueError, RecursionError):
            problem = None
        if not isinstance(problem, dict):
            return Refused(self._status)
        supported = problem.get("supported")
        names = supported if isinstance(supported, list) else []
        return Refused(
            self._status,
            code=_clean(problem.get("code")),
            detail=_clean(problem.get("detail")),
            supported=tuple(filter(None, map(_clean, names[:MOST_NAMES]))),
        )


def _clean(text: object) -> str:
    """What may stand in a log; nothing of what is no string."""
    return "".join(filter(str.isprintable, text[:MOST_TEXT])) if isinstance(text, str) else ""


# --- the server's side of the upgrade ---


@attrs.frozen
class Refusal:
    """The answer to an upgrade that is refused: a head without any `Connection` field, and its body."""

    head: ResponseHead
    body: bytes


_RELEVANT: Final = (b"upgrade", b"connection", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-protocol")
_KEY: Final = re.compile(rb"[0-9A-Za-z+/]{22}==")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")


def accept_upgrade(head: RequestHead, supported: Sequence[str] = (SUBPROTOCOL,)) -> bytes | Refusal:
    """The 101 to send, behind which the pipe begins, or the refusal of a request that came to the Link's path.

    `supported` are subprotocols; of several in common the client's first is taken. None in common is 426, which names
    `offered` and `supported`; anything that is no upgrade by RFC 6455 is 400.
    """
    handshake = H11Handshake(ConnectionType.SERVER)
    try:
        handshake.receive_data(_canonical(head))
        request = next(handshake.events())
    except RemoteProtocolError as error:
        return _not_an_upgrade(getattr(error.event_hint, "headers", ()))
    except ValueError:
        return _not_an_upgrade()
    # Beyond wsproto's checks: no body, HTTP/1.1, no other protocol beside, and a key of sixteen bytes.
    if head.upgrade != b"websocket" or not _KEY.fullmatch(head.fields[b"sec-websocket-key"]):
        return _not_an_upgrade()
    assert isinstance(request, Request)
    offered = request.subprotocols
    chosen = next((name for name in offered if name in supported), None)
    if chosen is None:
        return _nothing_in_common(offered, supported)
    return handshake.send(AcceptConnection(subprotocol=chosen))


def _canonical(head: RequestHead) -> bytes:
    """The request as wsproto is to see it: what it reads, each once, and a target and Host that it has no opinion on."""
    lines = [head.method + b" / HTTP/1.1", b"Host: edge"]
    lines += [name + b": " + value for name in _RELEVANT if (value := head.get(name)) is not None]
    return b"\r\n".join([*lines, b"", b""])


def _not_an_upgrade(extra: Headers = ()) -> Refusal:
    head, body = render(problem_of(BadMessage(400, "no WebSocket upgrade as RFC 6455 has it")))
    return Refusal(ResponseHead(head.status, head.reason, 1, (*head.headers, *extra)), body)


def _nothing_in_common(offered: Sequence[str], supported: Sequence[str]) -> Refusal:
    """Only names that are tokens are repeated to the peer, and not many."""
    named = [name for name in offered[:MOST_NAMES] if _TOKEN.fullmatch(name)]
    head, body = render(PROBLEMS["upgrade_required"], members={"offered": named, "supported": list(supported)})
    return Refusal(ResponseHead(head.status, head.reason, 1, (*head.headers, (b"Upgrade", b"websocket"))), body)
