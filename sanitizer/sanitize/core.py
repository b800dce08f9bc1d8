"""The sanitizer itself: which requests it intercepts, and what becomes of each of them. It knows no transport.

An adapter carries requests, natively (`sanitizer.relay.intercepted`) or as ASGI (`sanitizer.sanitize.middleware`), and
asks an `Interception` what to send. What can go wrong, and what the caller then sees:

- The body cannot be inspected, or the lookup gives nothing: LiteLLM gets the request as it came and answers it.
- The body is over the limit, or too many bodies are held: what was collected is sent on, and the rest follows it.
- The client leaves before its request could be forwarded: nothing is sent. Nobody is there to read an answer.

``Expect: 100-continue`` stays in the request although its body is asked for before it is forwarded: it is end-to-end,
and an origin may still refuse by it (RFC 9110 section 10.1.1). A second 100 from there harms nobody.
"""

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Final

from sanitizer.sanitize.decision import Decision, Outcome, Stored, Submission, Unknown, obstacle
from sanitizer.sanitize.gates import FIELDS, Cut, Gate, Target, Targets
from sanitizer.sanitize.jsonedit import NotInspectable
from sanitizer.sanitize.refusal import words
from sanitizer.sanitize.stored import Ask, Caller, Lookup, StoredKeys, key_hash

MAX_HELD: Final = 64 * 1024 * 1024
"""Bytes of all request bodies held at once by one `Sanitizer`; a body that would go over it is not inspected."""

MAX_RESENDS: Final = 4
"""Times a request is sent again after a refusal."""

FIELD: Final = b"x-litellm-sanitizer"
"""The response field that says what was decided."""

_MAY_WRITE: Final = "/key|/team|/user|/access_group|/v1/access_group|/v1/unified_access_group"
"""LiteLLM's endpoints under which a request may change keys, also such as it does not name."""

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
    The decision's reason is ``client_left`` when the request was not forwarded because nobody waited for it any more,
    and ``refused`` when the gateway answered it itself with an error, because its content is malformed.
    ``status``: of the response; None if none has begun. ``call_id``: LiteLLM's name for the request, from its
    response; ``traceparent``: the client's (W3C Trace Context). Neither is reported if it is overlong or malformed.
    """

    endpoint: str
    decision: Decision
    key_hash: str | None = None
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

    def intercept(self, path: str, head: bytes, outbound: bytes, ask: Ask) -> "Interception | None":
        """The interception of a POST to ``path`` (decoded), or None: then the request is an ordinary one.

        ``head`` is the request's head in octets as it was received, ``outbound`` the one it is sent to LiteLLM with:
        a start line, which may be empty, field lines and an empty line. ``ask`` sends lookups.
        """
        target = self._targets.find(path)
        return None if target is None else Interception(self, target, head, Caller(outbound, ask))


class Interception:
    """One intercepted request. Its adapter calls, in this order:

    1. if `inspects`: `collect` with each piece of the content, until it is whole or `collect` returns False, or
       `stop_collecting`; then `edit` if it is whole, else `release`;
    2. `holds` with the status of each answer, and `next_body` with an answer that was held;
    3. `answered` when the head of the answer goes out, unless there is none;
    4. `close`, always.

    `confidential`: any answer to a further send but a 2xx is not for the caller, who gets the first one instead.
    """

    field = FIELD

    def __init__(self, sanitizer: Sanitizer, target: Target, head: bytes, caller: Caller) -> None:
        self.confidential = False
        self._sanitizer = sanitizer
        self._target = target
        self._head = head
        self._caller = caller
        self._pieces: list[bytes] = []
        self._held = 0
        self._submission: Submission | None = None
        self._found: Stored | Unknown | None = None  # by a lookup made for this request; None: there was none
        self._lookups: list[Lookup] = []
        self._withholds = False  # what is decided is for the caller to know only with a 2xx
        self._cut: list[str] = []  # or, in mode observe, what would have been cut
        self._after_refusal: list[str] = []  # those members of `_cut` that LiteLLM had refused first
        self._cut_by_cache = False  # `_cut` rests on a value that was read for an earlier request
        self._resent = 0
        self._reason: str | None = None  # why nothing could be compared
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
            self._submission = submission = Submission(self.body, self._target)
            await self._compare(submission)
        except NotInspectable as finding:
            self._forward(Decision(Outcome.UNREADABLE, reason=finding.reason))
            return None
        self._forward(self._decide(submission))
        return submission.without(self._cut) if self._cut and not self._sanitizer.observes else None

    def give_up(self) -> None:
        """`edit` or `next_body` has failed: the request, or the answer, goes on as it came."""
        if self._decision is None:
            self._forward(Decision(Outcome.UNKNOWN, reason="internal"))

    def holds(self, status: int) -> bool:
        """Whether an answer with this status has to be held back until `next_body` has seen it."""
        return any(gate.status == status for gate in self._candidates())

    async def next_body(self, status: int, head: bytes, content: bytes) -> bytes | None:
        """The body to send after this answer, which was held back; None to pass the answer on.

        Cancelling ends the lookup. Each further send cuts at least one member that was not cut before, and there are at
        most `MAX_RESENDS`.
        """
        submission, text = self._submission, words(head, content)
        refusing = [
            gate
            for gate in self._candidates()
            if gate.status == status and any(fragment in text for fragment in gate.fragments)
        ]
        if submission is None or not refusing:
            return None
        found = await self._stored_now(submission)
        if isinstance(found, Unknown):
            self._reason = found.reason
        else:
            self._reason = None
            if self._cut_by_cache:
                self._restore(submission, found)
            unchanged, known = submission.unchanged(refusing, found.info)
            unchanged = [name for name in dict.fromkeys(unchanged) if name not in self._cut]
            if not known:
                self._reason = "stored_shape"
            self._cut += unchanged
            self._after_refusal += unchanged
            if unchanged and not self._sanitizer.observes:
                self._resent += 1
                self.confidential = self._with_lookup_key
                self._decision = self._decide(submission)
                return submission.without(self._cut)
        self._decision = self._decide(submission)
        return None

    def answered(self, status: int, head: bytes) -> bytes | None:
        """Report the answer; returns what its field `field` says, None if it is not to have one.

        A caller who may not read the key, where the gateway has a credential that may, learns the decision only with a
        2xx: what the credential has read is for those whom LiteLLM lets write it.
        """
        decision = self._decision
        if decision is None:
            return None
        if decision.outcome is Outcome.CHANGED and self._found is None and 200 <= status < 300 and self._candidates():
            decision = Decision(Outcome.CHANGED, reason="accepted")
        self._report(decision, status, head)
        self.release()
        if self._withholds and not 200 <= status < 300:
            return None
        value = decision.outcome.encode()
        if decision.fields:
            value += b'; fields="%b"' % ",".join(decision.fields).encode()
        if decision.after_refusal:
            value += b'; after-refusal="%b"' % ",".join(decision.after_refusal).encode()
        if decision.reason:
            value += b'; reason="%b"' % decision.reason.encode()
        return value

    def close(self, reason: str = "client_left", status: int | None = None) -> None:
        """The request is over; ``reason`` says why it was not forwarded, ``status`` how the gateway refused it.

        May be called again.
        """
        decision = self._decision
        if decision is None:
            outcome = Outcome.UNREADABLE if self._submission is None else Outcome.UNKNOWN
            decision = self._decision = Decision(outcome, reason=reason)
        self._report(decision, status)
        self.release()
        self._forwarding.close()

    async def _compare(self, submission: Submission) -> None:
        """Find what can be cut before the request is forwarded."""
        gates = submission.comparable
        if not submission.names_a_key:
            self._reason = "no_key"
            return
        if not gates:
            return
        # only now that the whole body is here: what is read must not be older than the request
        found = await self._look_up(submission, fresh=False)
        if isinstance(found, Stored) and found.cached:
            unchanged, _ = submission.unchanged(gates, found.info)
            if len(unchanged) == len(gates):
                self._cut = unchanged
                self._cut_by_cache = True
                return
            # only "unchanged" may rest on a cached value
            found = await self._look_up(submission, fresh=True)
        self._found = found
        if isinstance(found, Unknown):
            self._reason = found.reason
            return
        self._cut, known = submission.unchanged(gates, found.info)
        if not known:
            self._reason = "stored_shape"

    def _restore(self, submission: Submission, found: Stored) -> None:
        """Cut no member that is changed, as a fresh lookup shows, though the cached value did not."""
        self._cut_by_cache = False
        unchanged, _ = submission.unchanged(submission.comparable, found.info)
        self._cut = [name for name in self._cut if name in unchanged]
        self._forwarding.enter_context(self._sanitizer.stored.writing(submission.key))

    async def _look_up(self, submission: Submission, *, fresh: bool) -> Stored | Unknown:
        stored, prefix = self._sanitizer.stored, self._target.prefix
        if submission.key is not None:
            found, lookup = await stored.get(self._caller, submission.key, prefix, fresh=fresh)
        else:
            found, lookup = await stored.get_by_alias(self._caller, submission.alias or "", prefix)
        if lookup is not None:
            self._lookups.append(lookup)
        # the caller may not read the key: nothing may depend on what a lookup with the credential finds
        self._withholds = isinstance(found, Unknown) and found.refused and stored.has_lookup_key
        return found

    async def _stored_now(self, submission: Submission) -> Stored | Unknown:
        """What is stored, read for this request: with the lookup credential, if the caller's own lookup is refused."""
        if self._found is None:
            self._found = await self._look_up(submission, fresh=True)
        stored = self._sanitizer.stored
        if isinstance(self._found, Unknown) and self._found.refused and stored.has_lookup_key:
            self._found, lookup = await stored.get_with_lookup_key(
                self._caller, submission.key, submission.alias, self._target.prefix
            )
            if lookup is not None:
                self._lookups.append(lookup)
        return self._found

    @property
    def _with_lookup_key(self) -> bool:
        return any(lookup.lookup_key for lookup in self._lookups)

    def _candidates(self) -> list[Gate]:
        """The gates whose members may still be cut, if LiteLLM refuses the request because of them."""
        submission, found = self._submission, self._found
        if submission is None or not submission.names_a_key or self._resent == MAX_RESENDS:
            return []
        refused = isinstance(found, Unknown) and found.refused and self._sanitizer.stored.has_lookup_key
        if isinstance(found, Unknown) and not refused:
            return []
        return [
            gate
            for gate in submission.gates
            if gate.field not in self._cut
            and gate.possible(submission.values[gate.field])
            and (gate.cut is Cut.AFTER_REFUSAL or refused or self._with_lookup_key)
            and (not isinstance(found, Stored) or gate.unchanged(submission.values, found.info))
        ]

    def _decide(self, submission: Submission) -> Decision:
        if not submission.gates:
            return Decision(Outcome.ABSENT)
        if self._cut:
            outcome, reason = Outcome.OBSERVED if self._sanitizer.observes else Outcome.DROPPED, None
        else:
            reason = self._reason
            outcome = Outcome.CHANGED if reason is None else Outcome.UNKNOWN
        return Decision(
            outcome,
            submission.in_order(self._cut),
            reason,
            submission.in_order(self._after_refusal),
            self._with_lookup_key,
        )

    def _forward(self, decision: Decision) -> None:
        """The request goes on by this decision."""
        self._decision = decision
        submission = self._submission
        if submission is None or decision.outcome is not Outcome.DROPPED or submission.writes(decision.fields):
            self._forwarding.enter_context(self._sanitizer.stored.writing(submission.key if submission else None))

    def _report(self, decision: Decision, status: int | None, head: bytes = b"") -> None:
        if self._reported:
            return
        self._reported = True
        if self._sanitizer.on_decision is None:
            return
        submission = self._submission
        self._sanitizer.on_decision(
            Record(
                endpoint=self._target.endpoint,
                decision=decision,
                key_hash=key_hash(submission.key) if submission and submission.key else None,
                lookups=tuple(self._lookups),
                resent=self._resent,
                status=status,
                call_id=_value(_CALL_ID, head),
                traceparent=_value(_TRACEPARENT, self._head),
            )
        )


def _value(form: re.Pattern[bytes], head: bytes) -> str | None:
    match = form.search(head)
    return match[1].decode("latin-1") if match else None
