"""Figures of kernels under a real Jupyter server: `python -m tests.bench.bench_jupyter [--python PYTHON]`.

- a kernel of 1 GiB: from the click to "saved", the pause that the kernel itself saw, from the wake to the first reply;
- lines lost of a cell that prints while it is parked and woken again and again;
- a notebook of 30 cells with a checkpoint after each, in time and bytes, and a rewind to each.

The kernels are those of PYTHON, which needs ipykernel, pandas and scikit-learn; it may have dill and kishu, too. Then
the same notebook is run with dill.dump_session and with Kishu after each cell.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.cells import CELLS
from tests.jupyter import Notebook, Server, running
from tests.users import BIN, User, ordinary_user

OTHERS = Path(__file__).with_name("other_cells.py")
LARGE = "import numpy\nblock = numpy.random.default_rng(1).integers(0, 1 << 62, (1 << 30) // 8)"
# How long the kernel itself sees nothing happen: the longest step of a loop that does nothing else.
WATCH = """
import threading, time
longest, watching = 0.0, True
def watch():
    global longest
    last = time.perf_counter()
    while watching:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        time.sleep(0.0005)
thread = threading.Thread(target=watch, daemon=True)
thread.start()
"""


@contextmanager
def user() -> Iterator[User]:
    """An ordinary user with a directory, as the tests have one."""
    with ordinary_user() as account:
        folder = Path(tempfile.mkdtemp(prefix="torpor-bench-jupyter-", dir="/tmp"))
        made = User(account.pw_name, account.pw_uid, account.pw_gid, folder, {})
        made.own(folder)
        made.home.mkdir()
        made.own(made.home)
        try:
            yield made
        finally:
            shutil.rmtree(folder)


def kernelspec(account: User, python: str) -> None:
    """Make the kernels of a Python the user's `python3`."""
    folder = account.home / ".local" / "share" / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "bench", "language": "python"}))
    for path in (account.home / ".local").rglob("*"):
        account.own(path)
    account.own(account.home / ".local")


def seconds(what: Any, *arguments: Any) -> tuple[float, Any]:
    """How long a call takes, and what it gives."""
    begin = time.perf_counter()
    found = what(*arguments)
    return time.perf_counter() - begin, found


def pause_ms(server: Server, id: str) -> float:
    """How long a snapshot's processes stood still."""
    command: list[str | Path] = [BIN / "torpor", "show", "--json", "--store", server.store, id]
    told = json.loads(server.user.run(command, check=True).stdout)
    return float(told["taken"]["pause_ns"]) / 1e6


def large(server: Server, rounds: int) -> dict[str, float]:
    """A kernel of 1 GiB."""
    figures: dict[str, list[float]] = {"saved_s": [], "pause_ms": [], "seen_ms": [], "parked_s": [], "reply_s": []}
    for _ in range(rounds):
        _, kernel = server.new_session("large.ipynb")
        with Notebook(server, kernel) as notebook:
            notebook.run(LARGE)
            notebook.run(WATCH)
            saved, made = seconds(server.torpor, kernel, "/checkpoints")
            figures["saved_s"].append(saved)
            figures["pause_ms"].append(pause_ms(server, made["id"]))
            figures["seen_ms"].append(float(notebook.run("watching = False; print(longest * 1000)")))
            figures["parked_s"].append(seconds(server.torpor, kernel, "/park")[0])
            begin = time.perf_counter()
            server.torpor(kernel, "/resume")
            notebook.run("1")
            figures["reply_s"].append(time.perf_counter() - begin)
        server.end_kernels()
    return {name: statistics.median(found) for name, found in figures.items()}


def lost_lines(server: Server, freezes: int) -> dict[str, int]:
    """A cell that prints numbered lines while it is parked and woken."""
    _, kernel = server.new_session("lines.ipynb")
    with Notebook(server, kernel) as notebook:
        cell = notebook.start(
            "import time\nn, going = 0, True\nfrom IPython import get_ipython\n"
            "while not __import__('os').path.exists('stop'):\n    print(n); n += 1; time.sleep(0.0005)\nprint('end', n)"
        )
        for done in range(freezes):
            notebook.until(lambda done=done: len(notebook.output(cell)) > 1500 * (done + 1), "it prints")  # type: ignore[misc]
            server.torpor(kernel, "/park")
            server.torpor(kernel, "/resume")
        (server.root / "stop").touch()
        *lines, _, count = notebook.finish(cell).split()
    server.end_kernels()
    expected = [str(n) for n in range(int(count))]
    return {"freezes": freezes, "lines": len(expected), "lost": len(set(expected) - set(lines)),
            "doubled_or_swapped": int(lines != expected and set(lines) == set(expected))}  # fmt: skip


def each_cell(server: Server) -> dict[str, float]:
    """The notebook, with a checkpoint after each cell; and a rewind to each."""
    _, kernel = server.new_session("cells.ipynb")
    with Notebook(server, kernel) as notebook:
        bare, costs, made = 0.0, [], []
        for code in CELLS:
            bare += seconds(notebook.run, code)[0]
            cost, checkpoint = seconds(server.torpor, kernel, "/checkpoints")
            costs.append(cost)
            made.append(checkpoint)
        pauses = [pause_ms(server, checkpoint["id"]) for checkpoint in made]
        rewinds = []
        for number, checkpoint in list(enumerate(made, 1))[::-1]:
            path = f"/checkpoints/{checkpoint['id']}/restore"
            begin = time.perf_counter()
            server.torpor(kernel, path, discard=True)
            assert int(notebook.run("print(len(_ih) - 1)")) == number + 1, f"cell {number}"
            rewinds.append(time.perf_counter() - begin)
    server.end_kernels()
    return {
        "cells_s": bare,
        "checkpoints_s": sum(costs),
        "median_s": statistics.median(costs),
        "worst_s": max(costs),
        "pause_median_ms": statistics.median(pauses),
        "pause_worst_ms": max(pauses),
        "written": float(sum(checkpoint["written"] for checkpoint in made)),
        "kept": float(len(made)),
        "rewind_median_s": statistics.median(rewinds),
        "rewind_worst_s": max(rewinds),
    }


def others(python: str, tool: str) -> Any:
    """The notebook with another tool, by a program of its own."""
    with tempfile.TemporaryDirectory() as place:
        environment = os.environ | {"HOME": place, "IPYTHONDIR": f"{place}/ipython"}
        command = [python, str(OTHERS), tool, place]
        done = subprocess.run(
            command, input=json.dumps(CELLS), env=environment, capture_output=True, text=True, check=False, timeout=900
        )
        told = Path(place, "told.json")
        return json.loads(told.read_text()) if told.exists() else {"error": done.stderr.strip().splitlines()[-1:]}


def main() -> None:
    """Measure, and print JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--python", default=sys.executable, help="whose kernels are used")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--freezes", type=int, default=100)
    options.add_argument("--only", choices=["large", "lines", "cells", "dill", "kishu"])
    chosen = options.parse_args()
    found: dict[str, Any] = {}
    measures = {
        "large": lambda server: large(server, chosen.rounds),
        "lines": lambda server: lost_lines(server, chosen.freezes),
        "cells": each_cell,
    }
    with user() as account:
        kernelspec(account, chosen.python)
        for name, measure in measures.items():
            if chosen.only in (None, name):
                with running(Server(account, name=name)) as server:
                    found[name] = measure(server)
    for tool in ("dill", "kishu"):
        if chosen.only in (None, tool):
            found[tool] = others(chosen.python, tool)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
