"""A transport that looks alive and is not."""

from __future__ import annotations

from pathlib import Path

from tests.system.processes import agent, curl, edge, eventually, needs_curl, start_curl
from tests.system.proxies import Proxy
from tests.system.raw_host import RawHost, Request, ok, serve

pytestmark = needs_curl


def hello(request: Request) -> bytes:
    return ok(request.target.encode())


def test_a_request_into_the_silence_is_answered_once_it_was_noticed(tmp_path: Path) -> None:
    """Both sides find out by themselves; what was sent into the silence is sent again, once."""
    with (
        edge(tmp_path) as the_edge,
        RawHost(serve(hello)) as host,
        Proxy(the_edge.port) as proxy,
        agent(tmp_path, host.port, the_edge, name="demo", port=proxy.port) as the_agent,
    ):
        assert curl(the_edge, "demo", "/before").body == b"/before"
        proxy.silence()
        with start_curl(the_edge, "demo", "/into") as into:
            answer = into.answer(25)
        assert (answer.status, answer.body) == (200, b"/into")
        assert 10 < answer.seconds < 20
        assert host.requests == 2
        assert curl(the_edge, "demo", "/after").seconds < 2
        assert proxy.connections == 2, "the silent one is still open"
        assert "resumed" in the_agent.errors


def test_the_agent_waits_for_an_edge_that_cannot_be_reached(tmp_path: Path) -> None:
    """Refused for a while: Viewers are held, and served when the Agent is back."""
    with (
        edge(tmp_path) as the_edge,
        RawHost(serve(hello)) as host,
        Proxy(the_edge.port) as proxy,
        agent(tmp_path, host.port, the_edge, name="demo", port=proxy.port) as the_agent,
    ):
        proxy.refuse()
        proxy.cut()
        tries = proxy.accepted
        eventually(lambda: proxy.accepted >= tries + 2, 10, "it tries again")
        with start_curl(the_edge, "demo", "/held") as held:
            proxy.refuse(False)
            answer = held.answer(20)
        assert (answer.status, answer.body) == (200, b"/held"), the_agent.describe()
