"""The allowance for what costs a peer nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netbore.proto.rate import Allowance


def spent(allowance: Allowance, now: float, most: int = 10000) -> int:
    """How many go through at once, at most `most`."""
    return next((count for count in range(most) if not allowance.spend(now)), most)


def test_burst_then_rate() -> None:
    allowance = Allowance(rate=10.0, burst=5)
    assert spent(allowance, 100.0) == 5
    assert spent(allowance, 100.25) == 2
    assert spent(allowance, 100.31) == 1, "the half that was left over counts"
    assert spent(allowance, 1000.0) == 5, "idle time refills to the burst and no further"


def test_traffic_earns_beyond_the_burst() -> None:
    allowance = Allowance(rate=10.0, burst=5)
    allowance.earn(100)
    assert spent(allowance, 0.0, 103) == 103
    assert spent(allowance, 0.1) == 3
    assert spent(allowance, 0.15) == 0


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 3), st.integers(0, 5)), max_size=50))
def test_never_more_than_burst_and_rate_and_earnings(turns: list[tuple[float, int, int]]) -> None:
    allowance = Allowance(rate=2.0, burst=4)
    now = 0.0
    earned = through = 0
    for passed, more, tries in turns:
        now += passed
        allowance.earn(more)
        earned += more
        through += sum(allowance.spend(now) for _ in range(tries))
        assert through <= 4 + 2.0 * now + earned + 1e-6
