"""Errors that leave nurseries: out of groups where there is one, in them where there are several."""

from __future__ import annotations

import pytest

from netbore.errors import ConfigError, NetboreError, TunnelClosed
from netbore.tasks import first, leaves, ungrouped


def test_the_leaves_of_a_group() -> None:
    one, two, three = ValueError(), KeyError(), TunnelClosed()
    assert list(leaves(ExceptionGroup("", [one, ExceptionGroup("", [two, three])]))) == [one, two, three]
    assert list(leaves(one)) == [one]
    assert first(ExceptionGroup("", [ExceptionGroup("", [two]), one])) is two


def test_a_lonely_error_of_ours_comes_out() -> None:
    error = TunnelClosed("gone")
    with pytest.raises(TunnelClosed) as caught, ungrouped():
        raise ExceptionGroup("", [ExceptionGroup("", [error])])
    assert caught.value is error
    with pytest.raises(TunnelClosed), ungrouped():
        raise ExceptionGroup("", [ExceptionGroup("", [error]), error])


def test_it_keeps_its_cause() -> None:
    error = TunnelClosed("gone")
    error.__cause__ = OSError("why")
    with pytest.raises(TunnelClosed) as caught, ungrouped():
        raise ExceptionGroup("", [error])
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    "errors", [[ValueError("ours?")], [TunnelClosed("a"), ConfigError("b")], [TunnelClosed("a"), ValueError("b")]]
)
def test_other_groups_pass_as_they_are(errors: list[Exception]) -> None:
    group = ExceptionGroup("", errors)
    with pytest.raises(ExceptionGroup) as caught, ungrouped():
        raise group
    assert caught.value is group


def test_an_error_in_no_group_passes() -> None:
    with pytest.raises(NetboreError), ungrouped():
        raise TunnelClosed("gone")
