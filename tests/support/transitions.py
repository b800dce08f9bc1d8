"""The state machines of the relay: the tables in their modules' docstrings, and the transitions made during a test.

`record` replaces the attribute that holds the state with a descriptor, so that the code under test needs no hook. The
attribute of a compiled class can't be replaced, so nothing is recorded there; the source is the same.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.resources
import re
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any, Final
from unittest import mock

from sanitizer import FORM
from sanitizer.relay.client import ClientConnection
from sanitizer.relay.connection import Connection
from sanitizer.relay.exchange import Exchange
from sanitizer.relay.intercepted import Intercepted
from sanitizer.relay.pipe import TunnelEnd

MACHINES: Final[dict[type, str]] = {
    ClientConnection: "state",
    Exchange: "state",
    Connection: "state",
    TunnelEnd: "_state",
    Intercepted: "_state",
}
"""The classes, and the attribute of each that holds the state."""

Transition = tuple[str, str]
"""The names of a state and of the next one. The first name is empty for a machine's initial state."""

_ROW: Final = re.compile(r"^([A-Z]+)\b(.*)", re.MULTILINE)
_FROM_ALL: Final = re.compile(r"Every (?:other )?state(?: but ([A-Z]+))? leads to ([A-Z]+) as well")


@cache
def table(machine: type) -> tuple[list[str], frozenset[Transition]]:
    """The states and the transitions in the table of ``machine``'s module. The first state is the initial one."""
    package, _, name = machine.__module__.rpartition(".")
    source = importlib.resources.files(package).joinpath(f"{name}.py").read_text()  # compiled modules have no docstring
    document = ast.get_docstring(ast.parse(source)) or ""
    _, border, rest = re.split(r"^((?:=+ +)+=+)\n", document, maxsplit=1, flags=re.MULTILINE)
    _, body, after = rest.split(border + "\n")
    column = border.rindex(" ") + 1
    nexts = {name: re.findall(r"[A-Z]+", line[column - len(name) :]) for name, line in _ROW.findall(body)}
    transitions = {(state, each) for state, each_next in nexts.items() for each in each_next}
    from_all = _FROM_ALL.search(after)
    if from_all is not None:
        but, last = from_all.groups()
        transitions |= {(state, last) for state in nexts if state not in (but, last)}
    states = list(nexts)
    return states, frozenset(transitions | {("", states[0])})


class Recording:
    """``paths``: for each class, its machines in the order in which they were made, each a list of its states."""

    def __init__(self) -> None:
        self.paths: dict[type, list[list[str]]] = {machine: [] for machine in MACHINES}
        self.transitions: dict[type, set[Transition]] = {machine: set() for machine in MACHINES}

    def check(self) -> None:
        """Fail if a machine has made a transition that is not in its table."""
        unknown = {machine.__name__: made - table(machine)[1] for machine, made in self.transitions.items()}
        assert not any(unknown.values()), unknown


class _Attribute:
    """A descriptor for the attribute ``name`` of ``machine`` that adds each change to ``recording``."""

    def __init__(self, machine: type, name: str, recording: Recording) -> None:
        self._name = name
        self._original: Any = machine.__dict__.get(name)  # None: it is in the instance's dictionary
        self._paths = recording.paths[machine]
        self._transitions = recording.transitions[machine]
        self._path_of: dict[int, list[str]] = {}

    def __get__(self, instance: Any, owner: type) -> Enum:
        state = instance.__dict__[self._name] if self._original is None else self._original.__get__(instance, owner)
        assert isinstance(state, Enum)
        return state

    def __set__(self, instance: Any, state: Enum) -> None:
        try:
            before = self.__get__(instance, type(instance)).name
        except (AttributeError, KeyError):
            before = ""
            self._path_of[id(instance)] = []
            self._paths.append(self._path_of[id(instance)])
        if self._original is None:
            instance.__dict__[self._name] = state
        else:
            self._original.__set__(instance, state)
        if state.name != before:
            self._transitions.add((before, state.name))
            if id(instance) in self._path_of:  # it is not there if it was made before the recording began
                self._path_of[id(instance)].append(state.name)


@contextlib.contextmanager
def record() -> Iterator[Recording]:
    """Record the transitions of all machines while the context lasts. Nothing is recorded if they are compiled."""
    recording = Recording()
    if FORM == "compiled":
        yield recording
        return
    with contextlib.ExitStack() as stack:
        for machine, name in MACHINES.items():
            attribute = _Attribute(machine, name, recording)
            stack.enter_context(mock.patch.object(machine, name, attribute, create=True))
        yield recording
