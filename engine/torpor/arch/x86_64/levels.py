"""The levels of x86-64 processors, and the environment variables by which programs keep to one.

A program chooses its code by the processor that it starts on. `variables` makes the libraries that do so choose code
for a level instead, so that an image of the program can be woken on every processor of this level.

Documented in: the x86-64 psABI (low-level system information) on levels; glibc's manual on tunables; the manuals of
OpenBLAS, NumPy, MKL, oneDNN and PyTorch; OPENSSL_ia32cap(3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

PortableTo = Literal["x86-64-v2", "x86-64-v3", "x86-64-v4"]
"""A level that a program can keep to."""

_NEW_FLAGS = {
    2: "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3",
    # The second line: not in the psABI's level, but in every processor of servers that has the first.
    3: "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave "
    "aes fsgsbase pclmulqdq rdrand",
    4: "avx512bw avx512cd avx512dq avx512f avx512vl "
    "adx clflushopt rdseed xsavec",
}  # fmt: skip
"""What each level has beyond the one below (names of /proc/cpuinfo)."""
FLAGS: Mapping[int, frozenset[str]] = {
    level: frozenset(word for below in range(2, level + 1) for word in _NEW_FLAGS[below].split())
    for level in _NEW_FLAGS
}
"""All features of a level."""

NAME = "TORPOR_PORTABLE"
"""The variable that names the level."""
_TUNABLES = "GLIBC_TUNABLES"
_HWCAPS = "glibc.cpu.hwcaps"

_GLIBC_V4 = "AVX512ER AVX512PF FMA4 FMA4_Usable RTM XOP"
_GLIBC_V3 = (
    f"{_GLIBC_V4} AVX512BW AVX512CD AVX512DQ AVX512F AVX512VL AVX512DQ_Usable AVX512F_Usable XSAVEC XSAVEC_Usable"
)
_GLIBC_V2 = (
    f"{_GLIBC_V3} AVX AVX2 AVX2_Usable AVX_Fast_Unaligned_Load AVX_Usable BMI1 BMI2 F16C FMA FMA_Usable LZCNT MOVBE"
)
_NUMPY_V4 = "AVX512_KNL AVX512_KNM AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
_NUMPY_V3 = f"AVX512F AVX512CD AVX512_SKX X86_V4 {_NUMPY_V4}"
_NUMPY_V2 = f"AVX F16C XOP FMA4 FMA3 AVX2 X86_V3 {_NUMPY_V3}"

_ECX_V2 = 1 << 1 | 1 << 12 | 1 << 22 | 1 << 25 | 1 << 28 | 1 << 30
"""CPUID leaf 1, ECX: pclmulqdq, fma, movbe, aes, avx, rdrand."""
_EBX_V4 = 1 << 21 | 1 << 26 | 1 << 27 | 1 << 29
"""CPUID leaf 7, EBX: avx512ifma, avx512pf, avx512er, sha."""
_EBX_V3 = _EBX_V4 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 28 | 1 << 30 | 1 << 31
"""Also avx512f, avx512dq, rdseed, adx, avx512cd, avx512bw, avx512vl."""
_EBX_V2 = _EBX_V3 | 1 << 3 | 1 << 5 | 1 << 8
"""Also bmi1, avx2, bmi2."""
_ECX_OF_7 = 1 << 1 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14
"""CPUID leaf 7, ECX: avx512vbmi, avx512_vbmi2, gfni, vaes, vpclmulqdq, avx512_vnni, avx512_bitalg, avx512_vpopcntdq."""


def _openssl(ecx: int, ebx: int) -> str:
    first = f"~{ecx << 32:#x}" if ecx else ""
    return f"{first}:~{_ECX_OF_7 << 32 | ebx:#x}"


def _hwcaps(names: str) -> str:
    return ",".join(f"-{name}" for name in sorted(names.split()))


_VARIABLES: Mapping[int, Mapping[str, str]] = {
    2: {
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": _NUMPY_V2,
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "DNNL_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "ARROW_USER_SIMD_LEVEL": "SSE4_2",
        "OPENSSL_ia32cap": _openssl(_ECX_V2, _EBX_V2),
        _TUNABLES: _hwcaps(_GLIBC_V2),
    },
    3: {
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": _NUMPY_V3,
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ARROW_USER_SIMD_LEVEL": "AVX2",
        "OPENSSL_ia32cap": _openssl(0, _EBX_V3),
        _TUNABLES: _hwcaps(_GLIBC_V3),
    },
    4: {
        "OPENBLAS_CORETYPE": "SkylakeX",
        "NPY_DISABLE_CPU_FEATURES": _NUMPY_V4,
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "DNNL_MAX_CPU_ISA": "AVX512_CORE",
        "ATEN_CPU_CAPABILITY": "avx512",
        "ARROW_USER_SIMD_LEVEL": "AVX512",
        "OPENSSL_ia32cap": _openssl(0, _EBX_V4),
        _TUNABLES: _hwcaps(_GLIBC_V4),
    },
}
"""For each level, what makes libraries keep to it; of GLIBC_TUNABLES the value of glibc.cpu.hwcaps."""

OBEY = (
    *("ld-linux-x86-64.so", "libc.so", "libc-", "libm.so", "libm-", "ld-2."),
    *("libopenblas", "libscipy_openblas", "libblas.so", "_multiarray_umath.", "_simd.", "libmkl_", "libdnnl."),
    *("libarrow.so", "libcrypto.so", "libtorch_cpu.so"),
)
"""How the names of libraries begin that keep to a level because of these variables."""


def number_of(level: str) -> int:
    """The number of a level: 3 for x86-64-v3."""
    return int(level.rpartition("v")[2])


def name_of(number: int) -> str:
    """The name of a level."""
    return f"x86-64-v{number}"


def variables(level: int, given: Mapping[str, str]) -> dict[str, str]:
    """The variables that make a program keep to a level. They override those of `given`, its environment; but other
    tunables of glibc stay.
    """
    found = {**_VARIABLES[level], NAME: name_of(level)}
    ours = found[_TUNABLES]
    others = [word for word in given.get(_TUNABLES, "").split(":") if word and not word.startswith(f"{_HWCAPS}=")]
    return {**found, _TUNABLES: ":".join([*others, f"{_HWCAPS}={ours}"])}


def kept_to(environment: bytes) -> int:
    """The level that a program with this environment (of /proc/PID/environ) keeps to; 0: none, or not all of it."""
    found = dict(word.partition(b"=")[::2] for word in reversed(environment.split(b"\0")))
    level = next((one for one in _VARIABLES if found.get(NAME.encode()) == name_of(one).encode()), 0)
    needed = variables(level, {}) if level else {}
    for name, value in needed.items():
        words = found.get(name.encode(), b"").split(b":") if name == _TUNABLES else [found.get(name.encode())]
        if value.encode() not in words:
            return 0
    return level
