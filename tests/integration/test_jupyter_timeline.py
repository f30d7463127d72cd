"""A kernel's timeline: what differs between two checkpoints, checkpoints made by rules, and those given up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.jupyter import Answer, Notebook, Server, running
from tests.users import User

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


@pytest.fixture
def server(ordinary_account: User) -> Iterator[Server]:
    """A running server of an ordinary user."""
    with running(Server(ordinary_account)) as server:
        yield server


def names(found: list[dict[str, Any]]) -> list[str]:
    return [variable["name"] for variable in found]


def test_what_has_changed_between_two_checkpoints(server: Server) -> None:
    _, kernel = server.new_session("work.ipynb")
    path = f"api/torpor/kernels/{kernel}/checkpoints"
    with Notebook(server, kernel) as notebook:
        notebook.run(VARIABLES)
        first = server.torpor(kernel, "/checkpoints")["id"]
        with pytest.raises(Answer, match=r"404.*the first one"):
            server.get(f"{path}/{first}/diff")
        notebook.run(CHANGES)
        second = server.torpor(kernel, "/checkpoints")["id"]
        diff = server.get(f"{path}/{second}/diff")
        assert (diff["with"], diff["why"]) == (first, None)
        variables = diff["variables"]
        assert variables["added"] == [{"name": "new", "type": "bytes", "summary": "b'new'"}]
        assert variables["removed"] == [{"name": "gone", "type": "NoneType", "summary": "None"}]
        assert names(variables["changed"]) == ["mean", "number", "words", "touched", "frame"]
        shown = {variable["name"]: (variable["type"], variable["summary"]) for variable in variables["changed"]}
        assert shown["mean"] == ("__main__.Mean", "")
        assert shown["touched"] == ("numpy.ndarray", "300000 float64")
        assert shown["frame"][1] == "50000 x 2"
        memory = diff["memory"]
        assert memory["shared"] > 10 << 20
        assert 0 < memory["only_here"] < memory["shared"]
        back = server.get(f"{path}/{first}/diff?with={second}")
        assert names(back["variables"]["added"]) == ["gone"]
        assert back["memory"]["only_there"] == memory["only_here"]
        cell = notebook.start("import time\nwhile True: time.sleep(0.01)")
        notebook.until(lambda: notebook.about(cell, "execute_input"), "the cell runs")
        busy = server.torpor(kernel, "/checkpoints")["id"]
        unknown = server.get(f"{path}/{busy}/diff")
        assert unknown["variables"] is None
        assert "were not listed" in unknown["why"]
    with pytest.raises(Answer, match="404"):
        server.get(f"{path}/{second}/diff?with=..%2fx")
