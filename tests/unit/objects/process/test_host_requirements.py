"""What an image needs of the host's processor: all of it is there, or the restore is refused with what is not."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from torpor.arch.x86_64 import XCR0_OFFSET
from torpor.image import image_pb2 as pb
from torpor.objects.process import host_requirements
from torpor.probe import probe

TILES = 0b11 << 17


def image() -> pb.Tree:
    """Of a process of this host."""
    found, host = pb.Tree(), probe()
    xstate = bytearray(host.xsave_size)
    struct.pack_into("<Q", xstate, XCR0_OFFSET, host.xfeatures)
    host_requirements.describe(found, {b"Seccomp_filters": b"2"}, bytes(xstate), 3, (1, 2))
    found.processes.add(pid=1)
    return found


def test_this_host_is_one_like_itself() -> None:
    found = image()
    assert list(host_requirements.validate(found, probe())) == []
    assert (found.host.hostname, found.host.filters) == (os.uname().nodename, 2)
    assert (found.host.realtime_ns, found.host.monotonic_ns, found.host.boottime_ns) == (3, 1, 2)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architecture": "aarch64"}, "the image is for"),
        ({"page_size": 65536}, "pages of 4096 bytes, and here are 65536"),
        ({"cpu_flags": frozenset()}, "it lacks"),
        ({"xfeatures": 0}, "it lacks register sets"),
    ],
)
def test_what_a_host_lacks_is_told(changes: dict[str, object], why: str) -> None:
    found = image()
    found.host.cpu_flags.append("popcnt")
    host = replace(probe(), cpu_flags=probe().cpu_flags | {"popcnt"})
    assert list(host_requirements.validate(found, host)) == []
    told = [reason.why for reason in host_requirements.validate(found, replace(host, **changes))]  # type: ignore[arg-type]
    assert len(told) == 1 and why in told[0]


def test_features_that_no_program_chooses_code_by_do_not_matter() -> None:
    found = image()
    found.host.cpu_flags.append("of_another_vendor")
    assert list(host_requirements.validate(found, probe())) == []


def test_tiles_are_needed_only_by_who_asked_for_them() -> None:
    found = image()
    found.host.xfeatures |= TILES
    found.host.cpu_flags.append("amx_tile")
    host = replace(probe(), cpu_flags=probe().cpu_flags - {"amx_tile"}, xfeatures=probe().xfeatures & ~TILES)
    assert list(host_requirements.validate(found, host)) == []
    found.processes[0].xstate_permitted = TILES
    assert len(list(host_requirements.validate(found, host))) == 2


ICE_LAKE = {2: (576, 256), 5: (1088, 64), 6: (1152, 512), 7: (1664, 1024), 9: (2688, 8)}
ALDER_LAKE = {2: (576, 256), 9: (2688, 8)}
ZEN_3 = {2: (576, 256), 9: (832, 8)}
ZEN_4 = {2: (576, 256), 5: (832, 64), 6: (896, 512), 7: (1408, 1024), 9: (2432, 8)}
HASWELL = {2: (576, 256)}
"""Offset and size of each component beside x87 and SSE (CPUID leaf 0xd)."""


def size_of(layout: dict[int, tuple[int, int]], features: int) -> int:
    return max([576, *(sum(place) for number, place in layout.items() if features >> number & 1)])


@pytest.mark.parametrize(
    ("there", "here", "fits"),
    [
        (ICE_LAKE, ICE_LAKE, True),
        (ZEN_4, ZEN_4, True),
        (HASWELL, ICE_LAKE, True),
        (HASWELL, ZEN_4, True),
        (ALDER_LAKE, ICE_LAKE, True),
        (ZEN_3, ZEN_4, False),
        (ICE_LAKE, ZEN_4, False),
        (ZEN_4, ICE_LAKE, False),
        (ALDER_LAKE, ZEN_4, False),
        (ZEN_3, ALDER_LAKE, False),
    ],
)
def test_register_sets_that_lie_elsewhere(
    there: dict[int, tuple[int, int]], here: dict[int, tuple[int, int]], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would come back in wrong registers, and no error would tell it."""

    def all_of(layout: dict[int, tuple[int, int]]) -> int:
        return 0b11 | sum(1 << number for number in layout)

    found = image()
    found.host.xfeatures, found.host.xsave_size = all_of(there), size_of(there, all_of(there))
    monkeypatch.setattr(host_requirements, "lib", SimpleNamespace(tp_xsave_size=partial(size_of, here)))
    host = replace(probe(), xfeatures=all_of(here), xsave_size=size_of(here, all_of(here)))
    told = [reason.why for reason in host_requirements.validate(found, host)]
    assert told == ([] if fits else ["its register sets lie elsewhere in memory than on the image's host"])


@pytest.mark.parametrize(("clock", "wrong"), [(0, False), (1 << 62, False), (-1, True), ((1 << 62) + 1, True)])
def test_clocks_are_at_a_time_that_a_kernel_can_have(clock: int, wrong: bool) -> None:
    found = image()
    found.host.boottime_ns = clock
    assert bool(list(host_requirements.validate_form(found))) == wrong
