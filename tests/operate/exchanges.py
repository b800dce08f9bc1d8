"""Requests, and scripts of upstreams that answer them, for the tests of metrics and logs."""

from __future__ import annotations

import hashlib
import json

from tests.support.upstream import CLOSE, OK, WAIT_CLOSED, Connection, Script

KEY = "sk-metrics"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
UPDATE = json.dumps({"key": KEY, "allowed_routes": ["/a"]}).encode()
HANDSHAKE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"


def request(method: str = "GET", target: str = "/v1/models", body: bytes = b"", fields: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


def update(body: bytes = UPDATE) -> bytes:
    return request("POST", "/key/update", body, "Content-Type: application/json\r\n")


def answer(status: str, content: object = "") -> bytes:
    text = json.dumps(content)
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


def lookup(*steps: bytes | object, then: bytes = OK) -> Script:
    """An upstream that answers a lookup with ``steps``, and every other request with ``then``."""

    def script(connection: Connection) -> None:
        if connection.read_request().target.startswith(b"/key/info"):
            for step in steps:
                if step is CLOSE:
                    connection.close()
                elif step is WAIT_CLOSED:
                    connection.closed()
                else:
                    assert isinstance(step, bytes)
                    connection.send(step)
        else:
            connection.send(then)

    return script


def refusing(status: str, message: str, info: dict[str, object], *fields: bytes) -> Script:
    """An upstream that has stored ``info``. It refuses requests that contain one of ``fields``, and accepts others."""
    refusal = answer(status, {"error": {"message": message, "type": "auth_error", "param": None, "code": status[:3]}})

    def script(connection: Connection) -> None:
        request = connection.read_request()
        if request.target.startswith(b"/key/info"):
            connection.send(answer("200 OK", {"key": HASH, "info": info}))
        else:
            refused = any(b'"%b":' % field in request.body for field in fields)
            connection.send(refusal if refused else OK)

    return script


def stored(routes: object) -> bytes:
    return answer("200 OK", {"key": HASH, "info": {"allowed_routes": routes}})


BUDGET = "Only admins, or users with permission, can call /key/update (max_budget/spend). Your role=internal_user."
SPEND = update(json.dumps({"key": KEY, "models": [], "spend": 1.5}).encode())
