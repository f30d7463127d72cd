"""What pyproject.toml cannot say: the cffi extension, and the static `torpor-init` beside it."""

import os
import shlex
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

INIT_SOURCE = "native/init.c"
INIT_FLAGS = [
    "-std=c11", "-Os", "-Wall", "-Wextra", "-Werror",
    "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie",
    "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-s",
]  # fmt: skip


class BuildNative(build_ext):
    """Builds the extensions, then pid 1 of a capsule: an executable, so no Extension describes it.

    It is static and free of any libc because it is started where the host's libraries may be out of
    sight, and because a job's pid 1 should cost a few pages and nothing else.
    """

    def _init_path(self) -> Path:
        return Path(self.get_ext_fullpath("torpor._native")).with_name("torpor-init")

    def run(self) -> None:
        """Build everything; the compiler is $CC, else gcc."""
        super().run()
        target = self._init_path()
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = shlex.split(os.environ.get("CC", "gcc"))
        subprocess.run([*compiler, *INIT_FLAGS, "-o", str(target), INIT_SOURCE], check=True)
        target.chmod(0o755)

    def get_outputs(self) -> list[str]:
        """Name the executable too, so that installers carry it along."""
        return [*super().get_outputs(), str(self._init_path())]


setup(
    cffi_modules=["native/build.py:ffibuilder"],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
