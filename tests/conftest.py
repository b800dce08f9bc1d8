"""Settings for all tests: asynchronous tests (``pytest.mark.anyio``) run on uvloop, as the gateway does.

Most tests wait for a process or a timeout, so four files run side by side (pytest-xdist). ``-n 0`` runs all tests in
one process.

In CI (the environment variable ``CI``) a skipped test counts as failed, because everything that a test needs is
installed there. Hypothesis then tries the same examples in each run, so that a failure is due to the change under
test. Elsewhere it tries other examples in each run; ``--hypothesis-seed=N`` repeats a run. Examples have no deadline.
"""

import logging
import os
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

hypothesis.settings.register_profile(
    "untimed",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")

WORKERS = 4
LITELLM = "tests/litellm"
CONTAINERS = "tests/containers"
LONGEST = (
    LITELLM,
    CONTAINERS,
    "tests/names",
    "tests/deploy/test_rolling.py",
    "tests/deploy/test_failover.py",
    "tests/deploy/test_prometheus.py",
    "tests/operate/test_admin.py",
    "tests/relay/test_stalls.py",
    "tests/soak",
)
"""The tests that take longest. They start first."""


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Restore the loggers: a test that sends logs to stderr must not keep them from the next test's ``caplog``."""
    logs = [logging.getLogger(name) for name in ("sanitizer", "sanitizer.access", "asyncio", "uvicorn")]
    states = [(log, log.handlers, log.propagate, log.level) for log in logs]
    yield
    for log, handlers, propagates, level in states:
        log.handlers, log.propagate = handlers, propagates
        log.setLevel(level)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """No worker processes for a single file, because starting them takes longer than most files do."""
    return 0 if len(config.args) == 1 and ".py" in config.args[0] else WORKERS


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))

    items.sort(key=rank)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Runs the tests of a file in one process, because many share a gateway.

    All tests on LiteLLM run in one process too, and so do all tests with containers.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = nodeid.partition("::")[0]
        return next((folder for folder in (LITELLM, CONTAINERS) if file.startswith(folder)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_if_skipped(report)
    return report


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = (
            f"skipped in CI: {report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr}"
        )
