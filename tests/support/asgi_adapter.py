"""The ASGI gateway: `create_app` under an unmodified uvicorn, as an operator with a server of their own would run it.

``python -m tests.support.asgi_adapter --upstream URL [options of litellm-sanitizer]``
"""

import sys

import uvicorn

from sanitizer.app import create_app
from sanitizer.settings import OPTIONS, Settings, load


def parse(arguments: list[str]) -> Settings:
    names = {option.flag: option.name for option in OPTIONS}
    return load({names[flag]: value for flag, value in zip(arguments[::2], arguments[1::2], strict=True)}, {})


class Server(uvicorn.Server):
    """A server that prints the address it listens on, as the gateway does."""

    def _log_started_message(self, listeners: object) -> None:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(f"listening on http://{host}:{port}", file=sys.stderr, flush=True)


def main() -> None:
    settings = parse(sys.argv[1:])
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        http="httptools",
        loop="uvloop",
        ws="none",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    Server(config).run()


if __name__ == "__main__":
    main()
