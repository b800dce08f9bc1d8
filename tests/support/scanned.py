"""Counts the octets that regular expressions scan while a chunked content is received octet by octet.

    python -m tests.support.scanned <content

This is a program and not a test, because it has to replace `re.compile` before it loads the module that it measures. A
module compiled by mypyc does not look up its patterns again.
"""

import re
import sys
from collections.abc import Callable
from typing import Any


class CountingPattern:
    """A compiled pattern. ``octets`` counts what all of them have been applied to."""

    octets = 0

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def scan(octets: bytes, at: int = 0) -> Any:
            CountingPattern.octets += len(octets) - at
            return getattr(self._pattern, name)(octets, at)

        return scan


def main() -> None:
    """Feed standard input to a `ChunkedReader`, and print the count."""
    original: Callable[..., Any] = re.compile

    def replacement(pattern: Any, flags: int = 0) -> Any:
        compiled = original(pattern, flags)
        return CountingPattern(compiled) if isinstance(pattern, bytes) else compiled

    re.compile = replacement
    from sanitizer.http1.bodies import ChunkedReader

    reader = ChunkedReader()
    for octet in sys.stdin.buffer.read():
        reader.feed(bytes((octet,)))
    print(CountingPattern.octets)


if __name__ == "__main__":
    main()
