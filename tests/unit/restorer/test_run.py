"""`torpor.run`: a command is saved, or it is said that it is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import torpor
from torpor import processes
from torpor.cli.run import _teller
from torpor.errors import NotFound
from torpor.restorer.run import _KeptSnapshots, become
from torpor.store import SnapshotInfo, Store

TOLD = """
import _thread, sys
from pathlib import Path
from unittest import mock
import torpor, torpor.dump.checkpoint
module = sys.modules["torpor.dump.checkpoint"]
told = []
def failed(error):
    told.append(str(error))
    Path("told").touch()
def fails(*_, **__):
    raise RuntimeError("no luck")
with mock.patch.object(*{patch}, fails):
    code = torpor.run(["sh", "-c", "until test -e told; do sleep 0.01; done; exit 3"], every=0.01, failed=failed)
assert code == 3, code
assert len(told) == 2 and told[0] == told[1] and told[0].startswith("it runs on, but is not saved any more: "), told
"""


@pytest.mark.parametrize("patch", ['(module, "checkpoint")', '(_thread, "start_new_thread")'])
def test_a_saver_that_dies_is_heard(tmp_path: Path, patch: str) -> None:
    """At once, as the command waits for it, and once more at its end; the command's exit code stands."""
    words = TOLD.replace("{patch}", patch)
    done = subprocess.run(
        [sys.executable, "-c", words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf"), float("-inf"), 1e300, 1e9])
def test_a_time_that_is_none_is_refused(tmp_path: Path, every: float) -> None:
    with pytest.raises(ValueError, match="a number of seconds"):
        torpor.run(["touch", str(tmp_path / "begun")], every=every)
    assert not (tmp_path / "begun").exists()


def test_what_a_wake_will_not_bring_back_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    tell = _teller(2)
    for notices in (("a connection is lost",), (), ("a connection is lost", "a line is \x1b[31mlost")):
        tell(SnapshotInfo("20261123-000000000-aaaaaa", "", notices=notices))
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "torpor: note: saved, but a connection is lost",
        "torpor: note: of the snapshots of this run only the newest 2 stay (--keep-last)",
        "torpor: note: saved, but a line is \\x1b[31mlost",
    ]


def test_only_the_newest_of_its_own_are_kept(tmp_path: Path) -> None:
    """Another one's stay, and one that is pinned; one that is gone already is no error."""
    store = Store(tmp_path / "store")

    def save() -> SnapshotInfo:
        with store.writer("tree") as writer:
            return writer.publish(b"", "a test")

    other, *own = [save() for _ in range(6)]
    store.pin(own[1].id)
    store.remove(own[2].id)
    kept = _KeptSnapshots(store, 2)
    for info in own:
        kept.add(info)
    assert store.ids() == [other.id, own[1].id, own[3].id, own[4].id]


def test_a_number_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        torpor.run(["true"], keep=0)


LEAVES = "(sleep 1000 & echo $!) | cat; exec sleep 1000"


@pytest.mark.parametrize("leads", [True, False])
def test_a_command_below_an_init_that_another_program_has_started(tmp_path: Path, leads: bool) -> None:
    """What it leaves in the background is init's, which has no more of its descriptors than 0, 1 and 2."""
    command = torpor.below_init(["sh", "-c", LEAVES], os.environ)
    with (
        open(tmp_path / "held", "w") as held,
        subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=leads, pass_fds=[held.fileno()]) as init,
    ):
        assert init.stdout
        left = int(init.stdout.readline())
        (root,) = set(processes.children(init.pid)) - {left}
        assert processes.parent(left) == init.pid
        assert (os.getsid(root) == root) == leads
        assert sorted(os.listdir(f"/proc/{init.pid}/fd")) == ["0", "1", "2"]
        assert str(held.fileno()) in os.listdir(f"/proc/{root}/fd")
        os.kill(root, signal.SIGTERM)
        os.kill(left, signal.SIGKILL)
        assert init.wait(30) == -signal.SIGTERM


def test_a_command_below_an_init_is_searched_where_it_will_be(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "mine").chmod(0o700)
    assert subprocess.run(torpor.below_init(["mine"], {"PATH": str(tmp_path)}), check=False).returncode == 7
    with pytest.raises(NotFound, match="no program 'mine'"):
        torpor.below_init(["mine"], {"PATH": "/nowhere"})


def test_a_command_in_the_place_of_torpor_run_is_as_without_it(tmp_path: Path) -> None:
    """As below a supervisor. Python itself ignores SIGPIPE and SIGXFSZ, and sets LC_CTYPE."""
    script = tmp_path / "script"
    script.write_text("grep SigIgn /proc/self/status; env; echo $*\n")
    script.chmod(0o755)
    words = f"from torpor.restorer.run import become; become(['{script}', 'a', 'b c'])"
    env = {"PATH": os.environ["PATH"], "LC_ALL": "", "LANG": "C"}
    told = [
        subprocess.check_output(command, env=env, cwd=tmp_path, text=True)
        for command in (["sh", str(script), "a", "b c"], [sys.executable, "-c", words])
    ]
    assert told[0] == told[1]
    with pytest.raises(NotFound):
        become(["/nonexistent"])
