"""``litellm-sanitizer check``: is the upstream a LiteLLM, which of the defects does it have, will the gateway see them.

The check changes nothing: it sends some GET requests, with a key if it is given one. `checks` has the questions,
`client` sends them, `defects` knows what a release refuses, and `text` words the `report`.
"""

from sanitizer.operate.check.checks import check
from sanitizer.operate.check.text import json_of, text_of
from sanitizer.settings import Settings


def run(settings: Settings, key: str | None, *, as_json: bool) -> int:
    """Check, and print what was found. ``key``: a LiteLLM key, or None. The exit status: 0, or 1 for a problem."""
    report = check(settings, key)
    print(json_of(report) if as_json else text_of(report, settings))
    return 1 if report.problems else 0
