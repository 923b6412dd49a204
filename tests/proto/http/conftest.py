"""Every test of an Exchange runs twice: with messages that are read, and with messages that came before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netbore.proto.http.codec import HeadMemo
from tests.proto.http.harness import World

KNOWN = HeadMemo(most=100_000)


@pytest.fixture(scope="module", params=["read", "known"])
def messages(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether the Worlds of a module remember heads, those of all Worlds before included."""
    World.memo = KNOWN if request.param == "known" else None
    yield
    World.memo = None
