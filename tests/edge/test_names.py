"""Names: the grammar, what is reserved, and random ones."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbore.edge.names import RESERVED, fault, random_name


@pytest.mark.parametrize("name", ["a", "7", "demo", "a-b", "my--app", "x" * 63, "0-0", "xn-a"])
def test_names(name: str) -> None:
    assert fault(name) is None


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("", "at least one"),
        ("x" * 64, "at most 63"),
        ("-a", "hyphen"),
        ("a-", "hyphen"),
        ("-", "hyphen"),
        ("Demo", "a-z"),
        ("a.b", "a-z"),
        ("a_b", "a-z"),
        ("a\n", "a-z"),
        ("dem\u00f6", "a-z"),
        ("\u0661", "a-z"),
        ("xn--bcher-kva", "xn--"),
    ],
)
def test_what_is_no_name(name: str, word: str) -> None:
    assert word in (fault(name) or "")


@given(st.text(max_size=70))
def test_a_name_is_a_dns_label(name: str) -> None:
    if fault(name) is None:
        assert 1 <= len(name.encode()) <= 63
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert name[0] != "-" != name[-1]


def test_reserved_names_are_names() -> None:
    assert {"www", "api", "admin"} <= RESERVED
    assert all(fault(name) is None for name in RESERVED)


def test_random_names_are_names_and_hardly_meet() -> None:
    below = random.Random(1).randrange
    made = {random_name(below) for _ in range(2000)}
    assert len(made) > 1990
    assert all(fault(name) is None and name.count("-") == 2 for name in made)


@pytest.mark.parametrize("pick", [lambda n: 0, lambda n: n - 1])
def test_the_first_and_the_last_random_name(pick: object) -> None:
    assert fault(random_name(pick)) is None  # type: ignore[arg-type]
