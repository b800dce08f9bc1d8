"""HTTP/1 without sockets: what an intermediary reads in a message, and what it writes (RFC 9110, RFC 9112)."""
