"""Builds the C parts, as hatchling asks when it makes a wheel or an editable install: `torpor._native` by cffi, against
Python's stable ABI, and the static `torpor-init` beside it. Also torpor(1), of the help texts."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from cffi import FFI
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "engine" / "torpor"
SOURCES = ("torpor.c", "batch.c", "spawn.c", "rights.c", "stop.c", "walk.c")
INIT_FLAGS = [
    "-std=c11", "-Os", "-Wall", "-Wextra", "-Werror",
    "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie",
    "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-s",
]  # fmt: skip


class BuildNative(BuildHookInterface):  # type: ignore[type-arg]
    """The C parts, in the package's own folder: an editable install runs them there, and a wheel takes them along."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build all; the compiler is $CC, else gcc."""
        del version
        built = [_extension(), _init()]
        build_data["artifacts"] += [f"/{path.relative_to(self.root)}" for path in built]
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data.setdefault("shared_data", {})[str(_manual(self.metadata.version))] = "share/man/man1/torpor.1"
        build_data["tag"] = f"cp310-abi3-{platform}"


def _extension() -> Path:
    declarations = (HERE / "torpor.h").read_text().split("/* cffi: begin */")[1].split("/* cffi: end */")[0]
    builder = FFI()
    builder.cdef(declarations)
    builder.set_source(
        "_native",
        '#include "torpor.h"',
        sources=[str(HERE / name) for name in SOURCES],
        include_dirs=[str(HERE)],
        extra_compile_args=["-O2", "-Wall", "-Wextra"],
        py_limited_api=True,
    )
    target = PACKAGE / "_native.abi3.so"
    with tempfile.TemporaryDirectory() as made:
        _replace(Path(builder.compile(tmpdir=made)), target)
    return target


def _init() -> Path:
    """PID 1 of a capsule.

    It is static and free of any libc because it is started where the host's libraries may be out of sight, and because
    a job's PID 1 should cost a few pages and nothing else.
    """
    target = PACKAGE / "torpor-init"
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    with tempfile.TemporaryDirectory() as made:
        init = Path(made, "torpor-init")
        subprocess.run([*compiler, *INIT_FLAGS, "-o", init, HERE / "init.c"], check=True)
        init.chmod(0o755)
        _replace(init, target)
    return target


def _manual(version: str) -> Path:
    """The manual page; the command line needs nothing of what is built here."""
    sys.path.insert(0, str(PACKAGE.parent))
    target = HERE.parent / "build" / "torpor.1"
    target.parent.mkdir(exist_ok=True)
    target.write_text(import_module("torpor.cli.manual").page(version))
    return target


def _replace(made: Path, target: Path) -> None:
    """Never in place: jobs run the one that is there."""
    beside = target.with_name(f".{target.name}.new")
    shutil.copy(made, beside)
    beside.replace(target)
