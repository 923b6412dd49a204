"""The examples do what they say."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
from trio.testing import MockClock

import netbore
from examples.echo_handler import serve
from examples.edge_in_a_test import test_a_download_survives_a_cut
from examples.forward import forward
from netbore.testing import open_world

__all__ = ["test_a_download_survives_a_cut"]  # it is a test, and runs as one of these

EXAMPLES = Path(__file__).parents[1] / "examples"
BODY = b"what goes in comes out"


async def test_a_handler_on_a_tunnel(autojump_clock: MockClock) -> None:
    async with open_world() as world, world.agent() as agent, trio.open_nursery() as nursery:
        url = await nursery.start(serve, agent)
        async with await world.view() as viewer:
            for close in (b"", b"Connection: close\r\n"):  # twice on one connection
                head = b"POST / HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n"
                await viewer.send_all(head % (urlsplit(url).netloc.encode(), close, len(BODY)) + BODY)
            received = b"".join([data async for data in viewer])
        assert received.count(b"HTTP/1.1 200") == received.count(BODY) == 2
        nursery.cancel_scope.cancel()


async def test_forward_to_the_sample_host(tmp_path: Path) -> None:
    host = await trio.to_thread.run_sync(start_sample_host)
    try:
        assert host.stdout is not None
        target = (await trio.to_thread.run_sync(host.stdout.readline)).strip()
        config = netbore.EdgeConfig(state_dir=tmp_path, listen=("127.0.0.1", 0))
        async with netbore.Edge(config) as edge, trio.open_nursery() as nursery:
            token = (tmp_path / "operator-token").read_text().strip()
            url = await nursery.start(forward, edge.url, token, str(tmp_path / "ca.pem"), target)
            answer = await trio.to_thread.run_sync(post, url, tmp_path / "ca.pem")
            assert answer.startswith(b"Hello from behind the tunnel.")
            assert answer.endswith(BODY + b"\n")
            nursery.cancel_scope.cancel()
    finally:
        host.terminate()
        await trio.to_thread.run_sync(host.communicate)


def start_sample_host() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, EXAMPLES / "sample_host.py"], stdout=subprocess.PIPE, text=True)


def post(url: str, ca_file: Path) -> bytes:
    """The body of the answer to a POST, by a client that is not ours."""
    public = urlsplit(url)
    assert public.hostname is not None
    context = ssl.create_default_context(cafile=str(ca_file))
    plain = socket.create_connection(("127.0.0.1", public.port), timeout=10)  # a resolver need not know such names
    client = HTTPConnection(public.hostname)
    client.sock = context.wrap_socket(plain, server_hostname=public.hostname)
    try:
        client.request("POST", "/", BODY, {"Host": public.netloc})
        response = client.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        client.close()


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_example_says_how_to_run_it(example: Path) -> None:
    assert f"examples/{example.name}" in example.read_text().split('"""')[1]
