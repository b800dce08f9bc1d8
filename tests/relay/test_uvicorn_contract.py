"""What the fast face relies on in uvicorn, so that a new release that moves it says so here."""

import inspect
from importlib.metadata import requires, version

import uvicorn
from packaging.requirements import Requirement
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import Server, ServerState


def test_pinned() -> None:
    """The release at hand lies in the range that the project declares."""
    pinned = next(
        found for line in requires("litellm-sanitizer") or () if (found := Requirement(line)).name == "uvicorn"
    )
    assert version("uvicorn") in pinned.specifier


def test_cycle() -> None:
    """A cycle is made with these arguments, and has these attributes, which its owner moves."""
    arguments = list(inspect.signature(RequestResponseCycle).parameters)
    assert arguments == [
        "scope",
        "transport",
        "flow",
        "logger",
        "access_logger",
        "access_log",
        "default_headers",
        "message_event",
        "expect_100_continue",
        "keep_alive",
        "on_response",
    ]
    source = inspect.getsource(RequestResponseCycle)
    for name in ("body", "more_body", "disconnected", "keep_alive", "response_started", "response_complete"):
        assert f"self.{name}" in source, name
    assert inspect.iscoroutinefunction(RequestResponseCycle.run_asgi)


def test_flow() -> None:
    """Flow control pauses the transport it is given, whatever that is."""
    assert list(inspect.signature(FlowControl).parameters) == ["transport"]
    assert "self._transport.pause_reading()" in inspect.getsource(FlowControl)
    assert HIGH_WATER_LIMIT == 64 * 1024


def test_server() -> None:
    """The server makes protocols with these arguments, and has the methods that ours replaces."""
    startup = inspect.getsource(Server.startup)
    for argument in ("config=config", "server_state=self.server_state", "app_state=self.lifespan.state", "_loop=_loop"):
        assert argument in startup
    for name in ("shutdown", "capture_signals", "handle_exit", "serve", "startup"):
        assert hasattr(Server, name)
    assert {"connections", "tasks", "total_requests"} <= vars(ServerState()).keys()
    assert "connection.shutdown()" in inspect.getsource(Server.shutdown)
    assert "http_protocol_class" in inspect.getsource(uvicorn.Config.load)
