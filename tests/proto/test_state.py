"""The transition tables are the page's, and are total: what is absent is an error of whoever did it."""

from __future__ import annotations

from pathlib import Path

import pytest

from netbore.proto.errors import LocalProtocolError, RemoteProtocolError
from netbore.proto.state import RECEIVING, SENDING, Half, Input, Table, step
from netbore.proto.wire import Code

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def table_after(heading: str) -> dict[tuple[Half, Input], Half]:
    text = PAGE.read_text(encoding="utf-8").split("### 4.2 States")[1].split(heading)[1]
    rows = text.split("| state | input | next | also |\n|---|---|---|---|\n")[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in row.split("|")[1:4]] for row in rows.splitlines()]
    return {(Half(state), Input(happened)): Half(after) for state, happened, after in cells}


@pytest.mark.parametrize(("heading", "table"), [("The sending half:", SENDING), ("The receiving half:", RECEIVING)])
def test_tables_are_those_of_the_page(heading: str, table: Table) -> None:
    assert table_after(heading) == table


@pytest.mark.parametrize("table", [SENDING, RECEIVING])
@pytest.mark.parametrize("half", Half)
@pytest.mark.parametrize("happened", Input)
def test_every_state_and_input(table: Table, half: Half, happened: Input) -> None:
    if (half, happened) in table:
        assert step(table, half, happened) is table[half, happened]
        return
    expected = RemoteProtocolError if "receive" in happened.value else LocalProtocolError
    with pytest.raises(expected) as caught:
        step(table, half, happened)
    assert caught.value.code is Code.PROTOCOL_ERROR
    assert half.value in caught.value.text


@pytest.mark.parametrize("table", [SENDING, RECEIVING])
def test_nothing_leaves_the_end(table: Table) -> None:
    assert {after for (half, _), after in table.items() if half is Half.ENDED} == {Half.ENDED}
