"""The sanitizer itself: which requests it intercepts, and what becomes of each of them. It knows no transport.

An adapter carries requests, natively (`sanitizer.relay.intercepted`) or as ASGI (`sanitizer.sanitize.middleware`), and
asks an `Interception` what to send. What can go wrong, and what the caller then sees:

- The body cannot be inspected, or the lookup gives nothing: LiteLLM gets the request as it came and answers it.
- The body is over the limit, or too many bodies are held: what was collected is sent on, and the rest follows it.
- The client leaves before its request could be forwarded: nothing is sent.

``Expect: 100-continue`` stays in the request although its body is asked for before it is forwarded: it is end-to-end,
and an origin may still refuse by it (RFC 9110 section 10.1.1). A second 100 from there does no harm.
"""

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Final

from sanitizer.sanitize.callers import address_of, caller_key, forwarded_for
from sanitizer.sanitize.comparison import Comparison
from sanitizer.sanitize.decision import Decision, Outcome
from sanitizer.sanitize.gates import FIELDS, Gate
from sanitizer.sanitize.jsonedit import NotInspectable
from sanitizer.sanitize.queries import key_hash
from sanitizer.sanitize.refusal import LIMIT, refusal_text
from sanitizer.sanitize.stored import Ask, Caller, Lookup, StoredKeys
from sanitizer.sanitize.submission import Submission, obstacle
from sanitizer.sanitize.targets import Target, Targets

MAX_HELD: Final = 64 * 1024 * 1024
"""Bytes of all request bodies held at once by one `Sanitizer`; a body that would go over it is not inspected."""

FIELD: Final = b"x-litellm-sanitizer"
"""The response field that says what was decided."""

_MAY_WRITE: Final = "/key|/team|/user|/access_group|/v1/access_group|/v1/unified_access_group"
"""Endpoints of LiteLLM under which a request may change keys, even keys that it does not name."""

_CALL_ID: Final = re.compile(rb"\r\nx-litellm-call-id:[ \t]*([\x21-\x7e]{1,128})[ \t]*\r\n", re.IGNORECASE)
# W3C Trace Context section 3.2.2
_TRACEPARENT: Final = re.compile(
    rb"\r\ntraceparent:[ \t]*([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})[ \t]*\r\n", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One intercepted request, for logs and metrics.

    ``key_hash``: the first 8 hex digits of the key's SHA-256. ``lookups``: those made for it, in order. ``resent``: how
    many times it was sent again after a refusal.
    ``caller_hash``: of the key that the request authenticates with, if it is one (`sanitizer.sanitize.callers`).
    ``client``: the address that it has come from, None on a unix socket; ``forwarded_for``: the last addresses of the
    X-Forwarded-For that LiteLLM gets, if that is another one.
    The decision's reason is ``client_left`` when the request was not forwarded because its client had left, and
    ``refused`` when the gateway answered it itself with an error, because its content is malformed.
    ``status``: of the response; None if none has begun. ``call_id``: LiteLLM's name for the request, from its
    response; ``traceparent``: the client's (W3C Trace Context). Neither is reported if it is overlong or malformed.
    """

    endpoint: str
    decision: Decision
    key_hash: str | None = None
    caller_hash: str | None = None
    client: str | None = None
    forwarded_for: str | None = None
    lookups: tuple[Lookup, ...] = ()
    resent: int = 0
    status: int | None = None
    call_id: str | None = None
    traceparent: str | None = None


class Sanitizer:
    """Cuts guarded fields out of intercepted requests if they are sent unchanged.

    ``stored`` looks keys up. ``mode``: ``enforce``; ``observe`` decides and reports but forwards as sent; ``off``
    intercepts nothing. ``fields``: those that may be cut. ``prefixes``: the path prefixes LiteLLM answers under, ``""``
    for none. ``max_body``: bytes of the largest body inspected. ``on_decision`` is called once an intercepted request,
    when the head of its response has come or it is over without one.
    """

    def __init__(
        self,
        stored: StoredKeys | None = None,
        *,
        mode: str = "enforce",
        fields: Collection[str] = FIELDS,
        prefixes: Iterable[str] = ("",),
        max_body: int = 1024 * 1024,
        on_decision: Callable[[Record], None] | None = None,
    ) -> None:
        self.held = 0  # bytes of bodies
        self.stored = stored or StoredKeys()
        self.observes = mode == "observe"
        self.max_body = max_body
        self.on_decision = on_decision
        prefixes = tuple(prefixes)
        self._targets = Targets(() if mode == "off" else fields, prefixes)
        self._may_write = re.compile(f"(?:{'|'.join(map(re.escape, prefixes))})(?:{_MAY_WRITE})(?:/|\\Z)")
        self.writing = self._writing if self.stored.caches else None

    def intercepts(self, path: str) -> bool:
        """Whether a POST to ``path`` (decoded) is intercepted."""
        return self._targets.find(path) is not None

    def _writing(self, path: str) -> AbstractContextManager[None] | None:
        """The context in which a request to ``path`` (decoded) that is not intercepted has to run, or None.

        `writing` is this method, or None if there is no cache that such a request could make stale.
        """
        return self.stored.writing(None) if self._may_write.match(path) else None

    def intercept(self, path: str, head: bytes, outbound: bytes, ask: Ask, client: str | None) -> "Interception | None":
        """The interception of a POST to ``path`` (decoded), or None: then the request is an ordinary one.

        ``head`` is the request's head in octets as it was received, ``outbound`` the one it is sent to LiteLLM with: a
        start line, which may be empty, and field lines. ``ask`` sends lookups. ``client`` is the address that the
        request has come from, None on a unix socket.
        """
        target = self._targets.find(path)
        return None if target is None else Interception(self, target, head, Caller(outbound, ask, client))


class Interception:
    """One intercepted request. Its adapter calls, in this order:

    1. if `inspects`: `collect` with each piece of the content, until it is whole or `collect` returns False, or
       `stop_collecting`; then `edit` if it is whole, else `release`;
    2. `holds` with the status of each answer, and `next_body` with an answer that was held back; no more than
       `held_limit` bytes of its content are held back, and a longer answer passes on;
    3. `answered` when the head of the answer goes out, unless there is none;
    4. `close`, always.

    `confidential`: any answer to a further send but a 2xx is not for the caller, who gets the first one instead.
    Heads are octets in which each field line follows a CRLF; the last one may be followed by one CRLF or by two.
    """

    field = FIELD
    held_limit = LIMIT

    def __init__(self, sanitizer: Sanitizer, target: Target, head: bytes, caller: Caller) -> None:
        self.confidential = False
        self._sanitizer = sanitizer
        self._target = target
        self._head = head
        self._caller = caller
        self._pieces: list[bytes] = []
        self._held = 0
        self._comparison: Comparison | None = None  # None: the content is not inspected, or not yet
        self._decision: Decision | None = None  # as soon as the request is forwarded
        self._reported = False
        self._forwarding = ExitStack()  # while the request may write the key
        reason = obstacle(head, sanitizer.max_body)
        self.inspects = reason is None
        if reason is not None:
            self._forward(Decision(Outcome.UNREADABLE, reason=reason))

    def collect(self, data: bytes) -> bool:
        """Take a piece of the content. False: it cannot be inspected, and all of it has to be sent on as it comes."""
        sanitizer = self._sanitizer
        self._pieces.append(data)
        self._held += len(data)
        sanitizer.held += len(data)
        if self._held > sanitizer.max_body:
            reason = "too_large"
        elif sanitizer.held > MAX_HELD:
            reason = "busy"
        else:
            return True
        self._forward(Decision(Outcome.UNREADABLE, reason=reason))
        return False

    def stop_collecting(self) -> None:
        """The rest of the content does not come: what there is has to be sent on now, and the rest when it comes."""
        self._forward(Decision(Outcome.UNREADABLE, reason="stalled"))

    @property
    def body(self) -> bytes:
        """The content as far as it has been collected."""
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    def release(self) -> bytes:
        """The content as far as it has been collected, which is no longer held here."""
        body = self.body
        self._pieces.clear()
        self._sanitizer.held -= self._held
        self._held = 0
        return body

    async def edit(self) -> bytes | None:
        """The body to send in place of the one that was collected, None for that one. Cancelling ends the lookup."""
        try:
            submission = Submission(self.body, self._target)
        except NotInspectable as finding:
            self._forward(Decision(Outcome.UNREADABLE, reason=finding.reason))
            return None
        sanitizer = self._sanitizer
        self._comparison = comparison = Comparison(
            submission, sanitizer.stored, self._caller, self._target.prefix, observes=sanitizer.observes
        )
        await comparison.compare()
        self._forward(comparison.decision)
        return comparison.body

    def give_up(self) -> None:
        """`edit` or `next_body` has failed: the request, or the answer, goes on as it came."""
        if self._decision is None:
            self._forward(Decision(Outcome.UNKNOWN, reason="internal"))

    def holds(self, status: int) -> bool:
        """Whether an answer with this status has to be held back until `next_body` has seen it."""
        return bool(self._candidates(status))

    async def next_body(self, status: int, head: bytes, content: bytes) -> bytes | None:
        """The body to send after this answer, which was held back; None to pass the answer on.

        Cancelling ends the lookup. Each further send cuts at least one member that was not cut before, and there are at
        most `sanitizer.sanitize.comparison.MAX_RESENDS`.
        """
        comparison, text = self._comparison, refusal_text(head, content)
        gates = [gate for gate in self._candidates(status) if any(fragment in text for fragment in gate.fragments)]
        if comparison is None or not gates:
            return None
        resend = await comparison.compare_refused(gates)
        self._forward(comparison.decision)
        if not resend:
            return None
        self.confidential = comparison.used_lookup_key
        return comparison.body

    def answered(self, status: int, head: bytes) -> bytes | None:
        """Report the answer; returns what its field `field` says, None if it is not to have one.

        A caller who may not read the key, where the gateway has a credential that may, learns the decision only with a
        2xx: what the credential has read is only for callers that LiteLLM lets write it.
        """
        decision, comparison = self._decision, self._comparison
        assert decision is not None  # noqa: S101 - the request has been forwarded
        success = 200 <= status < 300
        if decision.outcome is Outcome.CHANGED and success and comparison is not None and comparison.has_uncompared:
            decision = Decision(Outcome.CHANGED, reason="accepted")
        self._report(decision, status, head)
        self.release()
        if comparison is not None and comparison.withholds and not success:
            return None
        return decision.field_value

    def close(self, reason: str = "client_left", status: int | None = None) -> None:
        """The request is over; ``reason`` says why it was not forwarded, ``status`` how the gateway refused it.

        May be called again.
        """
        decision = self._decision
        if decision is None:
            outcome = Outcome.UNREADABLE if self._comparison is None else Outcome.UNKNOWN
            decision = self._decision = Decision(outcome, reason=reason)
        self._report(decision, status)
        self.release()
        self._forwarding.close()

    def _candidates(self, status: int) -> list[Gate]:
        """The gates whose members may still be cut, if LiteLLM refuses the request with this status."""
        return [] if self._comparison is None else self._comparison.candidates(status)

    def _forward(self, decision: Decision) -> None:
        """The request goes on by this decision."""
        self._decision = decision
        stored = self._sanitizer.stored
        if not stored.caches:
            return
        submission = self._comparison.submission if self._comparison is not None else None
        if submission is None or decision.outcome is not Outcome.DROPPED or submission.writes(decision.fields):
            self._forwarding.enter_context(stored.writing(submission.key if submission else None))

    def _report(self, decision: Decision, status: int | None, head: bytes = b"") -> None:
        if self._reported:
            return
        self._reported = True
        if self._sanitizer.on_decision is None:
            return
        comparison = self._comparison
        key = comparison.submission.key if comparison is not None else None
        caller = self._caller
        own_key, client, forwarded = caller_key(caller.head), address_of(caller.client), forwarded_for(caller.head)
        self._sanitizer.on_decision(
            Record(
                endpoint=self._target.endpoint,
                decision=decision,
                key_hash=key_hash(key) if key is not None else None,
                caller_hash=key_hash(own_key) if own_key is not None else None,
                client=client,
                forwarded_for=forwarded if forwarded != client else None,
                lookups=tuple(comparison.lookups) if comparison is not None else (),
                resent=comparison.resent if comparison is not None else 0,
                status=status,
                call_id=_value(_CALL_ID, head),
                traceparent=_value(_TRACEPARENT, self._head),
            )
        )


def _value(form: re.Pattern[bytes], head: bytes) -> str | None:
    match = form.search(head)
    return match[1].decode("latin-1") if match else None
