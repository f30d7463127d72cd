"""Files that are kept with a checkpoint: equal ones are one file, and a full disk is an error with advice."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from torpor.errors import StoreError
from torpor_jupyter.data.attachments import Attachments

ONE, TWO = "20260101-000000000-aaaaaa", "20260102-000000000-bbbbbb"


@pytest.fixture
def notebooks(tmp_path: Path) -> Attachments:
    return Attachments(tmp_path / "notebooks", ".ipynb", "the notebook")


def inode(attachments: Attachments, id: str) -> int:
    return (attachments.folder / f"{id}.ipynb").stat().st_ino


def test_what_was_kept_is_there_until_it_is_removed(notebooks: Attachments) -> None:
    assert notebooks.kept(ONE) == ""
    notebooks.keep(ONE, "text")
    assert notebooks.kept(ONE) == "text"
    assert (notebooks.folder / f"{ONE}.ipynb").stat().st_mode & 0o777 == 0o600
    notebooks.remove(ONE)
    notebooks.remove(ONE)
    assert notebooks.kept(ONE) == ""


def test_the_same_text_is_one_file_and_each_name_outlives_the_other(notebooks: Attachments) -> None:
    notebooks.keep(ONE, "text")
    notebooks.keep(TWO, "text", like=ONE)
    assert inode(notebooks, ONE) == inode(notebooks, TWO)
    notebooks.remove(ONE)
    assert notebooks.kept(TWO) == "text"


def test_another_text_does_not_change_that_of_the_parent(notebooks: Attachments) -> None:
    notebooks.keep(ONE, "text")
    notebooks.keep(TWO, "text", like=ONE)
    notebooks.keep(TWO, "other", like=ONE)
    assert (notebooks.kept(ONE), notebooks.kept(TWO)) == ("text", "other")


def test_a_file_system_without_hard_links(notebooks: Attachments, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    notebooks.keep(ONE, "text")
    monkeypatch.setattr(os, "link", link)
    notebooks.keep(TWO, "text", like=ONE)
    assert notebooks.kept(TWO) == "text"
    assert inode(notebooks, ONE) != inode(notebooks, TWO)


def test_what_cannot_be_written_or_read_says_what_it_is(notebooks: Attachments) -> None:
    notebooks.folder.write_text("a file in the place of the folder")
    with pytest.raises(StoreError, match="the notebook") as caught:
        notebooks.keep(ONE, "text")
    assert "make room" in caught.value.advice
    notebooks.folder.unlink()
    notebooks.keep(ONE, "text")
    (notebooks.folder / f"{ONE}.ipynb").write_bytes(b"\xff")
    with pytest.raises(StoreError, match="cannot read the notebook"):
        notebooks.kept(ONE)
