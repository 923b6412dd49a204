"""The promise itself: real programs, a real Host, and a transport that is cut again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from tests.system.conftest import BigFile, sha256
from tests.system.processes import (
    AgentProgram,
    Curl,
    EdgeProgram,
    Nginx,
    agent,
    curl,
    edge,
    eventually,
    needs_curl,
    needs_nginx,
    nginx,
    start_curl,
)
from tests.system.proxies import Proxy
from tests.system.raw_host import RawHost, websocket_echo
from tests.system.viewer import WebSocketViewer

pytestmark = [needs_nginx, needs_curl]


@attrs.frozen
class WholePath:
    """Everything between a Viewer and the Host."""

    edge: EdgeProgram
    host: Nginx
    proxy: Proxy
    agent: AgentProgram


@contextmanager
def whole_path(directory: Path) -> Iterator[WholePath]:
    """Edge, cutting proxy, Agent and nginx as `demo`."""
    with (
        edge(directory) as the_edge,
        nginx(directory) as host,
        Proxy(the_edge.port) as proxy,
        agent(directory, host.port, the_edge, name="demo", port=proxy.port) as the_agent,
    ):
        yield WholePath(the_edge, host, proxy, the_agent)


def test_curl_gets_the_hosts_bytes(tmp_path: Path) -> None:
    with edge(tmp_path) as the_edge, nginx(tmp_path) as host, agent(tmp_path, host.port, the_edge, name="demo") as the_agent:
        answer = curl(the_edge, "demo")
        assert the_agent.lines == [f"https://demo.tunnel.localhost:{the_edge.port}"]
        assert (answer.code, answer.status, answer.body) == (0, 200, b"hello from the host\n")


def test_new_requests_are_routed_again_after_a_cut(tmp_path: Path) -> None:
    with whole_path(tmp_path) as path:
        for number in range(1, 6):
            assert curl(path.edge, "demo").status == 200
            assert path.proxy.cut() == 1
            assert curl(path.edge, "demo").status == 200
            assert path.proxy.accepted == number + 1


Harm = Callable[[Proxy, Callable[[], bool]], int]


def one_cut(proxy: Proxy, working: Callable[[], bool]) -> int:
    """One reset in the middle."""
    far_on(proxy, 60_000_000)
    return proxy.cut()


def half_open(proxy: Proxy, working: Callable[[], bool]) -> int:
    """The transport takes bytes and gives none, until the Agent or the Edge finds it dead by silence."""
    far_on(proxy, 60_000_000)
    before = proxy.accepted
    proxy.silence()
    eventually(lambda: proxy.accepted > before, 25, "the Agent dials again after silence")
    return 1


def many_cuts(proxy: Proxy, working: Callable[[], bool]) -> int:
    """As many resets as fit."""
    cuts = 0
    while working() and cuts < 12:
        try:
            far_on(proxy, 20_000_000, working)
        except Finished:
            break
        cuts += proxy.cut()
    return cuts


class Finished(Exception):
    """The transfer is done."""


def far_on(proxy: Proxy, count: int, working: Callable[[], bool] = lambda: True) -> None:
    """Wait until `count` more bytes have passed. Raises Finished."""
    before = proxy.passed

    def look() -> bool:
        if not working():
            raise Finished
        return proxy.passed - before >= count

    eventually(look, 30, f"{count} more bytes pass")


@pytest.mark.parametrize(("harm", "least"), [(one_cut, 1), (half_open, 1), (many_cuts, 8)])
def test_a_download_and_an_upload_in_flight_finish(tmp_path: Path, big: BigFile, harm: Harm, least: int) -> None:
    with whole_path(tmp_path) as path:
        (path.host.root / "big.bin").symlink_to(big.path)
        target = tmp_path / "download.bin"
        with (
            start_curl(path.edge, "demo", "/big.bin", output=target) as down,
            start_curl(path.edge, "demo", "/upload/big.bin", "--upload-file", str(big.path)) as up,
        ):
            harmed = harm(path.proxy, lambda: running(down) or running(up))
            downloaded, uploaded = down.answer(80), up.answer(80)
        assert harmed >= least
        assert (downloaded.code, downloaded.status, sha256(target)) == (0, 200, big.sha256), downloaded
        assert (uploaded.code, uploaded.status) == (0, 201), uploaded
        assert sha256(path.host.root / "upload" / "big.bin") == big.sha256
        assert path.proxy.accepted >= 1 + least


def running(one: Curl) -> bool:
    return one.process.poll() is None


def test_an_open_websocket_survives(tmp_path: Path) -> None:
    with (
        edge(tmp_path) as the_edge,
        RawHost(websocket_echo) as host,
        Proxy(the_edge.port) as proxy,
        agent(tmp_path, host.port, the_edge, name="demo", port=proxy.port),
        WebSocketViewer(the_edge, "demo") as viewer,
    ):
        for number in range(12):
            message = b"%d " % number * 50_000
            viewer.send(message[: len(message) // 2])
            if number % 2:
                assert proxy.cut() == 1
            viewer.send(message[len(message) // 2 :])
            assert viewer.receive(2) == [message[: len(message) // 2], message[len(message) // 2 :]]
            eventually(lambda: proxy.connections == 1, 10, "the Agent is back")
        assert proxy.accepted == 7
        assert host.connections == 1
