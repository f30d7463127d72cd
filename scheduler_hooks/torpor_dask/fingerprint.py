"""The fingerprint of a task: a hash of its functions' code, its arguments and its inputs' keys, equal in all processes.

Dask's own token is not: it pickles functions of a script or notebook, and a function that was pickled before gives
other bytes the second time. Here a function counts with its code, defaults, closure and name. What it calls does not
count; nor does it for Dask's keys.
"""

from __future__ import annotations

import functools
import re
import sys
import types
from importlib.metadata import version
from typing import Any, Final

from blake3 import blake3
from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef
from dask.tokenize import tokenize
from dask.typing import Key

_CONTENT: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Dask's token, or a UUID: a key with one means the same wherever it appears."""

_VERSIONS: Final = f"{version('dask')} {version('distributed')} {sys.version_info[:2]}"


def means_its_content(key: Key) -> bool:
    """Tell whether Dask made a key from a hash or UUID. A key that a person chose may name something else next time."""
    if isinstance(key, tuple):
        return bool(key) and means_its_content(key[0])
    return isinstance(key, str) and bool(_CONTENT.search(key))


def fingerprint(spec: GraphNode) -> str:
    """Give the hash of a task: 32 hexadecimal digits. Raises what tokenizing an argument raises."""
    return blake3(repr((_VERSIONS, _describe(spec, ()))).encode(errors="surrogatepass")).hexdigest(16)


def _describe(item: Any, above: tuple[int, ...]) -> Any:
    """Give something whose repr is the same for equal items; `above` are the items around this one, against loops."""
    if id(item) in above:
        return "loop", len(above) - above.index(id(item))
    above = (*above, id(item))
    match item:
        case None | bool() | int() | float() | complex() | str() | bytes() if type(item).__module__ == "builtins":
            return type(item).__name__, repr(item)
        case TaskRef():
            return "ref", repr(item.key)
        case Alias():
            return "alias", repr(item.target)
        case DataNode():
            return "data", _describe(item.value, above)
        case Task():
            kwargs = sorted(item.kwargs.items())
            parts = [_describe(part, above) for part in (item.func, *item.args, *(value for _, value in kwargs))]
            return type(item).__qualname__, [name for name, _ in kwargs], parts
        case types.FunctionType():
            cells = [_cell(cell, above) for cell in item.__closure__ or ()]
            rest = [_describe(part, above) for part in (item.__defaults__, item.__kwdefaults__)]
            return "function", item.__module__, item.__qualname__, _code(item.__code__), rest, cells
        case types.MethodType():
            return "method", _describe(item.__func__, above), _describe(item.__self__, above)
        case functools.partial():
            return "partial", [_describe(part, above) for part in (item.func, item.args, item.keywords)]
        case list() | tuple() if type(item) in (list, tuple):
            return type(item).__name__, [_describe(part, above) for part in item]
        case dict() if type(item) is dict:
            pairs = ((_describe(name, above), _describe(value, above)) for name, value in item.items())
            return "dict", sorted(pairs, key=repr)
        case set() | frozenset() if type(item) in (set, frozenset):
            return type(item).__name__, sorted((_describe(part, above) for part in item), key=repr)
    return "token", tokenize(item)


def _cell(cell: types.CellType, above: tuple[int, ...]) -> Any:
    try:
        content = cell.cell_contents
    except ValueError:  # a name that was not bound yet
        return "empty"
    return _describe(content, above)


def _code(code: types.CodeType) -> Any:
    """Describe code without the file and lines it came from."""
    constants = [
        _code(constant)
        if isinstance(constant, types.CodeType)
        else sorted(map(repr, constant))  # the order of a set's items differs between processes
        if isinstance(constant, frozenset)
        else repr(constant)
        for constant in code.co_consts
    ]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code.hex(), constants, names, code.co_argcount, code.co_kwonlyargcount, code.co_flags
