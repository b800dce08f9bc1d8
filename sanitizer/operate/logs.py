"""Logs on stderr: JSON, or text on a terminal. No secret gets through: what looks like a key is masked."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

logger = logging.getLogger("sanitizer")

_KEY: Final = re.compile(r"\bsk-[\w\-]+")
_REPEAT_SECONDS: Final = 10.0


def mask(text: str) -> str:
    """``text`` with everything that looks like a LiteLLM key masked."""
    return _KEY.sub("sk-***", text)


def event(level: int, message: str, **fields: Any) -> None:
    """Log ``message`` with ``fields``; those that are None are left out."""
    if logger.isEnabledFor(level):
        logger.log(level, message, extra={"fields": {k: v for k, v in fields.items() if v is not None}})


class _JSON(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return mask(json.dumps(line, default=str))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f"  {name}={value}" for name, value in getattr(record, "fields", {}).items())
        line = f"{clock} {record.levelname.lower():7} {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return mask(line)


def configure(level: str, style: str) -> None:
    """Send this package's and uvicorn's logs to stderr. ``style``: json, text, or auto (text on a terminal)."""
    if style == "auto":
        style = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler()
    handler.setFormatter(_Text() if style == "text" else _JSON())
    for name, minimum in (("sanitizer", level), ("uvicorn", max(level, "warning", key=_severity))):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.propagate = False
        log.setLevel(minimum.upper())


def _severity(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


class Repeats:
    """Sums up failures of one kind: the first is logged at once, then one line every ten seconds says how many more."""

    def __init__(
        self, message: str, log: Callable[..., None] = event, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._message = message
        self._log = log
        self._clock = clock
        self._kinds: dict[str, tuple[float, int]] = {}

    def __call__(self, kind: str, detail: str) -> None:
        """A failure of ``kind`` has happened; ``detail`` says more, for the operator."""
        now = self._clock()
        since, more = self._kinds.get(kind, (-_REPEAT_SECONDS, 0))
        if now - since < _REPEAT_SECONDS:
            self._kinds[kind] = since, more + 1
            return
        self._kinds[kind] = now, 0
        self._log(logging.WARNING, self._message, kind=kind, detail=detail, more=more or None)
