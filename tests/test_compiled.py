"""The modules that can be compiled: which form of them runs, and constructs that their source must not contain.

The CI lane that tests the compiled form names it in ``EXPECTED_FORM``, so that it can't test the source by mistake.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import sanitizer
from tests.support.gateway import ROOT

PACKAGE = Path(*sanitizer.__path__)


def compiled_modules() -> list[Path]:
    """The sources of the modules that deploy/compile.py compiles."""
    (patterns,) = (
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "deploy/compile.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILED"
    )
    return sorted(path for pattern in patterns for path in PACKAGE.glob(pattern) if path.name != "__init__.py")


MODULES = {
    ".".join(("sanitizer", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in compiled_modules()
}


# The form


@pytest.mark.parametrize("module", MODULES)
def test_the_form_under_test(module: str) -> None:
    """Each module has the form that `FORM` says, which is ``EXPECTED_FORM`` if that is set."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    form = "pure" if str(spec.origin).endswith(".py") else "compiled"
    assert form == sanitizer.FORM == os.environ.get("EXPECTED_FORM", form)


@pytest.mark.parametrize(
    ("compiled", "pure", "form"),
    [
        (False, "", "pure"),
        (True, "", "compiled"),
        (True, "false", "compiled"),
        (True, "1", "pure"),
        (True, "True", "pure"),
    ],
)
def test_which_form_runs(tmp_path: Path, compiled: bool, pure: str, form: str) -> None:
    """Compiled modules run where there are any, unless ``SANITIZER_PURE`` asks for the source."""
    copy = shutil.copytree(PACKAGE, tmp_path / "sanitizer", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    modules = [copy / path.relative_to(PACKAGE) for path in MODULES.values()]
    if compiled:
        for module in modules:
            module.with_suffix(EXTENSION_SUFFIXES[0]).touch()  # an empty file, found but never loaded
    code = (
        "import sys, importlib.util as u, sanitizer as s; print(s.FORM, *(u.find_spec(m).origin for m in sys.argv[1:]))"
    )
    environment = {"PYTHONPATH": str(tmp_path), "SANITIZER_PURE": pure}  # without coverage's: the copy is deleted
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, *MODULES], env=environment, check=True, capture_output=True, text=True
    )
    suffix = ".py" if form == "pure" else EXTENSION_SUFFIXES[0]
    assert result.stdout.split() == [form, *(str(module.with_suffix(suffix)) for module in modules)]


# Constructs that mypyc compiles to something else, without an error from mypyc or mypy

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def defaults(function: Function) -> list[ast.expr]:
    return [*function.args.defaults, *(default for default in function.args.kw_defaults if default is not None)]


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def one_name_for_two_errors(tree: ast.Module) -> bool:
    """Two ``except`` clauses of a function bind one name to two types. When compiled, both have the first type."""
    for function in functions(tree):
        types: dict[str, set[str]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and node.name is not None and node.type is not None:
                types.setdefault(node.name, set()).add(ast.unparse(node.type))
        if any(len(found) > 1 for found in types.values()):
            return True
    return False


def cause_of_an_error(tree: ast.Module) -> bool:
    """``raise ... from error``. When compiled, it does not set the cause. ``from None`` only affects tracebacks."""
    causes = [node.cause for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.cause is not None]
    return any(ast.unparse(cause) != "None" for cause in causes)


def tuple_as_default(tree: ast.Module) -> bool:
    """A default value is a constant tuple with a bare ``Final``. When compiled, its type is that of the literal."""
    tuples = {
        ast.unparse(node.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
        and ast.unparse(node.annotation) == "Final"
        and isinstance(node.value, ast.Tuple)
    }
    return any(ast.unparse(default) in tuples for function in functions(tree) for default in defaults(function))


def arguments_of_a_base(tree: ast.Module) -> bool:
    """The base class's constructor is called with ``*`` or ``**``, so the number of arguments varies."""
    return any(
        ast.unparse(call.func) == "super().__init__"
        and (
            any(isinstance(each, ast.Starred) for each in call.args) or any(each.arg is None for each in call.keywords)
        )
        for call in calls(tree)
    )


def default_of_a_protocol(tree: ast.Module) -> bool:
    """A method of a Protocol has the default ``...``. When compiled, the default must have the parameter's type."""
    return any(
        isinstance(default, ast.Constant) and default.value is ...
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).startswith("Protocol") for base in node.bases)
        for function in node.body
        if isinstance(function, Function)
        for default in defaults(function)
    )


def recursion(tree: ast.Module) -> bool:
    """A function calls itself. When compiled, too deep a recursion ends the process without a `RecursionError`."""
    methods = {each for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for each in node.body}
    return any(
        ast.unparse(call.func) in ((f"self.{name}", f"cls.{name}") if function in methods else (name,))
        for function in functions(tree)
        for name in [function.name]
        for call in calls(function)
    )


TRAPS: dict[Callable[[ast.Module], bool], tuple[str, str]] = {
    # code with the trap, and similar code without it
    one_name_for_two_errors: (
        "def f():\n try: g()\n except A as error: h(error)\n except B as error: h(error)",
        "def f():\n try: g()\n except A as a: h(a)\n except B as b: h(b)\ndef g():\n try: f()\n except B as a: h(a)",
    ),
    cause_of_an_error: ("def f(error): raise A from error", "def f(): raise A from None"),
    tuple_as_default: (
        "T: Final = (1.0, 2.0)\ndef f(a=T): ...",
        "T: Final[tuple[float, ...]] = (1.0, 2.0)\nU: Final = (1.0,)\ndef f(a=T): ...",
    ),
    arguments_of_a_base: (
        "class A(B):\n def __init__(self, *parts): super().__init__(*parts)",
        "class A(B):\n def __init__(self, *parts): super().__init__(parts); f(*parts)",
    ),
    default_of_a_protocol: (
        "class A(Protocol):\n def f(self, *, a: int = ...) -> None: ...",
        "class A(Protocol):\n def f(self, a: int = 1) -> None: ...",
    ),
    recursion: (
        "class A:\n def f(self): self.f()",
        "def f(): ...\nclass A:\n def f(self): super().f(); self.a.f(); self.g(); f()",
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_are_found(trap: Callable[[ast.Module], bool]) -> None:
    """Each trap is found in code that has it, and not in similar code."""
    assert [trap(ast.parse(code)) for code in TRAPS[trap]] == [True, False]


@pytest.mark.parametrize("module", MODULES)
def test_no_traps(module: str) -> None:
    """No module that is compiled contains one of the traps."""
    tree = ast.parse(MODULES[module].read_text())
    assert [trap.__doc__ for trap in TRAPS if trap(tree)] == []
