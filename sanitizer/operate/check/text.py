"""A report as text and as JSON."""

import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Final

from sanitizer import __version__
from sanitizer.operate.check.defects import Defect
from sanitizer.operate.check.report import Report, Result
from sanitizer.settings import Settings

_WIDTH: Final = 100


def json_of(report: Report) -> str:
    """The report as JSON, for programs."""
    return json.dumps({"ok": not report.problems, "needed": report.needed, **asdict(report)}, indent=2)


def text_of(report: Report, settings: Settings) -> str:
    """The report as text, for a terminal."""
    lines = [f"litellm-sanitizer {__version__}, proven on LiteLLM {report.proven_on}: check of {report.upstream}", ""]
    for finding in report.findings:
        word = "PROBLEM" if finding.result is Result.PROBLEM else finding.result
        lines += _item(f"{word:9}{finding.check:12}", finding.detail)
    if report.defects is not None:
        lines += ["", *_defect_lines(report.defects, report, settings)]
    problems = report.problems
    lines += ["", "No problem." if not problems else "1 problem." if problems == 1 else f"{problems} problems."]
    if report.defects is None and not problems:
        lines += _item("", "What this release refuses is not known: check again with the key of an admin (--key-file).")
    return "\n".join(lines)


def _defect_lines(defects: list[Defect], report: Report, settings: Settings) -> Iterator[str]:
    present = [defect for defect in defects if defect.refused]
    if not present:
        conclusion = "as far as is known" if report.needed is None else "so it needs no gateway"
        yield f"LiteLLM {report.release} refuses nothing that is sent unchanged, {conclusion}."
        return
    why = "not in --fields" if settings.mode == "enforce" else f"--mode {settings.mode}"

    def refused(defect: Defect) -> str:
        return "; ".join(defect.refused) + ("" if defect.repaired else f" - NOT REPAIRED: {why}")

    yield f"LiteLLM {report.release} refuses these fields, though unchanged, most of them from all but proxy admins:"
    yield from _by_endpoint(present, refused)
    if fixed := [defect for defect in defects if defect.fixed]:
        yield "Fixed in this release:"
        yield from _by_endpoint(fixed, lambda defect: "; ".join(defect.fixed))
    if all(defect.repaired for defect in present):
        yield "The gateway repairs all of these."


def _by_endpoint(defects: list[Defect], values: Callable[[Defect], str]) -> Iterator[str]:
    """The fields of each endpoint with their ``values``. Endpoints with the same fields and values share one entry."""
    rows_of: dict[str, list[tuple[str, str]]] = {}
    for defect in defects:
        rows_of.setdefault(defect.endpoint, []).append((defect.field, values(defect)))
    endpoints: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for endpoint, rows in rows_of.items():
        endpoints.setdefault(tuple(rows), []).append(endpoint)
    width = max(len(defect.field) for defect in defects) + 2
    for fields, names in endpoints.items():
        yield "  POST " + ", ".join(names)
        for name, text in fields:
            yield from _item(f"    {name:{width}}", text)


def _item(label: str, text: str) -> list[str]:
    indent = " " * len(label)
    return textwrap.wrap(text, _WIDTH, initial_indent=label, subsequent_indent=indent, break_long_words=False)
