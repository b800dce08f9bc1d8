"""The errors for which the gateway sends a response of its own.

::

    GatewayError                 has an HTTP status and an error type in LiteLLM's style
    |-- BadRequest          400  a request that is malformed, or that two parsers could read differently
    |-- HeadTooLarge        431  request head over the limit
    |-- LoopDetected        508  the request came back to this gateway
    |-- ClientNotSending    408  the client has stopped sending the request's content
    |-- ClientNotReading         the client has stopped reading: its connection is reset, as no status can be sent
    |-- PoolExhausted       503  no upstream connection became free in time
    |-- OutOfDescriptors    503  no descriptor was left for a connection to upstream
    |-- UpstreamTimeout     504
    |   |-- ConnectTimeout       no connection within the connect timeout
    |   |-- ResponseTimeout      no response head within the response timeout
    |   `-- UpstreamNotReading   upstream has stopped reading the request
    `-- UpstreamError       502
        |-- UpstreamUnreachable  refused, unresolvable, certificate not trusted, ...
        `-- UpstreamBroken       closed, reset or not HTTP, before the response was complete

    ResponseCut                  upstream's response ended early, after its head was sent to the client: it is too
                                 late for another status, so the client's connection has to be aborted

The client reads the messages, so they never contain an internal address.
"""

import json


class GatewayError(Exception):
    """An error for which the gateway sends its own response: ``status`` is the HTTP status, ``kind`` a metric label."""

    status = 500
    kind = "internal"
    message = "the gateway failed"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.message)

    def body(self) -> bytes:
        """Return the JSON content of the response, in LiteLLM's shape, which OpenAI SDKs read. ``code`` is a string."""
        error = {"message": f"litellm-sanitizer: {self}", "type": self.kind, "param": None, "code": str(self.status)}
        return json.dumps({"error": error}).encode()


class BadRequest(GatewayError):
    """The request is malformed, or two parsers could read it differently (RFC 9112 sections 6.3 and 11.2)."""

    status = 400
    kind = "bad_request"
    message = "malformed request"


class HeadTooLarge(GatewayError):
    """The request head is larger than the limit (RFC 6585 section 5)."""

    status = 431
    kind = "head_too_large"
    message = "request head too large"


class LoopDetected(GatewayError):
    """The request has already passed through this gateway, or through too many others (RFC 9110 section 7.6.3)."""

    status = 508
    kind = "loop_detected"
    message = "the request came back to this gateway; --upstream leads to the gateway itself"


class ClientNotSending(GatewayError):
    """The client has sent nothing more of the content during the stall timeout (RFC 9110 section 15.5.9)."""

    status = 408
    kind = "client_not_sending"
    message = "the client has stopped sending the request's content"


class ClientNotReading(GatewayError):
    """The client has read nothing during the stall timeout although data waits for it. Its connection is reset."""

    kind = "client_not_reading"
    message = "the client has stopped reading"


class PoolExhausted(GatewayError):
    """No upstream connection became free within the connect timeout."""

    status = 503
    kind = "pool_exhausted"
    message = "all upstream connections are busy; try again"


class OutOfDescriptors(GatewayError):
    """The process has no descriptor left for a connection to upstream, which itself has not failed."""

    status = 503
    kind = "descriptors"
    message = "the gateway is out of file descriptors; try again"


class UpstreamTimeout(GatewayError):
    """Upstream did not respond in time."""

    status = 504
    kind = "timeout"
    message = "upstream timed out"


class ConnectTimeout(UpstreamTimeout):
    """No connection to upstream was established within the connect timeout."""

    kind = "connect_timeout"
    message = "upstream could not be reached in time"


class ResponseTimeout(UpstreamTimeout):
    """Upstream sent no response head within the response timeout."""

    kind = "response_timeout"
    message = "upstream did not answer in time"


class UpstreamNotReading(UpstreamTimeout):
    """Upstream has read nothing of the request during the stall timeout, and has not started its response."""

    kind = "upstream_not_reading"
    message = "upstream has stopped reading the request"


class UpstreamError(GatewayError):
    """Upstream is unreachable or broken."""

    status = 502
    kind = "upstream_error"
    message = "upstream failed"


class UpstreamUnreachable(UpstreamError):
    """No connection to upstream: it was refused, the name was not resolved, or the certificate is not trusted."""

    kind = "unreachable"
    message = "upstream is unreachable"


class UpstreamBroken(UpstreamError):
    """Upstream closed or reset the connection, or sent something other than HTTP, before its response was complete."""

    kind = "broken"
    message = "upstream closed the connection before its response was complete"


class ResponseCut(Exception):
    """Upstream's response ended early, after its head was sent; the client's connection must be aborted."""
