"""Transactions of SQLite in a tree that runs on."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

import torpor
from tests.unit.objects.fds.descriptor_tree import FdReference, holder
from torpor.dump import patience
from torpor.image import reading
from torpor.objects.fds import databases, descriptors
from torpor.store import Store

PROGRAM = """
import sqlite3
base = sqlite3.connect("base", isolation_level=None)
BEFORE
ready()
wait()
AFTER
ready()
wait()
"""
BEGIN = 'base.execute("create table if not exists t(a)"); base.execute("begin immediate")'


def program(before: str, after: str = "") -> str:
    return PROGRAM.replace("BEFORE", before).replace("AFTER", after)


def found(tree: FdReference) -> list[str]:
    tree.stop()
    return [reason.subject for reason in databases.transactions(descriptors.grab(tree.pids))]


@pytest.mark.parametrize(
    ("before", "under_way"),
    [
        (BEGIN, True),
        ('base.execute("begin exclusive")', True),  # of a database that is empty still
        ('base.executescript("create table t(a); begin"); base.execute("select * from t").fetchall()', True),
        ('base.execute("create table t(a)")', False),
        ('base.executescript("pragma journal_mode = wal; create table t(a)")', False),  # locked as long as it is open
        ("f = open('base', 'wb'); f.write(bytes(100)); f.flush(); fcntl.lockf(f, fcntl.LOCK_EX)", False),
        ("f = open('base', 'wb'); f.write(b'SQLite format 3\\0'); f.flush(); fcntl.lockf(f, 2, 1, 1 << 30)", True),
        ("f = open('b', 'wb'); f.write(bytes(9)); f.flush(); fcntl.lockf(f, fcntl.LOCK_EX, 1, 0x40000001)", False),
    ],
)
def test_a_transaction_is_known_by_its_locks(tmp_path: Path, before: str, under_way: bool) -> None:
    with holder(program(before), cwd=tmp_path) as tree:
        tree.ready()
        assert [subject.endswith(f"({tmp_path}/base)") for subject in found(tree)] == [True] * under_way


def test_a_save_waits_until_the_transaction_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the snapshot can be woken whatever the program does to the database afterwards."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            tree.go_on("commit")

    with holder(program(BEGIN, 'base.execute("commit")'), cwd=tmp_path) as tree:
        tree.ready()
        monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=sleep))
        saved = torpor.checkpoint(tree.process.pid, store=tmp_path / "store")
        assert waits and not any("transaction" in notice for notice in saved.notices)
        tree.end()
    change(tmp_path / "base")
    assert not reasons(tmp_path, saved.id)


def test_of_one_that_does_not_end_the_snapshot_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PAUSES", ())
    monkeypatch.setattr(patience, "LONG_PAUSES", ())
    with holder(program(BEGIN), cwd=tmp_path) as tree:
        tree.ready()
        saved = torpor.checkpoint(tree.process.pid, store=tmp_path / "store")
        (said,) = (notice for notice in saved.notices if "transaction" in notice)
        assert said.endswith("can be woken only as long as the file is as it is now") and "base" in said
        tree.end()
    change(tmp_path / "base")
    assert "base: it was changed since" in reasons(tmp_path, saved.id)


def change(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("insert into t values(1)")
    base.close()


def reasons(folder: Path, snapshot: str) -> str:
    """Why the files of a snapshot do not suit it."""
    with Store(folder / "store").open(snapshot) as reader:
        return "\n".join(map(str, descriptors.validate(reading.read(reader))))
