"""A soak's report as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.soak.clients import STAGES
from tests.soak.run import MIB, Report


def text(report: Report) -> str:
    return "\n".join([*requests(report), "", *figures(report), "", *verdicts(report)])


def requests(report: Report) -> Iterator[str]:
    """A row for each kind of request. A client that leaves within the head counts as left, but not as sent."""
    ledger = report.ledger
    left = Counter(kind for kind, _ in ledger.left.elements())
    failed = Counter(each.kind for each in ledger.failures if each.kind in STAGES)
    columns = {"sent": ledger.sent, "finished": ledger.finished, "client left": left, "failed": failed}
    yield f"{'kind':16}" + "".join(f"{name:>13}" for name in columns)
    for kind in STAGES:
        yield f"{kind:16}" + "".join(f"{column[kind]:13}" for column in columns.values())
    yield f"{'all':16}" + "".join(f"{column.total():13}" for column in columns.values())


def figures(report: Report) -> Iterator[str]:
    ledger = report.ledger
    where: Counter[str] = Counter(stage for _, stage in ledger.left.elements())
    hows = Counter(each.how for each in ledger.restarts)
    answered = report.stopped.get("requests", 0)
    yield f"upstream:       {hows['killed']} times killed, {hows['restarted']} times restarted"
    for (outcome, reason), count in sorted(report.accounts.items()):
        yield f"{outcome + ':':15} {count} {reason}"
    yield "clients left:   " + ", ".join(f"{count} {stage}" for stage, count in sorted(where.items()))
    yield f"content:        {ledger.octets / MIB:.0f} MiB compared"
    yield f"gateway's CPU:  {report.cpu:.1f} s, {report.cpu / report.seconds:.0%} of a core, for {answered} requests"
    yield f"gateway's end:  {report.stopped}"
    series = report.samples[:: max(1, len(report.samples) // 20)]
    yield "memory, MiB:    " + " ".join(f"{each.resident / MIB:.1f}" for each in series)
    yield "descriptors:    " + " ".join(str(each.descriptors) for each in series)


def verdicts(report: Report) -> Iterator[str]:
    for what, so, found in report.verdicts:
        yield f"{'ok ' if so else 'OFF'} {what}: {found}"
