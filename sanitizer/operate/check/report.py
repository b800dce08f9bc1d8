"""The findings of a check."""

from dataclasses import dataclass, field
from enum import StrEnum

from sanitizer.operate.check.defects import NEWEST_KNOWN, OLDEST_KNOWN, Defect, release_of
from sanitizer.sanitize.gates import NEWEST


class Result(StrEnum):
    """The result of one check."""

    OK = "ok"
    NOTE = "note"  # it could not be found out, or the operator has to judge it
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, in words."""

    check: str
    result: Result
    detail: str


@dataclass(slots=True)
class Report:
    """All findings. ``release`` is None if LiteLLM did not tell it; ``defects`` are then unknown.

    ``proven_on`` is the newest LiteLLM release on which the table of defects was proven.
    """

    upstream: str
    proven_on: str = NEWEST
    release: str | None = None
    findings: list[Finding] = field(default_factory=list)
    defects: list[Defect] | None = None

    def add(self, check: str, result: Result, detail: str) -> None:
        self.findings.append(Finding(check, result, detail))

    @property
    def needed(self) -> bool | None:
        """Whether LiteLLM refuses anything that is unchanged; None if its release is not known, or not in the table."""
        release = release_of(self.release) if self.release is not None else None
        if release is None or not OLDEST_KNOWN <= release <= NEWEST_KNOWN:
            return None
        return any(defect.refused for defect in self.defects or ())

    @property
    def problems(self) -> int:
        return sum(finding.result is Result.PROBLEM for finding in self.findings)
