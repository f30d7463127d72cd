"""What an image needs of the host's processor: all of it is there, or the restore is refused with what is not."""

from __future__ import annotations

import os
import struct
from dataclasses import replace

import pytest

from torpor.arch.x86_64.xsave import (
    IN_USE_OFFSET,
    INTEL,
    XCR0_OFFSET,
    ZEN_3,
    ZEN_4,
    Layout,
    Place,
    size,
)
from torpor.image import image_pb2 as pb
from torpor.objects.process import host_requirements
from torpor.probe import Probe, probe

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
    (told,) = host_requirements.validate(found, host)
    assert told.why == "it lacks amx_tile"


AVX, MASKS, KEYS = 2, 5, 9


def with_registers(found: pb.Tree, layout: Layout, **content: bytes) -> pb.Thread:
    """Give an image of a processor with this layout a thread that has these sets in use, by "set_" and a number."""
    features = 0b11 | sum(1 << number for number in layout)
    found.host.xfeatures, found.host.xsave_size = features, size(features, layout)
    del found.host.register_sets[:]
    for number, place in layout.items():
        found.host.register_sets.add(number=number, offset=place.offset, size=place.size)
    area, used = bytearray(found.host.xsave_size), 0b11
    for name, value in content.items():
        number = int(name.removeprefix("set_"))
        area[layout[number].offset : layout[number].offset + len(value)] = value
        used |= 1 << number
    struct.pack_into("<Q", area, XCR0_OFFSET, features)
    struct.pack_into("<Q", area, IN_USE_OFFSET, used)
    return found.processes[0].threads.add(tid=1, xstate=bytes(area))


def of(layout: Layout) -> Probe:
    features = 0b11 | sum(1 << number for number in layout)
    places = tuple((number, *place) for number, place in layout.items())
    return replace(probe(), xfeatures=features, xsave_size=size(features, layout), register_sets=places)


def test_registers_move_to_the_layout_of_another_processor() -> None:
    found = image()
    thread = with_registers(found, INTEL, set_2=b"avx", set_5=b"masks", set_9=struct.pack("<Q", 0x55555554))
    host = of(ZEN_4)
    assert list(host_requirements.validate_form(found)) == []
    assert list(host_requirements.validate(found, host)) == []
    host_requirements.adapt(found, host)
    assert len(thread.xstate) == host.xsave_size
    assert thread.xstate[ZEN_4[AVX].offset :].startswith(b"avx")
    assert thread.xstate[ZEN_4[MASKS].offset :].startswith(b"masks")
    assert struct.unpack_from("<Q", thread.xstate, ZEN_4[KEYS].offset) == (0x55555554,)
    assert struct.unpack_from("<Q", thread.xstate, XCR0_OFFSET) == (host.xfeatures,)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"set_2": b"avx"}, ""),
        ({"set_5": bytes(64), "set_6": bytes(512)}, ""),  # the mask says in use, and there is nothing
        ({"set_9": struct.pack("<Q", 0x55555554)}, ""),
        ({"set_5": b"masks"}, "AVX-512 masks"),
        ({"set_5": b"masks", "set_7": b"wide"}, "AVX-512 masks, AVX-512"),
        ({"set_9": struct.pack("<Q", 0x55555550)}, "protection keys"),
    ],
)
def test_a_processor_is_refused_only_for_what_is_in_use(content: dict[str, bytes], why: str) -> None:
    found = image()
    with_registers(found, INTEL, **content)
    told = [reason.why for reason in host_requirements.validate(found, of({AVX: INTEL[AVX]}))]
    assert told == ([f"it lacks register sets that the program has in use: {why}"] if why else [])


@pytest.mark.parametrize(
    ("there", "known"), [(INTEL, True), (ZEN_3, True), (ZEN_4, True), ({AVX: Place(600, 256)}, False)]
)
def test_an_older_image_without_places(there: Layout, known: bool) -> None:
    found = image()
    with_registers(found, there, set_2=b"avx")
    del found.host.register_sets[:]
    told = [reason.why for reason in host_requirements.validate(found, of(ZEN_4))]
    assert told == ([] if known else ["the image does not say where its register sets lie in memory"])


@pytest.mark.parametrize(("number", "offset", "length"), [(63, 576, 8), (0, 576, 8), (2, 0, 256), (2, 1 << 20, 256)])
def test_places_outside_of_the_area(number: int, offset: int, length: int) -> None:
    found = image()
    found.host.register_sets.add(number=number, offset=offset, size=length)
    assert any("outside of the area" in why for why in host_requirements.validate_form(found))


def test_a_set_in_use_without_a_place() -> None:
    found = image()
    thread = with_registers(found, INTEL)
    thread.xstate = thread.xstate[:IN_USE_OFFSET] + struct.pack("<Q", 1 << 40) + thread.xstate[IN_USE_OFFSET + 8 :]
    assert "register sets in use of which" in next(iter(host_requirements.validate_form(found)))


@pytest.mark.parametrize(("clock", "wrong"), [(0, False), (1 << 62, False), (-1, True), ((1 << 62) + 1, True)])
def test_clocks_are_at_a_time_that_a_kernel_can_have(clock: int, wrong: bool) -> None:
    found = image()
    found.host.boottime_ns = clock
    assert bool(list(host_requirements.validate_form(found))) == wrong
