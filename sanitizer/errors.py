"""Every error the gateway answers by itself.

::

    GatewayError                 knows its HTTP status and LiteLLM-style error type
    |-- BadRequest          400  request framing that two parsers could read differently
    |-- HeadTooLarge        431  request head over the limit
    |-- LoopDetected        508  the request came back to this gateway
    |-- ClientNotSending    408  the client has stopped sending its request's content
    |-- ClientNotReading         the client has stopped reading: its connection is reset, no status can be sent
    |-- PoolExhausted       503  no upstream connection came free in time
    |-- OutOfDescriptors    503  no descriptor was left for a connection to upstream
    |-- UpstreamTimeout     504
    |   |-- ConnectTimeout       no connection within the connect timeout
    |   |-- ResponseTimeout      no response head within the response timeout
    |   `-- UpstreamNotReading   upstream has stopped reading the request
    `-- UpstreamError       502
        |-- UpstreamUnreachable  refused, unresolvable, certificate not trusted, ...
        `-- UpstreamBroken       closed, reset or not HTTP, before the response was whole

    ResponseCut                  upstream broke off after the response head had gone to the client: no status
                                 can be sent any more, the client's connection has to be aborted

Messages are the client's to read: they never name an internal address.
"""

import json


class GatewayError(Exception):
    """A request that the gateway answers itself: ``status`` is an HTTP status, ``kind`` a metric label."""

    status = 500
    kind = "internal"
    message = "the gateway failed"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.message)

    def body(self) -> bytes:
        """The JSON content of the answer, in LiteLLM's shape (``code`` is a string), which OpenAI SDKs read."""
        error = {"message": f"litellm-sanitizer: {self}", "type": self.kind, "param": None, "code": str(self.status)}
        return json.dumps({"error": error}).encode()


class BadRequest(GatewayError):
    """Request framing that two parsers could read differently (RFC 9112 sections 6.3 and 11.2)."""

    status = 400
    kind = "bad_request"
    message = "malformed request"


class HeadTooLarge(GatewayError):
    """The request head is larger than the gateway reads (RFC 6585 section 5)."""

    status = 431
    kind = "head_too_large"
    message = "request head too large"


class LoopDetected(GatewayError):
    """The request has already passed this gateway, or too many like it (RFC 9110 section 7.6.3)."""

    status = 508
    kind = "loop_detected"
    message = "the request came back to this gateway; --upstream leads to the gateway itself"


class ClientNotSending(GatewayError):
    """The client has sent nothing of its request's content for the stall timeout (RFC 9110 section 15.5.9)."""

    status = 408
    kind = "client_not_sending"
    message = "the request's content has stopped coming"


class ClientNotReading(GatewayError):
    """The client has taken nothing of what waits for it for the stall timeout: its connection is reset."""

    kind = "client_not_reading"
    message = "the client has stopped reading"


class PoolExhausted(GatewayError):
    """No upstream connection came free within the connect timeout."""

    status = 503
    kind = "pool_exhausted"
    message = "all upstream connections are busy; try again"


class OutOfDescriptors(GatewayError):
    """The process has no descriptor left for a connection to upstream. This is no failure of upstream's."""

    status = 503
    kind = "descriptors"
    message = "the gateway is out of file descriptors; try again"


class UpstreamTimeout(GatewayError):
    """Upstream did not answer in time."""

    status = 504
    kind = "timeout"
    message = "upstream timed out"


class ConnectTimeout(UpstreamTimeout):
    """No connection to upstream within the connect timeout."""

    kind = "connect_timeout"
    message = "upstream could not be reached in time"


class ResponseTimeout(UpstreamTimeout):
    """No response head from upstream within the response timeout."""

    kind = "response_timeout"
    message = "upstream did not answer in time"


class UpstreamNotReading(UpstreamTimeout):
    """Upstream has taken nothing of the request for the stall timeout, and has not begun to answer."""

    kind = "upstream_not_reading"
    message = "upstream has stopped reading the request"


class UpstreamError(GatewayError):
    """Upstream is unreachable or broken."""

    status = 502
    kind = "upstream_error"
    message = "upstream failed"


class UpstreamUnreachable(UpstreamError):
    """No connection to upstream: refused, not resolved, or its certificate is not trusted."""

    kind = "unreachable"
    message = "upstream is unreachable"


class UpstreamBroken(UpstreamError):
    """Upstream closed or reset the connection, or sent what is not HTTP, before its answer was whole."""

    kind = "broken"
    message = "upstream broke off"


class ResponseCut(Exception):
    """Upstream broke off after the response head had gone out; the client's connection must be aborted."""
