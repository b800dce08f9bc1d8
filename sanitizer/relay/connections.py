"""The open client connections of a process. A drain shuts them down and waits until they are closed."""

import asyncio
from collections.abc import Iterator
from typing import Protocol

from sanitizer.relay.stalls import Watched


class ClientConnection(Watched, Protocol):
    """A connection that a server has accepted, as the server uses it."""

    def shutdown(self) -> None:
        """Take no further request, and close when the response to the current one is sent."""

    def abort(self) -> None:
        """Reset the connection at once."""


class Connections:
    """The open client connections of one process. Each adds itself when it is made, and removes itself when lost."""

    def __init__(self) -> None:
        self.shutting_down = False
        self._open: set[ClientConnection] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[ClientConnection]:
        """Iterate over a copy, because connections may remove themselves meanwhile."""
        return iter(tuple(self._open))

    def add(self, connection: ClientConnection) -> None:
        self._open.add(connection)
        self._none_open.clear()

    def discard(self, connection: ClientConnection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._none_open.set()

    def shutdown(self) -> None:
        """Shut down every connection. A connection that is added later has to shut itself down."""
        self.shutting_down = True
        for connection in self:
            connection.shutdown()

    def abort(self) -> None:
        """Abort every connection."""
        for connection in self:
            connection.abort()

    async def wait_closed(self) -> None:
        """Wait until no connection is open."""
        await self._none_open.wait()
