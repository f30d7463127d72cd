"""`make inject`: a fault in each situation, as an ordinary user and as root; or parts of all the faults there are.

Each worker runs in namespaces of its own where root starts it (tests/apart).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from tests.inject.part import ACTS
from tests.users import ordinary_user

APART = Path(__file__).parents[1] / "apart"
PARTS = {"situations": 8, "every": 40}
"""That the faults of an act and a user are put in: each has a victim and a driver of its own."""


def part(act: str, uid: int, number: int, choice: str) -> tuple[Counter[str], int]:
    """What was done in one part, and how many faults did harm: each is told."""
    words = [sys.executable, "-m", "tests.inject.part", act, str(uid), str(number), str(PARTS[choice]), choice]
    done: Counter[str] = Counter()
    failures = 0
    ran = subprocess.run([APART, *words], capture_output=True, text=True, check=False)
    for line in ran.stdout.splitlines():
        told = json.loads(line)
        done.update(told.get("done", {}))
        if "failure" in told:
            failures += 1
            print(f"{act} as uid {uid}, part {number}: {told['failure']}\n", flush=True)
    if ran.returncode:
        failures += 1
        print(f"{act} as uid {uid}, part {number} broke off: {ran.stderr[-2000:]}\n", flush=True)
    print(f"{act} as uid {uid}, part {number}: {in_words(done)}", flush=True)
    return done, failures


def in_words(done: Counter[str]) -> str:
    """How many of what."""
    return ", ".join(f"{what}: {count}" for what, count in sorted(done.items()))


def main(choice: str, first: int, last: int) -> int:
    """Put the faults of the parts from `first` up to `last`; the number of those that did harm."""
    failed = 0
    with ordinary_user() as user:
        uids = [user.pw_uid] if os.geteuid() else [user.pw_uid, 0]
        each = list(product(range(first, last), uids, ACTS))
        with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
            parts = pool.map(lambda which: part(which[2], which[1], which[0], choice), each)
            done: dict[tuple[str, int], Counter[str]] = {}
            for (_, uid, act), (counted, failures) in zip(each, parts, strict=True):
                done.setdefault((act, uid), Counter()).update(counted)
                failed += failures
    for (act, uid), counted in done.items():
        print(f"{act} as uid {uid}: {in_words(counted)}")
    print(f"{failed} faults did harm")
    return failed


if __name__ == "__main__":
    asked = "every" if sys.argv[1:] else "situations"
    first, last = map(int, sys.argv[1:]) if sys.argv[1:] else (0, PARTS[asked])
    sys.exit(min(main(asked, first, last), 1))
