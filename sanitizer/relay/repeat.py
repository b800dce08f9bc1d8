"""A request head that a client sends again: what upstream is to get for it is known already.

Clients send one head after another that differs in the value of Content-Length alone. A head that is equal, octet by
octet, to one that has been judged, but for other digits in that place, says the same and needs no second judgement.
"""

import re
from typing import Final, NamedTuple

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_DIGITS: Final = 18


class Repeat(NamedTuple):
    """A head in octets, and the head for upstream, each before and after the digits of Content-Length."""

    before: bytes
    after: bytes
    onward_before: bytes
    onward_after: bytes
    method: bytes
    keep_alive: bool
    has_length: bool

    @classmethod
    def of(cls, octets: bytes, onward: bytes, method: bytes, keep_alive: bool) -> "Repeat":
        """``octets``: a head with at most one Content-Length, and no other framing; ``onward``: what upstream gets."""
        match, passed = _LENGTH.search(octets), _LENGTH.search(onward)
        if match is None or passed is None:
            return cls(octets, b"", onward, b"", method, keep_alive, False)
        parts = octets[: match.start(1)], octets[match.end(1) :], onward[: passed.start(1)], onward[passed.end(1) :]
        return cls(*parts, method, keep_alive, True)

    def match(self, octets: bytes) -> tuple[bytes, int] | None:
        """The head for upstream and the content's length, if ``octets`` is this head again."""
        if not self.has_length:
            return (self.onward_before, 0) if octets == self.before else None
        digits = octets[len(self.before) : -len(self.after)]
        if (
            digits.isdigit()
            and len(digits) <= _DIGITS
            and octets.startswith(self.before)
            and octets.endswith(self.after)
        ):
            return self.onward_before + digits + self.onward_after, int(digits)
        return None
