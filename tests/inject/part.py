"""Some of all faults there are at one act, as one user: `python -m tests.inject.part Saving UID PART PARTS CHOICE`.

A line of JSON for each failure, and one for what was done with each victim. A victim that a fault has harmed is
replaced, and the next fault is put.
"""

from __future__ import annotations

import json
import os
import pwd
import random
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice

from tests.conformance.harness import Actor, Failed, Stage
from tests.inject.faults import Fault
from tests.inject.sweep import RETRIED, Act, Ending, Saving, Waking, faults, playing, situations
from tests.leaks import MARK

ACTS: dict[str, type[Act]] = {act.__name__: act for act in (Saving, Ending, Waking)}


def chosen(calls: list[str], part: int, parts: int, choice: str) -> deque[Fault]:
    """This part's faults, in an order that mixes them all: of "every" fault, or of those of all "situations"."""
    every = list(faults(calls)) if choice == "every" else situations(calls, 0)
    random.Random(0).shuffle(every)
    return deque(every[part::parts])


def taking(left: deque[Fault]) -> Iterator[Fault]:
    """Faults that are to be put; who takes one has put it."""
    while left:
        yield left.popleft()


def strike(act: type[Act], uid: int, part: int, parts: int, choice: str) -> None:
    """Put them."""
    os.environ[MARK] = f"inject-{os.getpid()}"
    account = pwd.getpwuid(uid)
    actor = Actor(account.pw_name, uid, account.pw_gid)
    stage = Stage([actor])
    left: deque[Fault] | None = None
    try:
        while left or left is None:
            try:
                with playing(stage, actor, act) as doing:
                    if left is None:
                        left = chosen(doing.calls(), part, parts, choice)
                    while left:
                        doing.report.done.clear()
                        try:
                            doing.strike(islice(taking(left), RETRIED))
                        finally:
                            print(json.dumps({"done": doing.report.done}), flush=True)
            except (Failed, AssertionError, EOFError) as failure:
                said = stage.driver(actor).log.read_text(errors="replace")[-1000:]
                print(json.dumps({"failure": f"{failure}\n{said}"}), flush=True)
    finally:
        stage.close()


if __name__ == "__main__":
    name, *numbers, choice = sys.argv[1:]
    uid, part, parts = map(int, numbers)
    strike(ACTS[name], uid, part, parts, choice)
