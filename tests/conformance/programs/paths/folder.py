"""A program whose current folder has a name of its own, and a relative path to it."""

import os
from pathlib import Path

from ready import HERE, judge, ready_and_wait, same


def main() -> None:
    folder = HERE / "folder"
    folder.mkdir()
    os.chdir(folder)
    Path("here").write_text("content")
    ready_and_wait()
    same(Path("here").read_text(), "content", "a file by its relative path")


judge(main)
