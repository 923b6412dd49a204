"""Small files that are whole or not there at all. Everything here blocks for as long as the disk does."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes, mode: int, *, tag: str) -> None:
    """Put `data` in place of whatever `path` was, durably: after a crash there is the old file or the new one.

    `tag` makes the temporary file's name unlike any other's. Raises OSError, and then nothing has changed.
    """
    temporary = path.with_name(f".{path.name}.{tag}")
    try:
        _write_synced(temporary, data, mode)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _write_synced(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
