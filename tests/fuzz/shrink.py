"""Makes a program that fails smaller: steps are left out, in ever smaller pieces, as long as it fails the same way.

python -m tests.fuzz.shrink FOLDER PLAYER SEED|SCRIPT [TRIES]      prints the script that is left
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fuzz import play as playing
from tests.fuzz.grammar import Step, generate, sensible, write
from tests.fuzz.play import Outcome, Play

HANGS = 10.0
"""Seconds after which a program with steps left out hangs: many do."""


def shrink(steps: Sequence[Step], fails: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """The steps of which none can be left out."""
    left = list(steps)
    size = max(1, len(left) // 2)
    while size:
        at = 0
        while at < len(left):
            fewer = sensible([*left[:at], *left[at + size :]])
            if len(fewer) < len(left) and fails(fewer):
                left = fewer
                print(f"# {len(left)} steps are left", file=sys.stderr, flush=True)
            else:
                at += size
        size //= 2
    return left


def alike(one: Outcome, other: Outcome) -> bool:
    """Whether two programs fail in the same way: the same kind, and in the same words but for numbers."""
    if one.kind != other.kind:
        return False
    if one.kind == "differs":
        # By what differs, which may be seen in fewer steps: the verbs.
        verbs = [set(re.findall(r"^[-+]\d+ #\d+ (\w+):", o.words, re.MULTILINE)) for o in (one, other)]
        return bool(verbs[1]) and verbs[1] <= verbs[0]
    last = [re.sub(r"[0-9a-f]*\d[0-9a-f]*", "N", o.words.strip().splitlines()[-1])[:60] for o in (one, other)]
    return last[0] == last[1]


def main(folder: str, player: str, what: str, tries: int = 2) -> None:
    """Shrink the program of a seed or a script, and print it."""
    seed = int(what) if what.isdecimal() else 0
    steps = generate(seed) if what.isdecimal() else [Step.read(line) for line in Path(what).read_text().splitlines()]
    chance = random.Random(seed)
    playing.PATIENCE = HANGS
    place = Path(folder) / "shrink"

    def play(some: Sequence[Step], with_seed: int) -> Outcome:
        return Play(Path(player), place, {0: some}, with_seed).compare()[0]

    seeds = [seed] + [chance.randrange(1 << 20) for _ in range(tries - 1)]
    first = next((o for s in seeds if (o := play(steps, s)).kind not in ("same", "refused")), None)
    if first is None:
        print("it does not fail")
        return
    print(f"# {first.kind}", file=sys.stderr)
    left = shrink(steps, lambda some: any(alike(first, play(some, s)) for s in seeds))
    print(write(left), end="")
    for one in seeds:
        if (again := play(left, one)).kind == first.kind:
            print("\n".join(f"# {line}" for line in again.words.strip().splitlines()[-12:]))
            break


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))  # type: ignore[arg-type]
