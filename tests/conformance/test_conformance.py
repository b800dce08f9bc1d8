"""Every row of the table, against both adapters."""

import re
from collections.abc import Iterator

import pytest

from tests.conformance import all_rows
from tests.conformance.labs import Labs
from tests.conformance.table import Row
from tests.support.gateway import ROOT, Adapter

README = (ROOT / "tests/conformance/README.md").read_text()


@pytest.fixture(scope="session")
def labs() -> Iterator[Labs]:
    with Labs() as labs:
        yield labs


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in all_rows()])
@pytest.mark.parametrize("adapter", ["native", "asgi"])
def test_row(labs: Labs, adapter: Adapter, row: Row) -> None:
    """The gateway does what the row says, with either adapter."""
    row.run(labs.get(adapter, row.options))


def test_table() -> None:
    """The table has as many rows as README states, and no two rows have the same name."""
    rows = all_rows()
    said = re.search(
        r"The table has (\d+) rows, .*? all\nhold on both; (\d+) say what ASGI can't carry", README, re.DOTALL
    )
    assert said
    assert (int(said[1]), int(said[2])) == (len(rows), sum(row.asgi is not None for row in rows))
    assert len({row.name for row in rows}) == len(rows)
