"""What the documents, the help and the messages name exists: files, anchors, flags, variables, metrics, reasons.

The documents are all Markdown files of the repository. `tests/test_commands` runs the commands that they print.
"""

import ast
import importlib
import os
import pkgutil
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import pytest

from sanitizer.operate.metrics import FAMILIES
from sanitizer.sanitize.decision import Outcome
from sanitizer.sanitize.gates import GATES
from sanitizer.settings import OPTIONS, Settings
from tests.support.documents import FILES, FOLDERS, PAGES, anchors_of, blocks_of, links_of, spans_of, text_of
from tests.support.gateway import ROOT

GENERATED = {"tests/bench/result.md", "tests/litellm/matrix.md"}
WRITTEN = [page for page in PAGES if page not in GENERATED]
CURRENT = [page for page in WRITTEN if page != "CHANGELOG.md"]  # the changelog also names what is gone
GUIDE = ["README.md", "deploy/README.md"]

SOURCES = sorted(
    name
    for name in FILES
    if (name.startswith(("deploy/", "sanitizer/")) and PurePosixPath(name).suffix not in (".json", ".lock", ".md"))
    or name == "Dockerfile"
)


# --- links and paths


def test_readme_is_short() -> None:
    """A tired operator reads README in a minute. What does not fit belongs into deploy/README.md."""
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= 150
    assert len(readme.split()) <= 1600


def test_figures() -> None:
    """The documents quote the CPU times of a relayed request, and the ratios to its peers, as result.md has them."""
    result = text_of("tests/bench/result.md")
    ratio = r"\d\.\d\dx \([^)]+\)"
    measured = re.findall(ratio, result.partition("ASGI adapter: CPU")[0])
    assert len(measured) == 16
    assert re.findall(ratio, text_of("tests/bench/README.md").partition("## Running it")[0]) == measured
    rows = re.findall(r"\| (.+) \| \S+ \| \S+ \| (\d[\d.]*) \| \S+ \|", result.partition("requests/s, at")[0])
    cost = {name: float(value) for name, value in rows}
    compiled, pure, nginx = cost["**this gateway**"], cost["**this gateway**, pure Python"], cost["nginx"]
    for page, quoted in (
        ("README.md", f"takes {pure:.0f} µs of CPU time as installed above, {compiled:.0f} µs [compiled]"),
        ("README.md", f"(nginx: {nginx:.0f})"),
        ("tests/bench/README.md", f"{compiled} µs compiled, {pure} µs in pure Python, {nginx} µs for nginx"),
        ("sanitizer/README.md", f"takes {compiled} µs compiled and {pure}"),
    ):
        assert quoted in text_of(page)


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    """Each relative link leads to a file or folder, and to a heading if it has an anchor."""
    dead = []
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        if ":" in path:
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        heading = not anchor or (target.is_file() and anchor in anchors_of(os.path.relpath(target, ROOT)))
        if not (target.exists() and heading):
            dead.append(link)
    assert dead == []


ENDINGS = r"\.(?:c|cfg|conf|css|env|h|in|js|json|lock|md|mjs|py|service|sh|svg|toml|ya?ml)"
ELSEWHERE = {
    "a header, a network or an image, not a path": {
        "10.0.0.0/8",
        "HTTP/2",
        "a/b",
        "application/json",
        "ghcr.io/OWNER/REPOSITORY",
        "ghcr.io/example",
    },
    "a file of the operator's machine": {"admin.key", "nsswitch.conf", "prometheus.yml", "sanitized.py"},
    "an object in the operator's cluster": {
        "deploy/litellm",
        "deploy/litellm-sanitizer",
        "deployment/litellm",
        "deployment/litellm-sanitizer",
        "networkpolicy/litellm-sanitizer",
        "service/litellm-sanitizer-admin",
    },
    "a file of LiteLLM's charts": {
        "backend/deployment.yaml",
        "backend/service.yaml",
        "extra-resources.yaml",
        "helm/litellm",
        "monolith/deployment.yaml",
    },
    "a file that the rig makes": {"run/NAME/log", "run/NAME/overrides"},
}
NOT_OURS = {name for names in ELSEWHERE.values() for name in names}


def exists(name: str, page: str) -> bool:
    """Whether ``name`` is a path relative to the page's folder or to the root, or the end of a path."""
    name = name.rstrip("/")
    candidates = {os.path.normpath(PurePosixPath(page).parent / name), name}
    return not (FILES | FOLDERS).isdisjoint(candidates) or any(path.endswith(f"/{name}") for path in FILES | FOLDERS)


def paths_in(page: str) -> Iterator[str]:
    """What looks like a path of the repository, in the page's code spans and its commands."""
    for span in spans_of(page):
        for word in span.split():
            if re.fullmatch(rf"(?!/|\.venv/)[\w.-]+(?:/[\w.-]+)+/?|[\w-]+{ENDINGS}|[\w-]+/", word):
                yield word
    for block in blocks_of(page):
        if block.language == "sh":
            yield from re.findall(r"(?<!\S)((?:\.ci|\.github|deploy|sanitizer|tests)/[\w./-]+)", block.text)


@pytest.mark.parametrize("page", CURRENT)
def test_paths(page: str) -> None:
    """Each path that a document names exists, unless `ELSEWHERE` says where it is."""
    assert {name for name in paths_in(page) if name not in NOT_OURS and not exists(name, page)} == set()


@pytest.mark.parametrize("page", CURRENT)
def test_modules(page: str) -> None:
    """Each Python module that a document names exists, as in ``tests.bench`` and ``sanitizer.app.create_app``."""
    text = " ".join([*spans_of(page), *(block.text for block in blocks_of(page))])
    for name in set(re.findall(r"(?<![\w./-])((?:sanitizer|tests)(?:\.[a-z]\w*)+)(?!\w|\()", text)):
        path = PurePosixPath(name.replace(".", "/"))
        assert not {str(path), f"{path}.py", f"{path.parent}.py"}.isdisjoint(FILES | FOLDERS), name


def test_names_in_docstrings() -> None:
    """Each module, class or function that a docstring or a comment names by its full path exists."""
    texts = [text_of(name) for name in FILES if re.fullmatch(r"(?:deploy|sanitizer|tests)/.*\.py", name)]
    names = {name for text in texts for name in re.findall(r"(?<!`)`((?:sanitizer|tests)(?:\.\w+)+)`(?!`)", text)}
    assert len(names) > 20
    assert sorted(name for name in names if not resolves(name)) == []


def resolves(name: str) -> bool:
    """Whether ``name`` is the path of a module, or of something in a module."""
    if f"{name.replace('.', '/')}.py" in FILES:  # it need not be importable here
        return True
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


@pytest.mark.parametrize("page", CURRENT)
def test_python(page: str) -> None:
    """Each Python block can be parsed, and what it imports from this package exists."""
    for block in blocks_of(page):
        if block.language == "python":
            for node in ast.walk(ast.parse(block.text, filename=str(block))):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sanitizer"):
                    module = importlib.import_module(node.module)
                    assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_every_test_module_has_its_place() -> None:
    """tests/README.md names every test module."""
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)`", text_of("tests/README.md"))
    assert set(named) == {name.removeprefix("tests/") for name in FILES if re.fullmatch(r"tests/.*test_\w+\.py", name)}


# --- flags and variables


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*(?<!-)(?![\w-])")
OURS = {option.flag for option in OPTIONS} | {"--help", "--version", "--key-file", "--json", "--serve"}
OTHERS = {
    "Debian's Python, when it was built": {"--with-dtrace"},
    "docker, podman": {
        *("--build", "--build-arg", "--detach", "--follow", "--format", "--rm", "--volumes", "--cap-add"),
        *("--privileged", "--publish"),
    },
    "git": {"--depth"},
    "helm": {"--install", "--values"},
    "kubectl": {"--from-file"},
    "LiteLLM": {
        "--config",
        "--host",
        "--keepalive_timeout",
        "--num_workers",
        "--run_gunicorn",
        "--skip_server_startup",
    },
    "mypy": {"--ignore-missing-imports"},
    "perf, py-spy": {"--duration", "--output", "--pid", "--sort"},
    "pip, uv": {"--force-reinstall", "--no-deps", "--only-binary", "--require-hashes", "--upgrade"},
    "Prometheus": {"--storage"},
    "pytest": {"--ignore"},
    "systemctl, systemd-run": {"--now", "--pipe", "--wait"},
    "uvicorn": {"--no-server-header"},
}
"""Flags of other programs that documents, comments and messages name."""

TOOLS = {
    flag
    for name in FILES
    if re.fullmatch(r"tests/.*\.py", name)
    for flag in re.findall(r'(?:add_argument\(\s*|if )"(--[a-z-]+)"', text_of(name))
}
"""The flags of the project's own tools, such as ``python -m tests.bench``."""

KNOWN = OURS | TOOLS | {flag for flags in OTHERS.values() for flag in flags}


def words_of(source: str) -> str:
    """The comments of a file, and in Python the strings as well, docstrings among them."""
    text = text_of(source)
    comments = re.findall(r"(?:^|\s)(?:#|//|<!--)(.*)", text)
    if source.endswith(".py"):
        constants = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
        comments += [value for value in constants if isinstance(value, str)]
    return "\n".join(comments)


@pytest.mark.parametrize("page", WRITTEN)
def test_flags(page: str) -> None:
    """Each flag that a document names is one of ours, of our tools or in `OTHERS`."""
    assert set(FLAG.findall(text_of(page))) - KNOWN == set()


def test_flags_in_sources() -> None:
    """Each flag in a comment under deploy/, and in the docstrings and messages of the package, is one of these too."""
    unknown = {source: set(FLAG.findall(words_of(source))) - KNOWN for source in SOURCES}
    assert {source: flags for source, flags in unknown.items() if flags} == {}


@pytest.mark.parametrize("page", WRITTEN)
def test_flags_of_the_command(page: str) -> None:
    """Each flag behind ``litellm-sanitizer`` in a command line is one of ours, whatever other programs have."""
    commands = [*spans_of(page), *(block.text.replace("\\\n", " ") for block in blocks_of(page))]
    lines = [line for command in commands for line in command.splitlines()]
    given = [words for line in lines for words in re.findall(r"(?:^|[/ ])litellm-sanitizer((?: [^\s|&;#]+)+)", line)]
    assert {flag for words in given if "docker" not in words for flag in FLAG.findall(words)} <= OURS


def test_variables() -> None:
    """Each variable that begins with SANITIZER_ is one of ours, wherever it is named."""
    known = {name for option in OPTIONS for name in option.variables}
    known |= {"SANITIZER_LOOKUP_KEY", "SANITIZER_CHECK_KEY", "SANITIZER_PURE"}
    places = [*WRITTEN, *SOURCES, *(name for name in FILES if name.startswith((".ci/", ".github/")))]
    unknown = {place: set(re.findall(r"\bSANITIZER_[A-Z_]*[A-Z]\b", text_of(place))) - known for place in set(places)}
    assert {place: names for place, names in unknown.items() if names} == {}


def test_fragments() -> None:
    """The maintainers' table of what LiteLLM refuses has every fragment of a refusal, beside its field."""
    rows = [row for row in text_of("sanitizer/sanitize/README.md").splitlines() if row.startswith("|")]
    for gate in GATES:
        for fragment in gate.fragments:
            assert any(f"`{gate.field}`" in row and fragment in row for row in rows) or gate.field == "soft_budget", (
                gate
            )


# --- the operator's guide, which is README.md and deploy/README.md


def guide() -> str:
    return "\n".join(map(text_of, GUIDE))


def test_metrics() -> None:
    """Each metric that a document names is one of ours, and the guide names them all."""
    families = {family.name for family in FAMILIES}
    for page in CURRENT:
        named = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\bsanitizer_\w+", text_of(page))}
        assert named <= families, page
    assert {name for name in families if f"`{name}" not in guide()} == set()


def test_outcomes() -> None:
    """The guide explains each outcome."""
    assert {outcome for outcome in Outcome if f"| `{outcome}` |" not in guide()} == set()


def reasons() -> set[str]:
    """The reasons of decisions that the code can give, which are string literals there."""

    def literals(nodes: Iterable[ast.AST]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.IfExp):
                yield from literals([node.body, node.orelse])

    found: set[str] = set()
    for source in (name for name in FILES if re.fullmatch(r"sanitizer/(sanitize|relay)/\w+\.py", name)):
        for node in ast.walk(ast.parse(text_of(source))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                found |= {*literals(word.value for word in node.keywords if word.arg == "reason")}
                if name in ("Unknown", "NotInspectable", "close"):
                    found |= {*literals(node.args[:1])}
            elif isinstance(node, ast.Assign):
                targets = {getattr(target, "id", getattr(target, "attr", "")) for target in node.targets}
                found |= {*literals([node.value] if targets & {"reason", "_reason"} else [])}
            elif isinstance(node, ast.FunctionDef):
                found |= {*literals(node.args.defaults if node.name == "close" else [])}
                returned = (each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value)
                found |= {*literals(returned if node.name == "reason_not_to_inspect" else [])}
    return found


def test_reasons() -> None:
    """The guide explains each reason of a decision."""
    found = reasons()
    assert found > {
        "accepted",
        "bom",
        "client_left",
        "content_type",
        "lookup_timeout",
        "no_key",
        "stalled",
        "too_large",
    }
    explained = {word for name in GUIDE for span in spans_of(name) for word in re.findall(r"\w+", span)}
    assert found - explained == set()


def test_log_lines() -> None:
    """The log lines that the guide explains are those that the code logs, or how they begin."""
    table = text_of("deploy/README.md").partition("| line | cause and remedy |")[2].partition("\n\n")[0]
    quoted = re.findall(r"`([^`]+)`", "".join(row.split(" | ")[0] for row in table.splitlines()[2:]))
    package = "\n".join(text_of(name) for name in FILES if re.fullmatch(r"sanitizer/.*\.py", name))
    assert len(quoted) > 10
    assert [line for line in quoted if line not in package] == []


def table_of(page: str) -> dict[str, str]:
    """The defaults in the page's table of options, by their flags."""
    table = re.search(r"\| flag \| default \| meaning \|\n(.*?)\n\n", text_of(page), re.DOTALL)
    shown: dict[str, str] = {}
    for row in table[1].splitlines()[1:] if table else []:
        flags, defaults, _ = (cell.strip() for cell in row.strip("|").split("|", 2))
        names = re.findall(r"`(--[a-z-]+)`", flags)
        values = defaults.split(", ") if defaults else [""] * len(names)
        shown.update(zip(names, (value.strip("`").partition(" (")[0] for value in values), strict=True))
    return shown


DEFAULTS_IN_WORDS = {
    "--upstream": str(Settings().upstream),
    "--fields": "all",
    "--root-path": "SERVER_ROOT_PATH",
    "--upstream-ca": "system",
    "--max-body": "1MiB",
}


def test_options() -> None:
    """The guide's table has every option, README's some of them, with the defaults that the code has."""
    some, every = map(table_of, GUIDE)
    assert every.keys() == {option.flag for option in OPTIONS}
    assert 10 <= len(some) < len(every)
    for option in OPTIONS:
        if isinstance(option.default, bool):
            expected = {str(option.default).lower()} if option.metavar else {"on" if option.default else "off"}
        elif isinstance(option.default, int | float | str):
            expected = {f"{option.default:g}" if isinstance(option.default, float) else str(option.default)}
        else:
            expected = {"", "none"}
        expected = {DEFAULTS_IN_WORDS[option.flag]} if option.flag in DEFAULTS_IN_WORDS else expected
        for table in (some, every):
            assert option.flag not in table or table[option.flag] in expected, option.flag
