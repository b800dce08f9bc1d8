"""The core of the sanitizer: which requests it intercepts, and what is sent to LiteLLM for each of them.

The core is independent of the transport. An adapter reads and sends the messages, natively
(`sanitizer.relay.intercepted`) or as ASGI (`sanitizer.sanitize.middleware`), and calls an `Interception` to learn what
to send.

The path of a request selects its `Endpoint`: an endpoint of LiteLLM, with its gates. The inspected body is its
`Submission`. A *lookup* asks LiteLLM for the key, whose columns are the *stored values*. A `Comparison` cuts the
members that are unchanged, some of them before the request is forwarded and others after a refusal. A `Decision` says
which ones were cut, or why none was.

These are the cases in which a request is not edited:

- The body cannot be inspected, or the lookup returns no stored value: the request is forwarded as it was received.
- The body is over the limit, or too much is collected in all: what was collected is forwarded, followed by the rest.
- The client disconnects before its request could be forwarded: nothing is sent.

``Expect: 100-continue`` is forwarded although the gateway has already asked for the content. The field is end-to-end,
and the origin server may still respond to it with an error (RFC 9110 section 10.1.1). A second 100 does no harm.
"""

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Final

from sanitizer.sanitize.callers import address_of, caller_key, forwarded_for
from sanitizer.sanitize.comparison import Comparison
from sanitizer.sanitize.decision import Decision, Outcome
from sanitizer.sanitize.endpoints import Endpoint, Endpoints
from sanitizer.sanitize.gates import FIELDS, Gate
from sanitizer.sanitize.jsonedit import NotInspectable
from sanitizer.sanitize.queries import key_hash
from sanitizer.sanitize.refusal import MAX_REFUSAL, refusal_text
from sanitizer.sanitize.stored import Caller, Lookup, SendLookup, StoredKeys
from sanitizer.sanitize.submission import Submission, reason_not_to_inspect

MAX_COLLECTED: Final = 64 * 1024 * 1024
"""Bytes of request bodies that a `Sanitizer` collects at most. A body that would exceed it is not inspected."""

RESPONSE_FIELD: Final = b"x-litellm-sanitizer"
"""The name of the response field that holds the decision."""

_MAY_WRITE: Final = "/key|/team|/user|/access_group|/v1/access_group|/v1/unified_access_group"
"""Paths of LiteLLM under which a request may change keys, including keys that it does not name."""

_CALL_ID: Final = re.compile(rb"\r\nx-litellm-call-id:[ \t]*([\x21-\x7e]{1,128})[ \t]*\r\n", re.IGNORECASE)
# W3C Trace Context section 3.2.2
_TRACEPARENT: Final = re.compile(
    rb"\r\ntraceparent:[ \t]*([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})[ \t]*\r\n", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The report of one intercepted request, for logs and metrics."""

    endpoint: str
    decision: Decision
    """Its reason is ``client_left`` if the client disconnected before the request could be forwarded, and ``refused``
    if the gateway itself answered the request with an error, because its content was malformed."""
    key_hash: str | None = None
    """The first 8 hex digits of the SHA-256 of the key that the request is about."""
    caller_hash: str | None = None
    """The same of the key with which the caller authenticates, or None if that is not an ``sk-`` key."""
    client: str | None = None
    """The client's address, or None on a unix socket."""
    forwarded_for: str | None = None
    """The last addresses in the X-Forwarded-For that is sent to LiteLLM, unless this is ``client`` alone."""
    lookups: tuple[Lookup, ...] = ()
    """The lookups made for this request, in order."""
    resent: int = 0
    """How many times the request was sent again after a refusal."""
    status: int | None = None
    """The status of the response, or None if no response was begun."""
    call_id: str | None = None
    """LiteLLM's identifier of the request, from its response. None if it is malformed or over 128 characters."""
    traceparent: str | None = None
    """The client's ``traceparent`` (W3C Trace Context). None if it is malformed."""


class Sanitizer:
    """Cuts unchanged guarded fields from intercepted requests.

    ``stored`` looks keys up. ``mode`` is ``enforce``, ``observe`` (decide and report, but forward every request as it
    was received) or ``off`` (intercept nothing). ``fields`` are the names of the guarded fields that may be cut.
    ``prefixes`` are the path prefixes under which LiteLLM is served, ``""`` for none. ``max_body`` is the size in bytes
    of the largest body that is inspected. ``on_decision`` is called once per intercepted request: when the head of the
    final response is relayed or, if there is no response, when the request is over.
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
        self.collected = 0  # bytes of request bodies
        self.stored = stored or StoredKeys()
        self.observe_only = mode == "observe"
        self.max_body = max_body
        self.on_decision = on_decision
        prefixes = tuple(prefixes)
        self._endpoints = Endpoints(() if mode == "off" else fields, prefixes)
        self._may_write = re.compile(f"(?:{'|'.join(map(re.escape, prefixes))})(?:{_MAY_WRITE})(?:/|\\Z)")
        self.write_context = self._write_context if self.stored.caches else None

    def intercepts(self, path: str) -> bool:
        """Whether a POST to ``path`` (decoded) is intercepted."""
        return self._endpoints.find(path) is not None

    def _write_context(self, path: str) -> AbstractContextManager[None] | None:
        """The context in which to run a request to ``path`` (decoded) that is not intercepted, or None for no context.

        The attribute `write_context` is this method, or None if there is no cache that such a request could make stale.
        """
        return self.stored.writing(None) if self._may_write.match(path) else None

    def intercept(
        self, path: str, head: bytes, outbound: bytes, send_lookup: SendLookup, client_address: str | None
    ) -> "Interception | None":
        """The interception of a POST to ``path`` (decoded), or None if such a request is not intercepted.

        ``head`` is the request head as it was received, and ``outbound`` the one that is sent to LiteLLM. Both are
        octets: a start line, which may be empty, and field lines. ``send_lookup`` sends lookups. ``client_address`` is
        None on a unix socket.
        """
        endpoint = self._endpoints.find(path)
        if endpoint is None:
            return None
        return Interception(self, endpoint, head, Caller(outbound, send_lookup, client_address))


class Interception:
    """One intercepted request. Its adapter calls these methods, in this order:

    1. If `inspects` is true, `collect` with each piece of the content, until the content is complete or `collect`
       returns False; or `stop_collecting`, if the rest of the content does not arrive (ASGI only). Then `edit` if the
       content is complete, else `release`.
    2. `should_hold` with the status of each response. If it returns True, the adapter holds the response back, and
       calls `next_body` when it is complete. A response over `held_limit` bytes of content is relayed instead.
       If that returns a body, `report_resend` when the request is sent again. If no connection can be had for that,
       the response that was held back is the final one.
    3. `report_response` when the head of the final response is relayed to the client, unless there is no response.
    4. `close`, always.

    If `confidential` is true, a response to a resend is relayed only if it is a 2xx. Instead of any other, the client
    gets the first response. Heads are octets in which each field line follows a CRLF. The last field line may be
    followed by one CRLF or by two.
    """

    response_field = RESPONSE_FIELD
    held_limit = MAX_REFUSAL

    def __init__(self, sanitizer: Sanitizer, endpoint: Endpoint, head: bytes, caller: Caller) -> None:
        self.confidential = False
        self._sanitizer = sanitizer
        self._endpoint = endpoint
        self._head = head
        self._caller = caller
        self._pieces: list[bytes] = []
        self._collected = 0
        self._comparison: Comparison | None = None  # None until the content is inspected
        self._decision: Decision | None = None  # None until it is decided what to forward
        self._reported = False
        self._writing = ExitStack()  # entered while the request may write the key
        reason = reason_not_to_inspect(head, sanitizer.max_body)
        self.inspects = reason is None
        if reason is not None:
            self._decide(Decision(Outcome.UNREADABLE, reason=reason))

    def collect(self, data: bytes) -> bool:
        """Add a piece of the content. Returns False if the content is not inspected after all.

        The adapter then forwards what was collected, and the rest as it is received.
        """
        sanitizer = self._sanitizer
        self._pieces.append(data)
        self._collected += len(data)
        sanitizer.collected += len(data)
        if self._collected > sanitizer.max_body:
            reason = "too_large"
        elif sanitizer.collected > MAX_COLLECTED:
            reason = "busy"
        else:
            return True
        self._decide(Decision(Outcome.UNREADABLE, reason=reason))
        return False

    def stop_collecting(self) -> None:
        """Stop inspecting, because the client has stalled. The adapter acts as if `collect` had returned False."""
        self._decide(Decision(Outcome.UNREADABLE, reason="stalled"))

    @property
    def body(self) -> bytes:
        """The content that has been collected so far."""
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    def release(self) -> bytes:
        """Returns the content that has been collected so far, and stops holding it."""
        body = self.body
        self._pieces.clear()
        self._sanitizer.collected -= self._collected
        self._collected = 0
        return body

    async def edit(self) -> bytes | None:
        """The body to send in place of the one that was collected, or None to send that one.

        Cancelling this cancels the lookup.
        """
        try:
            submission = Submission(self.body, self._endpoint)
        except NotInspectable as error:
            self._decide(Decision(Outcome.UNREADABLE, reason=error.reason))
            return None
        sanitizer = self._sanitizer
        self._comparison = comparison = Comparison(
            submission, sanitizer.stored, self._caller, self._endpoint.prefix, observe_only=sanitizer.observe_only
        )
        await comparison.compare_before_forwarding()
        body = comparison.edited_body  # first: if this raises an exception, nothing is cut
        self._decide(comparison.decision)
        return body

    def decision_failed(self) -> None:
        """To be called if `edit` or `next_body` has raised. The adapter goes on as if it had returned None.

        After `next_body`, the decision before it stands.
        """
        if self._decision is None:
            self._decide(Decision(Outcome.UNKNOWN, reason="internal"))

    def should_hold(self, status: int) -> bool:
        """Whether a response with this status has to be held back and passed to `next_body`."""
        return bool(self._candidates(status))

    async def next_body(self, status: int, head: bytes, content: bytes) -> bytes | None:
        """The body with which to send the request again after this response, or None to relay the response.

        Each resend cuts at least one member that was not cut before, and there are at most
        `sanitizer.sanitize.comparison.MAX_RESENDS`. Cancelling this cancels the lookup.
        """
        comparison, text = self._comparison, refusal_text(head, content)
        gates = [gate for gate in self._candidates(status) if any(fragment in text for fragment in gate.fragments)]
        if comparison is None or not gates:
            return None
        resend = await comparison.compare_after_refusal(gates)
        body = comparison.edited_body if resend else None
        self._decide(comparison.decision)
        if resend:
            self.confidential = comparison.used_lookup_key
        return body

    def report_resend(self) -> None:
        """Report that the request is being sent again, with the body that `next_body` has returned.

        Until then, LiteLLM has not got that body, and neither the decision nor the record says that it has.
        """
        assert self._comparison is not None  # noqa: S101 - `next_body` has returned a body
        self._comparison.report_resend()
        self._decision = self._comparison.decision

    def report_response(self, status: int, head: bytes) -> bytes | None:
        """Report the final response. Returns the value of its field `response_field`, or None if it must not have one.

        The decision can depend on what the gateway's own credential has read. A caller who may not read the key learns
        it only from a 2xx response, that is, if LiteLLM lets the caller write the key.
        """
        decision, comparison = self._decision, self._comparison
        assert decision is not None  # noqa: S101 - the request was forwarded
        success = 200 <= status < 300
        if decision.outcome is Outcome.CHANGED and success and comparison is not None and comparison.has_uncompared:
            decision = Decision(Outcome.CHANGED, reason="accepted")
        self._report(decision, status, head)
        self.release()
        if comparison is not None and comparison.withholds_decision and not success:
            return None
        return decision.field_value

    def close(self, reason: str = "client_left", status: int | None = None) -> None:
        """End the interception, and report the request unless that was done before.

        ``reason`` is the decision's reason if the request was not forwarded; otherwise it is ignored. ``status`` is
        that of the gateway's own error response, if there was one. This may be called more than once.
        """
        decision = self._decision
        if decision is None:
            outcome = Outcome.UNREADABLE if self._comparison is None else Outcome.UNKNOWN
            decision = self._decision = Decision(outcome, reason=reason)
        self._report(decision, status)
        self.release()
        self._writing.close()

    def _candidates(self, status: int) -> list[Gate]:
        """The gates whose members may still be cut if LiteLLM refuses the request with this status."""
        return [] if self._comparison is None else self._comparison.candidates(status)

    def _decide(self, decision: Decision) -> None:
        """Record the decision before the request is forwarded. For the cache, the request may write from now on."""
        self._decision = decision
        stored = self._sanitizer.stored
        if not stored.caches:
            return
        comparison = self._comparison
        if (
            comparison is None
            or decision.outcome is not Outcome.DROPPED
            or comparison.submission.makes_cache_stale(comparison.planned_fields)
        ):
            self._writing.enter_context(stored.writing(comparison.submission.key if comparison else None))

    def _report(self, decision: Decision, status: int | None, head: bytes = b"") -> None:
        if self._reported:
            return
        self._reported = True
        if self._sanitizer.on_decision is None:
            return
        comparison = self._comparison
        key = comparison.submission.key if comparison is not None else None
        caller = self._caller
        authenticating_key = caller_key(caller.head)
        client, forwarded = address_of(caller.client_address), forwarded_for(caller.head)
        self._sanitizer.on_decision(
            Record(
                endpoint=self._endpoint.name,
                decision=decision,
                key_hash=key_hash(key) if key is not None else None,
                caller_hash=key_hash(authenticating_key) if authenticating_key is not None else None,
                client=client,
                forwarded_for=forwarded if forwarded != client else None,
                lookups=tuple(comparison.lookups) if comparison is not None else (),
                resent=comparison.resent if comparison is not None else 0,
                status=status,
                call_id=_field_value(_CALL_ID, head),
                traceparent=_field_value(_TRACEPARENT, self._head),
            )
        )


def _field_value(pattern: re.Pattern[bytes], head: bytes) -> str | None:
    match = pattern.search(head)
    return match[1].decode("latin-1") if match else None
