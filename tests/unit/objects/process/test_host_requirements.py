"""What an image needs of the host's processor: all of it is there, or the restore is refused with what is not."""

from __future__ import annotations

import os
import struct
from dataclasses import replace

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


@pytest.mark.parametrize(("clock", "wrong"), [(0, False), (1 << 62, False), (-1, True), ((1 << 62) + 1, True)])
def test_clocks_are_at_a_time_that_a_kernel_can_have(clock: int, wrong: bool) -> None:
    found = image()
    found.host.boottime_ns = clock
    assert bool(list(host_requirements.validate_form(found))) == wrong
