"""What is kept with a checkpoint besides its record: the notebook's file, the list of variables.

Text files named after the snapshot in a folder of their own in ``<store>/jupyter``, private to the user. Equal ones of
a checkpoint and its parent are one file with two names.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from torpor.errors import NotFound, StoreError
from torpor.store import sync_directory
from torpor_jupyter.data.records import SNAPSHOT_ID, write_private


class Attachments:
    """One folder of such files."""

    def __init__(self, folder: Path, suffix: str, what: str) -> None:
        """Name the folder, the suffix of its files, and what they are, for people."""
        self.folder, self.suffix, self.what = folder, suffix, what

    def keep(self, id: str, text: str, *, like: str = "") -> None:
        """Keep a text with a checkpoint; `like` is another checkpoint that may have the same. Raises StoreError."""
        path = self._path(id)
        try:
            if like and self.kept(like) == text:
                with suppress(OSError):  # a file system without hard links
                    os.link(self._path(like), path)
                    sync_directory(self.folder)
                    return
            write_private(path, text)
        except OSError as error:
            raise StoreError(
                f"cannot write {self.what} to {path}: {error.strerror}",
                advice="make room, or make the folder writable",
            ) from error

    def kept(self, id: str) -> str:
        """The text that is kept with a checkpoint; empty when there is none. Raises StoreError."""
        path = self._path(id)
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {self.what} in {path}: {error}") from error

    def remove(self, id: str) -> None:
        """Forget that of a checkpoint, if there is one."""
        with suppress(FileNotFoundError):
            self._path(id).unlink()

    def _path(self, id: str) -> Path:
        if not SNAPSHOT_ID.fullmatch(id):
            raise NotFound(f"{id!r} is not a valid id")
        return self.folder / f"{id}{self.suffix}"
