"""Hosts that read HTTP with a parser of somebody else's: nginx, Node and Go. Each writes a line for every whole request."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import attrs

from tests.system import processes

SCRIPTS = Path(__file__).parent / "hosts"
NODE = shutil.which("node")
#: Go is often installed beside the PATH.
GO = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")

# The first server has nginx read each request whole before it goes on to the second, which counts it.
_COUNTING = """
    log_format seen escape=json '{{"method":"$request_method","target":"$request_uri","length":$body_length}}';
    map $content_length $body_length {{ default $content_length; "" 0; }}
    server {{
        listen 127.0.0.1:{port};
        access_log {log} seen;
        location / {{ default_type text/plain; return 200 "seen"; }}
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
def nginx(folder: Path) -> Iterator[Foreign]:
    """nginx, as a proxy in front of itself."""
    back, log = processes.free_port(), folder / "nginx-seen.log"
    server = f"location / {{ proxy_pass http://127.0.0.1:{back}; }}"
    with processes.nginx(folder, server=server, http=_COUNTING.format(port=back, log=log)) as program:
        yield Foreign(program.port, log)


@contextmanager
def node(folder: Path) -> Iterator[Foreign]:
    """Node's `http`."""
    log = folder / "node-seen.log"
    with processes.Program("node", [str(NODE), str(SCRIPTS / "host.js"), str(log)], folder) as program:
        yield Foreign(int(program.wait_line()), log)


@contextmanager
def go(folder: Path) -> Iterator[Foreign]:
    """Go's `net/http`."""
    built, log = folder / "go-host", folder / "go-seen.log"
    cache = {"GOCACHE": str(Path.home() / ".cache" / "go-build")}
    build = [str(GO), "build", "-o", str(built), str(SCRIPTS / "host.go")]
    subprocess.run(build, check=True, cwd=folder, env=cache | dict(os.environ) | {"CGO_ENABLED": "0"})
    with processes.Program("go-host", [str(built), str(log)], folder) as program:
        yield Foreign(int(program.wait_line()), log)


#: By name, the Hosts whose programs are installed.
FOREIGN: dict[str, Callable[[Path], AbstractContextManager[Foreign]]] = {
    **({"nginx": nginx} if shutil.which(processes.NGINX) else {}),
    **({"node": node} if NODE else {}),
    **({"go": go} if GO else {}),
}
