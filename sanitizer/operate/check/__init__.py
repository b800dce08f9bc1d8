"""``litellm-sanitizer check``: is the upstream LiteLLM, which of the defects does it have, and are they repaired?

The check changes nothing: it sends a few GET requests, with a key if it is given one.

* `checks`: the checks, and what each finding means.
* `client`: the HTTP client that sends their requests.
* `defects`: the fields that a LiteLLM release refuses.
* `report`, `text`: the findings, and their output as text and JSON.
"""

from sanitizer.operate.check.checks import check
from sanitizer.operate.check.text import json_of, text_of
from sanitizer.settings import Settings


def run(settings: Settings, key: str | None, *, as_json: bool) -> int:
    """Make all checks, and print the report. ``key``: a LiteLLM key, or None.

    Returns the exit status: 1 if there is a problem, otherwise 0.
    """
    report = check(settings, key)
    print(json_of(report) if as_json else text_of(report, settings))
    return 1 if report.problems else 0
