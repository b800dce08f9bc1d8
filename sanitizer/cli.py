"""The command ``litellm-sanitizer``: serve (the default), check or demo."""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from sanitizer import FORM, __version__
from sanitizer.operate.logs import mask
from sanitizer.sanitize.lookup_key import checked_key, read_key
from sanitizer.settings import OPTIONS, Option, SettingError, load, unknown_variables


def _default(option: Option) -> str:
    """The option's default as the help shows it."""
    special = {"root_path": "$SERVER_ROOT_PATH", "fields": "all", "max_body": "1MiB", "trusted_proxies": "none"}
    if option.name in special or option.default is None:
        return special.get(option.name, "none")
    if isinstance(option.default, bool):
        return "on" if option.default else "off"
    return f"{option.default:g}" if isinstance(option.default, float) else str(option.default)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        # a key may have been given where none is taken
        self.exit(2, mask(f"litellm-sanitizer: {message}; see {self.prog} --help\n"))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments. A command's own parser reports unknown ones, because its help lists the known ones."""
    parser, commands = _parser()
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands[parsed.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return parsed


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="litellm-sanitizer",
        description="A gateway in front of LiteLLM that drops key fields from key updates if they are unchanged.",
        epilog="`litellm-sanitizer serve --help` lists the options; each can be given as SANITIZER_<NAME> in the "
        "environment too, flags win.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"litellm-sanitizer {__version__} ({FORM})")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="run the gateway (the default)",
        description="Serves until SIGTERM or SIGINT. Exit status: 0, 1 (can't start), 2 (bad usage).",
        allow_abbrev=False,
    )
    check = commands.add_parser(
        "check",
        help="say whether the gateway can work with the LiteLLM that the options name, and which defects that has",
        description="Sends LiteLLM some GET requests and changes nothing. Takes the options of `serve`, to check them. "
        "Exit status: 0, 1 (a problem), 2 (bad usage).",
        allow_abbrev=False,
    )
    check.add_argument(
        "--key-file",
        metavar="FILE",
        help="file with a LiteLLM key to ask with, the master key or any other; or the key in SANITIZER_CHECK_KEY",
    )
    check.add_argument(
        "--json",
        action="store_true",
        help="for machines; `needed` is true if this LiteLLM release refuses fields that are unchanged, false if it "
        "refuses none, so that the gateway can go, and null if that is not known: the release was not told, or is not "
        "among those that this gateway knows",
    )
    for option in OPTIONS:
        value: dict[str, Any] = (
            {"metavar": option.takes} if option.takes else {"action": "store_const", "const": "true"}
        )
        described = f"{option.help} [{_default(option)}]".replace("%", "%%")
        for command in (serve, check):
            command.add_argument(option.flag, dest=option.name, help=described, **value)
    demo = commands.add_parser("demo", help="play the bug report against an embedded LiteLLM look-alike")
    demo.add_argument("--serve", action="store_true", help="keep both up for curl")
    return parser, {"serve": serve, "check": check, "demo": demo}


def _check_key(path: str | None) -> str | None:
    """The key to check with, from a file or the environment. Raises `SettingError`, which does not say it."""
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
    """Run the command; returns its exit status: 0, 1 (failed), 2 (bad usage) or 130 (a check interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "serve")
    parsed = _parse(arguments)
    if parsed.command == "demo":
        from sanitizer.demo.walkthrough import run

        return run(serve=parsed.serve)
    if parsed.command == "serve":
        # SIGHUP asks for the certificate to be loaded again; it waits until the gateway serves
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
        except BrokenPipeError:  # the reader has gone; Python would try to flush once more at its exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return status
    from sanitizer.launch import serve

    return serve(settings, unknown_variables(os.environ))
