"""When an answer through the gateway is the answer that LiteLLM gives directly."""

from __future__ import annotations

import re

import httpx

#: Fields that differ between two equal requests.
VOLATILE = re.compile(rb"date|x-litellm-call-id|x-litellm-key-spend|x-litellm-.*-duration-ms")
#: What differs between the bodies of two equal requests for a completion.
IDENTITY = re.compile(rb'"id":"[^"]*"|"created":\d+')


def end_to_end(answer: httpx.Response) -> list[tuple[bytes, bytes]]:
    """The field lines in order, without hop-by-hop ones, the gateway's own, and values that vary by themselves."""
    left_out = {b"connection", b"keep-alive", b"transfer-encoding", b"x-litellm-sanitizer"}
    fields = [(name.lower(), value) for name, value in answer.headers.raw]
    return [(name, b"" if VOLATILE.fullmatch(name) else value) for name, value in fields if name not in left_out]


def assert_same_answer(direct: httpx.Response, through: httpx.Response) -> None:
    """Status line, end-to-end fields, and the body byte for byte."""
    assert (through.status_code, through.reason_phrase) == (direct.status_code, direct.reason_phrase)
    assert through.content == direct.content
    assert end_to_end(through) == end_to_end(direct)


def outcome(answer: httpx.Response) -> str:
    """The gateway's decision, as its response header tells it."""
    return answer.headers["x-litellm-sanitizer"].partition(";")[0]
