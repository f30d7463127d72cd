"""Speaks with its standard descriptors: upper-cases what it reads, and says on standard error how much it was."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import judge, ready_and_wait, same


def main() -> None:
    first = sys.stdin.readline()
    print(first.upper(), end="", flush=True)
    ready_and_wait()
    second = sys.stdin.readline()
    print(second.upper(), end="", flush=True)
    print(len(first) + len(second), file=sys.stderr, flush=True)
    same(sys.stdin.read(), "", "the end of standard input")


judge(main)
