"""An update of a key with an unchanged member, its edited body, the response to its lookup, and a 101 response."""

import hashlib
import json

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

UPDATE = json.dumps({"key": "sk-adapter", "allowed_routes": ["llm_api_routes"], "models": []}).encode()
CUT = json.dumps({"key": "sk-adapter", "models": []}).encode()
INFO = json.dumps(
    {
        "key": hashlib.sha256(b"sk-adapter").hexdigest(),
        "info": {"token": hashlib.sha256(b"sk-adapter").hexdigest(), "allowed_routes": ["llm_api_routes"]},
    }
).encode()
