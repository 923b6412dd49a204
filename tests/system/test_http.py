"""HTTP through real processes: bodies both ways, trailers, 1xx, early answers, SSE, WebSocket, keep-alive and pipelining."""

from __future__ import annotations

import hashlib
import json
import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from tests.system.http1 import CutShort, Viewer
from tests.system.processes import DOMAIN, EdgeProgram, Nginx, agent, curl, edge, eventually, needs_curl, needs_nginx, nginx
from tests.system.raw_host import Connection, RawHost, Request, ok, serve, websocket_echo
from tests.system.viewer import WebSocketViewer

pytestmark = [needs_nginx, needs_curl]

MEGABYTE = 1_000_000
#: How a Host treats the rest of a body after an early answer, and the answer's size: a little more than the Viewer's kernel
#: takes before it is read, so that the Edge's kernel has the tail. A reset destroys what is still in the Host's own kernel, so
#: what comes before it has to be small.
EARLY_SIZES = {"orderly": 150_000, "deaf": 150_000, "reset": 1000}
PATTERN = hashlib.shake_256(b"pattern").digest(MEGABYTE)


class Scripts:
    """The own Host: the first word of a target's path says what it does. Threads of the test talk to it by its queues."""

    def __init__(self) -> None:
        #: What the Host is to send next, None to end.
        self.events: queue.Queue[bytes | None] = queue.Queue()
        #: What the Host has noticed.
        self.noted: queue.Queue[object] = queue.Queue()

    def serve(self, connection: Connection) -> None:
        while (head := connection.read_head()) is not None:
            name = head.target.split("/")[1].partition("?")[0]
            action: Callable[[Connection, Request], None] = getattr(self, f"do_{name}")
            action(connection, head)

    def do_echo(self, connection: Connection, head: Request) -> None:
        request = connection.read_body(head)
        connection.send(ok(request.body, f"X-Framing: {'chunks' if 'transfer-encoding' in head.headers else 'length'}"))

    def do_events(self, connection: Connection, head: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while (event := self.events.get(timeout=20)) is not None:
            connection.send(b"%x\r\n%b\r\n" % (len(event), event))
        connection.send(b"0\r\n\r\n")

    def do_endless(self, connection: Connection, head: Request) -> None:
        """No framing: the end of the connection ends the body."""
        connection.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while (event := self.events.get(timeout=20)) is not None:
            connection.send(event)
        connection.sock.close()

    def do_chunks(self, connection: Connection, head: Request) -> None:
        """A megabyte in chunks of odd sizes, and trailers."""
        connection.send(b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n")
        at = 0
        while piece := PATTERN[at : at + 1 + at % 9973]:
            connection.send(b"%x;n=%d\r\n%b\r\n" % (len(piece), at, piece))
            at += len(piece)
        connection.send(b"0\r\nX-Sum: %d\r\nSet-Cookie: a=b\r\nNetbore-X: y\r\n\r\n" % at)

    def do_trailers(self, connection: Connection, head: Request) -> None:
        request = connection.read_body(head)
        seen = {"trailers": request.trailers.decode(), "te": head.headers.get("te"), "size": len(request.body)}
        connection.send(ok(json.dumps(seen).encode()))

    def do_continue(self, connection: Connection, head: Request) -> None:
        """The body comes after 100, and not before."""
        self.noted.put(head.headers.get("expect"))
        assert self.events.get(timeout=20) == b"continue"
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.send(ok(connection.read_body(head).body))

    def do_unwanted(self, connection: Connection, head: Request) -> None:
        """A final answer in place of 100."""
        connection.send(ok(b"no thanks", status="403 Forbidden"))
        connection.send_eof()
        self.noted.put(connection.receive())

    def do_hints(self, connection: Connection, head: Request) -> None:
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
        connection.send(ok(b"hinted"))

    def do_early(self, connection: Connection, head: Request) -> None:
        """413 after the first bytes of the body, and the connection is closed on the rest."""
        connection.receive(1000)
        how = head.target.rpartition("/")[2]
        connection.send(ok(PATTERN[: EARLY_SIZES[how]], "Connection: close", status="413 Content Too Large"))
        if how == "reset":
            connection.reset()
            return
        connection.send_eof()
        if how == "deaf":
            self.events.get(timeout=20)
        while how == "orderly" and connection.receive():
            pass

    def do_nothing(self, connection: Connection, head: Request) -> None:
        """Waits for the body, and notes how it ended."""
        try:
            connection.read_body(head)
            self.noted.put("whole")
        except EOFError:
            self.noted.put("end of input")
            raise
        except OSError:
            self.noted.put("reset")
            raise

    def do_nocontent(self, connection: Connection, head: Request) -> None:
        connection.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    def do_unmodified(self, connection: Connection, head: Request) -> None:
        connection.send(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 1234\r\n\r\n')

    def do_short(self, connection: Connection, head: Request) -> None:
        """A response that ends too early."""
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
        connection.sock.close()

    def do_upgrade(self, connection: Connection, head: Request) -> None:
        """101 and the first opaque bytes in one send, then an echo up to the peer's end."""
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: shout\r\n\r\nready\n")
        while data := connection.receive():
            connection.send(data.upper())
        connection.send(b"bye\n")


@attrs.frozen
class Stand:
    """One Edge; `demo` is nginx, `raw` the own Host, `ws` an echo of WebSockets."""

    edge: EdgeProgram
    nginx: Nginx
    raw: RawHost
    scripts: Scripts

    def viewer(self, name: str = "raw", **options: float) -> Viewer:
        return Viewer(self.edge.port, f"{name}.{DOMAIN}", self.edge.ca, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("http")
    scripts = Scripts()
    small = "location /small/ { client_max_body_size 1k; dav_methods PUT; }"
    with ExitStack() as stack:
        the_edge = stack.enter_context(edge(folder))
        host = stack.enter_context(nginx(folder, server=small))
        raw = stack.enter_context(RawHost(scripts.serve))
        echo = stack.enter_context(RawHost(websocket_echo))
        for name, port in {"demo": host.port, "raw": raw.port, "ws": echo.port}.items():
            stack.enter_context(agent(folder, port, the_edge, name=name, state=f"agent-{name}"))
        (host.root / "pattern").write_bytes(PATTERN)
        yield Stand(the_edge, host, raw, scripts)


# Bodies


def chunked(data: bytes, size: int) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def test_chunks_go_up_with_trailers(stand: Stand) -> None:
    trailers = b"X-Sum: 1\r\nContent-Length: 5\r\nNetbore-Id: x\r\nX-Forwarded-For: 192.0.2.1\r\n"
    with stand.viewer() as viewer:
        viewer.ask("POST", "/trailers", "Transfer-Encoding: chunked", "TE: trailers, gzip", "Connection: TE")
        viewer.send(chunked(PATTERN, 4999) + b"0\r\n" + trailers + b"\r\n")
        message = viewer.response()
        assert message is not None
        assert json.loads(message.body) == {"trailers": "X-Sum: 1\r\n", "te": "trailers", "size": MEGABYTE}
        assert viewer.get("/echo", method="PUT", body=b"x").body == b"x"


def test_chunks_come_down_with_trailers(stand: Stand) -> None:
    with stand.viewer() as viewer:
        for _ in range(2):
            message = viewer.get("/chunks", "TE: trailers")
            assert message.body == PATTERN
            assert message.trailers == ((b"X-Sum", b"%d" % MEGABYTE),)
            assert message.get("trailer") == "X-Sum"


def test_a_viewer_of_http_1_0_gets_the_same_bytes(stand: Stand) -> None:
    with stand.viewer() as viewer:
        viewer.send(b"GET /chunks HTTP/1.0\r\nHost: raw.tunnel.localhost\r\n\r\n")
        message = viewer.response()
        assert message is not None
        assert message.head.closing
        assert message.get("transfer-encoding") is None
        assert message.body == PATTERN


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_curl_uploads(stand: Stand, tmp_path: Path, framing: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(PATTERN * 5)
    options = ["--data-binary", f"@{source}"] if framing == "length" else ["-T", "-", "-X", "POST", "--no-buffer"]
    if framing == "chunks":
        options = ["-H", "Transfer-Encoding: chunked", "--data-binary", f"@{source}"]
    answer = curl(stand.edge, "raw", "/echo", *options)
    assert (answer.status, answer.headers["x-framing"]) == (200, framing)
    assert answer.body == PATTERN * 5


def test_a_response_cut_short_is_seen_to_be(stand: Stand) -> None:
    with stand.viewer() as viewer, pytest.raises((CutShort, OSError)):
        viewer.get("/short")
    assert curl(stand.edge, "raw", "/short").code in (18, 35, 56)


def test_a_request_cut_short_is_a_reset_for_the_host(stand: Stand) -> None:
    with stand.viewer() as viewer:
        viewer.ask("POST", "/nothing", "Content-Length: 1000", body=b"only this")
        eventually(lambda: stand.raw.open > 0, 5, "a connection to the Host")
    assert stand.scripts.noted.get(timeout=5) == "reset"


# No bodies


def test_head_has_the_length_and_no_body(stand: Stand) -> None:
    with stand.viewer("demo") as viewer:
        for _ in range(2):
            message = viewer.get("/pattern", method="HEAD")
            assert (message.status, message.get("content-length")) == (200, str(MEGABYTE))
        assert viewer.get("/pattern").body == PATTERN
    assert curl(stand.edge, "demo", "/pattern", "--head").headers["content-length"] == str(MEGABYTE)


def test_no_content_and_not_modified(stand: Stand) -> None:
    with stand.viewer() as viewer:
        assert viewer.get("/nocontent").head.all("content-length") == []
        assert viewer.get("/unmodified").get("etag") == '"a"'
        assert viewer.get("/echo").status == 200


# 1xx


def test_the_body_waits_for_100(stand: Stand) -> None:
    with stand.viewer() as viewer:
        viewer.ask("POST", "/continue", "Content-Length: 5", "Expect: 100-continue")
        assert stand.scripts.noted.get(timeout=5) == "100-continue"
        viewer.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):  # nobody but the Host may say it
            viewer.fill()
        viewer.sock.settimeout(10)
        stand.scripts.events.put(b"continue")
        head = viewer.response_head()
        assert head is not None
        assert head.status == 100
        viewer.send(b"hello")
        message = viewer.response()
        assert message is not None
        assert (message.status, message.body) == (200, b"hello")


def test_curl_waits_for_100(stand: Stand) -> None:
    stand.scripts.events.put(b"continue")
    answer = curl(stand.edge, "raw", "/continue", "-H", "Expect: 100-continue", "--expect100-timeout", "10", "-d", "hello")
    stand.scripts.noted.get(timeout=5)
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.seconds < 5


def test_a_final_answer_in_place_of_100(stand: Stand) -> None:
    with stand.viewer() as viewer:
        viewer.ask("POST", "/unwanted", "Content-Length: 5000000", "Expect: 100-continue")
        message = viewer.response()
        assert message is not None
        assert (message.status, message.body) == (403, b"no thanks")
        assert message.head.closing
        assert viewer.ended()


def test_early_hints_are_for_http_1_1(stand: Stand) -> None:
    with stand.viewer() as viewer:
        viewer.ask("GET", "/hints")
        head = viewer.response_head()
        assert head is not None
        assert (head.status, head.get("link")) == (103, "</a.css>; rel=preload")
        message = viewer.response()
        assert message is not None
        assert message.body == b"hinted"
    with stand.viewer() as viewer:
        viewer.send(b"GET /hints HTTP/1.0\r\nHost: raw.tunnel.localhost\r\n\r\n")
        head = viewer.response_head()
        assert head is not None
        assert head.status == 200


# Early answers


@pytest.mark.parametrize("how", EARLY_SIZES)
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_an_early_413_arrives_whole(stand: Stand, how: str, framing: str) -> None:
    """The Viewer sends for as long as it can, and reads only then."""
    with stand.viewer() as viewer:
        field = "Content-Length: 50000000" if framing == "length" else "Transfer-Encoding: chunked"
        viewer.ask("POST", f"/early/{how}", field)
        piece = PATTERN if framing == "length" else chunked(PATTERN, 65536)
        sent = viewer.pour([piece] * 50)
        message = viewer.response()
        assert message is not None
        assert message.status == 413
        assert message.body == PATTERN[: EARLY_SIZES[how]]
        assert message.head.closing
        assert how == "orderly" or sent < 50_000_000
        if how == "deaf":
            stand.scripts.events.put(None)


@pytest.mark.parametrize("name", ["raw", "demo"])
def test_curl_gets_an_early_413(stand: Stand, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(PATTERN * 50)
    path = "/early/orderly" if name == "raw" else "/small/file"
    answer = curl(stand.edge, name, path, "-T", str(source), "-H", "Expect:")
    assert (answer.status, len(answer.body)) == (413, int(answer.headers["content-length"]))


# Streams of events


@pytest.mark.parametrize("path", ["/events", "/endless"])
def test_each_event_arrives_at_once(stand: Stand, path: str) -> None:
    """The Host sends the next event only when the last has been seen."""
    with stand.viewer() as viewer:
        viewer.ask("GET", path)
        head = viewer.response_head()
        assert head is not None
        assert head.get("content-type") == "text/event-stream"
        assert head.get("transfer-encoding") == "chunked"
        for number in range(50):
            event = b"data: %d\n\n" % number
            stand.scripts.events.put(event)
            assert viewer.chunk() == event
        stand.scripts.events.put(None)
        assert viewer.chunk() == b""
        assert viewer.fields() == ()


# Upgrades


def test_a_websocket_echoes(stand: Stand) -> None:
    with WebSocketViewer(stand.edge, "ws") as websocket:
        messages = [b"", b"small", PATTERN, PATTERN * 4, *(b"%d" % number for number in range(100))]
        for message in messages:
            websocket.send(message)
            assert websocket.receive(1) == [message]


def test_opaque_bytes_behind_the_request_and_behind_the_101(stand: Stand) -> None:
    with stand.viewer() as viewer:
        viewer.ask("GET", "/upgrade", "Connection: Upgrade", "Upgrade: shout", body=b"early ")
        head = viewer.response_head()
        assert head is not None
        assert (head.status, head.get("upgrade")) == (101, "shout")
        assert viewer.take(12) == b"ready\nEARLY "
        viewer.send(b"late")
        assert viewer.take(4) == b"LATE"


def test_an_upgrade_that_the_host_does_not_want(stand: Stand) -> None:
    with stand.viewer() as viewer:
        for _ in range(2):
            message = viewer.get("/echo", "Connection: Upgrade", "Upgrade: websocket")
            assert (message.status, message.get("upgrade")) == (200, None)


# One after another


def test_keep_alive_uses_one_connection_to_the_host(stand: Stand, tmp_path: Path) -> None:
    """A Host of its own: the others of this module close connections as they like, and the Edge remembers."""
    with (
        RawHost(serve(lambda request: ok(request.body))) as host,
        agent(tmp_path, host.port, stand.edge, name="kept"),
        stand.viewer("kept") as viewer,
    ):
        for number in range(100):
            assert viewer.get(f"/{number}", method="POST", body=b"%d" % number).body == b"%d" % number
        assert host.connections == 1


def test_pipelined_requests_are_answered_in_order(stand: Stand) -> None:
    """All at once, of several kinds, with bodies, and more of them than is held."""
    with stand.viewer() as viewer:
        for number in range(300):
            viewer.ask("POST", "/echo", f"Content-Length: {number}", body=PATTERN[:number])
            viewer.ask("HEAD", "/echo")
            viewer.ask("GET", "/nocontent")
        for number in range(300):
            first = viewer.response()
            assert first is not None
            assert first.body == PATTERN[:number]
            assert viewer.response("HEAD") is not None
            third = viewer.response()
            assert third is not None
            assert third.status == 204


def test_connection_close_ends_the_connection(stand: Stand) -> None:
    with stand.viewer() as viewer:
        message = viewer.get("/echo", "Connection: close")
        assert message.head.closing
        assert viewer.ended()


def test_a_range_and_a_condition_of_nginx(stand: Stand) -> None:
    with stand.viewer("demo") as viewer:
        part = viewer.get("/pattern", "Range: bytes=100-199")
        assert (part.status, part.body) == (206, PATTERN[100:200])
        etag = part.get("etag")
        assert viewer.get("/pattern", f"If-None-Match: {etag}").status == 304
