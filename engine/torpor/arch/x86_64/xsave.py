"""A thread's xsave area in its standard format, and its conversion to another processor's layout.

Intel's and AMD's processors have the same register sets at other offsets: without MPX, AMD leaves no gap. Each set has
the number of its bit in XCR0. x87 and SSE lie at the same place everywhere.

Documented in: Intel's manual, volume 1, chapter 13; CPUID leaf 0xd; Documentation/arch/x86/xstate.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from torpor._native import ffi, lib

XCR0_OFFSET = 464
"""Where ptrace(2) stores XCR0 in an xsave area."""
IN_USE_OFFSET = 512
"""Where an xsave area has the mask of the sets that are not in their initial state (XSTATE_BV)."""
MIN_XSAVE = 576
"""Size of the smallest xsave area in bytes: x87, SSE and the header."""
X87_AND_SSE = 0b11
_PKRU = 9
TILES = 18
_NO_KEYS = struct.pack("<Q", 0x55555554)
"""Linux's own default for PKRU: only key 0 gives access (arch/x86/mm/pkeys.c, init_pkru_value)."""
_LAST = 62
_NAMES = {
    2: "AVX", 3: "MPX", 4: "MPX", 5: "AVX-512 masks", 6: "AVX-512", 7: "AVX-512", 9: "protection keys", 17: "AMX",
    18: "AMX", 19: "APX",
}  # fmt: skip


class Place(NamedTuple):
    """Where a register set lies in an xsave area."""

    offset: int
    size: int


Layout = Mapping[int, Place]
"""By the number of a register set. Sets that this processor has not are not in it."""

INTEL: Layout = {
    2: Place(576, 256), 3: Place(960, 64), 4: Place(1024, 64), 5: Place(1088, 64), 6: Place(1152, 512),
    7: Place(1664, 1024), 9: Place(2688, 8), 17: Place(2752, 64), 18: Place(2816, 8192),
}  # fmt: skip
ZEN_3: Layout = {2: Place(576, 256), 9: Place(832, 8)}
ZEN_4: Layout = {
    2: Place(576, 256), 5: Place(832, 64), 6: Place(896, 512), 7: Place(1408, 1024), 9: Place(2432, 8),
}  # fmt: skip


class CannotFit(ValueError):
    """A register set that a thread has in use is not there on the other processor."""


@cache
def host() -> Layout:
    """The layout of this processor."""
    found, place = {}, ffi.new("uint32_t[2]")
    for number in range(2, _LAST + 1):
        if lib.tp_register_set(number, place):
            found[number] = Place(place[0], place[1])
    return found


def size(features: int, layout: Layout) -> int:
    """The size of an area with the sets of a mask as in XCR0, in bytes."""
    return max([MIN_XSAVE, *(sum(layout[number]) for number in _numbers(features) if number in layout)])


@cache
def size_here(features: int) -> int:
    """The size of such an area on this processor."""
    return size(features, host())


def guessed(features: int, total: int, here: Layout) -> Layout | None:
    """The layout of an image that has none, by the size of its areas; None if no processor that is known has it."""
    for layout in (here, INTEL, ZEN_3, ZEN_4):
        if all(number in layout for number in _numbers(features)) and size(features, layout) == total:
            return layout
    return None


def name(number: int) -> str:
    """A register set in messages."""
    return _NAMES.get(number, f"register set {number}")


def in_use(area: bytes, layout: Layout) -> Iterator[int]:
    """The sets of a thread that hold anything, x87 and SSE left out. The layout has the places of all."""
    for number in _numbers(_mask(area)):
        content = _content(area, layout[number])
        # All others are zero initially. Programs without protection keys have Linux's default.
        if content != _NO_KEYS if number == _PKRU else any(content):
            yield number


def names_all(area: bytes, layout: Layout) -> bool:
    """Whether a layout has the places of all sets that a thread may have in use."""
    return len(area) >= MIN_XSAVE and all(number in layout for number in _numbers(_mask(area)))


def converted(area: bytes, there: Layout, here: Layout, features: int, total: int) -> bytes:
    """Convert an area to the layout of another processor.

    Args:
        area: as ptrace(2) read it.
        there: its layout.
        here: the layout of the other processor.
        features: the other processor's XCR0.
        total: the size of an area there.

    Raises:
        CannotFit: a set that is in use is missing.
    """
    missing = [number for number in in_use(area, there) if not _fits(number, there, here, features)]
    if missing:
        raise CannotFit(", ".join(dict.fromkeys(map(name, missing))))
    mask = _mask(area)
    result = bytearray(area[:MIN_XSAVE].ljust(total, b"\0"))
    kept = mask & X87_AND_SSE
    for number in filter(lambda one: _fits(one, there, here, features), there):
        offset, length = here[number]
        result[offset : offset + length] = _content(area, there[number])
        kept |= mask & 1 << number
    if _PKRU in here and features >> _PKRU & 1 and not kept >> _PKRU & 1:  # zero would give access with every key
        offset, _ = here[_PKRU]
        result[offset : offset + len(_NO_KEYS)] = _NO_KEYS
        kept |= 1 << _PKRU
    struct.pack_into("<Q", result, XCR0_OFFSET, features)
    struct.pack_into("<Q", result, IN_USE_OFFSET, kept)
    return bytes(result)


def _fits(number: int, there: Layout, here: Layout, features: int) -> bool:
    place = here.get(number)
    return place is not None and bool(features >> number & 1) and place.size == there[number].size


def _content(area: bytes, place: Place) -> bytes:
    return area[place.offset : place.offset + place.size].ljust(place.size, b"\0")


def _mask(area: bytes) -> int:
    return int.from_bytes(area[IN_USE_OFFSET : IN_USE_OFFSET + 8], "little")


def _numbers(mask: int) -> Iterator[int]:
    return (number for number in range(2, _LAST + 1) if mask >> number & 1)
