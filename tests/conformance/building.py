"""How the programs of the tests are compiled and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
"""ready.py, ready.h and children.h for all programs, and the programs in rooms as those of engine/torpor/objects."""
PYTHON = sys.executable


def named(name: str) -> Path:
    """A conformance program by its file's name."""
    (found,) = PROGRAMS.rglob(name)
    return found


def build(source: Path, folder: Path) -> Path:
    """Compile a C program; a comment `/* build: ... */` in its first lines adds arguments for gcc."""
    program = folder / source.stem
    if not program.exists():
        extra = [
            word
            for line in source.read_text().splitlines()[:6]
            if line.startswith("/* build:")
            for word in line.removeprefix("/* build:").removesuffix("*/").split()
        ]
        flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{PROGRAMS}"]
        draft = program.with_suffix(".draft")
        subprocess.run(["gcc", *flags, str(source), "-o", str(draft), *extra, "-lrt"], check=True)
        draft.chmod(0o755)
        draft.rename(program)
    return program


def command(source: Path, folder: Path) -> list[str]:
    """How a program is run, by its kind."""
    if source.suffix == ".c":
        return [str(build(source, folder))]
    return ["/bin/bash" if source.suffix == ".sh" else PYTHON, str(source)]
