"""What all tests share: a time limit that Trio can enforce, and errors that are not wrapped in groups of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings

settings.register_profile(
    "netbore", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
settings.load_profile("netbore")

SECONDS = 20


@pytest.fixture
async def deadline() -> AsyncIterator[None]:
    """Fail a test that takes longer than any of ours should, as Trio sees time."""
    with trio.fail_after(SECONDS):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, Any, Any]:
    """Show the one error of a group of one."""
    try:
        return (yield)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from (None if error is not group else group.__cause__)
