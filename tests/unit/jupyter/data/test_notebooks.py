"""Notebooks go through Jupyter's contents manager; new ones never take the name of another file."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

from torpor_jupyter.data.notebooks import Notebooks, NotServed, empty


@pytest.fixture
def notebooks(tmp_path: Path) -> Notebooks:
    return Notebooks(AsyncLargeFileManager(root_dir=str(tmp_path)))


def test_what_is_written_is_read(notebooks: Notebooks) -> None:
    async def story() -> None:
        await notebooks.write("work.ipynb", empty("python3"))
        found = json.loads(await notebooks.read("work.ipynb"))
        assert found["cells"] == []
        assert found["metadata"]["kernelspec"]["name"] == "python3"

    asyncio.run(story())


def test_what_is_no_notebook_reads_as_nothing(notebooks: Notebooks, tmp_path: Path) -> None:
    (tmp_path / "broken.ipynb").write_text("{")

    async def story() -> None:
        assert [await notebooks.read(path) for path in (None, "none.ipynb", "broken.ipynb")] == ["", "", ""]
        assert await notebooks.settings("none.ipynb") == await notebooks.settings("broken.ipynb") == {}

    asyncio.run(story())


def test_a_free_name_beside_others(notebooks: Notebooks, tmp_path: Path) -> None:
    (tmp_path / "work-fork1.ipynb").touch()
    (tmp_path / "work-fork2.ipynb").mkdir()
    assert asyncio.run(notebooks.beside("work.ipynb", "fork")) == "work-fork3.ipynb"


def test_a_path_out_of_the_servers_folder_is_not_served(notebooks: Notebooks, tmp_path: Path) -> None:
    (tmp_path / "folder.ipynb").mkdir()
    for asked in (
        notebooks.exists("../work.ipynb"),
        notebooks.has_folder("../../work.ipynb"),
        notebooks.write("../work.ipynb", empty("python3")),
        notebooks.write("folder.ipynb", empty("python3")),
    ):
        with pytest.raises(NotServed, match=r"cannot be used: .*; name another file"):
            asyncio.run(asked)


@pytest.mark.parametrize(("told", "settings"), [({"keep_last": 3}, {"keep_last": 3}), (["keep_last"], {}), (7, {})])
def test_settings_are_read_again_when_the_file_has_changed(
    notebooks: Notebooks, tmp_path: Path, told: object, settings: dict[str, int]
) -> None:
    """Anybody may have written them: what is no object counts as none."""

    async def story() -> None:
        await notebooks.write("work.ipynb", empty("python3"))
        assert await notebooks.settings("work.ipynb") == {}
        content = json.loads(empty("python3"))
        content["metadata"]["torpor"] = told
        await notebooks.write("work.ipynb", json.dumps(content))
        os.utime(tmp_path / "work.ipynb", (2e9, 2e9))  # both may be written within one tick of the clock of files
        assert await notebooks.settings("work.ipynb") == settings

    asyncio.run(story())
