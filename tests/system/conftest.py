"""What the system tests share: big files, and the words of every process in a failure's report."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from pathlib import Path

import attrs
import pytest

from tests.system import processes

#: Bytes of the big file.
BIG = 200_000_000
HERE = Path(__file__).parent


@attrs.frozen
class BigFile:
    """A file of pseudo-random bytes, no two blocks alike."""

    path: Path
    size: int
    sha256: str


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigFile]:
    """200 MB."""
    path = tmp_path_factory.mktemp("big") / "big.bin"
    block = hashlib.shake_256(b"netbore").digest(1 << 20)
    digest = hashlib.sha256()
    left = BIG
    with path.open("wb") as file:
        for number in range(1 + BIG // len(block)):
            piece = (number.to_bytes(8, "big") + block[8:])[:left]
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
    yield BigFile(path, BIG, digest.hexdigest())
    path.unlink()


def sha256(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(autouse=True)
def _programs() -> Iterator[None]:
    """Forget the programs of the last test, and let none of this one live on."""
    processes.STARTED.clear()
    yield
    for program in processes.STARTED:
        program.kill()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A time limit by signal ends the test, not the run, so the report below is made."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(100, method="signal"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed and HERE in item.path.parents:
        for program in processes.STARTED:
            report.sections.append((f"what {program.name} said", program.describe()))
    return report
