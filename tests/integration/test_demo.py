"""`make demo`: an ordinary user's story, which root has such a user tell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.users import BIN, User

ROOT = Path(__file__).parents[2]


def test_the_demo_holds_all_it_claims(request: pytest.FixtureRequest) -> None:
    user: User = request.getfixturevalue("ordinary_account" if os.geteuid() else "root_account")
    told = user.run([BIN / "python", "-m", "notebooks.demo"], cwd=ROOT, timeout=170)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("    true: ") >= 9
    assert "NOT true" not in told.stdout
    # The demo's own connection to the kernel, of which every save tells.
    assert [line for line in told.stderr.splitlines() if "TCP connections" not in line] == []
