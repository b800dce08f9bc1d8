"""The lookup credential: a LiteLLM key of the gateway's own, for callers who may update a key but not read it.

``GET /key/info`` refuses a key limited to ``/key/update``, for example. With the credential, the gateway reads for such
a caller, and only after two refusals: LiteLLM has refused the update because of a guarded member, and has answered the
caller's own lookup with 403. It therefore knows the caller, and only does not let them read. The credential is sent
with lookups alone; the update itself always carries the caller's own fields.

It opens no oracle. The caller is never shown what was read. LiteLLM refuses an update in different words, depending on
the members in it; so the answer to a further send is the caller's only if it is a success. Any other answer is replaced
by the first refusal, without the gateway's response field. A stranger who sends guesses at a stored value gets the same
answer for a right one as for a wrong one; only the time that it takes differs.
"""

import os
import re
from collections.abc import Callable

_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_MAX_FILE = 4096
_BOMS = ("\ufeff", "\xef\xbb\xbf", "\xff\xfe", "\xfe\xff")
"""Byte order marks: as one character; and those of UTF-8 and both kinds of UTF-16, with each byte as a character."""
_QUOTES = ('"', "'", "`")


def read_key(path: str) -> str:
    """The key in the file ``path``, less white space around it. Raises `OSError`, or `ValueError` if it is none."""
    return _read(path)[0]


def checked_key(text: str) -> str:
    """``text``, less white space around it, if it can be sent as a key. Raises `ValueError`, which does not say it."""
    key = text.strip()
    if key.startswith(_BOMS):
        raise ValueError("one key and nothing else: it begins with a byte order mark; save it as plain ASCII")
    if key.startswith(_QUOTES) or key.endswith(_QUOTES):
        raise ValueError("one key and nothing else: it has quotes around it; remove them")
    if not _KEY.fullmatch(key):
        raise ValueError("one key and nothing else: 1 to 512 visible ASCII characters")
    return key


class KeyFile:
    """The key in a file that may be replaced or rewritten at any time, as Kubernetes does with a mounted secret.

    It is read at once, and again whenever it is called and another file is there (device, inode, time, size; symbolic
    links are followed). As long as it cannot be read, or holds no key, the last good one is kept, and ``on_error`` is
    called with the reason, once for each reason in a row.
    """

    def __init__(self, path: str, on_error: Callable[[str], None]) -> None:
        self._path = path
        self._on_error = on_error
        self._key: str | None = None
        self._version: tuple[int, ...] | None = None
        self._reported: str | None = None
        self()

    def __call__(self) -> str | None:
        """The key as it is now; None if there has been none yet."""
        try:
            if _version(os.stat(self._path)) != self._version:
                self._key, self._version = _read(self._path)
        except (OSError, ValueError) as error:
            reason = (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
            if reason != self._reported:
                self._reported = reason
                self._on_error(reason)
        else:
            self._reported = None
        return self._key


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: str) -> tuple[str, tuple[int, ...]]:
    with open(path, "rb") as file:
        version = _version(os.fstat(file.fileno()))  # of the very file that is read
        content = file.read(_MAX_FILE + 1)
    if len(content) > _MAX_FILE:
        raise ValueError("too long for a key")
    return checked_key(content.decode("latin-1")), version
