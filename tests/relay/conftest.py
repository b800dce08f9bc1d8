"""Fixtures: one gateway per adapter and module, and its upstream."""

from collections.abc import Iterator

import pytest

from tests.support.gateway import Adapter, Gateway
from tests.support.upstream import Upstream


@pytest.fixture(scope="module", params=["native", "asgi"])
def adapter(request: pytest.FixtureRequest) -> Adapter:
    """The adapter under test."""
    adapter: Adapter = request.param
    return adapter


@pytest.fixture(scope="module")
def running_upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(adapter: Adapter, running_upstream: Upstream) -> Iterator[Gateway]:
    """A gateway with default options, shared by the module's tests."""
    with Gateway(running_upstream.url, adapter=adapter) as gateway:
        yield gateway


@pytest.fixture
def upstream(running_upstream: Upstream) -> Iterator[Upstream]:
    """The upstream of `gateway`, with no recorded requests. An error in its script is raised after the test."""
    running_upstream.restart()
    yield running_upstream
    running_upstream.settle()
    if running_upstream.errors:
        raise running_upstream.errors[0]
