"""A long path: 100 ms round trip, 4 MiB per direction unacknowledged."""

from __future__ import annotations

from pathlib import Path

from tests.system.conftest import BigFile
from tests.system.processes import Curl, agent, edge, needs_curl, needs_nginx, nginx, start_curl
from tests.system.proxies import Proxy

pytestmark = [needs_nginx, needs_curl]

ONE_WAY = 0.05
UNACKNOWLEDGED = 4 * 1024 * 1024


def download(running: Curl, size: int) -> float:
    """The rate in bytes per second."""
    with running:
        answer = running.answer(60)
        assert (answer.code, answer.status, running.received) == (0, 200, size), answer
        return answer.speed_down


def test_a_long_path_is_filled(tmp_path: Path, big: BigFile) -> None:
    with edge(tmp_path) as the_edge, nginx(tmp_path) as host:
        (host.root / "big.bin").symlink_to(big.path)
        sink = tmp_path / "big.bin"
        with Proxy(host.port, one_way=ONE_WAY, window=UNACKNOWLEDGED) as proxy:
            direct = download(Curl(f"http://127.0.0.1:{proxy.port}/big.bin", [], tmp_path, None, sink), big.size)
        with (
            Proxy(the_edge.port, one_way=ONE_WAY, window=UNACKNOWLEDGED) as proxy,
            agent(tmp_path, host.port, the_edge, name="demo", port=proxy.port),
        ):
            fresh, second = (download(start_curl(the_edge, "demo", "/big.bin", output=sink), big.size) for _ in range(2))
    figures = f"direct {direct / 1e6:.1f} MB/s, fresh {fresh / direct:.1%}, second {second / direct:.1%}"
    assert direct > 30e6, figures
    assert fresh >= 0.90 * direct, figures
    assert second >= 0.97 * direct, figures
