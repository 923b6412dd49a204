"""The Registry: one suite for every implementation, and what is `MemoryRegistry`'s own.

An implementation joins by its factory: a clock and a lease time in, a Registry out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
import trio
from trio.testing import MockClock

from netbore.edge.registry import Change, Claim, Holder, Holding, MemoryRegistry, NameTaken, Registry, Watch

Factory: TypeAlias = Callable[[float], Registry]
LEASE = 30.0

FACTORIES: dict[str, Factory] = {"memory": lambda lease: MemoryRegistry(trio.current_time, lease)}

A, B = Holder("ann", "a" * 32), Holder("ann", "b" * 32)
STRANGER = Holder("bob", "c" * 32)


@pytest.fixture(params=sorted(FACTORIES))
def registry(request: pytest.FixtureRequest) -> Registry:
    return FACTORIES[request.param](LEASE)


def held(name: str, holder: Holder, claim: Claim, *links: tuple[str, int]) -> Holding:
    return Holding(name, holder, claim.epoch, frozenset(links))


async def take(changes: Watch) -> Change:
    with trio.fail_after(1):
        return await anext(changes)


async def nothing_more(changes: Watch) -> None:
    """No news within a moment that is far shorter than a lease."""
    with trio.move_on_after(0.01) as scope:
        pytest.fail(f"unexpected: {await anext(changes)}")
    assert scope.cancelled_caught


# Claims


async def test_a_free_name_is_claimed(registry: Registry) -> None:
    claim = await registry.claim("demo", A, "e.1", 7, takeover=False)
    assert claim.previous is None
    assert claim.holding == held("demo", A, claim, ("e.1", 7))
    assert await registry.lookup("demo") == claim.holding
    assert await registry.list() == (claim.holding,)


async def test_nobody_holds_what_nobody_claimed(registry: Registry) -> None:
    assert await registry.lookup("demo") is None
    assert await registry.list() == ()


async def test_the_same_holder_adds_its_links_in_one_epoch(registry: Registry) -> None:
    first = await registry.claim("demo", A, "e.1", 7, takeover=False)
    second = await registry.claim("demo", A, "e.2", 8, takeover=False)
    assert second.epoch == first.epoch
    assert second.previous is None
    assert await registry.lookup("demo") == held("demo", A, first, ("e.1", 7), ("e.2", 8))


async def test_a_claim_made_twice_is_one(registry: Registry) -> None:
    first = await registry.claim("demo", A, "e.1", 7, takeover=False)
    assert await registry.claim("demo", A, "e.1", 7, takeover=True) == first


async def test_who_was_superseded_takes_nothing_over(registry: Registry) -> None:
    first = await registry.claim("demo", A, "e.1", 7, takeover=False)
    second = await registry.claim("demo", B, "e.2", 1, takeover=True, epoch=first.epoch)
    with pytest.raises(NameTaken) as caught:
        await registry.claim("demo", A, "e.3", 2, takeover=True, epoch=first.epoch)
    assert caught.value.holding == second.holding
    assert not caught.value.holding.not_after(first.epoch)
    third = await registry.claim("demo", A, "e.3", 2, takeover=True, epoch=second.epoch)
    assert third.previous == second.holding


async def test_who_was_superseded_may_have_a_free_name(registry: Registry) -> None:
    first = await registry.claim("demo", A, "e.1", 7, takeover=False)
    await registry.claim("demo", B, "e.2", 1, takeover=True)
    await registry.release_link("e.2")
    assert (await registry.claim("demo", A, "e.3", 2, takeover=True, epoch=first.epoch)).previous is None


@pytest.mark.parametrize("newer_first", [True, False])
async def test_an_epoch_counts_where_the_registry_has_forgotten_it(registry: Registry, newer_first: bool) -> None:
    """After a restart both come back, in any order: the one that had the name last has it in the end."""
    if newer_first:
        await registry.claim("demo", B, "e.2", 1, takeover=True, epoch=58)
        with pytest.raises(NameTaken):
            await registry.claim("demo", A, "e.1", 7, takeover=True, epoch=57)
    else:
        await registry.claim("demo", A, "e.1", 7, takeover=True, epoch=57)
        await registry.claim("demo", B, "e.2", 1, takeover=True, epoch=58)
    holding = await registry.lookup("demo")
    assert holding is not None
    assert holding.holder == B
    assert holding.epoch > 58


async def test_an_epoch_out_of_the_air_leaves_room_for_others(registry: Registry) -> None:
    await registry.claim("demo", A, "e.1", 7, takeover=True, epoch=2**53)
    assert (await registry.claim("other", A, "e.1", 8, takeover=True)).epoch < 2**53


async def test_another_instance_needs_takeover(registry: Registry) -> None:
    first = await registry.claim("demo", A, "e.1", 7, takeover=False)
    with pytest.raises(NameTaken) as caught:
        await registry.claim("demo", B, "e.2", 1, takeover=False)
    assert caught.value.holding == first.holding
    second = await registry.claim("demo", B, "e.2", 1, takeover=True)
    assert second.previous == first.holding
    assert second.epoch > first.epoch
    assert await registry.lookup("demo") == held("demo", B, second, ("e.2", 1))


@pytest.mark.parametrize("takeover", [False, True])
async def test_another_owner_is_always_refused(registry: Registry, takeover: bool) -> None:
    first = await registry.claim("demo", A, "e.1", 7, takeover=False)
    with pytest.raises(NameTaken):
        await registry.claim("demo", STRANGER, "e.2", 1, takeover=takeover)
    assert await registry.lookup("demo") == first.holding


async def test_epochs_grow_across_holdings(registry: Registry) -> None:
    epochs = []
    for holder in (A, B, STRANGER, A):
        epochs.append((await registry.claim("demo", holder, "e.1", 1, takeover=False)).epoch)
        await registry.release("demo", "e.1")
    assert epochs == sorted(set(epochs))


async def test_one_of_a_hundred_wins(registry: Registry) -> None:
    won, lost = list[int](), list[int]()

    async def contend(number: int) -> None:
        try:
            await registry.claim("demo", Holder("ann", f"{number:032x}"), f"e.{number}", 1, takeover=False)
            won.append(number)
        except NameTaken:
            lost.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(contend, number)
    assert len(won) == 1
    assert len(lost) == 99
    holding = await registry.lookup("demo")
    assert holding is not None
    assert holding.holder.instance == f"{won[0]:032x}"


async def test_of_a_hundred_takeovers_each_ends_the_one_before(registry: Registry) -> None:
    claims = list[Claim]()

    async def contend(number: int) -> None:
        claims.append(await registry.claim("demo", Holder("ann", f"{number:032x}"), f"e.{number}", 1, takeover=True))

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(contend, number)
    claims.sort(key=lambda claim: claim.epoch)
    assert [claim.previous for claim in claims[1:]] == [claim.holding for claim in claims[:-1]]
    assert await registry.lookup("demo") == claims[-1].holding


# Releasing


async def test_the_last_release_frees_the_name(registry: Registry) -> None:
    claim = await registry.claim("demo", A, "e.1", 7, takeover=False)
    await registry.claim("demo", A, "e.2", 8, takeover=False)
    await registry.release("demo", "e.1")
    assert await registry.lookup("demo") == held("demo", A, claim, ("e.2", 8))
    await registry.release("demo", "e.2")
    assert await registry.lookup("demo") is None
    await registry.claim("demo", STRANGER, "e.3", 1, takeover=False)


async def test_a_release_by_handle_leaves_the_links_other_place(registry: Registry) -> None:
    claim = await registry.claim("demo", A, "e.1", 7, takeover=False)
    await registry.claim("demo", A, "e.1", 8, takeover=False)
    await registry.release("demo", "e.1", 7)
    assert await registry.lookup("demo") == held("demo", A, claim, ("e.1", 8))
    assert await registry.release_link("e.1") == {"demo"}


async def test_releasing_what_is_not_held_does_nothing(registry: Registry) -> None:
    claim = await registry.claim("demo", A, "e.1", 7, takeover=False)
    await registry.release("demo", "e.2")
    await registry.release("demo", "e.1", 8)
    await registry.release("other", "e.1")
    assert await registry.release_link("e.2") == frozenset()
    assert await registry.lookup("demo") == claim.holding


async def test_a_link_releases_all_its_names(registry: Registry) -> None:
    await registry.claim("one", A, "e.1", 1, takeover=False)
    await registry.claim("two", A, "e.1", 2, takeover=False)
    await registry.claim("two", A, "e.2", 1, takeover=False)
    assert await registry.release_link("e.1") == {"one", "two"}
    assert [holding.name for holding in await registry.list()] == ["two"]
    assert await registry.release_link("e.1") == frozenset()


async def test_who_was_replaced_cannot_release(registry: Registry) -> None:
    await registry.claim("demo", A, "e.1", 7, takeover=False)
    claim = await registry.claim("demo", B, "e.2", 1, takeover=True)
    await registry.release("demo", "e.1")
    assert await registry.release_link("e.1") == frozenset()
    assert await registry.lookup("demo") == claim.holding


# Leases


@pytest.mark.seconds(LEASE * 5)
async def test_a_lease_ends_unless_it_is_renewed(registry: Registry, autojump_clock: MockClock) -> None:
    await registry.claim("kept", A, "e.1", 1, takeover=False)
    await registry.claim("lost", A, "e.2", 1, takeover=False)
    await trio.sleep(LEASE * 0.75)
    assert await registry.renew(["e.1", "e.9"]) == {"kept"}
    await trio.sleep(LEASE * 0.5)
    assert await registry.lookup("lost") is None
    assert await registry.lookup("kept") is not None
    assert await registry.renew(["e.1", "e.2"]) == {"kept"}
    await trio.sleep(LEASE * 1.01)
    assert await registry.list() == ()


@pytest.mark.seconds(LEASE * 5)
async def test_a_lease_ends_for_each_link_alone(registry: Registry, autojump_clock: MockClock) -> None:
    claim = await registry.claim("demo", A, "e.1", 1, takeover=False)
    await registry.claim("demo", A, "e.2", 1, takeover=False)
    await trio.sleep(LEASE * 0.75)
    await registry.renew(["e.2"])
    await trio.sleep(LEASE * 0.5)
    assert await registry.lookup("demo") == held("demo", A, claim, ("e.2", 1))


@pytest.mark.seconds(LEASE * 5)
async def test_a_name_whose_lease_ended_is_free(registry: Registry, autojump_clock: MockClock) -> None:
    first = await registry.claim("demo", A, "e.1", 1, takeover=False)
    await trio.sleep(LEASE * 1.01)
    second = await registry.claim("demo", STRANGER, "e.2", 1, takeover=False)
    assert second.previous is None
    assert second.epoch > first.epoch
    assert await registry.renew(["e.1"]) == frozenset()


async def test_who_was_replaced_renews_nothing(registry: Registry) -> None:
    await registry.claim("demo", A, "e.1", 7, takeover=False)
    await registry.claim("demo", B, "e.2", 1, takeover=True)
    assert await registry.renew(["e.1"]) == frozenset()
    assert await registry.renew(["e.2"]) == {"demo"}


# Watching


async def test_a_watch_begins_with_what_is_held(registry: Registry) -> None:
    claim = await registry.claim("demo", A, "e.1", 1, takeover=False)
    with registry.watch() as changes:
        assert await take(changes) == Change("demo", claim.holding, None)
        await nothing_more(changes)


async def test_a_watch_tells_of_each_change(registry: Registry) -> None:
    with registry.watch() as changes:
        one = await registry.claim("demo", A, "e.1", 1, takeover=False)
        assert await take(changes) == Change("demo", one.holding, None)
        two = await registry.claim("demo", A, "e.2", 1, takeover=False)
        assert await take(changes) == Change("demo", two.holding, one.holding)
        three = await registry.claim("demo", B, "e.3", 1, takeover=True)
        assert await take(changes) == Change("demo", three.holding, two.holding)
        await registry.release("demo", "e.3")
        assert await take(changes) == Change("demo", None, three.holding)
        await nothing_more(changes)


async def test_a_waiting_watch_is_woken(registry: Registry) -> None:
    told = list[Change]()

    async def wait(changes: Watch) -> None:
        told.append(await anext(changes))

    with registry.watch() as changes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, changes)
            await trio.testing.wait_all_tasks_blocked()
            assert told == []
            claim = await registry.claim("demo", A, "e.1", 1, takeover=False)
    assert told == [Change("demo", claim.holding, None)]


async def test_a_slow_watch_finds_changes_folded_by_name(registry: Registry) -> None:
    with registry.watch() as changes:
        first = await registry.claim("demo", A, "e.1", 1, takeover=False)
        assert await take(changes) == Change("demo", first.holding, None)
        for number in range(50):
            holder = Holder("ann", f"{number:032x}")
            last = await registry.claim("demo", holder, f"f.{number}", 1, takeover=True)
        assert await take(changes) == Change("demo", last.holding, first.holding)
        await nothing_more(changes)


async def test_what_came_and_went_unseen_is_no_news(registry: Registry) -> None:
    seen = await registry.claim("seen", A, "e.1", 1, takeover=False)
    with registry.watch() as changes:
        assert (await take(changes)).holding == seen.holding
        await registry.claim("demo", A, "e.1", 2, takeover=False)
        await registry.release("demo", "e.1")
        await registry.claim("seen", A, "e.2", 1, takeover=False)
        await registry.release("seen", "e.2")
        await nothing_more(changes)


@pytest.mark.seconds(LEASE * 5)
async def test_a_watch_hears_of_a_lease_that_ended_by_itself(registry: Registry, autojump_clock: MockClock) -> None:
    claim = await registry.claim("demo", A, "e.1", 1, takeover=False)
    with registry.watch() as changes:
        await take(changes)
        began = trio.current_time()
        change = await anext(changes)
    assert change == Change("demo", None, claim.holding)
    assert trio.current_time() - began == pytest.approx(LEASE, abs=1)


@pytest.mark.seconds(LEASE * 5)
async def test_a_renewed_lease_is_no_news(registry: Registry, autojump_clock: MockClock) -> None:
    await registry.claim("demo", A, "e.1", 1, takeover=False)

    async def renew() -> None:
        for _ in range(6):
            await trio.sleep(LEASE / 3)
            await registry.renew(["e.1"])

    with registry.watch() as changes:
        await take(changes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renew)
            with trio.move_on_after(LEASE * 2.2) as scope:
                await anext(changes)
    assert scope.cancelled_caught


async def test_watches_do_not_hinder_each_other(registry: Registry) -> None:
    with registry.watch() as slow, registry.watch() as quick:
        one = await registry.claim("demo", A, "e.1", 1, takeover=False)
        assert await take(quick) == Change("demo", one.holding, None)
        two = await registry.claim("demo", B, "e.2", 1, takeover=True)
        assert await take(quick) == Change("demo", two.holding, one.holding)
        assert await take(slow) == Change("demo", two.holding, None)


async def test_a_closed_watch_ends_also_for_who_waits(registry: Registry) -> None:
    ended = trio.Event()

    async def follow(changes: Watch) -> None:
        async for change in changes:
            pytest.fail(f"unexpected: {change}")
        ended.set()

    async with trio.open_nursery() as nursery:
        changes = registry.watch()
        nursery.start_soon(follow, changes)
        await trio.testing.wait_all_tasks_blocked()
        changes.close()
        changes.close()
        await ended.wait()
    await registry.claim("demo", A, "e.1", 1, takeover=False)
    with pytest.raises(StopAsyncIteration):
        await anext(changes)


async def test_a_cancelled_wait_loses_no_change(registry: Registry) -> None:
    with registry.watch() as changes:
        await nothing_more(changes)
        claim = await registry.claim("demo", A, "e.1", 1, takeover=False)
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(changes)
        assert await take(changes) == Change("demo", claim.holding, None)


# MemoryRegistry's own


async def test_a_watch_that_nobody_reads_is_bounded_by_the_names() -> None:
    registry = MemoryRegistry()
    with registry.watch() as changes:
        for number in range(500):
            name = f"n{number % 10}"
            await registry.claim(name, Holder("ann", f"{number:032x}"), f"e.{number}", 1, takeover=True)
        assert len(changes) == 10
        for number in range(500):
            await registry.release_link(f"e.{number}")
        assert len(changes) == 0


async def test_nothing_is_remembered_of_what_is_gone() -> None:
    registry = MemoryRegistry()
    for number in range(50):
        await registry.claim(f"n{number}", A, f"e.{number}", 1, takeover=False)
        await registry.claim(f"n{number}", B, f"f.{number}", 1, takeover=True)
        await registry.release_link(f"f.{number}")
    assert registry._entries == {}
    assert registry._names_of == {}
