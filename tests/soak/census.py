"""The gateway with one addition: at SIGUSR1 it writes to stderr how many objects of each type it holds.

Only types from the modules in `ROOMS`, and asyncio's own, are counted. Otherwise
``python -m tests.soak.census serve --upstream ...`` is ``python -m sanitizer serve --upstream ...``.
"""

import asyncio
import gc
import json
import runpy
import signal
import sys
from collections import Counter
from types import FrameType

ROOMS = ("sanitizer.", "uvicorn.", "uvloop.", "httptools.", "httpcore.", "asyncio.")


def take(signal_number: int, frame: FrameType | None) -> None:
    gc.collect()
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        kind = type(each)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(each, asyncio.Task):
            name = "asyncio.Task"
        if name.startswith(ROOMS) or name in ("_asyncio.Future", "_asyncio.Task"):
            found[name] += 1
    print(json.dumps({"level": "info", "message": "census", "objects": found}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, take)
    runpy.run_module("sanitizer", run_name="__main__", alter_sys=True)
