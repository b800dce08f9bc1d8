"""What a request's head says: every spelling of a target, and what makes a request one that is not relayed."""

import pytest

from sanitizer.errors import BadRequest
from sanitizer.relay.framing import Framing
from sanitizer.relay.request import decoded_path, read_request

HOST = b"Host: a\r\n"


def head(line: bytes, fields: bytes = HOST) -> bytes:
    return line + b"\r\n" + fields + b"\r\n"


@pytest.mark.parametrize(
    ("octets", "target", "onward"),
    [
        pytest.param(head(b"GET /a?b HTTP/1.1"), b"/a?b", head(b"GET /a?b HTTP/1.1"), id="origin form"),
        pytest.param(head(b"OPTIONS * HTTP/1.1"), b"*", head(b"OPTIONS * HTTP/1.1"), id="asterisk form"),
        pytest.param(
            head(b"GET http://b:1/c?d HTTP/1.1", b"X: 1\r\nHost: a\r\n"),
            b"/c?d",
            head(b"GET /c?d HTTP/1.1", b"Host: b:1\r\nX: 1\r\n"),
            id="absolute form",
        ),
        pytest.param(
            head(b"GET HTTPS://b HTTP/1.1"), b"/", head(b"GET / HTTP/1.1", b"Host: b\r\n"), id="absolute form, no path"
        ),
    ],
)
def test_target(octets: bytes, target: bytes, onward: bytes) -> None:
    """A target is a path; the authority of an absolute one takes Host's place, whatever Host says."""
    request = read_request(octets, way=True)
    assert (request.target, request.octets) == (target, onward)


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(head(b"GET /a"), id="no version"),
        pytest.param(head(b"GET  /a HTTP/1.1"), id="two spaces"),
        pytest.param(head(b"GET /a b HTTP/1.1"), id="space in the target"),
        pytest.param(head(b"GET /a HTTP/2.0"), id="HTTP/2"),
        pytest.param(head(b"GET /a RTSP/1.0"), id="another protocol"),
        pytest.param(head(b"GET /a HTTP/1.1", b""), id="no Host"),
        pytest.param(head(b"GET /a HTTP/1.1", HOST * 2), id="two Hosts"),
        pytest.param(head(b"GET /a HTTP/1.0", HOST * 2), id="two Hosts, HTTP/1.0"),
        pytest.param(head(b"CONNECT a:1 HTTP/1.1"), id="CONNECT"),
        pytest.param(head(b"CONNECT /a HTTP/1.1"), id="CONNECT to a path"),
        pytest.param(head(b"GET * HTTP/1.1"), id="asterisk, not OPTIONS"),
        pytest.param(head(b"GET a HTTP/1.1"), id="relative path"),
        pytest.param(head(b"GET ftp://a/ HTTP/1.1"), id="ftp"),
        pytest.param(head(b"GET http:///a HTTP/1.1"), id="no authority"),
        pytest.param(head(b"GET http://u@a/ HTTP/1.1"), id="user in the authority"),
        pytest.param(head(b"GET http://a?b HTTP/1.1"), id="query without a path"),
    ],
)
def test_not_relayed(octets: bytes) -> None:
    """What two servers could take for two requests, or is no business of a gateway's, is malformed."""
    with pytest.raises(BadRequest):
        read_request(octets, way=True)


@pytest.mark.parametrize(
    ("octets", "keep_alive"),
    [
        pytest.param(head(b"GET / HTTP/1.1"), True, id="by default"),
        pytest.param(head(b"GET / HTTP/1.1", HOST + b"Connection: x, Close\r\n"), False, id="close"),
        pytest.param(head(b"GET / HTTP/1.0", HOST + b"Connection: keep-alive\r\n"), False, id="HTTP/1.0"),
    ],
)
def test_keep_alive(octets: bytes, keep_alive: bool) -> None:
    """HTTP/1.1 stays unless it says close; HTTP/1.0 goes."""
    assert read_request(octets, way=True).keep_alive is keep_alive


UPGRADE = HOST + b"Connection: upgrade\r\nUpgrade: %b\r\n"


@pytest.mark.parametrize(
    ("octets", "upgrade"),
    [
        pytest.param(head(b"GET / HTTP/1.1", UPGRADE % b"websocket"), b"websocket", id="websocket"),
        pytest.param(head(b"GET / HTTP/1.1", UPGRADE % b"h2c, a"), b"a", id="less h2c"),
        pytest.param(head(b"GET / HTTP/1.1", UPGRADE % b"H2C"), b"", id="h2c alone"),
        pytest.param(head(b"POST / HTTP/1.1", UPGRADE % b"a"), b"", id="not GET"),
        pytest.param(head(b"GET / HTTP/1.0", UPGRADE % b"a"), b"", id="HTTP/1.0"),
        pytest.param(head(b"GET / HTTP/1.1", UPGRADE % b"a" + b"Content-Length: 1\r\n"), b"", id="with content"),
        pytest.param(head(b"GET / HTTP/1.1", UPGRADE % b"a" + b"Transfer-Encoding: chunked\r\n"), b"", id="chunked"),
        pytest.param(head(b"GET / HTTP/1.1", HOST + b"Upgrade: a\r\n"), b"", id="not in Connection"),
    ],
)
def test_upgrade(octets: bytes, upgrade: bytes) -> None:
    """Upgrade is asked of upstream where a tunnel can be made of it, and never for what could pass the sanitizer by."""
    assert read_request(octets, way=True).upgrade == upgrade


@pytest.mark.parametrize(
    ("fields", "repeatable"),
    [
        pytest.param(b"", True, id="nothing"),
        pytest.param(b"Content-Length: 5\r\n", True, id="length"),
        pytest.param(b"Transfer-Encoding: chunked\r\n", False, id="chunked"),
        pytest.param(b"Connection: upgrade\r\nUpgrade: a\r\n", False, id="upgrade"),
    ],
)
def test_repeatable(fields: bytes, repeatable: bool) -> None:
    """Only what differs in Content-Length alone may be known again."""
    request = read_request(head(b"GET / HTTP/1.1", HOST + fields), way=True)
    assert request.repeatable is repeatable
    assert (request.length is Framing.CHUNKED) == (b"chunked" in fields)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        pytest.param(b"/key/update", "/key/update", id="plain"),
        pytest.param(b"/key/%75pdate?a=%2F", "/key/update", id="encoded, with a query"),
        pytest.param(b"/key%2Fupdate", "/key/update", id="encoded slash"),
        pytest.param(b"/key/update?", "/key/update", id="empty query"),
        pytest.param(b"/key/update#a?b", "/key/update", id="fragment"),
        pytest.param(b"/%E2%82%AC%FF", "/\u20ac\ufffd", id="not all UTF-8"),
        pytest.param(b"*", "*", id="asterisk"),
    ],
)
def test_decoded_path(target: bytes, path: str) -> None:
    """As the server that LiteLLM runs on decodes it."""
    assert decoded_path(target) == path
