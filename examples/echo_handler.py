"""A Trio handler behind a public address: no local port, no second process.

    python examples/echo_handler.py https://tunnel.localhost:8443 STATE/operator-token STATE/ca.pem

A Tunnel is a Trio Listener. Each Stream that it accepts carries one HTTP/1.1 connection of the Edge's, so a handler speaks
HTTP; h11 does that here. What a Viewer POSTs comes back.
"""

from __future__ import annotations

import sys
from pathlib import Path

import h11
import trio

import netbore


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    """Answer the requests of one connection, until the Edge ends it."""
    http = h11.Connection(h11.SERVER)
    async with stream:
        while http.our_state is h11.IDLE:
            body = await request_body(stream, http)
            if body is None:
                return
            headers = [("Content-Length", str(len(body))), ("Content-Type", "application/octet-stream")]
            for event in (h11.Response(status_code=200, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                data = http.send(event)
                assert data is not None
                await stream.send_all(data)
            if http.our_state is http.their_state is h11.DONE:
                http.start_next_cycle()


async def request_body(stream: trio.abc.ReceiveStream, http: h11.Connection) -> bytes | None:
    """The whole body of the next request; None when there is none."""
    body = b""
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(await stream.receive_some())
            case h11.Data(data=data):
                body += data
            case h11.EndOfMessage():
                return body
            case h11.ConnectionClosed():
                return None
            case _:
                pass


async def serve(agent: netbore.Agent, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve `echo` at a name that the Edge chooses; the public URL is told through `task_status`."""
    tunnel = await agent.open_tunnel()
    task_status.started(tunnel.public_url)
    await trio.serve_listeners(echo, [tunnel])


async def main(edge: str, token_file: str, ca_file: str) -> None:
    token = (await trio.Path(token_file).read_text()).strip()
    async with netbore.connect(edge, token=token, ca_file=Path(ca_file)) as agent, trio.open_nursery() as nursery:
        print(await nursery.start(serve, agent))


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:4])
