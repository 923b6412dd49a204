"""The state directory: what an Edge keeps between two runs.

Theory of operation. Everything in it is a small file, written whole: to a temporary file beside it, synced, then renamed,
so that a crash leaves the old file or the new one. The directory is for its owner only. What opens it makes what is
missing under one lock (`flock`), so that two Edges that start at once on the same directory agree on what they find.

    edge-id          who this Edge is, for good
    operator-token   the one token of the operator
    signing-keys     JSON: the keys of recreate tokens, oldest first
    ca.pem, ca-key.pem, leaf.pem    see `certificates`
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from netbore.edge.tokens import OPERATOR_PREFIX, SECRET_BYTES, RandomBytes, SigningKeys, random_token
from netbore.errors import ConfigError
from netbore.files import write_whole

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644
EDGE_ID_BYTES: Final = 8
SHORTEST_OPERATOR_TOKEN: Final = 16

_EDGE_ID: Final = re.compile(r"[a-z0-9-]{1,63}")


class StateError(ConfigError):
    """The state directory cannot be used; the text says which file and why, for a person."""


class StateDirectory:
    """One open state directory. All its methods block for as long as the disk does: at start, or in a thread."""

    def __init__(self, path: Path, random: RandomBytes) -> None:
        """Open `path`, making it and what it lacks. `random` is `secrets.token_bytes`. Raises StateError."""
        self.path = path
        self._random = random
        self._prepare()
        with self.lock():
            self.edge_id = self._edge_id()
            self.operator_token = self._operator_token()
            self.signing_keys = self._signing_keys()

    def __repr__(self) -> str:
        return f"StateDirectory({str(self.path)!r})"

    # Files

    def read(self, name: str, *, private: bool = True) -> bytes | None:
        """What a file holds, None when there is none. Raises StateError when it is not ours alone, though `private`."""
        path = self.path / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path} cannot be read: {error.strerror}") from error
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise StateError(f"{path} is not a file")
            if private and mode & 0o077:
                raise StateError(f"{path} holds a secret and others may use it: chmod 600 {path}")
            return file.read()

    def write(self, name: str, data: bytes, mode: int = PRIVATE) -> None:
        """Put a file in place, whole or not at all, for good when this returns. Raises StateError."""
        path = self.path / name
        try:
            write_whole(path, data, mode, tag=self._random(6).hex())
        except OSError as error:
            raise StateError(f"{path} cannot be written: {error.strerror}") from error

    def keep(self, name: str, make: Callable[[], bytes]) -> bytes:
        """What a private file holds, after making it when there is none. Under `lock`. Raises StateError."""
        data = self.read(name)
        if data is None:
            data = make()
            self.write(name, data)
        return data

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else makes files while this is held. Not to be taken twice. Blocks. Raises StateError."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
        except OSError as error:
            raise StateError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # What is in them

    def add_signing_key(self) -> None:
        """Sign with a new key from now on; the others go on verifying. Raises StateError."""
        with self.lock():
            keys = dict(self._signing_keys().keys)
            key_id = self._random(4).hex()
            keys[key_id] = self._random(SECRET_BYTES)
            self.write("signing-keys", _keys_to_json(keys))
            self.signing_keys = SigningKeys(keys, key_id)

    def _prepare(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.stat()
        except FileExistsError:
            raise StateError(f"{self.path} is not a directory") from None
        except OSError as error:
            raise StateError(f"{self.path} cannot be made: {error.strerror}") from error
        if found.st_mode & 0o022:
            raise StateError(f"others may write to {self.path}: chmod 700 {self.path}")
        if os.geteuid() != 0 and found.st_uid not in (os.geteuid(), 0):
            raise StateError(f"{self.path} belongs to another user")

    def _edge_id(self) -> str:
        text = self._text("edge-id", lambda: self._random(EDGE_ID_BYTES).hex())
        if not _EDGE_ID.fullmatch(text):
            raise StateError(f"{self.path / 'edge-id'} does not hold an Edge's id")
        return text

    def _operator_token(self) -> str:
        text = self._text("operator-token", lambda: random_token(OPERATOR_PREFIX, self._random))
        # One that the operator chose is welcome; an empty or a short one would let strangers in.
        if len(text) < SHORTEST_OPERATOR_TOKEN:
            raise StateError(f"{self.path / 'operator-token'} holds fewer than {SHORTEST_OPERATOR_TOKEN} characters")
        return text

    def _text(self, name: str, make: Callable[[], str]) -> str:
        data = self.keep(name, lambda: make().encode() + b"\n")
        try:
            return data.decode().strip()
        except UnicodeDecodeError:
            raise StateError(f"{self.path / name} is not text") from None

    def _signing_keys(self) -> SigningKeys:
        data = self.keep("signing-keys", lambda: _keys_to_json({self._random(4).hex(): self._random(SECRET_BYTES)}))
        try:
            keys = {entry["id"]: bytes.fromhex(entry["key"]) for entry in json.loads(data)["keys"]}
            return SigningKeys(keys, list(keys)[-1])
        except (ValueError, TypeError, KeyError, IndexError):
            raise StateError(f"{self.path / 'signing-keys'} does not hold signing keys") from None


def _keys_to_json(keys: dict[str, bytes]) -> bytes:
    return json.dumps({"keys": [{"id": key_id, "key": key.hex()} for key_id, key in keys.items()]}, indent=1).encode() + b"\n"
