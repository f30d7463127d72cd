"""Notebook files that are kept with checkpoints, so that both can be brought back together.

They are read and written only by Jupyter's contents manager, which knows where they are and who may access them.
"""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

from jupyter_core.utils import ensure_async
from tornado.web import HTTPError

from torpor.errors import TorporError

SUFFIX = ".ipynb"


class NotServed(TorporError):
    """Jupyter's contents manager does not let this server read or write a notebook."""

    exit_code = 10

    @classmethod
    def of(cls, path: str, error: HTTPError) -> NotServed:
        """Say why."""
        why = (error.log_message or error.reason or "") % (error.args or ())
        return cls(f"{path} cannot be used: {why.strip() or f'HTTP {error.status_code}'}", advice="name another file")


class Notebooks:
    """The notebooks of a server."""

    def __init__(self, contents: Any) -> None:
        """Name the server's contents manager."""
        self.contents = contents
        self._settings: dict[str, tuple[Any, dict[str, Any]]] = {}
        """By path: when the notebook was last modified, and its settings."""

    async def read(self, path: str | None) -> str:
        """The notebook at a path of the contents API, as JSON; empty if there is none that can be read."""
        if path is None:
            return ""
        try:
            model = await ensure_async(self.contents.get(path, content=True, type="notebook"))
        except HTTPError:
            return ""
        return json.dumps(model["content"])

    async def settings(self, path: str) -> dict[str, Any]:
        """The entry ``torpor`` of a notebook's metadata; empty if there is no such notebook."""
        try:
            model = await ensure_async(self.contents.get(path, content=False))
            if self._settings.get(path, (None, {}))[0] != model["last_modified"]:
                whole = await ensure_async(self.contents.get(path, content=True, type="notebook"))
                found = whole["content"]["metadata"].get("torpor", {})
                self._settings[path] = whole["last_modified"], dict(found) if isinstance(found, dict) else {}
        except HTTPError:
            return {}
        return self._settings[path][1]

    async def write(self, path: str, text: str) -> None:
        """Write a notebook. Its cells stay as trusted as they were. Raises NotServed."""
        model = {"type": "notebook", "format": "json", "content": json.loads(text)}
        try:
            await ensure_async(self.contents.save(model, path))
        except HTTPError as error:
            raise NotServed.of(path, error) from error

    async def exists(self, path: str) -> bool:
        """Whether a path exists. Raises NotServed."""
        try:
            return bool(await ensure_async(self.contents.exists(path)))
        except HTTPError as error:
            raise NotServed.of(path, error) from error

    async def has_folder(self, path: str) -> bool:
        """Whether the folder of a path exists. Raises NotServed."""
        try:
            return bool(await ensure_async(self.contents.dir_exists(os.path.dirname(path))))
        except HTTPError as error:
            raise NotServed.of(path, error) from error

    async def beside(self, path: str, word: str, suffix: str = SUFFIX) -> str:
        """A path in the same folder that does not exist yet: ``work-fork1.ipynb``."""
        stem = path.removesuffix(SUFFIX)
        for number in itertools.count(1):
            free = f"{stem}-{word}{number}{suffix}"
            if not await self.exists(free):
                return free
        raise AssertionError("there are always more numbers")


def empty(kernel_name: str) -> str:
    """A notebook without cells."""
    metadata = {"kernelspec": {"name": kernel_name, "display_name": kernel_name}}
    return json.dumps({"cells": [], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})
