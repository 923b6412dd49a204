"""The pages' tables are what the code says, in both directions."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import click
import pytest

from netbore import errors
from netbore.agent import program as agent_program
from netbore.agent.connect import ConnectLimits
from netbore.agent.program import EXIT_CODES
from netbore.edge import program as edge_program
from netbore.edge.config import EdgeLimits
from netbore.edge.door import DoorLimits
from netbore.edge.front import FrontLimits
from netbore.edge.pool import PoolLimits
from netbore.edge.records import TunnelLimits
from netbore.edge.targets import HostLimits
from netbore.link.poller import PollerLimits
from netbore.proto.http.head import HttpLimits
from netbore.proto.http.pages import PROBLEMS
from netbore.proto.http.sides import ExchangeLimits
from netbore.signals import INTERRUPTED

ROOT = Path(__file__).parents[1]
CONFIG = (ROOT / "docs" / "config.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()
CLASSES: list[Any] = [
    PollerLimits,
    HttpLimits,
    ExchangeLimits,
    FrontLimits,
    HostLimits,
    PoolLimits,
    DoorLimits,
    TunnelLimits,
    EdgeLimits,
    ConnectLimits,
]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")]


def rows(page: str, section: str) -> list[list[str]]:
    """The rows of all tables of the section with this heading, without the heads."""
    lines = iter(page.splitlines())
    assert any(line.lstrip("#") == f" {section}" and line.startswith("#") for line in lines), section
    found, after_head = [], False
    for line in lines:
        if line.startswith("#"):
            break
        if line.startswith("|---"):
            after_head = True
        elif not line.startswith("|"):
            after_head = False
        elif after_head:
            found.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return found


def shown(value: Any) -> str:
    """A default as the tables have it."""
    if attrs.has(type(value)):
        return type(value).__name__
    if isinstance(value, int | float) and not hasattr(value, "name"):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return str(value.name)


@pytest.mark.parametrize("limits", CLASSES, ids=lambda cls: cls.__name__)
def test_limits(limits: Any) -> None:
    values = limits()
    told = {name: default for name, default, *_ in rows(CONFIG, limits.__name__)}
    assert told == {field.name: shown(getattr(values, field.name)) for field in attrs.fields(limits) if field.init}


def test_every_class_of_limits_has_its_table() -> None:
    named = set(re.findall(r"^class (\w*[a-z]Limits)\b", "\n".join(p.read_text() for p in ROOT.glob("netbore/**/*.py")), re.M))
    assert named == {cls.__name__ for cls in CLASSES}


@pytest.mark.parametrize("row", rows(CONFIG, "Fixed"), ids=lambda row: row[0])
def test_fixed(row: list[str]) -> None:
    module, _, name = row[0].rpartition(".")
    assert getattr(import_module(module), name) == float(row[1])


def options(command: click.Command, prefix: str) -> dict[str, tuple[str, str | None]]:
    """Environment variable and default of each option; None for a default that the page puts in words."""
    found = {}
    for option in command.params:
        if isinstance(option, click.Option):
            name = option.opts[0]
            variable = option.envvar or f"{prefix}_{name[2:].replace('-', '_').upper()}"
            default = option.default if isinstance(option.default, str | Path) else None
            found[name] = (str(variable), None if default is None else str(default))
    return found


@pytest.mark.parametrize(
    ("section", "command", "prefix"),
    [
        ("1. `netbore-edge serve`", edge_program.serve, "NETBORE"),
        ("2. `netbore-agent http TARGET`", agent_program.http, "NETBORE"),
    ],
    ids=["edge", "agent"],
)
def test_options(section: str, command: click.Command, prefix: str) -> None:
    told = {row[0]: row[1:3] for row in rows(CONFIG, section) if row[0].startswith("--")}
    code = options(command, prefix)
    assert told.keys() == code.keys()
    for name, (variable, default) in code.items():
        assert told[name][0] == variable
        assert default is None or told[name][1] == default, name


def exit_codes(section: str) -> list[list[str]]:
    return [row for row in rows(CONFIG, section) if row[0].isdigit()]


def test_exit_codes_of_the_agent() -> None:
    told = {int(code): error for code, error, _ in exit_codes("2. `netbore-agent http TARGET`")}
    assert told == {0: "", INTERRUPTED: "", **{code: kind.__name__ for kind, code in EXIT_CODES}}


def test_exit_codes_of_the_edge() -> None:
    told = {int(code) for code, _ in exit_codes("1. `netbore-edge serve`")}
    assert told == {0, 1, edge_program.UNUSABLE, INTERRUPTED}


def test_each_error_has_its_own_exit_code() -> None:
    """An error of the library that has no row would come out as its base class's."""
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.NetboreError)}
    assert {kind for kind, _ in EXIT_CODES} == kinds
    assert len({code for _, code in EXIT_CODES}) == len(EXIT_CODES)


def test_problems() -> None:
    sections = ("Where the Tunnel leads", "The Host", "Policy and limits", "The request")
    told = [row for section in sections for row in rows(ERRORS, section)]
    assert {code: int(status) for code, status, _, _ in told} == {p.code: p.status for p in PROBLEMS.values()}
    assert len(told) == len(PROBLEMS)
    assert all(cause and mend for _, _, cause, mend in told)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_what_the_pages_name_exists() -> None:
    """Paths in backticks are files of the project."""
    text = "\n".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"`((?:netbore|docs|scripts|tests|examples|bench)/[\w./-]+\w)`", text))
    assert len(named) > 10
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
