"""The layouts of xsave areas: real ones of CPUID's leaf 0xd, and what goes from each to each other."""

from __future__ import annotations

import random
import struct
from itertools import product

import pytest

from torpor.arch.x86_64 import xsave
from torpor.arch.x86_64.xsave import IN_USE_OFFSET, INTEL, XCR0_OFFSET, ZEN_3, ZEN_4, CannotFit, Layout, Place

APX = 19
PROCESSORS: dict[str, Layout] = {
    "Nehalem": {},
    "Haswell": {2: INTEL[2]},
    "Skylake": {number: INTEL[number] for number in (2, 3, 4)},
    "Skylake-SP": {number: INTEL[number] for number in (2, 3, 4, 5, 6, 7, 9)},
    "Knights Landing": {number: INTEL[number] for number in (2, 5, 6, 7)},
    "Ice Lake": {number: INTEL[number] for number in (2, 5, 6, 7, 9)},
    "Alder Lake": {number: INTEL[number] for number in (2, 9)},
    "Sapphire Rapids": {number: INTEL[number] for number in (2, 5, 6, 7, 9, 17, 18)},
    "Diamond Rapids": {**{number: INTEL[number] for number in (2, 5, 6, 7, 9, 17, 18)}, APX: Place(960, 128)},
    "Zen 2": {2: INTEL[2]},
    "Zen 3": ZEN_3,
    "Zen 4": ZEN_4,
    "of nobody": {2: Place(2000, 256), 5: Place(600, 64), 9: Place(700, 16)},
}
DICE = random.Random(14)


def features_of(layout: Layout) -> int:
    return 0b11 | sum(1 << number for number in layout)


def area_of(layout: Layout, used: dict[int, bytes], marked: int) -> bytes:
    """An area as ptrace gives it: all of it is there, and the mask says what is in use."""
    features = features_of(layout)
    area = bytearray(DICE.randbytes(xsave.MIN_XSAVE) + bytes(xsave.size(features, layout) - xsave.MIN_XSAVE))
    for number, content in used.items():
        area[layout[number].offset : layout[number].offset + len(content)] = content
    struct.pack_into("<Q", area, XCR0_OFFSET, features)
    struct.pack_into("<Q", area, IN_USE_OFFSET, marked)
    return bytes(area)


@pytest.mark.parametrize(("there", "here"), [*product(PROCESSORS, repeat=2)])
def test_each_set_arrives_or_is_missed_by_name(there: str, here: str) -> None:
    source, target = PROCESSORS[there], PROCESSORS[here]
    features, total = features_of(target), xsave.size(features_of(target), target)
    for _ in range(8):
        used = {number: DICE.randbytes(source[number].size) for number in source if DICE.random() < 0.5}
        marked = DICE.choice((0, 1, 3)) | sum(1 << number for number in used)
        area = area_of(source, used, marked)
        lost = [number for number in used if number not in target or target[number].size != source[number].size]
        if lost:
            with pytest.raises(CannotFit) as told:
                xsave.converted(area, source, target, features, total)
            assert all(xsave.name(number) in str(told.value) for number in lost)
            continue
        moved = xsave.converted(area, source, target, features, total)
        assert len(moved) == total
        assert moved[:XCR0_OFFSET] == area[:XCR0_OFFSET]
        assert struct.unpack_from("<Q", moved, XCR0_OFFSET) == (features,)
        (mask,) = struct.unpack_from("<Q", moved, IN_USE_OFFSET)
        assert mask & ~(1 << 9) == marked & ~(1 << 9)
        assert all(moved[target[number].offset :].startswith(content) for number, content in used.items())
        if 9 in target and 9 not in used:  # else a program would have access with keys that it never had
            assert moved[target[9].offset :].startswith(struct.pack("<Q", 0x55555554)) and mask >> 9 & 1
        assert xsave.converted(moved, target, target, features, total) == moved


def test_the_layout_of_this_processor() -> None:
    here = xsave.host()
    assert all(number >= 2 and place.offset >= xsave.MIN_XSAVE and place.size for number, place in here.items())
    assert xsave.size_here(0b11) == xsave.MIN_XSAVE


@pytest.mark.parametrize("name", [name for name in PROCESSORS if name not in ("Diamond Rapids", "of nobody")])
def test_a_layout_is_known_by_its_size(name: str) -> None:
    layout = PROCESSORS[name]
    features = features_of(layout)
    found = xsave.guessed(features, xsave.size(features, layout), PROCESSORS["Ice Lake"])
    assert found is not None and all(found[number] == place for number, place in layout.items())
