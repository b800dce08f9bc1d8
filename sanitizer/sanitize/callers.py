"""The caller of an intercepted request, for logs: where the request comes from, and with which key it authenticates.

LiteLLM takes the key from the first of these fields that has a value, and of a field that is repeated from its first
line: x-litellm-api-key (with or without a scheme), Authorization (with a scheme), API-Key, x-api-key, x-goog-api-key,
Ocp-Apim-Subscription-Key (``get_api_key`` in ``proxy/auth/user_api_key_auth.py``, read in 1.83.13 to 1.110.2; 1.83.13
and 1.92.0 were asked). It removes a scheme wherever it is repeated, and finds a key in the credential of an AWS
signature too. A field that its ``litellm_key_header_name`` names is not known here. A credential that does not begin
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
"""The fields in LiteLLM's order. Of the first two, the value may have a scheme."""
# looking ahead at the first letter takes a third of the time of trying each name at each line
_FIELD: Final = re.compile(rb"\r\n(?=[axo])(%b):([^\r]*)" % b"|".join(_KEYS), re.IGNORECASE)
_SCHEMES: Final = ("Bearer ", "Basic ", "bearer ")
_SIGNATURE: Final = "AWS4-HMAC-SHA256"
_CREDENTIALS: Final = (re.compile(r"Credential=Bearer\s+([^/\s,]+)"), re.compile(r"Credential=([^/\s,]+)"))
_FORWARDED_FOR: Final = re.compile(rb"\r\n(?=[x])x-forwarded-for:([^\r]*)", re.IGNORECASE)
# the brackets and the port that a proxy may add, and at least one dot or colon, which no secret in hex digits has
_ADDRESS: Final = re.compile(r"(?=[^.:]*[.:])\[?[0-9A-Fa-f:.]{2,45}\]?(?::[0-9]{1,5})?")
_MOST_ADDRESSES: Final = 8


def caller_key(head: bytes) -> str | None:
    """The key that LiteLLM finds in a request's ``head``; None if there is none, or what it finds is no ``sk-`` key."""
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
    """What LiteLLM takes from a value that begins with a scheme; None if it begins with none that LiteLLM knows."""
    for scheme in _SCHEMES:
        if value.startswith(scheme):
            return value.replace(scheme, "")
    if value.startswith(_SIGNATURE):
        return next((match[1] for form in _CREDENTIALS if (match := form.search(value))), None)
    return None


def forwarded_for(head: bytes) -> str | None:
    """The last addresses in X-Forwarded-For of a request's ``head``, at most 8; None if it does not end with one.

    The last are those that proxies have added. What is before them a client may have sent, to be logged, or so that
    nothing is: addresses are sought from the end, up to what is none.
    """
    value = b",".join(_FORWARDED_FOR.findall(head)).decode("latin-1")
    found: list[str] = []
    for element in reversed(value.rsplit(",", _MOST_ADDRESSES)[-_MOST_ADDRESSES:]):
        if (address := address_of(element.strip(" \t"))) is None:
            break
        found.insert(0, address)
    return ", ".join(found) or None


def address_of(text: str | None) -> str | None:
    """``text``, if it is an address. A server may say what a client has sent of itself."""
    return text if text is not None and _ADDRESS.fullmatch(text) else None
