"""HTTP/1 without sockets: how an intermediary reads and writes messages (RFC 9110, RFC 9112)."""
