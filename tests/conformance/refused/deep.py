"""A current directory whose path is longer than the kernel shows (PATH_MAX)."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, expect, judge, ready_and_wait


def main() -> None:
    os.chdir(HERE)
    for _ in range(25):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    ready_and_wait()
    Path("file").touch()
    expect(Path("file").exists(), "the directory is another one")
    for _ in range(25):
        os.chdir("..")
    expect(os.path.samefile(".", HERE), "the way back leads elsewhere")


judge(main)
