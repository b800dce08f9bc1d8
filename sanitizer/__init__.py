"""A gateway in front of LiteLLM that drops key fields resent unchanged (BerriAI/litellm#26555)."""

from importlib.metadata import version

__version__ = version("litellm-sanitizer")
