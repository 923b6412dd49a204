"""The Agent's program: options, exit codes, which name and token it asks for, and what it keeps."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner
from trio.testing import MockClock

from netbore.agent.program import EXIT_CODES, Wish, exit_code, http, main, open_wished, serve_on
from netbore.agent.targets import HostAddress
from netbore.agent.token_store import Held, TokenStore
from netbore.config import Secret, parse_edge_url
from netbore.edge import program as edge_program
from netbore.errors import BindRefused, ConfigError, NameTaken, NetboreError, Replaced, TunnelClosed
from netbore.proto.wire import Code
from netbore.signals import Drain, run_until_signalled, until_signalled
from netbore.testing import World, open_world
from tests.test_world import get, status

pytestmark = pytest.mark.seconds(600)

EDGE = "https://tunnel.localhost"


def wish(directory: Path, name: str | None = None) -> Wish:
    return Wish(HostAddress.parse("web:80"), parse_edge_url(EDGE), name, None, None, "keep", TokenStore(directory))


def hold(one: Wish) -> Held:
    held = one.store.open(str(one.edge), one.name, one.target.display)
    assert isinstance(held, Held)
    return held


# Options


def parsed(command: click.Command, *arguments: str) -> dict[str, object]:
    """What the command would be called with."""
    with main.make_context("netbore", [command.name or "", *arguments], resilient_parsing=True) as parent:
        settings = command.context_settings
        return command.make_context(command.name, list(arguments), parent=parent, **settings).params


def test_each_option_has_its_mirror_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGE", "NAME", "CA_FILE", "TOKEN_FILE", "HOST_HEADER", "STATE_DIR"):
        monkeypatch.setenv(f"NETBORE_{name}", f"https://{name}.test")
    monkeypatch.setenv("NETBORE_LOG_LEVEL", "debug")
    values = parsed(http, "8000", "--name", "given")
    assert values.pop("target") == "8000"
    assert values.pop("name") == "given"
    assert values.pop("log_level") == "debug"
    assert {name: str(value).removeprefix("https:").strip("/") for name, value in values.items()} == {
        name: f"{name.upper()}.test" for name in values
    }


def test_the_edge_has_the_same_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETBORE_DOMAIN", "example.com")
    monkeypatch.setenv("NETBORE_HTTP", "serve")
    monkeypatch.setenv("NETBORE_PUBLIC_PORT", "443")
    monkeypatch.setenv("NETBORE_STATE_DIR", "elsewhere")
    values = parsed(edge_program.serve)
    assert (values["domain"], values["http"], values["public_port"]) == ("example.com", "serve", 443)
    assert values["state_dir"] == Path("elsewhere")


@pytest.mark.parametrize("command", [main, edge_program.main], ids=["agent", "edge"])
def test_help_tells_of_exit_codes_and_the_environment(command: click.Group) -> None:
    (name,) = command.commands
    result = CliRunner().invoke(command, [name, "--help"])
    assert result.exit_code == 0
    assert "NETBORE_<OPTION>" in result.output
    assert "Exit codes" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http", "8000"], "--edge"),
        (["http", "no port", "--edge", EDGE], "no port"),
        (["http", "8000", "--edge", "ftp://x"], "ftp"),
        (["http", "8000", "--edge", EDGE], "--token-file"),
        (["http", "8000", "--edge", EDGE, "--token-file", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, arguments, env={"NETBORE_STATE_DIR": str(tmp_path), "NETBORE_TOKEN": None})
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_exit_codes_go_by_the_nearest_class() -> None:
    assert exit_code(NameTaken("name_taken", "")) == 4
    assert exit_code(BindRefused("x", "")) == 5
    assert exit_code(NetboreError()) == 1
    assert len({code for _, code in EXIT_CODES}) == len(EXIT_CODES)


# Names and tokens


async def first_run(world: World, directory: Path, name: str | None = None) -> tuple[str, str]:
    """What an Agent that ran before has kept: the name and the token."""
    one = wish(directory, name)
    async with world.agent() as agent, trio.open_nursery() as nursery:
        with hold(one) as held:
            await nursery.start(run, agent, one, held)
            nursery.cancel_scope.cancel()
    with hold(one) as held:
        kept = held.read()
    assert kept is not None
    return kept.name, kept.token.reveal()


async def run(agent: object, one: Wish, held: Held, *, task_status: trio.TaskStatus[Drain]) -> None:
    await serve_on(agent, one, held, held.read(), task_status.started)  # type: ignore[arg-type]


async def test_a_kept_token_gets_the_name_back(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world() as world:
        name, _ = await first_run(world, tmp_path)
        one = wish(tmp_path)
        async with world.agent() as agent:
            with hold(one) as held:
                assert (await open_wished(agent, one, held, held.read())).name == name


@pytest.mark.parametrize("named", [True, False])
async def test_a_kept_token_that_is_taken_no_more_is_forgotten(
    autojump_clock: MockClock, tmp_path: Path, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        one = wish(tmp_path, "demo" if named else None)
        async with world.agent() as agent:
            with hold(one) as held:
                held.write("demo", Secret("nbr_of-another-edge"))
                tunnel = await open_wished(agent, one, held, held.read())
                assert tunnel.name == "demo"
                assert held.read() is None
                assert "forgotten" in caplog.text


@pytest.mark.parametrize("named", [True, False])
async def test_a_name_that_is_lost_with_its_token(autojump_clock: MockClock, tmp_path: Path, named: bool) -> None:
    """Another Agent has the name by now: without --name a new one is good enough."""
    async with open_world() as world, world.agent() as other:
        await other.open_tunnel("demo")
        one = wish(tmp_path, "demo" if named else None)
        async with world.agent() as agent:
            with hold(one) as held:
                held.write("demo", Secret("nbr_of-another-edge"))
                if named:
                    with pytest.raises(NameTaken):
                        await open_wished(agent, one, held, held.read())
                else:
                    assert (await open_wished(agent, one, held, held.read())).name != "demo"


@asynccontextmanager
async def serving(world: World, one: Wish, held: Held) -> AsyncIterator[tuple[trio.Nursery, Drain, list[BaseException]]]:
    """The program's inner part, running."""
    errors: list[BaseException] = []

    async def go(*, task_status: trio.TaskStatus[Drain]) -> None:
        try:
            async with world.agent() as agent:
                await serve_on(agent, one, held, held.read(), task_status.started)
        except NetboreError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        drain = await nursery.start(go)
        yield nursery, drain, errors
        nursery.cancel_scope.cancel()


async def test_an_agent_that_was_replaced_does_not_write_its_token_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world() as world:
        one = wish(tmp_path, "demo")
        with hold(one) as held:
            async with serving(world, one, held) as (_, _, errors):
                kept = held.read()
                assert kept is not None
                async with world.agent() as other:
                    winner = await other.open_tunnel("demo", recreate_token=kept.token.reveal())
                    assert winner.recreate_token is not None
                    held.write("demo", Secret(winner.recreate_token))  # as the other program does
                    await trio.sleep(10)
                    after = held.read()
                    assert after is not None
                    assert after.token.reveal() == winner.recreate_token
                    assert [type(error) for error in errors] == [Replaced]


async def test_a_token_that_was_given_anew_is_kept(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world() as world:
        one = wish(tmp_path, "demo")
        with hold(one) as held:
            async with serving(world, one, held):
                before = held.read()
                await trio.sleep(5)
                next(iter(world.core.door.links.values())).link.close(Code.GOING_AWAY, "test")
                await trio.sleep(5)
                after = held.read()
                assert before is not None
                assert after is not None
                assert after.token.reveal() != before.token.reveal()


async def test_a_drained_program_ends_by_itself(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world() as world:
        one = wish(tmp_path, "demo")
        with hold(one) as held:
            async with serving(world, one, held) as (_, drain, errors):
                await drain()
                next(iter(world.core.door.links.values())).link.close(Code.GOING_AWAY, "drained")
                await trio.sleep(10)
                assert errors == []
                assert status(await get(world, "demo.tunnel.localhost")) == 503


async def test_a_deleted_tunnel_ends_the_program(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world() as world:
        one = wish(tmp_path, "demo")
        with hold(one) as held:
            async with serving(world, one, held) as (_, _, errors):
                await world.core.tunnels.delete(world.core.tunnels.list()[0].id)
                await trio.sleep(10)
                assert [type(error) for error in errors] == [TunnelClosed]


# Signals


async def serve_until(up: object, log: list[str], drain_seconds: float, start_seconds: float = 0) -> None:
    async def drain() -> None:
        log.append("drain")
        await trio.sleep(drain_seconds)
        log.append("drained")

    await trio.sleep(start_seconds)
    up(drain)  # type: ignore[operator]
    log.append("up")
    await trio.sleep_forever()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_drains(autojump_clock: MockClock, number: signal.Signals) -> None:
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, number, 5)
        assert await until_signalled(lambda up: serve_until(up, log, 10))
    assert log == ["up", "drain", "drained"]


async def test_the_second_signal_quits(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, signal.SIGTERM, 5)
        nursery.start_soon(send, signal.SIGINT, 6)
        assert not await until_signalled(lambda up: serve_until(up, log, 10))
    assert log == ["up", "drain"]


async def test_a_signal_before_it_is_up_quits(autojump_clock: MockClock) -> None:
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, signal.SIGINT, 5)
        assert not await until_signalled(lambda up: serve_until(up, log, 10, start_seconds=20))
    assert log == []


async def send(number: signal.Signals, seconds: float) -> None:
    await trio.sleep(seconds)
    signal.raise_signal(number)


def test_errors_come_out_bare() -> None:
    async def fail(up: object) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(fail_with, ConfigError("wrong")))
            nursery.start_soon(partial(fail_with, ConfigError("wrong")))

    async def fail_with(error: NetboreError) -> None:
        raise error

    with pytest.raises(ConfigError, match="wrong"):
        run_until_signalled(fail)


def test_the_end_of_what_runs_is_the_end() -> None:
    async def nothing(up: object) -> None:
        await trio.lowlevel.checkpoint()

    assert run_until_signalled(nothing)
