"""A gateway in front of LiteLLM that drops key fields resent unchanged (BerriAI/litellm#26555).

A wheel for a platform contains some modules twice, compiled by mypyc and as source, see ``deploy/compile.py``. Python
prefers the compiled modules. With ``SANITIZER_PURE=true`` in the environment, it loads the source.
"""

import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, PathFinder, SourceFileLoader
from importlib.metadata import version
from typing import Final

__version__ = version("litellm-sanitizer")

if os.environ.get("SANITIZER_PURE", "").lower() in ("1", "true", "yes", "on"):  # same as `sanitizer.parsers.switch`
    for _folder in (os.path.join(__path__[0], _package) for _package in ("http1", "relay", "sanitize")):
        sys.path_importer_cache[_folder] = FileFinder(_folder, (SourceFileLoader, SOURCE_SUFFIXES))

_relay = PathFinder.find_spec("sanitizer.relay.client", [os.path.join(__path__[0], "relay")])
FORM: Final = "compiled" if _relay and not str(_relay.origin).endswith(".py") else "pure"
"""Which form of these modules is loaded: "compiled" or "pure"."""
