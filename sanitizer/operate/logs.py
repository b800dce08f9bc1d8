"""Logs on stderr, as JSON or as text. Whatever looks like a secret is masked."""

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

# a key chosen by an operator may contain slashes; a key that is masked already may be followed by a path
_KEY: Final = re.compile(r"""(?<![A-Za-z0-9])sk-(?!\*\*\*)[^\s"'?#&,;<>()\[\]{}\\]+""")
# a key in a path may contain any character; it ends before the rest of the route
_KEY_IN_PATH: Final = re.compile(r"(?<![A-Za-z0-9])sk-.+?(?=(?:/regenerate|/reset_spend)?\Z)", re.DOTALL)
# JSON Web Tokens in compact form, signed (RFC 7515 section 7.1) or encrypted (RFC 7516 section 7.1), whatever precedes
# them. The search takes linear time, because it never backtracks: the quantifiers are possessive, and what precedes a
# token is matched by a lookahead (a possessive quantifier of a group does not match in Python 3.11.2, as in Debian 12)
_JWT: Final = re.compile(r"(?<![\w-])(?=((?:(?!eyJ)[\w-])*))\1eyJ[\w-]*+(?:\.[\w-]*+){2,4}", re.ASCII)
_HASH_DIGITS: Final = 64
_HASH: Final = re.compile(r"(?<![0-9A-Fa-f])([0-9A-Fa-f]{8})[0-9A-Fa-f]{56}(?![0-9A-Fa-f])")
_USER: Final = re.compile(r"(?<=//)[^/?#@\s]+@")
_WORD: Final = re.compile(r'[^ "=]+')
_MAX_DECODINGS: Final = 3
"""How many times a path is percent-decoded in search of a key."""
_MAX_DETAILS: Final = 32
_REPEAT_INTERVAL: Final = 10.0
_to_json: Final = json.JSONEncoder().encode


def mask(text: str) -> str:
    """``text`` with everything masked that looks like a secret.

    Secrets are LiteLLM keys, the hash of a key except for its first 8 digits, JSON Web Tokens, and the user in a URL.
    """
    # most texts contain none of these substrings, and need no search
    if "sk-" in text:
        text = _KEY.sub("sk-***", text)
    if "eyJ" in text:
        text = _JWT.sub(r"\1eyJ***", text)
    if len(text) >= _HASH_DIGITS:
        text = _HASH.sub(r"\1***", text)
    return _USER.sub("***@", text) if "//" in text else text


def path_of(target: bytes) -> str:
    """The path of a request target for a log, without the query. Secrets are masked even if percent-encoded."""
    path = plain = re.split("[?#]", target.decode("latin-1"), maxsplit=1)[0]
    for _ in range(_MAX_DECODINGS):
        plain = unquote(plain)
    masked = mask(_KEY_IN_PATH.sub("sk-***", plain))
    return masked if masked != plain else path


def event(level: int, message: str, *, block: bool = False, **fields: Any) -> None:
    """Log ``message`` with ``fields``, except those that are None. ``block``: the text format has a line for each."""
    if logger.isEnabledFor(level):
        present = {k: v for k, v in fields.items() if v is not None}
        logger.log(level, message, extra={"fields": present, "block": block})


def access(message: str, **fields: Any) -> None:
    """Log a request. The log level does not apply: --access-log turns these lines on and off."""
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
        # values are masked before they are escaped, because an escape sequence would hide where a key begins
        return _to_json(
            {name: mask(value) if isinstance(value, str) else _masked(value) for name, value in line.items()}
        )


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = getattr(record, "fields", {}).items()
        line = f"{clock} {record.levelname.lower():7} {_printable(record.getMessage().strip())}"
        if getattr(record, "block", False):
            line += "".join(f"\n{'':17}{name:10} {_printable(str(value))}" for name, value in fields)
        else:
            line += "".join(f"  {name}={_quoted(value)}" for name, value in fields)
        if record.exc_info:
            line += "\n" + mask(self.formatException(record.exc_info))
        return line


def _masked(value: Any) -> Any:
    """``value`` for JSON, with each text in it masked."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    if isinstance(value, dict):
        return {mask(str(name)): _masked(item) for name, item in value.items()}
    return mask(str(value))


def _printable(text: str) -> str:
    """``text`` masked, with escape sequences if it would not print in one line."""
    text = mask(text)
    return text if text.isprintable() else ascii(text)[1:-1]


def _quoted(value: Any) -> str:
    """A field's value, masked. It is written as JSON unless it is a word, so that it can't pass for several fields."""
    if not isinstance(value, str):
        return _to_json(_masked(value))
    text = mask(value)
    printable = text.isprintable()
    return text if printable and _WORD.fullmatch(text) else json.dumps(text, ensure_ascii=not printable)


def configure(level: str, style: str) -> None:
    """Send the logs of this package, asyncio and uvicorn to stderr.

    ``level`` is that of this package; the other two log nothing below warnings. ``style``: json, text, or auto, which
    is text on a terminal and JSON otherwise.
    """
    # no line shows these, and collecting them is expensive; see "Optimization" in the `logging` HOWTO
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
    """Logs failures that repeat: the first at once, and then, every ten seconds, how many more there were.

    Failures of the same kind are counted separately for each detail, so that a frequent one does not hide a rare one.
    Beyond `_MAX_DETAILS` at a time they are counted together. An instance must be called in a running event loop.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        # for each kind and detail, the number of further failures, and the fields of the last one
        self._further: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}

    def __call__(self, kind: str, detail: str, **fields: Any) -> None:
        """Log or count a failure. ``detail`` and ``fields`` describe it to the operator."""
        key = kind, detail
        if key not in self._further and len(self._further) >= _MAX_DETAILS:
            key = kind, ""
        fields = {"kind": kind, "detail": detail, **fields}
        if key in self._further:
            self._further[key] = self._further[key][0] + 1, fields
        else:
            event(logging.WARNING, self._message, **fields)
            self._begin(key)

    def close(self) -> None:
        """Log the failures that have been counted since they were last logged."""
        for key in tuple(self._further):
            self._log_further(key)

    def _begin(self, key: tuple[str, str]) -> None:
        self._further[key] = 0, {}
        asyncio.get_running_loop().call_later(_REPEAT_INTERVAL, self._end, key)

    def _end(self, key: tuple[str, str]) -> None:
        if self._log_further(key):
            self._begin(key)

    def _log_further(self, key: tuple[str, str]) -> int:
        """Log how many further failures there were, if any, and discard their count. Returns their number."""
        number, fields = self._further.pop(key, (0, {}))
        if number:
            event(logging.WARNING, self._message, **fields, more=number)
        return number
