"""``python -m tests.soak --minutes 10 [--connections 64]``: the exit status is 1 if any verdict is negative."""

from __future__ import annotations

import argparse
import asyncio
import sys

import uvloop

from tests.soak.report import text
from tests.soak.run import Options, soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load [10]")
    parser.add_argument("--connections", type=int, default=64, help="clients at once [64]")
    parser.add_argument("--restart-every", type=float, default=20.0, help="seconds between restarts of upstream [20]")
    parser.add_argument("--seed", type=int, default=0, help="of what the clients do [0]")
    given = parser.parse_args()
    options = Options(given.minutes * 60, given.connections, given.restart_every, seed=given.seed)
    print(f"soaking for {options.seconds:.0f} s and some more ...", file=sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(soak(options))
    print(text(report))
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
