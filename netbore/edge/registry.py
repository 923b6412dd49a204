"""Who holds which name.

Theory of operation. A name has at most one *holder*, an (owner, instance) pair, and the holder a set of Links that serve it,
each by its own handle. A holding is a lease: each Link's place in it ends when it was not renewed for the lease's time,
and the holding ends with its last place, so that an Edge that died holds nothing for ever. Each new holding of a name has
an *epoch* above all earlier ones: who acts on an old one can be told so.

Watchers are told of what changed, by name. A watcher that is slow finds the changes of a name folded into one, from what it
saw last to what is now: at most one entry waits for each name that is held or that it has seen held.

`MemoryRegistry` serves one process. It has no task: what has expired goes when anybody asks or, when nobody does, as the watchers
wake at the earliest end. tests/edge/test_registry.py has the suite that every implementation passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import TracebackType
from typing import Final, Protocol

import attrs
import trio

#: How long a place lasts without `renew`. Renew at a third of it.
LEASE_SECONDS: Final = 30.0
#: An epoch that a claimer tells of raises later ones up to here only: they must stay numbers that the wire can carry.
FAR_EPOCH: Final = 2**52


@attrs.frozen
class Holder:
    """One Agent process of one owner."""

    owner: str
    instance: str


@attrs.frozen
class Holding:
    """A name that is held: by whom, in which epoch, over which (link id, handle) pairs."""

    name: str
    holder: Holder
    epoch: int
    links: frozenset[tuple[str, int]]

    def not_after(self, epoch: int | None) -> bool:
        """Whether who held the name in `epoch` (None: who does not say) was not superseded by this holding."""
        return epoch is None or self.epoch <= epoch


@attrs.frozen
class Claim:
    """A claim that was granted. `previous` is the holding of another holder that it ended, if there was one."""

    holding: Holding
    previous: Holding | None = None

    @property
    def epoch(self) -> int:
        """Fences what is done by an earlier holder."""
        return self.holding.epoch


@attrs.frozen
class Change:
    """A name's holding became `holding` (None: nobody holds it now); the watcher last saw `previous`."""

    name: str
    holding: Holding | None
    previous: Holding | None


class NameTaken(Exception):
    """Another holds the name; `holding` says who."""

    def __init__(self, holding: Holding) -> None:
        super().__init__(holding.name)
        self.holding = holding


class Watch(Protocol):
    """An async iterator of changes, to be used by one task. It is registered from its making until its `close`."""

    def __enter__(self) -> Watch: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None: ...

    def __aiter__(self) -> Watch: ...

    async def __anext__(self) -> Change:
        """Wait for the next change. A checkpoint; cancelling it loses none. StopAsyncIteration once it is closed."""
        ...

    def close(self) -> None:
        """End it, also for a task that waits in it. Idempotent."""
        ...


class Registry(Protocol):
    """All methods with `async` are checkpoints. Cancelled, a claim may have been granted: release the Link then."""

    async def claim(
        self, name: str, holder: Holder, link: str, handle: int, *, takeover: bool, epoch: int | None = None
    ) -> Claim:
        """Hold `name` over (link, handle). The same holder adds to its set. Raises NameTaken.

        A name held by another instance is taken from it with `takeover` only, one held by another owner never. `epoch` is that
        in which the claimer held the name last, if it did: then it is not taken from a holding of a later epoch, by which the
        claimer was superseded; and the new epoch is above it even where this Registry has forgotten it.
        """
        ...

    async def renew(self, links: Collection[str]) -> frozenset[str]:
        """Renew the places of these Links. Returns the names that they still hold: one that is missing was lost."""
        ...

    async def release(self, name: str, link: str, handle: int | None = None) -> None:
        """Give up the place of `link` (None: whatever its handle) in `name`. Idempotent."""
        ...

    async def release_link(self, link: str) -> frozenset[str]:
        """Give up all places of `link`; returns their names. Idempotent."""
        ...

    async def lookup(self, name: str) -> Holding | None:
        """Who holds `name` now."""
        ...

    async def list(self) -> tuple[Holding, ...]:
        """All holdings, by name."""
        ...

    def watch(self) -> Watch:
        """Begins with one change for each name that is held now."""
        ...


@attrs.define
class _Entry:
    """A holding as it is kept, with the end of each of its places."""

    holding: Holding
    ends: dict[tuple[str, int], float]


class MemoryRegistry:
    """The Registry of one process."""

    def __init__(self, clock: Callable[[], float] = trio.current_time, lease_seconds: float = LEASE_SECONDS) -> None:
        """`clock` must go as Trio's does."""
        self._clock = clock
        self._lease = lease_seconds
        self._entries: dict[str, _Entry] = {}
        self._names_of: dict[str, set[str]] = {}
        self._epoch = 0
        self._earliest = float("inf")  # no place ends before this
        self._watches: set[MemoryWatch] = set()

    async def claim(
        self, name: str, holder: Holder, link: str, handle: int, *, takeover: bool, epoch: int | None = None
    ) -> Claim:
        await trio.lowlevel.checkpoint()
        now = self._expire()
        entry = self._entries.get(name)
        if entry is not None and entry.holding.holder == holder:
            return Claim(self._place(entry, link, handle, now))
        if entry is not None and not (takeover and entry.holding.holder.owner == holder.owner and entry.holding.not_after(epoch)):
            raise NameTaken(entry.holding)
        self._epoch = max(self._epoch, min(epoch or 0, FAR_EPOCH)) + 1
        fresh = _Entry(Holding(name, holder, self._epoch, frozenset()), {})
        previous = entry.holding if entry is not None else None
        if previous is not None:
            self._forget_links(name, {old for old, _ in previous.links})
        self._entries[name] = fresh
        return Claim(self._place(fresh, link, handle, now, previous), previous)

    async def renew(self, links: Collection[str]) -> frozenset[str]:
        await trio.lowlevel.checkpoint()
        end = self._expire() + self._lease
        held: set[str] = set()
        for link in links:
            for name in self._names_of.get(link, ()):
                held.add(name)
                ends = self._entries[name].ends
                for place in ends:
                    if place[0] == link:
                        ends[place] = end
        return frozenset(held)

    async def release(self, name: str, link: str, handle: int | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self._expire()
        self._drop(name, lambda place: place[0] == link and handle in (None, place[1]))

    async def release_link(self, link: str) -> frozenset[str]:
        await trio.lowlevel.checkpoint()
        self._expire()
        names = frozenset(self._names_of.get(link, ()))
        for name in names:
            self._drop(name, lambda place: place[0] == link)
        return names

    async def lookup(self, name: str) -> Holding | None:
        await trio.lowlevel.checkpoint()
        self._expire()
        entry = self._entries.get(name)
        return entry.holding if entry is not None else None

    async def list(self) -> tuple[Holding, ...]:
        await trio.lowlevel.checkpoint()
        self._expire()
        return tuple(self._entries[name].holding for name in sorted(self._entries))

    def watch(self) -> MemoryWatch:
        self._expire()
        watch = MemoryWatch(self)
        self._watches.add(watch)
        return watch

    # For MemoryWatch

    def present(self, name: str) -> Holding | None:
        """The holding as it stands, without a look at the clock."""
        entry = self._entries.get(name)
        return entry.holding if entry is not None else None

    def names(self) -> tuple[str, ...]:
        """All names that are held."""
        return tuple(self._entries)

    def expire(self) -> float:
        """Drop what has ended; returns how many seconds nothing more can end (inf: nothing is held)."""
        now = self._expire()
        return self._earliest - now

    def leave(self, watch: MemoryWatch) -> None:
        """The watch is told nothing more."""
        self._watches.discard(watch)

    # Inside

    def _place(self, entry: _Entry, link: str, handle: int, now: float, previous: Holding | None = None) -> Holding:
        before = previous or (entry.holding if entry.ends else None)
        name = entry.holding.name
        entry.ends[link, handle] = now + self._lease
        self._earliest = min(self._earliest, now + self._lease)
        self._names_of.setdefault(link, set()).add(name)
        entry.holding = attrs.evolve(entry.holding, links=frozenset(entry.ends))
        self._tell(name, before)
        return entry.holding

    def _drop(self, name: str, gone: Callable[[tuple[str, int]], bool]) -> None:
        entry = self._entries.get(name)
        if entry is None:
            return
        before = entry.holding
        left = {place: end for place, end in entry.ends.items() if not gone(place)}
        if len(left) == len(entry.ends):
            return
        entry.ends = left
        entry.holding = attrs.evolve(before, links=frozenset(left))
        self._forget_links(name, {link for link, _ in before.links} - {link for link, _ in left})
        if not left:
            del self._entries[name]
        self._tell(name, before)

    def _forget_links(self, name: str, links: set[str]) -> None:
        for link in links:
            names = self._names_of[link]
            names.discard(name)
            if not names:
                del self._names_of[link]

    def _expire(self) -> float:
        """Drop the places whose time is over. `_earliest` may lie before the true one, since renewing does not move it."""
        now = self._clock()
        if now < self._earliest:
            return now
        ended = [(name, place) for name, entry in self._entries.items() for place, end in entry.ends.items() if end <= now]
        for name, place in ended:
            self._drop(name, place.__eq__)
        ends = (end for entry in self._entries.values() for end in entry.ends.values())
        self._earliest = min(ends, default=float("inf"))
        return now

    def _tell(self, name: str, before: Holding | None) -> None:
        for watch in self._watches:
            watch.note(name, before)


class MemoryWatch:
    """See `Watch`."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self._registry = registry
        #: Names with news, each with what was seen of it last.
        self._waiting: dict[str, Holding | None] = dict.fromkeys(registry.names())
        self._changed = trio.Event()
        self._closed = False

    def __enter__(self) -> MemoryWatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __aiter__(self) -> MemoryWatch:
        return self

    async def __anext__(self) -> Change:
        await trio.lowlevel.checkpoint()
        while not self._closed:
            quiet = self._registry.expire()
            if self._waiting:
                name = next(iter(self._waiting))
                return Change(name, self._registry.present(name), self._waiting.pop(name))
            with trio.move_on_after(quiet):
                await self._changed.wait()
            if self._changed.is_set():
                self._changed = trio.Event()
        raise StopAsyncIteration

    def close(self) -> None:
        self._closed = True
        self._waiting.clear()
        self._registry.leave(self)
        self._changed.set()

    def note(self, name: str, before: Holding | None) -> None:
        """The name's holding was `before` until now."""
        seen = self._waiting.setdefault(name, before)
        if seen == self._registry.present(name):
            del self._waiting[name]  # as it was when it was last seen: no news
        else:
            self._changed.set()

    def __len__(self) -> int:
        """How many changes wait."""
        return len(self._waiting)
