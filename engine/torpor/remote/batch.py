"""Tables of system calls that run inside another process: the Python side of native/batch.c."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torpor._native import ffi, lib

CODE = bytes(ffi.buffer(lib.tp_batch_code(), lib.tp_batch_size()))
"""The interpreter's position-independent code. On entry, r14 is the address of the table, r12 that of the first entry
to run."""

ENTRY_SIZE = 64
NOT_RUN = -(1 << 63)
"""The result of an entry that was not run."""

_ON_ERROR = 1 << 6
_ON_ZERO = 1 << 7
_STOP = 1 << 8
_ENTRY = struct.Struct("<HHHH6Qq")
_RESULT = struct.Struct("<q")
_RESULTS = struct.Struct("<56xq")
_POINTER = struct.Struct("<Q")
_WORD = (1 << 64) - 1


class Result(NamedTuple):
    """An argument: use the result of an earlier entry."""

    entry: int


class Out(NamedTuple):
    """An argument: the address of `size` zero bytes that the call writes to. `Replies.output` returns them."""

    size: int


class Struct(NamedTuple):
    """An argument: like ``bytes``, but it holds pointers into itself."""

    content: bytes
    pointers: tuple[int, ...]
    """Offsets of 8-byte words. Each holds an offset from the start of the struct, which becomes an address."""


class ArgumentOf(NamedTuple):
    """An argument: the address of an argument of another entry. A call that writes there sets that argument."""

    entry: int
    position: int


Argument = int | bytes | Result | Out | Struct | ArgumentOf
"""``bytes`` are placed behind the table (16-byte aligned) and replaced by their address."""


class Call(NamedTuple):
    """One system call of a plan."""

    nr: int
    args: Sequence[Argument]
    expect: int | Callable[[int], bool] | None
    """The required result, or a predicate for it. None accepts any result that is not an error."""
    words: str
    """What the call does, for error messages: "mapping /usr/lib/libc.so.6 at 0x7f00"."""

    def ok(self, result: int) -> bool:
        """Whether the plan accepts `result`."""
        if self.expect is None:
            return not -4096 < result < 0
        if callable(self.expect):
            return self.expect(result)
        return result == self.expect


@dataclass
class Batch:
    """A table of system calls that is being built. It can be encoded for many threads, each at its own address."""

    first: int = 0
    """The entry to begin with. Entries before it are for the children that `on_zero` branches to."""
    _numbers: list[int] = field(default_factory=list)
    _table: bytearray = field(default_factory=bytearray)
    _data: bytearray = field(default_factory=bytearray)
    """The data that follows the table. Pointers in the table and in the data are kept as offsets from the start of what
    they point into (the table or the data), until `encode` knows the address.
    """
    _into_table: list[int] = field(default_factory=list)
    """Where in the table the pointers into the table are (byte offsets)."""
    _into_data: list[int] = field(default_factory=list)
    """Where in the table the pointers into the data are."""
    _within_data: list[int] = field(default_factory=list)
    """Where in the data the pointers into the data are."""
    _places: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """Offset in the data and size of each argument in memory, by its entry and position."""

    def __len__(self) -> int:
        return len(self._numbers)

    def add(
        self,
        nr: int,
        *args: Argument,
        on_error: int | None = None,
        on_zero: int | None = None,
        stop: bool = False,
    ) -> int:
        """Append a call and return its index.

        Args:
            nr: the system call.
            args: up to six arguments.
            on_error: the entry that follows if the call fails; None: the next one.
            on_zero: the entry that follows if the result is 0 (in the child after a clone).
            stop: raise SIGTRAP after the call. Only for processes that Torpor created: the signal kills a process
                without a tracer.
        """
        index = len(self._numbers)
        flags = (_ON_ERROR if on_error is not None else 0) | (_ON_ZERO if on_zero is not None else 0)
        flags |= _STOP if stop else 0
        words = [0, 0, 0, 0, 0, 0]
        for position, arg in enumerate(args):
            if isinstance(arg, int):
                words[position] = arg & _WORD
            elif isinstance(arg, Result):
                flags |= 1 << position
                words[position] = arg.entry
            elif isinstance(arg, ArgumentOf):
                words[position] = arg.entry * ENTRY_SIZE + 8 + 8 * arg.position
                self._into_table.append(index * ENTRY_SIZE + 8 + 8 * position)
            else:
                words[position] = at = len(self._data)
                self._into_data.append(index * ENTRY_SIZE + 8 + 8 * position)
                self._places[index, position] = at, self._append(arg)
        self._table += _ENTRY.pack(nr, flags, on_error or 0, on_zero or 0, *words, NOT_RUN)
        self._numbers.append(nr)
        return index

    def _append(self, arg: bytes | Out | Struct) -> int:
        """Append an argument to the data; return its size."""
        at = len(self._data)
        if isinstance(arg, Struct):
            content = bytearray(arg.content)
            for offset in arg.pointers:
                (inside,) = _POINTER.unpack_from(content, offset)
                _POINTER.pack_into(content, offset, at + inside)
                self._within_data.append(at + offset)
            self._data += content
        else:
            self._data += bytes(arg.size) if isinstance(arg, Out) else arg
        size = len(self._data) - at
        self._data += bytes(-size % 16)
        return size

    def numbers(self) -> list[int]:
        """The system call number of every entry."""
        return self._numbers

    def copy(self) -> Batch:
        """Copy the table. Calls that are added to one of the two do not change the other."""
        return Batch(
            self.first,
            list(self._numbers),
            bytearray(self._table),
            bytearray(self._data),
            list(self._into_table),
            list(self._into_data),
            list(self._within_data),
            dict(self._places),
        )

    def encode(self, address: int) -> bytearray:
        """The table and its data for `address` (16-byte aligned)."""
        whole = self._table + self._data
        start = len(self._table)
        for offsets, base in ((self._into_table, address), (self._into_data, address + start)):
            for offset in offsets:
                _POINTER.pack_into(whole, offset, _POINTER.unpack_from(whole, offset)[0] + base)
        for offset in self._within_data:
            _POINTER.pack_into(whole, start + offset, _POINTER.unpack_from(whole, start + offset)[0] + address + start)
        return whole

    def output_place(self, entry: int, position: int) -> tuple[int, int]:
        """The offset (from the start of the table) and the size of an `Out` argument."""
        at, size = self._places[entry, position]
        return len(self._table) + at, size


class Replies:
    """The results of a batch: the bytes of the table after the interpreter has run it."""

    def __init__(self, batch: Batch, raw: bytes) -> None:
        self._batch = batch
        self._raw = raw

    def result(self, entry: int) -> int:
        """The result of a call: a negative errno on failure, NOT_RUN if the call was not made."""
        value: int = _RESULT.unpack_from(self._raw, entry * ENTRY_SIZE + 56)[0]
        return value

    def results(self) -> list[int]:
        """Every result, by entry."""
        return [value for (value,) in _RESULTS.iter_unpack(self._raw[: len(self._batch) * ENTRY_SIZE])]

    def failed_calls(self) -> set[int]:
        """The system calls that failed in every entry that makes them."""
        errors: dict[int, bool] = {}
        for nr, result in zip(self._batch.numbers(), self.results(), strict=True):
            errors[nr] = errors.get(nr, True) and NOT_RUN != result < 0
        return {nr for nr, failed in errors.items() if failed}

    def output(self, entry: int, position: int) -> bytes:
        """What the call wrote to its `Out` argument."""
        offset, size = self._batch.output_place(entry, position)
        return self._raw[offset : offset + size]


Ask = Callable[[Batch], Replies]
"""A function that makes a process or thread run a table of calls."""
