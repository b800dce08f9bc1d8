"""Renders a chart as `helm template` does: `python -m tests.deploy.helm CHART RELEASE [VALUES]...`.

Helm is used as a library. This is a process of its own, so that no process of the tests loads Go's runtime.
"""

import json
import sys
from pathlib import Path
from typing import Any

import helm_python


def main(chart: str, release: str, *files: str) -> None:
    """Print the rendered templates of a chart's folder as JSON, with the values of all ``files``.

    Helm would merge the files. Here, no two may set the same top-level name.
    """
    values: dict[str, Any] = {}
    for file in files:
        own = helm_python.values_from_yaml(Path(file).read_text())
        assert not values.keys() & own.keys()
        values |= own
    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        json.dump(loaded.render(values, name=release, namespace="llm"), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
