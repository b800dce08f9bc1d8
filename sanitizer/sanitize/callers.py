"""The caller of an intercepted request, for logs: where the request comes from, and the key that authenticates it.

LiteLLM takes the key from the first of these fields that has a value: x-litellm-api-key (with or without a scheme),
Authorization (with a scheme), API-Key, x-api-key, x-goog-api-key, Ocp-Apim-Subscription-Key. If a field is repeated,
LiteLLM uses its first line. It removes every occurrence of the scheme, and also finds a key in the credential of an AWS
signature. (See ``get_api_key`` in ``proxy/auth/user_api_key_auth.py``, read in 1.83.13 to 1.110.2, and tried on 1.83.13
and 1.92.0.)

The field that LiteLLM's setting ``litellm_key_header_name`` names is not known here. A credential that does not begin
with ``sk-``, such as a JSON Web Token or a password, is not reported in any form.
"""

import re
from typing import Final

_KEYS: Final = (
    b"x-litellm-api-key",
    b"authorization",
    b"api-key",
    b"x-api-key",
    b"x-goog-api-key",
    b"ocp-apim-subscription-key",
)
"""The fields in LiteLLM's order. The values of the first two may have a scheme."""
# Testing the first letter by a lookahead takes a third of the time of trying each name at each line.
_FIELD: Final = re.compile(rb"\r\n(?=[axo])(%b):([^\r]*)" % b"|".join(_KEYS), re.IGNORECASE)
_SCHEMES: Final = ("Bearer ", "Basic ", "bearer ")
_SIGNATURE: Final = "AWS4-HMAC-SHA256"
_CREDENTIALS: Final = (re.compile(r"Credential=Bearer\s+([^/\s,]+)"), re.compile(r"Credential=([^/\s,]+)"))
_FORWARDED_FOR: Final = re.compile(rb"\r\n(?=[x])x-forwarded-for:([^\r]*)", re.IGNORECASE)
# A proxy may add brackets and a port. A dot or colon is required, so that no secret in hex digits matches.
_ADDRESS: Final = re.compile(r"(?=[^.:]*[.:])\[?[0-9A-Fa-f:.]{2,45}\]?(?::[0-9]{1,5})?")
_MAX_ADDRESSES: Final = 8


def caller_key(head: bytes) -> str | None:
    """The key that LiteLLM finds in a request head, or None if there is none that begins with ``sk-``."""
    values: dict[bytes, str] = {}
    for name, value in _FIELD.findall(head):
        values.setdefault(name.lower(), value.strip(b" \t").decode("latin-1"))
    name = next((name for name in _KEYS if values.get(name)), None)
    if name is None:
        return None
    found: str | None = values[name]
    if name in _KEYS[:2]:
        found = _without_scheme(values[name]) or (found if name == _KEYS[0] else None)
    return found if found is not None and found.startswith("sk-") else None


def _without_scheme(value: str) -> str | None:
    """The key that LiteLLM takes from a value with a scheme, or None if LiteLLM does not know the scheme."""
    for scheme in _SCHEMES:
        if value.startswith(scheme):
            return value.replace(scheme, "")
    if value.startswith(_SIGNATURE):
        return next((match[1] for form in _CREDENTIALS if (match := form.search(value))), None)
    return None


def forwarded_for(head: bytes) -> str | None:
    """The last addresses in X-Forwarded-For of a request head, at most 8, or None if it does not end with an address.

    Proxies append addresses at the end. A client may have sent anything before them, to forge the log or to keep the
    addresses out of it. Elements are therefore read from the end, up to the first that is not an address.
    """
    value = b",".join(_FORWARDED_FOR.findall(head)).decode("latin-1")
    found: list[str] = []
    for element in reversed(value.rsplit(",", _MAX_ADDRESSES)[-_MAX_ADDRESSES:]):
        if (address := address_of(element.strip(" \t"))) is None:
            break
        found.insert(0, address)
    return ", ".join(found) or None


def address_of(text: str | None) -> str | None:
    """``text`` if it is an address, else None. An ASGI server may take a client's address from what the client sent."""
    return text if text is not None and _ADDRESS.fullmatch(text) else None
