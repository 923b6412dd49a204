"""The operator's Authority, and the state directory that it stands on."""

from __future__ import annotations

import json
import os
import random
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netbore.edge.authority import MAX_REVOKED, Grant, OperatorAuthority, Unauthorized
from netbore.edge.statedir import StateDirectory, StateError
from netbore.edge.tokens import Ephemerals, SigningKeys, mint_recreate
from netbore.proto.handshake import Credential

NOW = 1_800_000_000.0
ONE, TWO = "1" * 32, "2" * 32


class Setting:
    """An Authority over a fresh state directory, with a clock to turn."""

    def __init__(self, path: Path) -> None:
        self.now = NOW
        self.state = StateDirectory(path, random.Random(5).randbytes)
        self.ephemerals = Ephemerals(random.Random(6).randbytes)
        self.authority = OperatorAuthority(self.state, self.ephemerals, lambda: self.now)

    def recreate(self, name: str = "demo", tunnel: str = "t1") -> Credential:
        keys = self.state.signing_keys
        return Credential("recreate", mint_recreate(keys, name=name, owner="operator", tunnel=tunnel, now=self.now))

    def ephemeral(self, name: str = "demo", tunnel: str = "t1") -> Credential:
        token, _ = self.ephemerals.mint(name=name, owner="operator", tunnel=tunnel, now=self.now)
        return Credential("ephemeral", token)

    def operator(self) -> Credential:
        return Credential("operator", self.state.operator_token)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path / "state")


# Checks


async def test_the_operator_may_do_anything(setting: Setting) -> None:
    grant = await setting.authority.check(setting.operator(), ONE)
    assert grant == Grant("operator", None, frozenset({"serve", "manage"}), None, "operator")
    assert grant.allows("serve", NOW * 2)
    assert grant.allows_name("anything")
    assert grant.own_name is None


async def test_a_recreate_token_is_for_its_name_only(setting: Setting) -> None:
    grant = await setting.authority.check(setting.recreate(), ONE)
    assert grant == Grant("operator", frozenset({"demo"}), frozenset({"serve"}), None, "recreate", "t1")
    assert grant.own_name == "demo"
    assert not grant.allows_name("other")
    assert not grant.allows("manage", NOW)


async def test_a_recreate_token_is_good_after_a_restart(setting: Setting) -> None:
    credential = setting.recreate()
    again = Setting(setting.state.path)
    assert (await again.authority.check(credential, TWO)).tunnel == "t1"


async def test_an_ephemeral_token_is_for_one_instance_and_ends(setting: Setting) -> None:
    credential = setting.ephemeral()
    grant = await setting.authority.check(credential, ONE)
    assert grant == Grant("operator", frozenset({"demo"}), frozenset({"serve"}), NOW + 600, "ephemeral", "t1")
    assert grant.allows("serve", NOW + 599)
    assert not grant.allows("serve", NOW + 600)
    assert await setting.authority.check(credential, ONE) == grant
    with pytest.raises(Unauthorized, match="another Agent"):
        await setting.authority.check(credential, TWO)
    setting.now += 600
    with pytest.raises(Unauthorized, match="expired"):
        await setting.authority.check(credential, ONE)


@pytest.mark.parametrize(
    ("kind", "token", "why"),
    [
        ("operator", "nbo_wrong", "operator token is wrong"),
        ("operator", "", "operator token is wrong"),
        ("operator", "\ud800", "operator token is wrong"),
        ("recreate", "nbr_wrong", "recreate token"),
        ("ephemeral", "nbe_wrong", "ephemeral token"),
        ("management", "anything", "no accounts"),
        ("password", "anything", "not known"),
    ],
)
async def test_what_is_refused(setting: Setting, kind: str, token: str, why: str) -> None:
    with pytest.raises(Unauthorized, match=why) as caught:
        await setting.authority.check(Credential(kind, token), ONE)
    assert token not in str(caught.value) or not token or token == "anything"


async def test_a_token_of_one_kind_is_none_of_another(setting: Setting) -> None:
    tokens = [setting.operator().token, setting.recreate().token, setting.ephemeral().token]
    for at, kind in enumerate(["operator", "recreate", "ephemeral"]):
        for other, token in enumerate(tokens):
            if at != other:
                with pytest.raises(Unauthorized):
                    await setting.authority.check(Credential(kind, token), ONE)


# Revoking


async def test_revoking_a_tunnel_is_pushed_and_lasts(setting: Setting) -> None:
    told = list[str]()
    credential, fresh = setting.recreate(), setting.ephemeral()
    hit = await setting.authority.check(credential, ONE)
    other = await setting.authority.check(setting.recreate("other", "t2"), ONE)
    setting.authority.watch(hit, lambda why, force: told.append(f"hit: {why} {force}"))
    setting.authority.watch(other, lambda why, force: told.append(f"other: {why}"))
    setting.authority.revoke("t1", "it was deleted", force=False)
    setting.authority.revoke("t1", "it was deleted")
    assert told == ["hit: it was deleted False"]
    with pytest.raises(Unauthorized, match="it was deleted"):
        await setting.authority.check(credential, TWO)
    with pytest.raises(Unauthorized):
        await setting.authority.check(fresh, ONE)


async def test_a_grant_that_is_revoked_already_is_told_at_once(setting: Setting) -> None:
    grant = await setting.authority.check(setting.recreate(), ONE)
    setting.authority.revoke("t1", "it was deleted")
    told = list[str]()
    setting.authority.watch(grant, lambda why, force: told.append(why))()
    assert told == ["it was deleted"]


async def test_an_ended_watch_hears_nothing(setting: Setting) -> None:
    grant = await setting.authority.check(setting.operator(), ONE)
    told = list[str]()
    end = setting.authority.watch(grant, lambda why, force: told.append(why))
    end()
    end()
    setting.authority.revoke_operator("the token was changed")
    assert told == []


async def test_watchers_may_fail_and_end_each_other(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    grant = await setting.authority.check(setting.operator(), ONE)
    told = list[str]()
    ends = list[Callable[[], None]]()

    def fail(why: str, force: bool) -> None:
        ends[1]()
        raise RuntimeError("planted")

    ends.append(setting.authority.watch(grant, fail))
    ends.append(setting.authority.watch(grant, lambda why, force: told.append("ended by the first")))
    ends.append(setting.authority.watch(grant, lambda why, force: told.append(why)))
    setting.authority.revoke_operator("the token was changed")
    assert told == ["the token was changed"]
    assert "planted" in caplog.text


async def test_what_was_revoked_is_remembered_up_to_a_limit(setting: Setting) -> None:
    first, last = setting.recreate("a", "t0"), setting.recreate("b", f"t{MAX_REVOKED}")
    for number in range(MAX_REVOKED + 1):
        setting.authority.revoke(f"t{number}", "deleted")
    await setting.authority.check(first, ONE)
    with pytest.raises(Unauthorized):
        await setting.authority.check(last, ONE)


# The state directory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_state_directory_is_made_private(setting: Setting) -> None:
    path = setting.state.path
    assert mode(path) == 0o700
    assert sorted(file.name for file in path.iterdir()) == ["edge-id", "lock", "operator-token", "signing-keys"]
    assert {mode(file) for file in path.iterdir()} == {0o600}
    assert setting.state.operator_token.startswith("nbo_")
    assert (path / "operator-token").read_text() == setting.state.operator_token + "\n"


def test_what_is_in_it_is_kept(setting: Setting) -> None:
    again = StateDirectory(setting.state.path, random.Random(99).randbytes)
    assert again.edge_id == setting.state.edge_id
    assert again.operator_token == setting.state.operator_token
    assert again.signing_keys == setting.state.signing_keys


def test_many_that_open_it_at_once_agree(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def open_it(_: int) -> tuple[str, str, SigningKeys]:
        start.wait()
        state = StateDirectory(tmp_path / "state", os.urandom)
        return state.edge_id, state.operator_token, state.signing_keys

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(open_it, range(8)))
    assert found == [found[0]] * 8


def test_two_directories_differ(tmp_path: Path) -> None:
    one, two = (StateDirectory(tmp_path / name, os.urandom) for name in "ab")
    assert one.edge_id != two.edge_id
    assert one.operator_token != two.operator_token
    assert one.signing_keys != two.signing_keys


def test_a_new_signing_key_signs_and_the_old_ones_verify(setting: Setting) -> None:
    old: SigningKeys = setting.state.signing_keys
    setting.state.add_signing_key()
    new = setting.state.signing_keys
    assert list(new.keys)[:-1] == list(old.keys)
    assert new.newest not in old.keys
    assert StateDirectory(setting.state.path, os.urandom).signing_keys == new


@pytest.mark.parametrize("name", ["operator-token", "signing-keys", "edge-id"])
def test_a_secret_that_others_may_read_is_refused(setting: Setting, name: str) -> None:
    (setting.state.path / name).chmod(0o640)
    with pytest.raises(StateError, match=rf"{name} holds a secret.*chmod 600"):
        StateDirectory(setting.state.path, os.urandom)


def test_a_directory_that_others_may_write_to_is_refused(setting: Setting) -> None:
    setting.state.path.chmod(0o770)
    with pytest.raises(StateError, match=r"others may write.*chmod 700"):
        StateDirectory(setting.state.path, os.urandom)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="is not a directory"):
        StateDirectory(tmp_path / "state", os.urandom)
    with pytest.raises(StateError, match="cannot be made"):
        StateDirectory(tmp_path / "state" / "below", os.urandom)


def test_a_link_in_place_of_a_secret_is_refused(setting: Setting, tmp_path: Path) -> None:
    token = setting.state.path / "operator-token"
    token.rename(tmp_path / "elsewhere")
    token.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="operator-token cannot be read"):
        StateDirectory(setting.state.path, os.urandom)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("operator-token", b"", "fewer than 16"),
        ("operator-token", b"short\n", "fewer than 16"),
        ("operator-token", b"\xff" * 40, "is not text"),
        ("edge-id", b"a.b\n", "Edge's id"),
        ("edge-id", b"", "Edge's id"),
        ("signing-keys", b"", "signing keys"),
        ("signing-keys", b'{"keys": []}', "signing keys"),
        ("signing-keys", b'{"keys": [{"id": "a", "key": "00"}]}', "signing keys"),
        ("signing-keys", b'{"keys": [{"id": ["a"], "key": "00"}]}', "signing keys"),
        ("signing-keys", b"[]", "signing keys"),
    ],
)
def test_damaged_files_are_named(setting: Setting, name: str, data: bytes, why: str) -> None:
    setting.state.write(name, data)
    with pytest.raises(StateError, match=why) as caught:
        StateDirectory(setting.state.path, os.urandom)
    assert name in str(caught.value)


def test_an_operators_own_token_is_taken(setting: Setting) -> None:
    setting.state.write("operator-token", b"  a-token-of-my-own \n")
    assert StateDirectory(setting.state.path, os.urandom).operator_token == "a-token-of-my-own"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(setting: Setting) -> None:
    path = setting.state.path
    (path / "thing").mkdir()
    before = sorted(path.iterdir())
    with pytest.raises(StateError, match="thing cannot be written"):
        setting.state.write("thing", b"data")
    assert sorted(path.iterdir()) == before


def test_a_public_file_may_be_read_by_others(setting: Setting) -> None:
    setting.state.write("ca.pem", b"data", 0o644)
    assert mode(setting.state.path / "ca.pem") == 0o644
    assert setting.state.read("ca.pem", private=False) == b"data"


def test_no_repr_shows_a_secret(setting: Setting) -> None:
    shown = repr(setting.state) + repr(setting.state.signing_keys) + repr(setting.operator())
    keys = json.loads((setting.state.path / "signing-keys").read_text())["keys"]
    for secret in [setting.state.operator_token[4:], *(key["key"] for key in keys)]:
        assert secret not in shown
