"""The gateway as an ASGI app: the sanitizer over the relay, one lifespan."""

import asyncio
import logging
import os
import secrets
from collections.abc import Callable
from functools import partial

from starlette.types import Receive, Scope, Send

from sanitizer.connections import Connections
from sanitizer.operate import logs
from sanitizer.operate.metrics import Decisions
from sanitizer.relay.counters import CLIENT_LEFT, Counters
from sanitizer.relay.fetch import fetch
from sanitizer.relay.headers import Forwarding
from sanitizer.relay.http import Relay
from sanitizer.relay.protocol import OnAnswered
from sanitizer.relay.upstream import Upstream
from sanitizer.sanitize.decision import Outcome
from sanitizer.sanitize.gates import FIELDS, GATES
from sanitizer.sanitize.lookup_key import KeyFile
from sanitizer.sanitize.middleware import Record, Sanitizer
from sanitizer.sanitize.stored import StoredKeys
from sanitizer.settings import Settings, load


def make_pseudonym() -> bytes:
    """This gateway's name in Via: random, so that only a request that has passed here carries it."""
    return b"litellm-sanitizer-" + secrets.token_hex(8).encode()


class Gateway:
    """An ASGI app; its parts are made in the lifespan's startup, or by the first request where a server has none.

    ``pseudonym``: this gateway's name in Via; workers of one gateway share it.
    """

    upstream: Upstream
    sanitizer: Sanitizer
    intercepts: Callable[[str, str], bool]
    stored: StoredKeys

    def __init__(self, settings: Settings, pseudonym: bytes | None = None) -> None:
        self.settings = settings
        self.forwarding = Forwarding(settings.trusted_proxies, pseudonym or make_pseudonym())
        self.keepalive_timeout = settings.keepalive_timeout
        self.counters = Counters()
        self.decisions = Decisions(dict.fromkeys(gate.endpoint for gate in GATES), tuple(Outcome), sorted(FIELDS))
        self.draining = False
        self.connections = Connections()
        self.tasks: set[asyncio.Task[None]] = set()
        self._on_refused = logs.Repeats("request refused")
        self.on_refused: Callable[[str, str], None] = self._on_refused
        self.on_answered: OnAnswered | None = _log_access if settings.access_log else None
        self._on_upstream_error = logs.Repeats("upstream failed")
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        self.start()
        await self.sanitizer(scope, receive, send)

    def start(self) -> None:
        """Make the parts; needs a running event loop. Does nothing the second time, unless the first has failed.

        Raises `OSError` if a file that the settings name can't be read any more; then no part is made.
        """
        if self._started:
            return
        settings = self.settings
        self.upstream = Upstream(
            settings.upstream,
            tls=settings.upstream_tls(),
            connect_timeout=settings.connect_timeout,
            response_timeout=settings.response_timeout,
            keepalive=settings.upstream_keepalive,
            max_connections=settings.max_connections,
            on_error=self._on_upstream_error,
        )
        relay = Relay(self.upstream, self.forwarding)
        self.stored = StoredKeys(
            partial(fetch, self.upstream),
            outbound=relay.outbound_fields,
            timeout=settings.lookup_timeout,
            cache_ttl=settings.cache_ttl,
            lookup_key=_lookup_key(settings),
        )
        self.sanitizer = Sanitizer(
            relay,
            stored=self.stored,
            mode=settings.mode,
            fields=settings.fields,
            prefixes=settings.prefixes,
            max_body=settings.max_body,
            on_decision=self._on_decision,
        )
        self.intercepts = self.sanitizer.intercepts
        self._started = True

    def close(self) -> None:
        """Drop all connections to upstream, and log what has not been yet."""
        if self._started:
            self.upstream.close()
        self._on_upstream_error.close()
        self._on_refused.close()

    def _on_decision(self, record: Record) -> None:
        dropped = record.fields if record.outcome is Outcome.DROPPED else ()
        self.decisions.add(record.endpoint, record.outcome, dropped, record.reason, record.lookup_seconds)
        _log_decision(record)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self.start()
        except OSError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.close()
        await send({"type": "lifespan.shutdown.complete"})


def create_app(settings: Settings | None = None) -> Gateway:
    """The gateway for ``settings``, by default those of the environment; for any ASGI server."""
    return Gateway(settings or load({}, os.environ))


def _lookup_key(settings: Settings) -> Callable[[], str | None] | None:
    if settings.lookup_key_file is not None:
        path = settings.lookup_key_file

        def failed(reason: str) -> None:
            logs.event(logging.WARNING, "the lookup key file gives no key; the last one is kept", file=path, why=reason)

        return KeyFile(path, failed)
    return (lambda: settings.lookup_key) if settings.lookup_key is not None else None


def _log_decision(record: Record) -> None:
    if record.outcome == "absent":
        return
    logs.event(
        logging.INFO,
        f"{record.endpoint} {record.outcome}",
        outcome=record.outcome,
        endpoint=record.endpoint,
        fields=",".join(record.fields) or None,
        key=record.key_hash,
        reason=record.reason,
        lookup_ms=None if record.lookup_seconds is None else round(record.lookup_seconds * 1000, 1),
        lookup_key=record.lookup_key or None,
        status=record.status,
        call_id=record.call_id,
        traceparent=record.traceparent,
    )


def _log_access(client: str | None, method: bytes, target: bytes, status: int, seconds: float) -> None:
    logs.access(
        "request",
        method=method.decode("latin-1") or None,
        path=logs.path_of(target) or None,
        status=499 if status == CLIENT_LEFT else status,  # nginx's number for it, in the metrics too
        ms=round(seconds * 1000, 1),
        client=client,
    )
