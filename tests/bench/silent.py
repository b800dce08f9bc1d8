"""The gateway without the work that a relayed request does for the metrics. `counting` measures what that work costs.

It is run as a script, so that it finds the installed gateway as every peer does. The gateway must run in pure Python,
because nothing can be replaced in a compiled module.
"""

import sys

from sanitizer import cli
from sanitizer.relay import exchange
from sanitizer.relay.client import ClientConnection
from sanitizer.relay.counters import Histogram


def nothing(*_: object) -> None: ...


if __name__ == "__main__":
    for owner, name, instead in (  # three integer additions remain
        (exchange, "perf_counter", float),  # returns 0.0 and reads no clock
        (Histogram, "observe", nothing),
        (ClientConnection, "_count", nothing),
    ):
        setattr(owner, name, instead)
    sys.exit(cli.main(sys.argv[1:]))
