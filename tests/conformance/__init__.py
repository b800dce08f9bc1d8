"""A table of what the RFCs and other test suites require of an intermediary, which is run against both adapters.

``python -m tests.conformance`` runs it without pytest, and prints the counts by source and adapter.
"""

from tests.conformance.table import Row


def all_rows() -> list[Row]:
    """The whole table."""
    from tests.conformance import connections, fields, framing, responses, syntax

    return [*fields.ROWS, *syntax.ROWS, *framing.ROWS, *responses.ROWS, *connections.ROWS]
