"""An upstream for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.upstream import Upstream


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream
