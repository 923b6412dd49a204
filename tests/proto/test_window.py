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


def grow(growth: Growth, count: int, now: float) -> int:
    return growth.moved(count, now, 0.1)


def test_a_window_doubles_when_it_moved_within_two_round_trips() -> None:
    budget = Budget(1000)
    growth = Growth(100, 400, budget)
    assert grow(growth, 50, 1.0) == 0
    assert growth.full == 0
    assert grow(growth, 50, 1.2) == 100
    assert (growth.size, growth.full, budget.out) == (200, 100, 100)
    assert grow(growth, 100, 2.0) == grow(growth, 99, 2.21) == 0  # too slow
    assert growth.full == 0
    assert grow(growth, 101, 2.3) == 200
    assert grow(growth, 400, 4.0) == 0  # at its limit, yet used to the full
    assert growth.full == 400


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
    assert growth.moved(100, 2.0, None) == 0
    assert growth.size == 100


def test_the_round_trip_is_never_below_its_least() -> None:
    growth = Growth(100, 400, Budget(1000))
    growth.moved(50, 1.0, 0.0)
    assert growth.moved(50, 1.003, 0.0) == 100


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
    assert growth.moved(MIB - 1, 1.0, 0.1, 16 * MIB) == 15 * MIB
    assert growth.size == budget.out + MIB == 16 * MIB
    other = Growth(MIB, 64 * MIB, budget)
    assert other.moved(MIB, 1.0, 0.1, 32 * MIB) == MIB  # would be half of the budget
    assert other.moved(2 * MIB, 1.0, 0.1, 3 * MIB) == 2 * MIB  # doubling is more


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
