"""Viewers and Hosts that make trouble: slow ones, ones that go away, Hosts that are down, silent, or close what is idle."""

from __future__ import annotations

import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import attrs
import pytest
import trio

import netbore
from netbore.edge.config import EdgeConfig, EdgeLimits
from netbore.edge.front import FrontLimits
from netbore.edge.targets import HostLimits
from netbore.proto.http.sides import ExchangeLimits
from tests.system.http1 import CutShort, Viewer
from tests.system.processes import (
    DOMAIN,
    AgentProgram,
    EdgeProgram,
    agent,
    edge,
    needs_nginx,
    nginx,
)
from tests.system.proxies import Proxy
from tests.system.raw_host import Connection, IdleTimeout, RawHost, ok, serve

pytestmark = needs_nginx

#: What Edge and Agent may each take above idle, in bytes.
MOST_MEMORY = 128 * 1024 * 1024
GIGABYTE = 1_000_000_000
#: Bytes that a slow Viewer reads in a second.
SLOW = 100_000


@attrs.frozen
class Stand:
    """One Edge, and one Agent whose Host is nginx with a file of a gigabyte."""

    edge: EdgeProgram
    agent: AgentProgram

    def viewer(self, name: str = "demo", *, buffer: int = 0) -> Viewer:
        return Viewer(self.edge.port, f"{name}.{DOMAIN}", self.edge.ca, buffer=buffer)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with edge(tmp_path) as the_edge, nginx(tmp_path) as host, agent(tmp_path, host.port, the_edge, name="demo") as the_agent:
        with (host.root / "gigabyte").open("wb") as file:
            file.truncate(GIGABYTE)
        yield Stand(the_edge, the_agent)


# Slow Viewers


class Slow:
    """Reads a download at a steady pace, and counts."""

    def __init__(self, viewer: Viewer) -> None:
        self.read = 0
        self._viewer = viewer
        viewer.ask("GET", "/gigabyte")
        head = viewer.response_head()
        assert head is not None
        assert head.get("content-length") == str(GIGABYTE)
        viewer.sock.settimeout(0)

    def take(self, most: int) -> None:
        """Up to `most` bytes, as far as they are there."""
        left = most
        with suppress(ssl.SSLWantReadError):
            while left > 0:
                data = self._viewer.sock.recv(left)
                assert data, "the download has ended"
                left -= len(data)
        self.read += most - left


def read_slowly(slow: list[Slow], seconds: float, programs: list[AgentProgram | EdgeProgram]) -> list[int]:
    """Have all read at their pace for so long; the most memory that each program had."""
    most = [0] * len(programs)
    step = 0.1
    for _ in range(int(seconds / step)):
        began = time.monotonic()
        for one in slow:
            one.take(int(SLOW * step))
        most = [max(before, program.resident) for before, program in zip(most, programs, strict=True)]
        time.sleep(max(0.0, step - (time.monotonic() - began)))
    return most


@pytest.mark.parametrize(("count", "seconds", "burst"), [(1, 3.0, 0), (50, 6.0, 0), (50, 2.0, 5_000_000)])
def test_slow_viewers_cost_little_memory(stand: Stand, count: int, seconds: float, burst: int) -> None:
    """A gigabyte each, of which they read a little; then they stand still until every buffer on the way is full.

    Those that begin with a fast `burst` have been given large windows before.
    """
    programs: list[AgentProgram | EdgeProgram] = [stand.edge, stand.agent]
    with stand.viewer() as viewer:
        assert viewer.get("/").status == 200
    idle = [program.resident for program in programs]
    with ExitStack() as stack:
        slow = [Slow(stack.enter_context(stand.viewer(buffer=65536))) for _ in range(count)]
        while any(one.read < burst for one in slow):
            for one in slow:
                one.take(min(SLOW, burst - one.read))
        reading = read_slowly(slow, seconds, programs)
        standing = read_slowly([], 2.0, programs)
        above = [max(pair) - before for *pair, before in zip(reading, standing, idle, strict=True)]
        print(f"{count} slow Viewers: Edge {above[0] >> 20} MiB and Agent {above[1] >> 20} MiB above idle")  # noqa: T201
        assert max(above) <= MOST_MEMORY, above
        least = min(one.read for one in slow)
        assert least >= SLOW * seconds * 0.5, f"{least} bytes in {seconds} s"
        with stand.viewer() as viewer:
            began = time.monotonic()
            assert viewer.get("/").body == b"hello from the host\n"
            assert time.monotonic() - began < 1.0


# Viewers that go away


class Endless:
    """A Host that sends without end and notes how its connections ended."""

    def __init__(self) -> None:
        self.ended = threading.Semaphore(0)

    def serve(self, connection: Connection) -> None:
        head = connection.read_head()
        if head is None:
            return
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                connection.send(b"400\r\n%b\r\n" % bytes(1024))
                if head.target == "/silent":
                    connection.receive()
                    return
        finally:
            self.ended.release()


@pytest.mark.parametrize("path", ["/silent", "/loud"])
@pytest.mark.parametrize("how", ["close", "abort", "half"])
def test_a_viewer_that_goes_away_frees_the_host(tmp_path: Path, path: str, how: str) -> None:
    endless = Endless()
    with (
        RawHost(endless.serve) as host,
        edge(tmp_path) as the_edge,
        agent(tmp_path, host.port, the_edge, name="raw"),
        Viewer(the_edge.port, f"raw.{DOMAIN}", the_edge.ca) as viewer,
    ):
        viewer.ask("GET", path)
        head = viewer.response_head()
        assert head is not None
        assert viewer.chunk() == bytes(1024)
        if how == "abort":
            viewer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "half":
            viewer.sock.shutdown(socket.SHUT_WR)  # TLS is not ended properly: the Viewer is gone
        else:
            viewer.close()
        assert endless.ended.acquire(timeout=3), "the Host's connection is still open"


# Hosts that close what is idle

TUNNELS = 100
POSTS = 10


class Poster(threading.Thread):
    """POSTs at random gaps of 0 to 3 s over one connection, to a Tunnel that nobody else uses."""

    def __init__(self, viewer: Viewer, seed: int) -> None:
        super().__init__(daemon=True)
        self._viewer = viewer
        self._random = random.Random(seed)
        self.done = 0
        #: When, and what happened.
        self.failed: list[tuple[float, str]] = []

    def run(self) -> None:
        for number in range(POSTS):
            time.sleep(self._random.uniform(0, 3))
            self._post(b"%d of %d" % (number, id(self)))

    def _post(self, body: bytes) -> None:
        try:
            message = self._viewer.get("/", method="POST", body=body)
        except (OSError, CutShort) as error:
            self.failed.append((time.monotonic(), repr(error)))
            return
        if (message.status, message.body) == (200, body):
            self.done += 1
        else:
            self.failed.append((time.monotonic(), f"{message.head.start!r} {message.body[:200]!r}"))


def impatient(closed: list[float], *, reset: bool) -> RawHost:
    """An echo Host that closes after 1 s without a request, and notes when it does."""
    echo = serve(lambda request: ok(request.body))

    def script(connection: Connection) -> None:
        try:
            echo(connection)
        except IdleTimeout:
            closed.append(time.monotonic())
            if reset:
                connection.reset()
            raise

    return RawHost(script, idle=1.0)


@pytest.mark.seconds(90)
async def test_hosts_that_close_idle_connections_fail_no_post(tmp_path: Path) -> None:
    """1,000 POSTs, each Tunnel with its own gaps, so that two of three find their connection closed or about to be."""
    closed: list[float] = []
    with ExitStack() as stack:
        the_edge = stack.enter_context(edge(tmp_path))
        hosts = [stack.enter_context(impatient(closed, reset=reset)) for reset in (False, True)]
        token = the_edge.token_file.read_text().strip()
        # So far from each other, what the Edge sends and the Host's end cross.
        url = f"https://{DOMAIN}:{stack.enter_context(Proxy(the_edge.port, one_way=0.05)).port}"
        async with netbore.connect(url, token=token, ca_file=the_edge.ca) as connection, trio.open_nursery() as nursery:
            posters = []
            for number in range(TUNNELS):
                tunnel = await connection.open_tunnel(f"idle-{number}")
                nursery.start_soon(tunnel.forward, hosts[number % 2].port)
                viewer = stack.enter_context(Viewer(the_edge.port, tunnel.hostname, the_edge.ca, timeout=20))
                posters.append(Poster(viewer, number))
            for poster in posters:
                poster.start()
            for poster in posters:
                await trio.to_thread.run_sync(poster.join, 80)
            nursery.cancel_scope.cancel()
    first = min(closed) + 0.25
    failed = [one for poster in posters for one in poster.failed]
    done = sum(poster.done for poster in posters)
    print(f"{done} of {TUNNELS * POSTS} answered, {len(failed)} failed, {len(closed)} idle closes")  # noqa: T201
    assert [text for at, text in failed if at > first] == []
    assert done >= TUNNELS * POSTS - 1
    assert len(closed) > TUNNELS * POSTS / 3


# Hosts that are down or slow


def problem(viewer: Viewer, path: str = "/") -> tuple[int, str | None]:
    message = viewer.get(path)
    return message.status, message.get("netbore-error")


def test_a_host_that_goes_down(tmp_path: Path) -> None:
    with (
        edge(tmp_path) as the_edge,
        RawHost(serve(lambda request: ok(b"up"))) as host,
        agent(tmp_path, host.port, the_edge, name="down"),
        Viewer(the_edge.port, f"down.{DOMAIN}", the_edge.ca) as viewer,
    ):
        assert viewer.get("/").body == b"up"
        host.close()
        for _ in range(3):
            assert problem(viewer) == (502, "host_refused")


#: Limits short enough for a test.
SHORT = EdgeLimits(
    front=FrontLimits(exchange=ExchangeLimits(head_seconds=0.5, body_seconds=0.5, idle_seconds=1.0)),
    host=HostLimits(exchange=ExchangeLimits(response_seconds=0.5)),
)


def silent(connection: Connection) -> None:
    """Answers /fast, and lets everybody else wait."""
    while (request := connection.read_request()) is not None:
        if request.target == "/half":
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        elif request.target == "/fast":
            connection.send(ok(b"fast"))


@pytest.mark.seconds(40)
async def test_time_limits_tell_what_was_late(tmp_path: Path) -> None:
    """Each limit of its own; the connections end, and the Edge goes on."""

    def view() -> None:
        def viewer() -> Viewer:
            return Viewer(the_edge.port, f"slow.{DOMAIN}", tmp_path / "state" / "ca.pem")

        with viewer() as one:
            assert one.get("/fast").body == b"fast"
            assert problem(one, "/never") == (504, "host_timeout")
            assert one.get("/fast").body == b"fast"
            with pytest.raises((CutShort, OSError)):
                one.get("/half")
        with viewer() as one:
            one.send(b"GET / HTTP/1.1\r\nHost: slow")
            message = one.response()
            assert message is not None
            assert (message.status, message.head.closing) == (408, True)
            assert one.ended()
        with viewer() as one:
            one.ask("POST", "/never", "Content-Length: 10", body=b"only")
            message = one.response()
            assert message is not None
            assert (message.status, message.head.closing) == (408, True)
        with viewer() as one:
            assert one.get("/fast").status == 200
            assert one.ended()  # idle for too long

    config = EdgeConfig(state_dir=tmp_path / "state", listen=("127.0.0.1", 0), limits=SHORT)
    with RawHost(silent) as host:
        async with netbore.Edge(config) as the_edge:
            token = (tmp_path / "state" / "operator-token").read_text().strip()
            async with (
                netbore.connect(the_edge.url, token=token, ca_file=tmp_path / "state" / "ca.pem") as connection,
                trio.open_nursery() as nursery,
            ):
                tunnel = await connection.open_tunnel("slow")
                nursery.start_soon(tunnel.forward, host.port)
                await trio.to_thread.run_sync(view)
                the_edge.audit()
                nursery.cancel_scope.cancel()
