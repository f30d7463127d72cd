"""`make fuzz SEED=... COUNT=...`: programs from a seed on, as an ordinary user and as root, on all processors.

Each part runs in namespaces of its own where root starts it (tests/apart). What fails is told with its seed; make it
smaller by `python -m tests.fuzz.shrink`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.play import BESIDE, GOOD, Outcome
from tests.users import ordinary_user

HERE = Path(__file__).parent
PART = 25 * BESIDE


def build() -> Path:
    """The player, compiled: in the checkout, which every user and every part can read."""
    player = HERE.parents[1] / "build" / "player"
    player.parent.mkdir(exist_ok=True)
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    # Test workers build it at the same time, and in PID namespaces of their own they have the same PIDs.
    with TemporaryDirectory(prefix="player-", dir=player.parent) as folder:
        draft = Path(folder, player.name)
        subprocess.run(["gcc", *flags, *map(str, sorted((HERE / "player").glob("*.c"))), "-o", draft], check=True)
        draft.rename(player)
    return player


def part(player: Path, seed: int, count: int, uid: int) -> Iterator[Outcome]:
    """Play some programs as a user. A seed on which the player itself breaks off is an outcome, too."""
    words = [sys.executable, "-m", "tests.fuzz.play", "/tmp/torpor-fuzz", str(player), str(seed), str(count)]
    if uid != os.geteuid():
        words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *words]
    ran = subprocess.run([HERE.parent / "apart", *words], capture_output=True, text=True, check=False)
    told = [Outcome(**json.loads(line)) for line in ran.stdout.splitlines()]
    yield from told
    if len(told) < count:
        last = seed + len(told)
        yield Outcome(last, "breaks off", ran.stderr.strip()[-1000:])
        if len(told) + 1 < count:
            yield from part(player, last + 1, seed + count - last - 1, uid)


def main(seed: int, count: int) -> int:
    """Play `count` programs, every fourth part of them as root; the number of those that failed."""
    kinds: Counter[str] = Counter()
    saves = wakes = trips = 0
    player = build()
    with ordinary_user() as user:
        starts = range(seed, seed + count, PART)
        uids = [0 if not os.geteuid() and number % 4 == 3 else user.pw_uid for number in range(len(starts))]
        # A program waits for two thirds of its time: 1000 took 85 s this way, and 4:16 with one part for a processor.
        with ThreadPoolExecutor(3 * (os.cpu_count() or 1)) as pool:
            sizes = [min(PART, seed + count - start) for start in starts]
            for uid, outcomes in zip(
                uids, pool.map(lambda *of: list(part(player, *of)), starts, sizes, uids), strict=True
            ):
                for outcome in outcomes:
                    kinds[outcome.kind] += 1
                    saves, wakes, trips = saves + outcome.saves, wakes + outcome.wakes, trips + outcome.trips
                    if outcome.kind not in GOOD:
                        who = "root" if uid == 0 else "a user"
                        print(f"seed {outcome.seed}, as {who}: {outcome.words[-2000:]}\n", flush=True)
    told = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    print(f"{count} programs from seed {seed}: {told}; saved {saves} times, woken {wakes} times,", end=" ")
    print(f"saved again and compared {trips} times")
    return sum(number for kind, number in kinds.items() if kind not in GOOD)


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1]), int(sys.argv[2])), 1))
