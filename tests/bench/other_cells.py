"""The notebook of `cells` with another tool after each cell: `other_cells.py dill|kishu FOLDER`, the cells as JSON.

Run by `bench_jupyter` with a Python that has the tool; it imports nothing of Torpor. Writes FOLDER/told.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell


def timed(shell: Any, cells: list[str], after: Callable[[int], None]) -> tuple[float, list[float], list[str]]:
    """Seconds of the cells, what came after each, and why some could not be kept."""
    costs, failures, begin = [], [], time.perf_counter()
    for number, code in enumerate(cells):
        result = shell.run_cell(code, store_history=True)
        result.raise_error()
        saving = time.perf_counter()
        try:
            after(number)
        except Exception as error:  # the figure is whether it fails
            failures.append(f"cell {number + 1}: {type(error).__name__}: {error}"[:120])
        costs.append(time.perf_counter() - saving)
    return time.perf_counter() - begin - sum(costs), costs, failures


def main() -> None:
    """Run one tool."""
    tool, folder, cells = sys.argv[1], Path(sys.argv[2]), json.load(sys.stdin)
    shell: Any = InteractiveShell.instance()
    vars(shell.displayhook)["write_format_data"] = lambda *_: None  # what a cell gives is not printed
    if tool == "dill":
        import dill  # noqa: PLC0415

        session = folder / "session"
        sizes = []

        def dump(number: int) -> None:
            dill.dump_session(str(session / f"{number}"))
            sizes.append((session / f"{number}").stat().st_size)

        session.mkdir()
        cells_s, costs, failures = timed(shell, cells, dump)
        written, kept = sum(sizes), len(sizes)
    else:
        os.environ["ENV_KISHU_TEST_MODE"] = "1"
        from kishu.jupyterint import KishuForJupyter  # noqa: PLC0415
        from kishu.notebook_id import NotebookId  # noqa: PLC0415

        cells_s, _, _ = timed(shell, cells, lambda number: None)
        shell.reset()
        notebook = NotebookId("bench", folder / "bench.ipynb", "bench")
        kishu = KishuForJupyter(notebook, ip=shell)
        kishu.install_kishu_hooks()
        with_kishu, _, failures = timed(shell, cells, lambda number: None)
        costs = [with_kishu - cells_s]
        places = [folder, Path.home() / ".kishu", kishu.database_path().parent]
        found = {path for place in places for path in place.rglob("*") if path.is_file()}
        written, kept = sum(path.stat().st_size for path in found), len(cells)
    told: dict[str, object] = {
        "cells_s": cells_s,
        "saving_s": sum(costs),
        "worst_s": max(costs),
        "written": written,
        "kept": kept,
    }
    told |= {"failed": len(failures), "first_failure": failures[:1]}
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
