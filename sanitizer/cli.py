"""The command ``litellm-sanitizer``: serve (the default), check or demo."""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NoReturn

from sanitizer import FORM, __version__
from sanitizer.operate.logs import mask
from sanitizer.sanitize.lookup_key import checked_key, read_key
from sanitizer.settings import OPTIONS, Option, SettingError, load, unknown_variables

# Every command line below is parsed, and run where that is possible, by tests/test_cli.

_DESCRIPTION: Final = """\
An HTTP gateway in front of an unmodified LiteLLM. It lets non-admins edit their
keys again: it removes fields from POST /key/update that are sent back unchanged
and that LiteLLM would refuse. It relays all other traffic untouched.

It listens on 127.0.0.1:4001 and expects LiteLLM at http://127.0.0.1:4000.
`litellm-sanitizer serve --help` lists all options and their defaults.
"""

_EXAMPLES: Final = """\
Each option can be set by an environment variable as well, such as
SANITIZER_MAX_BODY for --max-body. A flag takes precedence.

examples:
  # Play the bug and its repair, without a LiteLLM
  litellm-sanitizer demo

  # Find out whether this LiteLLM needs the gateway, and whether it will work
  litellm-sanitizer check --upstream http://127.0.0.1:4000

  # Run it on port 4001 of all addresses, in front of a LiteLLM on port 4000
  litellm-sanitizer --upstream http://127.0.0.1:4000 --host 0.0.0.0 --port 4001

  # Log and count what it would repair, and change nothing
  litellm-sanitizer --upstream http://127.0.0.1:4000 --mode observe

  # The same by environment variables
  SANITIZER_UPSTREAM=http://127.0.0.1:4000 SANITIZER_MODE=observe \\
    litellm-sanitizer
"""

_SERVE_EXAMPLES: Final = """\
examples:
  # Behind a load balancer, with four processes
  litellm-sanitizer serve --host 0.0.0.0 --trusted-proxies 10.0.0.0/8 \\
    --workers 4

  # In front of a LiteLLM behind an ingress that routes by name
  litellm-sanitizer serve --upstream https://litellm.example.com \\
    --pass-host-header false

  # Repair two fields only, and log each request
  litellm-sanitizer serve --fields allowed_routes,permissions --access-log
"""

_CHECK_DESCRIPTION: Final = """\
Finds out whether the gateway can work in front of LiteLLM, and which unchanged
fields this LiteLLM release refuses. Sends some GET requests and changes
nothing. Exit status: 0, 1 (a problem), 2 (bad usage).

Takes every option of `litellm-sanitizer serve`, so that a command line can be
checked as it is. Those that make a difference to the check are listed here.
"""

_CHECK_EXAMPLES: Final = """\
examples:
  # Without a key: since 1.92.0, LiteLLM then does not report its release
  litellm-sanitizer check --upstream http://127.0.0.1:4000

  # With the master key, which is in the file master-key
  litellm-sanitizer check --key-file master-key

  # For scripts
  litellm-sanitizer check --key-file master-key --json
"""

_CHECKED: Final = (
    *("upstream", "root_path", "mode", "fields", "lookup_timeout", "lookup_key_file"),
    *("pass_host_header", "connect_timeout", "upstream_ca"),
)
"""The options that make a difference to a check."""


def _default(option: Option) -> str:
    """The option's default as the help shows it."""
    special = {"root_path": "$SERVER_ROOT_PATH", "fields": "all", "max_body": "1MiB", "trusted_proxies": "none"}
    if option.name in special or option.default is None:
        return special.get(option.name, "none")
    if isinstance(option.default, bool) and not option.metavar:
        return "on" if option.default else "off"
    if isinstance(option.default, bool):
        return str(option.default).lower()
    return f"{option.default:g}" if isinstance(option.default, float) else str(option.default)


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, and prints its texts as they are."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        # the message may contain a key that was given in the wrong place
        self.exit(2, mask(f"litellm-sanitizer: {message}; see {self.prog} --help\n"))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments. A command's own parser reports unknown ones, because its help lists the known ones."""
    parser, commands = _parser()
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands[parsed.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return parsed


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and the parsers of its commands by their names."""
    parser = _Parser(
        prog="litellm-sanitizer",
        usage="%(prog)s [COMMAND] [OPTION ...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"litellm-sanitizer {__version__} ({FORM})")
    commands = parser.add_subparsers(
        dest="command", required=True, title="commands", metavar="COMMAND", prog="litellm-sanitizer"
    )
    serve = commands.add_parser(
        "serve",
        help="run the gateway; this is the default command",
        usage="%(prog)s [OPTION ...]",
        description="Serves until SIGTERM or SIGINT. Exit status: 0, 1 (can't start), 2 (bad usage).",
        epilog=_SERVE_EXAMPLES,
    )
    check = commands.add_parser(
        "check",
        help="find out whether LiteLLM needs the gateway, and whether it will work",
        usage="%(prog)s [OPTION ...]",
        description=_CHECK_DESCRIPTION,
        epilog=_CHECK_EXAMPLES,
    )
    check.add_argument(
        "--key-file",
        metavar="FILE",
        help="file with a LiteLLM key to check with: the master key or any other. The variable SANITIZER_CHECK_KEY can "
        "hold the key itself",
    )
    check.add_argument(
        "--json",
        action="store_true",
        help="print the result as JSON. Its `needed` is true if this LiteLLM release refuses unchanged fields, false "
        "if it refuses none, so that the gateway can be removed, and null if that is not known",
    )
    for title, options in groupby(OPTIONS, key=lambda option: option.group):
        groups = serve.add_argument_group(title), check.add_argument_group(title)
        for option in options:
            value: dict[str, Any] = (
                {"metavar": option.metavar} if option.metavar else {"action": "store_const", "const": "true"}
            )
            described = f"{option.help} (default: {_default(option)})".replace("%", "%%")
            in_check = described if option.name in _CHECKED else argparse.SUPPRESS
            for group, help_ in zip(groups, (described, in_check), strict=True):
                group.add_argument(option.flag, dest=option.name, help=help_, **value)
    demo = commands.add_parser(
        "demo",
        help="play the bug report against an embedded LiteLLM look-alike",
        description="Plays the bug report without and with the gateway. Needs no LiteLLM.",
    )
    demo.add_argument("--serve", action="store_true", help="keep both servers up, and print curl commands for them")
    return parser, {"serve": serve, "check": check, "demo": demo}


def _check_key(path: str | None) -> str | None:
    """The key to check with, from the file ``path`` or the environment; None if there is none.

    Raises `SettingError`, whose message does not contain the key.
    """
    source, shown = ("--key-file", path) if path is not None else ("SANITIZER_CHECK_KEY", "***")
    try:
        if path is not None:
            return read_key(path)
        key = os.environ.get("SANITIZER_CHECK_KEY")
        return checked_key(key) if key else None
    except OSError as error:
        raise SettingError(source, shown, f"takes a readable file ({error.strerror})") from None
    except ValueError as error:
        raise SettingError(source, shown, f"takes {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status: 0, 1 (failure), 2 (bad usage) or 130 (a check was interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "serve")
    parsed = _parse(arguments)
    if parsed.command == "demo":
        from sanitizer.demo.walkthrough import run

        return run(serve=parsed.serve)
    if parsed.command == "serve":
        # SIGHUP loads the certificate again; it stays pending until the gateway serves
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    flags = {option.name: value for option in OPTIONS if (value := getattr(parsed, option.name)) is not None}
    try:
        settings = load(flags, os.environ)
        key = _check_key(parsed.key_file) if parsed.command == "check" else None
    except SettingError as error:
        print(mask(f"litellm-sanitizer: {error}"), file=sys.stderr)
        return 2
    if parsed.command == "check":
        from sanitizer.operate.check import run as check

        for name in unknown_variables(os.environ):
            print(mask(f"litellm-sanitizer: {name}: no such option, ignored"), file=sys.stderr)
        try:
            status = check(settings, key, as_json=parsed.json)
            sys.stdout.flush()
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:  # the reader of a pipe has closed it; Python would flush again at its exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return status
    from sanitizer.launch import serve

    return serve(settings, unknown_variables(os.environ))
