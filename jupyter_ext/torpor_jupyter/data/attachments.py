"""The files that are kept with a checkpoint besides its record: the notebook, the list of variables, running cells.

Each kind has a folder in ``<store>/jupyter``, private to the user, with text files named after their snapshots. If a
checkpoint and its parent have the same text, the two names are hard links to one file.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from torpor.errors import NotFound, StoreError
from torpor.store import sync_directory
from torpor_jupyter.data.records import SNAPSHOT_ID, write_private


class Attachments:
    """The folder of one kind of file."""

    def __init__(self, folder: Path, suffix: str, what: str) -> None:
        """Name the folder, the suffix of its files, and (`what`, for messages) their content."""
        self.folder, self.suffix, self.what = folder, suffix, what

    def keep(self, id: str, text: str, *, like: str = "") -> None:
        """Keep a text with a checkpoint. `like` is a checkpoint that may have the same text. Raises StoreError."""
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
        """Remove the file of a checkpoint, if there is one."""
        with suppress(FileNotFoundError):
            self._path(id).unlink()

    def _path(self, id: str) -> Path:
        if not SNAPSHOT_ID.fullmatch(id):
            raise NotFound(f"{id!r} is not a valid id")
        return self.folder / f"{id}{self.suffix}"
