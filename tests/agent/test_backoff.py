"""Waits between attempts to reach an Edge."""

from __future__ import annotations

from netbore.agent.connect import Backoff, ConnectLimits


def ceilings(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next() for _ in range(count)]


def test_the_first_comes_at_once_and_the_ceiling_doubles() -> None:
    backoff = Backoff(ConnectLimits(), lambda: 1.0)
    assert ceilings(backoff, 10) == [0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30]
    assert Backoff(ConnectLimits(), lambda: 0.0).next() == 0.0


def test_a_transport_that_stayed_up_starts_the_count_again() -> None:
    backoff = Backoff(ConnectLimits(), lambda: 1.0)
    ceilings(backoff, 9)
    backoff.stayed_up(10)
    assert ceilings(backoff, 2) == [0.0, 0.2]


def test_a_short_life_bounds_the_wait_below_what_viewers_are_held_for() -> None:
    backoff = Backoff(ConnectLimits(), lambda: 1.0)
    for _ in range(20):
        assert backoff.next() <= 3.2
        backoff.stayed_up(0.1)
    assert backoff.next() == 3.2


def test_a_short_life_does_not_start_the_count_again() -> None:
    backoff = Backoff(ConnectLimits(), lambda: 1.0)
    ceilings(backoff, 3)
    backoff.stayed_up(9.9)
    assert backoff.next() == 0.8
