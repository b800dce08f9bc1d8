"""A short soak, and the failures that the ledger accounts for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop

from tests.soak.ledger import AWAY, DROPPED, KILLED, Failure, Restart, account, read_journal, repeated
from tests.soak.report import text
from tests.soak.run import MIB, Options, soak

RESTARTS = [Restart("killed", 10, 100.0, 101.0), Restart("restarted", 11, 200.0, 202.0)]
JOURNAL = """\
POST first 10 run
POST second 11 run
GET third 10 run
GET third 11 run
POST fourth 10 dropped
POST fourth 11 run
"""


def test_soak() -> None:
    """In ten seconds of mixed traffic, every failure is accounted for, and the gateway leaves nothing behind."""
    # Memory is not stable after ten seconds, so it may grow by more here. The long soak takes its reference after a
    # minute, in which memory grows from 37 MiB to 44 MiB.
    options = Options(10, clients=24, restart_every=2.5, keepalive=1.0, growth=16 * MIB, stall=3.0)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(soak(options))
    assert report.good, text(report)
    assert report.ledger.finished.total() > 100
    assert all(report.ledger.finished[kind] for kind in ("does not read", "stops sending", "is not read"))
    assert {each.how for each in report.ledger.restarts} == {"killed", "restarted"}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.write_text(JOURNAL)
    return path


@pytest.mark.parametrize(
    ("method", "id_", "begin", "end", "reason"),
    [
        pytest.param("POST", "first", 99.0, 100.5, KILLED, id="in flight when upstream was killed"),
        pytest.param("POST", "first", 90.0, 99.0, None, id="over before upstream was killed"),
        pytest.param("POST", "second", 199.0, 201.0, None, id="begun by one that ended in good order"),
        pytest.param("POST", "fourth", 150.0, 151.0, DROPPED, id="dropped"),
        pytest.param("POST", "none", 100.5, 100.6, AWAY, id="while upstream was away"),
        pytest.param("POST", "none", 199.0, 201.0, AWAY, id="while upstream was on its way out"),
        pytest.param("POST", "none", 150.0, 151.0, None, id="while upstream was there"),
        pytest.param("GET", "first", 99.0, 100.5, AWAY, id="another method of the same id"),
        pytest.param("GET", "third", 99.0, 100.5, KILLED, id="sent again, to be killed once"),
    ],
)
def test_account(journal: Path, method: str, id_: str, begin: float, end: float, reason: str | None) -> None:
    """A failure is explained by a kill of upstream during the request, by a drop, or by upstream's absence.

    Nothing else explains it.
    """
    failure = Failure("JSON", method, id_, "502", begin, end)
    assert account(failure, read_journal(journal), RESTARTS) == reason


def test_repeated(journal: Path) -> None:
    """A POST that two upstreams have begun counts as repeated, but a GET does not."""
    assert repeated(read_journal(journal)) == ["fourth"]
