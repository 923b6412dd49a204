"""Recreate tokens on disk: kept, locked, taken over, damaged."""

from __future__ import annotations

import logging
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from netbore.agent.token_store import Busy, Held, Kept, TokenStore, state_directory
from netbore.config import Secret
from netbore.errors import ConfigError

EDGE = "https://tunnel.localhost:8443"
KEPT = Kept("demo", Secret("token-1"))


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "state" / "netbore")


def hold(store: TokenStore, name: str | None = None, target: str = "8000", edge: str = EDGE) -> Held:
    held = store.open(edge, name, target)
    assert isinstance(held, Held)
    return held


def test_a_token_is_there_again(store: TokenStore) -> None:
    with hold(store) as held:
        assert held.read() is None
        held.write(KEPT.name, KEPT.token)
        assert held.read() == KEPT
    with hold(store) as held:
        assert held.read() == KEPT
        held.write("demo", Secret("token-2"))
    with hold(store) as held:
        assert held.read() == Kept("demo", Secret("token-2"))
        held.forget()
        held.forget()
        assert held.read() is None


def test_modes(store: TokenStore) -> None:
    with hold(store) as held:
        held.write(KEPT.name, KEPT.token)
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.directory.iterdir()} == {0o600}
    assert sorted(path.suffix for path in store.directory.iterdir()) == [".json", ".lock"]


def test_keys(store: TokenStore) -> None:
    """Edge, name and target tell keys apart; with a name the target does not matter."""
    with hold(store, "demo", "8000") as held:
        held.write(KEPT.name, KEPT.token)
    with hold(store, "demo", "9000") as held:
        assert held.read() == KEPT
    for name, target, edge in (("other", "8000", EDGE), (None, "8000", EDGE), (None, "demo", EDGE), ("demo", "8000", EDGE + "1")):
        with hold(store, name, target, edge) as held:
            assert held.read() is None


def test_a_second_agent_without_a_name_is_told_why(store: TokenStore) -> None:
    with hold(store):
        busy = store.open(EDGE, None, "8000")
        assert isinstance(busy, Busy)
        assert "another Agent for 8000 is running" in busy.reason
        assert isinstance(store.open(EDGE, None, "9000"), Held)
    assert not hold(store).took_over


def test_a_second_agent_with_a_name_takes_over(store: TokenStore) -> None:
    first = hold(store, "demo")
    first.write(KEPT.name, KEPT.token)
    second = hold(store, "demo")
    assert second.took_over
    assert second.read() == KEPT
    second.write("demo", Secret("token-2"))
    assert second.took_over
    first.close()
    second.write("demo", Secret("token-3"))
    assert not second.took_over
    third = hold(store, "demo")
    assert third.took_over
    assert third.read() == Kept("demo", Secret("token-3"))
    second.close()
    third.close()


def test_the_lock_goes_with_the_process(store: TokenStore) -> None:
    code = (
        "import sys, pathlib; from netbore.agent.token_store import TokenStore\n"
        "held = TokenStore(pathlib.Path(sys.argv[1])).open(sys.argv[2], None, '8000')\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, str(store.directory), EDGE]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert isinstance(store.open(EDGE, None, "8000"), Busy)
        other.kill()
    hold(store).close()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"name": "demo"}', b'{"name": 1, "token": "x"}', b"\xff", b"[" * 60000]
)
def test_a_damaged_file_is_told_and_counts_as_absent(content: bytes, store: TokenStore, caplog: pytest.LogCaptureFixture) -> None:
    with hold(store) as held:
        held.write(KEPT.name, KEPT.token)
        file = next(store.directory.glob("*.json"))
        file.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            assert held.read() is None
        assert "damaged" in caplog.text
        assert str(file) in caplog.text
        held.write(KEPT.name, KEPT.token)
        assert held.read() == KEPT


def test_a_file_that_is_a_directory(store: TokenStore, caplog: pytest.LogCaptureFixture) -> None:
    with hold(store) as held:
        held.write(KEPT.name, KEPT.token)
        file = next(store.directory.glob("*.json"))
        file.unlink()
        file.mkdir()
        assert held.read() is None
        assert "cannot be read" in caplog.text
        with pytest.raises(ConfigError, match="cannot be stored"):
            held.write(KEPT.name, KEPT.token)
        assert not list(store.directory.glob("*.new")), "a failed write leaves nothing behind"


def test_a_place_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be kept in"):
        TokenStore(tmp_path / "file").open(EDGE, None, "8000")


def test_tokens_are_not_shown(store: TokenStore) -> None:
    assert "token-1" not in repr(KEPT)


def test_the_usual_place() -> None:
    home = Path("/home/someone")
    assert state_directory({}, home) == home / ".local" / "state" / "netbore"
    assert state_directory({"XDG_STATE_HOME": "/var/s"}, home) == Path("/var/s/netbore")
    assert state_directory({"XDG_STATE_HOME": "relative"}, home) == home / ".local" / "state" / "netbore"
