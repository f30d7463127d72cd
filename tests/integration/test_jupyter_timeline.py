"""A kernel's timeline: what differs between two checkpoints, checkpoints made by rules, and those given up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.jupyter import Answer, Notebook, Server, running, wait_until
from tests.users import BIN, User

VARIABLES = """
import numpy as np, pandas as pd
class Mean:
    def __repr__(self): raise SystemExit("it was asked for its repr")
    __len__ = __str__ = __hash__ = __eq__ = __repr__
    def __getattr__(self, name): raise SystemExit("it was asked for " + name)
mean = Mean()
number, text, gone, huge = 1, "word", None, 7 ** 5000
words = ["a", "b"]
inside = {"x": [1]}
kept = np.zeros(300_000)
touched = np.zeros(300_000)
frame = pd.DataFrame({"x": np.arange(50_000.0), "y": np.arange(50_000.0)})
table = pd.DataFrame({"x": np.arange(50_000.0)})
"""
CHANGES = """
number, words[1], touched[200_000], new = 2, "c", 1.0, b"new"
frame.loc[7, "x"] = -1.0
mean.__dict__["last"] = 5
del gone
"""


def names(found: list[dict[str, Any]]) -> list[str]:
    return [variable["name"] for variable in found]


def test_what_has_changed_between_two_checkpoints(server: Server) -> None:
    _, kernel = server.new_session("work.ipynb")
    path = f"api/torpor/kernels/{kernel}/checkpoints"

    def idle() -> bool:
        return bool(server.get(f"api/kernels/{kernel}")["execution_state"] == "idle")

    with Notebook(server, kernel) as notebook:
        notebook.run(VARIABLES)
        wait_until(idle, "the server has heard that the cell has ended")
        first = server.torpor(kernel, "/checkpoints")["id"]
        with pytest.raises(Answer, match=r"404.*the kernel's first"):
            server.get(f"{path}/{first}/diff")
        notebook.run(CHANGES)
        wait_until(idle, "the server has heard of this one's end, too")
        second = server.torpor(kernel, "/checkpoints")["id"]
        diff = server.get(f"{path}/{second}/diff")
        assert (diff["with"], diff["why"]) == (first, None)
        variables = diff["variables"]
        at = server.get(f"{path}/{second}/variables")
        assert at["why"] is None and {one["name"] for one in at["variables"]} >= {v["name"] for v in variables["added"]}
        assert variables["added"] == [{"name": "new", "type": "bytes", "summary": "b'new'"}]
        assert variables["removed"] == [{"name": "gone", "type": "NoneType", "summary": "None"}]
        assert names(variables["changed"]) == ["mean", "number", "words", "touched", "frame"]
        shown = {variable["name"]: (variable["type"], variable["summary"]) for variable in variables["changed"]}
        assert shown["mean"] == ("__main__.Mean", "")
        assert shown["touched"] == ("numpy.ndarray", "300000 float64")
        assert shown["frame"][1] == "50000 x 2"
        assert next(one["before"] for one in variables["changed"] if one["name"] == "number") == "1"
        store = server.get("api/torpor/store")
        assert store["used"] > 0 and store["keep_last"] == 30
        assert server.kernel(kernel)["memory"] > 10 << 20
        memory = diff["memory"]
        assert memory["shared"] > 10 << 20
        assert 0 < memory["only_here"] < memory["shared"]
        back = server.get(f"{path}/{first}/diff?with={second}")
        assert names(back["variables"]["added"]) == ["gone"]
        assert back["memory"]["only_there"] == memory["only_here"]
        notebook.start_loop()
        busy = server.torpor(kernel, "/checkpoints")["id"]
        unknown = server.get(f"{path}/{busy}/diff")
        assert unknown["variables"] is None
        assert "were not listed" in unknown["why"]
    with pytest.raises(Answer, match="404"):
        server.get(f"{path}/{second}/diff?with=..%2fx")


def automatic(server: Server, kernel: str) -> list[dict[str, Any]]:
    return [made for made in server.get(f"api/torpor/kernels/{kernel}/checkpoints") if made["automatic"]]


def new_checkpoints(server: Server, kernel: str, seen: set[str]) -> set[str]:
    """Wait for automatic checkpoints that were not seen yet."""

    def new() -> set[str]:
        return {made["id"] for made in automatic(server, kernel)} - seen

    found: set[str] = wait_until(new, "it is saved after the cell")
    return found


def test_checkpoints_by_rules(ordinary_account: User) -> None:
    options = ("--TorporApp.checkpoint_after=0.3", "--TorporApp.keep_last=2")
    with running(Server(ordinary_account, *options)) as server:
        server.write_notebook("own.ipynb", [], torpor={"checkpoint_after": 0, "checkpoint_every": 0.02})
        _, kernel = server.new_session("work.ipynb")
        _, other = server.new_session("own.ipynb")
        with Notebook(server, kernel) as notebook, Notebook(server, other) as own:
            own.run("import time; time.sleep(0.4)")
            seen: set[str] = set()
            for cell in range(3):
                notebook.run(f"import time; time.sleep(0.4); x = {cell}")
                seen |= new_checkpoints(server, kernel, seen)
                notebook.run("quick = 1")
            wait_until(lambda: len(automatic(server, kernel)) == 2, "the oldest one goes")
            newest = automatic(server, kernel)
            assert [c["execution_count"] for c in newest] == [3, 5]
            parents = [None, newest[0]["id"]]
            wait_until(lambda: [c["parent"] for c in automatic(server, kernel)] == parents, "the tree to be one again")
            server.torpor(kernel, f"/checkpoints/{newest[0]['id']}/restore")
            assert notebook.run("print(x)") == "1\n"
            (only,) = wait_until(lambda: automatic(server, other), "it is saved when its time has come")
            own.run("y = 5")
            wait_until(lambda: automatic(server, other)[-1]["id"] != only["id"], "and again when something has run")


def test_idle_kernels_are_parked_when_memory_is_short(ordinary_account: User) -> None:
    """It is always short of all there is; and what a parked kernel does not need goes when the store is full."""
    with running(Server(ordinary_account, "--TorporApp.park_below=100", "--TorporApp.quota=1")) as server:
        _, kernel = server.new_session("work.ipynb")
        with Notebook(server, kernel) as notebook:
            busy = notebook.start("x = input()")
            notebook.until_awake(lambda: any(m["msg_type"] == "input_request" for m in notebook.seen))
            notebook.send("input_reply", {"value": "word"}, "stdin")
            notebook.finish(busy)
            wait_until(lambda: server.is_parked(kernel), "it is parked")
            first = server.kernel(kernel)["snapshot"]
            server.torpor(kernel, "/resume")
            wait_until(
                lambda: server.is_parked(kernel) and server.kernel(kernel)["snapshot"] != first, "it is parked again"
            )
            wait_until(lambda: len(automatic(server, kernel)) == 1, "the one that is not needed goes")
            assert automatic(server, kernel)[0]["name"] == "memory was short"
            prune: list[str | Path] = [BIN / "torpor", "prune", "--keep-last", "0", "--store", server.store]
            # The server may still be giving back the space of what went.
            wait_until(lambda: ordinary_account.run(prune).returncode == 0, "the store is not in use")
            assert notebook_says(server, notebook, kernel, "print(x)") == "word\n"


def notebook_says(server: Server, notebook: Notebook, kernel: str, code: str) -> str:
    """Run a cell in a kernel that is parked."""
    cell = notebook.start(code)
    server.torpor(kernel, "/resume")
    return notebook.finish(cell)


def test_what_takes_too_long_is_cancelled(server: Server) -> None:
    _, kernel = server.new_session("work.ipynb")
    with pytest.raises(Answer, match=r"409.*no operation"):
        server.torpor(kernel, "/cancel")
    with Notebook(server, kernel) as notebook:
        # A journal that is open is waited for, so that there is time to cancel.
        notebook.run("x = 5; journal = open('data.sqlite-journal', 'w')")
        with ThreadPoolExecutor(1) as pool:
            for what in ("/checkpoints", "/park"):
                asked = pool.submit(server.torpor, kernel, what)
                wait_until(lambda: server.kernel(kernel)["operation"], "it has begun")
                assert server.get(f"api/torpor/kernels/{kernel}/checkpoints") == []
                assert not asked.done()  # who only asks does not wait for it
                server.torpor(kernel, "/cancel")
                with pytest.raises(Answer, match=r"409.*cancelled"):
                    asked.result()
        assert server.kernel(kernel)["state"] == "living"
        assert notebook.run("journal.close(); print(x)") == "5\n"
        assert server.get(f"api/torpor/kernels/{kernel}/checkpoints") == []
        server.torpor(kernel, "/checkpoints")
