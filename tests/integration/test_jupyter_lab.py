"""What a person does in JupyterLab: the button, the panel, parking and waking, going back, over a server's end.

The screenshots are in build/screenshots.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Route

from tests import browser
from tests.browser import CHROMIUM, PATIENCE_MS
from tests.jupyter import Server, running, used
from tests.users import User

CELL: dict[str, object] = {
    "cell_type": "code", "id": "first", "execution_count": None, "metadata": {}, "outputs": [], "source": "",
}  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package)")


@pytest.fixture(scope="module")
def file_server(file_account: User) -> Iterator[Server]:
    """A running JupyterLab and Notebook 7 of an ordinary user, which the tests share."""
    with running(Server(file_account, *browser.LAB_OPTIONS, program="lab")) as server:
        yield server


@pytest.fixture
def server(file_server: Server) -> Iterator[Server]:
    """It, with an empty notebook."""
    with used(file_server):
        file_server.write_notebook("work.ipynb", [CELL])
        yield file_server


def test_a_notebook_users_day(server: Server) -> None:
    with browser.lab(server) as lab:
        page = lab.page
        lab.open("work.ipynb")
        lab.run_cell("x = 41; print('first', x)")
        lab.shows("first 41")

        page.locator(".jp-NotebookPanel-toolbar").get_by_title("Checkpoint kernel").click()
        lab.notice("Kernel saved")
        lab.command("torpor:show")
        items = page.locator(".jp-Torpor-item")
        items.first.wait_for()
        lab.shot("1-saved")
        assert "After cell [1]" in items.first.inner_text()

        lab.run_cell("x = 42; print('second', x)")
        lab.shows("second 42")
        page.locator(".lm-MenuBar-item", has_text="Kernel").click()
        page.locator(".lm-Menu-item", has_text="Park Kernel").wait_for()
        lab.shot("2-menu")
        page.locator(".lm-Menu-item", has_text="Park Kernel").click()
        banner = page.locator(".jp-Torpor-banner")
        banner.get_by_text("The kernel has been parked").wait_for()
        lab.run_cell("print('waited', x)")
        page.locator(".jp-NotebookPanel-toolbar").get_by_text("Parked").wait_for()
        page.locator("#jp-main-statusbar").get_by_text("Python 3 (ipykernel)", exact=True).wait_for()  # without "Idle"
        lab.shot("3-parked")
        banner.get_by_role("button", name="Wake").click()
        banner.wait_for(state="hidden")
        lab.shows("waited 42")

        oldest = items.last
        oldest.hover()
        oldest.get_by_role("button", name="Go back").click()
        dialog = page.locator(".jp-Dialog")
        dialog.wait_for()
        lab.shot("4-going-back")
        assert "2 cells" in dialog.inner_text()
        dialog.get_by_role("button", name="Go back").click()
        notice = lab.notice("The kernel is back at")
        lab.run_cell("print('back', x)")
        lab.shows("back 41")
        assert page.locator(".jp-mod-torporUndone").count() == 2  # what the first one printed, and what waited
        lab.shot("5-back")
        notice.get_by_role("button", name="Undo").click()
        lab.notice("as it was before you went back")
        lab.run_cell("print('undone', x)")
        lab.shows("undone 42")
        assert page.locator(".jp-mod-torporUndone").all_inner_texts()[0].startswith("[2]:\nprint('back', x)")

        lab.command("kernelmenu:shutdown")
        page.get_by_text("This notebook has no kernel").wait_for()
        items.last.hover()
        items.last.get_by_role("button", name="Go back").click()
        dialog.get_by_text("The kernel is gone").wait_for()
        dialog.get_by_role("button", name="Go back").click()
        lab.ready()
        lab.run_cell("print('came back', x)")
        lab.shows("came back 41")
        lab.command("docmanager:save")


def test_the_panel_with_keyboard_and_screen_reader(server: Server) -> None:
    with browser.lab(server) as lab:
        page = lab.page
        keys, dialog, items = page.keyboard, page.locator(".jp-Dialog"), page.locator(".jp-Torpor-item")
        lab.open("work.ipynb")
        lab.command("torpor:show")
        page.get_by_text("No checkpoints yet").wait_for()
        lab.check_accessibility(".jp-Torpor")
        lab.run_cell("x = 41; print('first', x)")
        lab.shows("first 41")
        lab.checkpoint()
        lab.run_cell("y = [x, 42]; print('second', y)")
        lab.shows("second [41, 42]")
        lab.checkpoint()

        items.nth(1).wait_for()
        line, then = page.get_by_role("slider", name="Variables at a checkpoint"), page.locator(".jp-Torpor-then")
        line.focus()
        keys.press("Home")
        then.get_by_role("row", name="x 41").wait_for()
        lab.check_accessibility(".jp-Torpor")
        lab.shot("20-variables-then")
        keys.press("ArrowRight")
        then.get_by_role("row", name="y 2 items").wait_for()
        items.nth(1).focus()
        then.wait_for(state="detached")
        assert lab.focused().startswith("After cell [1], ")
        keys.press("ArrowUp")
        assert lab.focused().startswith("After cell [2], ") and lab.focused().endswith(", the kernel is here")
        lab.check_accessibility(".jp-Torpor")
        keys.press("Tab")
        assert lab.focused() == "Go back to “After cell [2]”"
        keys.press("Tab")
        keys.press("Tab")
        keys.press("Enter")
        dialog.locator("tr", has_text="y").get_by_text("new").wait_for()
        dialog.get_by_text("Memory: ").wait_for()
        lab.check_accessibility(".jp-Dialog")
        lab.shot("9-compared")
        keys.press("Escape")
        dialog.wait_for(state="detached")

        items.first.focus()
        keys.press("End")
        keys.press("F2")
        dialog.locator("input").fill("begin")
        keys.press("Enter")
        items.nth(1).get_by_text("begin").wait_for()
        items.nth(1).click(button="right")
        page.locator(".lm-Menu-item", has_text="Edit Note…").click()
        dialog.locator("textarea").fill("before the list")
        keys.press("Enter")
        keys.insert_text("it is short")
        dialog.get_by_role("button", name="Save").click()
        items.nth(1).get_by_text("before the list").wait_for()
        items.nth(1).focus()
        keys.press("Enter")
        dialog.get_by_text("New variables: y").wait_for()
        dialog.get_by_text("[2] y = [x, 42]").wait_for()
        lab.check_accessibility(".jp-Dialog")
        lab.shot("10-what-is-undone")
        dialog.get_by_role("checkbox").check()
        read: list[Route] = []

        def hold(route: Route) -> None:
            read.append(route)
            if len(read) > 1:
                route.continue_()

        contents = "**/api/contents/work.ipynb?*content=1*"
        page.route(contents, hold)
        with page.expect_request(contents):
            dialog.get_by_role("button", name="Go back").click()
        while not read:
            page.wait_for_timeout(20)
        # What one types into a notebook that is about to be read again is lost: nothing is said yet.
        assert not page.locator(".Toastify__toast", has_text="The kernel is back").count()
        read[0].continue_()
        lab.notice("The kernel is back at “begin”")
        page.locator(".jp-Cell", has_text="second").wait_for(state="detached")  # the notebook went back, too
        items.get_by_text("Before going back to “begin”").wait_for()
        lab.run_cell("print('y' in globals())")
        lab.shows("False")

        lab.checkpoint()
        find = page.get_by_label("Find checkpoints")
        find.fill("LIST")
        items.nth(1).wait_for(state="detached")
        items.first.get_by_text("begin").wait_for()
        find.fill("")
        items.nth(3).wait_for()
        lab.check_accessibility(".jp-Torpor")
        page.get_by_text("Delete several…").click()
        dialog.get_by_role("checkbox", checked=True).wait_for()  # of what was saved before going back
        assert dialog.get_by_role("checkbox").count() == 3
        lab.check_accessibility(".jp-Dialog")
        lab.shot("19-several")
        dialog.get_by_role("button", name="Delete").click()
        lab.notice("1 checkpoint deleted")
        items.nth(3).wait_for(state="detached")

        items.last.click(button="right")
        page.locator(".lm-Menu-item", has_text="Fork").click()
        lab.notice("in work-fork1.ipynb")
        page.locator(".jp-mod-current .lm-TabBar-tabLabel", has_text="work-fork1.ipynb").wait_for()
        lab.ready()
        lab.run_cell("x += 1; print('fork', x)")
        lab.shows("fork 42")
        lab.shot("11-fork")
        lab.command("docmanager:save-all")

        page.locator(".lm-TabBar-tabLabel", has_text="work.ipynb").last.click()
        items.last.click(button="right")
        page.locator(".lm-Menu-item", has_text="Export").click()
        lab.notice("The checkpoint is in work-kernel1.torpor")
        carried = next(one for one in server.get("api/torpor/checkpoints") if one["name"] == "begin")
        server.ask("DELETE", f"api/torpor/kernels/{carried['kernel_id']}/checkpoints/{carried['id']}")
        lab.command("filebrowser:refresh")
        lab.command("filebrowser:activate")
        page.locator(".jp-DirListing-item", has_text="work-kernel1.torpor").click(button="right")
        page.locator(".lm-Menu-item", has_text="Import Kernel Checkpoint…").click()
        dialog.get_by_text("a program that will run as you").wait_for()
        lab.shot("21-import")
        keys.press("Enter")
        lab.notice("The checkpoint is imported")
        page.locator(".jp-mod-current .lm-TabBar-tabLabel", has_text="work-imported1.ipynb").wait_for()


def test_progress_cancelling_and_refusals_are_shown(server: Server) -> None:
    """What the browser shows; that the server gives up is tested with the server alone."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        if route.request.method == "POST":
            held.append(route)
        else:
            route.continue_()

    def be_slow(route: Route) -> None:
        kernels = route.fetch().json()
        if held:  # not before: the button cannot be pressed while the kernel is saved
            kernels[0]["operation"] = {"doing": "saving", "began_ns": 0, "done": 30, "total": 100}
        route.fulfill(json=kernels)

    def give_up(route: Route) -> None:
        route.fulfill(json={})
        page.unroute("**/api/torpor/kernels?*", be_slow)
        held[0].fulfill(status=409, json={"message": "saving was cancelled", "kind": "Cancelled"})

    with browser.lab(server) as lab:
        page = lab.page
        lab.open("work.ipynb")
        page.route("**/checkpoints?*", hold)
        page.route("**/api/torpor/kernels?*", be_slow)
        page.route("**/cancel?*", give_up)
        lab.command("torpor:show")
        page.locator(".jp-NotebookPanel-toolbar").get_by_title("Checkpoint kernel").click()
        notice = lab.notice("Saving the kernel…")
        assert page.locator(".jp-Torpor-state progress").get_attribute("value") == "0.3"
        page.locator("#jp-main-statusbar", has_text="Saving the kernel…").wait_for()
        lab.check_accessibility(".jp-Torpor")
        lab.check_accessibility(".jp-Torpor-status")
        lab.shot("17-progress")
        notice.get_by_role("button", name="Cancel").click()
        lab.notice("Cancelled. The kernel is as it was.")
        page.locator(".jp-Torpor-state progress").wait_for(state="detached")

        page.unroute("**/checkpoints?*", hold)
        lab.run_cell("from socket import *; link = socket(AF_NETLINK, SOCK_RAW, 16); print('open')")
        lab.shows("open")
        page.locator(".jp-NotebookPanel-toolbar").get_by_title("Checkpoint kernel").click()
        notice = lab.notice("Kernel not saved; it keeps running: a netlink socket (generic)")
        stays = page.locator(".jp-Torpor-unsaved", has_text="a netlink socket (generic)")
        stays.get_by_text("If the server stops, this kernel keeps running").wait_for()
        lab.check_accessibility(".jp-Torpor")
        lab.shot("7-refused")
        notice.get_by_role("button", name="Details…").click()
        page.locator(".jp-Dialog li", has_text="(variable link)").first.wait_for()
        lab.check_accessibility(".jp-Dialog")
        page.keyboard.press("Escape")
        lab.run_cell("link.close(); print('closed')")
        lab.shows("closed")
        page.locator(".jp-NotebookPanel-toolbar").get_by_title("Checkpoint kernel").click()
        lab.notice("Kernel saved")
        stays.wait_for(state="detached")


def test_a_reloaded_page_shows_what_its_cell_says_and_asks(server: Server) -> None:
    with browser.lab(server) as lab:
        lab.open("work.ipynb")
        cell = lab.run_cell("print('before'); print('got', input('name?'))")
        cell.locator(".jp-Stdin-input").wait_for()
        lab.command("docmanager:save")
        lab.page.reload()
        lab.open("work.ipynb")
        lab.shows("before")
        asked = lab.page.locator(".jp-Stdin-input")
        lab.shot("18-asked-again")
        asked.fill("me")
        asked.press("Enter")
        lab.shows("got me")
        lab.page.locator(".jp-InputPrompt", has_text="[1]:").wait_for()
        lab.run_cell("print('next')")
        lab.shows("next")
        lab.command("docmanager:save")


def test_notebook_7(ordinary_account: User) -> None:
    """On a server of its own: where JupyterLab was before, Notebook 7 asks for a command that it has not."""
    server = Server(ordinary_account, *browser.LAB_OPTIONS, program="lab")
    server.write_notebook("work.ipynb", [CELL])
    with running(server), browser.lab(server) as lab:
        page = lab.page
        lab.open_notebook_7("work.ipynb")
        lab.run_cell("x = 41; print('first', x)")
        lab.shows("first 41")
        lab.checkpoint()
        lab.run_cell("x = 42; print('second', x)")
        lab.shows("second 42")

        def kernel_menu(entry: str) -> None:
            page.locator(".lm-MenuBar-item", has_text="Kernel").click()
            page.locator(".lm-Menu-item", has_text=entry).click()

        kernel_menu("Show Kernel Checkpoints")
        item = page.locator(".jp-Torpor-item")
        item.hover()
        item.get_by_role("button", name="Go back").click()
        page.locator(".jp-Dialog").get_by_role("button", name="Go back").click()
        lab.notice("The kernel is back at")
        lab.run_cell("print('back', x)")
        lab.shows("back 41")
        kernel_menu("Park Kernel")
        banner = page.locator(".jp-Torpor-banner")
        banner.get_by_text("The kernel has been parked").wait_for()
        lab.shot("12-notebook-7")
        banner.get_by_role("button", name="Wake").click()
        banner.wait_for(state="hidden")
        lab.run_cell("print('awake', x)")
        lab.shows("awake 41")
        kernel_menu("Park Kernel")
        banner.wait_for()
        tree = page.context.new_page()  # a page that is left in the middle of a request would say so
        tree.set_default_timeout(PATIENCE_MS)
        tree.goto(f"{server.url}tree")
        tree.locator(".lm-TabBar-tab", has_text="Running").click()
        tree.get_by_title("Parked kernel ").get_by_text("work.ipynb").wait_for()


def test_tomorrow_the_kernel_goes_on(server: Server) -> None:
    with browser.lab(server) as lab:
        lab.open("work.ipynb")
        lab.run_cell("import os; pid = os.getpid(); x = 41; print('first', x)")
        lab.shows("first 41")
        lab.command("docmanager:save")
    server.stop()
    server.start()
    with browser.lab(server) as lab:
        lab.open()
        lab.command("docmanager:open", path="work.ipynb")
        banner = lab.page.locator(".jp-Torpor-banner")
        banner.get_by_text("The kernel has been parked").wait_for()
        lab.page.locator("[data-id='jp-running-sessions']").click()
        parked = lab.page.get_by_title("Parked kernel ")
        parked.get_by_text("work.ipynb").wait_for()
        lab.page.locator(".jp-RunningSessions-item.jp-mod-kernelspec").wait_for(state="hidden")  # not there as well
        lab.shot("6-next-day")
        parked.get_by_role("button", name="Wake").click()
        banner.wait_for(state="hidden")
        lab.ready()
        lab.run_cell("print('goes on', x + 1, pid == os.getpid())")
        lab.shows("goes on 42 True")
