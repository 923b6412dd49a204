"""The replay against its model: a slice of one long byte string."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from netbore.proto.replay import Replay
from netbore.proto.window import Budget, Growth


def replay(room: int = 2**20) -> Replay:
    return Replay(Growth(room, room, Budget(room)))


class Model(RuleBasedStateMachine):
    """Appending, acknowledging, rewinding and sending again, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.replay = replay()
        self.all = b""

    @precondition(lambda self: self.replay.next == self.replay.end)
    @rule(count=st.one_of(st.integers(1, 50), st.integers(4090, 4100), st.integers(1, 20000)))
    def append(self, count: int) -> None:
        data = bytes((len(self.all) + index) % 251 for index in range(count))
        self.all += data
        self.replay.append(memoryview(data))

    @rule(share=st.floats(0, 1))
    def acknowledge(self, share: float) -> None:
        before = self.replay.acked
        count = round(share * (self.replay.next - before))
        assert self.replay.acknowledge(before + count) == count

    @rule(share=st.floats(0, 1))
    def rewind(self, share: float) -> None:
        self.replay.rewind(self.replay.acked + round(share * (self.replay.end - self.replay.acked)))

    @rule(limit=st.integers(0, 30000))
    def again(self, limit: int) -> None:
        start = self.replay.next
        parts = b"".join(self.replay.again(limit))
        assert parts == self.all[start : start + limit]
        assert self.replay.next == start + len(parts)

    @invariant()
    def sound(self) -> None:
        assert self.replay.acked <= self.replay.next <= self.replay.end == len(self.all)
        assert self.replay.free == 2**20 - (self.replay.end - self.replay.acked)

    def teardown(self) -> None:
        self.replay.rewind(self.replay.acked)
        assert b"".join(self.replay.again(2**20)) == self.all[self.replay.acked :]


Model.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestModel = Model.TestCase


def test_small_parts_cost_little_memory() -> None:
    """A room full of tiny flushes costs about its bytes, not an object for each."""
    kept = replay()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(20000):
        kept.append(b"12345678")
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 2 * 160000


def test_acknowledged_bytes_are_let_go() -> None:
    """Small flushes that are acknowledged as they go do not gather in one part for ever."""
    kept = replay()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(20000):
        kept.append(b"12345678")
        kept.acknowledge(kept.end - 4)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 40000


def test_new_bytes_wait_until_all_is_sent_again() -> None:
    kept = replay()
    kept.append(b"old")
    kept.rewind(0)
    with pytest.raises(AssertionError):
        kept.append(b"new")


def test_clear() -> None:
    kept = replay()
    kept.append(b"old")
    kept.rewind(0)
    kept.clear()
    assert kept.again(10) == []
