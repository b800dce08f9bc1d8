"""A raw HTTP client: a test chooses the bytes and the pieces that it sends, and sees every byte that it receives."""

from __future__ import annotations

import socket
import ssl
from types import TracebackType

from tests.support.wire import Cut, Response, Wire, parse_head

Address = tuple[str, int] | str  # (host, port), or the path of a unix socket


class Client(Wire):
    """One connection to ``address``, with TLS if a context is given."""

    def __init__(
        self,
        address: Address,
        *,
        context: ssl.SSLContext | None = None,
        hostname: str = "localhost",
        receive_buffer: int | None = None,
        keep: bool = True,
    ) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        sock = socket.socket(family)
        try:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(10)
            sock.connect(address)
            if context is not None:
                sock = context.wrap_socket(sock, server_hostname=hostname)
        except BaseException:
            sock.close()
            raise
        super().__init__(sock, keep=keep)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read_head(self) -> Response:
        """Read the next response's head, interim (1xx) or final.

        Raises:
            Cut: the connection ended first.
        """
        head = self.read_until(b"\r\n\r\n")
        start, fields = parse_head(head)
        return Response(start, fields, raw_head=head)

    def read_response(self, method: bytes = b"GET", *, interim: list[Response] | None = None) -> Response:
        """Read the next final response and its content. Interim responses are appended to ``interim``, or discarded.

        If the connection ends within the content, the response's ``complete`` is false.

        Raises:
            Cut: the connection ended before the head was complete.
        """
        response = self.read_head()
        while 100 <= response.status < 200 and response.status != 101:
            if interim is not None:
                interim.append(response)
            response = self.read_head()
        if method == b"HEAD" or response.status in (101, 204, 304):
            return response
        response.framing = "close"
        self.read_body(response)
        return response

    def ask(self, *chunks: bytes) -> Response:
        """Send a request and read its response; the method is taken from the first bytes."""
        self.send(*chunks)
        return self.read_response(b"".join(chunks).lstrip(b"\r\n").split(b" ")[0])


def ask(address: Address, *chunks: bytes) -> Response:
    """Send one request on a new connection, and read its response."""
    with Client(address) as client:
        return client.ask(*chunks)


__all__ = ["Address", "Client", "Cut", "Response", "ask"]
