"""The caller of an intercepted request, for logs: where the request comes from, and with which key it authenticates.

LiteLLM takes the key from the first of these fields that has a value, and of a field that is repeated from its first
line: x-litellm-api-key (with or without a scheme), Authorization (with a scheme), API-Key, x-api-key, x-goog-api-key,
Ocp-Apim-Subscription-Key (``get_api_key`` in ``proxy/auth/user_api_key_auth.py``, read in 1.92.0 to 1.110.0; 1.83.13
and 1.92.0 were asked). A field that its ``litellm_key_header_name`` names is not known here. A credential that does not
begin with ``sk-``, such as a JSON Web Token or a password, is not reported in any form.
"""

import re
from typing import Final

_KEYS: Final = {
    b"x-litellm-api-key": re.compile(rb"(?:(?:[Bb]earer|Basic) )?(sk-.*)"),
    b"authorization": re.compile(rb"(?:[Bb]earer|Basic) (sk-.*)"),
    b"api-key": re.compile(rb"(sk-.*)"),
    b"x-api-key": re.compile(rb"(sk-.*)"),
    b"x-goog-api-key": re.compile(rb"(sk-.*)"),
    b"ocp-apim-subscription-key": re.compile(rb"(sk-.*)"),
}
"""The fields in LiteLLM's order, and which of their values are keys."""
# looking ahead at the first letter takes a third of the time of trying each name at each line
_FIELD: Final = re.compile(rb"\r\n(?=[axo])(%b):([^\r]*)" % b"|".join(_KEYS), re.IGNORECASE)
_FORWARDED_FOR: Final = re.compile(rb"\r\n(?=[x])x-forwarded-for:([^\r]*)", re.IGNORECASE)
_ADDRESSES: Final = re.compile(rb"[0-9A-Fa-f.:, \[\]]{1,256}")


def caller_key(head: bytes) -> str | None:
    """The key that LiteLLM finds in a request's ``head``; None if there is none, or what it finds is no ``sk-`` key."""
    values: dict[bytes, bytes] = {}
    for name, value in _FIELD.findall(head):
        values.setdefault(name.lower(), value.strip(b" \t"))
    for name, form in _KEYS.items():
        if value := values.get(name):
            match = form.fullmatch(value)
            return match[1].decode("latin-1") if match else None
    return None


def forwarded_for(head: bytes) -> str | None:
    """The addresses in X-Forwarded-For of a request's ``head``, if it has any, and nothing else in their place."""
    value = b", ".join(value.strip(b" \t") for value in _FORWARDED_FOR.findall(head))
    return value.decode() if _ADDRESSES.fullmatch(value) else None
