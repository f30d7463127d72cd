"""The example notebooks, each used in a real JupyterLab as it tells its reader to. Screenshots: build/screenshots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import browser
from tests.browser import CHROMIUM, Lab
from tests.jupyter import Server, running
from tests.users import User

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))

RUN = """number => {
    const notebook = jupyterapp.shell.currentWidget.content;
    notebook.deselectAll();
    notebook.activeCellIndex = number;
    jupyterapp.commands.execute('notebook:run-cell');
}"""
SAYS = """([number, text]) => {
    const cell = jupyterapp.shell.currentWidget.content.model.cells.get(number);
    return JSON.stringify(cell.outputs.toJSON()).includes(text);
}"""
ERRORS = """() => Array.from(jupyterapp.shell.currentWidget.content.model.cells)
    .flatMap(cell => cell.outputs ? cell.outputs.toJSON() : []).filter(
        output => output.output_type === 'error' || output.name === 'stderr')"""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package)")


@pytest.fixture(scope="module")
def file_server(file_account: User) -> Iterator[Server]:
    """A running JupyterLab of an ordinary user, which all readers use."""
    with running(Server(file_account, *browser.LAB_OPTIONS, program="lab")) as server:
        yield server


class Reader:
    """Someone who goes through a notebook."""

    def __init__(self, lab: Lab, notebook: str) -> None:
        self.lab, self.page = lab, lab.page
        self.ids = [cell["id"] for cell in _cells(notebook)]
        path = lab.server.root / notebook
        if not path.exists():
            shutil.copy(FOLDER / notebook, path)
            lab.server.user.own(path)
        lab.open(notebook)

    def start(self, cell: str) -> None:
        """Run a cell, known by its id."""
        self.page.evaluate(RUN, self.ids.index(cell))

    def sees(self, cell: str, text: str) -> None:
        """Wait until it has said something."""
        self.page.wait_for_function(SAYS, arg=[self.ids.index(cell), text])

    def runs(self, cell: str, text: str) -> None:
        """Run a cell, and wait until it has said something."""
        self.start(cell)
        self.sees(cell, text)

    def goes_back(self) -> None:
        """Take the kernel back to its first checkpoint."""
        self.lab.command("torpor:show")
        item = self.page.locator(".jp-Torpor-item").last
        item.hover()
        item.get_by_role("button", name="Go back").click()
        self.page.locator(".jp-Dialog").get_by_role("button", name="Go back").click()
        self.lab.notice("The kernel is back at")

    def parks_and_wakes(self) -> None:
        """Take the kernel out of memory and bring it back."""
        self.lab.command("torpor:park")
        banner = self.page.locator(".jp-Torpor-banner")
        banner.get_by_role("button", name="Wake").click()
        banner.wait_for(state="hidden")

    def leaves(self) -> None:
        """Save the notebook, in which nothing went wrong."""
        assert self.page.evaluate(ERRORS) == []
        self.lab.command("docmanager:save")


@contextmanager
def reading(server: Server, notebook: str) -> Iterator[Reader]:
    """Someone who goes through a notebook in JupyterLab, and leaves it with nothing gone wrong."""
    with browser.lab(server) as lab:
        reader = Reader(lab, notebook)
        yield reader
        reader.leaves()


def _cells(notebook: str) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads((FOLDER / notebook).read_text())["cells"]
    return cells


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_no_output_is_kept(notebook: str) -> None:
    for cell in _cells(notebook):
        assert not cell.get("outputs") and cell.get("execution_count") is None


@needs_chromium
def test_first_tour(server: Server) -> None:
    with reading(server, "first-tour.ipynb") as reader:
        reader.runs("work", "prime number 1000 is 7919")
        reader.lab.checkpoint()
        reader.runs("undo", "prime number 2000 is 17389")
        reader.runs("back", "the list is gone")
        reader.goes_back()
        reader.runs("back", "the list is back, and the next prime is 7927")
        reader.parks_and_wakes()
        reader.runs("park", "the same process: True")
        reader.lab.shot("8-tour")


@needs_chromium
def test_undo(server: Server) -> None:
    with reading(server, "undo.ipynb") as reader:
        reader.runs("before", "next reading 2.2")
        reader.lab.checkpoint()
        reader.runs("mistake", "no such table: stations | next reading none")
        reader.goes_back()
        reader.runs("undo", "levels [2.1 0.9 3.3] | stations ['Husum', 'Emden', 'Cuxhaven'] | next reading 2.5")
        reader.lab.command("torpor:undo")
        reader.lab.notice("as it was before you went back")
        reader.runs("undo", "no such table: stations | next reading none")
        reader.lab.shot("13-undo")


@needs_chromium
def test_fork(server: Server) -> None:
    with reading(server, "fork.ipynb") as reader:
        reader.runs("common", "200 measurements")
        reader.lab.command("torpor:fork-now")
        reader.lab.notice("in fork-fork1.ipynb")
        reader.lab.page.locator(".jp-mod-current .lm-TabBar-tabLabel", has_text="fork-fork1.ipynb").wait_for()
        reader.lab.ready()
        reader.runs("waves", "two waves: 9 cm off")
        reader.runs("apart", "tried here: ['two waves']")
        reader.lab.shot("15-fork")
        reader.leaves()
        reader.lab.command("docmanager:open", path="fork.ipynb")
        reader.runs("polynomial", "a polynomial: 52 cm off")
        reader.runs("apart", "tried here: ['a polynomial']")


@needs_chromium
def test_snapshot(server: Server) -> None:
    with reading(server, "snapshot.ipynb") as reader:
        reader.runs("things", "noise 32 MiB, zeros 256 MiB")
        reader.lab.checkpoint()
        reader.runs("show", "the kernel stood still for")
        reader.runs("process", "is file")
        reader.lab.checkpoint()
        reader.runs("again", "another snapshot: True")
        reader.runs("needs", "the diary: True")
        reader.lab.shot("16-snapshot")


@needs_chromium
def test_training(server: Server) -> None:
    with reading(server, "training.ipynb") as reader:
        reader.runs("data", "1797 pictures")
        reader.runs("train", "epoch 2:")
        reader.parks_and_wakes()
        reader.sees("train", "epoch 5:")
        reader.lab.shot("14-training")
    server.kill()
    server.start()
    with reading(server, "training.ipynb") as reader:
        reader.runs("after", "50 epochs by the same process: True")
