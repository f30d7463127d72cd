"""`python -m tests.life [--root] [--native] [--wakes N] -- CMD...`: does a command give the same in each of its lives?

Undisturbed, as a job that is run, and as one that is killed and woken once, and N times: as an ordinary user in a
capsule, or natively with CAP_CHECKPOINT_RESTORE; as root natively. Its output, at the end of which stands its exit
status, must not depend on the time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.life.twins import Lived, differences, live
from tests.users import PROVE, User, ordinary_user


def compare(user: User, command: Sequence[str], wakes: int, *, native: bool) -> bool:
    """Tell how each life went; whether all were alike."""
    alike = True
    twins = [live(user, command, "", float("inf"))]
    way = "native" if native or user.is_root else "capsule"
    for ways in dict.fromkeys(("run", f"run {way}", " ".join(["run", *[way] * wakes]))):
        other = live(user, command, ways, twins[0].seconds)
        if differences(twins, other):
            twins.append(live(user, command, "", float("inf")))
        _tell(other, found := differences(twins, other))
        alike = alike and not found
    return alike


def _tell(other: Lived, found: dict[str, tuple[str, str]]) -> None:
    print(f"{other.ways}: woken {other.woken} times, {other.seconds:.1f} s, {'differs' if found else 'the same'}")
    for reason in dict.fromkeys(other.refusals):
        print(f"  not saved at one moment: {reason}")
    for name, (undisturbed, here) in found.items():
        print(f"  {name}, undisturbed:\n{undisturbed}\n  {name}, here:\n{here}\n{other.said}")


def main() -> int:
    """Read the words of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.life", description=__doc__)
    parser.add_argument("--root", action="store_true", help="as root, natively")
    parser.add_argument("--native", action="store_true", help="as an ordinary user who may choose PIDs, natively")
    parser.add_argument("--wakes", type=int, default=2, help="how often it is woken at most")
    parser.add_argument("command", nargs="+")
    words = parser.parse_args()
    os.environ[PROVE] = "1"
    with ordinary_user() as account:
        tmp = Path(tempfile.mkdtemp(prefix="torpor-life-", dir="/tmp"))
        ids = (os.geteuid(), os.getegid()) if words.root else (account.pw_uid, account.pw_gid)
        user = User("root" if words.root else account.pw_name, *ids, tmp, {})
        try:
            user.own(tmp)
            user.home.mkdir()
            user.own(user.home)
            return 0 if compare(user, words.command, words.wakes, native=words.native) else 1
        finally:
            shutil.rmtree(tmp)


if __name__ == "__main__":
    sys.exit(main())
