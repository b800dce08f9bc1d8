"""The gateway: the sanitizer in front of the relay, configured by the options. It is also an ASGI app."""

import logging
import os
import secrets
from collections.abc import Callable
from functools import partial
from itertools import chain
from time import perf_counter

from starlette.types import Message, Receive, Scope, Send

from sanitizer import descriptors
from sanitizer.errors import OutOfDescriptors
from sanitizer.http1.forwarding import Forwarding
from sanitizer.operate import logs
from sanitizer.operate.metrics import Decisions
from sanitizer.relay.asgi import Relay, request_target
from sanitizer.relay.connections import Connections
from sanitizer.relay.counters import CLIENT_LEFT, Counters, OnClientError, OnRequestEnded
from sanitizer.relay.fetch import fetch
from sanitizer.relay.interception import Interceptor, SendLookup
from sanitizer.relay.pool import Pool
from sanitizer.relay.stalls import StallSweep
from sanitizer.sanitize.core import Record, Sanitizer
from sanitizer.sanitize.decision import Outcome
from sanitizer.sanitize.lookup_key import KeyFile
from sanitizer.sanitize.middleware import SanitizerMiddleware
from sanitizer.sanitize.stored import Caller, StoredKeys
from sanitizer.settings import Settings, load


def make_pseudonym() -> bytes:
    """Return a name for this gateway in Via. It is random, so that only a request that passed through here has it."""
    return b"litellm-sanitizer-" + secrets.token_hex(8).encode()


class Gateway:
    """Everything that the client connections of one process share. It is also an ASGI app, for other servers.

    ``pseudonym`` is the gateway's name in Via, which its workers share. `start` creates `pool` and the objects that
    depend on it, because they need a running event loop. An ASGI server calls it through the lifespan's startup, or
    with the first request if it does not support lifespan.
    """

    pool: Pool
    send_lookup: SendLookup
    _sweep: StallSweep
    _app: SanitizerMiddleware

    def __init__(self, settings: Settings, pseudonym: bytes | None = None) -> None:
        self.settings = settings
        authority = settings.upstream.authority.encode()
        self.forwarding = Forwarding(
            settings.trusted_proxies,
            pseudonym or make_pseudonym(),
            None if settings.pass_host_header else authority,
            _warn_of_untrusted,
        )
        self.keepalive_timeout = settings.keepalive_timeout
        self.connections = Connections()
        self.decisions = Decisions()
        self.draining = False
        self._refusals = logs.Repeats("request refused")
        self._stalls = logs.Repeats("client stalled")
        self.counters = Counters(_with_peer(self._refusals), _with_peer(self._stalls))
        self.on_request_ended: OnRequestEnded | None = _log_access if settings.access_log else None
        self._upstream_errors = logs.Repeats("upstream failed")
        self._out_of_descriptors = logs.Repeats("out of file descriptors")
        self._started = False
        stored = StoredKeys(
            timeout=settings.lookup_timeout,
            cache_ttl=settings.cache_ttl,
            lookup_key=_lookup_key(settings),
            host=authority,
        )
        self._sanitizer = Sanitizer(
            stored,
            mode=settings.mode,
            fields=settings.fields,
            prefixes=settings.root_path,
            max_body=settings.max_body,
            on_decision=self._on_decision,
        )
        self.interceptor: Interceptor = self._sanitizer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        self.start()
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started, returned = CLIENT_LEFT, perf_counter(), False

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.counters.in_flight += 1
        try:
            await self._app(scope, receive, send_noting_status)
            returned = True
        finally:
            if not returned and status == CLIENT_LEFT:
                status = 500  # the server's response to an exception
            method = scope["method"].encode()
            self.counters.count_request(method, status)
            if self.on_request_ended is not None:
                client = scope.get("client")
                seconds = perf_counter() - started
                self.on_request_ended(client[0] if client else None, method, request_target(scope), status, seconds)

    def start(self) -> None:
        """Create the objects that need a running event loop. Does nothing if they exist already.

        Raises `OSError` if a file named in the settings can no longer be read. After any exception, no timer is left
        running, and `start` can be called again.
        """
        if self._started:
            return
        settings = self.settings
        self.pool = pool = Pool(
            settings.upstream,
            tls=settings.upstream_tls(),
            connect_timeout=settings.connect_timeout,
            response_timeout=settings.response_timeout,
            keepalive=settings.upstream_keepalive,
            max_connections=settings.max_connections,
            on_error=self._on_upstream_error,
        )
        self.send_lookup = send_lookup = partial(fetch, pool)
        relay = Relay(pool, self.forwarding, self.counters, settings.stall_timeout)
        self._app = SanitizerMiddleware(
            relay,
            sanitizer=self._sanitizer,
            caller=lambda scope: Caller(relay.outbound_head(scope), send_lookup),
            stall_timeout=settings.stall_timeout,
        )
        # last, so that no timer is left running if anything above fails
        self._sweep = StallSweep(settings.stall_timeout, lambda: chain(self.connections, pool.watched()))
        self._started = True

    def close(self) -> None:
        """Close all connections to upstream, and log the failures that are counted but not logged yet."""
        if self._started:
            self._sweep.close()
            self.pool.close()
        for repeats in (self._upstream_errors, self._out_of_descriptors, self._refusals, self._stalls):
            repeats.close()

    def out_of_descriptors(self, kind: str = "accept") -> None:
        """Count and log that no descriptor was left to accept a connection, or to connect to upstream."""
        self.counters.out_of_descriptors += 1
        self._out_of_descriptors(kind, descriptors.ADVICE)

    def _on_upstream_error(self, kind: str, detail: str) -> None:
        if kind == OutOfDescriptors.kind:
            self.out_of_descriptors("connect")
        else:
            self._upstream_errors(kind, detail)

    def _on_decision(self, record: Record) -> None:
        self.decisions.add(record)
        if record.decision.outcome is not Outcome.ABSENT:
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
    """Return a gateway for any ASGI server. ``settings`` are by default those of the environment."""
    return Gateway(settings or load({}, os.environ))


def _lookup_key(settings: Settings) -> Callable[[], str | None] | None:
    if settings.lookup_key_file is not None:
        path = settings.lookup_key_file

        def failed(reason: str) -> None:
            logs.event(
                logging.WARNING,
                "no key can be read from the lookup key file; the last one stays in use",
                file=path,
                why=reason,
            )

        return KeyFile(path, failed)
    return (lambda: settings.lookup_key) if settings.lookup_key is not None else None


def _with_peer(repeats: logs.Repeats) -> OnClientError:
    return lambda kind, detail, peer: repeats(kind, detail, peer=peer or "unix")


def _warn_of_untrusted(peer: str | None) -> None:
    logs.event(
        logging.WARNING,
        "a peer that is not trusted sent X-Forwarded-Proto: https; LiteLLM gets http",
        peer=peer or "unix",
        detail="if that is your load balancer, name it in --trusted-proxies",
    )


def _log_decision(record: Record) -> None:
    decision, lookups = record.decision, record.lookups
    logs.event(
        logging.INFO,
        f"{record.endpoint} {decision.outcome}",
        outcome=decision.outcome,
        endpoint=record.endpoint,
        fields=",".join(decision.fields) or None,
        after_refusal=",".join(decision.after_refusal) or None,
        key=record.key_hash,
        caller=record.caller_hash,
        client=record.client,
        forwarded_for=record.forwarded_for,
        reason=decision.reason,
        lookup_ms=round(sum(lookup.seconds for lookup in lookups) * 1000, 1) if lookups else None,
        lookup_key=decision.lookup_key or None,
        status=record.status,
        call_id=record.call_id,
        traceparent=record.traceparent,
    )


def _log_access(client: str | None, method: bytes, target: bytes, status: int, seconds: float) -> None:
    logs.access(
        "request",
        method=method.decode("latin-1") or None,
        path=logs.path_of(target) or None,
        status=499 if status == CLIENT_LEFT else status,  # as in nginx, and as in the metrics
        ms=round(seconds * 1000, 1),
        client=client,
    )
