"""The program `netbore-edge`: options to a config, and the Edge until a signal comes. No logic."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import trio

from netbore.allocator import keep_buffers
from netbore.config import parse_address
from netbore.edge.config import EdgeConfig
from netbore.edge.descriptors import raise_limit
from netbore.edge.edge import Edge
from netbore.errors import ConfigError, NetboreError
from netbore.signals import INTERRUPTED, Drain, run_until_signalled

#: Exit codes: 0 stopped by a signal, 2 wrong options or a state that cannot be used, 130 cut short by a second signal.
UNUSABLE = 2


#: Each option can be set by the environment too: --http-listen by NETBORE_HTTP_LISTEN.
MIRRORED = {"auto_envvar_prefix": "NETBORE"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="netbore")
def main() -> None:
    """The Edge: the public side of Netbore."""


@main.command(context_settings=MIRRORED)
@click.option("--domain", default="tunnel.localhost", show_default=True, help="Tunnels are <name>.DOMAIN.")
@click.option("--listen", default="127.0.0.1:8443", show_default=True, help="TLS listener, HOST:PORT; port 0 takes a free one.")
@click.option("--http-listen", help="Plain HTTP listener, HOST:PORT.")
@click.option("--http", type=click.Choice(["redirect", "serve"]), default="redirect", show_default=True, help="What it does.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=Path("netbore-state"),
    show_default=True,
    help="Keys, the embedded CA (ca.pem) and the operator's token are kept here.",
)
@click.option("--api-host", help="Host name of the API and of the Agents' endpoint.  [default: DOMAIN]")
@click.option("--cert-file", type=click.Path(path_type=Path), help="Certificate chain (PEM), in place of the embedded CA's.")
@click.option("--key-file", type=click.Path(path_type=Path), help="Its key (PEM).")
@click.option("--public-port", type=int, help="The port that Viewers use, when it is not the listener's.")
@click.option("--public-url-scheme", type=click.Choice(["https", "http"]), default="https", show_default=True)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Logs go to standard error.",
)
def serve(
    domain: str,
    listen: str,
    http_listen: str | None,
    http: str,
    state_dir: Path,
    api_host: str | None,
    cert_file: Path | None,
    key_file: Path | None,
    public_port: int | None,
    public_url_scheme: str,
    log_level: str,
) -> None:
    """Accept Viewers and Agents until SIGINT or SIGTERM; the first drains, the second quits.

    Prints `ready https://HOST:PORT` when it accepts, and a second such line for the plain listener. Each option can be set by the
    environment too, as NETBORE_<OPTION>: --state-dir by NETBORE_STATE_DIR. An option on the command line wins.

    \b
    Exit codes:
        0  stopped by a signal
        1  any other error
        2  a wrong option, or a state directory, certificate or address that cannot be used
      130  a second signal cut the drain short
    """
    logging.basicConfig(level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        config = EdgeConfig(
            state_dir=state_dir,
            domain=domain.lower().rstrip("."),
            listen=_address(listen),
            http_listen=_address(http_listen) if http_listen else None,
            http=http,
            api_host=api_host.lower() if api_host else None,
            cert_file=cert_file,
            key_file=key_file,
            public_port=public_port,
            public_url_scheme=public_url_scheme,
        )
        raise_limit(config.limits.poller.viewers)
        keep_buffers()
        gentle = run_until_signalled(partial(_serve, config))
    except NetboreError as error:
        click.echo(f"netbore-edge: {error}", err=True)
        sys.exit(UNUSABLE if isinstance(error, ConfigError) else 1)
    sys.exit(0 if gentle else INTERRUPTED)


def _address(text: str) -> tuple[str, int]:
    address = parse_address(text, zero=True)
    host = "127.0.0.1" if address.host == "localhost" else address.host
    return host, address.port


async def _serve(config: EdgeConfig, up: Callable[[Drain], None]) -> None:
    async with Edge(config) as edge:
        up(edge.drain)
        _say_ready(edge)
        await trio.sleep_forever()


def _say_ready(edge: Edge) -> None:
    for url in (edge.url, edge.http_url):
        if url is not None:
            print(f"ready {url}", flush=True)  # noqa: T201 - the one thing that goes to standard output
