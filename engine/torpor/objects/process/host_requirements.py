"""The host of a tree: its kernel, its processor, and its clocks at the moment of the freeze.

A restore refuses a host with another architecture or page size, or whose processor lacks features by which programs may
have chosen their code, or a register set that a thread has in use. Registers move to the layout of the other processor.

Documented in: uname(2), proc_cpuinfo(5), Documentation/arch/x86/xstate.rst, time_namespaces(7).
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from torpor import procfs
from torpor.arch.x86_64 import XCR0_OFFSET, levels, xsave
from torpor.errors import Reason
from torpor.image import image_pb2 as pb
from torpor.objects.memory.mapped_code import MappedCode
from torpor.probe import Probe

Cpu = Literal["check", "ignore"]
"""Whether a restore refuses a processor without features by which programs may have chosen their code."""

CODE_FLAGS = frozenset((
    "pni", "cx16", "ssse3", "sse4_1", "sse4_2", "popcnt", "movbe", "aes", "pclmulqdq", "avx", "avx2", "fma", "f16c",
    "bmi1", "bmi2", "abm", "adx", "sha_ni", "rdrand", "rdseed", "fsgsbase", "vaes", "vpclmulqdq",
    "gfni", "avx_vnni", "rdpid", "clwb", "clflushopt", "movdiri", "movdir64b", "serialize", "waitpkg", "xsavec",
    "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx512ifma", "avx512vbmi", "avx512_vbmi2",
    "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq", "avx512_bf16", "avx512_fp16", "avx512_vp2intersect",
))  # fmt: skip
"""Features by which programs and libc choose code once, when they start (names of /proc/cpuinfo).

Not those that only say which of several ways is faster (erms, fsrm), and not protection keys (pku, ospke): whether a
program uses them, its registers and mappings show.
"""
TILE_FLAGS = frozenset(("amx_tile", "amx_int8", "amx_bf16"))
"""Features that a program must request first."""
_CPUID = b"\x0f\xa2"
"""The instruction by which a program asks for features."""
_FEW = 3
"""How many files to name."""
_LATEST_NS = 1 << 62
"""The maximal clock value in a time namespace (KTIME_SEC_MAX / 2, kernel/time/namespace.c)."""
_TILES = 0b11 << 17
"""The bits of XCR0 for AMX."""


def describe(
    image: pb.Tree, status: Mapping[bytes, bytes], xstate: bytes, realtime_ns: int, clocks: tuple[int, int]
) -> None:
    """Write the host to the image.

    Args:
        image: the tree, otherwise complete.
        status: of a process of the tree.
        xstate: the xsave area of a thread.
        realtime_ns: CLOCK_REALTIME at the freeze.
        clocks: CLOCK_MONOTONIC and CLOCK_BOOTTIME as the tree saw them, in nanoseconds.
    """
    host, uname = image.host, os.uname()
    host.architecture, host.kernel_release, host.hostname = platform.machine(), uname.release, uname.nodename
    host.boot_id = procfs.boot_id()
    (host.xfeatures,) = struct.unpack_from("<Q", xstate, XCR0_OFFSET)
    host.xsave_size = len(xstate)
    for number, (offset, size) in xsave.host().items():
        if host.xfeatures >> number & 1:
            host.register_sets.add(number=number, offset=offset, size=size)
    host.cpu_flags.extend(_cpu_flags())
    host.page_size = procfs.PAGE
    host.filters = 0 if image.filters else int(status.get(b"Seccomp_filters", 0))
    host.realtime_ns = realtime_ns
    host.monotonic_ns, host.boottime_ns = clocks


@cache
def _cpu_flags() -> list[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return line.partition(":")[2].split()
    return []


def validate_form(image: pb.Tree) -> Iterator[str]:
    """What in the image's host is invalid."""
    host = image.host
    if not all(0 <= clock <= _LATEST_NS for clock in (host.monotonic_ns, host.boottime_ns)):
        yield "its clocks are at a time that a kernel does not know"
    for one in host.register_sets:
        if not 2 <= one.number < 63 or one.offset < xsave.MIN_XSAVE or one.offset + one.size > host.xsave_size:
            yield f"the register set {one.number} lies outside of the area for it"
    there = _layout(host)
    for process in image.processes:
        if process.portable and process.portable not in levels.FLAGS:
            yield f"process {process.pid} keeps to a level of processors that does not exist"
    for thread in _threads(image):
        if there is not None and not xsave.names_all(thread.xstate, there):
            yield f"thread {thread.tid} has register sets in use of which it does not say where they lie"


def needed_flags(image: pb.Tree) -> frozenset[str]:
    """The features of the image's processor by which its programs may have chosen their code."""
    tiles = any(process.xstate_permitted & _TILES for process in image.processes)
    found = (CODE_FLAGS | TILE_FLAGS if tiles else CODE_FLAGS).intersection(image.host.cpu_flags)
    level = portable(image)
    return found & (levels.FLAGS[level] | TILE_FLAGS) if level else found


def portable(image: pb.Tree) -> int:
    """The level of processors to which all programs of the tree keep; 0: none."""
    kept = {process.portable for process in image.processes if not process.zombie}
    return 0 if 0 in kept else max(kept, default=0)


def beyond(image: pb.Tree) -> tuple[int, list[str]]:
    """The highest level whose processors all wake the image if they also have these features; 1: not even x86-64-v2."""
    needed = needed_flags(image)
    reached = [level for level, flags in levels.FLAGS.items() if flags & CODE_FLAGS <= needed]
    level = max(reached, default=1)
    return level, sorted(needed - levels.FLAGS.get(level, frozenset()))


def lacking(image: pb.Tree, host: Probe, code: MappedCode) -> str:
    """In words: which features this processor lacks, and by whom they may be used; empty if it has all."""
    missing = needed_flags(image) - host.cpu_flags
    if not missing:
        return ""
    askers = {os.path.basename(path) for path in _askers(image, code)}
    how = f"by which {_few(askers)} may have chosen code" if askers else "for which programs may have been compiled"
    return f"it lacks {', '.join(sorted(missing))}, {how}"


def warnings(image: pb.Tree, host: Probe, code: MappedCode) -> Iterator[str]:
    """What may happen to the job on this processor, if features that it lacks are no reason to refuse."""
    happens = "a process that uses them ends with SIGILL (illegal instruction)"
    if words := lacking(image, host, code):
        yield f"this processor is not like the image's: {words}; {happens}"
    if level := portable(image):
        rest = CODE_FLAGS.intersection(image.host.cpu_flags) - host.cpu_flags - levels.FLAGS[level]
        names = {os.path.basename(path) for path in _askers(image, code)} if rest else set()
        if others := {name for name in names if not name.startswith(levels.OBEY)}:
            choose = "chooses its" if len(others) == 1 else "choose their"
            what = f"this processor lacks {', '.join(sorted(rest))}"
            yield f"{_few(others)} {choose} code without regard to --portable, and {what}; {happens}"


def _askers(image: pb.Tree, code: MappedCode) -> set[str]:
    """The programs and libraries that ask the processor for its features."""
    return {path for process in image.processes for path in code.with_word(process, _CPUID)}


def _few(names: set[str]) -> str:
    first = sorted(names)[:_FEW]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def validate(image: pb.Tree, host: Probe, code: MappedCode, cpu: Cpu = "check") -> Iterator[Reason]:
    """What the image needs of the processor, page size and register sets, and this host lacks."""
    needed = image.host
    if needed.architecture != host.architecture:
        yield Reason("this host", f"the image is for {needed.architecture}, and this is {host.architecture}")
        return
    if needed.page_size != host.page_size:
        yield Reason("this host", f"the image has pages of {needed.page_size} bytes, and here are {host.page_size}")
    if cpu == "check" and (why := lacking(image, host, code)):
        yield Reason(
            "this processor", why, "restore on one like the image's host, or at your own risk with --cpu=ignore"
        )
    there, here = _layout(needed), _layout_of(host)
    if there is None:
        yield Reason("this processor", "the image does not say where its register sets lie in memory")
        return
    absent: dict[str, None] = {}
    for thread in () if _is_alike(needed, host) else _threads(image):
        try:
            xsave.converted(thread.xstate, there, here, host.xfeatures, host.xsave_size)
        except xsave.CannotFit as missing:
            absent[str(missing)] = None
    for names in absent:
        yield Reason("this processor", f"it lacks register sets that the program has in use: {names}")


def adapt(image: pb.Tree, host: Probe) -> None:
    """Give the registers of all threads the layout of this processor. `validate` has found that they fit."""
    if _is_alike(image.host, host):
        return
    there, here = _layout(image.host), _layout_of(host)
    assert there is not None
    for thread in _threads(image):
        thread.xstate = xsave.converted(thread.xstate, there, here, host.xfeatures, host.xsave_size)


def register_sets(image: pb.Tree) -> list[str]:
    """The names of the register sets that threads have in use, x87 and SSE left out."""
    there = _layout(image.host) or {}
    areas = [thread.xstate for thread in _threads(image) if xsave.names_all(thread.xstate, there)]
    return sorted({xsave.name(number) for area in areas for number in xsave.in_use(area, there)})


def _is_alike(needed: pb.Host, host: Probe) -> bool:
    """Whether registers have the same layout on this host as on an image's, so that all fit as they are."""
    there = _layout(needed), needed.xfeatures, needed.xsave_size
    return there == (_layout_of(host), host.xfeatures, host.xsave_size)


def _layout(host: pb.Host) -> xsave.Layout | None:
    """The layout of an image."""
    if host.register_sets:
        return {one.number: xsave.Place(one.offset, one.size) for one in host.register_sets}
    return xsave.guessed(host.xfeatures, host.xsave_size, xsave.host())


def _layout_of(host: Probe) -> xsave.Layout:
    places = {number: xsave.Place(offset, size) for number, offset, size in host.register_sets}
    return {number: place for number, place in places.items() if host.xfeatures >> number & 1}


def _threads(image: pb.Tree) -> Iterator[pb.Thread]:
    return (thread for process in image.processes if not process.zombie for thread in process.threads)
