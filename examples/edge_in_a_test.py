"""How your own tests can have an Edge, an Agent and a network that fails: in one process, on a fake clock, in milliseconds.

    pytest examples/edge_in_a_test.py

`netbore.testing.open_world` runs the code that runs in production over a simulated network. Nothing here sleeps for real.
"""

from __future__ import annotations

import hashlib

import trio
from trio.testing import MockClock

from netbore.testing import open_world

FILE = bytes(range(256)) * 4096


async def download(stream: trio.abc.HalfCloseableStream) -> None:
    """The service under test: answers one request with 1 MiB."""
    async with stream:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(FILE)
        await stream.send_all(head + FILE)


async def test_a_download_survives_a_cut(autojump_clock: MockClock) -> None:
    async with open_world(seed=7) as world, world.agent() as agent, trio.open_nursery() as nursery:
        tunnel = await agent.open_tunnel("demo")
        nursery.start_soon(trio.serve_listeners, download, [tunnel])
        async with await world.view() as viewer:
            await viewer.send_all(b"GET / HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % tunnel.hostname.encode())
            response = await viewer.receive_some()
            world.dialled[-1].path.cut()  # the Agent's connection to the Edge dies with most of the file still to come
            response += b"".join([data async for data in viewer])
        _, _, body = response.partition(b"\r\n\r\n")
        assert hashlib.sha256(body).digest() == hashlib.sha256(FILE).digest()
        assert len(world.dialled) == 2  # the Agent dialled again, and the download went on where it was
        nursery.cancel_scope.cancel()
