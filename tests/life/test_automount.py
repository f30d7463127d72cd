"""A job that lives in a directory that its host mounts on demand, and has unmounted while the job was away."""

from __future__ import annotations

import os

import pytest

from tests.conformance.harness import wait_until
from tests.life import automount
from tests.life.life import PATIENCE, Life
from tests.users import BIN, User

# In the directory, and with it and a file in it open; once told so, it says what it finds there.
JOB = """
import os, sys, time
out, place = sys.argv[1:]
os.chdir(place)
directory, file = os.open(place, os.O_RDONLY), open("file")
by_name = os.open(place, os.O_PATH)
while not os.path.exists(f"{out}/tell"):
    open(f"{out}/beat", "w").close()
    time.sleep(0.01)
with open(f"{out}/told", "w") as told:
    same = len({os.fstat(fd).st_dev for fd in (directory, by_name, file.fileno())} | {os.stat(".").st_dev})
    print(os.getcwd() == place, os.listdir(), os.listdir(directory), os.listdir(f"/proc/self/fd/{by_name}"), file=told)
    print(file.read(), os.path.ismount(place), same, end="", file=told)
"""


@pytest.mark.parametrize("way", ["native", "capsule"])
def test_it_is_mounted_again(ordinary_account: User, way: str) -> None:
    if os.geteuid() or not automount.is_possible():
        pytest.skip("it takes root and autofs to mount on demand")
    out, place = (ordinary_account.tmp / name for name in ("out", "host"))
    for directory in (out, place):
        directory.mkdir()
    ordinary_account.own(out)
    with automount.host(place) as host:
        life = Life(ordinary_account, [BIN / "python", "-c", JOB, out, place / "auto/data"], out, run=True)
        try:
            wait_until((out / "beat").exists, "it runs")
            life.wake(way, meanwhile=host.expire)
            (out / "tell").touch()
            assert life.end(PATIENCE) == 0, life.said
        finally:
            life.kill()
    assert (out / "told").read_text() == "True ['file'] ['file'] ['file']\nwhat is mounted\n True 1"
