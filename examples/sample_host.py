"""A Host to try a tunnel with: answers each request with what reached it. Prints its address.

    python examples/sample_host.py [PORT]

Plain standard library, because a Host can be anything that speaks HTTP.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Echo(BaseHTTPRequestHandler):
    """Says hello, and repeats the request's head as plain text."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        lines = ["Hello from behind the tunnel.", "", self.requestline, *(f"{k}: {v}" for k, v in self.headers.items()), ""]
        answer = "\n".join(lines).encode() + (b"\n" + body + b"\n" if body else b"")
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with ThreadingHTTPServer(("127.0.0.1", port), Echo) as server:
        print(f"127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
