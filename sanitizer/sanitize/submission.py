"""The body of an intercepted request, and whether it may be inspected."""

import re
from collections.abc import Collection, Iterable
from email.message import Message
from typing import Final

from sanitizer.sanitize.endpoints import Endpoint
from sanitizer.sanitize.gates import UPDATE, Cut, Gate
from sanitizer.sanitize.jsonedit import Json, NotInspectable, cut, loads, members
from sanitizer.sanitize.judges import Row

_CONTENT_FIELDS: Final = re.compile(
    rb"\r\n(content-(?:type|encoding|length|digest|md5)|repr-digest|digest|signature(?:-input)?|x-amz-content-sha256)"
    rb":[ \t]*([^\r]*)",
    re.IGNORECASE,
)
"""Field lines that describe or sign the content. Digests and signatures are those of RFC 9530, RFC 3230, RFC 1864 (with
RFC 2616 section 14.15), RFC 9421 and AWS Signature Version 4."""

_BEFORE: Final = Cut.BEFORE_FORWARDING  # reading a member from the enum's class is slow


class Submission:
    """An inspected body: its members, the gates on them, and the key that the request is about.

    `values` maps the names of the members in `Endpoint.inspected` to their values. `gates` are the gates on members of
    the body. A gate that cuts after a refusal is not among them if the sent value cannot be unchanged. `key` is the
    key that the request names; if it is None, `alias` is the alias that names the key, or None.
    """

    def __init__(self, body: bytes, endpoint: Endpoint) -> None:
        """Inspect ``body``. An empty one counts as an object without members: regenerating a key needs no body.

        Raises `NotInspectable` if the body is not a JSON object that may be edited (see
        `sanitizer.sanitize.jsonedit.members`), or with ``duplicate_member`` if an inspected member is repeated.
        """
        self.body = body
        self._members = members(body) if body else []
        inspected = [(name, body[value:end]) for name, _, value, end, _ in self._members if name in endpoint.inspected]
        self.values = values = {name: loads(value) for name, value in inspected}
        if len(values) < len(inspected):
            raise NotInspectable("duplicate_member")
        self.gates = tuple(
            gate
            for gate in endpoint.gates
            if gate.field in values and (gate.cut is _BEFORE or gate.can_be_unchanged(values[gate.field]))
        )
        key = values.get("key", endpoint.key)  # a key in the body takes precedence over the one in the path
        self.key = _identifier(key)
        self.alias = _identifier(values.get("key_alias")) if endpoint.name == UPDATE and key is None else None

    @property
    def names_a_key(self) -> bool:
        """Whether the request names a key, which can then be looked up."""
        return self.key is not None or self.alias is not None

    @property
    def gates_before_forwarding(self) -> list[Gate]:
        """The gates whose members may be cut before the request is forwarded."""
        return [gate for gate in self.gates if gate.cut is _BEFORE and gate.can_be_unchanged(self.values[gate.field])]

    def makes_cache_stale(self, cut_fields: Collection[str]) -> bool:
        """Whether the body, without ``cut_fields``, may write a stored value that is read from cached lookups.

        Only comparisons before forwarding use the cache. They read the fields that may be cut then, and ``team_id``.
        """
        compared = {gate.field for gate in self.gates if gate.cut is _BEFORE}
        return not (compared | ({"team_id"} & self.values.keys())).issubset(cut_fields)

    def unchanged(self, gates: Iterable[Gate], row: Row) -> tuple[list[str], bool]:
        """Compare the members of ``gates`` with the stored ``row``.

        Returns the names of those that are unchanged, and whether all stored values had the expected shape.
        """
        verdicts = [(gate.field, gate.unchanged(self.values, row)) for gate in gates]
        return [name for name, verdict in verdicts if verdict], all(verdict is not None for _, verdict in verdicts)

    def without(self, fields: Collection[str]) -> bytes:
        """The body without the members named in ``fields``."""
        return cut(self.body, self._members, fields)

    def in_order(self, fields: Collection[str]) -> tuple[str, ...]:
        """``fields`` in the order of the body's members."""
        return tuple([name for name in self.values if name in fields])


def reason_not_to_inspect(head: bytes, max_body: int) -> str | None:
    """The reason why the content of a request must not be inspected, or None if it may be.

    ``head`` is the request head in octets, in which a CRLF precedes each field line. The reason is a stable token:
    ``content_type``, ``content_encoding``, ``signed``, or ``too_large`` for a Content-Length over ``max_body`` bytes.
    """
    types: list[str] = []
    reason: str | None = None
    for name, value in _CONTENT_FIELDS.findall(head):
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"content-type":
            types.append(value.decode("latin-1"))
        elif name == b"content-encoding":
            if value.lower() not in (b"", b"identity"):
                return "content_encoding"
        elif name == b"content-length":
            if exceeds(value, max_body):
                reason = "too_large"
        else:
            return "signed"
    # If there is more than one Content-Type, servers differ in which one they use.
    if types and (len(types) > 1 or not _is_json(types[0])):
        return "content_type"
    return reason


def exceeds(length: bytes, limit: int) -> bool:
    """Whether a Content-Length of any number of digits exceeds ``limit``. False if it is not a number."""
    digits, bound = length.lstrip(b"0"), b"%d" % limit
    return digits.isdigit() and (len(digits), digits) > (len(bound), bound)


def _is_json(content_type: str) -> bool:
    """Whether LiteLLM parses the body as JSON, by FastAPI's rules. An empty Content-Type counts as a missing one."""
    if content_type in ("", "application/json"):
        return True
    # If it contains "form", LiteLLM's authentication reads the body as a form, even if FastAPI then parses it as JSON.
    if "form" in content_type.lower():
        return False
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def _identifier(value: Json) -> str | None:
    """``value`` if it can identify a key, else None."""
    # LiteLLM's /key/info answers an empty key with the caller's own. A lone surrogate can be neither hashed nor sent.
    try:
        return value if isinstance(value, str) and value.encode() else None
    except UnicodeEncodeError:
        return None
