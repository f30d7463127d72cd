"""Builds torpor._native, the C core, with cffi against Python's stable ABI."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = ["torpor.c", "batch.c", "spawn.c", "rights.c", "walk.c"]

declarations = (HERE / "torpor.h").read_text().split("/* cffi: begin */")[1].split("/* cffi: end */")[0]

ffibuilder = FFI()
ffibuilder.cdef(declarations)
ffibuilder.set_source(
    "torpor._native",
    '#include "torpor.h"',
    sources=[f"native/{name}" for name in SOURCES],
    include_dirs=["native"],
    extra_compile_args=["-O2", "-Wall", "-Wextra"],
    py_limited_api=True,
)
