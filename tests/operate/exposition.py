"""The samples that ``/metrics`` exposes, read by prometheus-client's own parser."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import Gateway

WAIT = 30.0


class Numbers(dict[str, float]):
    """Samples by name and labels, ``name{a="b",c="d"}``, the labels in alphabetical order."""

    @classmethod
    def of(cls, gateway: Gateway) -> Numbers:
        numbers = cls()
        for family in families(gateway):
            for name, labels, value, *_ in family.samples:
                pairs = ",".join(f'{label}="{labels[label]}"' for label in sorted(labels))
                numbers[f"{name}{{{pairs}}}" if pairs else name] = value
        return numbers

    def since(self, before: Numbers) -> dict[str, float]:
        """The samples that have changed since ``before``, and by how much."""
        return {name: value - before.get(name, 0) for name, value in self.items() if value != before.get(name, 0)}


def families(gateway: Gateway) -> list[Metric]:
    response = gateway.ask_admin("/metrics")
    assert response.status == 200
    return list(text_string_to_metric_families(response.body.decode()))


def wait_for(gateway: Gateway, condition: Callable[[Numbers], bool]) -> Numbers:
    """Scrape until ``condition`` holds. Returns the samples.

    A serving process publishes its metrics twice a second. Before the first time, it has none.
    """
    until = time.monotonic() + WAIT
    while not ((numbers := Numbers.of(gateway)) and "sanitizer_requests_in_flight" in numbers and condition(numbers)):
        assert time.monotonic() < until, numbers
        time.sleep(0.05)
    return numbers


def wait_until_ready(gateway: Gateway, ready: bool = True, because: str = "") -> bytes:
    """Request ``/readyz`` until it reports ``ready``, with content that contains ``because``. Returns the content."""
    until = time.monotonic() + WAIT
    status = 200 if ready else 503
    while (answer := gateway.ask_admin("/readyz")).status != status or because.encode() not in answer.body:
        assert time.monotonic() < until, answer.body
        time.sleep(0.05)
    return answer.body
