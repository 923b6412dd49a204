"""The program `netbore-agent`: options to an Agent, and one Tunnel until a signal comes. Little logic: which name,
which token."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from netbore.agent.agent import Agent, Tunnel, connect
from netbore.agent.targets import HostAddress
from netbore.agent.token_store import Busy, Held, TokenStore, state_directory
from netbore.config import EdgeUrl, Secret, parse_edge_url, secret_from_environment, secret_from_file
from netbore.errors import (
    BindRefused,
    ConfigError,
    EdgeUnreachable,
    EdgeUntrusted,
    NameTaken,
    NetboreError,
    Replaced,
    TunnelClosed,
    Unauthorized,
    VersionMismatch,
)
from netbore.signals import INTERRUPTED, until_signalled

log = logging.getLogger("netbore.agent.program")

#: What the program exits with, by what ended it; the first class that fits counts. docs/config.md has the same table.
EXIT_CODES: tuple[tuple[type[NetboreError], int], ...] = (
    (ConfigError, 2),
    (Unauthorized, 3),
    (NameTaken, 4),
    (BindRefused, 5),
    (EdgeUntrusted, 6),
    (EdgeUnreachable, 7),
    (VersionMismatch, 8),
    (Replaced, 9),
    (TunnelClosed, 10),
    (NetboreError, 1),
)


#: How long what is in flight may go on after the first signal.
DRAIN_SECONDS = 30.0


@attrs.frozen
class Wish:
    """What the command line asks for."""

    target: HostAddress
    edge: EdgeUrl
    name: str | None
    ca_file: Path | None
    token: Secret | None
    host_header: str
    store: TokenStore


@click.group(context_settings={"auto_envvar_prefix": "NETBORE", "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="netbore")
def main() -> None:
    """The Agent: runs beside a service and makes it reachable through an Edge."""


@main.command()
@click.argument("target")
@click.option("--edge", required=True, envvar="NETBORE_EDGE", help="URL of the Edge, such as https://tunnel.localhost:8443.")
@click.option("--name", envvar="NETBORE_NAME", help="The name to serve; without one the Edge chooses.")
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path),
    envvar="NETBORE_CA_FILE",
    help="Certificate authority (PEM) to trust in place of the system's.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar="NETBORE_TOKEN_FILE",
    help="File with the token; NETBORE_TOKEN may hold the token itself.",
)
@click.option(
    "--host-header",
    default="keep",
    show_default=True,
    envvar="NETBORE_HOST_HEADER",
    help="The Host header that the service sees: keep, target, or a value.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    envvar="NETBORE_AGENT_STATE_DIR",
    help="Where recreate tokens are kept.  [default: the platform's state directory]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="NETBORE_LOG_LEVEL",
    help="Logs go to standard error.",
)
def http(
    target: str,
    edge: str,
    name: str | None,
    ca_file: Path | None,
    token_file: Path | None,
    host_header: str,
    state_dir: Path | None,
    log_level: str,
) -> None:
    """Serve TARGET (PORT, HOST:PORT or URL) at a public address until SIGINT or SIGTERM; the first drains, the second quits.

    Prints the public URL alone on a line of standard output.
    """
    logging.basicConfig(level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        store = TokenStore(state_dir or state_directory(os.environ, Path.home()))
        wish = Wish(HostAddress.parse(target), parse_edge_url(edge), name, ca_file, _token(token_file), host_header, store)
        gentle = trio.run(_serve, wish)
    except* NetboreError as group:
        error = _first(group)
        click.echo(f"netbore-agent: {error}", err=True)
        sys.exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind)))
    sys.exit(0 if gentle else INTERRUPTED)


def _token(token_file: Path | None) -> Secret | None:
    if token_file is not None:
        return secret_from_file(token_file)
    return secret_from_environment("NETBORE_TOKEN", os.environ)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _serve(wish: Wish) -> bool:
    with ExitStack() as stack:
        opened = wish.store.open(str(wish.edge), wish.name, wish.target.display)
        if isinstance(opened, Busy):
            log.warning("%s", opened.reason)
            return await _serve_held(wish, None)
        return await _serve_held(wish, stack.enter_context(opened))


async def _serve_held(wish: Wish, held: Held | None) -> bool:
    kept = held.read() if held is not None else None
    token = wish.token or (kept.token if kept is not None else None)
    if token is None:
        raise ConfigError("there is no token: give --token-file, or set NETBORE_TOKEN to the operator's or an ephemeral token")
    async with connect(str(wish.edge), token=token.reveal(), ca_file=wish.ca_file, patient=False) as agent:
        agent.on_event = _log_event
        tunnel = await agent.open_tunnel(
            wish.name or (kept.name if kept is not None else None),
            recreate_token=kept.token.reveal() if kept is not None else None,
            host_header=wish.host_header,
            target=wish.target.display,
        )
        if held is not None and tunnel.recreate_token:
            held.write(tunnel.name, Secret(tunnel.recreate_token))
        print(tunnel.public_url, flush=True)  # noqa: T201 - the one thing that goes to standard output
        log.info("%s leads to %s", tunnel.public_url, wish.target.display)
        return await _until_stopped(agent, tunnel, wish.target)


async def _until_stopped(agent: Agent, tunnel: Tunnel, target: HostAddress) -> bool:
    async with trio.open_nursery() as nursery:
        await nursery.start(_forward, tunnel, target)
        gentle = await until_signalled(partial(_drain, agent))
        nursery.cancel_scope.cancel()
    return gentle


async def _drain(agent: Agent) -> None:
    with trio.move_on_after(DRAIN_SECONDS):
        await agent.drain()


async def _forward(tunnel: Tunnel, target: HostAddress, *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await tunnel.forward(target.display)


def _log_event(kind: str, fields: dict[str, Any]) -> None:
    details = " ".join(f"{name}={value}" for name, value in fields.items())
    log.info("%s %s", kind, details)
