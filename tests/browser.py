"""A real JupyterLab, or Notebook 7, in a headless Chromium, driven by playwright."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from tests.jupyter import TOKEN, Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = Path(__file__).parents[1] / "build" / "screenshots"
"""Where tests leave what they saw."""
LAB_OPTIONS = ("--LabApp.expose_app_in_browser=True", "--JupyterNotebookApp.expose_app_in_browser=True")
NOTEBOOK_ERROR = "Cannot read properties of undefined (reading 'schema')"
"""What Notebook 7.6 itself does wrong when it loads its settings, also without Torpor."""
PATIENCE_MS = 60_000
NEWS_STAYS = """addEventListener('DOMContentLoaded', () => {
    const style = document.createElement('style');
    style.textContent = '.Toastify__progress-bar { animation-play-state: paused !important }';
    document.head.append(style);
})"""
"""Good news goes after a time, which is counted by an animation: a test may take longer to read it."""
LAST = "() => jupyterapp.shell.currentWidget.content.widgets.length - 1"
TYPED = """([number, code]) => {
    const {model} = jupyterapp.shell.currentWidget.content.widgets[number];
    return model.sharedModel.getSource() === code;
}"""


class Lab:
    """One tab with JupyterLab."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self.server = page, server
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, notebook: str = "") -> None:
        """Go to JupyterLab, and to a notebook."""
        path = f"lab/tree/{notebook}" if notebook else "lab"
        self.page.goto(f"{self.server.url}{path}?reset&token={TOKEN}")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")
        if notebook:
            self.page.wait_for_selector(".jp-Notebook .jp-Cell")
            self.ready()

    def open_notebook_7(self, notebook: str) -> None:
        """Go to a notebook in Notebook 7."""
        self.page.goto(f"{self.server.url}notebooks/{notebook}?token={TOKEN}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.ready()

    def ready(self) -> None:
        """Wait until the notebook in front has a living kernel: before that a cell is not sent."""
        moon = ".jp-NotebookPanel-toolbar [data-command='torpor:checkpoint']"
        self.page.locator(f"{moon}[aria-disabled='false']:visible").wait_for()

    def shot(self, name: str) -> None:
        """Keep a picture."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(SHOTS / f"{name}.png"))

    def command(self, id: str, **arguments: Any) -> None:
        """Run one of JupyterLab's commands."""
        self.page.wait_for_function("window.jupyterapp")
        script = "async ([id, args]) => { await jupyterapp.restored; await jupyterapp.commands.execute(id, args); }"
        self.page.evaluate(script, [id, arguments])

    def run_cell(self, code: str) -> Any:
        """Type into the last cell of the notebook in front, which is empty, and run it; the cell's element."""
        # By its number: of a notebook that has just been loaded the first cells are shown before the others.
        last = self.page.evaluate(LAST)
        cell = self.page.locator(f".jp-Notebook:visible .jp-Cell[data-windowed-list-index='{last}']")
        cell.locator(".cm-content").click()
        self.page.keyboard.insert_text(code)
        self.page.wait_for_function(TYPED, arg=[last, code])
        self.page.keyboard.press("Shift+Enter")
        return cell

    def shows(self, output: str) -> None:
        """Wait until a cell shows this output."""
        self.page.locator(".jp-OutputArea-output:visible").get_by_text(output, exact=True).wait_for()

    def checkpoint(self) -> None:
        """Click the moon in the toolbar, and wait until the kernel is saved."""
        self.page.locator(".jp-NotebookPanel-toolbar:visible").get_by_title("Checkpoint kernel").click()
        self.notice("Kernel saved").get_by_role("button", name="Hide notification").click()
        self.page.locator(".jp-toastContainer .Toastify__toast", has_text="Kernel saved").wait_for(state="detached")

    def focused(self) -> str:
        """What a screen reader says of the element that has the focus."""
        label = self.page.evaluate("document.activeElement.getAttribute('aria-label')")
        return str(label)

    def check_accessibility(self, selector: str) -> None:
        """Let axe look at a part of the page for what keeps people with a disability from using it."""
        found = Axe().run(self.page, context=[selector])
        assert found.response["passes"], f"nothing was looked at in {selector}"
        assert not found.violations_count, found.generate_report()

    def notice(self, text: str) -> Any:
        """Wait for a notification with this text."""
        found = self.page.locator(".jp-toastContainer .Toastify__toast", has_text=text).first
        found.wait_for()
        return found


@contextmanager
def lab(server: Server) -> Iterator[Lab]:
    """JupyterLab of a running server, without page errors until the end, and without the question about news."""
    config = server.user.home / ".jupyter" / "labconfig"
    for folder in (config.parent, config):
        folder.mkdir(exist_ok=True)
        server.user.own(folder)
    (config / "page_config.json").write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        try:
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.add_init_script(NEWS_STAYS)
            tab = Lab(page, server)
            try:
                yield tab
            except BaseException:
                tab.shot("failure")
                print("The page shows:", page.locator("body").inner_text())
                raise
            errors = [error for error in tab.errors if error != NOTEBOOK_ERROR]
            assert not errors, errors
        finally:
            browser.close()
