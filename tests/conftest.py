"""What all tests share: asynchronous ones (``pytest.mark.anyio``) run on uvloop, as the gateway does."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}
