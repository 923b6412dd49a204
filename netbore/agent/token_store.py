"""Recreate tokens on disk, so that the same command run again, or after a crash, gets the same name.

Theory of operation. One key (the Edge, and the name or, without one, the target) has two files: `KEY.json` holds the name and
the token and is replaced as a whole, never changed in place; `KEY.lock` is locked with `flock` while an Agent lives. The lock
has a file of its own because a replaced file takes its lock away with it. The kernel drops the lock with the process, so
after a crash nothing has to be cleaned up. Lock files are never deleted: deleting one while another Agent opens it would
give two Agents a lock each.

A second live Agent finds the key *busy*. Without a name it goes on without a token, and gets a new name; with a name it
takes over: the person said which name it wants, so it uses the token that the first Agent wrote, and the Edge moves the name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import attrs

from netbore.config import MAX_SECRET, Secret
from netbore.errors import ConfigError
from netbore.files import write_whole

log = logging.getLogger("netbore.tokens")


@attrs.frozen
class Kept:
    """What is stored: a name, and the token that gets it back."""

    name: str
    token: Secret


@attrs.frozen
class Busy:
    """Another live Agent holds the key, and no name was asked for: go on without a token, and say `reason`."""

    reason: str


class Held:
    """One key, until `close`; also a context manager. `took_over` says that another live Agent still has the lock."""

    def __init__(self, path: Path, descriptor: int, took_over: bool) -> None:
        self._path = path
        self._descriptor: int | None = descriptor
        self.took_over = took_over

    def read(self) -> Kept | None:
        """What is stored, or None. A damaged file is told in the log and counts as absent."""
        try:
            with self._path.open("rb") as file:
                raw = file.read(MAX_SECRET)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the token in %s cannot be read (%s): the name may change", self._path, error.strerror)
            return None
        kept = _decode(raw)
        if kept is None:
            log.warning("%s is damaged and is not used: the name may change; the file is written anew then", self._path)
        return kept

    def write(self, name: str, token: Secret) -> None:
        """Store durably, all or nothing. Raises ConfigError when the directory does not let us."""
        self._relock()
        content = json.dumps({"name": name, "token": token.reveal()}).encode()
        try:
            write_whole(self._path, content, 0o600, tag=secrets.token_hex(8))
        except OSError as error:
            raise ConfigError(f"the token cannot be stored in {self._path.parent}: {error.strerror or error}") from None

    def forget(self) -> None:
        """Remove what is stored: the Edge does not take the token any more. Idempotent."""
        with suppress(OSError):
            self._path.unlink()

    def close(self) -> None:
        """Give the key back; what is stored stays. Idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _relock(self) -> None:
        """After a takeover the first Agent ends sooner or later; from then on the lock is ours."""
        if self.took_over and self._descriptor is not None:
            self.took_over = not _lock(self._descriptor)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class TokenStore:
    """A directory of recreate tokens. Its methods block for as long as the file system does, a few milliseconds."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def open(self, edge: str, name: str | None, target: str) -> Held | Busy:
        """Hold the key of (`edge`, `name`), or of (`edge`, `target`) without a name.

        `edge` is the canonical text of its URL. Raises ConfigError when the directory cannot be used.
        """
        path = self.directory / f"{_key(edge, name, target)}.json"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(f"tokens cannot be kept in {self.directory}: {error.strerror or error}") from None
        try:
            locked = _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(f"{self.directory} cannot lock files: {error.strerror or error}") from None
        if not locked and name is None:
            os.close(descriptor)
            return Busy(f"another Agent for {target} is running and keeps its name; this one gets a new one (--name takes over)")
        return Held(path, descriptor, took_over=not locked)


def state_directory(environment: Mapping[str, str], home: Path) -> Path:
    """Where the state of this user's programs lies: $XDG_STATE_HOME/netbore, or ~/.local/state/netbore.

    A relative $XDG_STATE_HOME does not count, as the XDG base directory specification has it.
    """
    given = environment.get("XDG_STATE_HOME", "")
    base = Path(given) if given.startswith("/") else home / ".local" / "state"
    return base / "netbore"


def _key(edge: str, name: str | None, target: str) -> str:
    what = ["target", target] if name is None else ["name", name]
    return hashlib.sha256(json.dumps([edge, *what]).encode()).hexdigest()[:32]


def _lock(descriptor: int) -> bool:
    """Take the lock; False when another has it. Raises OSError where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _decode(raw: bytes) -> Kept | None:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    name, token = content.get("name"), content.get("token")
    if not (isinstance(name, str) and isinstance(token, str) and name and token):
        return None
    return Kept(name, Secret(token))
