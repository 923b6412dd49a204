"""Tokens: what is signed is believed, nothing else is, and nothing shows a secret."""

from __future__ import annotations

import json
import random
from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbore.edge.tokens import (
    Ephemerals,
    Recreate,
    SigningKeys,
    TooManyTokens,
    mint_recreate,
    random_token,
    same,
    verify_recreate,
)

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
KEYS = SigningKeys({"old": OLD, "new": NEW}, "new")


def ephemerals(**options: float) -> Ephemerals:
    return Ephemerals(random.Random(7).randbytes, **options)  # type: ignore[arg-type]


def minted(keys: SigningKeys = KEYS) -> str:
    return mint_recreate(keys, name="demo", owner="operator", tunnel="t1", now=1000.9)


def signed(members: object, keys: SigningKeys = KEYS) -> str:
    text = urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=").decode()
    return f"nbr_{text}.{keys.sign(text)}"


# Recreate tokens


def test_a_recreate_token_says_what_was_put_into_it() -> None:
    token = minted()
    assert token.startswith("nbr_")
    assert verify_recreate(KEYS, token) == Recreate("demo", "operator", "t1", 1000, "new")


def test_old_keys_go_on_verifying_until_they_are_removed() -> None:
    token = minted(SigningKeys({"old": OLD}, "old"))
    claims = verify_recreate(KEYS, token)
    assert claims is not None
    assert claims.key == "old"
    assert verify_recreate(SigningKeys({"new": NEW}, "new"), token) is None


def test_another_key_of_the_same_id_is_not_ours() -> None:
    assert verify_recreate(SigningKeys({"new": OLD}, "new"), minted()) is None


@given(st.data())
def test_a_changed_token_is_worth_nothing(data: st.DataObject) -> None:
    token = minted()
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(exclude_characters=token[at]))
    assert verify_recreate(KEYS, token[:at] + other + token[at + 1 :]) is None


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_shortened_token_is_worth_nothing(cut: int) -> None:
    assert verify_recreate(KEYS, minted()[:-cut]) is None
    assert verify_recreate(KEYS, minted()[cut:]) is None
    assert verify_recreate(KEYS, minted() + "A" * cut) is None


@given(st.text() | st.text(alphabet="nbr_.AQ=-").map("nbr_".__add__))
def test_noise_is_worth_nothing(noise: str) -> None:
    assert verify_recreate(KEYS, noise) is None


@pytest.mark.parametrize(
    "members",
    [
        [],
        "new",
        {"k": "new"},
        {"k": ["new"], "n": "a", "o": "b", "t": "c", "i": 1},
        {"k": "new", "n": 1, "o": "b", "t": "c", "i": 1},
        {"k": "new", "n": "a", "o": "b", "t": "c", "i": "1"},
        {"k": "none", "n": "a", "o": "b", "t": "c", "i": 1},
    ],
)
def test_signed_claims_of_another_shape_are_not_believed(members: object) -> None:
    assert verify_recreate(KEYS, signed(members)) is None


def test_the_helper_of_that_test_signs_rightly() -> None:
    assert verify_recreate(KEYS, signed({"k": "new", "n": "a", "o": "b", "t": "c", "i": 1})) is not None


def test_signing_keys_are_whole() -> None:
    with pytest.raises(ValueError, match="newest"):
        SigningKeys({"a": OLD}, "b")
    with pytest.raises(ValueError, match="32"):
        SigningKeys({"a": b"short"}, "a")


# Ephemeral tokens


def test_an_ephemeral_token_is_for_the_first_instance_and_may_be_shown_again() -> None:
    known = ephemerals()
    token, expires = known.mint(name="demo", owner="operator", tunnel="t1", now=100)
    assert token.startswith("nbe_")
    assert expires == 700
    for now in (100, 300, 699.9):
        found = known.present(token, "a", now)
        assert found is not None
        assert (found.name, found.owner, found.tunnel) == ("demo", "operator", "t1")
    assert known.present(token, "b", 300) is None
    assert known.present(token, "a", 700) is None


def test_an_unknown_ephemeral_token_is_worth_nothing() -> None:
    known = ephemerals()
    token, _ = known.mint(name="demo", owner="operator", tunnel="t1", now=100)
    assert known.present(token + "A", "a", 100) is None
    assert known.present("\ud800", "a", 100) is None


def test_ephemeral_tokens_are_bounded_and_expire() -> None:
    known = ephemerals(seconds=10, most=2)
    first, _ = known.mint(name="a", owner="o", tunnel="1", now=0)
    known.mint(name="b", owner="o", tunnel="2", now=5)
    with pytest.raises(TooManyTokens):
        known.mint(name="c", owner="o", tunnel="3", now=9)
    known.mint(name="c", owner="o", tunnel="3", now=10)
    assert len(known) == 2
    assert known.present(first, "i", 0) is None  # it was purged


def test_a_deleted_tunnels_ephemeral_tokens_are_forgotten() -> None:
    known = ephemerals()
    gone, _ = known.mint(name="a", owner="o", tunnel="1", now=0)
    kept, _ = known.mint(name="b", owner="o", tunnel="2", now=0)
    known.forget("1")
    assert known.present(gone, "i", 1) is None
    assert known.present(kept, "i", 1) is not None


# Secrets


def test_a_random_token_has_256_bits() -> None:
    asked: list[int] = []

    def bytes_of(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    assert random_token("nbo_", bytes_of) == "nbo_" + "A" * 43
    assert asked == [32]


@given(st.text(), st.text())
def test_same(a: str, b: str) -> None:
    assert same(a, b) == (a == b)
    assert same(a, a)


def test_reprs_show_no_secret() -> None:
    known = ephemerals()
    token, _ = known.mint(name="demo", owner="operator", tunnel="t1", now=100)
    shown = repr(KEYS) + repr(known) + repr(known.present(token, "a", 100))
    for secret in (token, token[4:], OLD.hex(), NEW.hex(), repr(OLD), repr(NEW)):
        assert secret not in shown
