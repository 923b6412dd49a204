"""Budgets, growth and the memory of windows."""

from __future__ import annotations

import pytest

from netbore.proto.window import Budget, Growth, WindowMemory, first_window
from netbore.proto.wire import FIRST_WINDOW, LESSER_WINDOW, STREAM_WINDOW

MIB = 1048576


def test_a_budget_within_a_budget_takes_from_both_or_from_none() -> None:
    edge = Budget(100)
    link, other = Budget(80, edge), Budget(80, edge)
    assert link.take(60)
    assert not link.take(30)
    assert not other.take(50)
    assert (edge.out, link.out, other.out) == (60, 60, 0)
    assert other.take(40)
    assert link.used == 1.0
    link.give(60)
    assert (edge.out, link.out) == (40, 0)
    assert link.share(20) == 0.6
    with pytest.raises(AssertionError):
        link.give(1)


def grow(growth: Growth, count: int, now: float, rtt: float | None = 0.1, known: int = 0) -> int:
    """By how much `growth` grew when `count` bytes had moved."""
    return growth.grow(known) if growth.moved(count, now, rtt) else 0


def test_a_window_doubles_when_it_moved_within_two_round_trips() -> None:
    budget = Budget(1000)
    growth = Growth(100, 400, budget)
    assert grow(growth, 50, 1.0) == 0
    assert grow(growth, 50, 1.2) == 100
    assert (growth.size, budget.out) == (200, 100)
    assert grow(growth, 100, 2.0) == grow(growth, 99, 2.21) == 0  # too slow
    assert grow(growth, 101, 2.3) == 200
    assert growth.moved(400, 4.0, 0.1)  # at its limit, yet used to the full
    assert growth.grow() == 0


def test_a_pause_costs_a_window_nothing_but_what_moved_before() -> None:
    growth = Growth(100, 400, Budget(1000))
    assert grow(growth, 10, 1.0) == 0
    assert grow(growth, 86, 60.0) == 0
    assert grow(growth, 1, 60.1) == 0
    assert grow(growth, 1, 60.15) == 100


def test_seven_eighths_are_full() -> None:
    growth = Growth(1000, 4000, Budget(10000))
    assert grow(growth, 874, 1.0) == 0
    assert grow(growth, 1, 1.0) == 1000


def test_a_window_does_not_grow_without_budget_or_round_trip() -> None:
    growth = Growth(100, 400, Budget(50))
    assert grow(growth, 100, 1.0) == 0
    assert grow(growth, 100, 2.0, None) == 0
    assert growth.size == 100


def test_the_round_trip_is_never_below_its_least() -> None:
    growth = Growth(100, 400, Budget(1000))
    assert grow(growth, 50, 1.0, 0.0) == 0
    assert grow(growth, 50, 1.003, 0.0) == 100


def test_the_memory_keeps_the_largest_for_300_seconds() -> None:
    memory = WindowMemory()
    assert memory.known(0) == 0
    memory.note(4 * MIB, 10)
    memory.note(MIB, 200)
    assert memory.known(310) == 4 * MIB
    assert memory.known(311) == 0
    memory.note(MIB, 311)
    assert memory.known(311) == MIB


@pytest.mark.parametrize(
    ("out", "size"),
    [(0, FIRST_WINDOW), (31 * MIB, FIRST_WINDOW), (32 * MIB, LESSER_WINDOW), (48 * MIB, STREAM_WINDOW), (64 * MIB - 1, 0)],
)
def test_the_first_window_follows_the_budget(out: int, size: int) -> None:
    budget = Budget(64 * MIB)
    assert budget.take(out)
    assert first_window(budget) == size
    assert budget.out == out + size


def test_a_window_that_is_too_small_goes_to_what_is_known_at_once_while_that_is_modest() -> None:
    budget = Budget(64 * MIB)
    growth = Growth(MIB, 64 * MIB, budget)
    assert grow(growth, MIB - 1, 1.0, known=16 * MIB) == 15 * MIB
    assert growth.size == budget.out + MIB == 16 * MIB
    other = Growth(MIB, 64 * MIB, budget)
    assert grow(other, MIB, 1.0, known=32 * MIB) == MIB  # would be half of the budget
    assert grow(other, 2 * MIB, 1.0, known=3 * MIB) == 2 * MIB  # doubling is more


def test_the_first_window_is_what_is_remembered_while_that_is_modest() -> None:
    budget = Budget(64 * MIB)
    assert first_window(budget, 16 * MIB) == 16 * MIB
    assert first_window(budget, 16 * MIB) == FIRST_WINDOW
    assert first_window(budget, 1000) == FIRST_WINDOW


def test_the_first_window_falls_back_to_what_fits_and_counts_what_is_there() -> None:
    budget = Budget(100_000)
    assert first_window(budget, have=STREAM_WINDOW) == LESSER_WINDOW
    assert budget.out == LESSER_WINDOW - STREAM_WINDOW
    assert budget.take(40_000)
    assert first_window(budget, have=STREAM_WINDOW) == STREAM_WINDOW
    assert budget.out == LESSER_WINDOW - STREAM_WINDOW + 40_000
    assert first_window(budget) == 0
