"""The hub: events reach who listens, and who listens harms nobody."""

from __future__ import annotations

import logging

import attrs
import pytest

from netbore.edge.hub import EVENTS, Hub, LinkBroken, LinkEnded, TunnelBound

BROKEN = LinkBroken("e.1", "reset")
ENDED = LinkEnded("e.1", 0, "")


def test_events_reach_their_listeners_in_order() -> None:
    hub, heard = Hub(), list[object]()
    hub.listen(LinkBroken, lambda event: heard.append(("first", event.reason)))
    hub.listen(LinkBroken, lambda event: heard.append(("second", event.link)))
    hub.emit(BROKEN)
    hub.emit(ENDED)
    assert heard == [("first", "reset"), ("second", "e.1")]


def test_it_is_active_only_while_somebody_listens() -> None:
    hub = Hub()
    assert not hub.active
    one, other = hub.listen(LinkBroken, print), hub.listen(LinkEnded, print)
    assert hub.active
    one()
    one()
    assert hub.active
    other()
    assert not hub.active


def test_the_same_listener_twice_is_two_listeners() -> None:
    hub, heard = Hub(), list[object]()
    leave = hub.listen(LinkBroken, heard.append)
    hub.listen(LinkBroken, heard.append)
    leave()
    leave()
    hub.emit(BROKEN)
    assert heard == [BROKEN]


def test_a_listener_that_fails_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    hub, heard = Hub(), list[object]()

    def fail(event: LinkBroken) -> None:
        raise RuntimeError("planted")

    hub.listen(LinkBroken, fail)
    hub.listen(LinkBroken, heard.append)
    with caplog.at_level(logging.ERROR, "netbore.edge"):
        hub.emit(BROKEN)
    assert heard == [BROKEN]
    assert "LinkBroken" in caplog.text
    assert "planted" in caplog.text


def test_a_listener_may_leave_while_it_is_called() -> None:
    hub, heard = Hub(), list[object]()

    def once(event: LinkBroken) -> None:
        heard.append(event)
        leave()

    leave = hub.listen(LinkBroken, once)
    hub.listen(LinkBroken, heard.append)
    hub.emit(BROKEN)
    hub.emit(BROKEN)
    assert heard == [BROKEN, BROKEN, BROKEN]


def test_one_can_listen_to_all() -> None:
    hub, heard = Hub(), list[object]()
    leave = hub.listen_to_all(heard.append)
    bound = TunnelBound("t", "demo", "operator", "e.1", replaced=False)
    for event in (BROKEN, ENDED, bound):
        hub.emit(event)
    leave()
    hub.emit(BROKEN)
    assert heard == [BROKEN, ENDED, bound]
    assert not hub.active


def test_only_events_can_be_listened_to() -> None:
    with pytest.raises(TypeError, match="int is not an event"):
        Hub().listen(int, print)


def test_events_are_frozen() -> None:
    assert all(attrs.has(kind) for kind in EVENTS)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        BROKEN.reason = "other"  # type: ignore[misc]
