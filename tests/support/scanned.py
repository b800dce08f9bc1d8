"""Counts the octets that regular expressions are given to look at while a chunked content comes octet by octet.

    python -m tests.support.scanned <content

It is a program of its own, because it has to replace `re.compile` before it loads the module that it measures: a
compiled module does not look up its patterns again.
"""

import re
import sys
from collections.abc import Callable
from typing import Any


class Scanned:
    """A pattern for octets that counts those that it is given to look at."""

    octets = 0

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def scan(octets: bytes, at: int = 0) -> Any:
            Scanned.octets += len(octets) - at
            return getattr(self._pattern, name)(octets, at)

        return scan


def main() -> None:
    """Feed a reader what comes on standard input, and print the count."""
    original: Callable[..., Any] = re.compile

    def replacement(pattern: Any, flags: int = 0) -> Any:
        compiled = original(pattern, flags)
        return Scanned(compiled) if isinstance(pattern, bytes) else compiled

    re.compile = replacement
    from sanitizer.http1.bodies import ChunkedReader

    reader = ChunkedReader()
    for octet in sys.stdin.buffer.read():
        reader.feed(bytes((octet,)))
    print(Scanned.octets)


if __name__ == "__main__":
    main()
