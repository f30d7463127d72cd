"""Notebook files that are kept with checkpoints, so that both can be brought back together.

They lie beside the records, in ``<store>/jupyter/notebooks/<snapshot id>.ipynb``, private to the user; equal ones of
two checkpoints are one file with two names. The notebooks themselves are read and written by Jupyter's contents
manager only, which knows where they are and who may have them.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from jupyter_core.utils import ensure_async
from tornado.web import HTTPError

from torpor.errors import NotFound, StoreError
from torpor.jupyter_ext.records import SNAPSHOT_ID

SUFFIX = ".ipynb"


class Notebooks:
    """The notebooks of a server, and those that are kept."""

    def __init__(self, contents: Any, folder: str | os.PathLike[str]) -> None:
        """Name the server's contents manager, and the folder of what is kept. Nothing is read yet."""
        self.contents, self.folder = contents, Path(folder)

    async def read(self, path: str | None) -> str:
        """The notebook at a path of the contents API, as JSON; empty when there is none, or none that can be read."""
        if path is None:
            return ""
        try:
            model = await ensure_async(self.contents.get(path, content=True, type="notebook"))
        except HTTPError:
            return ""
        return json.dumps(model["content"])

    async def write(self, path: str, text: str) -> None:
        """Write a notebook, with the trust that its cells had. Raises HTTPError as the contents manager does."""
        await ensure_async(
            self.contents.save({"type": "notebook", "format": "json", "content": json.loads(text)}, path)
        )

    async def exists(self, path: str) -> bool:
        """Whether something is there. Raises HTTPError for a path that this server does not serve."""
        return bool(await ensure_async(self.contents.exists(path)))

    async def beside(self, path: str, word: str) -> str:
        """A path beside another one that nothing has yet: ``work-fork1.ipynb``."""
        stem = path.removesuffix(SUFFIX)
        for number in itertools.count(1):
            free = f"{stem}-{word}{number}{SUFFIX}"
            if not await self.exists(free):
                return free
        raise AssertionError("there are always more numbers")

    def keep(self, id: str, text: str, *, like: str = "") -> None:
        """Keep a notebook with a checkpoint; `like` is another checkpoint that may have the same. Raises StoreError."""
        path = self._path(id)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if like and self.kept(like) == text:
                with suppress(OSError):  # a file system without hard links
                    os.link(self._path(like), path)
                    return
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(fd, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise StoreError(
                f"cannot keep the notebook in {path}: {error.strerror}",
                advice="make room, or make the folder writable",
            ) from error

    def kept(self, id: str) -> str:
        """The notebook that is kept with a checkpoint; empty when there is none. Raises StoreError."""
        path = self._path(id)
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read the notebook in {path}: {error}") from error

    def remove(self, id: str) -> None:
        """Forget the notebook of a checkpoint, if there is one."""
        with suppress(FileNotFoundError):
            self._path(id).unlink()

    def _path(self, id: str) -> Path:
        if not SNAPSHOT_ID.fullmatch(id):
            raise NotFound(f"{id!r} is no id")
        return self.folder / f"{id}{SUFFIX}"


def empty(kernel_name: str) -> str:
    """A notebook without cells."""
    metadata = {"kernelspec": {"name": kernel_name, "display_name": kernel_name}}
    return json.dumps({"cells": [], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})
