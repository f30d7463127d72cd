"""Builds the C parts, as hatchling asks when it makes a wheel or an editable install: `torpor._native` by cffi, against
Python's stable ABI, and the static `torpor-init` beside it; the command `torpor`. Also torpor(1), of the help texts."""

from __future__ import annotations

import os
import platform
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
MADE = HERE.parent / "build"
SOURCES = ("torpor.c", "batch.c", "spawn.c", "rights.c", "stop.c", "walk.c")
BARE_FLAGS = [
    "-std=c11", "-Os", "-Wall", "-Wextra", "-Werror",
    "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie",
    "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-s",
]  # fmt: skip


class BuildNative(BuildHookInterface):  # type: ignore[type-arg]
    """The C parts, in the package's own folder: an editable install runs them there, and a wheel takes them along."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build all; the compiler is $CC, else gcc."""
        _check_tools()
        # PID 1 of a capsule costs a few pages and nothing else, and is started where the host's libraries may be out of
        # sight; and `torpor` is to start at once.
        built = [_extension(), _bare("init.c", PACKAGE / "torpor-init"), _name_of_build(Path(self.root), version)]
        build_data["artifacts"] += [f"/{path.relative_to(self.root)}" for path in built]
        build_data["pure_python"] = False
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data.setdefault("shared_data", {})[str(_manual(self.metadata.version))] = "share/man/man1/torpor.1"
        commands = {str(_bare("start.c", MADE / "torpor")): "torpor", str(HERE / "torpor-cli"): "torpor-cli"}
        build_data.setdefault("shared_scripts", {}).update(commands)
        build_data["tag"] = f"cp310-abi3-{system}"


def _check_tools() -> None:
    """End with one line that says what is missing: pip shows it below the compiler's own errors, or alone."""
    compiler = shlex.split(os.environ.get("CC", "gcc"))[0]
    header = Path(sysconfig.get_path("include"), "Python.h")
    missing = [f"a C compiler ({compiler}; Debian, Ubuntu: gcc libc6-dev)"] if not shutil.which(compiler) else []
    missing += [f"Python's headers ({header}; Debian, Ubuntu: python3-dev)"] if not header.exists() else []
    if missing:
        sys.exit(f"torpor cannot be built here, it needs {' and '.join(missing)}: or install its wheel")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        sys.exit(f"torpor runs on Linux on x86-64 only, and this is {sys.platform} on {platform.machine()}")


def _name_of_build(root: Path, version: str) -> Path:
    """A file that says from what this was built, for ``torpor --version``: a commit, which an sdist takes along."""
    target = PACKAGE / "build.txt"
    described = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    if version == "editable":
        target.write_text("editable")
    elif (root / ".git").exists() and shutil.which("git"):
        target.write_text(subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip())
    elif not (root / "PKG-INFO").exists() or not target.exists():
        target.write_text("from sources without their history")
    return target


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


def _bare(source: str, target: Path) -> Path:
    """A static program without any libc."""
    target.parent.mkdir(exist_ok=True)
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    with tempfile.TemporaryDirectory() as made:
        program = Path(made, target.name)
        subprocess.run([*compiler, *BARE_FLAGS, "-o", program, HERE / source], check=True)
        program.chmod(0o755)
        _replace(program, target)
    return target


def _manual(version: str) -> Path:
    """The manual page; the command line needs nothing of what is built here."""
    sys.path.insert(0, str(PACKAGE.parent))
    target = MADE / "torpor.1"
    target.parent.mkdir(exist_ok=True)
    target.write_text(import_module("torpor.cli.manual").page(version))
    return target


def _replace(made: Path, target: Path) -> None:
    """Never in place: jobs run the one that is there."""
    beside = target.with_name(f".{target.name}.new")
    shutil.copy(made, beside)
    beside.replace(target)
