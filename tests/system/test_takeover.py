"""Agents and Edges that die and come back."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from time import monotonic

from tests.system.processes import agent, curl, edge, eventually, needs_curl, start_curl
from tests.system.proxies import Proxy
from tests.system.raw_host import Connection, RawHost, Request, ok, serve

pytestmark = needs_curl


def says(text: bytes) -> RawHost:
    def answer(request: Request) -> bytes:
        return ok(text)

    return RawHost(serve(answer))


def test_a_killed_agent_has_its_name_at_once(tmp_path: Path) -> None:
    """The old connection still looks alive to the Edge: the proxy keeps it open."""
    with edge(tmp_path) as the_edge, says(b"host") as host, Proxy(the_edge.port) as proxy:
        with agent(tmp_path, host.port, the_edge, port=proxy.port) as old:
            name = old.tunnel
            assert curl(the_edge, name).body == b"host"
            proxy.silence()
            old.kill()
        began = monotonic()
        with agent(tmp_path, host.port, the_edge, port=proxy.port, token=False) as new:
            assert new.tunnel == name
            assert curl(the_edge, name).body == b"host"
            assert monotonic() - began < 5
            assert proxy.connections == 2
            assert "took this Tunnel over" in the_edge.errors


def test_requests_of_the_old_agent_end_and_new_ones_go_to_the_new(tmp_path: Path) -> None:
    def hangs(connection: Connection) -> None:
        connection.read_request()
        connection.receive()

    with (
        edge(tmp_path) as the_edge,
        RawHost(hangs) as first,
        says(b"second") as second,
        Proxy(the_edge.port) as proxy,
        ExitStack() as stack,
        agent(tmp_path, first.port, the_edge, name="demo", port=proxy.port) as old,
    ):
        waiting = stack.enter_context(start_curl(the_edge, "demo"))
        eventually(lambda: first.requests == 1, 10, "the request is at the Host")
        proxy.silence()
        old.kill()
        with agent(tmp_path, second.port, the_edge, name="demo", port=proxy.port):
            answer = waiting.answer(5)
            assert answer.status in (502, 503), answer
            assert curl(the_edge, "demo").body == b"second"


def test_an_edge_that_died_gets_its_agents_back(tmp_path: Path) -> None:
    with edge(tmp_path) as first:
        port = first.port
        with says(b"host") as host, agent(tmp_path, host.port, first) as the_agent:
            name = the_agent.tunnel
            assert curl(first, name).body == b"host"
            first.kill()
            eventually(lambda: "reconnecting" in the_agent.errors, 10, "the Agent notices")
            with edge(tmp_path, port=port) as second:
                eventually(lambda: curl(second, name).body == b"host", 20, "the name is served again")
                assert the_agent.lines == [the_agent.public_url], "the address is the same, and said once"
                assert the_agent.alive


def test_an_edge_that_died_keeps_the_name_for_its_agent(tmp_path: Path) -> None:
    """Both were stopped; the recreate token on disk is all that is left."""
    with says(b"mine") as mine:
        with edge(tmp_path) as first, agent(tmp_path, mine.port, first, name="demo") as the_agent:
            assert the_agent.stop() == 0
            first.stop()
        with edge(tmp_path, port=first.port) as second, agent(tmp_path, mine.port, second, name="demo", token=False) as again:
            assert again.tunnel == "demo"
            assert curl(second, "demo").body == b"mine"
