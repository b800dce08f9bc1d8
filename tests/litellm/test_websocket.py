"""WebSockets such as `/v1/realtime`: an upgrade is accepted or refused, and ends, as it does direct."""

from __future__ import annotations

import dataclasses

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.litellm.actors import LiteLLM, User, bearer
from tests.litellm.conftest import everywhere


@dataclasses.dataclass
class Session:
    """What a client received on one WebSocket."""

    status: int
    fields: list[str]
    body: bytes | None = None
    subprotocol: str | None = None
    messages: list[str | bytes] = dataclasses.field(default_factory=list)
    code: int | None = None
    reason: str | None = None


def play(url: str, path: str, headers: dict[str, str], subprotocols: list[str]) -> Session:
    """Open a WebSocket, read all messages, and record how it ends."""
    try:
        connection = connect(
            url.replace("http", "ws", 1) + path,
            additional_headers=headers,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            open_timeout=30,
            proxy=None,
        )
    except InvalidStatus as refused:
        answer = refused.response
        return Session(answer.status_code, names(answer.headers.raw_items()), bytes(answer.body or b""))
    with connection:
        assert connection.response is not None
        fields = names(connection.response.headers.raw_items())
        session = Session(connection.response.status_code, fields, subprotocol=connection.subprotocol)
        try:
            while True:
                session.messages.append(connection.recv(timeout=30))
        except ConnectionClosed as closed:
            if closed.rcvd:
                session.code, session.reason = closed.rcvd.code, closed.rcvd.reason
    return session


def names(fields: object) -> list[str]:
    """Lower-case field names in order, without hop-by-hop fields and Content-Length."""
    assert hasattr(fields, "__iter__")
    left_out = ("connection", "upgrade", "content-length", "transfer-encoding", "keep-alive")
    return [name.lower() for name, _ in fields if name.lower() not in left_out]


@everywhere
@pytest.mark.parametrize(
    ("path", "credential", "subprotocols", "status"),
    [
        pytest.param("/v1/realtime?model=mock-gpt", "header", [], 101, id="accepted"),
        pytest.param("/realtime?model=mock-gpt", "header", [], 101, id="unversioned"),
        pytest.param("/v1/realtime?model=no-such-model", "header", [], 101, id="no-such-model"),
        pytest.param(
            "/v1/realtime?model=mock-gpt", "none", ["realtime", "openai-insecure-api-key.{key}"], 101, id="browser"
        ),
        pytest.param("/v1/realtime?model=mock-gpt", "none", [], 403, id="no-key"),
        pytest.param("/v1/realtime?model=mock-gpt", "wrong", [], 403, id="wrong-key"),
        pytest.param("/v1/realtime", "header", [], 403, id="no-model"),
        pytest.param("/no/such/socket", "header", [], 403, id="not-found"),
    ],
)
def test_upgrade(
    litellm: LiteLLM, gateway: str, owner: User, path: str, credential: str, subprotocols: list[str], status: int
) -> None:
    """Status, field names, content, subprotocol, messages, close code and reason are the same as direct."""
    headers = {"none": {}, "wrong": bearer("sk-wrong"), "header": bearer(owner.key)}[credential]
    offered = [name.format(key=owner.key) for name in subprotocols]
    direct, through = (play(url, path, headers, offered) for url in (litellm.url, gateway))
    assert through == direct
    assert direct.status == status
    if status == 101:
        assert direct.code == 1011  # there is no model behind it
