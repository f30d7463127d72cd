"""Which ids a capsule has: lines of /etc/subgid, the maps made of them, and helpers that fail in every way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.users import User, granting
from torpor.restorer import id_maps

LINES = """
alice:100000:65536
bob:200000:65536
alice:27:1

1000:100:2
alice:many:1
alice:5
alice:-5:1
alice:4294967290:100
alice:0:3
alice:9:0
"""


def test_lines_of_an_owner_by_name_or_number() -> None:
    ranges = [range(100000, 165536), range(27, 28), range(100, 102), range(4294967290, 4294967295)]
    assert list(id_maps.parse(LINES, {"alice", "1000"})) == [*ranges, range(3)]
    assert list(id_maps.parse(LINES, {"alice", "1000"}, 1)) == [*ranges, range(1, 3)]
    assert list(id_maps.parse(LINES, {"carol"})) == []


def test_a_map_has_no_id_twice() -> None:
    granted = [range(27, 28), range(30, 40), range(35, 50), range(50, 52), range(36, 37)]
    assert id_maps.arrange(1000, granted) == [range(27, 28), range(30, 52), range(1000, 1001)]
    assert id_maps.arrange(36, granted) == [range(27, 28), range(30, 52)]
    # The helpers take the own id alone for granted, and no range with it.
    assert id_maps.arrange(52, granted) == [range(27, 28), range(30, 52), range(52, 53)]


def test_a_map_that_would_be_too_long_has_what_is_needed() -> None:
    many = [range(start, start + 1) for start in range(0, 2000, 2)]
    ranges = id_maps.arrange(2001, many, {1990, 1992, 7})
    assert len(ranges) == id_maps.MOST
    assert ranges[-3:] == [range(1990, 1991), range(1992, 1993), range(2001, 2002)]
    assert len("".join(f"{2**32 - 2} {2**32 - 2} {2**32 - 2}\n" for _ in ranges)) < 4096


def test_groups_that_are_not_there() -> None:
    ids = id_maps.Mapped((range(1000, 1001),), (range(5), range(1000, 1001)))
    assert ids.without([3, 27, 1000, 100]) == [27, 100]


# What a capsule has that an ordinary user makes.

GROUP = 60
ACTOR = """
import json, sys
from pathlib import Path
from torpor.restorer import capsule, id_maps
from torpor.restorer.capsule import Namespaces, Setting
id_maps.SECONDS = float(sys.argv[1])
id_maps.GRANTS = {"uid": Path("/nowhere"), "gid": Path(sys.argv[2])}
with capsule.prepare(Setting(Namespaces.USER | Namespaces.MOUNT | Namespaces.PID), 0, trace=False) as waiting:
    own = Path(f"/proc/{waiting.pid}")
    maps = {name: own.joinpath(name).read_text().split() for name in ("uid_map", "gid_map", "setgroups")}
    print(json.dumps([maps, waiting.ids.without([int(sys.argv[3])]), waiting.ids.why]))
"""


@dataclass
class Made:
    """What a capsule was like."""

    uids: list[str]
    gids: list[str]
    setgroups: str
    missing: list[int]
    why: str


def make(user: User, *, subgid: Path | None = None, path: str = "", seconds: float = 30) -> Made:
    """A capsule of a user to whom a line grants a group.

    Args:
        user: the user.
        subgid: what the helpers find as /etc/subgid. It takes root.
        path: PATH, if it is not to be the usual one.
        seconds: what the helpers may take.
    """
    grants = user.tmp / "granted"
    grants.write_text(f"{user.name}:{GROUP}:1\n")
    command = [sys.executable, "-c", ACTOR, str(seconds), str(grants), str(GROUP)]
    if os.geteuid() == 0:
        ids = [f"--reuid={user.uid}", f"--regid={user.gid}", f"--groups={user.gid},{GROUP}"]
        command = [*(granting(subgid) if subgid else []), "/usr/bin/setpriv", *ids, *command]
    env = {**user.env, "PATH": path or user.env["PATH"]}
    done = subprocess.run(
        command, cwd=user.tmp, env=env, capture_output=True, text=True, check=False, timeout=60, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    maps, missing, why = json.loads(done.stdout)
    return Made(maps["uid_map"], maps["gid_map"], maps["setgroups"][0], missing, why)


def own(number: int) -> list[str]:
    return [str(number), str(number), "1"]


def test_a_granted_group_is_there_and_no_group_can_be_left(ordinary_account: User, tmp_path: Path) -> None:
    if os.geteuid() or not shutil.which("newgidmap"):
        pytest.skip("it takes root to grant a group, and newgidmap (Debian: uidmap)")
    user = ordinary_account
    subgid = tmp_path / "subgid"
    subgid.write_text(f"{user.name}:{GROUP}:1\n")
    made = make(user, subgid=subgid)
    assert made == Made(own(user.uid), [*own(GROUP), *own(user.gid)], "deny", [], "")


def test_a_line_that_newgidmap_does_not_find(ordinary_account: User, tmp_path: Path) -> None:
    if os.geteuid() or not shutil.which("newgidmap"):
        pytest.skip("it takes root to grant nothing, and newgidmap (Debian: uidmap)")
    user = ordinary_account
    subgid = tmp_path / "subgid"
    subgid.write_text(f"{user.name}:{GROUP + 1}:1\n")
    made = make(user, subgid=subgid)
    assert made.why.startswith("newgidmap: gid range [60-61) -> [60-61) not allowed")
    assert made == Made(own(user.uid), own(user.gid), "deny", [GROUP], made.why)


HELPERS = {
    "none": ("", "newgidmap: No such file or directory"),
    "one that says no": ("#!/bin/sh\necho not  here >&2\nexit 3", "newgidmap: not here"),
    "one that says nothing": ("#!/bin/sh\nexit 3", "newgidmap: it ended with 3"),
    "one that says too much": ("#!/bin/sh\nPATH=/usr/bin; yes | head -c 1000000 >&2; exit 1", "newgidmap: y y"),
    "one that is killed": ("#!/bin/sh\nkill -9 $$", "newgidmap: it ended with -9"),
    "one that does nothing": ("#!/bin/sh\nexit 0", ""),
    "no program": ("nonsense", "newgidmap: Exec format error"),
    "one that maps another id": (
        "#!/bin/sh\necho 0 $(/usr/bin/id -g) 1 >/proc/$1/gid_map",
        "newuidmap or newgidmap has mapped wrong ids",
    ),
}


@pytest.mark.parametrize("name", HELPERS)
def test_without_a_helper_the_own_ids_are_there(ordinary_account: User, name: str) -> None:
    user = ordinary_account
    text, why = HELPERS[name]
    helpers = user.tmp / "helpers"
    helpers.mkdir()
    if text:
        (helpers / "newgidmap").write_text(text)
        (helpers / "newgidmap").chmod(0o755)
    made = make(user, path=str(helpers))
    assert made.why.startswith(why) if why else not made.why
    assert len(made.why) < 500
    assert made == Made(own(user.uid), own(user.gid), "deny", [GROUP], made.why)


def test_a_helper_that_hangs_is_ended(ordinary_account: User) -> None:
    """With what it has started: the test finds what is left of it."""
    user = ordinary_account
    helpers = user.tmp / "helpers"
    helpers.mkdir()
    (helpers / "newgidmap").write_text("#!/bin/sh\n/bin/sleep 1000; exit")
    (helpers / "newgidmap").chmod(0o755)
    made = make(user, path=str(helpers), seconds=0.2)
    assert made == Made(own(user.uid), own(user.gid), "deny", [GROUP], "newgidmap: it took longer than 0.2 s")


def test_a_group_that_is_not_the_accounts(ordinary_account: User, tmp_path: Path) -> None:
    """As after newgrp(1): newgidmap then does nothing for its user, who keeps the group."""
    if os.geteuid() or not shutil.which("newgidmap"):
        pytest.skip("it takes root to be of another group, and newgidmap (Debian: uidmap)")
    subgid = tmp_path / "subgid"
    subgid.write_text(f"{ordinary_account.name}:{GROUP}:1\n")
    user = replace(ordinary_account, gid=GROUP + 1)
    made = make(user, subgid=subgid)
    assert "is owned by a different user" in made.why
    assert made == Made(own(user.uid), own(GROUP + 1), "deny", [GROUP], made.why)
