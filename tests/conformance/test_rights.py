"""Root opens for a user's tree what that user may open, and nothing else."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from tests.conformance import observe
from tests.conformance.building import PROGRAMS, PYTHON
from tests.conformance.harness import PATIENCE, Actor, EngineError, Stage, Subject, alive, wait_until

HOLDER = Path(__file__).parent / "edges" / "holder.py"


def listing(folder: Path) -> list[tuple[str, int, int, int]]:
    """What lies in a directory, with what a careless restore would change of it."""
    found = [(path, path.lstat()) for path in [folder, *sorted(folder.iterdir())]]
    return [(path.name, one.st_mode, one.st_ino, one.st_ctime_ns) for path, one in found]


def wakes(stage: Stage, root: Actor, subject: Subject, snapshot: str, store: Path) -> None:
    """Root can wake the user's tree, and the program is content."""
    talk, pid = stage.driver(root).restore(snapshot, store)
    with closing(talk):
        subject.killed, subject.process, subject.top = True, None, pid
        subject.go()
        subject.judged()
        assert talk.next(PATIENCE)["status"] == 0
    wait_until(lambda: not alive(pid), "the end of the job's process")


def test_moved_sockets(stage: Stage, user: Actor, root: Actor) -> None:
    """Root puts the sockets of a user's tree where they were, as that user would."""
    with stage.play(PROGRAMS / "sockets" / "unix_moved.py", user) as subject:
        subject.wait_ready()
        pids = list(observe.descendants(subject.root()))
        store = stage.driver(root).directory / "store-moved-sockets"
        snapshot = stage.driver(root).checkpoint(subject.root(), store, "kill")
        subject.wait_gone(pids)
        wakes(stage, root, subject, snapshot, store)


@pytest.mark.parametrize("way", ["link", "directory of root's"])
@pytest.mark.parametrize(
    "kind",
    ["file", "bundled file", "mapped file", "directory", "name", "current directory", "named pipe", "socket", "watch"],
)
def test_no_other_users_files(stage: Stage, user: Actor, root: Actor, kind: str, way: str) -> None:
    """A user's directory became a link to one of root's, or is root's now: what lay in it is not opened there."""
    with stage.play([PYTHON, str(HOLDER), kind], user) as subject:
        subject.wait_ready()
        pids = list(observe.descendants(subject.root()))
        store = stage.driver(root).directory / f"store-{kind}-{way}"
        snapshot = stage.driver(root).checkpoint(subject.root(), store, "kill", bundle_files=kind == "bundled file")
        subject.wait_gone(pids)
        place, secret = subject.directory / "d", stage.driver(root).directory / f"secret-{kind}-{way}"
        place.rename(subject.directory / "moved")
        secret.mkdir()
        if kind != "bundled file":
            (secret / "a").write_text("for root only!")
            (secret / "a").chmod(0o600)
        os.mkfifo(secret / "pipe", 0o600)
        secret.chmod(0o700)
        if way == "link":
            place.symlink_to(secret)
        else:
            secret = secret.rename(place)
        before = listing(secret)
        with pytest.raises(EngineError) as caught:
            talk, _ = stage.driver(root).restore(snapshot, store)
            talk.close()
        assert caught.value.kind == "RestoreRefused", caught.value
        assert listing(secret) == before
        if way == "link":
            place.unlink()
        else:
            place.rename(subject.directory / "taken")
        (subject.directory / "moved").rename(place)
        wakes(stage, root, subject, snapshot, store)
