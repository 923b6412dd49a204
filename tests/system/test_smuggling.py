"""Messages that two parsers could read differently, sent through Viewer, Edge, Agent and Host.

Theory of operation. Every case is followed on its connection by a plain request, the canary, and many carry another request
inside: whoever reads the case in another way than the Edge does would see it. So for each case the Hosts' own counts of whole
requests are compared with the answers of theirs that the Viewer got. There is an own Host that records bytes and reads them
by the strict reader of `http1`, and there are foreign ones, whose parsers are what the Edge has to agree with.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import attrs
import pytest

from tests.system.foreign import FOREIGN
from tests.system.http1 import Ambiguous, CutShort, Message, Viewer, Wire
from tests.system.processes import DOMAIN, EdgeProgram, agent, edge, eventually
from tests.system.raw_host import Connection, RawHost

Case = dict[str, Any]

_HERE = Path(__file__).parent
_OWN: dict[str, list[Case]] = json.loads((_HERE / "smuggling.json").read_text())
_CORPUS: dict[str, list[Case]] = json.loads((_HERE.parent / "proto" / "http" / "smuggling.json").read_text())
_NAMED = re.compile(r"(?<=Host: )a(?=[\r\n])")
_SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: <host>\r\n\r\n"

REFUSED = [*_CORPUS["requests"], *_OWN["refused"]]
ACCEPTED = _OWN["accepted"]
#: Responses that must not be taken, and those that are, with the body that they have.
BAD_RESPONSES = _CORPUS["responses"]
GOOD_RESPONSES = _OWN["responses"]

HOSTS = ["raw", *FOREIGN]


class Host(Protocol):
    """A Host that tells which whole requests it has seen."""

    @property
    def port(self) -> int: ...

    def seen(self) -> list[dict[str, object]]: ...


class Recorder:
    """The own Host. It answers each whole request, and says what was wrong with the bytes that it got."""

    def __init__(self, host: RawHost) -> None:
        self._host = host
        self.port = host.port
        self.requests: list[Message] = []
        self.wrong: list[str] = []
        #: By number, what to send in answer to /answer/N.
        self.answers: list[Case] = [*BAD_RESPONSES, *GOOD_RESPONSES]

    @property
    def received(self) -> int:
        return self._host.received

    def seen(self) -> list[dict[str, object]]:
        return [{"method": m.head.method, "target": m.head.target, "length": len(m.body)} for m in self.requests]

    def serve(self, connection: Connection) -> None:
        wire = Wire(connection.receive)
        try:
            while (request := wire.request()) is not None:
                self.requests.append(request)
                self._answer(connection, request)
        except Ambiguous as error:
            self.wrong.append(str(error))
        except CutShort as error:
            # A request cut short has to end by a reset, which is an OSError.
            self.wrong.append(f"an orderly end: {error}")

    def _answer(self, connection: Connection, request: Message) -> None:
        found = re.fullmatch("/answer/([0-9]+)", request.head.target)
        if found is not None:
            connection.send(self.answers[int(found[1])]["bytes"].encode("latin-1"))
            return
        body = request.head.target.encode()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


@contextmanager
def recorder(folder: Path) -> Iterator[Recorder]:
    made: list[Recorder] = []
    ready = threading.Event()

    def serve(connection: Connection) -> None:
        ready.wait(10)
        made[0].serve(connection)

    with RawHost(serve) as host:
        made.append(Recorder(host))
        ready.set()
        yield made[0]


@attrs.frozen
class Stand:
    """An Edge, and each Host behind an Agent of its own; the Tunnel has the Host's name."""

    edge: EdgeProgram
    hosts: dict[str, Host]

    def viewer(self, name: str) -> Viewer:
        return Viewer(self.edge.port, f"{name}.{DOMAIN}", self.edge.ca)

    @property
    def raw(self) -> Recorder:
        host = self.hosts["raw"]
        assert isinstance(host, Recorder)
        return host


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("smuggling")
    with ExitStack() as stack:
        the_edge = stack.enter_context(edge(folder))
        hosts: dict[str, Host] = {"raw": stack.enter_context(recorder(folder))}
        for name, start in FOREIGN.items():
            hosts[name] = stack.enter_context(start(folder))
        for name, host in hosts.items():
            stack.enter_context(agent(folder, host.port, the_edge, name=name, state=f"agent-{name}"))
        yield Stand(the_edge, hosts)


def bytes_of(case: Case, name: str) -> bytes:
    """What the Viewer sends, for the Tunnel `name`."""
    host = f"{name}.{DOMAIN}"
    smuggled = _SMUGGLED.replace("<host>", host)
    text = _NAMED.sub(host, case["bytes"])
    for mark, value in {
        "<host>": host,
        "<request>": smuggled,
        "<length>": str(len(smuggled)),
        "<size>": f"{len(smuggled):x}",
    }.items():
        text = text.replace(mark, value)
    return text.encode("latin-1")


def seen_by(case: Case, name: str) -> dict[str, object]:
    method, target, length = case["seen"]
    if length == "<length>":
        length = len(_SMUGGLED.replace("<host>", f"{name}.{DOMAIN}"))
    return {"method": method, "target": target, "length": length}


@attrs.frozen
class Outcome:
    """What a Viewer got: the Edge's own answers and the Host's, in order, and whether the end was clean."""

    own: list[Message]
    hosts: list[Message]
    clean: bool

    @property
    def served(self) -> int:
        """How many whole requests the Host must have seen."""
        return sum(200 <= message.status < 300 for message in self.hosts)


def put(viewer: Viewer, text: bytes) -> Outcome:
    """Send a case and its canary, and read all answers."""
    canary = f"GET /canary HTTP/1.1\r\nHost: {viewer.name}\r\nConnection: close\r\n\r\n".encode()
    own: list[Message] = []
    hosts: list[Message] = []
    clean = True
    try:
        viewer.send(text + canary)
        while (message := viewer.response()) is not None:
            (hosts if message.get("netbore-error") is None else own).append(message)
    except (CutShort, OSError):
        clean = False
    return Outcome(own, hosts, clean)


def described(case: Case, outcome: Outcome, host: Host, before: int) -> str:
    answers = [message.head.start for message in (*outcome.hosts, *outcome.own)]
    return f"{case['name']}: {answers}, clean {outcome.clean}; the Host saw {host.seen()[before:]}"


def settle(host: Host, count: int) -> bool:
    """Wait until the Host has seen `count` requests; False when it has not, or has seen more."""
    try:
        eventually(lambda: len(host.seen()) >= count, 2.0, "requests")
    except AssertionError:
        return False
    return len(host.seen()) == count


@pytest.mark.parametrize("name", HOSTS)
def test_ambiguous_requests_have_no_meaning(stand: Stand, name: str) -> None:
    """Each is refused and the connection closed: no Host sees it as a request, whole, nor what stands behind it."""
    host = stand.hosts[name]
    failed = []
    for case in REFUSED:
        before = len(host.seen())
        with stand.viewer(name) as viewer:
            outcome = put(viewer, bytes_of(case, name))
        refused = [message.status for message in outcome.own]
        whole = settle(host, before + outcome.served)
        # A Host may answer, or refuse, what it has of a request whose body turns out to be broken; the canary it never sees.
        if not whole or outcome.served or (refused != [case["status"]] and not _answered_early(case, outcome)):
            failed.append(described(case, outcome, host, before))
    assert not failed, "\n".join(failed)
    assert not any(one["target"] in ("/smuggled", "/canary") for one in host.seen())


def _answered_early(case: Case, outcome: Outcome) -> bool:
    return case["name"].startswith("chunk: ") and not outcome.own and len(outcome.hosts) == 1


def test_a_refused_head_gives_the_host_no_byte(stand: Stand) -> None:
    raw = stand.raw
    for case in REFUSED:
        if case["name"].startswith("chunk: "):
            continue
        before = raw.received
        with stand.viewer("raw") as viewer:
            outcome = put(viewer, bytes_of(case, "raw"))
        assert [message.status for message in outcome.own] == [case["status"]], case["name"]
        assert outcome.own[0].head.closing, case["name"]
        assert outcome.clean, case["name"]
        assert raw.received == before, case["name"]


@pytest.mark.parametrize("name", HOSTS)
def test_odd_requests_have_one_meaning(stand: Stand, name: str) -> None:
    """Each is one request for every Host, with the body that the Edge saw, and the canary is the next."""
    host = stand.hosts[name]
    failed = []
    for case in ACCEPTED:
        if name in case.get("unless", ()):
            continue
        before = len(host.seen())
        with stand.viewer(name) as viewer:
            outcome = put(viewer, bytes_of(case, name))
        expected = [seen_by(case, name), {"method": "GET", "target": "/canary", "length": 0}]
        whole = settle(host, before + 2)
        if not whole or outcome.own or outcome.served != 2 or host.seen()[before:] != expected:
            failed.append(described(case, outcome, host, before))
    assert not failed, "\n".join(failed)


def test_the_recorder_saw_one_framing_only(stand: Stand) -> None:
    """All bytes that reached the own Host were whole, strict requests, or ended by a reset."""
    for case in (*REFUSED, *ACCEPTED):
        with stand.viewer("raw") as viewer:
            put(viewer, bytes_of(case, "raw"))
    assert stand.raw.wrong == []
    for request in stand.raw.requests:
        names = [key.lower() for key, _ in request.head.fields]
        assert names.count(b"host") == 1
        assert len([name for name in names if name in (b"content-length", b"transfer-encoding")]) <= 1
        assert not {key.lower() for key, _ in request.trailers} - {b"x-sum", b"x"}


@pytest.mark.parametrize("number", range(len(BAD_RESPONSES)), ids=[case["name"] for case in BAD_RESPONSES])
def test_ambiguous_responses_reach_nobody(stand: Stand, number: int) -> None:
    """The Viewer gets 502, or sees the response cut short where its head was good; the next request gets its own answer."""
    case = BAD_RESPONSES[number]
    with stand.viewer("raw") as viewer:
        try:
            message = viewer.get(f"/answer/{number}", method=case["method"])
        except (CutShort, OSError):
            assert "chunk" in case["bytes"], "only a body may be cut short"
        else:
            assert (message.status, message.get("netbore-error")) == (502, "bad_gateway")
            assert viewer.get("/next").body == b"/next"
    with stand.viewer("raw") as viewer:
        assert viewer.get(f"/after/{number}").body == f"/after/{number}".encode()


@pytest.mark.parametrize("number", range(len(GOOD_RESPONSES)), ids=[case["name"] for case in GOOD_RESPONSES])
def test_odd_responses_have_one_meaning(stand: Stand, number: int) -> None:
    """The Viewer gets the body that was meant; what the Host sent behind it answers nobody."""
    case = GOOD_RESPONSES[number]
    with stand.viewer("raw") as viewer:
        message = viewer.get(f"/answer/{len(BAD_RESPONSES) + number}", method=case["method"])
        assert (message.status, message.body.decode()) == (case["status"], case["body"])
        assert message.get("netbore-error") is None
        assert message.trailers == ()
        for again in range(3):
            assert viewer.get(f"/{number}/{again}").body == f"/{number}/{again}".encode()


def test_the_lists_are_long_enough() -> None:
    assert len(REFUSED) >= 40
    assert sum(case["name"].startswith("chunk: ") for case in REFUSED) >= 15
    assert len(BAD_RESPONSES) >= 15
