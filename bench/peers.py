"""The Host and the peers: who is measured, each started afresh on ports of its own and on 127.0.0.1 only.

Theory of operation. The Host is nginx with one worker; its files lie in memory. A peer is told the Host's HOST:PORT and
gives back the Viewer's way in. `processes` names its roots by role: "server" is what the Viewer reaches, "client" what
stands beside the Host. All peers take plain HTTP from the Viewer and encrypt between server and client.
"""

from __future__ import annotations

import getpass
import http.client
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import trustme

from bench.load import Viewer
from bench.programs import Program, StartError, find, free_port

BODY = b"hello from the Host!"  # 20 bytes

#: How a Link is carried, by name: the scheme of the Edge's URL.
CARRIERS = {"wss": "https", "tls": "tls"}
#: How Netbore is started; shell words, each formatted with {state}, and the Agent's also with {host}, {port} and {scheme}.
EDGE = (
    "netbore-edge serve --domain tunnel.localhost --listen 127.0.0.1:0 --http-listen 127.0.0.1:0 --http serve --state-dir {state}"
)
AGENT = (
    "netbore-agent http {host} --edge {scheme}://tunnel.localhost:{port} --ca-file {state}/ca.pem "
    "--token-file {state}/operator-token --name demo"
)

NGINX = """
{user}
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_timeout 1h; keepalive_requests 100000000;
  client_max_body_size 0; client_body_buffer_size 256k; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {http}
}}
"""
HOST = """
  server {{
    listen 127.0.0.1:{port}; root {files}; default_type text/plain;
    location = /small {{ return 200 "{body}"; }}
    location /upload/ {{ dav_methods PUT; dav_access user:rw; }}
  }}
"""
PROXY = """
  upstream next {{ server {next}; keepalive 256; keepalive_requests 100000000; keepalive_timeout 1h; }}
  server {{
    listen 127.0.0.1:{port} {listen};
    {tls}
    location / {{
      proxy_pass {scheme}://next; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_request_buffering off; proxy_max_temp_file_size 0;
    }}
  }}
"""
PROXY_SERVER_TLS = "ssl_certificate {folder}/tls.pem; ssl_certificate_key {folder}/tls.key; ssl_protocols TLSv1.3;"
PROXY_CLIENT_TLS = (
    "proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; proxy_ssl_name bench.internal; proxy_ssl_server_name on; "
    "proxy_ssl_trusted_certificate {folder}/ca.pem;"
)

SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile {folder}/pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
PrintLastLog no
ClientAliveInterval 15
"""

#: An sshd of root refuses to start without this empty folder, which the system's own service makes too.
SSHD_ROOT = Path("/run/sshd")


def start_nginx(name: str, http: str, folder: Path) -> Program:
    """Start one nginx in a folder of its own with `http` as the body of its http block."""
    own = folder / name
    own.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""  # or its worker could not read our folder
    (own / "nginx.conf").write_text(NGINX.format(folder=own, user=user, http=http))
    return Program(name, ["nginx", "-p", str(own), "-e", "stderr", "-c", str(own / "nginx.conf")], own)


def wait_until_served(viewer: Viewer, programs: list[Program], limit: float = 15) -> None:
    """Ask for /small until the Host's own body comes. Raises StartError if a program ends, or after `limit` seconds."""
    deadline = time.monotonic() + limit
    while (answer := ask(viewer)) != f"200 {BODY!r}":
        for program in programs:
            program.check()
        if time.monotonic() > deadline:
            raise StartError(f"{viewer.url}/small: no right answer within {limit:.0f} s, the last one: {answer}")
        time.sleep(0.05)


def ask(viewer: Viewer) -> str:
    """Return status and body of one GET /small, or the error."""
    address = urlsplit(viewer.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=5)
    try:
        connection.request("GET", "/small", headers={"Host": viewer.host} if viewer.host else {})
        answer = connection.getresponse()
        return f"{answer.status} {answer.read()!r}"
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()


class Peer:
    """One way from the Viewer to the Host. Subclasses say how to open it; `needs` are the programs it takes."""

    name: str
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self._programs: dict[str, list[Program]] = {}

    def missing(self) -> str | None:
        """Return the name of a program that is needed and not installed, or None."""
        return next((program for program in self.needs if find(program) is None), None)

    def start(self, host: str, folder: Path) -> Viewer:
        """Bring the peer up before `host` ("HOST:PORT") with its files in `folder` and return the Viewer's way in.

        Raises StartError when it does not serve in time; `stop` is due even then.
        """
        viewer = self._open(host, folder)
        wait_until_served(viewer, [program for programs in self._programs.values() for program in programs])
        return viewer

    def processes(self) -> dict[str, list[int]]:
        """Return the pids of the roots by role."""
        return {role: [program.pid for program in programs] for role, programs in self._programs.items()}

    def stop(self) -> None:
        """End all programs, the last one started first."""
        for programs in reversed(self._programs.values()):
            for program in reversed(programs):
                program.stop()
        self._programs.clear()

    def _open(self, host: str, folder: Path) -> Viewer:
        raise NotImplementedError

    def _add(self, role: str, program: Program) -> Program:
        self._programs.setdefault(role, []).append(program)
        return program


class Direct(Peer):
    """The Viewer at the Host itself: the limit."""

    name = "direct"

    def _open(self, host: str, folder: Path) -> Viewer:
        return Viewer(f"http://{host}")


class Nginx(Peer):
    """nginx as two proxies, TLS 1.3 between them, verified and kept alive. It trusts nobody to dial in: not a tunnel."""

    name = "nginx"
    needs = ("nginx",)

    def _open(self, host: str, folder: Path) -> Viewer:
        make_certificate(folder)
        inner, outer = free_port(), free_port()
        server_tls, client_tls = PROXY_SERVER_TLS.format(folder=folder), PROXY_CLIENT_TLS.format(folder=folder)
        near = PROXY.format(next=host, port=inner, listen="ssl", tls=server_tls, scheme="http")
        far = PROXY.format(next=f"127.0.0.1:{inner}", port=outer, listen="", tls=client_tls, scheme="https")
        self._add("server", start_nginx("nginx-far", far, folder))
        self._add("client", start_nginx("nginx-near", near, folder))
        return Viewer(f"http://127.0.0.1:{outer}")


class SshPty(Peer):
    """`ssh -R` with a pty: only then does OpenSSH set TCP_NODELAY, without it small requests wait 40 ms for nothing."""

    name = "ssh-pty"
    needs = ("ssh", "sshd", "ssh-keygen")

    def _open(self, host: str, folder: Path) -> Viewer:
        for key in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        port, out = free_port(), free_port()
        kind, key = (folder / "host.pub").read_text().split()[:2]
        (folder / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
        (folder / "sshd.conf").write_text(SSHD.format(port=port, folder=folder))
        if os.geteuid() == 0:
            SSHD_ROOT.mkdir(mode=0o755, exist_ok=True)
        server = Program("sshd", ["sshd", "-D", "-e", "-f", str(folder / "sshd.conf")], folder)
        self._add("server", server)
        server.wait_for(rf".*listening on .*\b{port}\b.*", server.err)
        self._add("client", Program("ssh", self._client(port, out, host, folder), folder))
        return Viewer(f"http://127.0.0.1:{out}")

    @staticmethod
    def _client(port: int, out: int, host: str, folder: Path) -> list[str]:
        known, key = f"UserKnownHostsFile={folder}/known", str(folder / "user")
        options = [known, "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "ExitOnForwardFailure=yes", "BatchMode=yes"]
        command = ["ssh", "-F", "none", "-i", key, "-p", str(port), "-R", f"127.0.0.1:{out}:{host}", "-tt"]
        for option in [*options, "ServerAliveInterval=15"]:
            command += ["-o", option]
        return [*command, f"{getpass.getuser()}@127.0.0.1", "exec sleep 86400"]


class Netbore(Peer):
    """Edge and Agent as users start them, the Link over one of CARRIERS.

    NETBORE_BENCH_EDGE and NETBORE_BENCH_AGENT replace the command lines.
    """

    name = "netbore"

    def __init__(self, carrier: str = "wss") -> None:
        super().__init__()
        self._scheme = CARRIERS[carrier]
        if carrier != "wss":
            self.name = f"netbore-{carrier}"
        self._edge = shlex.split(os.environ.get("NETBORE_BENCH_EDGE", EDGE))
        self._agent = shlex.split(os.environ.get("NETBORE_BENCH_AGENT", AGENT))

    def missing(self) -> str | None:
        """Return the name of a program that is needed and not installed, or None."""
        return next((words[0] for words in (self._edge, self._agent) if find(words[0]) is None), None)

    def agent_words(self, state: Path, host: str, port: str) -> list[str]:
        """Return the Agent's command line for an Edge at `port` with its files in `state`."""
        return [word.format(state=state, host=host, port=port, scheme=self._scheme) for word in self._agent]

    def _open(self, host: str, folder: Path) -> Viewer:
        edge = self._add("server", Program("edge", [word.format(state=folder) for word in self._edge], folder))
        port = edge.wait_for(r"ready https://\S+:(\d+)")[1]
        plain = edge.wait_for(r"ready http://\S+:(\d+)")[1]
        agent = self._add("client", Program("agent", self.agent_words(folder, host, port), folder))
        public = agent.wait_for(r"(https?://\S+)")[1]
        return Viewer(f"http://127.0.0.1:{plain}", urlsplit(public).hostname)


def make_certificate(folder: Path) -> None:
    """Write ca.pem, and tls.pem and tls.key (ECDSA P-256) for bench.internal signed by it."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    leaf = authority.issue_cert("bench.internal", key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    leaf.private_key_pem.write_to_path(folder / "tls.key")
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(folder / "tls.pem", append=True)


class Host:
    """The service behind all peers: nginx, one worker, its files in memory. `address` is HOST:PORT."""

    def __init__(self, folder: Path, sizes: dict[str, int]) -> None:
        self._files = folder / "files"
        (self._files / "upload").mkdir(parents=True)
        block = os.urandom(1 << 20)
        for name, size in sizes.items():
            with self.file(name).open("wb") as file:
                for start in range(0, size, len(block)):
                    file.write(block[: size - start])
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        text = HOST.format(port=port, files=self._files, body=BODY.decode())
        self.program = start_nginx("host", text, folder)

    def file(self, name: str) -> Path:
        """Return where the Host serves "/NAME" from."""
        return self._files / name

    def stored(self, name: str) -> Path:
        """Return where a PUT of "/upload/NAME" ends up."""
        return self._files / "upload" / name


PEERS: tuple[type[Peer], ...] = (Netbore, SshPty, Nginx, Direct)
