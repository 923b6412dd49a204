"""The Tunnels service: who gets which name, what is refused with which code, and what is remembered."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netbore.edge.authority import Grant
from netbore.edge.hub import Hub, TunnelBound, TunnelUnbound
from netbore.edge.records import Records, host_of
from netbore.edge.registry import Claim, Holder, Holding, MemoryRegistry
from netbore.edge.tokens import Ephemerals, SigningKeys, verify_recreate
from netbore.edge.tunnels import (
    BindRequest,
    Bound,
    Created,
    Minting,
    PublicAddress,
    Refused,
    Tunnel,
    TunnelLimits,
    Tunnels,
)
from netbore.proto.wire import Code

NOW = 1_800_000_000.0
KEYS = SigningKeys({"k": bytes(32)}, "k")
ONE, TWO = "1" * 32, "2" * 32
SERVE = frozenset({"serve"})

OPERATOR = Grant("operator", None, frozenset({"serve", "manage"}), None, "operator")


def own(name: str, *, owner: str = "operator", tunnel: str | None = None, until: float | None = None) -> Grant:
    return Grant(owner, frozenset({name}), SERVE, until, "recreate", tunnel)


class Setting:
    """The service over a Registry in memory, with a clock to turn."""

    def __init__(self, registry: MemoryRegistry | None = None, limits: TunnelLimits | None = None, seed: int = 1) -> None:
        self.now = NOW
        self.registry = registry or MemoryRegistry(lambda: 0.0)
        self.hub = Hub()
        chance = random.Random(seed)
        self.ephemerals = Ephemerals(chance.randbytes)
        minting = Minting(lambda: KEYS, self.ephemerals, chance.randbytes, chance.randrange, lambda: self.now)
        address = PublicAddress("tunnel.localhost", 8443)
        self.tunnels = Tunnels(self.registry, address, minting, limits=limits, hub=self.hub)

    async def bind(
        self,
        name: str | None = "demo",
        *,
        grants: Sequence[Grant] = (OPERATOR,),
        instance: str = ONE,
        link: str = "e.1",
        handle: int = 1,
        **members: object,
    ) -> Bound:
        request = BindRequest(handle=handle, name=name, **members)  # type: ignore[arg-type]
        return await self.tunnels.bind(list(grants), instance, link, request)

    async def refused(self, code: Code, word: str, name: str | None = "demo", **options: object) -> None:
        with pytest.raises(Refused) as caught:
            await self.bind(name, **options)  # type: ignore[arg-type]
        assert caught.value.code == code
        assert word in caught.value.text

    def state(self, bound: Bound | Created) -> str:
        found = self.tunnels.get(bound.tunnel.id)
        return found.state if found is not None else "gone"


@pytest.fixture
def setting() -> Setting:
    return Setting()


# Binding


async def test_a_bind_answers_all_that_bound_says(setting: Setting) -> None:
    bound = await setting.bind(target="http://127.0.0.1:8000/", host_header="target", pool=False)
    assert bound.hostname == "demo.tunnel.localhost"
    assert bound.public_url == "https://demo.tunnel.localhost:8443"
    assert bound.claim.holding == Holding("demo", Holder("operator", ONE), bound.claim.epoch, frozenset({("e.1", 1)}))
    tunnel = bound.tunnel
    assert tunnel == Tunnel(
        id=tunnel.id,
        name="demo",
        hostname="demo.tunnel.localhost",
        owner="operator",
        kind="http",
        host_header="target",
        target="http://127.0.0.1:8000/",
        pool=False,
        created_at=NOW,
        state="online",
    )
    assert tunnel.host == b"127.0.0.1:8000"
    claims = verify_recreate(KEYS, bound.recreate_token)
    assert claims is not None
    assert (claims.name, claims.owner, claims.tunnel) == ("demo", "operator", tunnel.id)
    assert setting.tunnels.get(tunnel.id) == tunnel
    assert setting.tunnels.served_by("e.1", 1) == tunnel
    assert await setting.registry.lookup("demo") == bound.claim.holding


async def test_the_edge_chooses_a_name(setting: Setting) -> None:
    names = {(await setting.bind(None, handle=handle)).tunnel.name for handle in range(1, 50)}
    assert len(names) == 49


async def test_without_a_name_a_token_gives_its_own(setting: Setting) -> None:
    bound = await setting.bind(None, grants=[OPERATOR, own("mine")])
    assert bound.tunnel.name == "mine"


async def test_a_recreate_token_brings_back_the_tunnels_id(setting: Setting) -> None:
    first = await setting.bind()
    restarted = Setting(seed=2)
    again = await restarted.bind(grants=[own("demo", tunnel=first.tunnel.id)], instance=TWO)
    assert again.tunnel.id == first.tunnel.id


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ({"kind": "tcp"}, "only http"),
        ({"mode": "later"}, "mode"),
        ({"handle": 0}, "handle"),
        ({"handle": 2**32}, "handle"),
        ({"host_header": ""}, "host_header"),
        ({"host_header": "a b"}, "host_header"),
        ({"host_header": "a\r\nX: y"}, "host_header"),
        ({"host_header": "example.com\n"}, "host_header"),
        ({"host_header": "x" * 256}, "host_header"),
        ({"host_header": "target"}, "host_header"),
        ({"host_header": "target", "target": "http:///path"}, "host_header"),
        ({"target": "x" * 256}, "target"),
        ({"target": "http://user:password@host/"}, "target"),
        ({"target": "a b"}, "target"),
        ({"target": "host/\x1b[2J"}, "target"),
    ],
)
async def test_what_is_not_supported(setting: Setting, members: dict[str, object], word: str) -> None:
    await setting.refused(Code.UNSUPPORTED, word, **members)
    assert setting.tunnels.list() == ()


@pytest.mark.parametrize(
    ("target", "host_header", "host"),
    [
        ("127.0.0.1:8000", "keep", None),
        ("127.0.0.1:8000", "target", b"127.0.0.1:8000"),
        ("8000", "target", b"localhost:8000"),
        ("https://example.com/a?b#c", "target", b"example.com"),
        ("http://[::1]:8000", "target", b"[::1]:8000"),
        ("", "other.example:81", b"other.example:81"),
    ],
)
async def test_the_host_header(setting: Setting, target: str, host_header: str, host: bytes | None) -> None:
    assert (await setting.bind(target=target, host_header=host_header)).tunnel.host == host


def test_no_host_in_what_is_no_target() -> None:
    assert host_of("user@host") == ""


async def test_what_is_no_name_and_what_nobody_may_take(setting: Setting) -> None:
    await setting.refused(Code.NAME_INVALID, "hyphen", "De_mo")
    await setting.refused(Code.NAME_INVALID, "xn--", "xn--a", grants=[own("xn--a")])
    await setting.refused(Code.NAME_FORBIDDEN, "nobody may take", "www")
    assert (await setting.bind("www", grants=[own("www")])).tunnel.name == "www"


async def test_a_grant_must_allow_the_name_and_the_deed(setting: Setting) -> None:
    await setting.refused(Code.NAME_FORBIDDEN, "allows the name demo", grants=[])
    await setting.refused(Code.NAME_FORBIDDEN, "allows the name demo", grants=[own("other")])
    await setting.refused(Code.NAME_FORBIDDEN, "allows the name demo", grants=[own("demo", until=NOW)])
    await setting.refused(Code.NAME_FORBIDDEN, "any name", None, grants=[])
    manager = attrs.evolve(OPERATOR, verbs=frozenset({"manage"}))
    await setting.refused(Code.NAME_FORBIDDEN, "allows the name demo", grants=[manager])
    several = attrs.evolve(OPERATOR, names=frozenset({"a", "b"}))
    await setting.refused(Code.NAME_FORBIDDEN, "say which", None, grants=[several])
    assert (await setting.bind("a", grants=[several])).tunnel.name == "a"
    assert setting.tunnels.list()[0].name == "a"


async def test_any_one_of_the_grants_is_enough(setting: Setting) -> None:
    assert (await setting.bind(grants=[own("other"), own("demo")])).tunnel.name == "demo"


# Takeover


async def test_a_live_holders_name_needs_its_token(setting: Setting) -> None:
    first = await setting.bind()
    await setting.refused(Code.NAME_TAKEN, "recreate token is needed", instance=TWO, link="e.2")
    assert setting.state(first) == "online"
    second = await setting.bind(grants=[OPERATOR, own("demo")], instance=TWO, link="e.2", handle=9)
    assert second.claim.previous == first.claim.holding
    assert second.tunnel.id == first.tunnel.id
    assert setting.tunnels.served_by("e.1", 1) is None
    assert setting.tunnels.served_by("e.2", 9) == second.tunnel


async def test_who_was_replaced_releases_nothing(setting: Setting) -> None:
    await setting.bind()
    second = await setting.bind(grants=[own("demo")], instance=TWO, link="e.2")
    await setting.tunnels.release("e.1", 1)
    await setting.tunnels.release_link("e.1")
    assert setting.state(second) == "online"
    assert await setting.registry.lookup("demo") == second.claim.holding


async def test_the_same_instance_adds_links(setting: Setting) -> None:
    first = await setting.bind()
    second = await setting.bind(link="e.2")
    assert second.claim.previous is None
    assert second.claim.epoch == first.claim.epoch
    await setting.tunnels.release_link("e.1")
    assert setting.state(first) == "online"
    await setting.tunnels.release_link("e.2")
    assert setting.state(first) == "offline"


async def test_a_name_whose_holder_went_is_its_owners(setting: Setting) -> None:
    first = await setting.bind()
    await setting.tunnels.release_link("e.1")
    stranger = attrs.evolve(OPERATOR, owner="stranger")
    await setting.refused(Code.NAME_TAKEN, "another owner", grants=[stranger], link="e.2")
    await setting.refused(Code.NAME_TAKEN, "another owner", grants=[own("demo", owner="stranger")], link="e.2")
    second = await setting.bind(instance=TWO, link="e.3")
    assert second.tunnel.id == first.tunnel.id


async def test_another_edges_holder_is_respected(setting: Setting) -> None:
    await setting.registry.claim("demo", Holder("stranger", ONE), "f.1", 1, takeover=False)
    await setting.refused(Code.NAME_TAKEN, "another owner", grants=[own("demo")])
    await setting.registry.release_link("f.1")
    await setting.registry.claim("demo", Holder("operator", ONE), "f.1", 1, takeover=False)
    await setting.refused(Code.NAME_TAKEN, "recreate token is needed", instance=TWO)
    assert setting.tunnels.list() == ()
    with pytest.raises(Refused, match="in use"):
        await setting.tunnels.create("operator", name="demo")
    assert setting.tunnels.list() == ()
    assert len(setting.ephemerals) == 0


# Handles and limits


async def test_a_handle_serves_one_tunnel(setting: Setting) -> None:
    await setting.bind("one")
    await setting.refused(Code.HANDLE_TAKEN, "handle", "two")
    await setting.tunnels.release("e.1", 1)
    await setting.bind("two")


async def test_limits_of_a_link_and_an_owner() -> None:
    setting = Setting(limits=TunnelLimits(per_owner=3, per_link=2))
    await setting.bind("one", handle=1)
    await setting.bind("two", handle=2)
    await setting.refused(Code.TUNNEL_LIMIT, "a Link serves at most 2", "three", handle=3)
    await setting.bind("three", link="e.2")
    await setting.refused(Code.TUNNEL_LIMIT, "an owner has at most 3", "four", link="e.3")
    await setting.bind("three", link="e.3")  # another Link for the same one counts once
    await setting.bind("theirs", grants=[attrs.evolve(OPERATOR, owner="stranger")], instance=TWO, link="e.4")
    with pytest.raises(Refused, match="at most 3"):
        await setting.tunnels.create("operator", name="four")
    assert {tunnel.name for tunnel in setting.tunnels.list("operator")} == {"one", "two", "three"}
    assert [tunnel.name for tunnel in setting.tunnels.list("stranger")] == ["theirs"]
    await setting.tunnels.release("e.1", 1)
    await setting.bind("four", link="e.5")


async def test_two_binds_at_once_cannot_both_have_the_last_place() -> None:
    setting = Setting(limits=TunnelLimits(per_owner=1))
    codes = list[Code]()

    async def bind(name: str) -> None:
        try:
            await setting.bind(name, link=f"e.{name}")
        except Refused as refused:
            codes.append(refused.code)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(bind, f"n{number}")
    assert codes == [Code.TUNNEL_LIMIT] * 9
    assert len(setting.tunnels.list()) == 1


async def test_the_oldest_offline_tunnels_are_forgotten() -> None:
    setting = Setting(limits=TunnelLimits(offline=2))
    for name in ("one", "two", "three"):
        await setting.bind(name)
        await setting.tunnels.release("e.1", 1)
        setting.now += 1
    assert [tunnel.name for tunnel in setting.tunnels.list()] == ["two", "three"]


async def test_an_empty_link_costs_nothing_to_release(setting: Setting) -> None:
    await setting.tunnels.release("e.9", 1)
    await setting.tunnels.release_link("e.9")
    assert setting.tunnels.list() == ()


# Binds that do not come to their end


class SlowRegistry(MemoryRegistry):
    """Grants a claim some time before it says so, as one behind a network does."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)
        self.answer = trio.Event()

    async def claim(
        self, name: str, holder: Holder, link: str, handle: int, *, takeover: bool, epoch: int | None = None
    ) -> Claim:
        claim = await super().claim(name, holder, link, handle, takeover=takeover, epoch=epoch)
        if link == "e.slow":
            await self.answer.wait()
        return claim


async def test_a_cancelled_bind_leaves_nothing_once_its_link_is_released() -> None:
    setting = Setting(SlowRegistry(), TunnelLimits(per_owner=1))
    with trio.move_on_after(0.01):
        await setting.bind(link="e.slow")
    assert setting.tunnels.list() == ()
    assert await setting.registry.lookup("demo") is not None  # the Registry had granted it
    await setting.tunnels.release_link("e.slow")
    assert await setting.registry.lookup("demo") is None
    await setting.bind("other", link="e.2")


async def test_a_bind_that_was_overtaken_before_its_answer_is_refused() -> None:
    registry = SlowRegistry()
    setting = Setting(registry)
    async with trio.open_nursery() as nursery:

        async def slow() -> None:
            await setting.refused(Code.NAME_TAKEN, "taken over", link="e.slow", handle=5)

        nursery.start_soon(slow)
        await trio.testing.wait_all_tasks_blocked()
        quick = await setting.bind(grants=[own("demo")], instance=TWO, link="e.2")
        registry.answer.set()
    assert setting.state(quick) == "online"
    assert await registry.lookup("demo") == quick.claim.holding


async def test_a_bind_whose_tunnel_was_deleted_before_its_answer_is_refused() -> None:
    registry = SlowRegistry()
    setting = Setting(registry)
    created = await setting.tunnels.create("operator", name="demo")
    async with trio.open_nursery() as nursery:

        async def slow() -> None:
            await setting.refused(Code.NAME_TAKEN, "deleted", link="e.slow")

        nursery.start_soon(slow)
        await trio.testing.wait_all_tasks_blocked()
        assert await setting.tunnels.delete(created.tunnel.id)
        registry.answer.set()
    assert setting.tunnels.list() == ()
    assert await registry.list() == ()


async def test_a_random_name_that_another_edge_holds_is_not_taken() -> None:
    name = (await Setting(seed=3).bind(None)).tunnel.name
    setting = Setting(seed=3)
    # The same seed draws the same name first.
    await setting.registry.claim(name, Holder("stranger", TWO), "f.1", 1, takeover=False)
    assert (await setting.bind(None)).tunnel.name != name


async def test_random_names_that_all_are_taken_are_given_up() -> None:
    setting = Setting()
    minting = Minting(lambda: KEYS, setting.ephemerals, bytes, lambda below: 0, lambda: NOW)
    tunnels = Tunnels(setting.registry, setting.tunnels.address, minting)
    only = (await tunnels.bind([OPERATOR], ONE, "e.1", BindRequest(1))).tunnel.name
    for attempt in (tunnels.bind([OPERATOR], ONE, "e.1", BindRequest(2)), tunnels.create("operator")):
        with pytest.raises(Refused, match="no free name"):
            await attempt
    elsewhere = Tunnels(setting.registry, setting.tunnels.address, minting)
    with pytest.raises(Refused, match="no free name"):
        await elsewhere.bind([OPERATOR], TWO, "f.1", BindRequest(1))
    assert [tunnel.name for tunnel in tunnels.list()] == [only]
    assert elsewhere.list() == ()


# Creating, deleting


async def test_too_many_ephemeral_tokens_are_a_limit() -> None:
    setting = Setting()
    chance = random.Random(1)
    few = Minting(lambda: KEYS, Ephemerals(chance.randbytes, most=1), chance.randbytes, chance.randrange, lambda: NOW)
    tunnels = Tunnels(setting.registry, setting.tunnels.address, few)
    await tunnels.create("operator")
    with pytest.raises(Refused) as caught:
        await tunnels.create("operator")
    assert caught.value.code == Code.TUNNEL_LIMIT
    assert len(tunnels.list()) == 1


async def test_a_cancelled_deletion_is_whole_or_nothing(setting: Setting) -> None:
    bound = await setting.bind()
    with trio.CancelScope() as scope:
        scope.cancel()
        await setting.tunnels.delete(bound.tunnel.id)
    assert setting.state(bound) == "online"
    with trio.CancelScope() as scope:
        setting.tunnels.on_deleted.append(lambda *what: scope.cancel())
        await setting.tunnels.delete(bound.tunnel.id)
    assert setting.state(bound) == "gone"
    assert await setting.registry.lookup("demo") is None


async def test_create_then_bind_with_either_token(setting: Setting) -> None:
    created = await setting.tunnels.create("operator", name="demo")
    assert setting.state(created) == "pending"
    assert created.expires_at == NOW + 600
    found = setting.ephemerals.present(created.ephemeral_token, ONE, NOW)
    assert found is not None
    assert (found.name, found.tunnel) == ("demo", created.tunnel.id)
    bound = await setting.bind(grants=[own("demo", tunnel=created.tunnel.id)])
    assert bound.tunnel.id == created.tunnel.id
    await setting.tunnels.release_link("e.1")
    assert setting.state(created) == "offline"


async def test_create_refuses_what_bind_refuses(setting: Setting) -> None:
    for name, code in [("a_b", Code.NAME_INVALID), ("www", Code.NAME_FORBIDDEN)]:
        with pytest.raises(Refused) as caught:
            await setting.tunnels.create("operator", name=name)
        assert caught.value.code == code
    await setting.tunnels.create("operator", name="demo")
    for owner in ("operator", "stranger"):
        with pytest.raises(Refused) as caught:
            await setting.tunnels.create(owner, name="demo")
        assert caught.value.code == Code.NAME_TAKEN


async def test_create_without_a_name(setting: Setting) -> None:
    created = [await setting.tunnels.create("operator") for _ in range(20)]
    assert len({one.tunnel.name for one in created}) == 20


async def test_a_pending_tunnel_does_not_wait_for_ever() -> None:
    setting = Setting(limits=TunnelLimits(per_owner=1))
    created = await setting.tunnels.create("operator", name="demo")
    setting.now += 600
    await setting.tunnels.create("operator", name="other")
    assert setting.state(created) == "offline"


async def test_an_offline_tunnel_may_be_created_again(setting: Setting) -> None:
    bound = await setting.bind()
    await setting.tunnels.release_link("e.1")
    created = await setting.tunnels.create("operator", name="demo")
    assert created.tunnel.id == bound.tunnel.id
    assert created.tunnel.state == "pending"


async def test_deleting_frees_the_name_and_says_who_served_it(setting: Setting) -> None:
    told = list[tuple[Tunnel, Holding | None, bool]]()
    setting.tunnels.on_deleted.append(lambda *what: told.append(what))
    bound = await setting.bind()
    await setting.bind(link="e.2")
    heard = list[object]()
    setting.hub.listen(TunnelUnbound, heard.append)
    holding = await setting.registry.lookup("demo")
    assert await setting.tunnels.delete(bound.tunnel.id, force=True)
    assert not await setting.tunnels.delete(bound.tunnel.id)
    assert [(tunnel.id, last, force) for tunnel, last, force in told] == [(bound.tunnel.id, holding, True)]
    assert await setting.registry.lookup("demo") is None
    assert setting.tunnels.served_by("e.1", 1) is None
    assert heard == [TunnelUnbound(bound.tunnel.id, "demo", link, offline=True) for link in ("e.1", "e.2")]
    await setting.bind(grants=[attrs.evolve(OPERATOR, owner="stranger")], link="e.3", instance=TWO)


async def test_deleting_a_pending_tunnel_ends_its_token(setting: Setting) -> None:
    told = list[Holding | None]()
    setting.tunnels.on_deleted.append(lambda tunnel, holding, force: told.append(holding))
    created = await setting.tunnels.create("operator", name="demo")
    assert await setting.tunnels.delete(created.tunnel.id)
    assert setting.ephemerals.present(created.ephemeral_token, ONE, NOW) is None
    assert told == [None]


# What is shown


async def test_events_of_binding(setting: Setting) -> None:
    heard = list[object]()
    setting.hub.listen_to_all(heard.append)
    bound = await setting.bind()
    await setting.bind(grants=[own("demo")], instance=TWO, link="e.2")
    await setting.tunnels.release("e.2", 1)
    tunnel = bound.tunnel.id
    assert heard == [
        TunnelBound(tunnel, "demo", "operator", "e.1", replaced=False),
        TunnelUnbound(tunnel, "demo", "e.1", offline=False),
        TunnelBound(tunnel, "demo", "operator", "e.2", replaced=True),
        TunnelUnbound(tunnel, "demo", "e.2", offline=True),
    ]


@pytest.mark.parametrize(
    ("scheme", "port", "url"),
    [
        ("https", 443, "https://demo.example.com"),
        ("https", 80, "https://demo.example.com:80"),
        ("http", 80, "http://demo.example.com"),
        ("http", 8080, "http://demo.example.com:8080"),
    ],
)
def test_public_urls(scheme: str, port: int, url: str) -> None:
    assert PublicAddress("example.com", port, scheme).url("demo") == url


async def test_no_repr_shows_a_token(setting: Setting) -> None:
    created = await setting.tunnels.create("operator", name="demo")
    bound = await setting.bind()
    for token in (created.ephemeral_token, created.recreate_token, bound.recreate_token):
        assert token not in repr(created) + repr(bound)


# The records' counting


class Counting(RuleBasedStateMachine):
    """Whatever happens, the records agree with a count from scratch and with their limits."""

    LIMITS = TunnelLimits(per_owner=3, per_link=2, offline=4)
    names = st.sampled_from("abcdefgh")
    places = st.tuples(st.sampled_from(["l1", "l2", "l3"]), st.integers(1, 3))

    def __init__(self) -> None:
        super().__init__()
        self.records = Records(self.LIMITS)
        self.clock = 0.0
        self.codes = set[Code]()

    def known(self, name: str) -> str:
        if name not in self.records.by_name:
            owner = "ann" if name < "e" else "bob"
            self.records.add(Tunnel(name, name, f"{name}.x", owner, "http", "keep", "", True, self.clock))
        return name

    @rule(name=names, place=places)
    def serve(self, name: str, place: tuple[str, int]) -> None:
        if self.records.at(place) is None:
            try:
                assert self.records.place(self.known(name), place).state == "online"
            except Refused as refused:
                self.codes.add(refused.code)

    @rule(place=places)
    def leave(self, place: tuple[str, int]) -> None:
        before = self.records.at(place)
        after = self.records.leave(place)
        assert (before is None) == (after is None)

    @rule(name=names)
    def set_aside(self, name: str) -> None:
        self.clock += 1
        try:
            self.records.set_aside(self.known(name), self.clock + 5)
        except Refused as refused:
            self.codes.add(refused.code)

    @rule()
    def wait(self) -> None:
        self.clock += 3
        self.records.end_all_pending(self.clock)

    @rule(name=names)
    def remove(self, name: str) -> None:
        known = name in self.records.by_name
        assert (self.records.remove(name) is not None) == known
        assert name not in self.records.by_name

    @invariant()
    def counts(self) -> None:
        records = self.records
        assert self.codes <= {Code.TUNNEL_LIMIT}
        assert set(records.by_id) == set(records.by_name)
        serving = set(records._places.values())
        for tunnel in records.by_id.values():
            waiting = tunnel.id in records._pending
            assert tunnel.state == ("online" if tunnel.id in serving else "pending" if waiting else "offline")
        for owner in ("ann", "bob"):
            active = sum(one.owner == owner and one.state != "offline" for one in records.by_id.values())
            assert active == records._active.get(owner, 0) <= self.LIMITS.per_owner
        offline = {one.id for one in records.by_id.values() if one.state == "offline"}
        assert set(records._offline) == offline
        assert {(link, handle) for link in ("l1", "l2", "l3") for handle in records.handles(link)} == set(records._places)
        assert all(len(handles) <= self.LIMITS.per_link for handles in records._handles.values())


Counting.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestCounting = Counting.TestCase
