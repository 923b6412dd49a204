"""Requests cross a Link that is broken every 50 ms: downloads and uploads through the front are whole, and none fails."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from random import Random

import pytest
import trio
from trio.testing import MockClock

from netbore.link.stream import StreamAdapter
from netbore.testing import World, open_world
from tests.cuts import CONNECT, FLAVOURS, Breaker, Flavour, seeded, small_rooms

VIEWERS = 8
SECONDS = 4.0


class Reader:
    """Heads and bodies out of a Trio stream."""

    def __init__(self, stream: StreamAdapter) -> None:
        self.stream = stream
        self.buffer = b""

    async def head(self) -> tuple[bytes, dict[bytes, bytes]]:
        """The start line and the fields, names in lower case; an empty line at the end of the stream."""
        while b"\r\n\r\n" not in self.buffer:
            data = await self.stream.receive_some()
            if not data:
                return b"", {}
            self.buffer += data
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        start, *lines = head.split(b"\r\n")
        return start, {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}

    async def body(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = await self.stream.receive_some()
            assert data, f"the body ended {count - len(self.buffer)} bytes early"
            self.buffer += data
        body, self.buffer = self.buffer[:count], self.buffer[count:]
        return body


def content(number: int) -> bytes:
    return Random(number).randbytes(number)


async def host(stream: StreamAdapter) -> None:
    """GET /N gives N bytes that follow from N; POST gives back the hash of its body."""
    reader = Reader(stream)
    with suppress(trio.BrokenResourceError):
        while True:
            start, fields = await reader.head()
            if not start:
                break
            if start.startswith(b"GET"):
                answer = content(int(start.split(b" ")[1][1:]))
            else:
                answer = sha256(await reader.body(int(fields[b"content-length"]))).hexdigest().encode()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
    await stream.aclose()


async def visit(world: World, random: Random, until: float, done: list[int]) -> None:
    """Requests on one connection, one after another."""
    async with await world.view() as viewer:
        reader = Reader(viewer)
        while trio.current_time() < until:
            size = int(200000 ** random.random())
            data = content(size)
            upload = random.random() < 0.4
            line = b"POST /" if upload else b"GET /%d" % size
            length = b"Content-Length: %d\r\n" % size if upload else b""
            await viewer.send_all(line + b" HTTP/1.1\r\nHost: demo.tunnel.localhost\r\n" + length + b"\r\n")
            if upload:
                await viewer.send_all(data)
            start, fields = await reader.head()
            assert start == b"HTTP/1.1 200 OK", (start, fields)
            body = await reader.body(int(fields[b"content-length"]))
            assert body == (sha256(data).hexdigest().encode() if upload else data)
            done.append(size)
            await trio.sleep(random.choice((0, 0, 0.05, 0.3)))


async def scenario(seed: int, flavour: Flavour) -> tuple[Breaker, list[int]]:
    random = Random(seed)
    done: list[int] = []
    async with open_world(seed, conditions=flavour.conditions, config=flavour.config()) as world:
        breaker = Breaker(world, flavour, random)
        dial = world.dial_websocket if flavour.websocket else world.dial_edge
        async with world.agent(limits=CONNECT, dial=dial) as agent, trio.open_nursery() as service:
            tunnel = await agent.open_tunnel("demo")
            service.start_soon(trio.serve_listeners, host, [tunnel])
            (edge,) = world.core.door.links.values()
            breaker.watch(edge, agent)
            until = trio.current_time() + SECONDS
            async with trio.open_nursery() as viewers:
                for _ in range(VIEWERS):
                    viewers.start_soon(visit, world, random, until, done)
                await breaker.run(SECONDS, patient=seed % 4 == 0)
            breaker.audit()
            service.cancel_scope.cancel()
    return breaker, done


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda flavour: flavour.name)
@pytest.mark.parametrize("seed", range(6))
def test_requests_and_their_bodies_are_whole(seed: int, flavour: Flavour) -> None:
    async def limited() -> tuple[Breaker, list[int]]:
        with trio.fail_after(300):
            return await scenario(seed, flavour)

    with seeded(seed), small_rooms(flavour):
        breaker, done = trio.run(limited, clock=MockClock(autojump_threshold=0))
    assert breaker.counts.resumes > breaker.counts.breaks / 5
    assert len(done) > VIEWERS * 3
