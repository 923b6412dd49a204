"""What all tests share: a time limit that Trio can enforce, and errors that are not wrapped in groups of one."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Coroutine, Generator
from functools import wraps
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings

settings.register_profile(
    "netbore", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
settings.load_profile("netbore")

#: How long a test may take, as Trio sees time; `@pytest.mark.seconds(n)` says otherwise.
SECONDS = 20.0


def limited(test: Callable[..., Coroutine[Any, Any, None]], seconds: float) -> Callable[..., Coroutine[Any, Any, None]]:
    """`test`, ended by TooSlowError in place of a hang."""

    @wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(seconds):
            await test(*args, **kwargs)

    return run


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "seconds(n): how long the test may take, on its own clock")
    # A shell that starts us in the background has interrupts ignored, for us and for what we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("seconds")
            item.obj = limited(item.obj, marker.args[0] if marker else SECONDS)


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
