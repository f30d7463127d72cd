"""Tables of system calls that run inside another process: the Python side of native/batch.c."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torpor._native import ffi, lib

CODE = bytes(ffi.buffer(lib.tp_batch_code(), lib.tp_batch_size()))
"""The interpreter's position-independent code. On entry r14 is the address of the table, r12 that of an entry."""

ENTRY_SIZE = 64
NOT_RUN = -(1 << 63)
"""The result of an entry that was not run."""

_ON_ERROR = 1 << 6
_ON_ZERO = 1 << 7
_STOP = 1 << 8
_ENTRY = struct.Struct("<HHHH6Qq")
_RESULT = struct.Struct("<q")
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
    """A table of system calls, as it is built."""

    _entries: list[tuple[int, int, int, int, tuple[Argument, ...]]] = field(default_factory=list)
    _places: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    _encoded: tuple[bytearray, list[int]] | None = None
    """The table and its data for address 0, and the offsets in them of all words that are addresses there."""
    first: int = 0
    """The entry to begin with. Entries before it are for the children that `on_zero` branches to."""

    def __len__(self) -> int:
        return len(self._entries)

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
        flags = (_ON_ERROR if on_error is not None else 0) | (_ON_ZERO if on_zero is not None else 0)
        flags |= _STOP if stop else 0
        for position, arg in enumerate(args):
            if isinstance(arg, Result):
                flags |= 1 << position
        assert self._encoded is None, "the table is in use"
        self._entries.append((nr, flags, on_error or 0, on_zero or 0, args))
        return len(self._entries) - 1

    def numbers(self) -> list[int]:
        """The system call number of every entry."""
        return [nr for nr, *_ in self._entries]

    def copy(self) -> Batch:
        """Copy the table, before it is encoded."""
        return Batch(list(self._entries), first=self.first)

    def encode(self, address: int) -> bytearray:
        """Encode the table and its data for `address` (16-byte aligned). Many threads may have one table."""
        if self._encoded is None:
            self._encoded = self._encode()
        encoded, pointers = self._encoded
        table = bytearray(encoded)
        for offset in pointers:
            _POINTER.pack_into(table, offset, address + _POINTER.unpack_from(table, offset)[0])
        return table

    def _encode(self) -> tuple[bytearray, list[int]]:
        data = bytearray()
        pointers: list[int] = []
        start = len(self._entries) * ENTRY_SIZE
        table = bytearray(start)
        for index, (nr, flags, on_error, on_zero, args) in enumerate(self._entries):
            words = [0, 0, 0, 0, 0, 0]
            for position, arg in enumerate(args):
                if isinstance(arg, int):
                    words[position] = arg & _WORD
                elif isinstance(arg, Result):
                    words[position] = arg.entry
                else:
                    pointers.append(index * ENTRY_SIZE + 8 + 8 * position)
                    if isinstance(arg, ArgumentOf):
                        words[position] = arg.entry * ENTRY_SIZE + 8 + 8 * arg.position
                        continue
                    at = words[position] = start + len(data)
                    content = _content(arg, at)
                    if isinstance(arg, Struct):
                        pointers += (at + offset for offset in arg.pointers)
                    self._places[index, position] = (at, len(content))
                    data += content
                    data += bytes(-len(data) % 16)
            _ENTRY.pack_into(table, index * ENTRY_SIZE, nr, flags, on_error, on_zero, *words, NOT_RUN)
        return table + data, pointers

    def output_place(self, entry: int, position: int) -> tuple[int, int]:
        """The offset (from the start of the table) and the size of an `Out` argument."""
        return self._places[entry, position]


def _content(arg: bytes | Out | Struct, at: int) -> bytes | bytearray:
    if isinstance(arg, Struct):
        content = bytearray(arg.content)
        for offset in arg.pointers:
            (inside,) = _POINTER.unpack_from(content, offset)
            _POINTER.pack_into(content, offset, at + inside)
        return content
    return bytes(arg.size) if isinstance(arg, Out) else arg


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
        return [self.result(entry) for entry in range(len(self._batch))]

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
"""Lets a process or thread make calls."""
