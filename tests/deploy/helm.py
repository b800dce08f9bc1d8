"""What `helm template` prints, by Helm as a library: `python -m tests.deploy.helm CHART RELEASE [VALUES]...`.

It is a process of its own, so that no process of the tests has Go's runtime in it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import helm_python


def main(chart: str, release: str, *files: str) -> None:
    """Renders a chart's folder with values files. Helm would merge them; here they have no name in common."""
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
