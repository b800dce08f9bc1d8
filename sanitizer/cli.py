"""The command ``litellm-sanitizer``: serve (the default) or demo."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from sanitizer import __version__
from sanitizer.settings import OPTIONS, Option, SettingError, load


def _default(option: Option) -> str:
    if option.default is None:
        return "none"
    if isinstance(option.default, float):
        return f"{option.default:g}"
    if option.name == "fields":
        return "all"
    if option.name == "max_body":
        return "1MiB"
    if option.default is False:
        return "off"
    return str(option.default) if isinstance(option.default, str | int) or option.name == "upstream" else "none"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"litellm-sanitizer: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="litellm-sanitizer",
        description="A gateway in front of LiteLLM that drops key fields resent unchanged from POST /key/update.",
        epilog="`litellm-sanitizer serve --help` lists the options; each can be given as SANITIZER_<NAME> in the "
        "environment too, flags win.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"litellm-sanitizer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the gateway (the default)", allow_abbrev=False)
    for option in OPTIONS:
        value: dict[str, Any] = (
            {"metavar": option.takes} if option.takes else {"action": "store_const", "const": "true"}
        )
        serve.add_argument(
            option.flag, dest=option.name, help=f"{option.help} [{_default(option)}]".replace("%", "%%"), **value
        )
    demo = commands.add_parser("demo", help="play the bug report against an embedded LiteLLM look-alike")
    demo.add_argument("--serve", action="store_true", help="keep both up for curl")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 (failed) or 2 (bad usage)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "serve")
    parsed = _parser().parse_args(arguments)
    if parsed.command == "demo":
        from sanitizer.demo.walkthrough import run

        return run(serve=parsed.serve)
    flags = {option.name: value for option in OPTIONS if (value := getattr(parsed, option.name)) is not None}
    try:
        settings = load(flags, os.environ)
    except SettingError as error:
        print(f"litellm-sanitizer: {error}", file=sys.stderr)
        return 2
    from sanitizer.server import serve

    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
