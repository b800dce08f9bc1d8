"""What other suites, and the RFCs, ask of an intermediary, asked of this one: one table, played over both adapters.

``python -m tests.conformance`` plays it without pytest and prints the counts by source and adapter.
"""

from tests.conformance.table import Row


def all_rows() -> list[Row]:
    """The whole table."""
    from tests.conformance import connections, fields, framing, responses, syntax

    return [*fields.ROWS, *syntax.ROWS, *framing.ROWS, *responses.ROWS, *connections.ROWS]
