"""The findings of a check."""

from dataclasses import dataclass, field
from enum import StrEnum

from sanitizer.operate.check.defects import NEWEST_KNOWN, OLDEST_KNOWN, Defect, release_of
from sanitizer.sanitize.gates import NEWEST_PROVEN


class Result(StrEnum):
    """The result of one check."""

    OK = "ok"
    NOTE = "note"  # unknown, or for the operator to judge
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, with an explanation."""

    check: str
    result: Result
    detail: str


@dataclass(slots=True)
class Report:
    """The findings of all checks.

    ``release``: None if LiteLLM did not report it. ``defects``: None if they are unknown. ``proven_on``: the newest
    LiteLLM release on which the table of defects was proven.
    """

    upstream: str
    proven_on: str = NEWEST_PROVEN
    release: str | None = None
    findings: list[Finding] = field(default_factory=list)
    defects: list[Defect] | None = None

    def add(self, check: str, result: Result, detail: str) -> None:
        self.findings.append(Finding(check, result, detail))

    @property
    def needed(self) -> bool | None:
        """Whether LiteLLM refuses any unchanged field; None if its release is unknown, or outside the known range."""
        release = release_of(self.release) if self.release is not None else None
        if release is None or not OLDEST_KNOWN <= release <= NEWEST_KNOWN:
            return None
        return any(defect.refused for defect in self.defects or ())

    @property
    def problems(self) -> int:
        """The number of problems."""
        return sum(finding.result is Result.PROBLEM for finding in self.findings)
