"""The labs of a run. Gateways are slow to start, so rows with the same options share a gateway and its upstream."""

from __future__ import annotations

import contextlib
from types import TracebackType

from tests.conformance.table import Lab
from tests.support.gateway import Adapter, Gateway
from tests.support.upstream import Upstream


class Labs:
    """All labs of a run, each started when it is first requested. A context manager."""

    def __init__(self) -> None:
        self._labs: dict[tuple[Adapter, tuple[str, ...]], Lab] = {}
        self._stack = contextlib.ExitStack()

    def get(self, adapter: Adapter, options: tuple[str, ...] = ()) -> Lab:
        if (adapter, options) not in self._labs:
            upstream = self._stack.enter_context(Upstream())
            if adapter == "httpx":
                upstream.settle_timeout = 0.02  # it does not notice that upstream half-closes
            self._stack.callback(upstream.errors.clear)  # each row has checked its own errors
            gateway = self._stack.enter_context(Gateway(upstream.url, *options, adapter=adapter))
            self._labs[adapter, options] = Lab(adapter, gateway, upstream)
        return self._labs[adapter, options]

    def __enter__(self) -> Labs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
