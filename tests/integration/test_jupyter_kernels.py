"""Kernels of others than IPython: bash's, xeus-python (C++) and R's, saved, parked, woken and taken back."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass

import pytest

from tests.jupyter import Answer, Notebook, Server, running
from tests.users import BIN, User

LINES = 400


@dataclass(frozen=True)
class Language:
    """A kernel, and how it says things. `%` stands for a number."""

    name: str
    argv: tuple[str, ...]
    calls_itself: str
    """In its kernel_info_reply."""
    set: str
    show: str
    count: str
    """Prints % numbers from 1 on, slowly."""
    asks: str = ""
    """Asks the person for a line, and prints it."""


LANGUAGES = [
    Language(
        "bash",
        (str(BIN / "python"), "-m", "bash_kernel", "-f", "{connection_file}"),
        "bash_kernel",
        "cd /; x=%",
        "echo $x",
        "for n in $(seq %); do echo $n; sleep 0.005; done",
    ),
    Language(
        "xeus-python",
        (str(BIN / "python"), "-m", "xpython_launcher", "-f", "{connection_file}"),
        "xeus-python",
        "x = %",
        "print(x)",
        "import time\nfor n in range(1, % + 1):\n    print(n); time.sleep(0.002)",
        "print(input())",
    ),
    Language(
        "r",
        ("R", "--no-save", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"),
        "IRkernel",
        "x <- %",
        'cat(x, "\\n", sep="")',
        "for (n in 1:%) { cat(n, '\\n', sep=''); flush.console(); Sys.sleep(0.002) }",
        'cat(readline(), "\\n", sep="")',
    ),
]


def has_irkernel() -> bool:
    asked = ["Rscript", "-e", "quit(status = !requireNamespace('IRkernel', quietly = TRUE))"]
    return shutil.which("Rscript") is not None and subprocess.run(asked, check=False).returncode == 0


def install(language: Language, user: User) -> None:
    """Write a kernelspec for a user."""
    spec = user.home / ".local" / "share" / "jupyter" / "kernels" / language.name / "kernel.json"
    spec.parent.mkdir(parents=True)
    told = {"argv": language.argv, "display_name": language.name, "language": language.name}
    spec.write_text(json.dumps(told))
    for path in (user.home / ".local", *(user.home / ".local").rglob("*")):
        user.own(path)


@pytest.mark.parametrize(
    "language",
    [pytest.param(one, id=one.name, marks=[pytest.mark.soak] if one.name == "r" else []) for one in LANGUAGES],
)
def test_a_kernel_of_another_language(ordinary_account: User, language: Language) -> None:
    if language.name == "r" and not has_irkernel():
        pytest.skip("needs IRkernel (Debian's package r-cran-irkernel)")
    install(language, ordinary_account)
    with running(Server(ordinary_account)) as server:
        _, kernel = server.new_session("work.ipynb", language.name)
        with Notebook(server, kernel) as notebook:
            notebook.run(language.set.replace("%", "5"))
            made = server.torpor(kernel, "/checkpoints")
            notebook.run(language.set.replace("%", "6"))
        server.stop()
        server.start()
        with Notebook(server, kernel) as notebook:
            waiting = notebook.start(language.show)
            server.torpor(kernel, "/resume")
            assert notebook.finish(waiting) == "6\n"
            server.torpor(kernel, f"/checkpoints/{made['id']}/restore")
            assert notebook.run(language.show) == "5\n"
            # No line is lost while a cell prints and the kernel is parked and woken.
            cell = notebook.start(language.count.replace("%", str(LINES)))
            for part in range(2):
                notebook.until(lambda part=part: len(notebook.output(cell)) > 400 * (part + 1), "it prints")  # type: ignore[misc]
                server.torpor(kernel, "/park")
                server.torpor(kernel, "/resume")
            assert notebook.finish(cell).split() == [str(n) for n in range(1, LINES + 1)]
            if language.asks:
                asked = notebook.start(language.asks)
                notebook.until(lambda: any(m["msg_type"] == "input_request" for m in notebook.seen), "it asks")
                server.torpor(kernel, "/park")
                notebook.send("input_reply", {"value": "word"}, "stdin")
                server.torpor(kernel, "/resume")
                assert notebook.finish(asked) == "word\n"
            with pytest.raises(Answer, match=rf"409.*a kernel of {language.calls_itself} cannot be forked"):
                server.torpor(kernel, f"/checkpoints/{made['id']}/fork")
            assert notebook.run(language.show) == "5\n"
