"""What is to become of an intercepted request: its head, its body and the stored key in, a `Decision` out. Pure."""

import re
from dataclasses import dataclass, field, replace
from email.message import Message
from enum import StrEnum
from typing import Final

from sanitizer.sanitize.gates import Gate, Target
from sanitizer.sanitize.jsonedit import Json, Member, NotInspectable, cut, loads, members

_ABOUT_CONTENT: Final = re.compile(
    rb"\r\n(content-(?:type|encoding|length|digest|md5)|repr-digest|digest|signature(?:-input)?|x-amz-content-sha256)"
    rb":[ \t]*([^\r]*)",
    re.IGNORECASE,
)
"""Field lines that say what the content is. Those that vouch for it are of RFC 9530, RFC 3230, RFC 1864 (with RFC 2616
section 14.15), RFC 9421 and AWS Signature Version 4."""


class Outcome(StrEnum):
    """How an intercepted request was decided: metric label, log field and response header."""

    DROPPED = "dropped"  # at least one field cut
    CHANGED = "changed"  # guarded fields present, none equal: forwarded as sent
    ABSENT = "absent"  # no guarded field
    UNREADABLE = "unreadable"  # body not inspectable
    UNKNOWN = "unknown"  # no usable stored value
    OBSERVED = "observed"  # would have been dropped, but the mode is "observe"


@dataclass(frozen=True, slots=True)
class Decision:
    """``fields``: what was cut, or would have been. ``reason``: a stable token. ``body``: None leaves it as sent.

    ``lookup_key``: the caller's own lookup was refused, and the gateway's own credential was used for another.
    """

    outcome: Outcome
    fields: tuple[str, ...] = ()
    reason: str | None = None
    body: bytes | None = field(default=None, repr=False)  # it holds a key
    lookup_key: bool = False

    def observed(self) -> "Decision":
        """The same in mode ``observe``, where nothing is cut."""
        return replace(self, outcome=Outcome.OBSERVED, body=None) if self.outcome is Outcome.DROPPED else self


@dataclass(frozen=True, slots=True)
class Stored:
    """The key as LiteLLM has it: ``info`` of ``GET /key/info``; ``cached``: read for an earlier request.

    ``lookup_key``: read with the gateway's own credential.
    """

    info: dict[str, Json]
    cached: bool = False
    lookup_key: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """There is no usable stored value; ``reason`` is a stable token. ``lookup_key`` as in `Stored`."""

    reason: str
    lookup_key: bool = False


@dataclass(frozen=True, slots=True)
class Submission:
    """An inspected body: its members, what it sends for the guarded fields, and the key that it is about."""

    body: bytes
    members: list[Member]
    sent: list[tuple[Gate, Json]]
    key: str | None

    @property
    def needs_lookup(self) -> bool:
        """Whether anything could be dropped."""
        return self.key is not None and any(_comparable(gate, value) for gate, value in self.sent)


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
            if value.isdigit() and _longer(value, max_body):
                found = "too_large"
        else:
            return "signed"
    # more than one: servers differ in which they take
    if types and (len(types) > 1 or not _json(types[0])):
        return "content_type"
    return found


def _longer(digits: bytes, limit: int) -> bool:
    digits = digits.lstrip(b"0")
    return len(digits) > 18 or int(digits or b"0") > limit


def _json(content_type: str) -> bool:
    """Whether LiteLLM parses the body as JSON, judged in FastAPI's way: an empty value counts as a missing one."""
    if content_type in ("", "application/json"):
        return True
    if "form" in content_type.lower():  # anywhere: LiteLLM's authentication then reads a form, FastAPI perhaps JSON
        return False
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def inspect(body: bytes, target: Target) -> Submission:
    """Find the guarded fields and the key. Raises `NotInspectable`, also for ``duplicate_member`` among those.

    No body has no members: a key is regenerated without one.
    """
    found = members(body) if body else []
    gates = {gate.field: gate for gate in target.gates}
    looked_at = [member for member in found if member.name in gates or member.name == "key"]
    if len({member.name for member in looked_at}) < len(looked_at):
        raise NotInspectable("duplicate_member")
    sent: list[tuple[Gate, Json]] = []
    key: Json = target.key
    for member in looked_at:
        if member.name in gates:
            sent.append((gates[member.name], loads(body[member.value : member.end])))
        else:  # the key beats the path's
            key = loads(body[member.value : member.end])
    return Submission(body, found, sent, key if isinstance(key, str) and _names_a_key(key) else None)


def _names_a_key(key: str) -> bool:
    # LiteLLM's /key/info would take an empty key for the caller's own; a lone surrogate can be neither hashed nor sent
    try:
        return bool(key.encode())
    except UnicodeEncodeError:
        return False


def decide(submission: Submission, stored: Stored | Unknown) -> Decision:
    """Judge the guarded fields one by one. The unchanged are cut: LiteLLM answers as if they had been omitted."""
    if not submission.sent:
        return Decision(Outcome.ABSENT)
    unchanged: list[str] = []
    reason: str | None = None
    for gate, value in submission.sent:
        if not _comparable(gate, value):
            continue
        if isinstance(stored, Unknown):
            reason = stored.reason
            continue
        verdict = _judge(gate, value, stored)
        if verdict is None:
            reason = "stored_shape"
        elif verdict:
            unchanged.append(gate.field)
    if unchanged:
        body = cut(submission.body, submission.members, unchanged)
        return Decision(Outcome.DROPPED, tuple(unchanged), None, body, stored.lookup_key)
    outcome = Outcome.CHANGED if reason is None else Outcome.UNKNOWN
    return Decision(outcome, reason=reason, lookup_key=stored.lookup_key)


def _comparable(gate: Gate, value: Json) -> bool:
    """Whether ``value`` could be the stored one: a null is a change, but where LiteLLM stores null itself."""
    return value is not None or gate.nullable


def _judge(gate: Gate, value: Json, stored: Stored) -> bool | None:
    held: Json = stored.info
    for name in gate.stored_at:
        if not isinstance(held, dict) or name not in held:
            return None
        held = held[name]
    return gate.unchanged(value, held)
