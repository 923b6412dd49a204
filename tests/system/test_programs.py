"""What the programs say and exit with, what they do when told to stop, and what they keep on disk."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage
from wsproto.events import Request as Handshake

from netbore.proto.handshake import Reject, encode
from netbore.proto.wire import SUBPROTOCOL, Code
from tests.system.processes import (
    AgentProgram,
    Curl,
    EdgeProgram,
    agent,
    curl,
    edge,
    eventually,
    free_port,
    needs_curl,
    start_curl,
)
from tests.system.raw_host import Connection, RawHost, Request, ok, serve


@pytest.fixture
def the_edge(tmp_path: Path) -> Iterator[EdgeProgram]:
    with edge(tmp_path) as running:
        yield running


@pytest.fixture
def host() -> Iterator[RawHost]:
    def hello(request: Request) -> bytes:
        return ok(request.headers["host"].encode())

    with RawHost(serve(hello)) as running:
        yield running


def ends(program: AgentProgram, code: int, words: str) -> None:
    """It ends by itself, says why in one line, and shows no traceback."""
    assert program.wait() == code, program.describe()
    last = program.errors.splitlines()[-1]
    assert last.startswith("netbore-agent: "), program.describe()
    assert words in last, program.describe()
    assert "Traceback" not in program.errors
    assert program.lines == []


def test_a_wrong_token(tmp_path: Path, the_edge: EdgeProgram) -> None:
    with agent(tmp_path, 1, the_edge, wait=False, token=False, environment={"NETBORE_TOKEN": "wrong"}) as one:
        ends(one, 3, "token")


def test_no_token_at_all(tmp_path: Path, the_edge: EdgeProgram) -> None:
    with agent(tmp_path, 1, the_edge, wait=False, token=False) as one:
        ends(one, 2, "--token-file")


def test_a_name_that_another_agent_holds(tmp_path: Path, the_edge: EdgeProgram, host: RawHost) -> None:
    with (
        agent(tmp_path, host.port, the_edge, name="demo") as first,
        agent(tmp_path, host.port, the_edge, name="demo", state="elsewhere", wait=False) as second,
    ):
        ends(second, 4, "another Agent holds")
        assert first.alive


def test_a_name_that_cannot_be_one(tmp_path: Path, the_edge: EdgeProgram) -> None:
    with agent(tmp_path, 1, the_edge, name="no_such-", wait=False) as one:
        ends(one, 5, "name")


def test_a_certificate_that_is_not_trusted(tmp_path: Path, the_edge: EdgeProgram) -> None:
    with edge(tmp_path, state="other") as other, agent(tmp_path, 1, other, port=the_edge.port, wait=False) as one:
        ends(one, 6, "certificate")


def test_no_such_edge(tmp_path: Path, the_edge: EdgeProgram) -> None:
    with agent(tmp_path, 1, the_edge, port=free_port(), wait=False) as one:
        ends(one, 7, "cannot be reached")
    with agent(tmp_path, 1, the_edge, url="https://no-such-edge.invalid", wait=False) as one:
        ends(one, 7, "cannot be reached")


def answers_426(connection: Connection) -> None:
    """An Edge that speaks another subprotocol only."""
    connection.read_head()
    body = b'{"type":"about:blank","code":"version_unsupported","status":426,"supported":["netbore.v9"]}'
    fields = ("Connection: close", "Upgrade: websocket", "Content-Type: application/problem+json")
    connection.send(ok(body, *fields, status="426 Upgrade Required"))


def rejects_the_minor(connection: Connection) -> None:
    """An Edge that speaks our subprotocol, in other minor versions."""
    ws = WSConnection(ConnectionType.SERVER)
    while True:
        ws.receive_data(connection.receive())
        for event in ws.events():
            if isinstance(event, Handshake):
                connection.send(ws.send(AcceptConnection(subprotocol=SUBPROTOCOL)))
            elif isinstance(event, BytesMessage):
                reject = Reject(Code.VERSION_UNSUPPORTED, "this Edge speaks minor versions 7 to 9", minor=(7, 9))
                connection.send(ws.send(BytesMessage(data=encode(reject))))
                return


@pytest.mark.parametrize(("script", "words"), [(answers_426, "netbore.v9"), (rejects_the_minor, "7 to 9")])
def test_an_edge_of_another_version(
    tmp_path: Path, the_edge: EdgeProgram, script: Callable[[Connection], None], words: str
) -> None:
    with RawHost(script) as other, agent(tmp_path, 1, the_edge, url=f"http://127.0.0.1:{other.port}", wait=False) as one:
        ends(one, 8, words)


def test_an_agent_that_is_replaced(tmp_path: Path, the_edge: EdgeProgram, host: RawHost) -> None:
    """The same command with --name, run again while the first lives, takes over."""
    with (
        agent(tmp_path, host.port, the_edge, name="demo") as first,
        agent(tmp_path, host.port, the_edge, name="demo") as second,
    ):
        assert first.wait() == 9, first.describe()
        assert "took this Tunnel over" in first.errors.splitlines()[-1]
        assert curl(the_edge, "demo").status == 200
        assert second.alive


def test_a_second_agent_without_a_name_gets_a_new_one_and_says_why(tmp_path: Path, the_edge: EdgeProgram, host: RawHost) -> None:
    with agent(tmp_path, host.port, the_edge) as first, agent(tmp_path, host.port, the_edge) as second:
        assert first.tunnel != second.tunnel
        assert "is running and keeps its name" in second.errors
        assert curl(the_edge, first.tunnel).status == curl(the_edge, second.tunnel).status == 200


def test_the_token_on_disk_gives_the_same_name_back(tmp_path: Path, the_edge: EdgeProgram, host: RawHost) -> None:
    with agent(tmp_path, host.port, the_edge) as first:
        assert first.stop() == 0
    files = list((tmp_path / "agent").glob("*.json"))
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600]
    with agent(tmp_path, host.port, the_edge, token=False) as again:
        assert again.tunnel == first.tunnel


def test_the_host_header_is_kept_replaced_or_given(tmp_path: Path, the_edge: EdgeProgram, host: RawHost) -> None:
    expected = {
        "keep": f"demo.tunnel.localhost:{the_edge.port}",
        "target": f"127.0.0.1:{host.port}",
        "shop.example": "shop.example",
    }
    for value, seen in expected.items():
        with agent(tmp_path, f"127.0.0.1:{host.port}", the_edge, "--host-header", value, name="demo") as one:
            assert curl(the_edge, "demo").body.decode() == seen
            assert one.stop() == 0


# Signals


@contextmanager
def in_flight(directory: Path, the_edge: EdgeProgram) -> Iterator[tuple[AgentProgram, Curl, Callable[[], object]]]:
    """An Agent, a download that has begun, and what lets it end."""
    go_on, release = os.pipe()

    def slow(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + bytes(100_000))
        os.read(go_on, 1)
        connection.send(bytes(100_000))

    try:
        with (
            RawHost(slow) as host,
            agent(directory, host.port, the_edge, name="demo") as one,
            start_curl(the_edge, "demo", "/", "--no-buffer") as running,
        ):
            eventually(lambda: running.received > 0, 10, "the download has begun")
            yield one, running, lambda: os.write(release, b"x")
            os.write(release, b"x")
    finally:
        os.close(release)
        os.close(go_on)


@needs_curl
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_the_agent(tmp_path: Path, the_edge: EdgeProgram, number: signal.Signals) -> None:
    with in_flight(tmp_path, the_edge) as (one, running, let_go):
        one.signal(number)
        eventually(lambda: curl(the_edge, "demo").status in (404, 503), 10, "no new request is taken")
        assert one.alive
        let_go()
        answer = running.answer(10)
        assert (answer.code, answer.status, len(answer.body)) == (0, 200, 200_000)
        assert one.wait(5) == 0


@needs_curl
def test_the_second_signal_quits_the_agent(tmp_path: Path, the_edge: EdgeProgram) -> None:
    with in_flight(tmp_path, the_edge) as (one, running, _):
        one.signal()
        eventually(lambda: curl(the_edge, "demo").status in (404, 503), 10, "no new request is taken")
        one.signal()
        assert one.wait(3) == 130
        assert running.answer(10).code != 0, "a response that is cut short must not look whole"


@needs_curl
def test_the_first_signal_drains_the_edge_and_the_second_quits(tmp_path: Path) -> None:
    with edge(tmp_path) as the_edge, in_flight(tmp_path, the_edge) as (_, running, let_go):
        the_edge.signal()
        eventually(lambda: curl(the_edge, "demo").status == 503, 10, "no new request is taken")
        let_go()
        assert running.answer(10).code == 0
        assert the_edge.wait(5) == 0
    with edge(tmp_path, state="again") as the_edge, in_flight(tmp_path, the_edge) as (_, running, _):
        the_edge.signal()
        eventually(lambda: curl(the_edge, "demo").status == 503, 10, "no new request is taken")
        the_edge.signal()
        assert the_edge.wait(3) == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_the_first_line_ends_gently(
    tmp_path: Path, the_edge: EdgeProgram, host: RawHost, number: signal.Signals
) -> None:
    with agent(tmp_path, host.port, the_edge) as one:
        one.signal(number)
        assert one.wait(5) == 0, one.describe()
    the_edge.signal(number)
    assert the_edge.wait(5) == 0, the_edge.describe()


def test_an_interrupt_while_connecting_shows_no_traceback(tmp_path: Path, the_edge: EdgeProgram) -> None:
    def silent(connection: Connection) -> None:
        connection.read_head()
        connection.receive()

    with RawHost(silent) as other, agent(tmp_path, 1, the_edge, url=f"http://127.0.0.1:{other.port}", wait=False) as one:
        eventually(lambda: other.requests == 1, 10, "it is connecting")
        one.signal(signal.SIGINT)
        assert one.wait(5) == 130, one.describe()
        assert "Traceback" not in one.errors


# What the Edge keeps on disk, and says


def test_options_that_cannot_be_used(tmp_path: Path, the_edge: EdgeProgram) -> None:
    with pytest.raises(AssertionError, match=r"netbore-edge: cannot listen on .*in use"):
        edge(tmp_path, port=the_edge.port, state="other")


def test_the_state_directory_is_private(the_edge: EdgeProgram) -> None:
    assert stat.S_IMODE(the_edge.token_file.stat().st_mode) == 0o600
    for path in the_edge.state.iterdir():
        private = path.name != "ca.pem" and path.is_file() and not path.name.endswith(("cert.pem", ".crt"))
        assert not private or stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name


def test_openssl_takes_the_chain_strictly(tmp_path: Path, the_edge: EdgeProgram) -> None:
    shown = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{the_edge.port}", "-servername", "demo.tunnel.localhost"],
        input=b"", capture_output=True, timeout=20, check=False,
    ).stdout  # fmt: skip
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(begin + shown.split(begin)[1].split(end)[0] + end + b"\n")
    argv = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "demo.tunnel.localhost"]
    done = subprocess.run([*argv, "-CAfile", str(the_edge.ca), str(leaf)], capture_output=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr


@needs_curl
def test_curl_verifies(tmp_path: Path, the_edge: EdgeProgram) -> None:
    """With the Edge's CA it is content, with another one it is not."""
    assert curl(the_edge, "demo").status == 404
    with edge(tmp_path, state="other") as other:
        answer = curl(the_edge, "demo", "/", "--cacert", str(other.ca))
        assert (answer.code, answer.status) == (60, 0)
