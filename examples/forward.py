"""What `netbore-agent http` does, as a library call: a public address for a service on this machine.

python examples/forward.py https://tunnel.localhost:8443 STATE/operator-token STATE/ca.pem 8000
"""

from __future__ import annotations

import sys

import trio

import netbore


async def forward(
    edge: str, token: str, ca_file: str, target: str, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Forward to `target` until cancelled; the public URL is told through `task_status`."""
    async with netbore.connect(edge, token=token, ca_file=ca_file) as agent:
        tunnel = await agent.open_tunnel()
        task_status.started(tunnel.public_url)
        await tunnel.forward(target)


async def main(edge: str, token_file: str, ca_file: str, target: str) -> None:
    token = (await trio.Path(token_file).read_text()).strip()
    async with trio.open_nursery() as nursery:
        print(await nursery.start(forward, edge, token, ca_file, target))


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:5])
