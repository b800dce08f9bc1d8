"""Responses that arrive before their request is complete, and chunked content that is malformed."""

from __future__ import annotations

import http.client
import threading

import pytest

from tests.support.client import Client
from tests.support.gateway import Gateway
from tests.support.upstream import OK, WAIT_CLOSED, Connection, Script, Upstream, in_turn, reply
from tests.support.wire import Cut

PATHS = pytest.mark.parametrize("path", [b"/", b"/key/update"])
POST = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UPLOAD = 30_000_000
EARLY = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n%b\r\nnope"


def answers_and_reads_on(connection: Connection) -> None:
    connection.read_head()
    connection.send(EARLY % b"")
    while connection.recv():
        pass


def answers_in_mid_upload(connection: Connection) -> None:
    connection.read_head()
    connection.read_exactly(UPLOAD // 10)
    answers_and_ends(connection)


def answers_and_ends(connection: Connection) -> None:
    """Send a response and close the connection, which the kernel resets because content is unread."""
    if not connection.upstream.requests:
        connection.read_head()
    connection.send(EARLY % b"Connection: close\r\n")
    connection.close()


EARLY_ANSWERS: dict[str, Script] = {
    "upstream continues to read": answers_and_reads_on,
    "upstream resets": answers_and_ends,
    "upstream resets during the upload": answers_in_mid_upload,
}


@PATHS
@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize("script", EARLY_ANSWERS.values(), ids=EARLY_ANSWERS.keys())
def test_a_client_that_sends_all_before_it_reads(
    gateway: Gateway, upstream: Upstream, script: Script, path: bytes, coding: str
) -> None:
    """Python's `http.client` gets the early response to an upload, whatever upstream does after it."""
    upstream.script = script
    assert not isinstance(gateway.address, str)
    client = http.client.HTTPConnection(*gateway.address, timeout=30)
    try:
        content = bytes(UPLOAD)
        pieces = (content[at : at + 65536] for at in range(0, UPLOAD, 65536))
        client.request("POST", path.decode(), content if coding == "length" else pieces, encode_chunked=True)
        response = client.getresponse()
        assert (response.status, response.read()) == (401, b"nope")
    finally:
        client.close()


FAULTS = {
    "no chunk size": b"no size\r\n",
    "a valid chunk, then no chunk size": b"2\r\nok\r\nno size\r\n",
    "a chunk that is longer than its size": b"2\r\nokay\r\n",
    "Content-Length in a trailer": b"0\r\nContent-Length: 1\r\n\r\n",
}


@PATHS
@pytest.mark.parametrize("content", FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_chunk_with_the_head(gateway: Gateway, upstream: Upstream, path: bytes, content: bytes) -> None:
    """If malformed chunks arrive together with the head, the client gets 502 and can reuse its connection."""
    upstream.script = in_turn(reply(CHUNKED + content, WAIT_CLOSED), reply(OK))
    with gateway.connect() as client:
        response = client.ask(POST % path)
        assert response.status == 502
        assert b"faulty" in response.body
        assert client.ask(POST % path).body == b"ok"


@PATHS
def test_a_faulty_chunk_later_on(gateway: Gateway, upstream: Upstream, path: bytes) -> None:
    """If a part of the response has been relayed before a malformed chunk, the response is cut off."""

    begun = threading.Event()
    upstream.script = reply(CHUNKED + b"2\r\nok\r\n", begun, b"no size\r\n", WAIT_CLOSED)
    with gateway.connect() as client:
        client.send(POST % path)
        client.read_until(b"ok")
        begun.set()
        with pytest.raises(Cut):
            client.read_until(b"0\r\n\r\n")


@PATHS
def test_a_faulty_chunk_with_the_request(gateway: Gateway, upstream: Upstream, path: bytes) -> None:
    """A malformed chunk of a request is answered with 400, and upstream gets no complete request."""
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % path
    for pieces in ([head + b"no size\r\n"], [head, b"no size\r\n"], [head + b"2\r\n{}\r\n", b"no size\r\n"]):
        with Client(gateway.address) as client:
            assert client.ask(*pieces).status == 400
    upstream.settle()
    assert not any(request.complete for request in upstream.requests)
