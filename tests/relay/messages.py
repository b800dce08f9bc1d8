"""An update of a key that is cut, what its look-up is answered, and the head of a tunnel."""

import hashlib
import json

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

UPDATE = json.dumps({"key": "sk-face", "allowed_routes": ["llm_api_routes"], "models": []}).encode()
CUT = json.dumps({"key": "sk-face", "models": []}).encode()
INFO = json.dumps(
    {
        "key": hashlib.sha256(b"sk-face").hexdigest(),
        "info": {"token": hashlib.sha256(b"sk-face").hexdigest(), "allowed_routes": ["llm_api_routes"]},
    }
).encode()
