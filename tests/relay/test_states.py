"""The state machines of the relay take every transition of the tables in their modules' docstrings, and no other.

A case is a sequence of steps, and the states that the machines must go through. In addition,
`tests.support.virtual.virtual_loop` checks in every test that uses it that each transition is in its table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from sanitizer.relay.client import HEAD_TIMEOUT, LINGER, ClientConnection
from sanitizer.relay.connection import Connection
from sanitizer.relay.exchange import Exchange
from sanitizer.relay.intercepted import Intercepted
from sanitizer.relay.pipe import TunnelEnd
from tests.support.cores import BODY, REFUSAL, Core
from tests.support.fake_gateway import KEEPALIVE, FakeGateway, make_connection, shut_down
from tests.support.transitions import MACHINES, record, table
from tests.support.virtual import FakeTransport, VirtualLoop, virtual_loop

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"
FAULTY = b"GET / HTTP/1.1\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
UPDATE = b"POST /key/update HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


class Scene:
    """A client connection and the upstream connections. All steps except `begin` let the event loop settle."""

    def __init__(self, loop: VirtualLoop, core: Core | None) -> None:
        self.loop = loop
        self.gateway = loop.act(FakeGateway, interceptor=core)
        self.client = make_connection(self.gateway, loop)

    @property
    def upstream(self) -> FakeTransport:
        """The upstream connection that was opened last."""
        return next(each for each in reversed(self.loop.transports) if isinstance(each.protocol, Connection))


Step = Callable[[Scene], object]


def begin(octets: bytes) -> Step:
    """The client sends ``octets``, and the event loop does not settle before the next step."""
    return lambda scene: scene.client.feed(octets)


def send(octets: bytes) -> Step:
    def step(scene: Scene) -> None:
        scene.client.feed(octets)
        scene.loop.settle()

    return step


def accept(scene: Scene) -> None:
    scene.loop.attempts[0].accept()


def refuse(scene: Scene) -> None:
    scene.loop.attempts[0].refuse(ConnectionRefusedError())


def accept_and_close(scene: Scene) -> None:
    scene.loop.attempts[0].closing = True
    scene.loop.attempts[0].accept()


def answer(octets: bytes = OK) -> Step:
    def step(scene: Scene) -> None:
        scene.upstream.feed(octets)
        scene.loop.settle()

    return step


def client_ends(scene: Scene) -> None:
    scene.client.feed_eof()
    scene.loop.settle()


def client_breaks_off(scene: Scene) -> None:
    scene.client.reset()
    scene.loop.settle()


def upstream_ends(scene: Scene) -> None:
    scene.upstream.feed_eof()
    scene.loop.settle()


def upstream_breaks_off(scene: Scene) -> None:
    scene.upstream.reset()
    scene.loop.settle()


def upstream_ends_unseen(scene: Scene) -> None:
    scene.upstream.socket.make_half_closed()


def shutdown(scene: Scene) -> None:
    shut_down(scene.client)
    scene.loop.settle()


def wait(seconds: float) -> Step:
    return lambda scene: scene.loop.advance(seconds)


def another_request(scene: Scene) -> None:
    """Another client's request is in progress, so that writes wait for the end of an event loop iteration."""
    make_connection(scene.gateway, scene.loop).feed(GET)
    scene.loop.settle()
    scene.loop.attempts[-1].accept()


def peer(number: int) -> Callable[[Scene], FakeTransport]:
    """The transport of one end of the tunnel: 0 for the client's, 1 for upstream's."""
    return lambda scene: [each for each in scene.loop.transports if isinstance(each.protocol, TunnelEnd)][number]


def tunnel_ends(number: int) -> Step:
    def step(scene: Scene) -> None:
        peer(number)(scene).feed_eof()
        scene.loop.settle()

    return step


def tunnel_breaks_off(number: int) -> Step:
    def step(scene: Scene) -> None:
        peer(number)(scene).reset()
        scene.loop.settle()

    return step


REQUEST = (send(GET), accept, answer())
TUNNEL = (send(UPGRADE), accept, answer(SWITCH))
HELD = (send(UPDATE + BODY), accept, answer(FORBIDDEN))
REUSABLE = "CONNECTING ATTACHED WAITING HEAD CONTENT IDLE"
ANSWERED = "NEW WAITING ATTACHED SENT ANSWERED DONE"


@dataclass
class Case:
    """``steps``, and the states that the machines of each kind go through, in the order in which they are created."""

    steps: tuple[Step, ...]
    clients: list[str] = field(default_factory=list)
    exchanges: list[str] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    """The end of upstream's connection is the first."""
    intercepted: list[str] = field(default_factory=list)
    bodies: tuple[bytes | None, ...] = ()
    """The body that the sanitizer resends after each refusal; None: it does not resend."""

    @property
    def paths(self) -> dict[type, list[str]]:
        return {
            ClientConnection: self.clients,
            Exchange: self.exchanges,
            Connection: self.connections,
            TunnelEnd: self.ends,
            Intercepted: self.intercepted,
        }


CASES = {
    # a client connection
    "the client resets before a request": Case((client_breaks_off,), ["IDLE CLOSED"]),
    "the client sends FIN before a request": Case((client_ends,), ["IDLE CLOSING CLOSED"]),
    "the client sends nothing": Case((wait(KEEPALIVE),), ["IDLE CLOSING CLOSED"]),
    "the gateway stops before a request": Case((shutdown,), ["IDLE CLOSING CLOSED"]),
    "a request is answered": Case(REQUEST, ["IDLE ANSWERING IDLE"], [ANSWERED], [REUSABLE]),
    "the head is received in pieces": Case((send(GET[:9]), send(GET[9:])), ["IDLE HEAD ANSWERING"]),
    "head and content are received in pieces": Case(
        (send(POST[:9]), send(POST[9:] + b"co"), accept, send(b"nt")), ["IDLE HEAD RECEIVING ANSWERING"]
    ),
    "the content is received after the head": Case((send(POST), accept, send(b"cont")), ["IDLE RECEIVING ANSWERING"]),
    "the rest of a head is not received": Case((send(GET[:9]), wait(HEAD_TIMEOUT)), ["IDLE HEAD CLOSING CLOSED"]),
    "the client resets within a head": Case((send(GET[:9]), client_breaks_off), ["IDLE HEAD CLOSED"]),
    "a head is refused": Case((send(FAULTY), wait(LINGER)), ["IDLE LINGERING CLOSING CLOSED"]),
    "a head in pieces is refused": Case(
        (send(FAULTY[:9]), send(FAULTY[9:]), client_breaks_off), ["IDLE HEAD LINGERING CLOSED"]
    ),
    "content is refused": Case(
        (send(CHUNKED), accept, send(b"no size\r\n"), client_ends),
        ["IDLE RECEIVING LINGERING CLOSED"],
        ["NEW WAITING ATTACHED SENT DONE"],
        ["CONNECTING ATTACHED WAITING CLOSED"],
    ),
    "content is refused that was received with its head": Case(
        (send(CHUNKED + b"no size\r\n"),), ["IDLE RECEIVING LINGERING"], ["NEW DONE"]
    ),
    "the client sends FIN within the content": Case(
        (send(POST), accept, client_ends), ["IDLE RECEIVING CLOSING CLOSED"]
    ),
    "the client resets within the content": Case((send(POST), accept, client_breaks_off), ["IDLE RECEIVING CLOSED"]),
    "the connection ends with the response": Case(
        (send(LAST), accept, answer()), ["IDLE ANSWERING CLOSING CLOSED"], [ANSWERED]
    ),
    "the client resets before the response": Case(
        (send(GET), accept, client_breaks_off),
        ["IDLE ANSWERING CLOSED"],
        ["NEW WAITING ATTACHED SENT DONE"],
        ["CONNECTING ATTACHED WAITING CLOSED"],
    ),
    # an exchange, and its connection
    "upstream can't be reached": Case(
        (send(GET), refuse), ["IDLE ANSWERING IDLE"], ["NEW WAITING DONE"], ["CONNECTING"]
    ),
    "upstream closes a connection while it is being opened": Case(
        (send(GET), accept_and_close), ["IDLE ANSWERING IDLE"], ["NEW WAITING DONE"], ["CONNECTING CLOSED"]
    ),
    "a connection is opened after its request was cancelled": Case(
        (send(GET), client_breaks_off, accept, upstream_ends),
        ["IDLE ANSWERING CLOSED"],
        ["NEW WAITING DONE"],
        ["CONNECTING IDLE CLOSED"],
    ),
    "upstream resets within the response head": Case(
        (send(GET), accept, answer(OK[:9]), upstream_breaks_off),
        ["IDLE ANSWERING IDLE"],
        ["NEW WAITING ATTACHED SENT DONE"],
        ["CONNECTING ATTACHED WAITING HEAD CLOSED"],
    ),
    "upstream resets within the response content": Case(
        (send(GET), accept, answer(OK[:-1]), upstream_breaks_off),
        ["IDLE ANSWERING CLOSING CLOSED"],
        [ANSWERED],
        ["CONNECTING ATTACHED WAITING HEAD CONTENT CLOSED"],
    ),
    "upstream has sent FIN on an idle connection": Case(
        (*REQUEST, upstream_ends_unseen, send(GET), accept, answer()),
        ["IDLE ANSWERING IDLE ANSWERING IDLE"],
        [ANSWERED, "NEW WAITING ATTACHED WAITING ATTACHED SENT ANSWERED DONE"],
        [
            f"{REUSABLE} ATTACHED CLOSED",
            REUSABLE,
        ],
    ),
    "upstream sends FIN after a request was sent": Case(
        (*REQUEST, send(GET), upstream_ends, accept, answer()),
        ["IDLE ANSWERING IDLE ANSWERING IDLE"],
        [ANSWERED, "NEW WAITING ATTACHED SENT WAITING ATTACHED SENT ANSWERED DONE"],
        [
            f"{REUSABLE} ATTACHED WAITING CLOSED",
            REUSABLE,
        ],
    ),
    "the client sends FIN before its request is written": Case(
        (another_request, *REQUEST, begin(GET), client_ends),
        ["IDLE ANSWERING IDLE ANSWERING CLOSING CLOSED", "IDLE ANSWERING"],
        ["NEW WAITING ATTACHED SENT", ANSWERED, "NEW WAITING ATTACHED DONE"],
        ["CONNECTING ATTACHED WAITING", f"{REUSABLE} ATTACHED CLOSED"],
    ),
    # a tunnel
    "both ends of a tunnel send FIN": Case(
        (*TUNNEL, tunnel_ends(0), tunnel_ends(1)),
        ["IDLE ANSWERING TUNNEL"],
        [ANSWERED],
        ["CONNECTING ATTACHED WAITING HEAD TUNNEL"],
        ["OPEN CLOSING LOST", "OPEN ENDED CLOSING LOST"],
    ),
    "one end of a tunnel resets": Case((*TUNNEL, tunnel_breaks_off(0)), ends=["OPEN CLOSING LOST", "OPEN LOST"]),
    "one end of a tunnel sends FIN, then resets": Case(
        (*TUNNEL, tunnel_ends(0), tunnel_breaks_off(0)), ends=["OPEN CLOSING LOST", "OPEN ENDED LOST"]
    ),
    # an intercepted request
    "an intercepted request is answered": Case(
        (send(UPDATE + BODY), accept, answer()),
        ["IDLE RECEIVING ANSWERING IDLE"],
        [ANSWERED],
        intercepted=["COLLECTING DECIDING SENT DONE"],
    ),
    "an intercepted request is too long": Case(
        (send(UPDATE.replace(b"%d" % len(BODY), b"2000000")),), intercepted=["COLLECTING SENT"]
    ),
    "the client resets within the content of an intercepted request": Case(
        (send(UPDATE), client_breaks_off), ["IDLE RECEIVING CLOSED"], intercepted=["COLLECTING DONE"]
    ),
    "the client sends FIN while the body to send is being decided": Case(
        (begin(UPDATE + BODY), client_ends),
        ["IDLE RECEIVING ANSWERING CLOSING CLOSED"],
        intercepted=["COLLECTING DECIDING DONE"],
    ),
    "a refusal is relayed": Case(HELD, exchanges=[ANSWERED], intercepted=["COLLECTING DECIDING SENT MATCHING DONE"]),
    "another body is sent after a refusal": Case(
        (*HELD, answer()),
        exchanges=[ANSWERED, ANSWERED],
        intercepted=["COLLECTING DECIDING SENT MATCHING SENT DONE"],
        bodies=(b"{}",),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_paths(case: Case) -> None:
    """The machines go through the expected states, in this order."""
    with record() as recording, virtual_loop() as loop:
        scene = Scene(loop, Core(*case.bodies) if case.intercepted else None)
        for step in case.steps:
            step(scene)
        paths = {machine: [" ".join(path) for path in paths] for machine, paths in recording.paths.items()}
    for machine, expected in case.paths.items():
        if expected:
            assert paths[machine] == expected, machine.__name__


@pytest.mark.parametrize("machine", MACHINES)
def test_tables(machine: type) -> None:
    """A table lists the states of the enum, and the cases take exactly the transitions in it."""
    states, transitions = table(machine)
    module = vars(sys.modules[machine.__module__])
    assert states == [state.name for state in module.get("State") or module["_State"]]
    taken = set()
    for case in CASES.values():
        for path in case.paths[machine]:
            names = path.split()
            taken |= set(zip(["", *names], names, strict=False))
    assert taken == transitions
