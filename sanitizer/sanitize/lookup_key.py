"""The lookup credential: a LiteLLM key of the gateway's own, for callers who may update a key but not read it.

For example, LiteLLM refuses ``GET /key/info`` if the caller's own key is limited to ``/key/update``. The gateway reads
the key with the credential only after two refusals: LiteLLM has refused the update because of a guarded field, and has
answered the caller's own lookup with 403. LiteLLM has then authenticated the caller, who is only not allowed to read
the key. The credential is sent with lookups alone. The update itself is always sent with the caller's own fields.

The credential must not become an oracle, from which a caller could learn what is stored. The caller is never shown what
was read. The text of LiteLLM's refusals depends on the members of the update, so a response to a resend is relayed only
if it is a success. Otherwise the client gets the first refusal, without the gateway's response field. A caller who
guesses a stored value gets the same response whether the guess is right or wrong; only the time that it takes differs.
"""

import os
import re
from collections.abc import Callable

_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_MAX_FILE = 4096
_BOMS = ("\ufeff", "\xef\xbb\xbf", "\xff\xfe", "\xfe\xff")
"""Byte order marks: U+FEFF, and those of UTF-8 and both byte orders of UTF-16, decoded as Latin-1."""
_QUOTES = ('"', "'", "`")


def read_key(path: str) -> str:
    """The key in the file ``path``, without white space around it. Raises `OSError`, or `ValueError` if it has none."""
    return _read(path)[0]


def checked_key(text: str) -> str:
    """``text`` without white space around it. Raises `ValueError`, without ``text`` in it, if it cannot be a key."""
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

    The file is read at once. Calling the object returns the key, and reads the file again if its device, inode,
    modification time or size has changed. Symbolic links are followed. If the file cannot be read or has no key, the
    last key that was read is kept, and ``on_error`` is called with the reason, once until it changes.
    """

    def __init__(self, path: str, on_error: Callable[[str], None]) -> None:
        self._path = path
        self._on_error = on_error
        self._key: str | None = None
        self._version: tuple[int, ...] | None = None
        self._reported: str | None = None
        self()

    def __call__(self) -> str | None:
        """The current key, or None if none has been read yet."""
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
        version = _version(os.fstat(file.fileno()))  # of the file that was opened, which may have been replaced since
        content = file.read(_MAX_FILE + 1)
    if len(content) > _MAX_FILE:
        raise ValueError("too long for a key")
    return checked_key(content.decode("latin-1")), version
