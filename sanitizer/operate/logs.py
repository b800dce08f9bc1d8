"""Logs on stderr: JSON, or text on a terminal. No secret gets through: what looks like a key is masked."""

import asyncio
import json
import logging
import re
import sys
from datetime import datetime
from time import gmtime, strftime
from typing import Any, Final
from urllib.parse import unquote

logger = logging.getLogger("sanitizer")
_access_logger: Final = logging.getLogger("sanitizer.access")

# a key chosen by hand may have slashes; behind one that is masked already there may be a path
_KEY: Final = re.compile(r"""(?<![A-Za-z0-9])sk-(?!\*\*\*)[^\s"'?#&,;<>()\[\]{}\\]+""")
# a key in a path may have any character; it ends where a route of LiteLLM's goes on
_KEY_IN_PATH: Final = re.compile(r"(?<![A-Za-z0-9])sk-.+?(?=(?:/regenerate|/reset_spend)?\Z)", re.DOTALL)
# JSON Web Tokens in compact form, signed (RFC 7515 section 7.1) or encrypted (RFC 7516 section 7.1), whatever is before
# them. No text takes long, for nothing is tried again: the quantifiers are possessive, and what is before a token is
# found by looking ahead (in Python 3.11.2, which Debian 12 has, a possessive quantifier of a group does not match)
_JWT: Final = re.compile(r"(?<![\w-])(?=((?:(?!eyJ)[\w-])*))\1eyJ[\w-]*+(?:\.[\w-]*+){2,4}", re.ASCII)
_HASH_DIGITS: Final = 64
_HASH: Final = re.compile(r"(?<![0-9A-Fa-f])([0-9A-Fa-f]{8})[0-9A-Fa-f]{56}(?![0-9A-Fa-f])")
_USER: Final = re.compile(r"(?<=//)[^/?#@\s]+@")
_ENCODED: Final = 3
"""How many times a path is decoded in search of a key."""
_MOST_DETAILS: Final = 32
_REPEAT_SECONDS: Final = 10.0
_ENCODE: Final = json.JSONEncoder(default=str).encode


def mask(text: str) -> str:
    """``text`` with all masked that looks like a secret.

    That is a LiteLLM key, a key's hash less its first 8 digits, a JSON Web Token, or the user in a URL.
    """
    # most of what is logged has none of these, and so nothing to look for
    if "sk-" in text:
        text = _KEY.sub("sk-***", text)
    if "eyJ" in text:
        text = _JWT.sub(r"\1eyJ***", text)
    if len(text) >= _HASH_DIGITS:
        text = _HASH.sub(r"\1***", text)
    return _USER.sub("***@", text) if "//" in text else text


def path_of(target: bytes) -> str:
    """The path of a request target for a log: no query, and what looks like a secret masked however it is encoded."""
    path = plain = re.split("[?#]", target.decode("latin-1"), maxsplit=1)[0]
    for _ in range(_ENCODED):
        plain = unquote(plain)
    masked = mask(_KEY_IN_PATH.sub("sk-***", plain))
    return masked if masked != plain else path


def event(level: int, message: str, *, block: bool = False, **fields: Any) -> None:
    """Log ``message`` with ``fields``; those that are None are left out. ``block``: as text, a line for each."""
    if logger.isEnabledFor(level):
        present = {k: v for k, v in fields.items() if v is not None}
        logger.log(level, message, extra={"fields": present, "block": block})


def access(message: str, **fields: Any) -> None:
    """Log a request, whatever the log level is: --access-log turns these lines on and off."""
    present = {k: v for k, v in fields.items() if v is not None}
    _access_logger.log(logging.INFO, message, extra={"fields": present})


class _JSON(logging.Formatter):
    _second = -1
    _clock = ""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second, self._clock = second, strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        line = {
            "time": f"{self._clock}.{record.msecs:03.0f}+00:00",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # each text before it is escaped, which would hide where a key begins
        return _ENCODE({name: mask(value) if isinstance(value, str) else value for name, value in line.items()})


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = getattr(record, "fields", {}).items()
        line = f"{clock} {record.levelname.lower():7} {_printable(record.getMessage().strip())}"
        if getattr(record, "block", False):
            line += "".join(f"\n{'':17}{name:10} {_printable(str(value))}" for name, value in fields)
        else:
            line += "".join(f"  {name}={_printable(str(value))}" for name, value in fields)
        if record.exc_info:
            line += "\n" + mask(self.formatException(record.exc_info))
        return line


def _printable(text: str) -> str:
    """``text`` masked, and in one line whatever is in it."""
    text = mask(text)
    return text if text.isprintable() else ascii(text)[1:-1]


def configure(level: str, style: str) -> None:
    """Send the logs of this package, asyncio and uvicorn to stderr.

    ``style``: json, text, or auto (text on a terminal).
    """
    # no line shows them, and to find them costs more than the line; see "Optimization" in the HOWTO of `logging`
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # since Python 3.12
    if style == "auto":
        style = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler()
    handler.setFormatter(_Text() if style == "text" else _JSON())
    others = max(level, "warning", key=_severity)
    levels = {"sanitizer": level, _access_logger.name: "info", "asyncio": others, "uvicorn": others}
    for name, minimum in levels.items():
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.propagate = False
        log.setLevel(minimum.upper())


def _severity(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


class Repeats:
    """Sums up failures that repeat: the first is logged at once, then, every ten seconds, the number of further ones.

    Failures of one kind have few details. Each detail is counted by itself, so that none hides behind another. Beyond
    `_MOST_DETAILS` at a time they are counted together. Has to be called where an event loop runs.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._further: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}  # their number, the fields of the last

    def __call__(self, kind: str, detail: str, **fields: Any) -> None:
        """A failure of ``kind`` has happened; ``detail`` and ``fields`` say more, for the operator."""
        key = kind, detail
        if key not in self._further and len(self._further) >= _MOST_DETAILS:
            key = kind, ""
        fields = {"kind": kind, "detail": detail, **fields}
        if key in self._further:
            self._further[key] = self._further[key][0] + 1, fields
        else:
            event(logging.WARNING, self._message, **fields)
            self._begin(key)

    def close(self) -> None:
        """Log now the failures that have been counted since the last line."""
        for key in tuple(self._further):
            self._log_further(key)

    def _begin(self, key: tuple[str, str]) -> None:
        self._further[key] = 0, {}
        asyncio.get_running_loop().call_later(_REPEAT_SECONDS, self._end, key)

    def _end(self, key: tuple[str, str]) -> None:
        if self._log_further(key):
            self._begin(key)

    def _log_further(self, key: tuple[str, str]) -> int:
        """Log how many further failures there were since the last line, and forget them. Returns their number."""
        number, fields = self._further.pop(key, (0, {}))
        if number:
            event(logging.WARNING, self._message, **fields, more=number)
        return number
