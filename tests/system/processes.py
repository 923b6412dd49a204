"""The real programs, and what stands around them: Edge, Agent, nginx and curl as processes.

Theory of operation. Every process is a `Program`: its standard output is read line by line by a thread, its standard error
goes to a file in the test's directory, and leaving its `with` block kills it by its own pid. All that were started are
remembered in STARTED until the test is over, so that a failure shows what they said (`conftest`). All is synchronous and all
waits have a deadline; a Trio test calls them through `trio.to_thread` or accepts the short block.

    with edge(tmp_path) as the_edge, nginx(tmp_path) as host, agent(tmp_path, host.port, the_edge, name="demo"):
        assert curl(the_edge, "demo", "/").body == b"..."
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import attrs
import pytest

DOMAIN = "tunnel.localhost"
#: Seconds until a program must have said that it is ready.
READY = 20.0
#: Seconds that a program may take to end.
END = 20.0

#: Every program that the present test started.
STARTED: list[Program] = []

_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("NETBORE")}


class Program:
    """A process. Use it with `with`: it is killed at the end when it still lives."""

    def __init__(self, name: str, argv: Sequence[str], directory: Path, environment: dict[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        count = sum(1 for one in STARTED if one.name == name)
        self._log = directory / f"{name}-{count}.err"
        self._said: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        with self._log.open("wb") as errors:
            self.process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_ENVIRONMENT | (environment or {}),
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        STARTED.append(self)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                with self._changed:
                    self._said.append(line.decode("utf-8", "replace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def lines(self) -> list[str]:
        """Standard output so far."""
        with self._changed:
            return list(self._said)

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return self._log.read_text("utf-8", "replace")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def resident(self) -> int:
        """Resident memory, in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def wait_line(self, number: int = 0, seconds: float = READY) -> str:
        """Line `number` of standard output. Raises AssertionError when the program ends or is silent."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._said) > number or self._ended, seconds)
            if len(self._said) > number:
                return self._said[number]
        raise AssertionError(f"no line {number} from {self.describe()}")

    def wait_errors(self, pattern: str, seconds: float = READY) -> re.Match[str]:
        """Wait until standard error matches `pattern`. Raises AssertionError."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            match = re.search(pattern, self.errors)
            if match:
                found.append(match)
            return match is not None

        eventually(look, seconds, f"{pattern!r} from {self.name}")
        return found[0]

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = END) -> int:
        """The exit code. Raises AssertionError when it does not end in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s: {self.describe()}") from None

    def stop(self, seconds: float = END) -> int:
        """SIGTERM, and wait. Return the exit code."""
        self.signal()
        return self.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, and wait. Idempotent."""
        if self.alive:
            self.process.kill()
        self.process.wait(END)

    def describe(self) -> str:
        """For failure messages: how it ended, and what it said."""
        tail = "\n".join(self.errors.splitlines()[-60:])
        return f"{self.name} (pid {self.pid}, exit {self.process.poll()})\nstdout: {self.lines}\nstderr:\n{tail}"

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.kill()
        self._reader.join(END)


def eventually(condition: object, seconds: float, what: str) -> None:
    """Wait until `condition()` is true: what other processes do can only be asked for. Raises AssertionError."""
    assert callable(condition)
    pause = threading.Event()
    for _ in range(max(1, int(seconds / 0.02))):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


# The Edge


class EdgeProgram(Program):
    """`netbore-edge serve`. `port` serves TLS, `plain_port` plain HTTP when asked for."""

    state: Path
    port: int
    plain_port: int | None = None

    @property
    def ca(self) -> Path:
        return self.state / "ca.pem"

    @property
    def token_file(self) -> Path:
        return self.state / "operator-token"

    @property
    def url(self) -> str:
        return f"https://{DOMAIN}:{self.port}"

    def __enter__(self) -> EdgeProgram:
        return self


def edge(directory: Path, *options: str, port: int = 0, plain: bool = False, state: str = "edge") -> EdgeProgram:
    """Start an Edge and wait until it accepts. `plain`: serve Tunnels over plain HTTP, too, on a port of its own."""
    path = directory / state
    argv = [sys.executable, "-c", "from netbore.edge.program import main; main()", "serve"]
    argv += ["--listen", f"127.0.0.1:{port}", "--state-dir", str(path), *options]
    if plain:
        argv += ["--http-listen", "127.0.0.1:0", "--http", "serve"]
    program = EdgeProgram("netbore-edge", argv, directory)
    program.state = path
    try:
        program.port = int(program.wait_line().rsplit(":", 1)[1])
        if plain:
            program.plain_port = int(program.wait_line(1).rsplit(":", 1)[1])
    except BaseException:
        program.kill()
        raise
    return program


# The Agent


class AgentProgram(Program):
    """`netbore-agent http`. `public_url` once it is up."""

    public_url: str = ""

    @property
    def tunnel(self) -> str:
        """The name that it serves."""
        return self.public_url.split("//")[1].split(".")[0]

    def __enter__(self) -> AgentProgram:
        return self


def agent(
    directory: Path,
    target: int | str,
    the_edge: EdgeProgram,
    *options: str,
    name: str | None = None,
    port: int | None = None,
    url: str | None = None,
    state: str = "agent",
    token: bool = True,
    wait: bool = True,
    environment: dict[str, str] | None = None,
) -> AgentProgram:
    """Start an Agent for the Host `target` and wait for its public URL.

    `port`: dial this port in place of the Edge's (a proxy); `url`: dial this URL. `state`: its state directory below
    `directory`; the same again gives the same name. `token`: use the operator's.
    """
    url = url or f"https://{DOMAIN}:{port or the_edge.port}"
    argv = [sys.executable, "-c", "from netbore.agent.program import main; main()", "http", str(target)]
    argv += ["--edge", url, "--state-dir", str(directory / state), "--ca-file", str(the_edge.ca), *options]
    if name is not None:
        argv += ["--name", name]
    if token:
        argv += ["--token-file", str(the_edge.token_file)]
    program = AgentProgram("netbore-agent", argv, directory, environment)
    try:
        if wait:
            program.public_url = program.wait_line()
    except BaseException:
        program.kill()
        raise
    return program


# nginx


NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin") or "nginx"

_NGINX_CONFIG = """
daemon off;
master_process off;
pid {base}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    types {{ text/html html; text/plain txt; }}
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    client_max_body_size 0;
    client_body_temp_path {base}/body;
    proxy_temp_path {base}/proxy;
    fastcgi_temp_path {base}/fastcgi;
    uwsgi_temp_path {base}/uwsgi;
    scgi_temp_path {base}/scgi;
    keepalive_requests 1000000;
    {http}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {root};
        location /upload/ {{
            dav_methods PUT DELETE;
            create_full_put_path on;
            client_body_buffer_size 1m;
        }}
        {server}
    }}
}}
"""


class Nginx(Program):
    """nginx, serving the files of `root`; PUT below /upload/ writes them."""

    root: Path
    port: int

    def __enter__(self) -> Nginx:
        return self


def nginx(directory: Path, *, server: str = "", http: str = "", name: str = "nginx") -> Nginx:
    """Start nginx as a Host. `server` and `http` are more configuration for these blocks."""
    base = directory / name
    root = base / "root"
    (root / "upload").mkdir(parents=True, exist_ok=True)
    index = root / "index.html"
    if not index.exists():
        index.write_text("hello from the host\n")
    for _ in range(3):
        port = free_port()
        config = base / "nginx.conf"
        config.write_text(_NGINX_CONFIG.format(base=base, root=root, port=port, server=server, http=http))
        program = Nginx(name, [NGINX, "-e", "stderr", "-p", str(base), "-c", str(config)], directory)
        program.root, program.port = root, port
        if _accepts(program, port):
            return program
        program.kill()
    raise AssertionError(f"nginx does not start: {program.describe()}")


def _accepts(program: Program, port: int) -> bool:
    def look() -> bool:
        if not program.alive:
            return True
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    eventually(look, READY, f"{program.name} accepts on {port}")
    return program.alive


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# curl


@attrs.frozen
class Answer:
    """What curl got. `status` is 0 when there was no answer, `code` is curl's own exit code."""

    code: int
    status: int
    headers: dict[str, str]
    body: bytes = attrs.field(repr=False)
    words: str
    #: Bytes of body per second, down and up.
    speed_down: float
    speed_up: float
    seconds: float


def url_of(the_edge: EdgeProgram, name: str, path: str = "/", *, plain: bool = False) -> str:
    """The address of Tunnel `name` at this Edge."""
    if plain:
        assert the_edge.plain_port is not None
        return f"http://{name}.{DOMAIN}:{the_edge.plain_port}{path}"
    return f"https://{name}.{DOMAIN}:{the_edge.port}{path}"


class Curl:
    """curl at work. `answer` waits for it. With `output` the body goes to that file and `Answer.body` is empty."""

    def __init__(self, url: str, options: Sequence[str], directory: Path, ca: Path | None, output: Path | None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.output = output or directory / f"curl-{os.urandom(6).hex()}.body"
        self._keep = output is not None
        self._head = self.output.with_suffix(".head")
        argv = ["curl", "--silent", "--show-error", "--noproxy", "*", "--output", str(self.output)]
        argv += ["--dump-header", str(self._head), *(["--cacert", str(ca)] if ca else [])]
        argv += ["--write-out", "%{http_code} %{speed_download} %{speed_upload} %{time_total}", *options, url]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)

    @property
    def received(self) -> int:
        """Bytes of body that are written so far."""
        return self.output.stat().st_size if self.output.exists() else 0

    def answer(self, seconds: float = 60.0) -> Answer:
        """Raises AssertionError when curl is not done in time."""
        try:
            out, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"curl is not done after {seconds} s; {self.received} bytes came") from None
        status, down, up, took = out.decode().split()
        body = b"" if self._keep or not self.output.exists() else self.output.read_bytes()
        headers = _headers(self._head.read_bytes().decode("latin-1")) if self._head.exists() else {}
        if not self._keep:
            self.output.unlink(missing_ok=True)
        words = errors.decode("utf-8", "replace")
        return Answer(self.process.returncode, int(status), headers, body, words, float(down), float(up), float(took))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Curl:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.process.returncode is None:
            self.kill()


def _headers(text: str) -> dict[str, str]:
    """The fields of the last head, names in lower case."""
    heads = [head for head in text.split("\r\n\r\n") if head.startswith("HTTP/")]
    lines = heads[-1].split("\r\n")[1:] if heads else []
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def start_curl(
    the_edge: EdgeProgram, name: str, path: str = "/", *options: str, plain: bool = False, output: Path | None = None
) -> Curl:
    """Begin a request for Tunnel `name`."""
    url = url_of(the_edge, name, path, plain=plain)
    return Curl(url, options, the_edge.state.parent, None if plain else the_edge.ca, output)


def curl(
    the_edge: EdgeProgram,
    name: str,
    path: str = "/",
    *options: str,
    plain: bool = False,
    output: Path | None = None,
    seconds: float = 60.0,
) -> Answer:
    """One request for Tunnel `name`, done."""
    with start_curl(the_edge, name, path, *options, plain=plain, output=output) as running:
        return running.answer(seconds)


needs_nginx = pytest.mark.skipif(shutil.which(NGINX) is None, reason="nginx is not installed")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
