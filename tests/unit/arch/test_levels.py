"""Levels of processors: what each has, and that real libraries keep to them by the variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.arch.processors import FLAGS as PROCESSORS
from torpor.arch.x86_64 import levels

LOADER = "/lib64/ld-linux-x86-64.so.2"
HERE = {
    word
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
    if line.startswith("flags")
    for word in line.partition(":")[2].split()
}


def test_each_level_has_all_of_the_one_below() -> None:
    assert levels.FLAGS[2] < levels.FLAGS[3] < levels.FLAGS[4]
    assert [levels.number_of(levels.name_of(level)) for level in levels.FLAGS] == [2, 3, 4]


@pytest.mark.parametrize(
    ("level", "first"), [(2, "Nehalem"), (3, "Haswell"), (3, "Zen"), (4, "Skylake-SP"), (4, "Zen 4")]
)
def test_processors_have_their_level(level: int, first: str) -> None:
    assert levels.FLAGS[level] <= set(PROCESSORS[first].split())


@pytest.mark.parametrize("level", levels.FLAGS)
def test_the_environment_says_what_it_keeps_to(level: int) -> None:
    found = levels.variables(level, {})
    given = "\0".join(f"{name}={value}" for name, value in found.items()).encode() + b"\0"
    assert levels.kept_to(given) == level
    for name in found:  # a script may have set a variable anew for a program
        changed = {**found, name: "something else"}
        assert levels.kept_to("\0".join(f"{key}={value}" for key, value in changed.items()).encode()) == 0
        assert levels.kept_to("\0".join(f"{key}={found[key]}" for key in found if key != name).encode()) == 0
    assert levels.kept_to(b"") == 0


@given(st.binary(max_size=200))
def test_any_bytes_may_stand_in_an_environment(junk: bytes) -> None:
    assert levels.kept_to(junk) == 0
    assert levels.kept_to(b"TORPOR_PORTABLE=x86-64-v3\0" + junk) == 0


def test_other_tunables_stay() -> None:
    given = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.cpu.hwcaps=-ERMS", "HOME": "/home/x"}
    found = levels.variables(3, given)
    tunables = found["GLIBC_TUNABLES"].split(":")
    assert tunables[0] == "glibc.malloc.arena_max=1" and len(tunables) == 2 and "-ERMS" not in tunables[1]
    assert levels.kept_to("\0".join(f"{name}={value}" for name, value in found.items()).encode()) == 3


def _run(command: list[str], level: int | None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    if level is not None:
        environment |= levels.variables(level, environment)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not levels.FLAGS[3] <= HERE, reason="this processor is not of the level x86-64-v3")
def test_the_c_library_keeps_to_it() -> None:
    if "x86-64-v3 (supported" not in _run([LOADER, "--help"], None):
        pytest.skip("this C library does not say which levels it supports")
    assert "x86-64-v3 (supported" in _run([LOADER, "--help"], 3)
    assert "x86-64-v4 (supported" not in _run([LOADER, "--help"], 3)
    assert "x86-64-v2 (supported" in _run([LOADER, "--help"], 2)
    assert "x86-64-v3 (supported" not in _run([LOADER, "--help"], 2)


@pytest.mark.skipif(not levels.FLAGS[3] <= HERE, reason="this processor is not of the level x86-64-v3")
def test_numpy_and_openblas_keep_to_it() -> None:
    pytest.importorskip("numpy")
    script = (
        "import ctypes, numpy\n"
        "from numpy._core import _multiarray_umath as found\n"
        "print(sorted(name for name in found.__cpu_dispatch__ if found.__cpu_features__[name]))\n"
        "path = next(line.split()[-1] for line in open('/proc/self/maps') if 'openblas' in line)\n"
        "library = ctypes.CDLL(path)\n"
        "name = next(name for name in ('scipy_openblas_get_corename64_', 'openblas_get_corename64_',"
        " 'openblas_get_corename') if hasattr(library, name))\n"
        "core = getattr(library, name)\n"
        "core.restype = ctypes.c_char_p\n"
        "print(core().decode(), float(numpy.ones((50, 50)).dot(numpy.ones(50)).sum()))\n"
    )
    features, core = _run([sys.executable, "-c", script], 2).splitlines()
    assert not any(name in features for name in ("AVX2", "FMA3", "X86_V3"))
    assert core == "Nehalem 2500.0"
    features, core = _run([sys.executable, "-c", script], 3).splitlines()
    assert "AVX2" in features or "X86_V3" in features
    assert core == "Haswell 2500.0"


@pytest.mark.skipif(not {"avx2", "aes"} <= HERE, reason="this processor has no AVX2 and AES")
def test_openssl_keeps_to_it() -> None:
    words = _run(["openssl", "version", "-c"], None)
    if "CPUINFO" not in words:
        pytest.skip("this OpenSSL does not say which features it uses")

    def vectors(level: int) -> tuple[int, int]:
        said = _run(["openssl", "version", "-c"], level).split("OPENSSL_ia32cap=")[1].split()[0]
        first, second = said.split(":")[:2]
        return int(first, 16), int(second, 16)

    first, second = vectors(2)
    assert not first & (1 << 60 | 1 << 57 | 1 << 44) and not second & (1 << 5 | 1 << 29)
    first, second = vectors(3)
    assert first & 1 << 57 and second & 1 << 5 and not second & (1 << 29 | 1 << 16)
