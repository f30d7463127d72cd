"""What an image needs of the host's processor: all of it is there, or the restore is refused with what is not."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from itertools import product
from typing import cast

import pytest

from tests.unit.arch.processors import FLAGS as PROCESSORS
from torpor.arch.x86_64 import levels
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
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.memory.mapped_code import MappedCode
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


class Code:
    """What the processes of an image execute, by their PIDs: the files that ask for features."""

    def __init__(self, askers: dict[int, list[str]]) -> None:
        self._askers = askers

    def with_word(self, process: pb.Process, word: bytes) -> list[str]:
        """As `MappedCode`."""
        assert word == b"\x0f\xa2"  # cpuid
        return self._askers.get(process.pid, [])


def code(**askers: list[str]) -> MappedCode:
    """The askers of "pid_1" and so on."""
    return cast(MappedCode, Code({int(pid.removeprefix("pid_")): files for pid, files in askers.items()}))


def validated(found: pb.Tree, host: Probe, cpu: host_requirements.Cpu = "check") -> list[Reason]:
    return list(host_requirements.validate(found, host, code(), cpu))


def test_this_host_is_one_like_itself() -> None:
    found = image()
    assert list(validated(found, probe())) == []
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
    assert list(validated(found, host)) == []
    told = [reason.why for reason in validated(found, replace(host, **changes))]  # type: ignore[arg-type]
    assert len(told) == 1 and why in told[0]


def test_features_that_no_program_chooses_code_by_do_not_matter() -> None:
    found = image()
    found.host.cpu_flags.append("of_another_vendor")
    assert list(validated(found, probe())) == []


def test_tiles_are_needed_only_by_who_asked_for_them() -> None:
    found = image()
    found.host.xfeatures |= TILES
    found.host.cpu_flags.append("amx_tile")
    host = replace(probe(), cpu_flags=probe().cpu_flags - {"amx_tile"}, xfeatures=probe().xfeatures & ~TILES)
    assert list(validated(found, host)) == []
    found.processes[0].xstate_permitted = TILES
    (told,) = validated(found, host)
    assert told.why == "it lacks amx_tile, for which programs may have been compiled"


def with_flags(*names: str) -> Probe:
    return replace(probe(), cpu_flags=frozenset(names))


def on_a_processor_with(*names: str, levels: tuple[int, ...] = (0,)) -> pb.Tree:
    """An image of a processor with these features, of processes that keep to these levels."""
    found = image()
    del found.host.cpu_flags[:], found.processes[:]
    found.host.cpu_flags.extend(names)
    for number, level in enumerate(levels):
        found.processes.add(pid=number + 1, portable=level)
    return found


def test_the_sentence_names_the_feature_and_who_asks_for_it() -> None:
    found = on_a_processor_with("avx2", "avx512f", "erms", levels=(0, 0))
    askers = code(pid_1=["/lib/libc.so.6"], pid_2=["/lib/libc.so.6", "/opt/lib/libblis.so.4"])
    (told,) = host_requirements.validate(found, with_flags("avx2"), askers)
    assert told.why == "it lacks avx512f, by which libblis.so.4, libc.so.6 may have chosen code"
    assert "--cpu=ignore" in told.advice
    many = code(pid_1=[f"/lib/lib{letter}.so" for letter in "abcde"])
    assert "by which liba.so, libb.so, libc.so and 2 more" in host_requirements.lacking(found, with_flags(), many)


def test_what_may_happen_is_told_instead_of_a_refusal() -> None:
    found, here = on_a_processor_with("avx2", "avx512f"), with_flags("avx2")
    assert validated(found, here, cpu="ignore") == []
    (warning,) = host_requirements.warnings(found, here, code(pid_1=["/lib/libc.so.6"]))
    assert "avx512f, by which libc.so.6" in warning and "SIGILL" in warning
    assert list(host_requirements.warnings(found, with_flags("avx2", "avx512f"), code())) == []


V3 = ("avx", "avx2", "bmi1", "bmi2", "fma", "movbe", "abm", "f16c", "aes", "fsgsbase", "pclmulqdq", "rdrand")


def test_a_tree_that_keeps_to_a_level_needs_no_more_than_that() -> None:
    host = (*V3, "cx16", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2", "avx512f", "sha_ni")
    here = with_flags(*(set(host) - {"avx512f", "sha_ni"}))
    assert validated(on_a_processor_with(*host, levels=(3, 3)), here) == []
    assert host_requirements.portable(on_a_processor_with(*host, levels=(2, 3))) == 3
    assert host_requirements.beyond(on_a_processor_with(*host, levels=(3,))) == (3, [])
    one_does_not = on_a_processor_with(*host, levels=(3, 0))
    assert host_requirements.portable(one_does_not) == 0
    (told,) = validated(one_does_not, here)
    assert told.why.startswith("it lacks avx512f, sha_ni")
    assert host_requirements.beyond(one_does_not) == (3, ["avx512f", "sha_ni"])
    (told,) = validated(on_a_processor_with(*host, levels=(3,)), with_flags(*(set(here.cpu_flags) - {"fma"})))
    assert told.why.startswith("it lacks fma")
    ended = on_a_processor_with(*host, levels=(3, 0))
    ended.processes[1].zombie = True
    assert host_requirements.portable(ended) == 3


def test_libraries_that_keep_to_no_level_are_named() -> None:
    found, here = on_a_processor_with(*V3, "avx512f", levels=(3,)), with_flags(*V3)
    obedient = ["/lib/libc.so.6", "/lib/ld-linux-x86-64.so.2", "/opt/libopenblasp-r0.3.so"]
    assert list(host_requirements.warnings(found, here, code(pid_1=obedient))) == []
    (warning,) = host_requirements.warnings(found, here, code(pid_1=[*obedient, "/opt/libzstd.so.1"]))
    assert warning.startswith("libzstd.so.1 chooses its code without regard") and "lacks avx512f" in warning
    same = with_flags(*V3, "avx512f")
    assert list(host_requirements.warnings(found, same, code(pid_1=["/opt/libzstd.so.1"]))) == []


def test_a_level_that_does_not_exist_is_damage() -> None:
    (why,) = host_requirements.validate_form(on_a_processor_with("avx", levels=(9,)))
    assert "process 1 keeps to a level" in why


def test_pairs_of_processors_that_wake_each_others_images() -> None:
    """Each image wakes on its own processor; one that keeps to a level wakes on every processor of this level."""
    for (there, image_flags), (here, host_flags) in product(PROCESSORS.items(), repeat=2):
        for level in (0, 2, 3, 4):
            if level and not levels.FLAGS[level] <= set(image_flags.split()):
                continue  # it would not have been started there
            found = on_a_processor_with(*image_flags.split(), levels=(level,))
            allowed = not host_requirements.lacking(found, with_flags(*host_flags.split()), code())
            if there == here or (level and levels.FLAGS[level] <= set(host_flags.split())):
                assert allowed, (there, here, level)
            if level == 0:
                needed = host_requirements.CODE_FLAGS.intersection(image_flags.split())
                assert allowed == (needed <= set(host_flags.split()))


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
    assert list(validated(found, host)) == []
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
    told = [reason.why for reason in validated(found, of({AVX: INTEL[AVX]}))]
    assert told == ([f"it lacks register sets that the program has in use: {why}"] if why else [])


@pytest.mark.parametrize(
    ("there", "known"), [(INTEL, True), (ZEN_3, True), (ZEN_4, True), ({AVX: Place(600, 256)}, False)]
)
def test_an_older_image_without_places(there: Layout, known: bool) -> None:
    found = image()
    with_registers(found, there, set_2=b"avx")
    del found.host.register_sets[:]
    told = [reason.why for reason in validated(found, of(ZEN_4))]
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
