"""`make demo`: as root, who acts as an ordinary user, and as that user."""

from __future__ import annotations

from pathlib import Path

from tests.users import BIN, User

ROOT = Path(__file__).parents[2]


def test_the_demo_holds_all_it_claims(as_user: User) -> None:
    told = as_user.run([BIN / "python", "-m", "notebooks.demo"], cwd=ROOT, timeout=120)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("    true: ") >= 9
    assert "NOT true" not in told.stdout
    # The demo's own connection to the kernel, of which every save tells.
    assert [line for line in told.stderr.splitlines() if "TCP connections" not in line] == []
