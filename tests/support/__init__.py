"""Real sockets for tests: a raw client, a scripted raw upstream, and the gateway as a process between them."""
