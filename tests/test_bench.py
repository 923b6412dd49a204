"""The bench's readers and its arithmetic; what it measures is not tested here."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import pytest

from bench.__main__ import names, parser
from bench.load import LoadError, Requests, Transfer, Viewer, parse_curl, parse_wrk
from bench.measure import Spread, Stat, own_seconds, parse_busy, parse_peak, parse_stat, read_stats, spread, tree
from bench.peers import Netbore
from bench.profile import Samples, parse_raw, table
from bench.report import aligned, as_json, as_text, ratios, show, summarise
from bench.run import ROWS, Fault, Plan, Results, Sample

WRK = """\
Running 1s test @ http://127.0.0.1:40001/small
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   571.08us  198.38us   6.29ms   91.46%
    Req/Sec    53.22k     2.37k   56.45k    72.73%
  Latency Distribution
     50%  533.00us
     75%  622.00us
     90%    0.90ms
     99%    1.09ms
  58190 requests in 1.10s, 10.10MB read
Requests/sec:  52945.12
Transfer/sec:      9.19MB
"""


def test_wrk_report() -> None:
    assert parse_wrk(WRK) == Requests(count=58190, rate=52945.12, p50=0.533, p99=1.09)


@pytest.mark.parametrize(("text", "ms"), [("1.02s", 1020.0), ("1.09ms", 1.09), ("90.00us", 0.09), ("1.50m", 90_000.0)])
def test_wrk_units(text: str, ms: float) -> None:
    assert parse_wrk(WRK.replace("99%    1.09ms", f"99%    {text}")).p99 == pytest.approx(ms)


@pytest.mark.parametrize(
    "trouble",
    ["  Socket errors: connect 0, read 3, write 0, timeout 0\n", "  Non-2xx or 3xx responses: 58190\n"],
)
def test_wrk_trouble_is_no_figure(trouble: str) -> None:
    with pytest.raises(LoadError, match=trouble.strip()):
        parse_wrk(WRK.replace("Requests/sec", f"{trouble}Requests/sec"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        WRK[: WRK.index("Requests/sec")],
        WRK.replace("     99%    1.09ms\n", ""),
        WRK.replace("58190 requests", "0 requests"),
    ],
)
def test_wrk_report_that_is_not_whole(text: str) -> None:
    with pytest.raises(LoadError, match=r"^wrk: "):
        parse_wrk(text)


def test_curl_line() -> None:
    assert parse_curl("200 67108864 0 0.101325") == Transfer(status=200, down=67108864, up=0, seconds=0.101325)


@pytest.mark.parametrize("text", ["", "200", "200 1 2", "curl: (7) failed to connect"])
def test_curl_line_that_is_not_one(text: str) -> None:
    with pytest.raises(LoadError, match=r"^curl: "):
        parse_curl(text)


def test_host_header_only_where_it_is_needed() -> None:
    assert Viewer("http://127.0.0.1:1").options() == []
    assert Viewer("http://127.0.0.1:1", "demo.tunnel.localhost").options() == ["-H", "Host: demo.tunnel.localhost"]


def test_stat_of_a_program_with_a_name_full_of_brackets() -> None:
    fields = "S 7 70 70 0 -1 4194560 9 8 7 6 100 20 3 4 20 0 1 0 5555 123 45"
    assert parse_stat(f"71 (a) (b c)) {fields}") == Stat(pid=71, parent=7, reaped=7, started=5555)


def test_own_process_is_in_the_list() -> None:
    assert read_stats()[os.getpid()].parent == os.getppid()


def test_cpu_clock_of_another_process_is_the_one_that_the_process_sees() -> None:
    before = time.process_time()
    assert before <= own_seconds(os.getpid()) <= time.process_time()


def test_cpu_of_a_process_that_is_not_there() -> None:
    assert own_seconds(2**22) == 0  # beyond the largest pid of Linux


def test_tree_takes_all_descendants_and_no_strangers() -> None:
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1}
    stats = {pid: Stat(pid, parent, 0, 0) for pid, parent in parents.items()}
    assert tree([10], stats) == [10, 11, 12]
    assert tree([10, 11, 99], stats) == [10, 11, 12]


def test_peak_memory_line() -> None:
    assert parse_peak("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n") == 2 << 20
    assert parse_peak("Name:\tzombie\n") == 0


def test_busy_leaves_out_idle_iowait_and_guests() -> None:
    assert parse_busy("cpu  1 2 4 1000 1000 8 16 32 500 500\ncpu0 9 9 9\n") == 63


def test_spread() -> None:
    assert spread([3.0, 1.0, 8.0]) == Spread(3.0, 1.0, 8.0)
    assert spread([]) is None


RAW = """\
<module> (/usr/bin/netbore-edge:8);turn (/x/netbore/link/turn.py:10) 60
<module> (/usr/bin/netbore-edge:8);feed (/x/netbore/proto/http/codec.py:5);next_event (/y/h11/_connection.py:443) 25
<module> (/usr/bin/netbore-edge:8);next_event (/y/h11/_connection.py:443);split (/z/re/__init__.py:2) 10
<module> (/usr/bin/netbore-edge:8);h11 (/x/netbore/proto/http/h11.py:7) 5
"""


def test_raw_profile_counts_stacks_with_an_h11_frame_anywhere() -> None:
    assert parse_raw(RAW) == Samples(total=100, outside=65)
    assert parse_raw(RAW).share == 0.65
    assert Samples(0, 0).share == 0


def test_profile_table_adds_up_the_products() -> None:
    found = {"server": Samples(100, 50), "client": Samples(100, 100)}
    text = table({"server": 9.0, "client": 5.0}, {"server": 10.0, "client": 6.0}, found)
    assert text.splitlines()[-1].split() == ["sum", "16.00", "14.00", "11.00"]


def sample(peer: str, number: int, rate: float, server: float) -> Sample:
    """A run of get-32 with a client that costs 1 us and a Host that costs 5."""
    cpu = {"server": server, "client": 1.0, "host": 5.0}
    return Sample(peer, "get-32", number, rate, cpu, foreign=0.0, p50=0.5, p99=1.0)


RESULTS = Results(
    samples=[
        sample("nginx", 0, 100.0, 3.0),
        sample("netbore", 0, 200.0, 1.0),
        sample("netbore", 1, 999.0, 9.0),  # nginx failed in this round: it counts in no ratio
        sample("nginx", 2, 50.0, 1.0),
        sample("netbore", 2, 200.0, 3.0),
    ],
    faults=[Fault("nginx", "get-32", 1, "wrk: Socket errors"), Fault("ssh-pty", "start", 0, "sshd is not installed")],
    memory=[("netbore", {"server": 40 << 20, "client": 30 << 20}), ("netbore", {"server": 42 << 20})],
)


def test_ratios_pair_the_runs_of_one_round() -> None:
    line = summarise(RESULTS, "get-32", "netbore")
    assert line.rate == Spread(200.0, 200.0, 999.0)
    assert line.rate_ratio == Spread(3.0, 2.0, 4.0)
    assert line.cpu_ratio == Spread(1.25, 0.5, 2.0)
    assert line.cpu["both"] == Spread(4.0, 2.0, 10.0)
    assert ratios([], RESULTS.samples, lambda run: run.rate) is None


def test_faults_are_counted_and_told() -> None:
    plan = Plan(rounds=3, seconds=1, size=1, rows=[row for row in ROWS if row.name == "get-32"])
    peers = ["netbore", "ssh-pty", "nginx"]
    assert [summarise(RESULTS, "get-32", peer).faults for peer in peers] == [0, 1, 1]
    text = as_text(RESULTS, plan, peers)
    assert "FAULT nginx get-32 round 2: wrk: Socket errors" in text
    assert "41 (40-42)" in text
    assert len(as_json(RESULTS, plan, peers)["samples"]) == len(RESULTS.samples)


def test_foreign_load_marks_the_row() -> None:
    noisy = Results([Sample("nginx", "download", 0, 700.0, {"host": 0.1}, foreign=0.3)])
    plan = Plan(rounds=1, seconds=1, size=1, rows=[row for row in ROWS if row.name == "download"])
    assert "other programs took 30% of the cores" in as_text(noisy, plan, ["nginx"])
    assert "other programs" not in as_text(RESULTS, plan, ["nginx"])


def test_cells() -> None:
    assert show(Spread(1234.4, 1000.0, 2000.0), ",.0f", wide=True) == "1,234 (1,000-2,000)"
    assert show(Spread(2.0, 2.0, 2.0), ".1f", wide=True) == "2.0"
    assert show(None, ".1f") == "-"
    assert aligned([("peer", "rate"), ("a", "1")]) == "peer  rate\na        1\n"


def test_the_carrier_is_the_scheme_of_the_agents_edge() -> None:
    assert parser().parse_args(["outside-h11"]).carrier == "wss"
    assert parser().parse_args(["outside-h11", "--carrier", "tls"]).carrier == "tls"
    assert [Netbore(carrier).name for carrier in ("wss", "tls")] == ["netbore", "netbore-tls"]
    for carrier, scheme in {"wss": "https", "tls": "tls"}.items():
        words = Netbore(carrier).agent_words(Path("state"), "host:80", "8443")
        assert words[words.index("--edge") + 1] == f"{scheme}://tunnel.localhost:8443"


def test_names() -> None:
    assert names(["a", "b"], "b,a") == ["b", "a"]
    with pytest.raises(argparse.ArgumentTypeError, match="c: not one of a, b"):
        names(["a", "b"], "a,c")
