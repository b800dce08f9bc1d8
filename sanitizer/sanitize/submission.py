"""What an intercepted request sends, and whether it may be edited."""

import re
from collections.abc import Collection, Iterable
from email.message import Message
from typing import Final

from sanitizer.sanitize.gates import UPDATE, Cut, Gate
from sanitizer.sanitize.jsonedit import Json, NotInspectable, cut, loads, members
from sanitizer.sanitize.judges import Row
from sanitizer.sanitize.targets import Target

_ABOUT_CONTENT: Final = re.compile(
    rb"\r\n(content-(?:type|encoding|length|digest|md5)|repr-digest|digest|signature(?:-input)?|x-amz-content-sha256)"
    rb":[ \t]*([^\r]*)",
    re.IGNORECASE,
)
"""Field lines that say what the content is. Those that vouch for it are of RFC 9530, RFC 3230, RFC 1864 (with RFC 2616
section 14.15), RFC 9421 and AWS Signature Version 4."""

_BEFORE: Final = Cut.BEFORE_FORWARDING  # members read off the class are slow


class Submission:
    """An inspected body: its members, the gates on what it sends, and the key that it is about.

    ``values`` has the members that gates are judged by. ``gates`` are those on its members, less those that cut after
    a refusal if the value cannot be unchanged. ``alias`` names the key where ``key`` is None.
    """

    def __init__(self, body: bytes, target: Target) -> None:
        """Raises `NotInspectable`, also for ``duplicate_member`` among the members that are looked at.

        No body has no members: a key is regenerated without one.
        """
        self.body = body
        self._members = members(body) if body else []
        looked_at = [(name, body[value:end]) for name, _, value, end, _ in self._members if name in target.looked_at]
        self.values = values = {name: loads(value) for name, value in looked_at}
        if len(values) < len(looked_at):
            raise NotInspectable("duplicate_member")
        self.gates = tuple(
            gate
            for gate in target.gates
            if gate.field in values and (gate.cut is _BEFORE or gate.can_be_unchanged(values[gate.field]))
        )
        key = values.get("key", target.key)  # the body's beats the path's
        self.key = _name(key)
        self.alias = _name(values.get("key_alias")) if target.endpoint == UPDATE and key is None else None

    @property
    def names_a_key(self) -> bool:
        """Whether the key can be looked up."""
        return self.key is not None or self.alias is not None

    @property
    def comparable(self) -> list[Gate]:
        """The gates whose members may be cut before the request is forwarded."""
        return [gate for gate in self.gates if gate.cut is _BEFORE and gate.can_be_unchanged(self.values[gate.field])]

    def writes(self, fields: Collection[str]) -> bool:
        """Whether the body without ``fields`` may change what others are compared with before they are forwarded."""
        compared = {gate.field for gate in self.gates if gate.cut is _BEFORE}
        return not (compared | ({"team_id"} & self.values.keys())).issubset(fields)

    def unchanged(self, gates: Iterable[Gate], row: Row) -> tuple[list[str], bool]:
        """The fields of ``gates`` that are unchanged, and whether the shape of all that was compared is known."""
        verdicts = [(gate.field, gate.unchanged(self.values, row)) for gate in gates]
        return [name for name, verdict in verdicts if verdict], all(verdict is not None for _, verdict in verdicts)

    def without(self, fields: Collection[str]) -> bytes:
        """The body less ``fields``."""
        return cut(self.body, self._members, fields)

    def in_order(self, fields: Collection[str]) -> tuple[str, ...]:
        """``fields`` in the order in which the body has them."""
        return tuple([name for name in self.values if name in fields])


def obstacle(head: bytes, max_body: int) -> str | None:
    """Why the body under this head must not be edited, as a stable token; None if it may be.

    ``head`` is octets whose field lines each follow a CRLF; ``max_body`` is bytes. The tokens: ``content_type``,
    ``content_encoding``, ``signed``, and ``too_large`` for a Content-Length over ``max_body``.
    """
    types: list[str] = []
    found: str | None = None
    for name, value in _ABOUT_CONTENT.findall(head):
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"content-type":
            types.append(value.decode("latin-1"))
        elif name == b"content-encoding":
            if value.lower() not in (b"", b"identity"):
                return "content_encoding"
        elif name == b"content-length":
            if exceeds(value, max_body):
                found = "too_large"
        else:
            return "signed"
    # more than one: servers differ in which they take
    if types and (len(types) > 1 or not _json(types[0])):
        return "content_type"
    return found


def exceeds(length: bytes, limit: int) -> bool:
    """Whether a Content-Length, however long, says more than ``limit`` bytes. What is no number says nothing."""
    digits, bound = length.lstrip(b"0"), b"%d" % limit
    return digits.isdigit() and (len(digits), digits) > (len(bound), bound)


def _json(content_type: str) -> bool:
    """Whether LiteLLM parses the body as JSON, as FastAPI decides it: an empty value counts as a missing one."""
    if content_type in ("", "application/json"):
        return True
    if "form" in content_type.lower():  # anywhere: LiteLLM's authentication then reads a form, FastAPI perhaps JSON
        return False
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def _name(value: Json) -> str | None:
    """The value, if it can name a key."""
    # LiteLLM's /key/info would take an empty key for the caller's own; a lone surrogate can be neither hashed nor sent
    try:
        return value if isinstance(value, str) and value.encode() else None
    except UnicodeEncodeError:
        return None
