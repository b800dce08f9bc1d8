"""Comparison of a response through the gateway with LiteLLM's direct response."""

from __future__ import annotations

import re

import httpx

#: Fields that differ between the responses to two equal requests.
VOLATILE = re.compile(rb"date|x-litellm-call-id|x-litellm-key-spend|x-litellm-.*-duration-ms")
#: The parts that differ between the contents of two completions for equal requests.
IDENTITY = re.compile(rb'"id":"[^"]*"|"created":\d+')


def end_to_end(answer: httpx.Response) -> list[tuple[bytes, bytes]]:
    """The field lines in order, without hop-by-hop fields, the gateway's own field, and the values that always vary."""
    left_out = {b"connection", b"keep-alive", b"transfer-encoding", b"x-litellm-sanitizer"}
    fields = [(name.lower(), value) for name, value in answer.headers.raw]
    return [(name, b"" if VOLATILE.fullmatch(name) else value) for name, value in fields if name not in left_out]


def assert_same_answer(direct: httpx.Response, through: httpx.Response) -> None:
    """Assert that status, reason phrase and end-to-end fields are equal, and the content byte for byte."""
    assert (through.status_code, through.reason_phrase) == (direct.status_code, direct.reason_phrase)
    assert through.content == direct.content
    assert end_to_end(through) == end_to_end(direct)


def outcome(answer: httpx.Response) -> str:
    """The outcome of the gateway's decision, from its response header."""
    return answer.headers["x-litellm-sanitizer"].partition(";")[0]
