"""Shared parts of the tests: a raw HTTP client and server, the gateway as a process, an event loop without sockets."""
