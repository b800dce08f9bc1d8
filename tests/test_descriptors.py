"""The reserve of descriptors: one is to be had of it at a time, whatever else wants some."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator

import pytest

from sanitizer.descriptors import none_left, take_from_reserve


@pytest.fixture
def exhausted() -> Iterator[contextlib.ExitStack]:
    """None is left to the public side. What is opened is to be closed by the stack."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        yield stack


def opened(stack: contextlib.ExitStack) -> int:
    descriptor = os.dup(0)
    stack.callback(os.close, descriptor)
    return descriptor


def test_one_at_a_time(exhausted: contextlib.ExitStack) -> None:
    """While one is taken nobody else can have another."""

    def take() -> None:
        assert not none_left()
        opened(exhausted)
        assert none_left()

    assert none_left()
    for _ in range(3):
        take_from_reserve(take)
        assert none_left()


def test_somebody_is_faster(exhausted: contextlib.ExitStack) -> None:
    """When the public side has got the one that was meant to be taken, there is another."""
    calls = 0

    def take() -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            opened(exhausted)
        return opened(exhausted)

    assert take_from_reserve(take) > 0
    assert calls == 3


def test_none_in_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the reserve is used up too, that is an error, and the limit is what it was."""
    limits = [(3, 3)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        take_from_reserve(lambda: None)
    assert limits[-1] == (3, 3)
