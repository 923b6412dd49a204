"""Hosts that read HTTP with a parser of somebody else's: nginx, Node and Go. Each writes a line for every whole request."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

SCRIPTS = Path(__file__).parent / "hosts"
#: Go is often installed beside the PATH.
GO = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

# The front has nginx read each request whole before it goes on to the server that counts it.
_NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  log_format seen escape=json '{{"method":"$request_method","target":"$request_uri","length":$body_length}}';
  map $content_length $body_length {{ default $content_length; "" 0; }}
  access_log off;
  server {{
    listen 127.0.0.1:{front};
    location / {{ proxy_pass http://127.0.0.1:{back}; }}
  }}
  server {{
    listen 127.0.0.1:{back};
    access_log {log} seen;
    location / {{ default_type text/plain; return 200 "seen"; }}
  }}
}}
"""


@attrs.frozen
class Foreign:
    """A running Host and what it has seen."""

    port: int
    log: Path

    def seen(self) -> list[dict[str, object]]:
        """The whole requests so far: method, target, length of the body."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def node(folder: Path) -> Iterator[Foreign]:
    """Node's `http`."""
    log = folder / "node.log"
    with _running(["node", str(SCRIPTS / "host.js"), str(log)]) as process:
        assert process.stdout is not None
        yield Foreign(int(process.stdout.readline()), log)


@contextmanager
def go(folder: Path) -> Iterator[Foreign]:
    """Go's `net/http`."""
    assert GO is not None
    program, log = folder / "host", folder / "go.log"
    environment = {"GOCACHE": str(Path.home() / ".cache" / "go-build"), **os.environ, "CGO_ENABLED": "0"}
    subprocess.run([GO, "build", "-o", str(program), str(SCRIPTS / "host.go")], check=True, cwd=folder, env=environment)
    with _running([str(program), str(log)]) as process:
        assert process.stdout is not None
        yield Foreign(int(process.stdout.readline()), log)


@contextmanager
def nginx(folder: Path) -> Iterator[Foreign]:
    """nginx, as a proxy in front of itself."""
    assert NGINX is not None
    front, back = free_ports(2)
    log, config = folder / "nginx.log", folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, front=front, back=back, log=log))
    with _running([NGINX, "-p", str(folder), "-c", str(config)]):
        await_port(front)
        yield Foreign(front, log)


#: By name: what starts the Host, or None where its program is not installed.
FOREIGN: dict[str, Callable[[Path], object] | None] = {
    "nginx": nginx if NGINX else None,
    "node": node if shutil.which("node") else None,
    "go": go if GO else None,
}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def await_port(port: int, seconds: float = 10.0) -> None:
    """Wait until somebody listens. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise TimeoutError(f"nobody listens on port {port}")
