"""LiteLLM's own app with the sanitizer around it, in LiteLLM's process: ``LITELLM_APP=tests.litellm.wrapped:app``."""

from litellm.proxy.proxy_server import app as litellm  # type: ignore[import-not-found]

from sanitizer.sanitize.middleware import SanitizerMiddleware

app = SanitizerMiddleware(litellm)
