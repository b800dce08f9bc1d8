"""The handler of an intercepted request: it collects the content, and runs a task that decides what to send instead.

The request is then forwarded like any other, and the response is relayed like any other, except that it gets a field
that reports the decision. A response with a status that the interception holds is held back until it is complete. A
second task may then return another body. In that case the request is sent again with that body, and gets another
response.

==========  ==================================================  =========================
State       What it waits for                                   The next states
==========  ==================================================  =========================
COLLECTING  the request's content, while it may be collected    DECIDING, SENT
DECIDING    the task that decides what to send                  SENT
SENT        the response, to relay it or to hold it back        MATCHING
MATCHING    the task that decides whether to send another body  SENT
DONE        nothing
==========  ==================================================  =========================

Every state leads to DONE as well: the response is written, or the client has disconnected, which cancels the task and
the attempt in progress.

Cases, before the code that branches on them:

* The content is not to be inspected, or turns out to be too large: it is forwarded as it is received, without a task.
* A held response breaks off, stalls, or has more content than the interception's ``held_limit``: what has been received
  of it is relayed.
* No connection is available for another body: the held response is relayed.
* The responses to further attempts are confidential: unless such a response is a 2xx, the first response is relayed in
  its place.
* A task fails, which only a defect can cause: the request is forwarded, or the held response relayed, as it was
  received. The event loop reports the failure.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from enum import Enum
from functools import partial
from typing import Any, Final

from sanitizer.errors import GatewayError
from sanitizer.http1.bodies import Framing, Length
from sanitizer.http1.heads import with_field
from sanitizer.http1.requests import Request
from sanitizer.relay.connection import Response
from sanitizer.relay.counters import CLIENT_LEFT
from sanitizer.relay.handler import Client
from sanitizer.relay.interception import Interception
from sanitizer.relay.proxied import Proxied
from sanitizer.relay.stalls import Pending

_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([^\r]*)", re.IGNORECASE)


class _State(Enum):
    COLLECTING = "collecting"
    DECIDING = "deciding"
    SENT = "sent"
    MATCHING = "matching"
    DONE = "done"


# looking up a member on the enum class is slow
_COLLECTING, _DECIDING, _SENT, _MATCHING, _DONE = _State


class _Attempt(Proxied):
    """One attempt: the request as it is sent this time, and its response, which may be held back.

    ``previous`` is the attempt before this one, whose response is held back meanwhile. ``first`` is the first attempt.
    Both are None in the first attempt itself.
    """

    __slots__ = ("_held", "_held_content", "_held_size", "_held_trailers", "first", "handler", "previous")

    def __init__(self, handler: "Intercepted", head: bytes, length: Length, previous: "_Attempt | None") -> None:
        super().__init__(handler.client, handler.method, head, length, handler.keep_alive, handler.version)
        self.handler = handler
        self.previous = previous
        self.first: _Attempt | None = (previous.first or previous) if previous is not None else None
        self._held: Response | None = None  # while it is held back
        self._held_content: list[bytes] = []
        self._held_size = 0  # octets of content
        self._held_trailers = b""

    def on_transmitted(self) -> None:
        if self.previous is not None:
            self.handler.interception.report_resend()

    def on_interim(self, head: bytes) -> None:
        if self.previous is None:
            super().on_interim(head)

    def on_response(self, response: Response) -> None:
        too_long = isinstance(response.length, int) and response.length > self.handler.interception.held_limit
        if not too_long and self.handler.interception.should_hold(response.status):
            self._held = response
        elif 200 <= response.status < 300 or not self._fall_back_to_first():
            super().on_response(response)

    def on_content(self, data: bytes, last: bool, trailers: bytes) -> None:
        if self._held is None:
            super().on_content(data, last, trailers)
            return
        if data:
            self._held_content.append(data)
            self._held_size += len(data)
        if self._held_size > self.handler.interception.held_limit:
            if not self._fall_back_to_first():
                self.relay_held(last, trailers)
        elif last:
            self._held_trailers = trailers
            self.handler.response_held(self, self._held, b"".join(self._held_content))

    def on_error(self, error: GatewayError) -> None:
        if self.response is not None and self._held is None:  # it is being relayed
            super().on_error(error)
            return
        if self._fall_back_to_first():
            return
        if self.previous is not None and not self.transmitted:
            self.handler.relay(self.previous)
            return
        if self._held is not None:
            self.relay_held(False)
        super().on_error(error)

    def pending(self) -> Pending | None:
        if self._held is None or self.done:
            return None
        return Pending(self._held_size, self.stop_holding)

    def stop_holding(self) -> None:
        """Relay an incomplete response as it is received from now on, unless it is confidential."""
        if not self._fall_back_to_first():
            self.relay_held(False)

    def _fall_back_to_first(self) -> bool:
        """Cancel this attempt, and relay the first response, if this one is confidential. Returns whether it is."""
        if self.first is None or not self.handler.interception.confidential:
            return False
        self.cancel()
        self.handler.relay(self.first)
        return True

    def relay_held(self, last: bool, trailers: bytes = b"") -> None:
        """Stop holding the response back, and relay what has been received of it. ``last``: that is all of it."""
        response, self._held = self._held, None
        if response is not None:
            super().on_response(response)
            content, self._held_content = b"".join(self._held_content), []
            super().on_content(content, last, trailers or self._held_trailers)

    def head_to_client(self, status: int, head: bytes) -> bytes:
        handler = self.handler
        handler.status = status
        value = handler.interception.report_response(status, head)
        return with_field(head, handler.interception.response_field, value)

    def response_sent(self) -> None:
        self.handler.response_sent(self.keep_alive)


class Intercepted:
    """The handler of an intercepted request."""

    def __init__(self, client: Client, request: Request, interception: Interception) -> None:
        self.client = client
        self.interception = interception
        self.method = request.method
        self.version = request.version
        self.keep_alive = request.keep_alive
        self.status = CLIENT_LEFT
        self.started = False
        self._state = _COLLECTING
        self._request = request
        self._attempt: _Attempt | None = None
        self._task: asyncio.Task[bytes | None] | None = None
        if not interception.inspects:
            self._stream()

    # Handler

    @property
    def response_started(self) -> bool:
        return self.status != CLIENT_LEFT

    def start(self) -> None:
        self.started = True
        if self._attempt is not None:
            self._attempt.start()
        elif self._state is _DECIDING:
            self._run(self.interception.edit(), self._send_body)
        elif not self.interception.body and self._request.expects_continue:
            self.client.write_interim(b"HTTP/1.1 100 Continue\r\n")

    def content(self, data: bytes) -> None:
        if self._attempt is not None:
            self._attempt.content(data)
        elif self._state is _COLLECTING and not self.interception.collect(data):
            attempt = self._stream()
            attempt.content(self.interception.release())
            if self.started:
                attempt.start()

    def end(self) -> None:
        if self._attempt is not None:
            self._attempt.end()
        elif self._state is _COLLECTING:
            self._state = _DECIDING
            if self.started:
                self._run(self.interception.edit(), self._send_body)

    def close_after_response(self) -> None:
        self.keep_alive = False
        if self._attempt is not None:
            self._attempt.close_after_response()

    def cancel(self) -> None:
        self._state = _DONE
        if self._task is not None:
            self._task.cancel()
        if self._attempt is not None:
            self._attempt.cancel()
        # once a response has started, both arguments are ignored: the request is reported already
        self.interception.close("client_left" if self.status == CLIENT_LEFT else "refused", self.status or None)

    def pause_reading(self) -> None:
        if self._attempt is not None:
            self._attempt.pause_reading()

    def resume_reading(self) -> None:
        if self._attempt is not None:
            self._attempt.resume_reading()

    def pending(self) -> Pending | None:
        return self._attempt.pending() if self._attempt is not None else None

    # Sending

    def _stream(self) -> _Attempt:
        """The only attempt at a request that is forwarded piece by piece, as it is received."""
        self._state = _SENT
        self._attempt = _Attempt(self, self._request.outbound, self._request.length, None)
        return self._attempt

    def _send_body(self, body: bytes | None, previous: _Attempt | None = None) -> None:
        """Send the request with ``body``, or with the collected body if that is None."""
        head, length = self._request.outbound, self._request.length
        if body is None:
            body = self.interception.body
        elif not isinstance(length, Framing):
            length = len(body)
            match = _CONTENT_LENGTH.search(head)
            assert match is not None  # noqa: S101 - for the type checker
            # not with `sub`, which parses every replacement that it has not seen before
            head = b"%b%d%b" % (head[: match.start(1)], length, head[match.end() :])
        self._state = _SENT
        self._attempt = attempt = _Attempt(self, head, length, previous)
        if body:
            attempt.content(body)
        attempt.end()
        attempt.start()

    def response_held(self, attempt: _Attempt, response: Response, content: bytes) -> None:
        """Called when the response to ``attempt`` is complete and held back."""
        self._state = _MATCHING
        decision = self.interception.next_body(response.status, response.head, content)
        self._run(decision, partial(self._send_next, attempt))

    def _send_next(self, attempt: _Attempt, body: bytes | None) -> None:
        """Send the request with ``body``; if that is None, relay the response to ``attempt``, or the first one."""
        if body is not None:
            self._send_body(body, attempt)
        elif self.interception.confidential:
            self.relay(attempt.first or attempt)
        else:
            self.relay(attempt)

    def relay(self, attempt: _Attempt) -> None:
        """Relay the response to ``attempt``, which is complete."""
        self._attempt = attempt
        attempt.keep_alive = attempt.keep_alive and self.keep_alive
        attempt.relay_held(True)

    def response_sent(self, keep_alive: bool) -> None:
        """Called when the response is complete and written."""
        self._state = _DONE
        self._attempt = None  # breaks the reference cycle, so that no garbage collection is needed for the request
        self.interception.close()
        self.client.response_sent(self, keep_alive)

    def _run(self, decision: Coroutine[Any, Any, bytes | None], act: Callable[[bytes | None], None]) -> None:
        """Run ``decision`` as a task, and call ``act`` with the body that it returns."""
        loop = self.client.loop

        def done(task: asyncio.Task[bytes | None]) -> None:
            self._task = None
            if self._state is _DONE or task.cancelled() or self.client.transport.is_closing():
                return  # the client has disconnected, even if that has not been reported yet
            body = None
            if (error := task.exception()) is not None:
                message = "an interception has failed; the request is not edited"
                self.interception.decision_failed()
                loop.call_exception_handler({"message": message, "exception": error, "task": task})
            else:
                body = task.result()
            act(body)

        self._task = loop.create_task(decision)
        self._task.add_done_callback(done)
