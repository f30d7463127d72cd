"""What no line of the sources may do, since nobody would see at a run that it did."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lean import MODULES, NEWER

ROOT = Path(__file__).parents[3]
FOLDERS = ("engine", "jupyter_ext", "scheduler_hooks", "notebooks")
SOURCES = [
    path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if not path.name.endswith("_pb2.py")
]
TESTS = [path for folder in ("", "fuzz", "bench") for path in sorted((ROOT / "tests" / folder).glob("*.py"))]
"""What tests make is in a folder of their own but for what they all use."""

OTHER_SOURCES = [
    path
    for folder, pattern in [
        ("native", "*.[ch]"),
        ("scheduler_hooks", "**/*.[ch]"),
        ("native", "*.py"),
        ("jupyter_ext/labextension/src", "**/*.ts"),
        ("jupyter_ext/labextension/src", "**/*.tsx"),
    ]
    for path in sorted((ROOT / folder).glob(pattern))
]
MOST_LINES = 500
"""What a person reads in one sitting: a file with more holds two things."""

ADDRESSES = {"addressof", "buffer_info", "data_as", "ffi.cast"}
"""What makes a number of where a buffer lies. The number holds nothing: the buffer may be gone when it is used."""
MAKES_ADDRESSES = {"engine/torpor/remote/sys.py"}
"""The wrapper of a system call, which holds what it is given until the call is over."""
SELECTS = {"engine/torpor/restorer/terminal_relay.py"}
"""What waits by select(2): a command of its own, whose first descriptors the terminals are."""
IN_OTHERS = ("engine", "jupyter_ext", "scheduler_hooks/torpor_dask")
"""What runs in programs of others, such as a Jupyter server or a Dask worker."""
CHANGING = {"Words", "array", "bytearray", "ffi.new"}
"""What makes a buffer. One that a whole module shares is written to by several threads at once: cffi lets go of the
interpreter's lock."""


def newer_names(source: str) -> set[str]:
    """What a piece of source takes from Python's modules that not every build of Python has."""
    tree = ast.parse(source)
    used = set()
    for one in ast.walk(tree):
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name):
            used.add(f"{one.value.id}.{one.attr}")
        if isinstance(one, ast.ImportFrom) and one.module in MODULES:
            used |= {f"{one.module}.{alias.name}" for alias in one.names}
    return set(filter(NEWER.fullmatch, used))


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def called(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a piece of source, with the function's name: of ffi's with that before it."""
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute | ast.Name):
            name = ast.unparse(one.func)
            yield name if name.startswith("ffi.") else name.rpartition(".")[2], one


def bare_addresses(source: str) -> list[int]:
    """The lines that make a number of a buffer's address."""
    return [call.lineno for name, call in called(ast.parse(source)) if name in ADDRESSES]


def selects(source: str) -> list[int]:
    """The lines that wait by select(2), which takes no descriptor from 1024 on."""
    tree = ast.walk(ast.parse(source))
    return [one.lineno for one in tree if isinstance(one, ast.Call) and ast.unparse(one.func) == "select.select"]


def shared_buffers(source: str) -> list[int]:
    """The lines that make a buffer which the whole module shares."""
    found = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value:
            found += [call.lineno for name, call in called(statement.value) if name in CHANGING]
    return found


def names_from_a_pid(source: str) -> list[int]:
    """The lines that make a name of this process's own PID. What lies in /proc is named so; a file that other PID
    namespaces or hosts see is not: its name belongs to another process there."""
    found = []
    for one in ast.walk(ast.parse(source)):
        if isinstance(one, ast.JoinedStr) or (isinstance(one, ast.BinOp) and isinstance(one.op, ast.Mod | ast.Add)):
            text = ast.unparse(one)
            if "getpid()" in text and "/proc/" not in text:
                found.append(one.lineno)
    return sorted(set(found))


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_every_build_of_python_has_what_is_used(path: Path) -> None:
    assert newer_names(path.read_text()) == set()


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=names)
def test_no_name_is_made_of_a_pid(path: Path) -> None:
    assert names_from_a_pid(path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_no_address_outlives_its_buffer(path: Path) -> None:
    if names(path) not in MAKES_ADDRESSES:
        assert bare_addresses(path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_no_buffer_is_shared_by_threads(path: Path) -> None:
    assert shared_buffers(path.read_text()) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if names(path).startswith(IN_OTHERS)], ids=names)
def test_a_program_with_many_descriptors_may_use_it(path: Path) -> None:
    if names(path) not in SELECTS:
        assert selects(path.read_text()) == []


def test_no_file_is_longer_than_one_thing_needs() -> None:
    kinds = {path.suffix for path in [*SOURCES, *OTHER_SOURCES]}
    assert kinds == {".py", ".c", ".h", ".ts", ".tsx"}
    lines = {names(path): len(path.read_text().splitlines()) for path in [*SOURCES, *OTHER_SOURCES]}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_what_is_looked_for_is_found() -> None:
    assert selects("import select\nselect.poll(); select.select([a], [], [])") == [2]
    assert newer_names("import os; os.pidfd_open(1); socket.AF_CAN; os.open") == {"os.pidfd_open", "socket.AF_CAN"}
    assert newer_names("from fcntl import F_ADD_SEALS, F_GETFL") == {"fcntl.F_ADD_SEALS"}
    assert bare_addresses("x = int(ffi.cast('uintptr_t', ffi.from_buffer(bytearray(8))))") == [1]
    assert bare_addresses("def f():\n    return array('Q', [0]).buffer_info()[0]") == [2]
    assert shared_buffers("_status = array('i', [0])\nx: bytearray = bytearray(4)") == [1, 2]
    assert shared_buffers("def f():\n    status = array('i', [0])") == []
    assert names_from_a_pid("open(f'/tmp/x.{os.getpid()}'); y = b'/.torpor-%d' % os.getpid()") == [1]
    assert names_from_a_pid("path = 'x' + str(os.getpid())") == [1]
    assert names_from_a_pid("open(f'/proc/{os.getpid()}/maps'); print(os.getpid())") == []
