"""The Edge as a guest in somebody's Trio run: it lets others have their turn, and several runs live side by side.

Theory of operation. The Edge runs in this process, the Agent and the load in others, because a load made in this process would
hold the interpreter and be measured in the Edge's place.
"""

from __future__ import annotations

import re
import shutil
import ssl
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

import netbore
from tests.system.processes import EdgeProgram, agent, needs_curl, needs_nginx, nginx
from tests.system.raw_host import RawHost, Request, ok, serve

pytestmark = [needs_nginx, needs_curl]

PERIOD = 0.01
SECONDS = 6.0
CONNECTIONS = 256
DOWNLOADS = 8


async def lateness(seconds: float) -> list[float]:
    """How late a sleeper of 10 ms is each time, sorted, in seconds."""
    late = []
    end = trio.current_time() + seconds
    while (due := trio.current_time() + PERIOD) < end:
        await trio.sleep_until(due)
        late.append(trio.current_time() - due)
    return sorted(late)


class Address(EdgeProgram):
    """What the helpers want to know of an Edge that is no process."""

    def __init__(self, edge: netbore.Edge) -> None:
        self.state = edge.config.state_dir
        self.port = edge.port


def config(directory: Path) -> netbore.EdgeConfig:
    return netbore.EdgeConfig(state_dir=directory / "edge", listen=("127.0.0.1", 0), http_listen=("127.0.0.1", 0), http="serve")


async def run(argv: list[str], said: list[str]) -> None:
    """Run a program to its end and keep its standard output, whatever it exits with."""
    done = await trio.run_process(argv, capture_stdout=True, check=False)
    said.append(done.stdout.decode())


def load(edge: netbore.Edge) -> tuple[list[str], list[str]]:
    """The command lines of the small requests and of one download, each of which ends by itself."""
    name = f"demo.tunnel.localhost:{edge.port}"
    lasts = f"{SECONDS + 2:.0f}"
    small = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{lasts}s",
        "-H",
        f"Host: {name}",
        f"http://127.0.0.1:{edge.running.listeners['http'].address[1]}",
    ]
    big = ["curl", "--silent", "--output", "/dev/null", "--max-time", lasts, "--write-out", "%{http_code} %{size_download}"]
    return small, [*big, "--cacert", str(Address(edge).ca), f"https://{name}/big.bin"]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@pytest.mark.seconds(60)
async def test_a_sleeper_beside_a_busy_edge_is_in_time(tmp_path: Path) -> None:
    requests: list[str] = []
    downloads: list[str] = []
    async with netbore.Edge(config(tmp_path)) as edge:
        with nginx(tmp_path) as host:
            with (host.root / "big.bin").open("wb") as file:
                file.truncate(20_000_000_000)
            with await trio.to_thread.run_sync(partial(agent, tmp_path, host.port, Address(edge), name="demo")):
                small, big = load(edge)
                async with trio.open_nursery() as nursery:
                    for _ in range(DOWNLOADS):
                        nursery.start_soon(run, big, downloads)
                    nursery.start_soon(run, small, requests)
                    await trio.sleep(1)  # until all of the load is there
                    late = await lateness(SECONDS)
                    edge.audit()
    figures = ", ".join(f"p{share} {late[len(late) * share // 100] * 1000:.1f} ms" for share in (50, 90, 99))
    figures += f"; {requests} {downloads}"
    assert int(re.findall(r"(\d+) requests in", requests[0])[0]) > 1000, figures
    assert "Non-2xx" not in requests[0], figures
    assert all(said.startswith("200 ") and int(said.split()[1]) > 1_000_000 for said in downloads), figures
    assert late[len(late) * 99 // 100] <= 0.020, figures


def test_several_runs_in_threads_of_one_process(tmp_path: Path) -> None:
    """Nothing is global: three Trio runs, an Edge, an Agent and a Viewer in each."""
    errors: list[BaseException] = []
    answers: dict[int, bytes] = {}
    together = threading.Barrier(3, timeout=20)

    async def one(number: int, port: int) -> None:
        directory = tmp_path / str(number)
        with trio.fail_after(30):
            async with netbore.Edge(config(directory)) as edge:
                token = (directory / "edge" / "operator-token").read_text().strip()
                ca = directory / "edge" / "ca.pem"
                async with (
                    netbore.connect(edge.url, token=token, ca_file=ca) as the_agent,
                    trio.open_nursery() as nursery,
                ):
                    tunnel = await the_agent.open_tunnel("demo")
                    nursery.start_soon(tunnel.forward, port)
                    await trio.to_thread.run_sync(together.wait)
                    for _ in range(20):
                        answers[number] = await get(edge.port, ca)
                    edge.audit()
                    await trio.to_thread.run_sync(together.wait)
                    nursery.cancel_scope.cancel()

    def in_thread(number: int, port: int) -> None:
        try:
            trio.run(one, number, port)
        except BaseException as error:
            errors.append(error)

    hosts = [RawHost(says(b"%d" % number)) for number in range(3)]
    threads = [threading.Thread(target=in_thread, args=(number, host.port)) for number, host in enumerate(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    for host in hosts:
        host.close()
    if errors:
        raise errors[0]
    assert answers == {0: b"0", 1: b"1", 2: b"2"}


def says(text: bytes) -> Callable[..., object]:
    def answer(request: Request) -> bytes:
        return ok(text)

    return serve(answer)


async def get(port: int, ca: Path) -> bytes:
    """The body of one response, over a connection of its own."""
    context = ssl.create_default_context(cafile=str(ca))
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    async with trio.SSLStream(tcp, context, server_hostname="demo.tunnel.localhost", https_compatible=True) as stream:
        await stream.send_all(f"GET / HTTP/1.1\r\nHost: demo.tunnel.localhost:{port}\r\nConnection: close\r\n\r\n".encode())
        received = bytearray()
        async for data in stream:
            received += data
    return bytes(received).partition(b"\r\n\r\n")[2]
