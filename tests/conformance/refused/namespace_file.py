"""A descriptor of a namespace, as setns(2) takes it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, judge, ready_and_wait, same


def main() -> None:
    network = os.open("/proc/self/ns/net", os.O_RDONLY)
    (HERE / "numbers").write_text(f"{network}\n")
    before = os.readlink(f"/proc/self/fd/{network}")
    ready_and_wait()
    same(os.readlink(f"/proc/self/fd/{network}"), before, "the namespace")


judge(main)
