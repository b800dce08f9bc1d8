"""Play the table over both faces, and over a plain httpx relay; print how many rows pass, by source.

``python -m tests.conformance [--failures] [face ...]``
"""

import sys
from collections import Counter
from typing import cast, get_args

from tests.conformance import all_rows
from tests.conformance.labs import Labs
from tests.conformance.table import Row
from tests.support import wire
from tests.support.gateway import Face


def source(row: Row) -> str:
    """The suite or RFC that the row's fact comes from, without the place in it."""
    head = row.source.split(":")[0].split(",")[0]
    return " ".join(head.split(" ")[:2]) if head.startswith("RFC") else head


def failures(face: Face, rows: list[Row]) -> dict[str, str]:
    """The rows that fail on ``face``, by name, with the reason."""
    found = {}
    with Labs() as labs:
        for row in rows:
            # the httpx relay has no options, which is no excuse for not doing what a row asks
            lab = labs.get(face, () if face == "httpx" else row.options)
            try:
                row.run(lab)
            except (AssertionError, wire.Cut, OSError, ValueError, IndexError) as error:
                found[row.name] = f"{type(error).__name__}: {str(error)[:300]}"
    return found


def main(arguments: list[str]) -> int:
    faces = [cast(Face, each) for each in arguments if each in get_args(Face)] or ["fast", "asgi", "httpx"]
    rows = all_rows()
    wire.TIMEOUT = 2.0  # a row that fails by waiting should not take long
    failed = {face: failures(face, rows) for face in faces}
    totals = Counter(source(row) for row in rows)
    print(f"{'source':<28}{'rows':>6}" + "".join(f"{face:>8}" for face in faces))
    for name, total in [*sorted(totals.items()), ("all", len(rows))]:
        passed = (sum(row.name not in failed[face] for row in rows if name in ("all", source(row))) for face in faces)
        print(f"{name:<28}{total:>6}" + "".join(f"{count:>8}" for count in passed))
    lost = Counter(row.asgi.lost for row in rows if row.asgi)
    print("\nWhat the ASGI face cannot carry (its rows assert what it does instead):")
    for each, count in lost.items():
        print(f"  {count:>3}  {each.value}")
    if "httpx" in failed:
        print(f"\nThe httpx relay fails {len(failed['httpx'])} of {len(rows)} rows.")
    if "--failures" in arguments:
        for face in faces:
            for name, reason in failed[face].items():
                print(f"\n{face}: {name}\n    {reason}")
    return 1 if any(failed[face] for face in faces if face != "httpx") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
