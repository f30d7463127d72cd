"""What `make` says where something is missing, and where it works when others cannot read the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.users import User

ROOT = Path(__file__).parents[2]
# An interpreter as a bare Debian has it: no ensurepip, no headers.
BARE = """#!/bin/sh
case "$*" in
    *ensurepip*) exit 1 ;;
    *sysconfig*) echo /nowhere ;;
    *) exit 0 ;;
esac
"""


def test_a_user_is_told_in_one_line_what_is_missing(ordinary_account: User) -> None:
    python = ordinary_account.tmp / "python3"
    python.write_text(BARE)
    python.chmod(0o755)
    done = ordinary_account.run([ROOT / ".ci/needs"], env={"PYTHON": str(python)})
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("missing: python3-venv python3-dev (Debian, Ubuntu: sudo apt-get install python3-venv ")


def test_nothing_is_said_where_nothing_is_missing(ordinary_account: User) -> None:
    done = ordinary_account.run([ROOT / ".ci/needs"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_checkout_that_others_cannot_read_is_copied(root_account: User) -> None:
    checkout = root_account.tmp / "checkout"
    checkout.mkdir(mode=0o700)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "engine/torpor").mkdir(parents=True)
    (checkout / "engine/torpor/__init__.py").touch(mode=0o600)
    (checkout / "gone").touch()

    def elsewhere(*arguments: str) -> str:
        return subprocess.check_output([ROOT / ".ci/elsewhere", *arguments], cwd=checkout, text=True).strip()

    copy = Path(elsewhere())
    try:
        assert copy.parent == Path("/var/cache/torpor-checkout")
        assert str(copy) in elsewhere("copy")
        assert (copy / "engine/torpor/__init__.py").stat().st_mode & 0o777 == 0o644
        (copy / ".venv").mkdir()
        (checkout / "gone").unlink()
        elsewhere("copy")
        assert (copy / ".venv").exists()  # kept, so that it is not made anew each time
        assert not (copy / "gone").exists()
    finally:
        shutil.rmtree(copy)
        with suppress(OSError):  # other checkouts have their copies there
            copy.parent.rmdir()
    checkout.chmod(0o755)
    for path in checkout.rglob("*"):
        path.chmod(0o755)
    root_account.tmp.chmod(0o755)
    assert elsewhere() == ""


def test_an_ordinary_user_works_where_they_are(ordinary_account: User) -> None:
    done = ordinary_account.run([ROOT / ".ci/elsewhere"])
    assert (done.returncode, done.stdout) == (0, "")
    assert os.access(ROOT / ".ci/run", os.X_OK)
