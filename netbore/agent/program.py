"""The program `netbore-agent`: options to an Agent, and one Tunnel until a signal comes. Little logic: which name,
which token."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from netbore.agent.agent import Agent, Tunnel, connect
from netbore.agent.targets import HostAddress
from netbore.agent.token_store import Busy, Held, Kept, TokenStore, state_directory
from netbore.allocator import keep_buffers
from netbore.changes import Changed
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
from netbore.signals import INTERRUPTED, Drain, run_until_signalled

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


#: Each option can be set by the environment too: --ca-file by NETBORE_CA_FILE.
MIRRORED = {"auto_envvar_prefix": "NETBORE"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="netbore")
def main() -> None:
    """The Agent: runs beside a service and makes it reachable through an Edge."""


@main.command(context_settings=MIRRORED)
@click.argument("target")
@click.option(
    "--edge",
    required=True,
    help="URL of the Edge, such as https://tunnel.localhost:8443; tls:// in place of https:// does without WebSocket.",
)
@click.option("--name", help="The name to serve; without one the Edge chooses.")
@click.option("--ca-file", type=click.Path(path_type=Path), help="Certificate authority (PEM) to trust in place of the system's.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the token; NETBORE_TOKEN may hold the token itself.",
)
@click.option(
    "--host-header",
    default="keep",
    show_default=True,
    help="The Host header that the service sees: keep, target, or a value.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Where recreate tokens are kept.  [default: the platform's state directory]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
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

    Prints the public URL alone on a line of standard output. Each option can be set by the environment too, as
    NETBORE_<OPTION>: --ca-file by NETBORE_CA_FILE. An option on the command line wins.

    \b
    Exit codes:
      0  stopped by a signal            6  the Edge's certificate is not trusted
      2  wrong option, file or URL      7  there is no Edge at this URL
      3  wrong token                    8  the Edge is too old or too new
      4  another Agent has the name     9  another Agent took the name over
      5  the Edge refuses the tunnel   10  the tunnel was deleted at the Edge
      1  any other error              130  a second signal cut the drain short
    """
    logging.basicConfig(level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        store = TokenStore(state_dir or state_directory(os.environ, Path.home()))
        wish = Wish(HostAddress.parse(target), parse_edge_url(edge), name, ca_file, _token(token_file), host_header, store)
        keep_buffers()
        gentle = run_until_signalled(partial(_serve, wish))
    except NetboreError as error:
        click.echo(f"netbore-agent: {error}", err=True)
        sys.exit(exit_code(error))
    sys.exit(0 if gentle else INTERRUPTED)


def exit_code(error: NetboreError) -> int:
    """What the program exits with when `error` ended it."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def _token(token_file: Path | None) -> Secret | None:
    if token_file is not None:
        return secret_from_file(token_file)
    return secret_from_environment("NETBORE_TOKEN", os.environ)


async def _serve(wish: Wish, up: Callable[[Drain], None]) -> None:
    opened = wish.store.open(wish.edge.identity, wish.name, wish.target.display)
    if isinstance(opened, Busy):
        log.warning("%s", opened.reason)
    with nullcontext() if isinstance(opened, Busy) else opened as held:
        kept = held.read() if held is not None else None
        token = wish.token or (kept.token if kept is not None else None)
        if token is None:
            raise ConfigError(
                "there is no token: give --token-file, or set NETBORE_TOKEN to the operator's or an ephemeral token"
            )
        async with connect(str(wish.edge), token=token.reveal(), ca_file=wish.ca_file, patient=False) as agent:
            await serve_on(agent, wish, held, kept, up)


async def serve_on(agent: Agent, wish: Wish, held: Held | None, kept: Kept | None, up: Callable[[Drain], None]) -> None:
    """Open the Tunnel that `wish` asks for on `agent`, and forward it until it ends, or has been drained. `up` is told the drain.

    Its recreate token is written to `held`. Raises NetboreError, alone or in groups.
    """
    bound = Changed()
    agent.on_event = partial(_on_event, bound)
    tunnel = await open_wished(agent, wish, held, kept)
    async with trio.open_nursery() as nursery:
        if held is not None:
            await nursery.start(_keep_token, held, tunnel, bound)
        up(partial(_drain, agent))
        print(tunnel.public_url, flush=True)  # noqa: T201 - the one thing that goes to standard output
        log.info("%s leads to %s", tunnel.public_url, wish.target.display)
        try:
            await tunnel.forward(wish.target.display)
        except TunnelClosed:
            if not agent.draining:
                raise
        nursery.cancel_scope.cancel()


async def open_wished(agent: Agent, wish: Wish, held: Held | None, kept: Kept | None) -> Tunnel:
    """The Tunnel, under the name and with the token that were kept. A kept token that the Edge takes no more is forgotten."""
    if kept is None or held is None:
        return await _open(agent, wish, wish.name, None)
    name = wish.name or kept.name
    try:
        return await _open(agent, wish, name, kept.token)
    except BindRefused as error:
        if error.code != "unauthorized":
            raise
        log.warning("the Edge takes the token kept for %s no more; it is forgotten (%s)", kept.name, error)
        held.forget()
    try:
        return await _open(agent, wish, name, None)
    except BindRefused as error:
        if wish.name is not None:
            raise
        log.warning("the name %s cannot be had any more, the Edge chooses another (%s)", name, error)
    return await _open(agent, wish, None, None)


async def _open(agent: Agent, wish: Wish, name: str | None, token: Secret | None) -> Tunnel:
    return await agent.open_tunnel(
        name,
        recreate_token=token.reveal() if token is not None else None,
        host_header=wish.host_header,
        target=wish.target.display,
    )


async def _keep_token(
    held: Held, tunnel: Tunnel, bound: Changed, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Store the token that the Edge gave, and each further one, while the Tunnel is ours: after that it is another Agent's.

    Started when the first one is stored. Raises ConfigError when that fails; a later failure is only told in the log.
    """
    written = _store(held, tunnel, None)
    task_status.started()
    while True:
        await bound.wait()
        try:
            written = _store(held, tunnel, written)
        except ConfigError as error:
            log.warning("%s", error)


def _store(held: Held, tunnel: Tunnel, written: str | None) -> str | None:
    """Store the token of `tunnel` unless it was `written`; what is stored now."""
    token = tunnel.recreate_token
    if tunnel.error is not None or not token or token == written:
        return written
    held.write(tunnel.name, Secret(token))
    return token


async def _drain(agent: Agent) -> None:
    with trio.move_on_after(DRAIN_SECONDS):
        await agent.drain()


#: What the log says of each event of the Agent; the others go to the debug log.
WORDS = {
    "connected": "connected to the Edge, link {link}",
    "reconnecting": "reconnecting to the Edge in {wait:.1f} s: {reason}",
    "resumed": "resumed: the connection is back, and nothing in flight was lost",
    "moving": "the Edge asks to move: a second connection follows in {wait:.1f} s",
}


def _on_event(bound: Changed, kind: str, fields: dict[str, Any]) -> None:
    if kind == "bound":
        bound.set()
    if kind in WORDS:
        log.info("%s", WORDS[kind].format(**fields))
    else:
        log.debug("%s %s", kind, fields)
