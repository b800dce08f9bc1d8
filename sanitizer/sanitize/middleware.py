"""The sanitizer as ASGI middleware: holds the body of an intercepted request, decides, and hands it on.

What can go wrong, and what the caller then sees:

- The body cannot be inspected, or the lookup gives nothing: LiteLLM gets the request as it came and answers it.
- The client leaves before its body is whole, or during the lookup: the app is not called at all. Nobody is there to
  read an answer, and a relay would have cancelled the request as well.
- The body is over the limit, or too many bodies are held: what was read is handed on and the rest streams behind it, at
  the app's pace.

``Expect: 100-continue`` stays in the request although the server answers it as soon as the body is read: it is
end-to-end, and an origin may still refuse by it (RFC 9110 section 10.1.1). A second 100 from there harms nobody.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sanitizer.sanitize.decision import Decision, Outcome, Stored, Submission, Unknown, decide, inspect, obstacle
from sanitizer.sanitize.gates import Target, Targets
from sanitizer.sanitize.jsonedit import NotInspectable
from sanitizer.sanitize.stored import StoredKeys, key_hash

T = TypeVar("T")

MAX_HELD = 64 * 1024 * 1024
"""Bytes of all request bodies held at once by one `Sanitizer`; a body that would go over it is not inspected."""

HEADER = b"x-litellm-sanitizer"

_CALL_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context section 3.2.2


@dataclass(frozen=True, slots=True)
class Record:
    """One intercepted request, for logs and metrics.

    ``key_hash``: the first 8 hex digits of the key's SHA-256; ``lookup_seconds``: None if there was no lookup.
    ``reason`` is ``client_left`` when the request was not forwarded because nobody waited for it any more.
    ``status``: of the response; None if none has begun. ``call_id``: LiteLLM's name for the request, from its
    response; ``traceparent``: the client's (W3C Trace Context). Neither is reported if it is overlong or malformed.
    """

    outcome: Outcome
    endpoint: str
    fields: tuple[str, ...]
    key_hash: str | None
    reason: str | None
    lookup_seconds: float | None
    lookup_key: bool = False
    """Whether the lookup credential was used."""
    status: int | None = None
    call_id: str | None = None
    traceparent: str | None = None


class ClientLeft(Exception):
    """The client disconnected before its request could be forwarded."""


class Sanitizer:
    """Cuts guarded fields out of intercepted requests if they are sent unchanged; everything else passes by.

    ``mode``: ``enforce``; ``observe`` decides and reports but forwards as sent; ``off`` intercepts nothing.
    ``fields``: those that may be cut. ``prefixes``: the path prefixes LiteLLM answers under, ``""`` for none.
    ``max_body``: bytes of the largest body inspected. ``on_decision`` is called once an intercepted request, when the
    head of its response has come or it is over without one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        stored: StoredKeys,
        mode: str,
        fields: Collection[str],
        prefixes: Iterable[str],
        max_body: int,
        on_decision: Callable[[Record], None] | None = None,
    ) -> None:
        self.app = app
        self.held = 0
        self._stored = stored
        self._observe = mode == "observe"
        self._targets = Targets(() if mode == "off" else fields, prefixes)
        self._max_body = max_body
        self._on_decision = on_decision

    def intercepts(self, method: bytes | str, path: str) -> bool:
        """Whether a request with this method and decoded path would be intercepted."""
        return method in (b"POST", "POST") and self._targets.find(path) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = None
        if scope["type"] == "http" and scope["method"] == "POST":
            target = self._targets.find(scope["path"])
        if target is None:
            await self.app(scope, receive, send)
            return
        upload = _Upload(self, receive)
        try:
            await self._intercept(target, upload, scope, send)
        finally:
            upload.release()

    async def _intercept(self, target: Target, upload: "_Upload", scope: Scope, send: Send) -> None:
        submission: Submission | None = None
        seconds: float | None = None
        try:
            submission = inspect(await self._body(upload, scope), target)
            decision, seconds = await self._decide(submission, target, upload, scope)
        except NotInspectable as finding:
            decision = Decision(Outcome.UNREADABLE, reason=finding.reason)
        except ClientLeft:
            outcome = Outcome.UNREADABLE if submission is None else Outcome.UNKNOWN
            self._report(target, submission, Decision(outcome, reason="client_left"), None, scope, None)
            return
        if self._observe:
            decision = decision.observed()
        if decision.body is not None:
            scope = {**scope, "headers": _with_length(scope["headers"], len(decision.body))}
            upload.replace(decision.body)
        writes = decision.body is None or submission is None or len(decision.fields) < len(submission.sent)
        key = submission.key if submission else None
        answered = False

        def on_start(message: Message) -> None:
            nonlocal answered
            answered = True
            self._report(target, submission, decision, seconds, scope, message)

        try:
            with self._stored.writing(key) if writes else contextlib.nullcontext():
                await self.app(scope, upload.receive, _marked(send, decision, on_start))
        finally:
            if not answered:
                self._report(target, submission, decision, seconds, scope, None)

    async def _body(self, upload: "_Upload", scope: Scope) -> bytes:
        if reason := obstacle(scope["headers"]):
            raise NotInspectable(reason)
        for name, value in scope["headers"]:
            if name.lower() == b"content-length" and value.isdigit() and _longer(value, self._max_body):
                raise NotInspectable("too_large")
        return await upload.read(self._max_body)

    async def _decide(
        self, submission: Submission, target: Target, upload: "_Upload", scope: Scope
    ) -> tuple[Decision, float | None]:
        """The decision, and the seconds that lookups for it took. Raises `ClientLeft`."""
        if submission.key is None or not submission.needs_lookup:
            return decide(submission, Unknown("no_key")), None
        # only now that the whole body is here: what is read must not be older than the request
        started = time.perf_counter()
        get = partial(self._stored.get, scope, submission.key, target.prefix)
        stored = await upload.unless_client_leaves(get())
        decision = decide(submission, stored)
        if isinstance(stored, Stored) and stored.cached:
            if len(decision.fields) == len(submission.sent):
                return decision, None
            decision = decide(submission, await upload.unless_client_leaves(get(fresh=True)))
        return decision, time.perf_counter() - started

    def _report(
        self,
        target: Target,
        submission: Submission | None,
        decision: Decision,
        seconds: float | None,
        scope: Scope,
        start: Message | None,
    ) -> None:
        if self._on_decision is None:
            return
        hashed = key_hash(submission.key) if submission and submission.key else None
        self._on_decision(
            Record(
                decision.outcome,
                target.endpoint,
                decision.fields,
                hashed,
                decision.reason,
                seconds,
                decision.lookup_key,
                start["status"] if start else None,
                _value(start.get("headers", ()), b"x-litellm-call-id", _CALL_ID) if start else None,
                _value(scope["headers"], b"traceparent", _TRACEPARENT),
            )
        )


class _Upload:
    """The request body as far as it has been read, and `receive` for the app: first that, then whatever comes."""

    def __init__(self, sanitizer: Sanitizer, receive: Receive) -> None:
        self._sanitizer = sanitizer
        self._receive = receive
        self._buffer = bytearray()
        self._counted = 0
        self._replay: Message | None = None

    async def read(self, most: int) -> bytes:
        """The whole body. Raises `ClientLeft`, or `NotInspectable` (``too_large``, ``busy``) with the rest to come."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            self._buffer += chunk
            self._counted += len(chunk)
            self._sanitizer.held += len(chunk)
            reason = "too_large" if self._counted > most else "busy" if self._sanitizer.held > MAX_HELD else None
            if reason or not more:
                body = bytes(self._buffer)
                self._buffer.clear()
                self._replay = {"type": "http.request", "body": body, "more_body": more}
            if reason:
                raise NotInspectable(reason)
        return body

    def replace(self, body: bytes) -> None:
        """Hand on ``body`` instead of the one that was read."""
        self._replay = {"type": "http.request", "body": body, "more_body": False}

    async def receive(self) -> Message:
        """The ASGI ``receive`` of the app behind."""
        message, self._replay = self._replay, None
        if message is None:
            return await self._receive()
        if message["more_body"]:
            self.release()  # from here on it streams
        return message

    def release(self) -> None:
        """Count this body as no longer held."""
        self._sanitizer.held -= self._counted
        self._counted = 0

    async def unless_client_leaves(self, lookup: Coroutine[Any, Any, T]) -> T:
        """The result of ``lookup``, run after `read`. Raises `ClientLeft`, with the lookup cancelled and closed."""
        work = asyncio.create_task(lookup)
        gone = asyncio.create_task(self._client_left())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                gone.result()
                raise ClientLeft
            return work.result()
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _client_left(self) -> None:
        message = await self._receive()
        if message["type"] != "http.disconnect":  # a server that says something else after the body's end
            await asyncio.Event().wait()


def _longer(digits: bytes, most: int) -> bool:
    digits = digits.lstrip(b"0")
    return len(digits) > 18 or int(digits or b"0") > most


def _with_length(headers: Iterable[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    """The header with Content-Length as it now is, where there is one; a chunked body has none and gets none."""
    value = b"%d" % length
    return [(name, value if name.lower() == b"content-length" else old) for name, old in headers]


def _value(headers: Iterable[tuple[bytes, bytes]], field: bytes, form: re.Pattern[bytes]) -> str | None:
    """The first value of ``field``, if it has that form."""
    for name, value in headers:
        if name.lower() == field:
            return value.decode("latin-1") if form.fullmatch(value) else None
    return None


def _marked(send: Send, decision: Decision, on_start: Callable[[Message], None]) -> Send:
    """``send``, with the decision in the response's header; a field of that name from upstream is replaced.

    What the lookup credential has read is for those whom LiteLLM lets write it: others are not told the decision.
    ``on_start`` is told of the response's start before it is sent.
    """
    value = decision.outcome.encode()
    if decision.fields:
        value += b'; fields="%b"' % ",".join(decision.fields).encode()
    if decision.reason:
        value += b'; reason="%b"' % decision.reason.encode()

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            on_start(message)
            headers = [line for line in message.get("headers", ()) if line[0].lower() != HEADER]
            if not decision.lookup_key or 200 <= message["status"] < 300:
                headers.append((HEADER, value))
            message = {**message, "headers": headers}
        await send(message)

    return marked
