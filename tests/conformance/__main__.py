"""Run the table against both adapters and a plain httpx relay, and print how many rows pass, by source.

``python -m tests.conformance [--failures] [adapter ...]``
"""

import argparse
import sys
from collections import Counter
from typing import Final, get_args

from tests.conformance import all_rows
from tests.conformance.labs import Labs
from tests.conformance.table import Row
from tests.support import wire
from tests.support.gateway import Adapter

ADAPTERS: Final[tuple[Adapter, ...]] = get_args(Adapter)


def source(row: Row) -> str:
    """The suite or RFC that the row's requirement comes from, without the section or the test's name."""
    head = row.source.split(":")[0].split(",")[0]
    return " ".join(head.split(" ")[:2]) if head.startswith("RFC") else head


def failures(adapter: Adapter, rows: list[Row]) -> dict[str, str]:
    """The rows that fail on ``adapter``, by name, with the reason."""
    found = {}
    with Labs() as labs:
        for row in rows:
            # the httpx relay has no options, but must satisfy every row all the same
            lab = labs.get(adapter, () if adapter == "httpx" else row.options)
            try:
                row.run(lab)
            except (AssertionError, wire.Cut, OSError, ValueError, IndexError) as error:
                found[row.name] = f"{type(error).__name__}: {str(error)[:300]}"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("adapters", nargs="*", metavar="adapter", help=f"one of {', '.join(ADAPTERS)}; by default all")
    parser.add_argument("--failures", action="store_true", help="print the rows that fail, with the reason")
    arguments = parser.parse_args()
    adapters: list[Adapter] = arguments.adapters or list(ADAPTERS)
    if unknown := set(adapters).difference(ADAPTERS):
        parser.error(f"unknown adapter: {', '.join(sorted(unknown))}")
    rows = all_rows()
    wire.TIMEOUT = 2.0  # a row that fails by waiting should not take long
    failed = {adapter: failures(adapter, rows) for adapter in adapters}
    totals = Counter(source(row) for row in rows)
    print(f"{'source':<28}{'rows':>6}" + "".join(f"{adapter:>8}" for adapter in adapters))
    for name, total in [*sorted(totals.items()), ("all", len(rows))]:
        passed = (
            sum(row.name not in failed[adapter] for row in rows if name in ("all", source(row))) for adapter in adapters
        )
        print(f"{name:<28}{total:>6}" + "".join(f"{count:>8}" for count in passed))
    lost = Counter(row.asgi.lost for row in rows if row.asgi)
    print("\nWhat the ASGI adapter cannot carry (its rows assert what it does instead):")
    for each, count in lost.items():
        print(f"  {count:>3}  {each.value}")
    if "httpx" in failed:
        print(f"\nThe httpx relay fails {len(failed['httpx'])} of {len(rows)} rows.")
    if arguments.failures:
        for adapter in adapters:
            for name, reason in failed[adapter].items():
                print(f"\n{adapter}: {name}\n    {reason}")
    return 1 if any(failed[adapter] for adapter in adapters if adapter != "httpx") else 0


if __name__ == "__main__":
    sys.exit(main())
