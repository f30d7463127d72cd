"""Counts in a file of /dev/shm that it has mapped: one more when it is told to go on."""

import mmap
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, judge, ready_and_wait, same


def main() -> None:
    path = Path(f"/dev/shm/torpor-conformance-{os.getpid()}-counter")
    with open(path, "xb+") as file:
        path.chmod(0o600)
        file.truncate(8192)
        memory = mmap.mmap(file.fileno(), 8192)
    (HERE / "path").write_text(str(path))
    memory[0] = 1
    ready_and_wait()
    memory[0] += 1
    same(path.read_bytes()[0], 2, "the file by its name")
    path.unlink()


judge(main)
